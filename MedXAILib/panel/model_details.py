"""What a model package says of itself, as text for a panel; without Qt."""

from __future__ import annotations

from html import escape

from .library import Entry


def detailsHtml(entry: Entry) -> str:
    """Task, labels, input, format and source of a package, as a small table."""
    if entry.package is None:
        return f"<p>{escape(entry.problem)}</p><p><small>{escape(str(entry.folder))}</small></p>"
    package, about = entry.package, entry.package.input
    rows = [("Task", package.task), ("Labels", ", ".join(package.output.labels))]
    kind = f"{about.spatial_dims}-D, " + ", ".join(about.channels)
    if about.orientation:
        kind += f"; axes {about.orientation}"
    if about.spacing:
        kind += "; " + " × ".join(f"{s:g}" for s in about.spacing) + " mm"
    if about.size:
        kind += f"; {' × '.join(map(str, about.size))} voxels ({about.fit})"
    rows += [("Input", kind), ("Intensity", "; ".join(dict.fromkeys(_intensity(one) for one in about.intensity)))]
    if package.explains is not None:
        known = package.explains
        rows.append(
            ("Explains", f"{known.name} (SHA-256 {known.sha256[:12]}…): {known.positive} against {known.negative}")
        )
    if package.network is not None:
        rows.append(("Network", package.network.name))
    rows.append(("Weights", f"{package.weights}" + (" (a program)" if package.is_program else "")))
    rows += [("SHA-256", package.sha256), ("Folder", str(entry.folder))]
    rows += [(name.capitalize(), str(package.about[name])) for name in ("description", "source", "license", "citation") if package.about.get(name)]  # fmt: skip
    cells = "".join(f"<tr><td><b>{escape(a)}</b>&nbsp;</td><td>{_breakable(b)}</td></tr>" for a, b in rows if b)
    return f"<table>{cells}</table>"


def _intensity(one) -> str:
    if one.kind in ("window", "percentile"):
        return f"{one.kind} {one.low:g} to {one.high:g}"
    if one.kind == "linear":
        limits = [f"{name} {value:g}" for name, value in (("from", one.low), ("to", one.high)) if value is not None]
        return " ".join([f"× {one.multiply:g} {'+' if one.add >= 0 else '−'} {abs(one.add):g}", *limits])
    return one.kind


def _breakable(text: str) -> str:
    """Long words without spaces may break, so that the panel stays narrow."""
    words = [w if len(w) < 34 else "\u200b".join(w[n : n + 16] for n in range(0, len(w), 16)) for w in text.split(" ")]
    return escape(" ".join(words))


def layersOf(description: dict) -> list[tuple[str, str, str]]:
    """Name, kind and shape of each layer the worker described."""
    found = []
    for layer in description.get("layers") or ():
        shape = layer.get("shape")
        text = " × ".join(map(str, shape)) if isinstance(shape, (list, tuple)) else str(shape or "")
        found.append((str(layer.get("name", "")), str(layer.get("kind", "")), text))
    return found
