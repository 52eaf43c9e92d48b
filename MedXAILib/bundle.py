"""A MONAI bundle as a model package, read literally: values as they stand, no expression, no reference, nothing executed."""

from __future__ import annotations

import re
from pathlib import Path

from .errors import MedXAIError
from .model_json import package_of, read_json
from .package import Package, sha256

#: Transforms that do not change what the network sees, once orientation and spacing are known.
_HARMLESS = (
    "LoadImage",
    "EnsureChannelFirst",
    "AddChannel",
    "EnsureType",
    "CastToType",
    "ToTensor",
    "ToDevice",
    "Identity",
)
_WEIGHTS = ("model.safetensors", "model.pt", "model.pt2", "model.ts")


def read_bundle(folder) -> Package:
    """The package that a MONAI bundle folder describes.

    Parameters
    ----------
    folder : path
        Holds ``configs/metadata.json``, ``configs/inference.json`` and ``models/model.*``.

    Raises
    ------
    MedXAIError
        Where anything that matters is an expression, a reference or not known: then a ``model.json`` must be written.
    """
    folder = Path(folder)
    name = folder.resolve().name

    def refuse(why: str) -> MedXAIError:
        return MedXAIError(
            f"The MONAI bundle '{name}' cannot be read literally ({why}); write a model.json in its folder."
        )

    for needed in ("metadata.json", "inference.json"):
        if not (folder / "configs" / needed).is_file():
            raise refuse(f"it has no configs/{needed}")
    about, config = (read_json(folder / "configs" / file) for file in ("metadata.json", "inference.json"))
    weights = next((one for one in _WEIGHTS if (folder / "models" / one).is_file()), None)
    if weights is None:
        raise refuse(f"models/ holds none of {', '.join(_WEIGHTS)}")
    network = None
    if weights.endswith((".safetensors", ".pt")):
        network = _network(config, refuse)
    image, answer = _formats(about, refuse)
    dims = 3 if network is None else network["arguments"].get("spatial_dims", 3)
    channels, labels = _names(image, "channel", refuse), _names(answer, "label", refuse)
    size, fit = _window(config, dims, refuse)
    multiples = [re.fullmatch(r"(\d+)\s*\*\s*n", str(one)) for one in image.get("spatial_shape") or []]
    whole = len(multiples) == dims and all(multiples) and fit is None
    fields = {
        "schema": 1,
        "name": str(about.get("name") or name),
        "task": "segmentation",
        "weights": weights,
        "sha256": "0" * 64,
        "input": {
            "spatial_dims": dims,
            "channels": channels,
            **_preprocessing(config, dims, len(channels), refuse),
            "size": size,
            "fit": fit,
            "multiple_of": [int(one[1]) for one in multiples] if whole else 1,
        },
        "output": {"labels": labels, "activation": _activation(config, len(labels), refuse)},
    }
    for key in ("description", "license"):
        if isinstance(about.get(key), str):
            fields[key] = about[key]
    if network is not None:
        fields["network"] = network
    package = package_of(fields, folder)
    object.__setattr__(package, "weights", f"models/{weights}")
    object.__setattr__(package, "sha256", sha256(folder / "models" / weights))
    object.__setattr__(package, "bundle", True)
    return package


def _literal(value, where: str, refuse):
    """The value, if no part of it is an expression (``$``), a reference (``@``) or a macro (``%``)."""
    if isinstance(value, str) and value[:1] in ("$", "@", "%"):
        raise refuse(f"{where} is the expression '{value[:40]}'")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _literal(part, where, refuse)
    return value


def _network(config: dict, refuse) -> dict:
    found = next((config[key] for key in ("network_def", "network", "net") if isinstance(config.get(key), dict)), None)
    if found is None or "_target_" not in found:
        raise refuse("configs/inference.json has no 'network_def' with a '_target_'")
    _literal(found, "its network", refuse)
    target = found["_target_"]
    prefix, _, name = str(target).rpartition(".")
    if prefix and not re.fullmatch(r"monai\.networks\.nets(\.\w+)?", prefix):
        raise refuse(f"its network '{target}' is not one of MONAI's")
    return {"name": name, "arguments": {key: value for key, value in found.items() if not key.startswith("_")}}


def _formats(about: dict, refuse) -> tuple[dict, dict]:
    formats = about.get("network_data_format")
    try:
        return formats["inputs"]["image"], formats["outputs"]["pred"]
    except (KeyError, TypeError):
        raise refuse("metadata.json does not describe the input 'image' and the output 'pred'") from None


def _names(format: dict, what: str, refuse) -> list[str]:
    """Channel or label names in order of their numbers."""
    names = format.get("channel_def")
    if not isinstance(names, dict) or sorted(names) != sorted(map(str, range(len(names)))) or not names:
        raise refuse(f"metadata.json names no {what}s in 'channel_def'")
    names = [str(names[str(number)]) for number in range(len(names))]
    if format.get("num_channels", len(names)) != len(names):
        raise refuse(f"metadata.json names {len(names)} {what}s for {format['num_channels']} channels")
    return names


def _transforms(config: dict, key: str, refuse):
    """Name (without the d of dictionary transforms) and arguments of each transform that is not disabled."""
    steps = config.get(key)
    steps = steps.get("transforms") if isinstance(steps, dict) else steps
    if not isinstance(steps, list):
        raise refuse(f"its {key} is not a list of transforms")
    for step in steps:
        if not isinstance(step, dict) or not isinstance(step.get("_target_"), str):
            raise refuse(f"a step of its {key} is not a transform")
        if step.get("_disabled_") is not True:
            name = step["_target_"].rpartition(".")[2]
            yield (name[:-1] if name.endswith("d") and name != "Identity" else name), step


def _preprocessing(config: dict, dims: int, channels: int, refuse) -> dict:
    found = {"orientation": None, "spacing": None, "intensity": {"kind": "none"}}
    for name, step in _transforms(config, "preprocessing", refuse):
        if name in _HARMLESS:
            continue
        arguments = {key: value for key, value in step.items() if key not in ("keys", "allow_missing_keys")}
        _literal(arguments, f"the transform {name}", refuse)
        if found["intensity"]["kind"] != "none" and name not in _HARMLESS:
            raise refuse(f"the transform {name} follows the intensities")
        if name == "Orientation":
            found["orientation"] = arguments.get("axcodes")
        elif name == "Spacing":
            found["spacing"] = arguments.get("pixdim")
        else:
            found["intensity"] = _intensity(name, arguments, channels, refuse)
    if found["orientation"] is None or dims != 3:
        # MONAI keeps the file's own axis order then, which differs between files.
        raise refuse("it does not say which orientation the network was trained on")
    return found


def _intensity(name: str, step: dict, channels: int, refuse) -> dict:
    known = {"_target_", "_desc_", "_disabled_", "dtype"}
    if name == "ScaleIntensityRange" and set(step) - known <= {"a_min", "a_max", "b_min", "b_max", "clip"}:
        low, high, to_low, to_high = (step.get(key) for key in ("a_min", "a_max", "b_min", "b_max"))
        if None not in (low, high) and high != low:
            if (to_low, to_high) == (0, 1) and step.get("clip"):
                return {"kind": "window", "low": low, "high": high}
            to_low, to_high = (0, 1) if to_low is None or to_high is None else (to_low, to_high)
            factor = (to_high - to_low) / (high - low)
            limits = {"low": to_low, "high": to_high} if step.get("clip") else {}
            return {"kind": "linear", "multiply": factor, "add": to_low - low * factor, **limits}
    if name == "ScaleIntensityRangePercentiles" and set(step) - known <= {"lower", "upper", "b_min", "b_max", "clip"}:
        if (step.get("b_min"), step.get("b_max")) == (0, 1) and channels == 1:
            return {"kind": "percentile", "low": step["lower"], "high": step["upper"], "clip": bool(step.get("clip"))}
    if name == "NormalizeIntensity" and set(step) - known <= {"nonzero", "channel_wise"}:
        if channels == 1 or step.get("channel_wise"):
            return {"kind": "zscore", "nonzero": bool(step.get("nonzero"))}
    if name == "ScaleIntensity" and set(step) - known <= {"minv", "maxv", "channel_wise"}:
        if (step.get("minv", 0), step.get("maxv", 1)) == (0, 1) and (channels == 1 or step.get("channel_wise")):
            return {"kind": "minmax"}
    raise refuse(f"the transform {name} is not one that MedXAI knows with these arguments")


def _window(config: dict, dims: int, refuse):
    inferer = config.get("inferer")
    if not isinstance(inferer, dict) or "Sliding" not in str(inferer.get("_target_")):
        return None, None
    size = _literal(inferer.get("roi_size"), "the window size", refuse)
    return (list(size) if isinstance(size, list) else [size] * dims), "window"


def _activation(config: dict, labels: int, refuse) -> str:
    steps = dict(_transforms(config, "postprocessing", refuse))
    for name in ("softmax", "sigmoid"):
        if steps.get("Activations", {}).get(name) is True:
            return name
    if labels > 1 and steps.get("AsDiscrete", {}).get("argmax") is True:
        return "softmax"
    raise refuse("its postprocessing names neither softmax nor sigmoid")
