"""The cases of a study of `cycle`: what each holds, what the generators and the rivals make of it, and how near their maps come to the planted cause."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from scipy.special import expit

from .. import __version__, io
from ..cases import LabelledImage, labelled_images
from ..errors import MedXAIError
from ..explanation import Point, Step
from ..methods.attributions import RIVALS, Attribution, require_captum
from ..models import Prepared, prepare
from ..models.explainer import pair_of
from ..models.geometry import fullest_slice, patch_at
from ..models.ssim import cycle_errors
from ..resume import Log, each_case, none_used
from ..settings import CycleSettings
from .classifier_table import auc, average_precision
from .impact_cases import number
from .localisation import components
from .statistics import pearson

OURS = "R"
CAUSED = 0.1  # share of the largest |cause| from which a voxel belongs to it
MEASURES = ("auc", "average_precision", "correlation")


@dataclass
class Example:
    """A case as a picture: everything (rows, columns) on the network's grid, images and causes in the volume's unit."""

    name: str
    label: str
    probability: tuple[float, float, float]  # of x, G⁻(x), G⁺(x)
    images: tuple[np.ndarray, np.ndarray, np.ndarray]
    maps: dict[str, np.ndarray]  # R and the rivals
    cause: np.ndarray | None
    window: tuple[float, float]
    unit: str


@dataclass
class Seen:
    """One case as the networks see it. Maps lie on the network's grid, in network units."""

    prepared: Prepared
    up: torch.Tensor  # G⁺(x)
    down: torch.Tensor  # G⁻(x)
    odds: tuple[float, float, float]  # log-odds of the positive class at x, G⁻(x), G⁺(x)
    predicted: bool  # on the positive side
    flipped: bool  # whether the image made towards the other side is one of it for the classifier
    cause: np.ndarray | None
    cycle_error: float  # ½ (mean absolute difference + DSSIM) of x and what comes back (eq. 2), the mean of both orders
    maps: dict[str, Attribution | np.ndarray] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


class Study:
    """The images of a folder under a classifier and its explainer.

    Parameters
    ----------
    model, folder, settings, log
        As `cycle_cohort`.
    rivals : sequence of str
        Of `methods.attributions.RIVALS`.
    background : int
        Images that DeepSHAP compares with, at most; 1 or more.
    """

    def __init__(self, model, folder, settings: CycleSettings, log, rivals, background: int):
        model.require_task("classification", "cycle")
        package = model.package
        if len(package.input.channels) > 1:
            raise MedXAIError(f"'{package.name}' takes {len(package.input.channels)} channels, and a case of a cohort is one image; run its cases one by one.")  # fmt: skip
        if background < 1:
            raise MedXAIError(f"DeepSHAP compares with at least one image, not with {background} (--background).")
        self.model, self.folder, self.settings, self.notes = model, Path(folder), settings, []
        pair, self.explainer = pair_of(model, settings.explainer)
        self.trained, self.pair = pair.sides, pair.towards(settings.label)
        self.positive, self.negative = self.pair.labels
        self.sign = (
            -1 if self.pair.exchanged else 1
        )  # of causes and rivals, which are told of the class it was trained with
        images, self.untried = labelled_images(self.folder)
        self.cases = self._cases(images)
        self.rivals = [name for name in rivals if self._there(name)]
        self.drawn = self._draw(images, background) if "deepshap" in self.rivals else []
        self._background = None
        told = [(c.name, c.label, c.side, str(c.cause or ""), str(c.mask or "")) for c in self.cases]
        self.log = Log(log, {
            "kind": "medxai-cycle-cohort", "version": __version__, "model": package.sha256 or package.verify(), "explainer": self.explainer["sha256"],
            "label": self.positive, "center_ras": settings.center_ras, "slice": settings.slice, "rivals": list(self.rivals),
            "background": [one.name for one in self.drawn], "table": hashlib.sha256(repr(told).encode()).hexdigest(),
        })  # fmt: skip

    # ---- what there is -----------------------------------------------------------------------------------------------

    def _cases(self, images) -> list[LabelledImage]:
        if any(one.side for one in images):
            images = [one for one in images if one.side == "test"]
            if not images:
                raise MedXAIError(f"'{self.folder}' has no image on the test side of its split; give some (column 'split' of labels.csv).")  # fmt: skip
        found = []
        for one in images:
            if one.label == self.positive or one.label == self.negative or None in self.trained:
                found.append(one)
            else:
                self.untried[one.name] = f"its class '{one.label}' is neither '{self.positive}' nor '{self.negative}'"
        if not found:
            raise none_used(self.untried, self.untried, self.folder)
        return found

    def true(self, image: LabelledImage) -> int:
        """1 where the image is of the positive class."""
        named = self.pair.about.positive  # "not LABEL" is every other class
        return int((image.label == named) == (self.sign > 0)) if None in self.trained else int(image.label == self.positive)  # fmt: skip

    def _there(self, name) -> bool:
        if name == "deepshap":
            try:
                require_captum()
            except MedXAIError:
                self.notes.append(
                    "DeepSHAP was left out: it needs captum 0.9 or later ('pip install --upgrade captum')."
                )
                return False
        return True

    def _draw(self, images, most) -> list[LabelledImage]:
        """The background: images of the train side, else of the cases, drawn with seed 0."""
        train = [one for one in images if one.side == "train"]
        if not train:
            train = self.cases
            self.notes.append("The folder has no train side: DeepSHAP's background was drawn from the cases themselves.")  # fmt: skip
        order = np.random.default_rng(0).permutation(len(train))
        return [train[n] for n in sorted(order[:most])]

    def background(self, shape) -> torch.Tensor:
        """Images (n, C, *spatial) of the shape that the classifier gets; what cannot be used is left out, and told."""
        if self._background is None:
            found = []
            for one in self.drawn:
                try:
                    found.append(self.prepared(one)[0].x)
                except MedXAIError as error:
                    self.notes.append(f"'{one.name}' was left out of DeepSHAP's background: {error.message}")
            self._background = found
        fitting = [one for one in self._background if one.shape[2:] == shape]
        return torch.cat(fitting) if fitting else torch.zeros((0, 1, *shape), device=self.model.device)

    # ---- one case ----------------------------------------------------------------------------------------------------

    def each(self):
        """Steps over the cases; ends with the rows, what was skipped, and how many were there already."""
        yield Step(0.0, "Looking for cases")
        skipped, known = dict(self.untried), {one.path: one for one in self.cases}
        rows, resumed = yield from each_case(
            [(one.name, *[path for path in (one.path, one.cause, one.mask) if path]) for one in self.cases], self.log, skipped,
            lambda paths: self._row(known[paths[0]]),
            lambda row, n: (Point("agreement", n, {"auc": number(row["methods"].get(OURS, {}).get("auc"))}),),
        )  # fmt: skip
        if not rows:
            raise none_used(skipped, self.untried, self.folder)
        return rows, skipped, resumed

    def _row(self, image: LabelledImage):
        began = time.perf_counter()
        yield Step(0.0, "Reading")
        seen = yield from self.seen(image)
        row = {
            "label": image.label, "true": self.true(image), "slice": seen.prepared.slice, "predicted": int(seen.predicted), "flipped": int(seen.flipped),
            "odds": list(seen.odds), "cycle_error": seen.cycle_error, "failed": seen.failed, "methods": {},
        }  # fmt: skip
        for name, found in seen.maps.items():
            one = row["methods"][name] = {"seconds": round(seen.seconds[name], 4)}
            if isinstance(found, Attribution):
                one |= {"explained": found.explained, "total": found.total, "biases": found.biases, "error": found.error, "holds": found.holds}  # fmt: skip
            if seen.cause is not None:
                one |= agreement(values_of(found), seen.cause, seen.prepared.valid)
        return row | {"seconds": round(time.perf_counter() - began, 3)}

    def seen(self, image: LabelledImage):
        """Steps of looking at an image with everything that explains it; ends with a `Seen`."""
        model = self.model
        prepared, cause = self.prepared(image)
        x, began = prepared.x, time.perf_counter()
        with model.frozen(), torch.no_grad():
            up, down = self.pair.images(x)
            ours = (up - down)[0].sum(0).cpu().numpy()
            seconds = time.perf_counter() - began  # what the device computes is there
            logits = model.logits(torch.cat([x, down, up]))
            cycle_error = float(np.mean(cycle_errors(x, self.pair.back(up, down), self.pair.about.data_range)))
        if not torch.isfinite(logits).all():
            raise MedXAIError(f"'{model.package.name}' or its explainer gives values that are not finite on '{image.name}'.")  # fmt: skip
        sides = self.pair.sides
        odds, predicted = sides.log_odds(model, logits), bool(sides.is_positive(logits[:1]))
        flipped = bool(sides.flipped(model, logits[:1], logits[2:], logits[1:2]))
        seen = Seen(prepared, up, down, tuple(odds.tolist()), predicted, flipped, cause, cycle_error)
        seen.maps[OURS], seen.seconds[OURS] = ours, seconds
        for n, name in enumerate(self.rivals):
            yield Step((n + 1) / (len(self.rivals) + 1), f"Asking {name}")
            self._ask(seen, name)
        return seen

    def _ask(self, seen, name) -> None:
        x, box = seen.prepared.x, {"low": seen.prepared.low, "high": seen.prepared.high} if name == "deeptaylor" else {}
        background = self.background(x.shape[2:]) if name == "deepshap" else None
        began = time.perf_counter()
        try:
            found = RIVALS[name](self.model, x, self.trained.positive, background, self.trained.negative, **box)
            if not bool(torch.isfinite(found.map).all()):
                raise MedXAIError("its map is not finite")
        except MedXAIError as error:
            seen.failed[name] = error.message
            return
        seen.seconds[name] = time.perf_counter() - began
        if self.sign < 0:
            found = Attribution(-found.map, -found.explained, -found.total, -found.biases)
        seen.maps[name] = found

    def prepared(self, image: LabelledImage) -> tuple[Prepared, np.ndarray | None]:
        """The classifier's input, and the cause on its grid in network units (positive minus negative class); None without one."""
        model, settings = self.model, self.settings
        volume, about = io.read_volume(image.path), model.package.input
        cause = None if image.cause is None else io.read_volume(image.cause)
        if cause is not None and not cause.same_grid(volume):
            raise MedXAIError(f"Its cause '{image.cause.name}' does not lie on the grid of the image.")
        slice, start, center, whole = settings.slice, (0, 0, 0), None, None
        patches = about.size is not None and about.fit != "resize"
        mask = None if image.mask is None else io.read_mask(image.mask, None).array > 0
        if mask is not None and (mask.shape != volume.shape or not mask.any()):
            raise MedXAIError(f"Its mask '{image.mask.name}' is empty or does not lie on the grid of the image.")
        if settings.center_ras is not None:
            center = volume.ras_to_index(settings.center_ras)
        elif mask is not None and patches:
            whole = self._fitting(volume)
            if whole is None:
                largest = max(components(mask), key=np.count_nonzero)
                center = [(int(a.min()) + int(a.max())) / 2 for a in np.nonzero(largest)]
        if center is not None and patches:
            prepared, start, _ = patch_at(model, [volume], slice, center)
        else:
            if not slice and about.spatial_dims == 2 and 1 not in volume.shape:
                there = mask if mask is not None else None if cause is None else _caused(cause.array)
                slice = "" if there is None else fullest_slice(model.package, volume, there)
            prepared = whole or prepare(model, [volume], slice)
        if about.size is not None and tuple(prepared.shape) != tuple(about.size):
            raise MedXAIError("It is larger than the patch that the classifier looks at; give a mask (column 'mask' of labels.csv) or crop it.")  # fmt: skip
        if cause is None:
            return prepared, None
        box = tuple(np.s_[a : a + n] for a, n in zip(start, prepared.volume.shape))
        found = prepared.values_to_network(cause.array[box].astype(np.float32))
        return prepared, self.sign * found * prepared.intensity[0].scale

    def _fitting(self, volume) -> Prepared | None:
        """The classifier's input of an image that is no larger than the patch; None of others."""
        try:
            prepared = prepare(self.model, [volume], self.settings.slice)
        except MedXAIError:
            return None
        return prepared if tuple(prepared.shape) == self.model.package.input.size else None

    def example(self, image: LabelledImage):
        """Steps to a case as a picture: of a 3-D network the slice with most of the cause, or of R."""
        seen = yield from self.seen(image)
        rule, prepared = seen.prepared.intensity[0], seen.prepared
        maps = {name: values_of(found) for name, found in seen.maps.items()}
        maps[OURS] = maps[OURS] / rule.scale
        cause = None if seen.cause is None else seen.cause / rule.scale
        images = [((one[0, 0].cpu().numpy()) - rule.offset) / rule.scale for one in (prepared.x, seen.down, seen.up)]
        if len(prepared.shape) == 3:
            at = int(np.abs(maps[OURS] if cause is None else cause).sum((1, 2)).argmax())
            images, maps = [one[at] for one in images], {name: one[at] for name, one in maps.items()}
            cause = None if cause is None else cause[at]
        window = tuple(sorted((end - rule.offset) / rule.scale for end in (prepared.low[0], prepared.high[0])))
        return Example(image.name, image.label, tuple(probability(seen.odds)), tuple(images), maps, cause, window, prepared.volume.unit)  # fmt: skip


def values_of(found) -> np.ndarray:
    """The map of R or of a rival."""
    return found.map.cpu().numpy() if isinstance(found, Attribution) else found


def agreement(values: np.ndarray, cause: np.ndarray, valid=...) -> dict[str, float]:
    """How near a map comes to the planted cause, over the voxels that are not padding.

    Returns
    -------
    dict
        ``auc`` and ``average_precision`` of |map| for the voxels where |cause| exceeds `CAUSED` of its maximum; ``correlation``: Pearson's, signed. NaN without a cause.
    """
    values, cause = np.asarray(values, float)[valid].ravel(), np.asarray(cause, float)[valid].ravel()
    there = _caused(cause)
    if not there.any():
        return dict.fromkeys(MEASURES, math.nan)
    size = np.abs(values)
    return {"auc": float(auc(size, there)), "average_precision": average_precision(size, there), "correlation": float(pearson(values, cause))}  # fmt: skip


def probability(odds) -> np.ndarray:
    """From log-odds."""
    return expit(np.asarray(odds, float))


def _caused(cause) -> np.ndarray:
    return np.abs(cause) > CAUSED * np.abs(cause).max()
