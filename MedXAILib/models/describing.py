"""What a model folder holds, for ``medxai models describe`` and the Models panel."""

from __future__ import annotations

from collections.abc import Collection

from ..errors import MedXAIError
from ..package import Package


def describe(folder, trusted: Collection[str] = ()) -> dict:
    """Everything a person or a program may want to know of a model folder, as plain values.

    Parameters
    ----------
    folder : path
        A model package.
    trusted : collection of str
        SHA-256 of programs that may be loaded. A program that is not trusted is described without ``layers`` and
        ``parameters`` (None), and never loaded.

    Returns
    -------
    dict
        ``name``, ``task``, ``folder``, ``format``, ``sha256``, ``is_program``, ``trusted``, ``labels``, ``activation``,
        ``input``, ``network``, ``parameters``, ``layers`` (each ``name``, ``kind``, ``operation``, ``shape``, ``path``, and for blocks ``number``, ``group``), ``trace_size``,
        ``receptive_field``, and ``about``.
    """
    package = Package.read(folder)
    digest = package.verify()
    fields = package.to_json()
    free = not package.is_program or digest in {str(one).lower() for one in trusted}
    result = {
        "name": package.name,
        "task": package.task,
        "folder": str(package.folder),
        "format": package.format,
        "sha256": digest,
        "is_program": package.is_program,
        "trusted": free,
        "labels": list(package.output.labels),
        "activation": package.output.activation,
        "input": fields["input"],
        "network": fields.get("network"),
        "parameters": None,
        "layers": None,
        "trace_size": None,
        "receptive_field": None,
        "about": package.about,
        "explains": fields.get("explains"),
    }
    if free:
        from . import graph
        from .loading import load

        model = load(folder, "cpu", trusted)
        result["parameters"] = model.parameters()
        try:
            _, size = graph.small(model)
            result["layers"] = [
                {
                    "name": one.name, "kind": one.kind, "operation": one.operation, "shape": list(one.shape), "path": one.path,
                    "number": one.number or None, "group": one.group,
                }
                for one in model.layers()
            ]  # fmt: skip
            result["trace_size"] = list(size)
            field = model.receptive_field(size)
            result["receptive_field"] = {
                "exact": field.exact, "reason": field.reason, "radius": [list(one) for one in field.radius], "stride": list(field.stride),
            }  # fmt: skip
        except MedXAIError as error:  # a network that cannot be traced can still be used
            result["receptive_field"] = {"exact": False, "reason": error.message, "radius": [], "stride": []}
    return result


def text(found: dict) -> str:
    """The same for a person to read in a terminal."""
    about = found["input"]
    intensity = about["intensity"] if isinstance(about["intensity"], list) else [about["intensity"]]
    kinds = "; ".join(_intensity(one) for one in intensity)

    def by(values, unit=""):
        return "as it is" if values is None else " × ".join(f"{v:g}" for v in values) + unit

    size = (
        by(about["size"], f" voxels ({about['fit']})")
        if about["size"]
        else f"any multiple of {_several(about['multiple_of'])}"
    )
    lines = [
        found["name"],
        f"  task         {found['task']}, {found['activation']}",
        f"  labels       {', '.join(found['labels'])}",
        f"  input        {about['spatial_dims']}-D, {', '.join(about['channels'])}; intensity {kinds}",
        f"  orientation  {about['orientation'] or 'as it is'}; spacing {by(about['spacing'], ' mm')}; size {size}",
        f"  weights      .{found['format']}, SHA-256 {found['sha256']}",
    ]
    if found["network"]:
        lines.append(f"  network      {found['network']['name']}")
    if about := found.get("explains"):
        lines.append(f"  explains     {about['name']} (SHA-256 {about['sha256']}): {about['positive']} against {about['negative']}")  # fmt: skip
    for name, value in found["about"].items():
        if isinstance(value, str):
            lines.append(f"  {name:<12} {value}")
    if not found["trusted"]:
        lines.append(
            "  trust        not given: the weights are a program, so its layers are not shown (--trust shows them)"
        )
        return "\n".join(lines)
    lines.append(f"  parameters   {found['parameters']:,}")
    field = found["receptive_field"]
    if found["task"] == "segmentation" and field:
        reach = " × ".join(f"{a + b + 1}" for a, b in field["radius"])
        lines.append(
            f"  sees         {reach + ' voxels per output voxel' if field['exact'] else 'the whole image: ' + field['reason']}"
        )
    if found["layers"] is not None:
        lines.append(f"  layers       {len(found['layers'])}, at an input of {by(found['trace_size'])} voxels:")
        width = max((len(one["name"]) for one in found["layers"]), default=0)
        for one in found["layers"]:
            shape = " × ".join(map(str, one["shape"]))
            block = f"{one['number']:>3} {one['group']:<5}" if one["number"] else " " * 9
            lines.append(f"    {block}  {one['name']:<{width}}  {one['kind']:<22}  {shape:<18}  {one['path']}".rstrip())
    return "\n".join(lines)


def _several(multiple) -> str:
    return str(multiple) if isinstance(multiple, int) else " × ".join(map(str, multiple))


def _intensity(one: dict) -> str:
    rest = [
        k if v is True else f"{k} {v:g}" if isinstance(v, (int, float)) else f"{k} {v}"
        for k, v in one.items()
        if k != "kind" and v is not None and v is not False
    ]
    return one["kind"] + (f" ({', '.join(rest)})" if rest else "")
