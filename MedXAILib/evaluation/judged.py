"""An explanation with what an annotation says of it: the methods never see how near they came."""

from __future__ import annotations

import numpy as np

from ..explanation import Explanation, Steps, Table
from ..methods import explain as by_name
from ..methods.ability import annotation
from ..models.geometry import parse_slice
from .localisation import components, dice, distance, hausdorff, hit


def explain(method: str, model, volumes, settings, segments=()) -> Steps:
    """As `methods.explain`; where ``counterfactual`` was given an annotation, its explanation gets the table ``distances`` and the scores of `locate`."""
    found = yield from by_name(method, model, volumes, settings, segments)
    if method == "counterfactual":
        for one in segments:
            if one.attributes.get("role", "annotation") == "annotation":
                locate(found, _looked_at(found, annotation(one, volumes[0]), volumes[0]))
    return found


def locate(explanation: Explanation, truth) -> None:
    """Add how far the mask ``region`` lies from an annotation (bool, its shape): table ``distances`` (a row for each finding), scores ``distance_mm`` (D of the
    paper), ``hausdorff_mm`` (H), ``dice`` and ``hit``; NaN where they are not defined."""
    region = explanation.masks["region"]
    mask, spacing, findings = region.array > 0, region.spacing[::-1], components(truth)
    explanation.tables["distances"] = Table(
        "Distances to the annotation",
        {
            "finding": list(range(1, len(findings) + 1)),
            "distance_mm": [distance(mask, [one], spacing) for one in findings],
            "hausdorff_mm": [hausdorff(mask, [one], spacing) for one in findings],
            "hit": [hit(mask, one) for one in findings],
        },
    )
    explanation.scores.update(
        distance_mm=distance(mask, findings, spacing),
        hausdorff_mm=hausdorff(mask, findings, spacing),
        dice=dice(mask, truth),
        hit=hit(mask, truth),
    )


def _looked_at(explanation: Explanation, truth, volume):
    """The annotation on the slice that a 2-D network looked at, else all of it."""
    if not explanation.provenance["slice"]:
        return truth
    axis, index = parse_slice(volume, explanation.provenance["slice"])
    there = np.zeros(truth.shape, bool)
    cut = tuple(index if n == axis else slice(None) for n in range(3))
    there[cut] = truth[cut]
    return there
