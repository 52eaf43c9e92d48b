"""The fields of ``model.json``, each checked and refused by name (DESIGN 3.2)."""

from __future__ import annotations

import json
import math
from pathlib import Path

from .errors import MedXAIError, nearest
from .package import (
    ACTIVATIONS,
    FITS,
    INTENSITIES,
    PROGRAM_SUFFIXES,
    STATE_SUFFIXES,
    TASKS,
    Explains,
    Input,
    Intensity,
    Network,
    Output,
    Package,
)

_AXES = ("RL", "AP", "SI")


def read_json(path: Path) -> dict:
    """A JSON object from a file; what is not strict JSON is refused with its line."""

    def pairs(items):
        names = [name for name, _ in items]
        for name in names:
            if names.count(name) > 1:
                raise MedXAIError(f"'{path}' has the field '{name}' twice; keep one.")
        return dict(items)

    def constant(word):
        raise MedXAIError(f"'{path}' holds {word}, which is not a number in JSON; write a finite number or null.")

    try:
        result = json.loads(path.read_text("utf-8-sig"), object_pairs_hook=pairs, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise MedXAIError(f"'{path}' is not valid JSON (line {error.lineno}: {error.msg}); correct it.") from None
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise MedXAIError(f"'{path}' cannot be read ({error}).") from None
    if not isinstance(result, dict):
        raise MedXAIError(f"'{path}' must hold one JSON object in braces.")
    return result


class _Fields:
    """One JSON object of the package: hands its fields out, and refuses what is missing, unknown or of the wrong type."""

    def __init__(self, values, where: str, required=(), optional=()):
        self.where, self.values = where, values
        if not isinstance(values, dict):
            raise MedXAIError(f"In model.json, {where} must be an object in braces, not {_told(values)}.")
        for name in values:
            if name not in required + optional:
                raise MedXAIError(
                    f"In model.json, {where} has an unknown field '{name}'{nearest(name, required + optional)};"
                    f" it takes {', '.join(required + optional)}."
                )
        for name in required:
            if name not in values:
                raise MedXAIError(f"In model.json, {where} lacks the field '{name}'; add it.")

    def wrong(self, name, takes) -> MedXAIError:
        return MedXAIError(
            f"In model.json, '{name}' of {self.where} is {_told(self.values.get(name))}; it takes {takes}."
        )

    def text(self, name) -> str:
        value = self.values[name]
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(name, "text")
        return value

    def digest(self, name) -> str:
        value = self.values[name]
        if not isinstance(value, str) or len(value) != 64 or set(value.lower()) - set("0123456789abcdef"):
            raise self.wrong(name, "the SHA-256 of the weights in 64 hexadecimal digits")
        return value.lower()

    def pair(self, name) -> tuple[float, float]:
        value = self.values[name]
        if not isinstance(value, list) or len(value) != 2 or not all(map(_is_number, value)) or value[0] > value[1]:
            raise self.wrong(name, "two numbers, the smaller one first")
        return tuple(map(float, value))

    def choice(self, name, choices) -> str:
        value = self.values[name]
        if not isinstance(value, str) or value not in choices:
            close = nearest(value, choices) if isinstance(value, str) else ""
            raise self.wrong(name, ", ".join(choices[:-1]) + " or " + choices[-1] + close)
        return value

    def number(self, name) -> float:
        value = self.values[name]
        if not _is_number(value):
            raise self.wrong(name, "a finite number")
        return float(value)

    def flag(self, name) -> bool:
        value = self.values.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return bool(value)

    def names(self, name, what) -> tuple[str, ...]:
        value = self.values[name]
        if not isinstance(value, list) or not value or not all(isinstance(v, str) and v.strip() for v in value):
            raise self.wrong(name, f"a list of {what} names")
        for one in value:
            if value.count(one) > 1:
                raise MedXAIError(
                    f"In model.json, '{name}' of {self.where} has '{one}' twice; each name must be its own."
                )
        return tuple(value)

    def per_axis(self, name, dims, kind) -> tuple | None:
        """A list with one positive number per axis, or null."""
        value = self.values.get(name)
        if value is None:
            return None
        good = isinstance(value, list) and len(value) == dims and all(_is_number(v) and v > 0 for v in value)
        if not good or (kind is int and any(v != int(v) for v in value)):
            whole = "whole " if kind is int else ""
            raise self.wrong(name, f"null or a list of {dims} positive {whole}numbers (spatial_dims is {dims})")
        return tuple(kind(v) for v in value)


def package_of(values: dict, folder: Path) -> Package:
    """The package that ``values`` (the content of ``model.json``) describes; nothing but the values is looked at."""
    if isinstance(values, dict) and "schema" in values and values["schema"] != 1:
        raise MedXAIError(
            f"The model.json in '{folder}' has schema {_told(values['schema'])}; this MedXAI reads schema 1 only, so update it."
        )
    optional = ("description", "license", "source", "citation", "terminology")
    required = ("schema", "name", "task", "weights", "sha256", "input", "output")
    top = _Fields(values, "the model", required, (*optional, "network", "explains"))
    if isinstance(values["schema"], bool):
        raise top.wrong("schema", "1")
    task = top.choice("task", TASKS)
    if (task == "explanation") != ("explains" in values):
        raise MedXAIError(
            "In model.json, a model of the task explanation, and no other, has the field 'explains'; correct one of both."
        )
    weights = weights_name(values["weights"])
    digest = top.digest("sha256")
    for name in optional:
        if name == "terminology" and isinstance(values.get(name), (dict, list)):
            continue
        if values.get(name) is not None and not isinstance(values[name], str):
            raise top.wrong(name, "text")
    network = values.get("network")
    if Path(weights).suffix.lower() in PROGRAM_SUFFIXES:
        if network is not None:
            raise MedXAIError(
                f"In model.json, 'network' cannot go with '{weights}', which is a program that holds its own network; remove it."
            )
    elif network is None:
        raise MedXAIError(
            f"In model.json, the model lacks the field 'network', which the weights '{weights}' need; add it."
        )
    else:
        part = _Fields(network, "'network'", ("name",), ("arguments",))
        arguments = network.get("arguments") or {}
        if not isinstance(arguments, dict):
            raise part.wrong("arguments", "an object in braces")
        network = Network(part.text("name"), arguments)
    return Package(
        folder=Path(folder),
        name=top.text("name"),
        task=task,
        weights=weights,
        sha256=digest,
        network=network,
        input=_input(values["input"]),
        output=_output(values["output"]),
        explains=_explains(values["explains"]) if task == "explanation" else None,
        about={name: values[name] for name in optional if values.get(name) is not None},
    )


def weights_name(value) -> str:
    suffixes = STATE_SUFFIXES + PROGRAM_SUFFIXES
    if not isinstance(value, str) or not value or set(value) & set("/\\:\0") or value.startswith("."):
        raise MedXAIError(
            f"In model.json, 'weights' is {_told(value)}; it takes the bare name of a file in the same folder, such as weights.safetensors."
        )
    if Path(value).suffix.lower() not in suffixes:
        raise MedXAIError(
            f"In model.json, 'weights' is {_told(value)}; it takes a file that ends in {', '.join(suffixes)}."
        )
    return value


def _input(values) -> Input:
    required = ("spatial_dims", "channels", "intensity")
    part = _Fields(values, "'input'", required, ("orientation", "spacing", "size", "fit", "multiple_of"))
    dims = values["spatial_dims"]
    if isinstance(dims, bool) or dims not in (2, 3):
        raise part.wrong("spatial_dims", "2 or 3")
    channels = part.names("channels", "channel")
    orientation = values.get("orientation")
    if orientation is not None:
        axes = (
            [axis for letter in orientation for axis in _AXES if letter in axis] if isinstance(orientation, str) else []
        )
        if len(axes) != dims or len(set(axes)) != dims or len(orientation) != dims:
            example = "RAS" if dims == 3 else "PL"
            raise part.wrong(
                "orientation",
                f"null or {dims} letters (spatial_dims is {dims}), one of R/L, A/P or S/I for each axis, such as {example}",
            )
    size = part.per_axis("size", dims, int)
    if values.get("fit") is not None:
        part.choice("fit", FITS)
        if size is None:
            raise MedXAIError("In model.json, 'input' has 'fit' without 'size'; add the size or remove fit.")
    elif size is not None:
        raise MedXAIError("In model.json, 'input' has a 'size' but lacks the field 'fit'; add resize, pad or window.")
    multiple = values.get("multiple_of")
    if multiple is None or (_is_number(multiple) and multiple >= 1 and multiple == int(multiple)):
        multiple = (int(multiple or 1),) * dims
    elif isinstance(multiple, list):
        multiple = part.per_axis("multiple_of", dims, int)
    else:
        raise part.wrong("multiple_of", f"null, a whole number from 1, or a list of {dims} of them")
    for have, need in zip(size or (), multiple):
        if have % need:
            raise MedXAIError(
                f"In model.json, 'size' {list(size)} of 'input' is not a multiple of 'multiple_of'; correct one."
            )
    intensity = values["intensity"]
    if isinstance(intensity, list):
        if len(intensity) != len(channels):
            raise MedXAIError(
                f"In model.json, 'intensity' of 'input' has {len(intensity)} entries for {len(channels)} channels; give one per channel."
            )
        intensity = tuple(_intensity(one) for one in intensity)
    else:
        intensity = (_intensity(intensity),) * len(channels)
    spacing = part.per_axis("spacing", dims, float)
    return Input(dims, channels, orientation, spacing, size, values.get("fit"), multiple, intensity)


def _intensity(values) -> Intensity:
    kinds = ", ".join(INTENSITIES)
    if not isinstance(values, dict) or "kind" not in values:
        raise MedXAIError(f"In model.json, 'intensity' of 'input' needs an object with a 'kind': {kinds}.")
    if not isinstance(values["kind"], str) or values["kind"] not in INTENSITIES:
        close = nearest(str(values["kind"]), INTENSITIES)
        raise MedXAIError(
            f"In model.json, the intensity kind {_told(values['kind'])} is unknown{close}; it takes {kinds}."
        )
    required, optional = INTENSITIES[values["kind"]]
    where = f"the intensity '{values['kind']}'"
    part = _Fields(values, where, ("kind", *required), (*optional, "range", "per_slice"))
    found = {}
    for name in ("low", "high", "multiply", "add"):
        if name in required or values.get(name) is not None:
            found[name] = part.number(name)
    for name in ("clip", "nonzero", "per_slice"):
        found[name] = part.flag(name)
    if values.get("range") is not None:
        if values["range"] != "uint8":
            raise part.wrong("range", "uint8 or null")
        found["range"] = "uint8"
    if found.get("multiply") == 0:
        raise part.wrong("multiply", "a number that is not 0")
    low, high = found.get("low"), found.get("high")
    if low is not None and high is not None and low >= high:
        raise MedXAIError(f"In model.json, {where} has low {low:g} and high {high:g}; low must be the smaller one.")
    if values["kind"] == "percentile" and not 0 <= low < high <= 100:
        raise MedXAIError(
            f"In model.json, {where} has low {low:g} and high {high:g}; percentiles lie between 0 and 100."
        )
    return Intensity(values["kind"], **found)


def _output(values) -> Output:
    part = _Fields(values, "'output'", ("labels", "activation"), ("key",))
    labels = part.names("labels", "label")
    activation = part.choice("activation", ACTIVATIONS)
    if activation == "softmax" and len(labels) < 2:
        raise MedXAIError(
            "In model.json, the activation softmax needs at least two labels; add the background, or use sigmoid."
        )
    key = values.get("key")
    if key is not None and (isinstance(key, bool) or not isinstance(key, (str, int))):
        raise part.wrong("key", "a name or a whole number")
    return Output(labels, activation, key)


def _explains(values) -> Explains:
    part = _Fields(
        values, "'explains'", ("sha256", "name", "positive", "negative", "labels", "data_range", "mean", "sd")
    )
    for side in ("positive", "negative"):
        known = values["labels"] if isinstance(values["labels"], list) else []
        if values[side] not in known and (side == "positive" or values[side] != f"not {values['positive']}"):
            raise part.wrong(side, "one of 'labels'")
    if part.number("data_range") <= 0:
        raise part.wrong("data_range", "a positive number")
    return Explains(
        part.digest("sha256"), part.text("name"), part.text("positive"), part.text("negative"), part.names("labels", "label"), part.number("data_range"), part.pair("mean"),
        part.pair("sd"),
    )  # fmt: skip


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _told(value) -> str:
    """A value as a person wrote it in JSON, cut when long."""
    try:
        words = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        words = repr(value)
    return words if len(words) <= 60 else words[:57] + "…"
