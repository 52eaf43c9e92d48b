"""The strongest filters of a classifier's last layer, projected back to the image (Kumar & Menkovski 2016)."""

from __future__ import annotations

import time
from collections.abc import Sequence as Several

import numpy as np
import torch
from scipy import ndimage

from ..errors import MedXAIError
from ..explanation import Curve, Explanation, Layer, Patch, Sequence, Step, Steps, Table
from ..landmarks import ELSEWHERE, coarse_parts, landmark_table, shares, spread, weights, with_rest
from ..models import prepare
from ..models.backward import Recording
from ..models.geometry import fullest_slice
from ..models.reading import choose, last_map
from ..settings import BackprojectSettings
from ..volume import Volume
from .ability import annotation
from .filter_checks import alike, edges, randomised, sampled, silenced
from .phases import during
from .provenance import provenance
from .returning import batch_of, returned, score


def backproject(model, volumes: list[Volume], settings: BackprojectSettings, landmarks: Several[Volume] = ()) -> Steps:
    """Send the activation maps of the strongest filters back to the image, each by itself, and combine them into a heat map.

    Parameters
    ----------
    model : Model
        A classification network with a convolution.
    volumes : list of Volume
        One per channel of the network; the first gives the grid of every result. Never changed.
    settings : BackprojectSettings
    landmarks : sequence of Volume
        Masks, named, on the lattice of the first volume: how much of the heat falls into each is told. They may overlap. Without them
        corners, borders and centre are told apart.

    Yields
    ------
    Step
        With the preview ``heat`` of the filters that are back.

    Returns
    -------
    Explanation
        Map ``heat``; sequence ``filters`` (signed, in network units, rank 1 first, files ``filter-K``); tables ``filters``, ``landmarks``, ``shares`` (of each filter in each landmark), ``classes`` and, where
        asked for, ``randomisation``; curve ``ranking``. Scores: ``probability`` and ``log_odds`` of the label, ``half_heat_area`` (share of the area that holds half
        of the heat).

    Raises
    ------
    MedXAIError
        For bad input, each in one sentence.
    """
    began = time.perf_counter()
    model.require_task("classification", "backproject")
    label = model.label_index(settings.label) if settings.label else None
    volume = volumes[0]
    masks = _masks(landmarks, volume)
    chosen_slice = settings.slice
    if not chosen_slice and masks and model.package.input.spatial_dims == 2:
        chosen_slice = fullest_slice(model.package, volume, np.logical_or.reduce(list(masks.values())))
    prepared = prepare(model, volumes, chosen_slice)
    about = model.package.input
    if about.fit == "window" and about.size and tuple(about.size) != prepared.shape:
        size = " × ".join(map(str, about.size))
        raise MedXAIError(
            f"'{model.package.name}' answers for windows of {size} voxels; crop the volume to one of them."
        )
    with model.frozen():
        yield Step(0.0, "Reading the network")
        layer = _layer(model, settings, prepared.shape)
        model.require_memory(prepared.shape, gradient=True, lower="the volume's size (crop it)")
        recording = Recording(model, prepared.x, layer.output, settings.rule, settings.collisions)
        for done in recording.forward():
            yield Step(0.1 * done, "Computing the network")
        if not (torch.isfinite(recording.activation).all() and torch.isfinite(recording.logits).all()):
            raise MedXAIError(
                f"'{model.package.name}' gives values that are not finite on '{volume.name}'; look at the volume's intensities and the"
                " 'intensity' in model.json."
            )
        label = int(recording.logits[0].argmax()) if label is None else label
        scores = score(recording.activation, settings.score)
        ranked = np.argsort(-scores, kind="stable")
        filters = list(dict.fromkeys(settings.only)) or ranked[: settings.filters].tolist()
        filters.sort(key=lambda one: -scores[one])
        batch = settings.batch or batch_of(recording, len(filters), settings)
        found = _Found(prepared, weights(scores[filters], settings.combine), masks, settings)
        for done, back in returned(recording, filters, batch):
            if back is None:
                yield Step(0.1 + 0.7 * done, "Sending filters back")
                continue
            for one in back[1]:
                found.take(filters[len(found.shares)], one)
                yield Step(0.1 + 0.7 * done, "Sending filters back")
            yield Step(0.1 + 0.7 * done, "Sending filters back", (), found.preview())
        effects, matter = yield from during(silenced(recording, model, label, filters, settings.seed), 0.8, 0.85)
        change = None
        if settings.randomise:
            again = randomised(model, prepared.x, layer.output, settings, filters, found.network_heat, batch)
            change = yield from during(again, 0.85, 0.97)
        probability = model.probabilities(recording.logits)[0]
    yield Step(0.98, "Putting the maps together")
    result = Explanation("backproject", "Filter back-projection")
    result.maps["heat"] = found.heat_layer()
    result.sequences["filters"] = found.sequence(filters)
    names = list(model.labels)
    result.tables["classes"] = Table(
        "Classes",
        {"label": names, "logit": recording.logits[0].tolist(), "probability": probability.tolist()},
    )
    result.tables["landmarks"] = landmark_table(
        found.shares, found.weight, found.parts, "Landmarks" if masks else "Coarse parts (not anatomical)"
    )
    result.tables["shares"] = Table(
        "Share of each filter's heat",
        {"rank": list(range(1, len(filters) + 1)), "filter": filters}
        | dict(zip(found.parts, map(list, zip(*found.shares)))),
    )
    result.tables["filters"] = Table(
        "Filters",
        {
            "filter": filters,
            "score": scores[filters].tolist(),
            "rank": list(range(1, len(filters) + 1)),
            "name": [f"filter-{one}" for one in filters],
            "effect": effects,
        },
    )
    result.curves["ranking"] = Curve(
        "Filters by score", "rank", {"rank": np.arange(1.0, len(scores) + 1), "score": scores[ranked]}, "Rank of the filter",
        f"Score ({settings.score} of its map)",
    )  # fmt: skip
    result.scores.update(
        probability=float(probability[label]),
        log_odds=float(model.log_odds(recording.logits, label)),
        filters=len(filters),
        half_heat_area=found.half_area(),
    )
    if any(one.before or one.after for one in prepared.axes):
        result.scores["heat_on_padding"] = float(np.nanmean(found.outside)) if found.total else float("nan")
    result.self_checks["filters_matter"] = matter
    result.self_checks["not_edges"] = edges(found.network_heat, prepared.x)
    result.self_checks["filters_differ"] = alike(found.samples)
    if change is not None:
        result.tables["randomisation"], result.self_checks["randomisation"] = change
    _notes(result, recording, found, settings, filters)
    rules = recording.rules
    result.provenance = provenance(
        "backproject", settings, model, volumes,
        label=names[label], predicted=names[int(recording.logits[0].argmax())], landmarks=list(masks),
        layer={"name": layer.name, "path": layer.path, "shape": list(layer.shape), "read_at": layer.output},
        rule=settings.rule, collisions=settings.collisions, overlapping_pools=rules.overlapping, colliding_switches=rules.colliding,
        rectifiers=dict(rules.rectifiers), derivatives=dict(rules.derivatives), combine=settings.combine, batch=batch,
        slice=prepared.slice, start_kji=list(found.start), preparation=prepared.record(), seconds=round(time.perf_counter() - began, 3),
    )  # fmt: skip
    return result


class _Found:
    """The filters' maps as they come back: on the volume's grid, on the network's, and their shares in the landmarks."""

    def __init__(self, prepared, weight, masks, settings):
        self.prepared, self.weight, self.masks, self.settings = prepared, weight, masks, settings
        self.start, self.parts, self.maps, self.shares, self.total = None, {}, [], [], 0.0
        self.network_heat = np.zeros(prepared.shape, np.float32)
        self.heat, self._shown, self.samples = None, False, []
        self.lost, self.outside = 0, []  # filters of which nothing came back; shares of signals that arrived on padding

    def take(self, filter: int, signal) -> None:
        """The signal of the next filter, shape of the network's grid."""
        one, number = signal.cpu().numpy(), len(self.shares)
        if not np.isfinite(one).all():
            raise MedXAIError(
                f"What came back of filter {filter} is not finite; choose a later layer (--layer), another --rule, or leave it out (--only)."
            )
        size = np.abs(one)
        whole, inside = float(size.sum(dtype=np.float64)), float(size[self.prepared.valid].sum(dtype=np.float64))
        self.lost += not whole
        self.outside.append(1 - inside / whole if whole else np.nan)
        patch = self.prepared.map(self._covering(one), (0,) * one.ndim)
        if self.heat is None:
            self.start, shape = patch.start, patch.array.shape
            self.heat = np.zeros(shape, np.float32)
            self.parts = (
                with_rest({name: mask[patch.box] for name, mask in self.masks.items()})
                if self.masks
                else {name: part for name, part in coarse_parts(shape).items() if part.any()}
            )
        self.shares.append(shares(patch.array, self.parts))
        if (number + 1) * patch.array.nbytes <= self.settings.memory_budget * 2**20:
            self.maps.append((number + 1, np.ascontiguousarray(patch.array)))
        self.samples.append(sampled(size, 20_000))
        if patch.array.any():
            weight = np.float32(self.weight[number])
            self.heat += weight * spread(patch.array)
            self.network_heat += weight * spread(one)
            self.total += float(weight)

    def _covering(self, one: np.ndarray) -> np.ndarray:
        """Where the network's grid is finer than the volume's: smoothed, so that nothing between the volume's voxels is lost."""
        for axis, about in enumerate(self.prepared.axes):
            if abs(about.step) < 1:
                one = ndimage.gaussian_filter1d(one, (1 / abs(about.step) - 1) / 2, axis)
        return one

    def combined(self) -> np.ndarray:
        """The heat of the filters that are back."""
        return self.heat / np.float32(self.total) if self.total else self.heat

    def preview(self):
        """For a step: the heat as it is now."""

        def now():
            first, self._shown = not self._shown, True
            return {"heat": self._whole() if first else Patch(self.combined(), self.start)}

        return now

    def _whole(self) -> Volume:
        volume = self.prepared.volume
        array = np.zeros(volume.shape, np.float32)
        array[Patch(self.heat, self.start).box] = self.combined()
        return volume.with_array(array, "heat", "")

    def heat_layer(self) -> Layer:
        high = float(np.percentile(self.combined(), 99.5))
        return Layer(self._whole(), "positive", "Heat [× even]", 0.0, max(high, 2.0), least=1.0)

    def sequence(self, filters) -> Sequence:
        volume = self.prepared.volume
        matrix = volume.ijk_to_ras.copy()
        matrix[:3, 3] = volume.index_to_ras(self.start)
        items = [(rank, Volume(array, matrix, f"filter-{filters[rank - 1]}")) for rank, array in self.maps]
        names = tuple(volume.name for _, volume in items)
        return Sequence("Filters", items, "signed", "rank", thinned=len(filters) - len(items), names=names)

    def half_area(self) -> float:
        """The smallest share of the area that holds half of the heat."""
        ordered = np.sort(self.combined(), axis=None)[::-1].astype(np.float64)
        total = ordered.sum()
        return float((np.searchsorted(ordered.cumsum(), total / 2) + 1) / ordered.size) if total else float("nan")


def _masks(landmarks, volume) -> dict[str, np.ndarray]:
    """Landmarks by name on the volume's grid; names that come twice are numbered."""
    found = {}
    for one in landmarks:
        name, number = one.name, 1
        while name in (*found, ELSEWHERE, "rank", "filter"):  # the other rows and columns of the tables
            number += 1
            name = f"{one.name} ({number})"
        found[name] = annotation(one, volume)
    if found and not any(mask.any() for mask in found.values()):
        raise MedXAIError("None of the landmarks lies in the volume; choose another segmentation.")
    return found


def _layer(model, settings, shape):
    if settings.layer:
        layers = choose(model, [settings.layer], shape)
        if len(layers) > 1:
            raise MedXAIError(f"'{settings.layer}' names {len(layers)} layers; choose one of them (--layer).")
        layer = layers[0]
    else:
        layer = last_map(model, shape)
    count = layer.shape[0]
    told = f"The layer '{layer.name}' of '{model.package.name}' has {count} filters"
    if not settings.only and settings.filters > count:
        raise MedXAIError(
            f"{told}, and {settings.filters} were asked for; ask for {count} or fewer (--filters {count})."
        )
    beyond = [one for one in settings.only if one >= count]
    if beyond:
        raise MedXAIError(f"{told}, numbered from 0 to {count - 1}; there is no filter {beyond[0]} (--only).")
    return layer


def _notes(result, recording, found, settings, filters) -> None:
    rules, notes = recording.rules, result.notes
    least = float(recording.activation[:, filters].min())
    if least < 0 and (settings.rule == "gradient" or not recording.rectified):
        notes.append(
            f"The layer's output is not rectified (its least value is {least:.3g}); negative activations were sent back with their sign."
        )
    if recording.autocast:
        notes.append("The network asks for less precision in parts (autocast); here everything was computed in full.")
    if result.scores.get("heat_on_padding", 0) > 0.01:
        notes.append(
            f"{result.scores['heat_on_padding']:.0%} of what came back arrived on the padding about the image (mean over filters) and is not in the map."
        )
    absent = [name for name, part in found.parts.items() if not part.any()]
    if absent:
        notes.append(f"No voxel of these landmarks lies where the network looked: {', '.join(absent)}.")
    if not found.total and found.lost < len(filters):
        notes.append(
            "The heat map is empty: no filter from which something came back has a positive score (--combine equal takes them all)."
        )
    scores = np.asarray(result.tables["filters"].columns["score"])
    weak = int((scores < 0.05 * scores.max()).sum()) if scores.max() > 0 else 0
    if weak and settings.combine == "equal":
        notes.append(
            f"{weak} of the {len(filters)} filters have less than a twentieth of the strongest one's score and count as much in the heat map"
            " (--combine activation weighs them by it)."
        )
    silent = sum(not recording.activation[:, one].any() for one in filters)
    if silent:
        notes.append(
            f"{silent} of the {len(filters)} filters are silent on this image (0 everywhere): they say nothing."
        )
    if found.lost > silent:
        notes.append(f"Of {found.lost - silent} filters nothing reached the image; they are left out of the heat map.")
    if not rules.rectifiers:
        notes.append("There is no rectifier between image and layer, so the three rules give the same maps.")
    if rules.derivatives:
        told = ", ".join(f"{name} ({count})" for name, count in rules.derivatives.items())
        notes.append(f"These operations are no rectifiers and take their derivative at this image: {told}.")
    if rules.stopped:
        told = ", ".join(f"{name} ({count})" for name, count in rules.stopped.items())
        notes.append(f"No signal comes back through these: {told}.")
    if rules.overlapping:
        how = "their signals were added, as the transpose has it" if settings.collisions == "sum" else "the last window's signal counts, as in Zeiler's unpooling"  # fmt: skip
        notes.append(
            f"Windows of {rules.overlapping} max-pooling{'s' * (rules.overlapping > 1)} overlap and share switches ({rules.colliding} windows): {how}."
        )
    thinned = result.sequences["filters"].thinned
    if thinned:
        notes.append(f"The maps of {thinned} of the {len(filters)} filters were used but not kept (--memory-budget).")
