"""`features`: all features of one mask by the built-in engine, against `RadiomicsFeatureExtractor.execute`, the way they are usually computed.

Both get the whole image and the mask in memory, and the values are compared (1e-6 relative). "16 steps" are boxes of a path that are computed
together, per step. The limit is what cannot be left out: reading each pair of neighbours once and counting it, for as many matrices as there are
directions, measured as one `bincount` of ready-made codes for each direction.
"""

from __future__ import annotations

import logging
import math
import time

import numpy as np
import torch
from scipy import ndimage

from MedXAILib.features import compute, resolve
from MedXAILib.features.grey import Boxes, grey_levels
from MedXAILib.features.radiomic import crop, on_rois
from MedXAILib.volume import Volume

STEPS = 16
#: name -> shape of the image, voxels of the mask
CASES = {"2-D 512², 20,000 pixels": ((1, 512, 512), 20_000), "3-D 128³, 30,000 voxels": ((128, 128, 128), 30_000)}


def case(shape, voxels, seed=0):
    """An image of smooth noise (HU-like, about 25 bins of 25) and a ragged round mask of so many voxels in it."""
    rng = np.random.default_rng(seed)
    sigma = [0 if n == 1 else 1.0 for n in shape]
    image = ndimage.gaussian_filter(rng.normal(size=shape).astype(np.float32), sigma)
    image = image / image.std() * 70 + 60
    grid = np.indices(shape, np.float32)
    away = sum((axis - n / 2) ** 2 for axis, n in zip(grid, shape)) ** 0.5
    rough = ndimage.gaussian_filter(rng.normal(size=shape).astype(np.float32), [4 * s for s in sigma])
    away *= 1 + 0.25 * (rough / rough.std()).clip(-2, 2)  # ragged, but in one part
    mask = away <= np.partition(away.reshape(-1), voxels)[voxels]
    matrix = np.diag([0.8, 0.8, 2.0, 1.0])
    return Volume(image, matrix, "noise"), Volume(mask.astype(np.uint8), matrix, "mask")


def extractor(image, mask, names, flat, diagnostics=True):
    """A call of `execute` on images that are already SimpleITK's; as it comes, it also writes diagnostics of both."""
    import SimpleITK as sitk
    from radiomics.featureextractor import RadiomicsFeatureExtractor

    logging.getLogger("radiomics").setLevel(logging.CRITICAL)
    engine = RadiomicsFeatureExtractor(
        binWidth=25, additionalInfo=diagnostics, **({"force2D": True, "force2Ddimension": 0} if flat else {})
    )
    engine.disableAllFeatures()
    groups: dict[str, list[str]] = {}
    for group, _, feature in (name.partition("_") for name in names):
        groups.setdefault(group, []).append(feature)
    engine.enableFeaturesByName(**groups)
    pair = [sitk.GetImageFromArray(one.array) for one in (image, mask)]
    for one in pair:
        one.SetSpacing(image.spacing)
    return lambda: engine.execute(*pair)


def limit(roi, ndim):
    """One `bincount` for each direction, of codes that are there already."""
    boxes = Boxes([roi.mask], [grey_levels(roi.image[roi.mask], 25.0)], ndim)
    side = boxes.ranks + 1
    codes = [boxes.line[:-shift].long() * side + boxes.line[shift:] for shift in boxes.shifts]
    return lambda: [torch.bincount(code, minlength=side**2) for code in codes] and None


def contenders(name, image, mask, path, ndim, device):
    """What is timed, by name, and what the comparison of the values says."""
    names = [one for one in resolve("all", ndim) if one != "line_texture"]

    def ours(engine="builtin"):
        return compute(image, mask, names, ndim=ndim, engine=engine, device=device)

    def together():
        began = time.perf_counter()
        on_rois(path, names, ndim=ndim, bin_width=25.0, device=device)
        return {f"{name}: built-in, {STEPS} steps together, per step": (time.perf_counter() - began) / STEPS}

    found = {f"{name}: built-in": lambda: ours() and None, "steps": together, f"{name}: limit": limit(path[0], ndim)}
    try:
        peer = extractor(image, mask, names, ndim == 2)
    except ImportError:
        return found, "pyradiomics is not installed: nothing to compare with."
    values = ours()
    known = peer()
    expected = {one: float(np.real(known["original_" + one])) for one in names}
    worst = max(
        abs(values[one] - value) / max(abs(value), 1e-9) for one, value in expected.items() if math.isfinite(value)
    )
    assert worst < 1e-6, f"the values differ by {worst:g}"
    found[f"{name}: RadiomicsFeatureExtractor.execute"] = lambda: peer() and None
    bare = extractor(image, mask, names, ndim == 2, diagnostics=False)
    found[f"{name}: the same without its diagnostics"] = lambda: bare() and None
    found[f"{name}: pyradiomics' classes on the box"] = lambda: ours("pyradiomics") and None
    return (
        found,
        f"{name}: {len(names)} features, {int(mask.array.sum())} voxels; values differ by {worst:.1g} at most.",
    )


def run(options, interleaved, row) -> dict:
    rows, notes = [], []
    for name, (shape, voxels) in CASES.items():
        if options.case in name:
            path = [crop(*case(shape, voxels + 40 * step))[0] for step in range(STEPS)]
            found, told = contenders(name, *case(shape, voxels), path, 2 if 1 in shape else 3, options.device)
            notes.append(told)
            seconds = interleaved(found, options.runs)
            base = seconds[f"{name}: built-in"]
            rows += [row(what, figures, base) for what, figures in seconds.items()]
    return {"rows": rows, "notes": notes}
