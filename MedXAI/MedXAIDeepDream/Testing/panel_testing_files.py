"""Model packages that no real worker could load; without Slicer, so that the worker that plays writes them too."""

import hashlib
import json
from pathlib import Path


def writeModel(folder: Path, name="Played organ", weights=b"played", suffix=".safetensors", **changes) -> Path:
    """A package that no real worker could load, and the fake one does not need to."""
    folder.mkdir(parents=True)
    (folder / f"weights{suffix}").write_bytes(weights)
    fields = {
        "schema": 1, "name": name, "task": "segmentation", "weights": f"weights{suffix}",
        "sha256": hashlib.sha256(weights).hexdigest(),
        "input": {"spatial_dims": 3, "channels": ["CT"], "orientation": None, "spacing": None, "size": None,
                  "multiple_of": None, "intensity": {"kind": "none"}},
        "output": {"labels": ["background", "liver", "organ"], "activation": "softmax"},
    }  # fmt: skip
    if suffix == ".safetensors":
        fields["network"] = {"name": "UNet", "arguments": {}}
    fields.update(changes)
    (folder / "model.json").write_text(json.dumps(fields))
    return folder


def writeExplainer(folder: Path, classifier, name="Played explainer", **changes) -> Path:
    """The explainer of a classifier's package."""
    negative, positive = classifier.output.labels[:2]
    explains = {"sha256": classifier.sha256, "name": classifier.name, "positive": positive, "negative": negative,
                "labels": list(classifier.output.labels), "data_range": 1.0, "mean": [0.0, 1.0], "sd": [0.1, 1.0]}  # fmt: skip
    fields = {
        "task": "explanation", "network": {"name": "GeneratorPair", "arguments": {"spatial_dims": classifier.input.spatial_dims, "channels": 1}},
        "input": {k: v for k, v in classifier.to_json()["input"].items() if k != "fit" or classifier.input.size}, "explains": explains,
        "output": {"labels": [positive, negative], "activation": "none"},
    }  # fmt: skip
    return writeModel(folder, name, b"generators", **fields | changes)
