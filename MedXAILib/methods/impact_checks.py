"""How far to trust a counterfactual: its drop after thresholding, against other places, without the rest, and with other content in the hole."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

PLACES, FEWEST_PLACES, TRIES = (
    20,
    5,
    1000,
)  # where the same shape is tried elsewhere; how few are too few; how often a place is looked for
PARTS = 16  # of the region that are looked at one by one, the largest first


def split(region: Tensor) -> tuple[list[Tensor], int]:
    """The parts of a region (*spatial) that touch each other by a face, an edge or a corner, the largest first, at most `PARTS`; and how many there are."""
    labels, count = ndimage.label(region.cpu().numpy(), np.ones((3,) * region.ndim))
    order = np.argsort(-np.bincount(labels.reshape(-1), minlength=count + 1)[1:], kind="stable")[:PARTS]
    return [torch.from_numpy(labels == n + 1).to(region.device) for n in order], count


def kept(before: float, soft: float, hard: float, crossed: bool = True) -> dict:
    """Whether the log-odds fall as far with the thresholded region, where there is one, as with the mask that was optimised."""
    value = (before - hard) / (before - soft) if before > soft and crossed else float("nan")
    return {
        "value": value,
        "passed": None if np.isnan(value) else value >= 0.5,
        "meaning": f"Drop of the log-odds with the region (mask above θ) over that with the mask itself ({before - soft:.3g}); passed from a half on.",
    }


class Asking:
    """The network asked about one image with holes filled.

    Parameters
    ----------
    model : Model
    label : int
    before : Tensor, shape (1,)
        The label's log-odds as the image is.
    fill : Fill
    x : Tensor, shape (1, C, *spatial)
    organ : Tensor of bool, shape (*spatial)
    batch : int
        Images at once.
    """

    def __init__(self, model, label: int, before: Tensor, fill, x: Tensor, organ: Tensor, batch: int):
        self.model, self.label, self.before = model, label, before
        self.fill, self.x, self.organ, self.batch = fill, x, organ, batch

    @torch.no_grad()
    def drops(self, holes: Tensor) -> list[float]:
        """By how much the log-odds fall when each hole (N, 1, *spatial) is filled."""
        found = []
        for some in holes.split(self.batch):
            images = torch.where(some, self.fill.fill(some), self.x)
            found += (self.before - self.model.log_odds(self.model.logits(images), self.label)).tolist()
        return found

    def elsewhere(self, region: Tensor, drop: float, seed: int):
        """The drop of the same shape at other places of the organ; yields (share, stage), returns the check."""
        stage = "Comparing with other places"
        if not bool(region.any()):
            return {"value": None, "passed": None, "meaning": "Not done: there is no region."}
        places = yield from _places(region, self.organ, np.random.default_rng([seed, 5]), stage)
        meaning = f"Share of {len(places)} random other places in the organ where filling the same shape lowers the log-odds by less than here ({drop:.3g})"
        if len(places) < FEWEST_PLACES:
            return {
                "value": None,
                "passed": None,
                "meaning": f"{meaning}. Not done: the shape fits into too few other places.",
            }
        drops = []
        for start in range(0, len(places), self.batch):
            drops += self.drops(torch.stack(places[start : start + self.batch])[:, None])
            yield min(1.0, 0.5 + 0.5 * (start + self.batch) / len(places)), stage
        value = float(np.mean(np.array(drops) < drop))
        return {
            "value": value,
            "passed": value >= 0.95,
            "meaning": f"{meaning}; there it falls by {np.mean(drops):.3g} in the mean, {max(drops):.3g} at most. Passed from 0.95 on.",
        }

    @torch.no_grad()
    def complement(self, region: Tensor, guess: Tensor) -> dict:
        """Whether the class stays when all of the organ but the region is replaced by what its surroundings say (guess, (1, C, *spatial))."""
        images = torch.cat(
            [torch.where(self.organ & ~kept, guess, self.x) for kept in (region, torch.zeros_like(region))]
        )
        value, nothing = torch.sigmoid(self.model.log_odds(self.model.logits(images), self.label)).tolist()
        meaning = (
            "Probability of the class when everything in the organ but the region is replaced by what its surroundings say, block by block;"
            f" with the region replaced too it is {nothing:.3g}. "
        )
        if not bool(region.any()) or nothing > 0.5:
            why = (
                "there is no region"
                if nothing <= 0.5
                else "the class stays when all is replaced, so what stays with the region says nothing"
            )
            return {"value": value, "passed": None, "meaning": f"{meaning}Not told: {why}."}
        return {
            "value": value,
            "passed": value > 0.5,
            "meaning": f"{meaning}Passed above 0.5: the region alone carries the class.",
        }

    @torch.no_grad()
    def content(self, region: Tensor) -> dict:
        """Whether what is under the hole makes a difference to what it is filled with."""
        hole = region[None, None]
        if not bool(hole.any()):
            return {"value": None, "passed": None, "meaning": "Not done: there is no region."}
        first, second = (one.fill(hole) for one in (self.fill, self.fill.without(hole)))
        change = torch.where(hole, (first - second).abs(), 0)
        value = float(change.max()) if bool(torch.isfinite(change).all()) else float("inf")
        return {
            "value": value,
            "passed": value <= 1e-5 * float(self.x.abs().max()),
            "meaning": "Largest change of what the region is filled with when the image under it is replaced by NaN, network units: 0, or the finding leaks into its"
            " own replacement.",
        }


def _places(region: Tensor, organ: Tensor, rng, stage: str):
    """The region moved by random whole steps, at least nine tenths of it in the organ and at most a tenth of it where it was; each place once.

    Yields (share, stage), returns a list of Tensor.
    """
    inside, own, shape = organ.cpu().numpy(), region.cpu().numpy(), np.array(region.shape)
    if not own.any() or own.sum() > 0.25 * inside.sum():
        return []
    at = np.argwhere(own)
    some = at[rng.permutation(len(at))[:5000]]  # enough to judge a place by
    (box,) = ndimage.find_objects(inside.astype(np.uint8))
    low, high = [one.start for one in box], [one.stop for one in box]
    found = {}
    for n in range(TRIES):
        step = rng.integers(low, high) - at[rng.integers(len(at))]
        moved = some + step
        moved = tuple(moved[((moved >= 0) & (moved < shape)).all(1)].T)
        if inside[moved].sum() >= 0.9 * len(some) and own[moved].sum() <= 0.1 * len(some):
            found[tuple(step)] = None
        if len(found) == PLACES:
            break
        if n % 50 == 49:
            yield 0.5 * n / TRIES, stage
    places = []
    for step in found:
        moved = at + step
        one = np.zeros(shape, bool)
        one[tuple(moved[((moved >= 0) & (moved < shape)).all(1)].T)] = True
        places.append(torch.from_numpy(one & inside).to(region.device))
    return places
