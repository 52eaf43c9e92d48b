"""The settings of every method: one field is one form row, one command option, one check and one line of documentation."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass
from typing import ClassVar

from .errors import MedXAIError, nearest


def setting(
    default, help, *, low=None, high=None, unit="", choices=(), advanced=False, decimals=None, increment=None, title=""
):
    """A field of a settings dataclass.

    Parameters
    ----------
    default : object
        Value when nobody says otherwise. The type comes from the field's annotation: ``bool``, ``int``, ``float``, ``str``,
        ``tuple[str, ...]`` (comma-separated in the command), ``tuple[float, float, float] | None`` or ``int | None`` and so on.
    help : str
        What it does, for tooltip, ``--help`` and documentation.
    low, high : float
        Smallest and largest value allowed.
    unit : str
        Such as ``mm`` or ``degrees``.
    choices : sequence of str
        The only values allowed.
    advanced : bool
        Shown in the collapsed section of the form.
    decimals, increment : int, float
        For the form's spin box.
    title : str
        The form's label; by default the name in words.
    """
    about = dict(
        help=help, low=low, high=high, unit=unit, choices=tuple(choices), advanced=advanced, decimals=decimals,
        increment=increment, title=title,
    )  # fmt: skip
    return dataclasses.field(default=default, metadata=about)


@dataclass(frozen=True)
class About:
    """What a form, an option parser or a document needs to know of one setting."""

    name: str
    kind: type  # bool, int, float, str or tuple
    item: type | None  # of a tuple
    length: int | None  # of a tuple; None = any
    optional: bool  # None is allowed
    default: object
    help: str
    low: float | None
    high: float | None
    unit: str
    choices: tuple[str, ...]
    advanced: bool
    decimals: int | None
    increment: float | None
    title: str

    @property
    def option(self) -> str:
        """The command's option, such as ``--step-size``."""
        return "--" + self.name.replace("_", "-")

    def check(self, value):
        """The value in the setting's type; refused with a sentence that names the setting."""
        if value is None and self.optional:
            return None
        told, given = f"The setting '{self.title.lower()}' ({self.option})", value
        try:
            if self.kind is tuple:
                if isinstance(value, str):
                    value = [v.strip() for v in value.split(",") if v.strip()]
                value = tuple(_plain(self.item, v) for v in value)
                if self.length is not None and len(value) != self.length:
                    raise ValueError
            else:
                value = _plain(self.kind, value)
        except (TypeError, ValueError, OverflowError):
            raise MedXAIError(f"{told} cannot be {given!r}; it takes {self.takes}.") from None
        for one in value if self.kind is tuple else (value,):
            if isinstance(one, float) and not math.isfinite(one):
                raise MedXAIError(f"{told} must be a finite number.")
            if self.choices and one not in self.choices:
                raise MedXAIError(f"{told} cannot be '{one}'{nearest(str(one), self.choices)}; it takes {self.takes}.")
            if isinstance(one, (int, float)) and (
                (self.low is not None and one < self.low) or (self.high is not None and one > self.high)
            ):
                raise MedXAIError(f"{told} is {one:g}; it takes {self.takes}.")
        return value

    @property
    def takes(self) -> str:
        """The values allowed, in words."""
        if self.choices:
            words = ", ".join(self.choices)
        elif self.kind is bool:
            words = "yes or no"
        elif self.kind is tuple:
            number = "" if self.length is None else f"{self.length} "
            words = number + {float: "numbers", int: "whole numbers", str: "names"}[self.item]
        else:
            words = {float: "a number", int: "a whole number", str: "text"}[self.kind]
        if self.low is not None and self.high is not None:
            words += f" from {self.low:g} to {self.high:g}"
        elif self.low is not None:
            words += f", at least {self.low:g}"
        elif self.high is not None:
            words += f", at most {self.high:g}"
        return words + (f" ({self.unit})" if self.unit else "")


def _plain(kind, value):
    if kind is bool:
        if isinstance(value, str):
            value = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(value.lower())
        if not isinstance(value, (bool, int)) or value not in (0, 1):
            raise ValueError
        return bool(value)
    if kind is int:
        if isinstance(value, bool) or float(value) != int(float(value)):
            raise ValueError
        return int(float(value))
    if kind is float:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    if not isinstance(value, str):
        raise ValueError
    return value


def about(cls) -> list[About]:
    """Every setting of a settings class, in order."""
    hints = typing.get_type_hints(cls)
    return [_about(f, hints[f.name]) for f in dataclasses.fields(cls)]


def _about(field, hint) -> About:
    arguments = typing.get_args(hint)
    optional = type(None) in arguments
    if optional and typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(a for a in arguments if a is not type(None))
        arguments = typing.get_args(hint)
    item = length = None
    if typing.get_origin(hint) is tuple:
        item, length = arguments[0], None if arguments[-1] is Ellipsis else len(arguments)
        hint = tuple
    rest = dict(field.metadata)
    rest["title"] = rest["title"] or field.name.replace("_", " ").capitalize()
    return About(field.name, hint, item, length, optional, field.default, **rest)


class Settings:
    """What every settings class can do. Values are checked when an object is made."""

    def __post_init__(self):
        for one in about(type(self)):
            object.__setattr__(self, one.name, one.check(getattr(self, one.name)))

    def to_json(self) -> dict:
        """Plain values, for a file, a message or a node's attribute."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict):
        """From plain values; a name that is not a setting is refused by name."""
        names = [f.name for f in dataclasses.fields(cls)]
        for name in values:
            if name not in names:
                raise MedXAIError(f"There is no setting '{name}'{nearest(name, names)}.")
        return cls(**values)


def documentation(cls) -> str:
    """A Markdown table of the settings of ``cls``."""
    rows = ["| option | takes | default | what it does |", "|---|---|---|---|"]
    for one in about(cls):
        default = one.default
        if one.kind is bool:
            option, default = f"`{one.option}`, `--no-{one.option[2:]}`", "yes" if default else "no"
        else:
            option = f"`{one.option}`"
            default = ", ".join(map(str, default)) if isinstance(default, tuple) else default
        default = "" if default in (None, "") else f"`{default}`"
        rows.append(f"| {option} | {one.takes} | {default} | {one.help} |")
    return "\n".join(rows)


@dataclass(frozen=True)
class DreamSettings(Settings):
    """Settings of `dream` (Couteaux et al. 2019, section 2.2)."""

    label: str = setting("", "The label whose logit is raised, by name; empty: the last label of the model.")
    neuron_ras: tuple[float, float, float] | None = setting(
        None, "The voxel whose logit is raised, as a RAS point.", unit="mm", title="Neuron (RAS)"
    )
    neuron_ijk: tuple[int, int, int] | None = setting(
        None, "The same as a voxel index i j k, from 0; by default the best place in the segment, or in the volume.",
        title="Neuron (IJK)", advanced=True,
    )  # fmt: skip
    slice: str = setting(
        "", "For 2-D networks: the slice, such as axial:57 or k:57; by default the one through the neuron or segment.",
        advanced=True,
    )  # fmt: skip
    start: str = setting("volume", "Where the ascent starts: the volume, or white noise.", choices=("volume", "noise"))
    steps: int = setting(100, "Steps at most.", low=1, high=100000)
    step_size: float = setting(
        0.02,
        "α in x ← x + α ∂z/∂x, in network units. Too large: the response swings or falls; too small: it hardly rises.",
        low=1e-9,
        high=1e9,
        decimals=4,
        increment=0.01,
        title="Step size α",
    )
    normalize: bool = setting(False, "Divide the gradient by its L2 norm, so that each step has length α.")
    clamp: bool = setting(False, "Keep the image within the intensity range the network was given.")
    tolerance: float = setting(
        1e-3, "Converged when the last ten steps raised the response by less than this share of its whole rise; 0: never.",
        low=0, high=1, decimals=5, increment=1e-3, advanced=True, title="Convergence tolerance",
    )  # fmt: skip
    features: tuple[str, ...] = setting(
        ("paper",),
        "Feature curves: names such as firstorder_Mean, classes such as glcm, 'paper' (the paper's figures), 'all' or 'none'.",
    )
    reference: str = setting("", "Reference distribution (a JSON file made by 'medxai features reference').")
    engine: str = setting(
        "auto", "What computes the features: MedXAI's own engine (builtin), which auto takes, or pyradiomics 3.0.1, where it is installed.",
        choices=("auto", "builtin", "pyradiomics"), advanced=True, title="Feature engine",
    )  # fmt: skip
    bin_width: float = setting(
        25.0, "Width of the grey-level bins of texture features, in units of the volume.", low=1e-9, high=1e9, decimals=3,
        increment=1.0, advanced=True,
    )  # fmt: skip
    bin_count: int = setting(
        0, "In place of their width: so many bins between the least and the greatest intensity in the mask, at every step anew; 0: the width.",
        low=0, high=1000, advanced=True,
    )  # fmt: skip
    sensitivity: tuple[str, ...] = setting(
        (), "Features whose gradient is followed: how much of each step's change is this feature (one more backward pass per feature and step);"
        " first-order features, soft_volume, and GLCM features with soft bins.",
        advanced=True,
    )  # fmt: skip
    line_angle: float = setting(
        135.0, "Angle of the line segment of the characteristic feature, counter-clockwise from the row direction.", low=0,
        high=180, unit="degrees", advanced=True, decimals=1, increment=5.0,
    )  # fmt: skip
    line_length: int = setting(9, "Length of that line segment.", low=3, high=99, unit="voxels", advanced=True)
    jitter: int = setting(0, "Shift the image at random by up to this many voxels before each gradient; 0: off.", low=0, high=64, unit="voxels", advanced=True)  # fmt: skip
    blur: float = setting(0.0, "Smooth the change after each step (Gaussian, standard deviation); 0: off.", low=0, high=10, unit="voxels", advanced=True, decimals=2, increment=0.1)  # fmt: skip
    total_variation: float = setting(0.0, "Weight of the total variation of the change; 0: off.", low=0, high=1e6, advanced=True, decimals=4, increment=0.01)  # fmt: skip
    l2: float = setting(0.0, "Weight of the squared length of the change; 0: off.", low=0, high=1e6, advanced=True, decimals=4, increment=0.01, title="L2")  # fmt: skip
    crop: bool = setting(True, "Compute on the receptive field alone where that is exact.", advanced=True)
    memory_budget: int = setting(512, "Steps kept for scrubbing are thinned to this size.", low=1, high=65536, unit="MB", advanced=True)  # fmt: skip
    seed: int = setting(0, "Seed of everything random.", low=0, high=2**31 - 1, advanced=True)
    device: str = setting("auto", "Where to compute: auto, cpu, cuda, cuda:N or mps.", advanced=True)


@dataclass(frozen=True)
class AbilitySettings(Settings):
    """Settings of `ability` (He et al. 2023)."""

    label: str = setting("", "The label whose segmentation is explained, by name; empty: the last label of the model.")
    layers: tuple[str, ...] = setting(
        ("all",), "Layers to map: 'all', 'last-K', or names, module paths or numbers from 'medxai models describe'."
    )
    units: tuple[str, ...] = setting(
        ("last-2",),
        "Layers whose units are mapped one by one, named likewise ('none': no layer's); the paper takes the last two.",
    )
    slice: str = setting(
        "", "For 2-D networks: the slice, such as axial:57 or k:57, or all; by default the one with most of the annotation.",
    )  # fmt: skip
    accept: float = setting(
        0.5, "Mean SA score from which an output passes; choose it for your network with a cohort.", low=0, high=1, decimals=2,
        increment=0.05, title="Accept from",
    )  # fmt: skip
    noise_levels: tuple[float, ...] = setting(
        (), "Noise study: largest value of the uniform noise, in network units, such as 0.1,0.2,0.5,1; none: no study.", low=0, high=1e9
    )  # fmt: skip
    noise_draws: int = setting(3, "Draws of noise at each level.", low=1, high=1000)
    prototypes: str = setting(
        "label", "One prototype for the label and one for all else, or one per label of the model.", choices=("label", "labels"),
        advanced=True,
    )  # fmt: skip
    body: str = setting(
        "", "Leave out what lies outside the body: auto (Otsu's threshold, largest part, filled), or a mask file; empty: take all.",
        advanced=True, title="Body mask",
    )  # fmt: skip
    active: float = setting(
        0.8, "A unit is active when its SA score reaches this share of the output's own.", low=0, high=1, decimals=2, increment=0.05,
        advanced=True, title="Active from",
    )  # fmt: skip
    interpolation: str = setting("linear", "How maps are brought to the network's grid.", choices=("linear", "nearest"), advanced=True)  # fmt: skip
    align_corners: bool = setting(False, "Whether linear interpolation aligns the corners of the grids.", advanced=True)
    reading: str = setting(
        "auto", "Keep the layers' outputs of one pass, or compute twice and keep one layer at a time; auto: by the memory there is.",
        choices=("auto", "kept", "streamed"), advanced=True,
    )  # fmt: skip
    memory_budget: int = setting(512, "Maps of units and of noise levels kept for looking through are limited to this size.", low=1, high=65536, unit="MB", advanced=True)  # fmt: skip
    seed: int = setting(0, "Seed of the noise.", low=0, high=2**31 - 1, advanced=True)
    device: str = setting("auto", "Where to compute: auto, cpu, cuda, cuda:N or mps.", advanced=True)


@dataclass(frozen=True)
class BackprojectSettings(Settings):
    """Settings of `backproject` (Kumar & Menkovski 2016, section 2)."""

    label: str = setting("", "The label whose class score is told, by name; empty: the one the network answers.")
    filters: int = setting(
        25, "How many of the strongest filters are sent back; the paper takes 25.", low=1, high=100000
    )
    only: tuple[int, ...] = setting(
        (), "These filters in place of the strongest, by number from 0, such as 3,17,40.", low=0, high=1000000,
        title="Only filters",
    )  # fmt: skip
    layer: str = setting(
        "", "The layer whose filters are sent back, by name, module path or number from 'medxai models describe'; empty: the last map of the"
        " network before its answer.",
    )  # fmt: skip
    score: str = setting("max", "What makes a filter strong: the largest value, the sum or the mean of its map.", choices=("max", "sum", "mean"))  # fmt: skip
    rule: str = setting(
        "deconvnet", "What a rectifier does on the way back: let positive signals through (deconvnet), those where it was active (gradient), or"
        " both (guided).", choices=("deconvnet", "gradient", "guided"),
    )  # fmt: skip
    combine: str = setting(
        "equal", "The heat map is the mean of the filters' magnitudes, each with the same total (equal) or in proportion to its score (activation).",
        choices=("equal", "activation"),
    )  # fmt: skip
    slice: str = setting(
        "", "For 2-D networks: the slice, such as axial:57 or k:57; by default the one with most of the landmarks."
    )
    collisions: str = setting(
        "sum", "Where windows of overlapping pooling share a switch: their signals are added (the transpose), or the last one counts (overwrite,"
        " as Zeiler's unpooling).", choices=("sum", "overwrite"), advanced=True,
    )  # fmt: skip
    randomise: bool = setting(
        False, "Also shuffle the weights of the top 1, 2, 4… layers, and tell how far the heat map changes.",
        title="Randomisation check",
    )  # fmt: skip
    batch: int = setting(
        0, "Filters sent back at once; 0: as many as the memory budget allows.", low=0, high=100000, advanced=True
    )
    memory_budget: int = setting(1024, "Limit for the signals on their way back, and for the filters' maps that are kept.", low=1, high=65536, unit="MB", advanced=True)  # fmt: skip
    seed: int = setting(
        0, "Seed of the randomisation and of the filters drawn for comparison.", low=0, high=2**31 - 1, advanced=True
    )
    device: str = setting("auto", "Where to compute: auto, cpu, cuda, cuda:N or mps.", advanced=True)


@dataclass(frozen=True)
class CounterfactualSettings(Settings):
    """Settings of `counterfactual` (Major et al. 2020, section 2)."""

    #: Sets of values by name; what is given besides goes before them. ``fitted`` are the defaults: the best of a grid search on training phantoms.
    PRESETS: ClassVar[dict[str, dict]] = {
        "fitted": {},
        "paper": {
            "lambda_score": 1.0, "lambda_tv": 0.1, "lambda_area": 0.1, "learning_rate": 2e-3, "steps": 100, "theta": 0.5, "restarts": 1,
        },
    }  # fmt: skip

    label: str = setting(
        "",
        "The class that is to vanish, by name; empty: the one the network answers (in a cohort the last of the model).",
    )
    inpainter: str = setting(
        "", "Folder of an inpainter (made by 'medxai train inpainter'); empty: the fall-back, which the result says."
    )
    lambda_score: float = setting(
        0.1, "λ₁: weight of the class score, φ + ψ.", low=0, high=1e6, decimals=3, increment=0.1, title="Score λ₁"
    )
    lambda_tv: float = setting(
        0.5, "λ₂: weight of the region's border (total variation). Higher: smoother and rounder.", low=0, high=1e6, decimals=4,
        increment=0.01, title="Border λ₂",
    )  # fmt: skip
    lambda_area: float = setting(
        1.0, "λ₃: weight of the region's area. Higher: smaller.", low=0, high=1e6, decimals=4, increment=0.01, title="Area λ₃"
    )  # fmt: skip
    steps: int = setting(100, "Steps of the optimisation.", low=1, high=100000)
    learning_rate: float = setting(
        0.05, "Learning rate of Adam: how far a voxel of the mask can move in a step.", low=1e-6, high=1, decimals=4, increment=0.01
    )  # fmt: skip
    theta: float = setting(
        0.3, "θ: what is deleted by more than this belongs to the region.", low=0.01, high=0.99, decimals=2, increment=0.05, title="Threshold θ"
    )  # fmt: skip
    restarts: int = setting(
        3, "Starts, side by side in one batch, each led by holes of another size; the best is kept.", low=1, high=8, advanced=True
    )  # fmt: skip
    mask_nodes: int = setting(
        32,
        "Nodes of the mask along the longest axis; between them it is interpolated.",
        low=2,
        high=4096,
        advanced=True,
    )
    slice: str = setting(
        "", "For 2-D networks: the slice, such as axial:57 or k:57; by default the one with most of the annotation, or of the organ."
    )  # fmt: skip
    fill: str = setting(
        "blur", "Without an inpainter, what takes the region's place: its blurred surroundings, the mean, or noise.",
        choices=("blur", "mean", "noise"), advanced=True,
    )  # fmt: skip
    seed: int = setting(0, "Seed of everything random.", low=0, high=2**31 - 1, advanced=True)
    device: str = setting("auto", "Where to compute: auto, cpu, cuda, cuda:N or mps.", advanced=True)


@dataclass(frozen=True)
class CycleSettings(Settings):
    """Settings of `cycle` (Katzmann et al. 2021, section 2.6)."""

    label: str = setting(
        "", "The class that counts as positive, by name; empty: the one the explainer was trained with."
    )
    explainer: str = setting(
        "", "Folder of an explainer of this very model (made by 'medxai train cycle'); empty: the one beside the model folder."
    )  # fmt: skip
    center_ras: tuple[float, float, float] | None = setting(
        None, "Middle of the patch that is looked at, as a RAS point; by default the middle of the segment, or the whole image.", unit="mm",
        title="Center (RAS)",
    )  # fmt: skip
    slice: str = setting(
        "", "For 2-D networks: the slice, such as axial:57 or k:57, or all; by default the one through the center or segment."
    )  # fmt: skip
    overlap: float = setting(
        0.5, "Images larger than the patch: how far neighbouring windows overlap.", low=0, high=0.9, decimals=2, increment=0.05, advanced=True
    )  # fmt: skip
    cycle_check: bool = setting(
        False, "Also send G⁺(x) through G⁻ and the other way round, and tell how far x comes back; doubles the time.", title="Cycle check",
        advanced=True,
    )  # fmt: skip
    device: str = setting("auto", "Where to compute: auto, cpu, cuda, cuda:N or mps.", advanced=True)


def check_where(where) -> None:
    """Refuse a condition on rows of a table that is not COLUMN=VALUE."""
    for one in where:
        if not one.partition("=")[0].strip() or "=" not in one:
            raise MedXAIError(f"--where is '{one}'; it takes COLUMN=VALUE.")


@dataclass(frozen=True)
class CycleTrainingSettings(Settings):
    """Settings of `medxai train cycle`: the networks and losses of Katzmann et al. 2021 (sections 2 and 3.2). What the paper does not tell is chosen, and said so."""

    #: Sets of values by name; what is given besides goes before them. ``light`` is for a processor: a sixteenth of the arithmetic, and chosen on training phantoms.
    PRESETS: ClassVar[dict[str, dict]] = {
        "paper": {},
        "light": {
            "width": 0.25, "tied": True, "learning_rate": 4e-4, "discriminator_rate": 4e-4, "similarity": "dssim+l1", "similarity_weight": 10.0, "jitter": 2,
        },
    }  # fmt: skip

    positive: str = setting("", "Class of G⁺, by name; empty: the model's last label.")
    negative: str = setting(
        "", "Class of G⁻; empty: the other one of two, or 'not' the positive one where each label stands for itself; of more than two it must be named."
    )  # fmt: skip
    patch: int = setting(
        0, "Edge of the patches that images are cut into; 0: the model's size, or whole images, all of one size, where it takes any.", low=0, high=4096,
        unit="voxels",
    )  # fmt: skip
    width: float = setting(
        1.0, "Factor for the number of filters of generators and discriminators; 1: the paper's.", low=0.01, high=16
    )
    residual: bool = setting(
        True, "The generators give what is added to the image, so that they begin as identity; no: the image itself (the paper leaves it open)."
    )  # fmt: skip
    tied: bool = setting(
        False, "The discriminators' last layer treats both images of a pair alike; no: two neurons, and shuffled order, as in the paper."
    )  # fmt: skip
    epochs: int = setting(100, "Epochs at most.", low=1, high=10**6)
    batch: int = setting(16, "Images per step (not told in the paper).", low=1, high=4096)
    learning_rate: float = setting(
        2e-4, "Learning rate of Adam for the generators (not told in the paper).", low=1e-8, high=1
    )
    discriminator_rate: float = setting(
        2e-4, "Learning rate of Adam for the discriminators (not told in the paper).", low=1e-8, high=1
    )
    clip: float = setting(
        1.0, "Largest norm of the generators' and of each discriminator's gradient; what is longer is shortened to it; 0: no limit.", low=0, high=1e9
    )  # fmt: skip
    average: float = setting(
        0.0, "Decay of a running mean of the generators' weights, which is then what is judged and kept; 0: the weights themselves. Not in the paper.", low=0, high=0.9999
    )  # fmt: skip
    patience: int = setting(
        10, "Epochs without a better validation score after which the training ends; 0: never.", low=0, high=10**6
    )  # fmt: skip
    cycle_weight: float = setting(1.0, "Weight of the cycle loss, eq. 2; 1 in the paper.", low=0, high=1e6)
    similarity_weight: float = setting(1.0, "Weight of the similarity loss; 1 in the paper.", low=0, high=1e6)
    adversarial_weight: float = setting(1.0, "Weight of the discriminators' loss; 1 in the paper.", low=0, high=1e6)
    activation_weight: float = setting(1.0, "Weight of the activation loss; 1 in the paper.", low=0, high=1e6)
    similarity: str = setting(
        "dssim", "What keeps G(x) near x: structural dissimilarity as in the paper, the mean absolute difference, the mean square, or the first two, half each.",
        choices=("dssim", "l1", "l2", "dssim+l1"),
    )  # fmt: skip
    activation: str = setting(
        "cross-entropy", "How the class is raised: cross-entropy as in the paper, or the log-odds themselves, which have no bound.",
        choices=("cross-entropy", "linear"),
    )  # fmt: skip
    dssim: str = setting(
        "standard", "(1 − SSIM) / 2 with constants for the images' range, or eq. 1 as printed.", choices=("standard", "paper")
    )  # fmt: skip
    data_range: float = setting(
        0.0, "Range of the images in network units, for SSIM; 0: that of the model's intensity window, or of the images.", low=0, high=1e9
    )  # fmt: skip
    flip: bool = setting(False, "Mirror images along each axis at random.")
    jitter: int = setting(
        0, "Shift generated images at random by up to this much before the classifier looks at them, so that nothing is learned that it sees at one position only; not in"
        " the paper.", low=0, high=64, unit="voxels",
    )  # fmt: skip
    noise: float = setting(
        0.0, "SD of the noise added to generated images before the classifier looks at them, as a share of the images' range; not in the paper.", low=0, high=1
    )  # fmt: skip
    precision: str = setting(
        "auto", "Of convolutions: 32 bits, or 16 (bfloat16) with losses in 32; auto: 16 on a CUDA GPU.", choices=("auto", "float32", "bfloat16")
    )  # fmt: skip
    validation_share: float = setting(
        0.1, "Share of the images that is kept back for validation, at least one.", low=0.01, high=0.5
    )
    table: str = setting("", "Table of the images (CSV); by default labels.csv in the folder, or every image in it.")
    image_column: str = setting(
        "image", "Column of the table that holds the file name, in the folder or in its folder 'images'."
    )
    where: tuple[str, ...] = setting(
        (), "Rows of the table to take, such as 'view=PA'; of several conditions all must hold."
    )
    split_column: str = setting(
        "", "Column that says train or test: rows with train are trained on; by default split, where the table has it."
    )
    group_column: str = setting(
        "", "Column whose equal values are kept back together; by default patient_id, where the table has it."
    )  # fmt: skip
    half: bool = setting(False, "Store the weights as 16-bit numbers.")
    seed: int = setting(0, "Seed of everything random.", low=0, high=2**31 - 1)
    device: str = setting("auto", "Where to compute: auto, cpu, cuda, cuda:N or mps.")

    def __post_init__(self):
        super().__post_init__()
        if not self.activation_weight:
            raise MedXAIError(
                "--activation-weight is 0, so nothing would move an image towards a class; give a positive one."
            )
        if self.patch and self.patch < 8:
            raise MedXAIError(f"--patch is {self.patch}; it takes 0 or at least 8 voxels.")
        check_where(self.where)


#: The worker's name of the training of an explainer, and what it keeps beside its output (`files.partial_of`) while it is not complete: finished epochs, and pictures.
TRAIN_CYCLE, CYCLE_LOG, CYCLE_PICTURE = "train-cycle", "epochs.jsonl", "samples.png"


@dataclass(frozen=True)
class CycleJobSettings(CycleTrainingSettings):
    """`CycleTrainingSettings` with what the command takes as arguments: the job ``train-cycle`` of the worker."""

    source: str = setting("", "Folder of the images to train on.")
    output: str = setting("", "A new folder: the explainer. A training that was stopped goes on.")
    finish: bool = setting(
        False, "Train no further: make the explainer of the best weights of a training that was stopped."
    )


METHODS = {
    "dream": DreamSettings,
    "ability": AbilitySettings,
    "backproject": BackprojectSettings,
    "counterfactual": CounterfactualSettings,
    "cycle": CycleSettings,
}
