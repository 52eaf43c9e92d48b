"""Where a run comes from: written on every node of it, read back from any of them."""

from __future__ import annotations

import json
import math

from ..errors import MedXAIError
from ..explanation import Explanation
from .nodes import INPUT

SEGMENTATION = "MedXAI.Segmentation"  # node reference; with a role behind it, that of another segment
PARTS = ("organ",)


def stamps(explanation: Explanation, run) -> dict[str, str]:
    """The attributes that every node of a run carries."""
    known = explanation.provenance
    model = known.get("model") or {}
    model = model if isinstance(model, dict) else {"name": str(model)}
    sha = model.get("sha256") or known.get("sha256") or ""
    found = {
        "MedXAI.Method": explanation.method,
        "MedXAI.Settings": _json(known.get("settings") or {}),
        "MedXAI.Model": model.get("name") or "",
        "MedXAI.SHA256": sha,
        "MedXAI.Versions": _json(known.get("versions") or {}),
        "MedXAI.Device": str(known.get("device") or ""),
        "MedXAI.Seconds": str(known.get("seconds") or ""),
        "MedXAI.Inputs": _json([node.GetName() for node in run.inputs]),
        "MedXAI.Scores": _json(explanation.scores),
        "MedXAI.Provenance": _json(known),
    }
    if run.segmentation is not None:
        found["MedXAI.Segment"] = run.segment_id
    found |= {f"MedXAI.Segment.{role}": segment_id for role, (_, segment_id) in run.parts.items()}
    return {key: value for key, value in found.items() if value}


def provenance(scene, thing) -> dict:
    """What "Repeat this run" needs, from a run's folder (its item) or any of its nodes.

    Returns
    -------
    dict
        ``method``, ``settings``, ``model`` (name), ``sha256``, ``inputs`` (volume nodes that are still there),
        ``input_names``, ``segmentation`` (node or None), ``segment`` (id), ``parts`` (the same by role), ``scores`` and ``provenance``, everything that was recorded.

    Raises
    ------
    MedXAIError
        For anything that is not of a run.
    """
    from . import remove

    run = remove.run_of(scene, thing)
    nodes = [n for n in remove.of_run(scene, run) if n.GetAttribute("MedXAI.Method")] if run else []
    if not nodes:
        raise MedXAIError(
            "This is not a finished MedXAI run; choose the folder of one, or a map, chart or table in it."
        )
    node = next((n for n in nodes if n.GetNumberOfNodeReferences(INPUT)), nodes[0])
    read = node.GetAttribute
    return {
        "method": read("MedXAI.Method"),
        "settings": json.loads(read("MedXAI.Settings") or "{}"),
        "model": read("MedXAI.Model") or "",
        "sha256": read("MedXAI.SHA256") or "",
        "inputs": [
            v for n in range(node.GetNumberOfNodeReferences(INPUT)) if (v := node.GetNthNodeReference(INPUT, n))
        ],
        "input_names": json.loads(read("MedXAI.Inputs") or "[]"),
        "segmentation": node.GetNodeReference(SEGMENTATION),
        "segment": read("MedXAI.Segment") or "",
        "parts": {
            role: (node.GetNodeReference(f"{SEGMENTATION}.{role}"), read(f"MedXAI.Segment.{role}") or "")
            for role in PARTS
            if read(f"MedXAI.Segment.{role}")
        },
        "provenance": json.loads(read("MedXAI.Provenance") or "{}"),
        "scores": json.loads(read("MedXAI.Scores") or "{}"),
    }


def words(explanation: Explanation) -> str:
    """Notes, self-checks and numbers of a run, to be read."""
    known = explanation.provenance
    model = known.get("model") or {}
    model = model if isinstance(model, dict) else {"name": str(model)}
    lines = [explanation.title, "=" * len(explanation.title), ""]
    lines += [f"Model: {model.get('name', '')}", f"SHA-256: {model.get('sha256') or known.get('sha256') or ''}"]
    keys = (
        "label",
        "negative",
        "predicted",
        "segment",
        "landmarks",
        "reference",
        "slice",
        "rule",
        "neuron_ras",
        "neuron_ijk",
    )
    for key in (*keys, "device", "seconds", "date"):
        if known.get(key) not in (None, "", []):
            lines.append(f"{key.replace('_', ' ').capitalize()}: {_plain_text(known[key])}")
    if isinstance(known.get("inpainter"), dict):
        about = known["inpainter"]
        lines.append(f"Inpainter: {'none, fall-back ' * bool(about.get('fallback'))}{about.get('name', '')}")
    if isinstance(known.get("explainer"), dict):
        lines.append(
            f"Explainer: {known['explainer'].get('name') or ''} (SHA-256 {known['explainer'].get('sha256') or ''})"
        )
    if explanation.notes:
        lines += ["", "Notes", "-----", *(f"- {note}" for note in explanation.notes)]
    if explanation.self_checks:
        lines += ["", "Self-checks", "-----------"]
        for name, check in explanation.self_checks.items():
            state = {True: "passed", False: "NOT PASSED"}.get(check.get("passed"), "for information")
            lines.append(
                f"- {name.replace('_', ' ')}: {_plain_text(check.get('value'))} ({state}). {check.get('meaning', '')}"
            )
    if explanation.scores:
        lines += ["", "Numbers", "-------", *(f"- {k}: {_plain_text(v)}" for k, v in explanation.scores.items())]
    if known.get("settings"):
        lines += ["", "Settings", "--------", *(f"- {k}: {_plain_text(v)}" for k, v in known["settings"].items())]
    lines += ["", "Research software; not a medical device."]
    return "\n".join(lines) + "\n"


def _plain_text(value) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain_text(v) for v in value)
    return str(value)


def _json(value) -> str:
    return json.dumps(_finite(value), separators=(",", ":"))


def _finite(value):
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
