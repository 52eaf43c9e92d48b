"""Whether an inpainter removes findings and nothing else: ROC curves of a classifier before and after inpainting (Major et al. 2020, section 3, Fig. 2)."""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage, stats

from ..cases import pairs
from ..errors import MedXAIError
from ..evaluation.statistics import FEWEST, Estimate
from ..explanation import Step
from ..files import check_new_folder, new_folder, write_csv
from ..models.model import Model
from ..volume import Volume, mask_on_grid
from .holes import random_holes
from .images import listed_images
from .inpainter_pages import CONDITIONS, roc_page
from .saving import write_figures
from .settings import InpainterSettings

BATCH = 16  # images that go through both networks at once, at most
MEMORY = 2**30  # bytes that they may take in the inpainter


@dataclass
class _Case:
    """Score of an image as it is, and of each draw inpainted in healthy tissue and in the finding; log-odds of the class."""

    name: str
    ill: bool
    original: float
    healthy: np.ndarray
    finding: np.ndarray
    shares: tuple[float, float]  # of the image that was hole, in healthy tissue and in the finding


def judge_folder(
    inpainter, folder, settings: InpainterSettings, judge: dict, trusted: Collection[str] = ()
) -> Generator[Step, None, dict]:
    """`judge_inpainter`, with ``figures.json``, ``roc.csv`` and ``roc.png`` in a new folder."""
    check_new_folder(folder)
    with new_folder(folder) as place:
        figures = yield from judge_inpainter(inpainter, **judge, settings=settings, trusted=trusted, output=place)
        write_figures(place, figures)
    return figures


def judge_inpainter(
    inpainter,
    classifier,
    findings,
    healthy,
    settings: InpainterSettings,
    trusted: Collection[str] = (),
    output=None,
) -> Generator[Step, None, dict]:
    """Judge an inpainter by what a classifier says of images before and after.

    Parameters
    ----------
    inpainter, classifier : path
        Model folders.
    findings : path
        Image and mask pairs (`MedXAILib.cases.pairs`); the mask's segment ``settings.segment`` (by default the only one, or all but the organ) is the finding.
    healthy : path
        Images without finding, the other class: a folder as `healthy_images` takes it. Of a table the rows that ``settings.where`` selects, those with test
        where ``settings.split_column`` is named. Of a volume a 2-D classifier sees the middle slice, with a finding the one with most of it.
    settings : InpainterSettings
        ``finding_label``, ``segment``, ``organ``, ``draws``, ``margin``, how holes are made, ``seed``, ``device``.
    trusted : collection of str
        SHA-256 of the programs that may run.
    output : path, optional
        A folder that gets ``roc.csv`` and ``roc.png``.

    Returns
    -------
    dict
        ``auc`` by condition, each with its 95 % interval over cases (DeLong et al. 1988; with several draws of the mean over draws) and the AUC of every draw: ``original``,
        ``healthy`` (random holes outside the finding, in the organ or the body where these are told apart, in the images of both classes) and ``finding`` (holes that cover the finding and
        a border of irregular width; images without one are as they are). ``less`` how far the latter two lie below the first, paired over cases.

    Raises
    ------
    MedXAIError
        When the networks do not fit each other, or a class has fewer than two images that can be used.
    """
    from ..models.inpainter import Inpainter

    model = require_judges(classifier, findings, healthy, settings, trusted)
    label = model.label_index(settings.finding_label)
    filler = Inpainter(inpainter, settings.device)
    well, skipped, notes = listed_images(Path(healthy), settings, model.package.input.spatial_dims, "test")
    listed, found = [*pairs(findings), *((name, path, None) for name, path, _ in well)], []
    with model.frozen():
        for number, (name, image, mask) in enumerate(listed):
            yield Step(0.95 * number / len(listed), f"Case {number + 1} of {len(listed)}: {name}")
            rng = np.random.default_rng([settings.seed, 8, number])
            try:
                found.append(_judged(name, image, mask, model, label, filler, settings, rng))
            except MedXAIError as error:
                if error.kind == "memory":
                    raise
                skipped[name] = error.message
            except (OSError, RuntimeError, ValueError) as error:  # a damaged file is one case less, not the end
                skipped[name] = f"{type(error).__name__}: {error}"
    figures, columns, curves = _figures(found, skipped, settings)
    figures["notes"] += notes
    figures |= {
        "inpainter": filler.record(),
        "classifier": model.record(),
        "label": model.labels[label],
        "draws": settings.draws,
    }
    if output is not None:
        write_csv(Path(output) / "roc.csv", columns)
        told = {name: f"AUC {one['value']:.2f}" + (f" [{one['low']:.2f}, {one['high']:.2f}]" if one["low"] == one["low"] else "") for name, one in figures["auc"].items()}  # fmt: skip
        counts = figures["cases"]
        title = f"{model.package.name}: {model.labels[label]}, {counts['finding']} images with and {counts['healthy']} without a finding, {settings.draws} draws"  # fmt: skip
        try:
            roc_page(curves, told, title, Path(output) / "roc.png")
        except MedXAIError as error:
            figures["notes"].append(f"roc.png was not written: {error.message}")
    return figures


def require_judges(classifier, findings, healthy, settings: InpainterSettings, trusted: Collection[str] = ()) -> Model:
    """The classifier; refused, before hours are spent, where it is none, has no such class, or there are no cases."""
    from ..models import load

    model = load(classifier, settings.device, trusted)
    model.require_task("classification", "judging an inpainter")
    model.label_index(settings.finding_label)
    pairs(findings)
    if not Path(healthy).is_dir():
        raise MedXAIError(f"There is no folder '{healthy}'; give the folder that holds images without finding.")
    listed_images(Path(healthy), settings, model.package.input.spatial_dims, "test")
    return model


def _judged(name, image, mask, model, label, filler, settings, rng) -> _Case:
    from .. import io
    from ..models import prepare
    from ..models.geometry import fullest_slice, plane_axis

    volume, finding, organ = io.read_volume(image), None, None
    if mask is not None:
        finding = _union(_segments(mask, settings.segment, settings.organ), volume)
        if settings.organ:
            organ = _union(_segments(mask, settings.organ), volume) | finding
    where = ""
    if model.package.input.spatial_dims == 2:
        axis = plane_axis(model.package, volume)
        if volume.shape[axis] > 1:
            where = f"{'kji'[axis]}:{volume.shape[axis] // 2}"
            where = where if finding is None else fullest_slice(model.package, volume, finding)
    prepared = prepare(model, [volume], where)
    fill = filler.bind(model, prepared, [volume])
    inside = np.zeros(prepared.shape, bool) if finding is None else prepared.mask_to_network(finding)
    if finding is not None and (not inside.any() or inside.all()):
        raise MedXAIError("its finding covers nothing, or all, of what the classifier sees")
    allowed = prepared.mask_to_network(_body(volume) if organ is None else organ)
    allowed &= ~ndimage.binary_dilation(inside, iterations=max(1, settings.margin))
    if not allowed.any():
        raise MedXAIError("it has no healthy tissue beside the finding")
    elsewhere = np.stack([_outside(prepared.shape, allowed, settings, rng) for _ in range(settings.draws)])
    covering = np.zeros((0, *prepared.shape), bool)
    if finding is not None:
        covering = np.stack([covered(inside, settings.margin, rng) for _ in range(settings.draws)])
    original = _scores(model, label, prepared.x)[0]
    return _Case(
        name,
        finding is not None,
        original,
        _inpainted(model, label, fill, prepared, elsewhere),
        _inpainted(model, label, fill, prepared, covering) if len(covering) else np.full(settings.draws, original),
        (float(elsewhere.mean()), float(covering.mean()) if len(covering) else 0.0),
    )


def _segments(path, segment, organ="") -> list[Volume]:
    """A segment of a mask file; without a name all but the organ."""
    from .. import io

    if segment or not organ:  # without either, a file of several segments is refused: which is the finding?
        return [io.read_mask(path, segment)]
    return [io.read_mask(path, name) for name in io.segments(path) if name != organ]


def _union(masks, volume):
    return np.logical_or.reduce([mask_on_grid(one, volume) for one in masks])


def _body(volume) -> np.ndarray:
    """The body where it is told apart (a quarter of the image or more), else all of it."""
    from ..methods.body import body_mask

    try:
        body = body_mask("auto", volume)
    except MedXAIError:
        body = None
    return np.ones(volume.shape, bool) if body is None or body.mean() < 0.25 else body


def _outside(shape, allowed, settings, rng):
    for _ in range(100):
        holes = random_holes(shape, settings, rng) & allowed
        if holes.any():
            return holes
    raise MedXAIError("it has too little healthy tissue beside the finding")


def covered(finding: np.ndarray, margin: int, rng: np.random.Generator) -> np.ndarray:
    """A hole that covers a finding (bool array) and a border around it whose width wavers between 0 and ``margin`` pixels; another one each time."""
    wide = ndimage.gaussian_filter(rng.normal(size=finding.shape), 2.0)
    wide = margin * stats.rankdata(wide).reshape(wide.shape) / wide.size
    return finding | (ndimage.distance_transform_edt(~finding) <= wide)


def _inpainted(model, label, fill, prepared, holes):
    """Scores with each of some holes (draws, *spatial) filled."""
    found = []
    batch = max(1, min(BATCH, MEMORY // fill.bytes(1)))
    for start in range(0, len(holes), batch):
        hole = torch.from_numpy(holes[start : start + batch])[:, None].to(prepared.x.device)
        found.append(_scores(model, label, torch.where(hole, fill.fill(hole), prepared.x)))
    return np.concatenate(found)


def _scores(model, label, x):
    with torch.no_grad():
        return model.log_odds(model.logits(x), label).double().cpu().numpy()


# ---- figures ---------------------------------------------------------------------------------------------------------


def _figures(cases: Sequence[_Case], skipped, settings):
    ill, well = ([one for one in cases if one.ill == side] for side in (True, False))
    for side, words in ((ill, "with a finding"), (well, "without a finding")):
        if len(side) < 2:
            told = "".join(f" (the first skipped: {name}: {why})" for name, why in list(skipped.items())[:1])
            raise MedXAIError(f"{len(side)} images {words} can be used{told}; judging needs at least 2.")
    rows, curves, found, parts = {name: [] for name in ("condition", "draw", "fpr", "tpr")}, {}, {}, {}
    for condition, (_, words) in CONDITIONS.items():
        scores = [np.array([getattr(one, condition) for one in side], float).reshape(len(side), -1) for side in (ill, well)]  # fmt: skip
        draws = list(zip(*(side.T for side in scores)))
        curves[condition] = [roc(*draw) for draw in draws]
        each = [components(*draw) for draw in draws]
        parts[condition] = [np.mean(side, 0) for side in zip(*each)]
        found[condition] = _told(auc(*parts[condition])) | {"of": words, "draws": [float(a.mean()) for a, _ in each]}
        for draw, (fpr, tpr) in enumerate(curves[condition]):
            for name, values in zip(rows, ([condition] * len(fpr), [draw] * len(fpr), fpr, tpr)):
                rows[name].extend(values)
    less = {
        condition: _told(auc(*(a - b for a, b in zip(parts["original"], parts[condition])), low=-1.0))
        for condition in ("healthy", "finding")
    }
    share = {
        "healthy": float(np.mean([one.shares[0] for one in cases])),
        "finding": float(np.mean([one.shares[1] for one in ill])),
    }
    notes = [] if min(len(ill), len(well)) >= FEWEST else [f"A class has fewer than {FEWEST} images, so no interval is given."]  # fmt: skip
    counts = {"finding": len(ill), "healthy": len(well), "skipped": skipped}
    return {"auc": found, "less": less, "share_inpainted": share, "cases": counts, "notes": notes}, rows, curves


def _told(one: Estimate) -> dict:
    return {"value": one.value, "low": one.low, "high": one.high, "n": one.n}


def roc(ill: np.ndarray, well: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rate at every threshold, from none to all; equal scores together."""
    thresholds = np.unique(np.concatenate([ill, well]))[::-1]
    rates = [np.searchsorted(np.sort(-side), -thresholds, side="right") / len(side) for side in (well, ill)]
    return tuple(np.concatenate([[0.0], one]) for one in rates)


def components(ill: np.ndarray, well: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each image with the finding the share of those without that score lower (a tie counts half), and for each without the share of those with that score
    higher; both means are the AUC (DeLong et al. 1988)."""
    higher = (ill[:, None] > well) + 0.5 * (ill[:, None] == well)
    return higher.mean(1), higher.mean(0)


def auc(ill: np.ndarray, well: np.ndarray, low: float = 0.0) -> Estimate:
    """The AUC with its 95 % interval from `components`, or their means over draws, or a difference of AUCs from differences of them (``low`` −1).

    No interval for fewer than `FEWEST` images of a class.
    """
    value, n = float(np.mean(ill)), len(ill) + len(well)
    if min(len(ill), len(well)) < FEWEST:
        return Estimate(value, np.nan, np.nan, n)
    reach = float(stats.norm.ppf(0.975) * np.sqrt(sum(np.var(one, ddof=1) / len(one) for one in (ill, well))))
    return Estimate(value, max(low, value - reach), min(1.0, value + reach), n)
