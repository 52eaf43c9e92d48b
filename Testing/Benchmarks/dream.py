"""`dream` against the plain loop and against its arithmetic, per step, on one volume.

Plain loop: the whole volume forward and backward at every step, its component labelled on the whole volume, and the features
computed in the loop with `RadiomicsFeatureExtractor.execute`: what one would write with torch and pyradiomics alone.
Arithmetic: one forward and one input-only backward pass on the receptive-field box, one forward pass on the mask's box.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time

import numpy as np
import torch
from MedXAILib import resources
from MedXAILib.explanation import run as drive
from MedXAILib.methods import REGISTRY
from MedXAILib.models import load, prepare
from MedXAILib.models.crop import around
from MedXAILib.settings import DreamSettings
from MedXAILib.volume import Volume
from scipy import ndimage

STEPS = 10


def case(size: int) -> Volume:
    """A healthy phantom, tiled and cut to ``size`` voxels along each axis."""
    from MedXAILib.demo.phantom import case as phantom

    image = phantom(1000, lesions=False).image
    times = [-(-size // n) for n in image.shape]
    array = np.pad(image.array, [(0, (t - 1) * n) for t, n in zip(times, image.shape)], mode="symmetric")[
        :size, :size, :size
    ]
    return Volume(np.ascontiguousarray(array, dtype=np.float32), image.ijk_to_ras, "phantom", "HU")


def settings(size, device) -> DreamSettings:
    return DreamSettings(
        label="lesion", neuron_ijk=(size // 2,) * 3, steps=STEPS, step_size=8.0, normalize=True, tolerance=0, features=("all",), device=device
    )  # fmt: skip


def ours(model, volume, chosen):
    began = time.perf_counter()
    found = drive(REGISTRY["dream"](model, [volume], chosen))
    whole = time.perf_counter() - began
    ascent = found.provenance["seconds_ascent"]
    return found, {
        "dream: ascent, per step": ascent / (STEPS + 1),
        "dream: all, features filled in, per step": whole / (STEPS + 1),
    }


def plain(model, volume, chosen):
    """The loop as one would write it; returns responses, last image, last mask and the features of each step."""
    import radiomics
    import SimpleITK as sitk
    from radiomics.featureextractor import RadiomicsFeatureExtractor

    radiomics.logger.setLevel("ERROR")
    extractor = RadiomicsFeatureExtractor(binWidth=chosen.bin_width)
    extractor.enableAllFeatures()
    prepared = prepare(model, [volume])
    x, label = prepared.x.clone(), model.label_index(chosen.label)
    point = prepared.to_network(chosen.neuron_ijk[::-1])
    responses, values = [], []
    with model.frozen():
        for j in range(STEPS + 1):
            feed = x.clone().requires_grad_(True)
            logits = model.logits(feed)
            z = logits[(0, label, *point)]
            (slope,) = torch.autograd.grad(z, feed)
            predicted = model.foreground(logits.detach(), label)[0].cpu().numpy()
            responses.append(float(z))
            delta = prepared.change((x - prepared.x)[0], (0, 0, 0))
            image = volume.array.copy()
            image[delta.box] += delta.array
            labels, _ = ndimage.label(predicted)
            mask = np.zeros(volume.shape, np.uint8)
            patch = prepared.mask((labels == labels[point]) & predicted, (0, 0, 0))
            mask[patch.box] = patch.array
            found = {}
            if mask.sum() > 1:
                first, second = sitk.GetImageFromArray(image), sitk.GetImageFromArray(mask)
                for one in (first, second):
                    one.SetSpacing(volume.spacing)
                try:
                    found = extractor.execute(first, second)
                except ValueError:  # too small a mask: this is where a plain loop without care ends
                    found = {}
            values.append(
                {k.removeprefix("original_"): float(v) for k, v in found.items() if k.startswith("original_")}
            )
            if j < STEPS:
                x += chosen.step_size * slope / slope.norm()
    return responses, image, mask, values


def arithmetic(model, volume, chosen):
    prepared = prepare(model, [volume])
    near = around(prepared.to_network(chosen.neuron_ijk[::-1]), model.receptive_field(prepared.shape), prepared.shape)
    label = model.label_index(chosen.label)

    def once():
        for _ in range(STEPS + 1):
            feed = prepared.x[near.gradient_input.index].clone().requires_grad_(True)
            target = tuple(
                p - a for p, a in zip(prepared.to_network(chosen.neuron_ijk[::-1]), near.gradient_input.start)
            )
            torch.autograd.grad(model.logits(feed)[(0, label, *target)], feed)
            with torch.no_grad():
                model.logits(prepared.x[near.reach_input.index])

    return once, near


def _peak(kind, size, device, queue):
    torch.set_num_threads(2)
    volume, chosen = case(size), settings(size, device)
    model = load(resources.path("Models/liver-phantom"), device=device)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (ours if kind == "dream" else plain)(model, volume, chosen)
    queue.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def peak(kind, size, device) -> float:
    """Megabytes a run adds to its own process at the highest point (feature processes not counted)."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_peak, args=(kind, size, device, queue))
    process.start()
    found = queue.get()
    process.join()
    return found


def equal(mine, theirs) -> None:
    """The two do the same thing: same responses, image, mask and features."""
    responses, image, mask, values = theirs
    np.testing.assert_allclose(mine.curves["curves"].columns["response"], responses, rtol=1e-3, atol=1e-3)
    reach = np.abs(mine.maps["change"].volume.array).max()
    np.testing.assert_allclose(mine.maps["dream"].volume.array, image, atol=1e-2 * reach)
    assert (mine.masks["mask"].array != mask).sum() <= 0.01 * mask.sum()
    for name, curve in mine.curves["curves"].columns.items():
        theirs = values[-1].get(name)
        if theirs is not None and np.isfinite(curve[-1]):
            np.testing.assert_allclose(curve[-1], theirs, rtol=0.02, atol=1e-6, err_msg=name)


def run(options, interleaved, row) -> dict:
    volume, chosen = case(options.size), settings(options.size, options.device)
    model = load(resources.path("Models/liver-phantom"), device=options.device)
    with model.frozen():
        once, near = arithmetic(model, volume, chosen)
    equal(ours(model, volume, chosen)[0], plain(model, volume, chosen))

    def frozen():
        with model.frozen():
            began = time.perf_counter()
            once()
            return {"arithmetic, per step": (time.perf_counter() - began) / (STEPS + 1)}

    def loop():
        began = time.perf_counter()
        plain(model, volume, chosen)
        return {"plain loop, per step": (time.perf_counter() - began) / (STEPS + 1)}

    seconds = interleaved(
        {"arithmetic": frozen, "dream": lambda: ours(model, volume, chosen)[1], "plain": loop}, options.runs
    )
    base = seconds["arithmetic, per step"]
    rows = [row(name, values, base) for name, values in seconds.items()]
    mine = seconds["dream: all, features filled in, per step"]
    speed = row("", seconds["plain loop, per step"], mine)["ratio"]
    ascent = row("", seconds["plain loop, per step"], seconds["dream: ascent, per step"])["ratio"]
    with tempfile.TemporaryDirectory():
        memory = {kind: round(peak(kind, options.size, options.device)) for kind in ("dream", "plain")}
    return {
        "rows": rows,
        "memory_mb": memory,
        "boxes": {"gradient": near.gradient_input.shape, "prediction": near.reach_input.shape, "volume": volume.shape},
        "notes": [
            f"volume {volume.shape}, gradient box {near.gradient_input.shape}, prediction box {near.reach_input.shape}, {STEPS} steps",
            f"plain loop / dream: {speed:.1f} (all), {ascent:.1f} (ascent alone); median of the ratios round by round",
            f"peak memory added by a run: dream {memory['dream']} MB, plain loop {memory['plain']} MB",
        ],
    }
