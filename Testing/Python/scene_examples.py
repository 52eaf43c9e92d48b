"""Explanations made by hand: a dream and a back-projection, in 3-D (oblique, anisotropic) and as a single slice."""

from __future__ import annotations

import numpy as np

from MedXAILib import landmarks
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


def landmark_masks(start: Volume) -> list[Volume]:
    """Two lungs and a heart that overlaps one of them."""
    k, j, i = np.meshgrid(*(np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in start.shape), indexing="ij")
    found = {
        "right lung": ((i + 0.4) / 0.3) ** 2 + (j / 0.6) ** 2 + (k / 0.8) ** 2 < 1,
        "left lung": ((i - 0.4) / 0.3) ** 2 + (j / 0.6) ** 2 + (k / 0.8) ** 2 < 1,
        "heart": ((i - 0.2) / 0.3) ** 2 + ((j - 0.3) / 0.3) ** 2 + (k / 0.8) ** 2 < 1,
    }
    return [start.with_array(mask.astype(np.uint8), name, "") for name, mask in found.items()]


def back_projection(
    start: Volume, at: int | None = None, count=9, segments=(), combine="equal", total=40
) -> Explanation:
    """Filters that each light up a spot, as `backproject` gives them; ``at`` is the slice k a 2-D network looked at."""
    low, high = ((0, 0, 0), start.shape) if at is None else ((at, 0, 0), (at + 1, *start.shape[1:]))
    box = start.crop(low, high)
    place = tuple(slice(a, b) for a, b in zip(low, high))
    grid = np.meshgrid(*(np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in box.shape), indexing="ij")
    random = np.random.default_rng(3)
    items, scores, names = [], [], []
    for n in range(count):
        centre = [random.uniform(-0.6, 0.6) if m > 1 else 0.0 for m in box.shape]
        spot = np.exp(-sum(((g - c) / 0.25) ** 2 for g, c in zip(grid, centre)))
        sign = np.sign(np.sin(9 * grid[2] + n))
        array = (10.0 ** (n % 3) * sign * spot * (spot > 0.05)).astype(
            np.float32
        )  # filters differ by orders of magnitude
        if n == 4:
            array[:] = 0  # one that nothing came back from
        number = int((7 * n + 12) % total)
        items.append((n + 1, Volume(array, box.ijk_to_ras, f"filter-{number}")))
        scores.append(8.0 / (n + 1))
        names.append(f"filter-{number}")
    weight = landmarks.weights(scores, combine)
    heat = np.zeros(start.shape, np.float32)
    heat[place] = landmarks.heat([item.array for _, item in items], weight)
    parts = landmarks.coarse_parts(box.shape)
    if segments:
        parts = landmarks.with_rest({one.name: one.array[place] != 0 for one in segments})
    each = [landmarks.shares(item.array, parts) for _, item in items]
    result = Explanation("backproject", "Filter back-projection")
    high = float(np.percentile(heat[heat > 0], 99.5))
    result.maps["heat"] = Layer(start.with_array(heat, "heat", ""), "positive", "Heat [× even]", 0.0, high, 1.0)
    result.sequences["filters"] = Sequence("Filters", items, "signed", "rank", 0, tuple(names))
    result.tables["filters"] = Table("Filters", {
        "filter": [int(name.split("-")[1]) for name in names], "score": scores, "rank": list(range(1, count + 1)), "name": names,
        "effect": [0.5 - 0.1 * n if n < 5 else float("nan") for n in range(count)],
    })  # fmt: skip
    title = "Landmarks" if segments else "Coarse parts (not anatomical)"
    result.tables["landmarks"] = landmarks.landmark_table(each, weight, parts, title)
    columns = {"rank": list(range(1, count + 1)), "filter": result.tables["filters"].columns["filter"]}
    result.tables["shares"] = Table("Share of each filter's heat", columns | dict(zip(parts, map(list, zip(*each)))))
    result.tables["classes"] = Table(
        "Classes", {"label": ["PA", "AP"], "logit": [1.2, -0.7], "probability": [0.87, 0.13]}
    )
    ranks = np.arange(1.0, total + 1)
    result.curves["ranking"] = Curve(
        "Filters by score", "rank", {"rank": ranks, "score": 8 / ranks}, "Rank of the filter", "Score (max of its map)"
    )
    result.scores.update(probability=0.87, logit=1.2, filters=count)
    result.self_checks.update(
        filters_matter={
            "value": 3.1, "passed": True,
            "meaning": "How much farther the class score falls when these filters are silenced than when as many others are; above 1, they carry the answer.",
        },
        not_edges={
            "value": 0.91, "passed": False,
            "meaning": "Rank correlation of the heat with the image's own edges; near 1, the heat shows the image rather than the network.",
        },
    )  # fmt: skip
    result.notes.append("Overlapping pooling: signals that share a switch are added.")
    result.provenance = {
        **PROVENANCE, "method": "backproject", "label": "PA", "predicted": "PA", "start_kji": list(low), "combine": combine,
        "settings": {"label": "", "filters": count, "combine": combine, "rule": "deconvnet", "slice": "" if at is None else f"k:{at}"},
        "model": {"name": "Chest radiograph: AP or PA view", "sha256": "0123456789abcdef" * 4},
        "landmarks": [one.name for one in segments],
    }  # fmt: skip
    return result


def counterfactual(
    start: Volume, at: int | None = None, annotated=True, crossed=True, fallback=False, label="lesion"
) -> Explanation:
    """A ball that is deleted around a finding, as `counterfactual` gives it; ``at`` is the slice k a 2-D network looked at."""
    shape, spacing = start.shape, np.array(start.spacing[::-1])
    centre = [n // 2 for n in shape]
    centre[0] = centre[0] if at is None else at
    grid = np.meshgrid(*(np.arange(n) - c for n, c in zip(shape, centre)), indexing="ij")
    reach = 0.14 * max(n * s for n, s in zip(shape, spacing))
    away = np.sqrt(sum((g * s) ** 2 for g, s in zip(grid, spacing))) / reach
    mask = np.clip(1.35 - away, 0, 1).astype(np.float32) * (1 if crossed else 0.4)
    if at is not None:
        mask[np.arange(shape[0]) != at] = 0
    region = mask > 0.5
    inpainted = np.where(region, start.array - 60 * (1 - away / 2), start.array).astype(np.float32)
    sides = int((np.array(shape) > 1).sum()) if at is None else 2
    unit, size = f"mm{sides}", float(np.prod(np.sort(spacing)[:sides] if 1 in shape else spacing[-sides:]))
    result = Explanation("counterfactual", "Counterfactual impact")
    result.maps["mask"] = Layer(start.with_array(mask, "mask", ""), "probability", "Deleted share", 0.0, 1.0, 0.05)
    result.maps["inpainted"] = Layer(start.with_array(inpainted, "inpainted"), "image", "Without the finding")
    result.maps["difference"] = Layer(
        start.with_array(inpainted - start.array, "difference"),
        "signed",
        f"Difference [{start.unit}]".removesuffix(" []"),
    )
    result.masks["region"] = start.with_array(region.astype(np.uint8), "region", "")
    t = np.arange(41.0)
    columns = {"step": t, "probability": 0.93 - 0.8 * crossed * (1 - np.exp(-t / 9)), "area": 0.1 + 0.2 * np.exp(-t / 12), "loss": 4 * np.exp(-t / 9)}  # fmt: skip
    result.curves["optimisation"] = Curve(
        "Probability and area", "step", columns, "Step", "Probability; share of the area", shown=("probability", "area"), limits=(0.0, 1.0)
    )  # fmt: skip
    after = float(columns["probability"][-1])
    result.tables["classes"] = Table("Classes", {
        "label": [label, "healthy"], "logit": [2.6, 0.0], "probability": [0.93, 0.07],
        "logit_after": [float(np.log(after / (1 - after))), 0.0], "probability_after": [after, 1 - after],
    })  # fmt: skip
    ras = start.index_to_ras(centre)
    columns = {"component": [1], "voxels": [int(region.sum())], unit: [float(region.sum() * size)],
               "r": [ras[0]], "a": [ras[1]], "s": [ras[2]], "share": [1.0]}  # fmt: skip
    result.tables["components"] = Table("Components", columns if crossed else {name: [] for name in columns})
    result.scores.update(
        probability_before=0.93, probability_after=after, log_odds_before=2.587, log_odds_after=float(np.log(after / (1 - after))),
        area_share=float(region.sum() / region.size), components=int(crossed),
    )  # fmt: skip
    result.scores[f"area_{unit}"] = float(region.sum() * size)
    if annotated:
        told = (4.2, 9.1, 0.71, 1.0) if crossed else (np.nan, np.nan, 0.0, 0.0)
        result.scores.update(zip(("distance_mm", "hausdorff_mm", "dice", "hit"), told))
        result.tables["distances"] = Table("Distances", {"finding": [1], "D [mm]": [told[0]], "H [mm]": [told[1]]})
    result.self_checks.update(
        drop_kept={"value": 0.94 if crossed else 0.0, "passed": crossed,
                   "meaning": "Share of the drop that stays when the mask is thresholded at θ."},
        complement_keeps_class={"value": 0.88, "passed": True, "meaning": "Probability when everything but the region is inpainted."},
        hole_content_invariance={"value": 0.02, "passed": True, "meaning": "Largest change of the log-odds when what lay in the hole is another."},
        more_than_elsewhere={"value": 1.0, "passed": True, "meaning": "Share of 20 places in the organ where the same shape lowers the log-odds less."},
    )  # fmt: skip
    if fallback:
        result.notes.append("No inpainter was given: the region was filled by its blurred surroundings, a fall-back.")
    if not crossed:
        result.notes.append("No voxel crossed θ; lower λ₃ or λ₂, or take more steps.")
    result.provenance = {
        **PROVENANCE, "method": "counterfactual", "label": label, "predicted": label, "crossed": crossed, "restart": 1,
        "settings": {"label": "", "lambda_score": 1.0, "lambda_tv": 0.1, "lambda_area": 0.1, "steps": 40, "theta": 0.5, "slice": ""},
        "model": {"name": "Phantom lesion classifier", "sha256": "0123456789abcdef" * 4},
        "inpainter": {"name": "blur", "sha256": None, "fallback": True} if fallback else {"name": "Healthy tissue", "sha256": "ab" * 32, "fallback": False},
        "slice": "" if at is None else f"k:{at}",
    }  # fmt: skip
    return result


def organ_and_finding(start: Volume) -> list[Volume]:
    """What a counterfactual is started with: the organ, and the finding as a person drew it."""
    organ = landmark_masks(start)[0]
    k, j, i = np.meshgrid(*(np.arange(n) - n // 2 for n in start.shape), indexing="ij")
    sizes = [max(2.0, 0.16 * n) if n > 1 else 1.0 for n in start.shape]
    finding = (k / sizes[0]) ** 2 + ((j - 3) / sizes[1]) ** 2 + (i / sizes[2]) ** 2 < 1
    finding = start.with_array(finding.astype(np.uint8), "mass", "")
    found = {"organ": organ, "annotation": finding}
    return [
        Volume(one.array, one.ijk_to_ras, one.name, "", {**one.attributes, "role": role}) for role, one in found.items()
    ]


def cycle(start: Volume, at: int | None = None, patch: bool = False, label="spiculated", several=0) -> Explanation:
    """An image as either class, as `cycle` gives it: spikes around a nodule come or go. ``at`` is the slice k a 2-D network looked at, ``patch`` whether only
    a part of it, ``several`` the number of slices looked at."""
    shape = start.shape
    low, high = [0, 0, 0], list(shape)
    if at is not None:
        low[0], high[0] = at, at + 1
    if patch:
        sides = [b - a for a, b in zip(low, high)]
        low = [a if n == 1 else a + n // 3 for a, n in zip(low, sides)]
        high = [a + (1 if n == 1 else max(2, n // 3)) for a, n in zip(low, sides)]
    box = tuple(slice(a, b) for a, b in zip(low, high))
    grid = np.meshgrid(
        *(np.linspace(-1, 1, b - a) if b - a > 1 else np.zeros(1) for a, b in zip(low, high)), indexing="ij"
    )
    away, angle = np.sqrt(sum(g**2 for g in grid)), np.arctan2(grid[1], grid[2])
    ring = np.exp(-((away - 0.45) ** 2) / 0.02)
    maps = {name: np.zeros(shape, np.float32) for name in ("up", "down")}
    maps["up"][box] = 90 * ring * np.clip(np.cos(7 * angle), 0, 1)
    maps["down"][box] = -70 * ring * np.clip(np.cos(7 * angle + 0.4), 0, 1)
    unit, image = f" [{start.unit}]" * bool(start.unit), start.array.astype(np.float32)
    relevance = maps["up"] - maps["down"]
    reach = float(np.percentile(np.abs(relevance[box]), 99.5))
    result = Explanation("cycle", "Cycle-consistent activation maximization")
    for name, array, kind, title in (
        ("relevance", relevance, "signed", f"R = G⁺ − G⁻{unit}"), ("positive", image + maps["up"], "image", f"G⁺: as {label}"),
        ("negative", image + maps["down"], "image", "G⁻: as smooth"), ("delta-positive", maps["up"], "signed", f"Δ⁺ = G⁺ − x{unit}"),
        ("delta-negative", maps["down"], "signed", f"Δ⁻ = G⁻ − x{unit}"),
    ):  # fmt: skip
        limits = (-reach, reach) if kind == "signed" else (None, None)
        result.maps[name] = Layer(start.with_array(array.astype(np.float32), name), kind, title, *limits)
    t = np.linspace(-1, 1, 9)
    odds = -0.3 + np.where(t > 0, 2.8, 2.4) * t + 0.2 * np.sin(3 * t)
    odds[4] = -0.3
    p = 1 / (1 + np.exp(-odds))
    result.curves["morph"] = Curve(
        f"From smooth to {label}", "position", {"position": t, "probability": p, "log_odds": odds}, "G⁻ (−1), x (0), G⁺ (1)",
        f"Probability of {label}", shown=("probability",), limits=(0.0, 1.0),
    )  # fmt: skip
    names = dict(zip(("", "_positive", "_negative"), (4, 8, 0)))
    result.tables["classes"] = Table("Classes", {
        "label": ["smooth", label], **{f"probability{one}": [1 - p[n], p[n]] for one, n in names.items()},
    })  # fmt: skip
    if several:
        rows = {"slice": [f"k:{n}" for n in range(several)]}
        rows |= {
            f"probability{one}": [float(p[n]) / (1 + abs(k - 2)) for k in range(several)] for one, n in names.items()
        }
        result.tables["slices"] = Table("Slices", rows)
        result.notes.append(f"{several} slices were looked at; the probabilities are those of the one in which '{label}' is likeliest (k:2).")  # fmt: skip
    for one, n in names.items():
        result.scores |= {f"probability{one}": float(p[n]), f"log_odds{one}": float(odds[n])}
    result.scores |= {"flipped": 1, "images": max(1, several)}
    result.self_checks.update(
        both_ways={"value": 2.1, "passed": True, "meaning": f"By how much G⁺ raises and G⁻ lowers the log-odds of '{label}', the smaller of both; passed above 0."},
        flipped={"value": 1, "passed": True, "meaning": "Whether the image of the other class is one for the classifier (1) or not (0)."},
        more_than_elsewhere={"value": 0.41, "passed": True, "meaning": "Of the change of the log-odds towards the other class, the share that the 10% of the voxels with the largest |R| make alone, less that of others."},
        known_intensities={"value": 0.6, "passed": False, "meaning": "How far mean and SD of the image lie outside the range of the training images."},
    )  # fmt: skip
    result.notes.append("The intensities differ from those of the images that the explainer was trained on; what it makes of them may mean nothing.")  # fmt: skip
    result.provenance = {
        **PROVENANCE, "method": "cycle", "label": label, "negative": "smooth", "predicted": "smooth",
        "settings": {"label": "", "explainer": "", "center_ras": None, "slice": "", "overlap": 0.5, "cycle_check": False},
        "model": {"name": "Phantom nodule classifier", "sha256": "0123456789abcdef" * 4}, "explainer": {"name": "Phantom nodules: spiculated against smooth", "sha256": "cd" * 32},
        "slice": "all" if several else "" if at is None else f"k:{at}", "images": max(1, several), "center_ras": None,
        "patch": {"start": low, "stop": high, "size_mm": [float((b - a) * s) for a, b, s in zip(low, high, start.spacing[::-1])]},
    }  # fmt: skip
    return result
