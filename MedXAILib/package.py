"""The model package: a folder with ``model.json`` and one weights file, read and checked without torch (DESIGN 3.2)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .errors import MedXAIError, nearest

TASKS = ("segmentation", "classification")
ACTIVATIONS = ("softmax", "sigmoid", "none")
FITS = ("resize", "pad", "window")
#: Weights that are data, and weights that are programs.
STATE_SUFFIXES, PROGRAM_SUFFIXES = (".safetensors", ".pt"), (".ts", ".pt2")
#: Fields of each kind of intensity: the required ones, then the optional ones.
INTENSITIES = {
    "window": (("low", "high"), ()),
    "percentile": (("low", "high"), ("clip",)),
    "minmax": ((), ()),
    "zscore": ((), ("nonzero",)),
    "linear": (("multiply", "add"), ("low", "high")),
    "none": ((), ()),
}
_AXES = ("RL", "AP", "SI")


@dataclass(frozen=True)
class Intensity:
    """How one channel's voxel values become network units; ``None`` where a kind has no such field."""

    kind: str
    low: float | None = None
    high: float | None = None
    clip: bool = False  # of ``percentile``
    nonzero: bool = False  # of ``zscore``
    multiply: float = 1.0
    add: float = 0.0
    range: str | None = None  # ``uint8``: a radiograph's stored range is first scaled to 0–255
    per_slice: bool = False


@dataclass(frozen=True)
class Input:
    """What the network takes. Axes are the network's spatial axes in order."""

    spatial_dims: int
    channels: tuple[str, ...]
    orientation: str | None
    spacing: tuple[float, ...] | None  # mm
    size: tuple[int, ...] | None
    fit: str | None  # how a volume gets that size: ``resize``, ``pad`` or ``window``
    multiple_of: tuple[int, ...]  # one per axis; 1 where the package names none
    intensity: tuple[Intensity, ...]  # one per channel


@dataclass(frozen=True)
class Output:
    """What the network gives: one channel per label."""

    labels: tuple[str, ...]
    activation: str
    key: str | int | None = None  # which entry of a tuple or dict


@dataclass(frozen=True)
class Network:
    """The class that the weights belong to, and what it is called with."""

    name: str
    arguments: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Package:
    """A model folder, validated.

    Notes
    -----
    ``sha256`` is what ``model.json`` states; `verify` compares it with the file. A MONAI bundle states none (empty).
    """

    folder: Path
    name: str
    task: str
    weights: str
    sha256: str
    network: Network | None
    input: Input
    output: Output
    about: dict = field(default_factory=dict)  # description, license, source, citation, terminology
    bundle: bool = False

    @classmethod
    def read(cls, folder) -> Package:
        """Read and check a model folder (``model.json``, or a MONAI bundle that can be read literally).

        Raises
        ------
        MedXAIError
            Naming the first field that is missing, unknown or has a value it cannot have.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise MedXAIError(f"There is no model folder '{folder}'; give the folder that holds model.json.")
        if (folder / "model.json").is_file():
            package = from_json(read_json(folder / "model.json"), folder)
        elif (folder / "configs").is_dir():
            from .bundle import read_bundle

            package = read_bundle(folder)
        else:
            raise MedXAIError(f"The folder '{folder}' has no model.json; write one beside the weights.")
        if not package.weights_path.is_file():
            raise MedXAIError(f"The model '{package.name}' names the weights '{package.weights}', which are not there.")
        return package

    @property
    def weights_path(self) -> Path:
        """Where the weights lie."""
        return self.folder / self.weights

    @property
    def format(self) -> str:
        """The suffix of the weights: ``safetensors``, ``pt``, ``pt2`` or ``ts``."""
        return Path(self.weights).suffix.lower()[1:]

    @property
    def is_program(self) -> bool:
        """Whether the weights are code that must be trusted before it runs."""
        return f".{self.format}" in PROGRAM_SUFFIXES

    def verify(self) -> str:
        """The SHA-256 of the weights as they are now; refused when ``model.json`` states another one."""
        found = sha256(self.weights_path)
        self.check_sha256(found)
        return found

    def check_sha256(self, found: str) -> None:
        """Refuse a SHA-256 that is not the stated one."""
        if self.sha256 and found != self.sha256:
            raise MedXAIError(
                f"The weights of '{self.name}' are not the ones its model.json describes (SHA-256 {found[:12]}… instead of "
                f"{self.sha256[:12]}…); get the model again, or write the new SHA-256 into model.json if you changed it."
            )

    def to_json(self) -> dict:
        """What ``model.json`` holds."""
        about = self.input
        kinds = []
        for one in about.intensity:
            required, optional = INTENSITIES[one.kind]
            row = {"kind": one.kind} | {name: getattr(one, name) for name in required + optional}
            kinds.append(row | {k: v for k, v in (("range", one.range), ("per_slice", one.per_slice)) if v})
        several = len(set(about.multiple_of)) > 1
        result = {"schema": 1, "name": self.name, "task": self.task, "weights": self.weights, "sha256": self.sha256}
        if self.network is not None:
            result["network"] = dataclasses.asdict(self.network)
        result["input"] = {
            "spatial_dims": about.spatial_dims,
            "channels": list(about.channels),
            "orientation": about.orientation,
            "spacing": about.spacing and list(about.spacing),
            "size": about.size and list(about.size),
            "fit": about.fit,
            "multiple_of": list(about.multiple_of) if several else about.multiple_of[0],
            "intensity": kinds[0] if all(one == kinds[0] for one in kinds) else kinds,
        }
        result["output"] = {"labels": list(self.output.labels), "activation": self.output.activation}
        if self.output.key is not None:
            result["output"]["key"] = self.output.key
        return result | self.about

    def write(self, folder, weights: Path | Callable[[Path], None] | None = None) -> Package:
        """Write this package as a new folder; ``weights`` as in `write_package`, by default this package's own file."""
        fields = self.to_json() | {"weights": Path(self.weights).name}
        return write_package(folder, fields, self.weights_path if weights is None else weights)


def sha256(path) -> str:
    """SHA-256 of a file in hexadecimal, read in pieces."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        raise MedXAIError(f"The file '{path}' cannot be read ({error.strerror}).") from None
    return digest.hexdigest()


def write_package(folder, fields: dict, weights: Path | Callable[[Path], None]) -> Package:
    """Make a model folder, whole or not at all.

    Parameters
    ----------
    folder : path
        Must not exist.
    fields : dict
        What ``model.json`` is to hold; ``schema`` and ``sha256`` are filled in.
    weights : path or callable
        A file that is copied, or a function that writes the weights to the path it is given.

    Raises
    ------
    MedXAIError
        When the folder exists, a field is wrong, or the disk refuses (kind ``disk``).
    """
    folder = Path(folder)
    if folder.exists():
        raise MedXAIError(f"The model folder '{folder}' exists already; choose another name or remove it first.")
    name = _weights_name(fields.get("weights"))
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        if callable(weights):
            weights(temporary / name)
        else:
            shutil.copyfile(weights, temporary / name)
        fields = {"schema": 1} | fields | {"sha256": sha256(temporary / name)}
        from_json(fields, temporary)  # a wrong field is refused before anything has its name
        (temporary / "model.json").write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", "utf-8")
        os.chmod(temporary, 0o755)
        temporary.rename(folder)
    except OSError as error:
        raise MedXAIError(
            f"The model folder '{folder}' cannot be written ({error.strerror or error}); free space or choose another place.",
            kind="disk",
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return Package.read(folder)


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


# ---- the fields ------------------------------------------------------------------------------------------------------


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


def from_json(values: dict, folder: Path) -> Package:
    """The package that ``values`` (the content of ``model.json``) describes; nothing but the values is looked at."""
    if isinstance(values, dict) and "schema" in values and values["schema"] != 1:
        raise MedXAIError(
            f"The model.json in '{folder}' has schema {_told(values['schema'])}; this MedXAI reads schema 1 only, so update it."
        )
    optional = ("description", "license", "source", "citation", "terminology")
    required = ("schema", "name", "task", "weights", "sha256", "input", "output")
    top = _Fields(values, "the model", required, (*optional, "network"))
    if isinstance(values["schema"], bool):
        raise top.wrong("schema", "1")
    task = top.choice("task", TASKS)
    weights = _weights_name(values["weights"])
    digest = values["sha256"]
    if not isinstance(digest, str) or len(digest) != 64 or set(digest.lower()) - set("0123456789abcdef"):
        raise top.wrong("sha256", "the SHA-256 of the weights in 64 hexadecimal digits")
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
        sha256=digest.lower(),
        network=network,
        input=_input(values["input"]),
        output=_output(values["output"]),
        about={name: values[name] for name in optional if values.get(name) is not None},
    )


def _weights_name(value) -> str:
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


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _told(value) -> str:
    """A value as a person wrote it in JSON, cut when long."""
    try:
        words = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        words = repr(value)
    return words if len(words) <= 60 else words[:57] + "…"
