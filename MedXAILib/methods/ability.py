"""Segmentation ability maps, ProtoSeg: how well each layer and unit separates the object (He et al. 2023)."""

from __future__ import annotations

import math
import re
import time

import numpy as np
import torch

from ..errors import MedXAIError
from ..explanation import Curve, Explanation, Layer, Point, Sequence, Step, Steps, Table
from ..models import prepare
from ..models.geometry import fullest_slice, plane_axis, slice_of
from ..models.reading import bytes_of, choose
from ..settings import AbilitySettings
from ..volume import Volume, mask_on_grid
from .ability_maps import INPUT, Part, Plan, Study, overlap
from .body import body_mask
from .prototypes import Interpolation
from .provenance import provenance

SCORES = ("dice", "jaccard", "accuracy", "sensitivity", "specificity")


def ability(model, volumes: list[Volume], settings: AbilitySettings, segment: Volume | None = None) -> Steps:
    """Map and score the segmentation ability of layers and units.

    Parameters
    ----------
    model : Model
        A segmentation network.
    volumes : list of Volume
        One per channel of the network; the first gives the grid of every result. Never changed.
    settings : AbilitySettings
    segment : Volume, optional
        The annotation G that maps are scored against; on the lattice of the first volume. Without it the thresholded output is taken.

    Yields
    ------
    Step
        Once a layer is mapped, its point of curve ``transition`` and the preview ``map``.

    Returns
    -------
    Explanation
        Sequences ``layers`` (a map of the input image, number 0, and of each layer), ``units``, and ``noise-LEVEL``; map ``heat`` (mean of
        the unit maps, section 4.5); mask ``output``; tables ``layers``, ``units``, ``noise`` and ``labels``; curves ``transition``
        (Fig. 5), ``ranking`` (Fig. 7) and ``noise-effect`` (Fig. 16). Scores: ``mean_sa`` (μ, eq. 12, always with the output),
        ``separableness`` and ``gain`` (d, section 4.7).

    Raises
    ------
    MedXAIError
        For bad input, each in one sentence.
    """
    began = time.perf_counter()
    model.require_task("segmentation", "ability")
    label = model.label_index(settings.label)
    volume = volumes[0]
    truth = None if segment is None else annotation(segment, volume)
    body = body_mask(settings.body, volume)
    parts, slices = [], _slices(model, volume, settings, truth)
    for n, one in enumerate(slices):
        prepared = prepare(model, volumes, one, parts[0].prepared if parts else None)
        parts.append(_part(model, prepared, truth, body))
        if len(slices) > 1:
            yield Step(0.0, f"Preparing slice {n + 1} of {len(slices)}")
    if not any(bool(part.inside.any()) for part in parts):
        raise MedXAIError(
            "None of the body lies where the network looks; choose another slice or leave the body mask out."
        )
    with model.frozen():
        yield Step(0.0, "Reading the network")
        plan = _plan(model, parts, label, settings)
        references = [part.truth for part in parts]
        images = [part.prepared.x for part in parts]
        limit = settings.memory_budget * 2**20 // math.prod(int(b - a) for a, b in zip(*_box(parts)))
        unit_count = sum(one.shape[0] for one in plan.unit_layers)
        levels = sorted({level for level in settings.noise_levels if level > 0})
        share = 0.97 / (1 + len(levels) * settings.noise_draws)
        clean = Study(plan, images, references, room=limit)
        for done, layer in clean.run():
            if layer is None:
                yield Step(share * done, "Computing the network" if done <= 0.5 else "Mapping")
            else:
                yield Step(
                    share * done, f"Mapping {_named(layer)}", (_point(clean, layer, truth),),
                    lambda layer=layer: {"map": _volume(plan, clean.maps[layer.name], "map")},
                )  # fmt: skip
        noise = _Noise(plan, clean, levels, settings)
        for done, level in noise.run(images, limit - unit_count):
            yield Step(share + (0.97 - share) * done, f"Noise up to {level:g}")
    yield Step(0.98, "Putting the maps together")
    result = Explanation("ability", "Segmentation ability")
    if settings.reading == "kept" and not plan.kept:
        result.notes.append(
            "Windows are blended before their layers can be mapped, so the layers were computed twice and not kept."
        )
    if truth is not None and body is not None and (truth & ~body).any():
        cut = int((truth & ~body).sum())
        result.notes.append(f"{cut} voxels of the annotation lie outside the body mask and were left out.")
    layers = [INPUT, *plan.layers]
    _maps(result, clean, layers, unit_count, limit)
    noise.into(result, layers)
    _tables(result, clean, layers, settings, truth)
    _judge(result, clean, settings, truth)
    result.provenance = provenance(
        "ability", settings, model, volumes,
        label=model.labels[label], segment=None if segment is None else segment.name,
        reference="annotation" if segment is not None else "thresholded output", layers=[one.name for one in plan.layers],
        unit_layers=[one.name for one in plan.unit_layers], prototypes=settings.prototypes, slices=[part.prepared.slice for part in parts],
        preparation=parts[0].prepared.record(), reading="kept" if plan.kept else "streamed", tiles=len(plan.tiles),
        feature_bytes=bytes_of(plan.layers), seconds=round(time.perf_counter() - began, 3),
    )  # fmt: skip
    return result


def annotation(segment: Volume, volume: Volume) -> np.ndarray:
    """An annotation on a volume's grid, bool (k, j, i); it may be empty, and cover a part of the grid only.

    Raises
    ------
    MedXAIError
        When it lies on another lattice: figures are not taken from an annotation that was resampled in silence.
    """
    there = np.round(np.linalg.solve(segment.ijk_to_ras, volume.ijk_to_ras))
    same = abs(abs(np.linalg.det(there)) - 1) < 1e-6
    if not same or not Volume(volume.array, segment.ijk_to_ras @ there).same_grid(volume):
        raise MedXAIError(
            f"The annotation '{segment.name}' {segment.shape} lies on another grid than '{volume.name}' {volume.shape};"
            " resample it to the volume first."
        )
    if not segment.array.any():
        return np.zeros(volume.shape, bool)
    return mask_on_grid(segment, volume)


def _slices(model, volume, settings, truth) -> list[str]:
    """For a 2-D network the slices asked for; by default the one with most of the annotation."""
    if model.package.input.spatial_dims == 3:
        return [settings.slice]
    if settings.slice.strip().lower() == "all":
        return [
            slice_of(model.package, volume, [n] * 3) for n in range(volume.shape[plane_axis(model.package, volume)])
        ]
    if settings.slice or truth is None or not truth.any():
        return [settings.slice]
    return [fullest_slice(model.package, volume, truth)]


def _part(model, prepared, truth, body) -> Part:
    def on(mask):
        return torch.from_numpy(prepared.mask_to_network(mask)).to(model.device)

    inside = torch.zeros(prepared.shape, dtype=torch.bool, device=model.device)
    inside[prepared.valid] = True
    if body is not None:
        inside &= on(body)
    return Part(prepared, inside, None if truth is None else on(truth))


def _plan(model, parts, label, settings) -> Plan:
    about = model.package.input
    shape = about.size if about.fit == "window" and about.size else parts[0].prepared.shape
    chosen = choose(model, settings.layers, shape)
    units = [] if settings.units == ("none",) else choose(model, settings.units, shape)
    chosen += [one for one in units if one not in chosen]
    chosen.sort(key=lambda one: one.number)
    model.require_memory(shape, gradient=False, lower="the volume's size (crop it)")
    plan = Plan(
        model, parts, label, chosen, units, Interpolation(settings.interpolation, settings.align_corners),
        settings.prototypes == "labels",
    )  # fmt: skip
    plan.decide(settings.reading)
    return plan


class _Noise:
    """How the SA scores change with uniform noise in [0, level] (section 4.8, Fig. 16); B is computed anew for each image."""

    def __init__(self, plan, clean, levels, settings):
        self.plan, self.clean, self.levels, self.settings = plan, clean, levels, settings
        self.differences: dict = {}  # (level, layer) -> one per draw
        self.maps: dict = {}  # level -> maps of the first draw
        self.left_out: list[float] = []

    def run(self, images, room: int):
        """``room`` is how many maps more may be kept."""
        seed, plan = self.settings.seed, self.plan
        references = [torch.from_numpy(g).to(plan.model.device) for g in self.clean.reference]
        runs = [(level, draw) for draw in range(self.settings.noise_draws) for level in self.levels]
        for at, (level, draw) in enumerate(runs):
            generator = torch.Generator().manual_seed(seed + draw)  # the same noise at every level, scaled
            noisy = [x + level * torch.rand(x.shape, generator=generator).to(x) for x in images]
            keeping = draw == 0 and room > len(plan.layers)
            if draw == 0 and not keeping:
                self.left_out.append(level)
            # Compared with what the clean maps were compared with, so that the difference is the maps' own.
            study = Study(plan, noisy, references, units=False, keep=keeping)
            for done, _ in study.run():
                yield (at + done) / len(runs), level
            if keeping:
                self.maps[level] = study.maps
                room -= len(study.maps)
            for name in study.counts:
                gone = study.scores(name)["dice"] - self.clean.scores(name)["dice"]
                self.differences.setdefault((level, name), []).append(gone)

    def into(self, result, layers) -> None:
        """Table, curve and maps."""
        if not self.levels:
            return
        rows = {name: [] for name in ("level", "layer", "number", "group", "difference", "sd", "draws")}
        curve = {"layer": np.array([one.number for one in layers], float)}
        for level in self.levels:
            for one in layers:
                found = self.differences[level, one.name]
                sd = float(np.std(found, ddof=1)) if len(found) > 1 else np.nan
                values = (level, one.name, one.number, one.group, float(np.mean(found)), sd, len(found))
                for column, value in zip(rows.values(), values):
                    column.append(value)
            curve[f"noise {level:g}"] = np.array([np.mean(self.differences[level, one.name]) for one in layers])
        result.tables["noise"] = Table("SA under noise", rows)
        result.curves["noise-effect"] = Curve(
            "SA under noise", "layer", curve, "Layer (0: input image)", "SA score with noise − SA score without"
        )
        for level, maps in self.maps.items():
            result.sequences[f"noise-{level:g}"] = Sequence(
                f"Maps, noise {level:g}", [(one.number, _item(self.plan, maps[one.name])) for one in layers], "mask", "layer",
                names=tuple(f"noise-{level:g}-{_file(one.name)}" for one in layers),
            )  # fmt: skip
        if self.left_out:
            told = ", ".join(f"{level:g}" for level in self.left_out)
            result.notes.append(f"The maps with noise {told} were scored but not kept (--memory-budget).")


def _maps(result, clean, layers, unit_count, limit) -> None:
    result.masks["output"] = _volume(clean.plan, clean.outputs, "output")
    result.sequences["layers"] = Sequence(
        "Layers", [(one.number, _item(clean.plan, clean.maps[one.name])) for one in layers], "mask", "layer",
        names=tuple(f"map-{_file(one.name)}" for one in layers),
    )  # fmt: skip
    units = [key for key in clean.counts if isinstance(key, tuple)]
    if not units:
        return
    shown = [(n, key) for n, key in enumerate(units, 1) if key in clean.maps]
    if shown:
        result.sequences["units"] = Sequence(
            "Units",
            [(n, _item(clean.plan, clean.maps[key])) for n, key in shown],
            "mask",
            "unit",
            thinned=len(units) - len(shown),
        )
    if unit_count > limit:
        result.notes.append(
            f"Of {unit_count} unit maps the best {limit} are kept for looking through (--memory-budget); all were scored."
        )
    volume = clean.plan.parts[0].prepared.volume
    heat = np.zeros(volume.shape, np.float32)
    for part, counts in zip(clean.plan.parts, clean.heat):
        patch = part.prepared.map(counts / len(units), (0,) * counts.ndim)
        heat[patch.box] = patch.array
    result.maps["heat"] = Layer(
        volume.with_array(heat, "heat", ""), "probability", "Share of units that see the label", 0.0, 1.0
    )


def _tables(result, clean, layers, settings, truth) -> None:
    rows = {name: [] for name in ("layer", "group", "shape", *SCORES, "dice_output", "number", "path", "kind")}
    image = clean.plan.parts[0].prepared.x
    for one in layers:
        shape = one.shape or tuple(image.shape[1:])
        scores = clean.scores(one.name)
        about = {"layer": one.name, "group": one.group, "shape": " × ".join(map(str, shape)), "number": one.number, "path": one.path, "kind": one.kind}  # fmt: skip
        for name, column in rows.items():
            column.append(about.get(name, scores.get(name)))
    result.tables["layers"] = Table("Layers", rows)
    curve = {"layer": np.array(rows["number"], float), "SA score": np.array(rows["dice"])}
    if truth is not None:
        curve["with the output"] = np.array(rows["dice_output"])
    result.curves["transition"] = Curve(
        "From image to output", "layer", curve, "Layer (0: input image)", "SA score (Dice)", shown=("SA score",)
    )
    if clean.labels:
        names, table = clean.plan.model.labels, {"layer": [], "number": [], "label": [], "dice_output": []}
        for one in layers:
            for n, name in enumerate(names):
                s, b, both = (int(v) for v in clean.labels[one.name, n])
                for column, value in zip(
                    table.values(), (one.name, one.number, name, overlap(s, b, both, s + b)["dice"])
                ):
                    column.append(value)
        result.tables["labels"] = Table("Labels", table)
    units = [key for key in clean.counts if isinstance(key, tuple)]
    if not units:
        return
    scores = [clean.scores(key) for key in units]
    order = np.argsort([-one["dice"] for one in scores], kind="stable")
    rank = np.empty(len(units), int)
    rank[order] = np.arange(1, len(units) + 1)
    needed = settings.active * _own_dice(clean)
    result.tables["units"] = Table(
        "Units",
        {
            "layer": [key[0] for key in units],
            "unit": [key[1] for key in units],
            **{name: [one[name] for one in scores] for name in (*SCORES, "dice_output")},
            "rank": rank.tolist(),
            "state": ["undefined" if not needed else "active" if one["dice"] >= needed else "inert" for one in scores],
            "number": list(range(1, len(units) + 1)),
        },
    )
    result.curves["ranking"] = Curve(
        "Units by SA score", "rank", {"rank": np.arange(1.0, len(units) + 1), "SA score": np.array([scores[n]["dice"] for n in order])},
        "Rank of the unit", "SA score (Dice)",
    )  # fmt: skip


def _own_dice(clean) -> float:
    """Dice of the output with what maps are scored against; 1 where that is the output."""
    g, b, both, n = (int(v) for v in clean.totals)
    return overlap(b, g, both, n)["dice"]


def _judge(result, clean, settings, truth) -> None:
    g, b, _, n = (int(v) for v in clean.totals)
    layers = result.tables["layers"].columns
    units = result.tables.get("units")
    mu = float(np.mean(units.columns["dice_output"])) if units else float("nan")
    own, separableness = _own_dice(clean), layers["dice"][0]
    blocks = [dice for dice, group in zip(layers["dice"], layers["group"]) if group]
    last = blocks[-1]  # the image is one of them
    share = g / n
    chance = share / (share + 0.5)
    result.scores.update(mean_sa=mu, separableness=separableness, output_voxels=b, reference_voxels=g)
    if truth is not None:
        result.scores.update(output_dice=own, gain=own - separableness)
        if own < 0.05 and b and g:
            result.notes.append(
                f"The output and the annotation hardly overlap (Dice {own:.3f}): is it another patient's, or another label's?"
            )
    if units:
        result.scores["units"] = len(units.columns["unit"])
        result.scores["active_units"] = units.columns["state"].count("active")
    for group in ("early", "deep", "late"):
        some = [dice for dice, one in zip(layers["dice"], layers["group"]) if one == group]
        if some:
            result.scores[f"mean_sa_{group}"] = float(np.mean(some))
    result.scores["chance_sa"] = chance
    if truth is None:
        result.notes.append("There is no annotation: every map is scored against the network's own thresholded output.")
    for what, count in (("output", b), *((("annotation", g),) if truth is not None else ())):
        if count in (0, n):
            result.notes.append(
                f"The {what} is {'empty' if count == 0 else 'full'}: the scores are defined but say little about this image."
            )
    result.self_checks.update(
        mean_sa={
            "value": mu, "passed": mu >= settings.accept if units else None,
            "meaning": f"Mean SA score μ of {result.scores.get('units', 0)} units with the output (eq. 12), against {settings.accept:g}"
            " (--accept): a low one marks an output to look at.",
        },
        output_present={
            "value": b, "passed": 0 < b < n,
            "meaning": "Voxels of the thresholded output; prototypes mean something only where it is neither empty nor full.",
        },
        above_chance={
            "value": last - chance, "passed": last > chance,
            "meaning": f"SA score of the last layer above that of a fair coin, π/(π + ½) = {chance:.3f} with π the reference's share.",
        },
    )  # fmt: skip


def _point(study, layer, truth) -> Point:
    scores = study.scores(layer.name)
    values = {"SA score": scores["dice"]} | ({} if truth is None else {"with the output": scores["dice_output"]})
    return Point("transition", layer.number, values)


def _box(parts) -> tuple[np.ndarray, np.ndarray]:
    """The box [start, stop) of the volume, (k, j, i), that is mapped: some slices, for a 2-D network."""
    ends = [part.prepared.box_to_volume((0,) * len(part.prepared.shape), part.prepared.shape) for part in parts]
    return np.min([a for a, _ in ends], 0), np.max([b for _, b in ends], 0)


def _item(plan, masks) -> Volume:
    """A map for looking through: of the box that was mapped."""
    return _volume(plan, masks, "map", *_box(plan.parts))


def _volume(plan, masks, name, start=None, stop=None) -> Volume:
    """Masks of the parts (bool, on the network's grid) as one mask on the volume's grid, or on its box [start, stop)."""
    volume = plan.parts[0].prepared.volume
    start, stop = start if start is not None else (0, 0, 0), stop if stop is not None else volume.shape
    array = np.zeros([b - a for a, b in zip(start, stop)], np.uint8)
    for part, mask in zip(plan.parts, masks):
        patch = part.prepared.mask(mask, (0,) * mask.ndim)
        array[tuple(slice(s.start - a, s.stop - a) for s, a in zip(patch.box, start))] = patch.array
    matrix = volume.ijk_to_ras.copy()
    matrix[:3, 3] = volume.index_to_ras(start)
    return Volume(array, matrix, name)


def _named(layer) -> str:
    return f"{layer.number} {layer.path or layer.name}" if layer.number else layer.path or layer.name


def _file(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)
