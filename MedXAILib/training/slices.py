"""2-D slices to train on, cut from the image and mask pairs of a folder."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field

import numpy as np

from ..cases import pairs
from ..errors import MedXAIError
from ..explanation import Step
from ..volume import Volume, mask_on_grid
from .settings import LEVELS, SegmentationSettings


@dataclass
class Slices:
    """One case: ``pairs`` of one-slice volumes (image, labels), with the most of the object first, and where each lay (``k``)."""

    name: str
    pairs: list[tuple[Volume, Volume]]
    k: list[int]


@dataclass
class Cases:
    """What a network is trained and judged on; ``skipped`` tells of each case that could not be used why."""

    train: list[Slices]
    test: list[Slices]
    orientation: str | None = None  # of the slices, as a model package has it
    spacing: tuple[float, float] | None = None  # mm, where all are to be brought to it
    label: str = "object"
    skipped: dict[str, str] = field(default_factory=dict)


def cut(name: str, image: Volume, inside: np.ndarray, most: int = 0) -> Slices:
    """The slices along k that hold the object.

    Parameters
    ----------
    image : Volume
    inside : ndarray of bool, shape of the image
    most : int
        How many at most, those with most of the object; 0: all.
    """
    area = np.asarray(inside).sum((1, 2))
    order = np.argsort(-area, kind="stable")[: int((area > 0).sum())]
    order = [int(k) for k in (order[:most] if most else order)]
    if not order:
        raise MedXAIError("no slice holds the object")
    shape = image.shape
    found = []
    for k in order:
        one = image.crop((k, 0, 0), (k + 1, *shape[1:]))
        found.append((one, one.with_array(inside[k : k + 1].astype(np.uint8), f"{name}, slice {k}")))
    return Slices(name, found, order)


def folder_cases(folder, settings: SegmentationSettings) -> Generator[Step, None, Cases]:
    """The cases of a folder (layouts as in `MedXAILib.cases.pairs`), split by case into those to train on and those to judge on.

    Raises
    ------
    MedXAIError
        When the folder holds no pair, or too few cases can be used. A bad case alone is skipped, and told.
    """
    from .. import io

    listed, read, skipped, first = pairs(folder), {}, {}, None
    for number, (name, image_file, mask_file) in enumerate(listed):
        yield Step(number / len(listed), f"Case {number + 1} of {len(listed)}: {name}")
        name = f"{name} ({number + 1})" if name in read or name in skipped else name
        try:
            image, mask = io.read_volume(image_file), io.read_mask(mask_file, settings.segment or None)
            image.require_finite()
            first = first or image
            if image.patient_axes[2] != first.patient_axes[2]:
                raise MedXAIError(f"its slices along k lie in another plane than those of '{first.name}'")
            if not settings.size and min(image.shape[1:]) <= 2 ** (LEVELS - 1):
                raise MedXAIError(
                    f"its slices have an edge of {min(image.shape[1:])} pixels, and more than {2 ** (LEVELS - 1)} are needed;"
                    " --size would resize them"
                )
            read[name] = cut(name, image, mask_on_grid(mask, image), settings.slices)
        except MedXAIError as error:
            skipped[name] = error.message
        except Exception as error:  # a damaged file is one case less, not the end
            skipped[name] = f"{type(error).__name__}: {error}"
    tests = max(1, round(settings.test_share * len(read))) if settings.test_share else 0
    if len(read) <= tests:
        told = "".join(f" (the first skipped: {name}: {why})" for name, why in list(skipped.items())[:1])
        raise MedXAIError(
            f"{len(read)} of the {len(listed)} cases in '{folder}' can be used{told}; at least {tests + 1} are needed."
        )
    chosen = set(np.random.default_rng([settings.seed, 2]).permutation(len(read))[:tests].tolist())
    cases = list(read.values())
    return Cases(
        [one for n, one in enumerate(cases) if n not in chosen],
        [one for n, one in enumerate(cases) if n in chosen],
        first.orientation[1] + first.orientation[0],
        label=settings.segment or "object",
        skipped=skipped,
    )
