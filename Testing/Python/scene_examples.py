"""A dream's explanation made by hand, in 3-D (oblique, anisotropic) and as a single slice."""

from __future__ import annotations

import numpy as np

from MedXAILib.explanation import Curve, Explanation, Layer, Sequence, Table
from MedXAILib.volume import Volume

CHECKS = {
    "response_rose": {"value": 41.2, "passed": True, "meaning": "Rise of the logit along the ascent."},
    "converged": {"value": 0.0, "passed": False, "meaning": "Whether the response stopped rising."},
    "crop": {
        "value": 3e-7,
        "passed": True,
        "meaning": "Largest difference between the cropped and the whole computation.",
    },
}
PROVENANCE = {
    "method": "dream",
    "settings": {"label": "tumour", "steps": 20, "step_size": 0.5, "normalize": False, "features": ["paper"]},
    "model": {"name": "Liver tumour U-Net", "sha256": "0123456789abcdef" * 4},
    "versions": {"MedXAI": "0.1", "torch": "2.13; with 100% semicolons: and <angles>"},
    "device": "cpu",
    "label": "tumour",
    "seconds": 12.5,
}


def oblique() -> np.ndarray:
    """A left-handed, rotated, anisotropic IJK-to-RAS matrix."""
    a, b = np.radians(20), np.radians(-15)
    z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    matrix = np.eye(4)
    matrix[:3, :3] = z @ x @ np.diag([-0.9, -0.8, 2.5])
    matrix[:3, 3] = (40, -25, 300)
    return matrix


def straight(spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0)) -> np.ndarray:
    matrix = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    matrix[:3, 3] = origin
    return matrix


def volume(shape=(24, 60, 70), matrix=None, name="CT liver", unit="HU", seed=1) -> Volume:
    rng = np.random.default_rng(seed)
    k, j, i = np.meshgrid(*(np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in shape), indexing="ij")
    body = (i / 0.9) ** 2 + (j / 0.8) ** 2 + (k / 1.2) ** 2 < 1
    liver = ((i + 0.25) / 0.5) ** 2 + ((j + 0.05) / 0.5) ** 2 + (k / 0.9) ** 2 < 1
    array = np.where(body, 40.0, -1000.0) + np.where(liver, 60.0, 0.0) + rng.normal(0, 12, shape)
    return Volume(array.astype(np.float32), oblique() if matrix is None else matrix, name, unit)


def dream(start: Volume, centre=None, steps=20, radius=None, features=4) -> Explanation:
    """A bright ball that grows around ``centre`` (k, j, i), with its mask, frames, curves and verdicts."""
    shape = start.shape
    centre = tuple(n // 2 for n in shape) if centre is None else centre
    radius = radius or max(2, min(n for n in shape if n > 1) // 4)
    spacing = np.array(start.spacing[::-1])
    grid = np.meshgrid(*(np.arange(n) - c for n, c in zip(shape, centre)), indexing="ij")
    distance = np.sqrt(sum((g * s) ** 2 for g, s in zip(grid, spacing)))
    reach = radius * spacing[-1]
    change = 90 * np.exp(-((distance / reach) ** 2)) - 45 * np.exp(-(((distance - 1.8 * reach) / (0.4 * reach)) ** 2))
    change[distance > 3.2 * reach] = 0
    change = change.astype(np.float32)
    mask = (distance < reach).astype(np.uint8)
    inside = np.nonzero(change)
    low, high = tuple(int(v.min()) for v in inside), tuple(int(v.max()) + 1 for v in inside)
    images, masks = [], []
    for step in range(0, steps + 1, 2):
        part = start.with_array(start.array + change * step / steps).crop(low, high)
        images.append((step, Volume(part.array.copy(), part.ijk_to_ras, f"dream, step {step}", start.unit)))
        grown = start.with_array((distance < reach * step / steps).astype(np.uint8)).crop(low, high)
        masks.append((step, Volume(grown.array.copy(), grown.ijk_to_ras, f"mask, step {step}")))
    t = np.arange(steps + 1, dtype=float)
    names = [
        "firstorder_Mean",
        "shape_MaximumDiameter",
        "shape_Elongation",
        "line_texture",
        "glcm_Contrast",
        "glcm_Idm",
    ][:features]
    raw = {"step": t, "response": -8 + 50 * (1 - np.exp(-t / 6))}
    z = {"step": t}
    for n, name in enumerate(names):
        z[name] = (-4 + n) * np.exp(-t / (3 + n)) + 0.6 * n - 0.8
        raw[name] = 100 + 20 * z[name]
        if n == 1:
            raw[name][:3] = z[name][:3] = np.nan
    result = Explanation("dream", "DeepDream analysis")
    result.maps["dream"] = Layer(start.with_array(start.array + change, "dream"), "image", f"Dream [{start.unit}]")
    result.maps["change"] = Layer(start.with_array(change, "change"), "signed", f"Change [{start.unit}]")
    result.masks["mask"] = start.with_array(mask, "mask", "")
    result.sequences["steps"] = Sequence("Dream", images, "image", "step", steps + 1 - len(images))
    result.sequences["mask-steps"] = Sequence("Predicted component", masks, "mask", "step", steps + 1 - len(masks))
    result.curves["curves"] = Curve(
        "Response and features", "step", raw, "Step", "Value", shown=("response",), units={"response": "logit"}
    )
    result.curves["normalized"] = Curve(
        "Features along the dream", "step", z, "Step", "Normalized value (0: reference mean, 1: one SD)",
        {"reference ±1 SD": (-1.0, 1.0)},
    )  # fmt: skip
    result.tables["verdicts"] = Table("Verdicts", {
        "feature": names, "start": [raw[n][np.isfinite(raw[n])][0] for n in names], "end": [raw[n][-1] for n in names],
        "z_start": [z[n][np.isfinite(z[n])][0] for n in names], "z_end": [z[n][-1] for n in names],
        "verdict": ["entered", "overshot", "unmoved", "approaching", "left", "undefined"][: len(names)],
    })  # fmt: skip
    result.scores.update(response_start=-8.0, response_end=41.0, mask_voxels=int(mask.sum()))
    result.self_checks.update(CHECKS)
    result.notes.append("Steps 1, 3, 5 … were left out of the sequence for the memory budget.")
    result.provenance = {**PROVENANCE, "neuron_ijk": list(centre[::-1]), "neuron_ras": list(start.index_to_ras(centre))}
    return result
