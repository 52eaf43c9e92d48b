"""The real worker process with an engine that needs no torch: it plays each method. ``MEDXAI_FAKE`` chooses how it goes.

``quick`` (default), ``slow`` (100 steps of 50 ms), ``hang`` (one step that never ends), ``error`` (refuses in a sentence) and
``die`` (ends itself at step 3).
"""

import os
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
for path in (str(HERE), str(HERE.parents[2])):
    if path not in sys.path:
        sys.path.insert(0, path)


class Engine:
    """Plays what `MedXAILib.worker.server.Engine` does."""

    def environment(self):
        return {"versions": {"torch": "0.0 (fake)"}, "devices": [{"name": "cpu", "title": "Fake CPU"}]}

    def describe(self, folder, trusted):
        return {
            "name": Path(folder).name,
            "parameters": 1234,
            "trusted": sorted(trusted),
            "layers": [{"name": "conv", "kind": "conv3d", "shape": [1, 4, 8, 8, 8]}],
        }

    def load(self, folder, device, trusted):
        from MedXAILib.package import Package

        return Package.read(folder)

    def size(self, model):
        return 1 << 20

    def settings(self, method, values):
        from MedXAILib.settings import METHODS, CycleJobSettings

        return (METHODS | {"train-cycle": CycleJobSettings})[method].from_json(values)

    def explain(self, method, model, volumes, settings, segments):
        play = {"dream": dream, "ability": ability, "backproject": backproject, "counterfactual": counterfactual,
                "cycle": cycle, "train-cycle": train_cycle}[method]  # fmt: skip
        return play(model, volumes, settings, segments, os.environ.get("MEDXAI_FAKE", "quick"))

    def release(self):
        pass


def dream(package, volumes, settings, segments, way):
    """Brightens a ball around the voxel, one grey value of a hundred per step."""
    import numpy as np

    from MedXAILib.errors import MedXAIError
    from MedXAILib.explanation import Curve, Explanation, Layer, Patch, Point, Sequence, Step, Table

    volume = volumes[0]
    start = volume.array.astype(np.float32)
    if way == "error":
        raise MedXAIError("The fake worker refuses; this is its one sentence.", hint="Nothing to do.")
    point = volume.voxel(settings.neuron_ras) if settings.neuron_ras else tuple(n // 2 for n in volume.shape)
    if segments and settings.neuron_ras is None:
        point = tuple(int(v.mean() + 0.5) for v in np.nonzero(segments[0].array))
    low = tuple(max(0, p - 12) for p in point)
    high = tuple(min(n, p + 13) for p, n in zip(point, volume.shape))
    box = tuple(slice(a, b) for a, b in zip(low, high))
    ball = sum(((g - p) ** 2 for g, p in zip(np.ogrid[box], point)), np.zeros(1)) <= 10**2
    steps = min(settings.steps, 100)
    scale = float(start.std()) or 1.0
    image, first = start.copy(), True
    frames, masks, rows = [], [], []
    began = time.perf_counter()

    def previews():
        nonlocal first
        whole, first = first, False
        mask = Patch(ball.astype(np.uint8), low)
        if whole:
            return {"dream": volume.with_array(image, "dream"), "mask": mask}
        return {"dream": Patch(image[box], low), "mask": mask}

    for step in range(steps + 1):
        while way == "hang" and step == 1:
            time.sleep(1)
        if way == "die" and step == 3:
            os._exit(3)
        if way == "slow":
            time.sleep(0.05)
        image[box] = start[box] + ball * scale * step / steps
        response = -3 + 9 * step / steps
        rows.append((step, response, float(image[box].mean())))
        frames.append((step, volume.with_array(image, "dream").crop(low, high)))
        frames[-1] = (step, frames[-1][1].with_array(frames[-1][1].array.copy()))
        masks.append((step, frames[-1][1].with_array(ball.astype(np.uint8))))
        values = {"response": response, "firstorder_Mean": rows[-1][2]}
        yield Step(step / (steps + 1), f"Step {step} of {steps}", (Point("curves", step, values),), previews)
    whole = np.zeros(volume.shape, np.uint8)
    whole[box] = ball
    table = np.array(rows)
    curve = Curve(
        "DeepDream", "step", {"step": table[:, 0], "response": table[:, 1], "firstorder_Mean": table[:, 2]}, "Step", "Response",
        shown=("response",),
    )  # fmt: skip
    return Explanation(
        "dream", "DeepDream (played)",
        maps={"dream": Layer(volume.with_array(image, "dream"), "image", "Dream"),
              "change": Layer(volume.with_array(image - start, "change"), "signed", "Change")},
        masks={"mask": volume.with_array(whole, "mask")},
        curves={"curves": curve},
        tables={"verdicts": Table("Verdicts", {"feature": ["firstorder_Mean"], "verdict": ["entered"]})},
        sequences={"steps": Sequence("Dream", frames), "mask-steps": Sequence("Mask", masks, "mask")},
        scores={"response_end": float(table[-1, 1])},
        self_checks={"response_rose": {"value": 9.0, "passed": True, "meaning": "It rose."}},
        notes=["This dream was played, not computed."],
        provenance={"method": "dream", "settings": settings.to_json(), "model": {"name": package.name, "sha256": package.sha256},
                    "neuron_ras": list(volume.index_to_ras(point)), "neuron_ijk": list(point[::-1]), "device": "fake",
                    "seconds": time.perf_counter() - began, "versions": {"torch": "0.0 (fake)"}},
    )  # fmt: skip


def ability(package, volumes, settings, segments, way):
    """Four layers whose maps shrink to a ball, six units of which every other one sees it, and the noise levels asked for."""
    import numpy as np

    from MedXAILib.errors import MedXAIError
    from MedXAILib.explanation import Curve, Explanation, Layer, Point, Sequence, Step, Table

    volume = volumes[0]
    if way == "error":
        raise MedXAIError("The fake worker refuses; this is its one sentence.", hint="Nothing to do.")
    away = np.sqrt(
        sum(((g - n // 2) / (n / 2)) ** 2 for g, n in zip(np.ogrid[tuple(map(slice, volume.shape))], volume.shape))
    )
    numbers, groups = list(range(5)), ["input", "early", "early", "deep", "late"]
    radii = np.linspace(1.2, 0.5, 5)

    def ball(radius):
        return volume.with_array((away <= radius).astype(np.uint8), "map", "")

    scores = [0.2, 0.3, 0.45, 0.7, 0.9]
    maps = [ball(radius) for radius in radii]
    for step in range(60 if way == "slow" else 5):
        if way == "slow":
            time.sleep(0.05)
        n = min(step, 4)
        points = (Point("transition", n, {"SA score": scores[n]}),) if step < 5 else ()
        yield Step(
            step / 61,
            f"Mapping {n} block.{n}",
            points,
            lambda n=n, step=step: {"map": maps[n if step < 5 else step % 5]},
        )
    table = {"layer": [f"conv3d_{n}" for n in numbers], "group": groups, "shape": ["1 × 8 × 8"] * 5, "dice": scores,
             "number": numbers, "path": ["", *(f"block.{n}" for n in numbers[1:])], "kind": ["convolution"] * 5}  # fmt: skip
    dice = [0.9 - 0.15 * n if n % 2 else 0.1 + 0.02 * n for n in range(6)]
    order = np.argsort([-value for value in dice], kind="stable")
    rank = np.empty(6, int)
    rank[order] = range(1, 7)
    levels = sorted(level for level in settings.noise_levels if level > 0)
    curves = {
        "transition": Curve("From image to output", "layer", {"layer": np.arange(5.0), "SA score": np.array(scores)},
                            "Layer (0: input image)", "SA score (Dice)", shown=("SA score",)),
        "ranking": Curve("Units by SA score", "rank", {"rank": np.arange(1.0, 7), "SA score": np.array(sorted(dice)[::-1])},
                         "Rank of the unit", "SA score (Dice)"),
    }  # fmt: skip
    sequences = {
        "layers": Sequence(
            "Layers", list(zip(numbers, maps)), "mask", "layer", names=tuple(f"map-{n}" for n in numbers)
        ),
        "units": Sequence("Units", [(n + 1, ball(0.4 if n % 2 else 1.1)) for n in range(6)], "mask", "unit"),
    }
    for level in levels:
        noisy = [(n, ball(radius * (1 - level / 2))) for n, radius in zip(numbers, radii)]
        sequences[f"noise-{level:g}"] = Sequence(f"Noise {level:g}", noisy, "mask", "layer", names=tuple(f"n-{level}-{n}" for n in numbers))  # fmt: skip
    if levels:
        columns = {f"noise {level:g}": -level * np.array(scores) for level in levels}
        curves["noise-effect"] = Curve(
            "SA under noise", "layer", {"layer": np.arange(5.0), **columns}, "Layer (0: input image)", "Change"
        )
    heat = volume.with_array(np.clip(1.2 - away, 0, 1).astype(np.float32), "heat", "")
    return Explanation(
        "ability", "Segmentation ability (played)",
        maps={"heat": Layer(heat, "probability", "Share of units that see the label", 0.0, 1.0)},
        masks={"output": ball(0.5)}, curves=curves, sequences=sequences,
        tables={"layers": Table("Layers", table), "units": Table("Units", {
            "layer": ["conv3d_4"] * 6, "unit": list(range(6)), "dice": dice, "rank": rank.tolist(),
            "state": ["active" if n % 2 else "inert" for n in range(6)], "number": list(range(1, 7)),
        })},
        scores={"mean_sa": 0.46}, notes=["This ability was played, not computed."],
        provenance={"method": "ability", "settings": settings.to_json(), "label": settings.label, "device": "fake", "seconds": 1.0,
                    "model": {"name": package.name, "sha256": package.sha256}, "versions": {"torch": "0.0 (fake)"},
                    "reference": "annotation" if segments else "thresholded output"},
    )  # fmt: skip


def backproject(package, volumes, settings, segments, way):
    """Filters that each light up a spot; a 2-D network looks at the slice ``k:n`` (the middle one where none is named)."""
    import numpy as np

    from MedXAILib import landmarks
    from MedXAILib.errors import MedXAIError
    from MedXAILib.explanation import Curve, Explanation, Layer, Sequence, Step, Table

    volume, count = volumes[0], min(settings.filters, 25)
    if way == "error":
        raise MedXAIError("The fake worker refuses; this is its one sentence.", hint="Nothing to do.")
    low, high = (0, 0, 0), volume.shape
    if package.input.spatial_dims == 2:
        k = int(settings.slice.removeprefix("k:") or volume.shape[0] // 2)
        low, high = (k, 0, 0), (k + 1, *volume.shape[1:])
    box, place = volume.crop(low, high), tuple(slice(a, b) for a, b in zip(low, high))
    grid = np.meshgrid(*(np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in box.shape), indexing="ij")
    random, items, heat = np.random.default_rng(1), [], np.zeros(volume.shape, np.float32)
    scores = [6.0 / (n + 1) for n in range(count)]
    weight = landmarks.weights(scores, settings.combine)
    for n in range(count):
        away = sum((g - random.uniform(-0.7, 0.7)) ** 2 for g in grid)
        spot = (np.exp(-away / 0.05) * np.sign(np.sin(8 * grid[2] + n)) * (away < 0.2)).astype(np.float32)
        items.append((n + 1, box.with_array(spot, f"filter-{2 * n}", "")))
    steps = 60 if way == "slow" else 5
    for step in range(steps):
        if way == "slow":
            time.sleep(0.05)
        n = min(1 + step * count // steps, count)
        heat[place] = landmarks.heat(
            [item.array for _, item in items[:n]], landmarks.weights(scores[:n], settings.combine)
        )
        now = volume.with_array(heat.copy(), "heat", "")
        yield Step(step / 61, f"Filters {n} of {count}", (), lambda now=now: {"heat": now})
    heat[place] = landmarks.heat([item.array for _, item in items], weight)
    parts = landmarks.coarse_parts(box.shape)
    if segments:
        parts = landmarks.with_rest({one.name: one.array[place] != 0 for one in segments})
    each = [landmarks.shares(item.array, parts) for _, item in items]
    title, names = (
        "Landmarks" if segments else "Coarse parts (not anatomical)",
        [f"filter-{2 * n}" for n in range(count)],
    )
    labels = package.output.labels
    chosen = settings.label or labels[0]
    return Explanation(
        "backproject", "Filter back-projection (played)",
        maps={"heat": Layer(volume.with_array(heat, "heat", ""), "positive", "Heat [× even]", 0.0, float(heat.max()))},
        sequences={"filters": Sequence("Filters", items, "signed", "rank", names=tuple(names))},
        tables={
            "filters": Table("Filters", {"filter": [2 * n for n in range(count)], "score": scores, "rank": list(range(1, count + 1)),
                                         "name": names, "effect": [float("nan")] * count}),
            "landmarks": landmarks.landmark_table(each, weight, parts, title),
            "shares": Table("Share of each filter's heat", {"rank": list(range(1, count + 1)), **dict(zip(parts, map(list, zip(*each))))}),
            "classes": Table("Classes", {"label": list(labels), "logit": [1.0 - n for n in range(len(labels))],
                                         "probability": [0.7] + [0.3 / (len(labels) - 1)] * (len(labels) - 1)}),
        },
        curves={"ranking": Curve("Filters by score", "rank", {"rank": np.arange(1.0, count + 1), "score": np.array(scores)},
                                 "Rank of the filter", "Score (max of its map)")},
        scores={"probability": 0.7, "logit": 1.0}, notes=["This back-projection was played, not computed."],
        self_checks={"filters_matter": {"value": 3.0, "passed": True, "meaning": "They carry the answer."},
                     "not_edges": {"value": 0.9, "passed": False, "meaning": "The heat shows edges."}},
        provenance={"method": "backproject", "settings": settings.to_json(), "label": chosen, "predicted": labels[0], "device": "fake",
                    "seconds": 1.0, "model": {"name": package.name, "sha256": package.sha256}, "versions": {"torch": "0.0 (fake)"},
                    "start_kji": list(low), "slice": f"k:{low[0]}" if package.input.spatial_dims == 2 else "", "combine": settings.combine, "landmarks": [one.name for one in segments]},
    )  # fmt: skip


def counterfactual(package, volumes, settings, segments, way):
    """A ball in the middle of the image (or of the annotation) that grows with λ₁ and shrinks with λ₃ is deleted; what it covers becomes dark.

    A warm start goes on from the mask it is given. With more than three times its default λ₃ nothing crosses θ.
    """
    import numpy as np

    from MedXAILib.errors import MedXAIError
    from MedXAILib.explanation import Curve, Explanation, Layer, Patch, Point, Step, Table

    volume, roles = volumes[0], {one.attributes.get("role", "annotation"): one for one in segments}
    if way == "error" or (way == "error_warm" and "start" in roles):
        raise MedXAIError("The fake worker refuses; this is its one sentence.", hint="Nothing to do.")
    image = volume.array.astype(np.float32)
    truth = roles["annotation"].array != 0 if "annotation" in roles else None
    centre = [int(v.mean() + 0.5) for v in np.nonzero(truth)] if truth is not None else [n // 2 for n in volume.shape]
    if package.input.spatial_dims == 2 and settings.slice:
        centre[0] = int(settings.slice.removeprefix("k:"))
    away = np.sqrt(sum((g - c) ** 2 for g, c in zip(np.ogrid[tuple(map(slice, volume.shape))], centre)))
    usual = type(settings)()
    goal = np.clip(1 - away / (10 * settings.lambda_score / usual.lambda_score), 0, 1).astype(np.float32)
    goal *= 1 if settings.lambda_area <= 3 * usual.lambda_area else 0.8 * settings.theta
    if package.input.spatial_dims == 2:
        goal[np.arange(volume.shape[0]) != centre[0]] = 0
    if "organ" in roles:
        goal *= roles["organ"].array != 0
    first = roles["start"].array.astype(np.float32) if "start" in roles else np.full_like(goal, 0.05) * (goal > 0)
    steps = {"slow": 100, "slow_warm": 100 if "start" in roles else 10}.get(way, 10)
    rows = []
    for step in range(steps + 1):
        if way.startswith("slow"):
            time.sleep(0.05)
        share = first + (goal - first) * step / steps
        region = share > settings.theta
        now = np.where(region, image.min(), image).astype(np.float32)
        probability = 0.95 - 0.8 * step / steps * float(goal.max() > settings.theta)
        rows.append((step, probability, float(share.mean()), 3.0 - step / steps))
        values = dict(zip(("probability", "area", "loss"), rows[-1][1:]))

        def previews(step=step, share=share, now=now):
            if step < 3:
                return {"mask": volume.with_array(share, "mask", ""), "inpainted": volume.with_array(now, "inpainted")}
            return {"mask": Patch(share, (0, 0, 0)), "inpainted": Patch(now, (0, 0, 0))}

        yield Step(step / (steps + 1), f"Step {step} of {steps}", (Point("optimisation", step, values),), previews)
    crossed, labels, table = bool(region.any()), package.output.labels, np.array(rows)
    count = int(region.sum())
    size = float(np.prod(volume.spacing))
    parts = (
        {"component": [1], "voxels": [count], "mm3": [count * size]}
        if crossed
        else {"component": [], "voxels": [], "mm3": []}
    )
    middle = volume.index_to_ras(centre)
    parts |= {name: [value] if crossed else [] for name, value in zip(("r", "a", "s", "share"), (*middle, 1.0))}
    scores = {"probability_before": 0.95, "probability_after": rows[-1][1], "log_odds_before": 2.9, "log_odds_after": -1.7,
              "area_share": count / region.size, "area_mm3": count * size, "components": float(crossed)}  # fmt: skip
    if truth is not None:
        scores |= {"distance_mm": 1.5 if crossed else float("nan"), "hausdorff_mm": 4.0, "dice": 0.6, "hit": 1.0}
    whole = {"mask": share, "inpainted": now, "difference": now - image}
    return Explanation(
        "counterfactual", "Counterfactual impact (played)",
        maps={"mask": Layer(volume.with_array(whole["mask"], "mask", ""), "probability", "Deleted share", 0.0, 1.0, 0.05),
              "inpainted": Layer(volume.with_array(now, "inpainted"), "image", "Without the finding"),
              "difference": Layer(volume.with_array(whole["difference"], "difference"), "signed", "Difference")},
        masks={"region": volume.with_array(region.astype(np.uint8), "region", "")},
        curves={"optimisation": Curve("Probability and area", "step", dict(zip(("step", "probability", "area", "loss"), table.T)), "Step",
                                      "Probability; share of the area", shown=("probability", "area"), limits=(0.0, 1.0))},
        tables={"classes": Table("Classes", {"label": list(labels), "logit": [2.9, *[0.0] * (len(labels) - 1)],
                                             "probability": [0.95, *[0.05 / (len(labels) - 1)] * (len(labels) - 1)],
                                             "logit_after": [-1.7, *[0.0] * (len(labels) - 1)],
                                             "probability_after": [rows[-1][1], *[(1 - rows[-1][1]) / (len(labels) - 1)] * (len(labels) - 1)]}),
                "components": Table("Components", parts)},
        scores=scores, notes=["This counterfactual was played, not computed."],
        self_checks={"drop_kept": {"value": 0.9, "passed": True, "meaning": "The drop stays when the mask is cut at θ."}},
        provenance={"method": "counterfactual", "settings": settings.to_json(), "label": settings.label or labels[0], "predicted": labels[0],
                    "device": "fake", "seconds": 1.0, "model": {"name": package.name, "sha256": package.sha256}, "crossed": crossed,
                    "inpainter": {"name": "Played tissue", "fallback": False} if settings.inpainter else {"name": settings.fill, "fallback": True},
                    "versions": {"torch": "0.0 (fake)"}, "slice": f"k:{centre[0]}" if package.input.spatial_dims == 2 else "",
                    "roles": sorted(roles), "warm": float(first.max()) if "start" in roles else 0.0},
    )  # fmt: skip


def cycle(package, volumes, settings, segments, way):
    """A patch of 12 × 12 (× 12) voxels around the centre, the lesion or the middle gets brighter for one class and darker for the other; ``all`` slices, where asked."""
    import numpy as np

    from MedXAILib.errors import MedXAIError
    from MedXAILib.explanation import Curve, Explanation, Layer, Step, Table

    volume, (negative, positive) = volumes[0], package.output.labels[:2]
    if way == "error":
        raise MedXAIError("The fake worker refuses; this is its one sentence.", hint="Nothing to do.")
    centre = [n // 2 for n in volume.shape]
    if segments:
        centre = [int(v.mean() + 0.5) for v in np.nonzero(segments[0].array)]
    if settings.center_ras:
        centre = list(volume.voxel(settings.center_ras))
    every = settings.slice == "all"
    low, high = [max(0, c - 6) for c in centre], [min(n, c + 6) for c, n in zip(centre, volume.shape)]
    if package.input.spatial_dims == 2:
        k = int(settings.slice.removeprefix("k:")) if settings.slice.startswith("k:") else centre[0]
        low[0], high[0] = (0, volume.shape[0]) if every else (k, k + 1)
    if not segments and settings.center_ras is None:
        low[1:], high[1:] = [0, 0], list(volume.shape[1:])
    box, image = tuple(slice(a, b) for a, b in zip(low, high)), volume.array.astype(np.float32)
    up, down = np.zeros_like(image), np.zeros_like(image)
    for step in range(60 if way == "slow" else 3):
        if way == "slow":
            time.sleep(0.05)
        now = volume.with_array(up * step, "relevance")
        yield Step(step / 61, f"Image {step}", (), lambda now=now: {"relevance": now})
    up[box], down[box] = 100.0, -50.0
    position = np.linspace(-1, 1, 9)
    odds = 2.0 * position - 0.3
    p = 1 / (1 + np.exp(-odds))
    classes = {"label": [negative, positive]}
    classes |= {f"probability{end}": [1 - p[n], p[n]] for end, n in (("", 4), ("_positive", 8), ("_negative", 0))}
    tables = {"classes": Table("Classes", classes)}
    if every:
        count = volume.shape[0]
        tables["slices"] = Table("Slices", {"slice": [f"k:{n}" for n in range(count)], **{f"probability{end}": [float(p[n])] * count for end, n in (("", 4), ("_positive", 8), ("_negative", 0))}})  # fmt: skip
    maps = {"relevance": Layer(volume.with_array(up - down, "relevance"), "signed", "R = G⁺ − G⁻ [HU]", -150.0, 150.0),
            "positive": Layer(volume.with_array(image + up, "positive"), "image", f"G⁺: as {positive}"),
            "negative": Layer(volume.with_array(image + down, "negative"), "image", f"G⁻: as {negative}"),
            "delta-positive": Layer(volume.with_array(up, "delta-positive"), "signed", "Δ⁺ = G⁺ − x [HU]", -150.0, 150.0),
            "delta-negative": Layer(volume.with_array(down, "delta-negative"), "signed", "Δ⁻ = G⁻ − x [HU]", -150.0, 150.0)}  # fmt: skip
    size = [(b - a) * mm for a, b, mm in zip(low, high, volume.spacing[::-1])]
    return Explanation(
        "cycle", "Cycle-consistent activation maximization (played)", maps=maps, tables=tables,
        curves={"morph": Curve(f"From {negative} to {positive}", "position", {"position": position, "probability": p, "log_odds": odds},
                               "G⁻ (−1), x (0), G⁺ (1)", f"Probability of {positive}", shown=("probability",), limits=(0.0, 1.0))},
        scores={"probability": float(p[4]), "probability_positive": float(p[8]), "probability_negative": float(p[0]), "flipped": 1,
                "images": volume.shape[0] if every else 1},
        self_checks={"both_ways": {"value": 2.0, "passed": True, "meaning": "By how much they push."},
                     "known_intensities": {"value": 0.6, "passed": False, "meaning": "How far the image lies outside."}},
        notes=["This explanation was played, not computed."],
        provenance={"method": "cycle", "settings": settings.to_json(), "label": positive, "negative": negative, "predicted": negative, "device": "fake",
                    "seconds": 1.0, "model": {"name": package.name, "sha256": package.sha256}, "versions": {"torch": "0.0 (fake)"},
                    "explainer": {"name": Path(settings.explainer).name, "sha256": "ab" * 32}, "images": volume.shape[0] if every else 1,
                    "slice": "all" if every else f"k:{low[0]}" if package.input.spatial_dims == 2 else "", "center_ras": settings.center_ras,
                    "patch": {"start": low, "stop": high, "size_mm": size}, "segments": len(segments)},
    )  # fmt: skip


def train_cycle(package, volumes, settings, segments, way):
    """Epochs of a quarter second that are kept beside the output, with a picture; ends as an explainer package."""
    import json
    import shutil

    import numpy as np

    from MedXAILib.errors import MedXAIError
    from MedXAILib.explanation import Curve, Explanation, Point, Step
    from MedXAILib.files import partial_of

    assert not volumes and not segments
    if not Path(settings.source).is_dir():
        raise MedXAIError(f"There is no folder '{settings.source}'; give the folder of the images.")
    partial = partial_of(settings.output)
    log = partial / "epochs.jsonl"
    done = len(log.read_text().splitlines()) - 1 if log.exists() else 0
    if settings.finish and done < 1:
        raise MedXAIError("There is nothing to finish.")
    for epoch in range(done + 1, 0 if settings.finish else settings.epochs + 1):
        for step in range(5):
            time.sleep(0.05)
            yield Step((epoch - 1 + step / 5) / settings.epochs, f"Epoch {epoch} of {settings.epochs}")
        partial.mkdir(parents=True, exist_ok=True)
        row = {"epoch": epoch, "probability": 0.5, "probability_positive": 0.5 + 0.4 * epoch / settings.epochs,
               "probability_negative": 0.5 - 0.4 * epoch / settings.epochs, "flip_rate": epoch / settings.epochs, "cycle_error": 0.1 / epoch, "score": 1 / epoch}  # fmt: skip
        with log.open("a") as file:
            file.write(("" if epoch > 1 else json.dumps({"about": 1}) + "\n") + json.dumps(row) + "\n")
        shutil.copyfile(HERE.parent / "Resources" / "Icons" / "MedXAILiverPhantom.png", partial / "samples.png")
        values = {name: value for name, value in row.items() if name != "epoch"}
        yield Step(
            epoch / settings.epochs, f"Epoch {epoch} of {settings.epochs}", (Point("validation", epoch, values),)
        )
    rows = [json.loads(line) for line in log.read_text().splitlines()[1:]]
    from panel_testing_files import writeExplainer

    writeExplainer(Path(settings.output), package)
    shutil.copyfile(partial / "samples.png", Path(settings.output) / "samples.png")
    shutil.rmtree(partial)
    columns = {name: np.array([row[name] for row in rows], float) for name in rows[0]}
    return Explanation(
        "train-cycle", "Training (played)", curves={"validation": Curve("Images kept back", "epoch", columns)},
        scores={"epoch": len(rows)}, provenance={"method": "train-cycle", "folder": settings.output, "model": {"name": package.name, "sha256": package.sha256}},
    )  # fmt: skip


if __name__ == "__main__":
    from MedXAILib.worker import __main__ as worker

    sys.argv[1:] = ["--engine", "fake_worker:Engine"]
    worker.main()
