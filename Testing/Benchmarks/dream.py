"""`dream` against the plain loop and against its arithmetic, per step, on one volume.

Plain loop: the whole volume forward and backward at every step, its component labelled on the whole volume, and the features
computed in the loop with `RadiomicsFeatureExtractor.execute`: what one would write with torch and pyradiomics alone.
Arithmetic: one forward and one input-only backward pass on the receptive-field box, one forward pass on the mask's box.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from dataclasses import replace

import numpy as np
import torch
from scipy import ndimage

from MedXAILib import resources
from MedXAILib.explanation import run as drive
from MedXAILib.methods import REGISTRY
from MedXAILib.models import load, prepare
from MedXAILib.models.crop import around
from MedXAILib.settings import DreamSettings
from MedXAILib.volume import Volume

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


def settings(model, volume, device) -> DreamSettings:
    """The demonstration's settings, at the place where the network is nearest to a lesion."""
    chosen = DreamSettings(label="lesion", steps=1, step_size=0.02, tolerance=0, features=("none",), device=device)
    neuron = drive(REGISTRY["dream"](model, [volume], chosen)).provenance["neuron_ijk"]
    return replace(chosen, neuron_ijk=neuron, steps=STEPS, features=("all",))


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
            responses.append(z.item())
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
                x += chosen.step_size * slope
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


def _high_water() -> float:
    """Megabytes this process has held at most. (On Linux ru_maxrss begins with the parent's, so the kernel is asked itself.)"""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def _peak(kind, size, device, pipe):
    model, volume = load(resources.path("Models/liver-phantom"), device=device), case(size)
    chosen = replace(settings(model, case(64), device), neuron_ijk=(size // 2,) * 3)
    before = _high_water()
    (ours if kind == "dream" else plain)(model, volume, chosen)
    pipe.send(_high_water() - before)


def peak(kind, size, device) -> float:
    """Megabytes a run adds to its own process at the highest point (feature processes not counted)."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_peak, args=(kind, size, device, theirs))
    process.start()
    theirs.close()  # so that a process that dies ends the wait
    found = mine.recv()
    process.join()
    return found


def equal(mine, theirs) -> None:
    """The two do the same thing: same responses, image, mask and features."""
    responses, image, mask, values = theirs
    np.testing.assert_allclose(mine.curves["curves"].columns["response"], responses, rtol=1e-3, atol=1e-3)
    reach = np.abs(mine.maps["change"].volume.array).max()
    # At the kink of a rectifier rounding decides, and a voxel goes another way: rare, and no more than that.
    assert (np.abs(mine.maps["dream"].volume.array - image) > 1e-2 * reach).mean() < 1e-4
    assert (mine.masks["mask"].array != mask).sum() <= 0.01 * mask.sum()
    for name, curve in mine.curves["curves"].columns.items():
        theirs = values[-1].get(name)
        if theirs is not None and np.isfinite(curve[-1]):
            np.testing.assert_allclose(curve[-1], theirs, rtol=0.02, atol=1e-6, err_msg=name)


def run(options, interleaved, row) -> dict:
    model, volume = load(resources.path("Models/liver-phantom"), device=options.device), case(options.size)
    chosen = settings(model, volume, options.device)
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
