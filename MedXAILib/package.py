"""The model package: a folder with ``model.json`` and one weights file, read and checked without torch (DESIGN 3.2)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .errors import MedXAIError

TASKS = ("segmentation", "classification", "inpainting", "explanation")
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
class Explains:
    """Of a package of task ``explanation``: which classifier it was trained for, and towards which of its classes."""

    sha256: str  # of the classifier's weights
    name: str  # of the classifier
    positive: str
    negative: str  # ``not LABEL`` where each label stands for itself
    labels: tuple[str, ...]  # of the classifier
    data_range: float  # of the training images in network units, for SSIM
    mean: tuple[float, float]  # 1st and 99th percentile over the training images of their mean, in network units
    sd: tuple[float, float]  # the same of their standard deviation


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
    explains: Explains | None = None  # of task ``explanation``

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
            from .model_json import read_json

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
        if self.explains is not None:
            told = dataclasses.asdict(self.explains)
            result["explains"] = {k: list(v) if isinstance(v, tuple) else v for k, v in told.items()}
        return result | self.about

    def write(self, folder, weights: Path | Callable[[Path], None] | None = None) -> Package:
        """Write this package as a new folder; ``weights`` as in `write_package`, by default this package's own file."""
        fields = self.to_json() | {"weights": Path(self.weights).name}
        return write_package(folder, fields, self.weights_path if weights is None else weights)


def explainer_beside(model_folder) -> Path:
    """Where the explainer of a model goes when nobody says where: ``NAME-cycle`` beside its folder."""
    path = Path(model_folder).absolute()
    return path.with_name(f"{path.name}-cycle")


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
    from .model_json import weights_name

    name = weights_name(fields.get("weights"))
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


def from_json(values: dict, folder: Path) -> Package:
    """The package that ``values`` (the content of ``model.json``) describes; nothing but the values is looked at."""
    from .model_json import package_of

    return package_of(values, folder)
