"""DeepDream analysis of a segmentation network (Couteaux et al. 2019, sections 2.2 and 3)."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import numpy as np
import torch

from .. import features as radiomics
from ..errors import MedXAIError
from ..explanation import Curve, Explanation, Layer, Patch, Point, Step, Steps, Table
from ..features.radiomic import MAX_BINS, engine_of
from ..features.soft import resolve_soft
from ..models import prepare
from ..models.crop import Box
from ..models.geometry import fullest_slice, slice_of
from ..models.model import CLAMP
from ..models.resample import on_grid
from ..settings import DreamSettings
from ..volume import Volume, mask_on_grid
from .ascent import Ascent, first_look, frame
from .frames import Frames, Waiting
from .provenance import provenance
from .sensitivity import Sensitivity

REFERENCE_BAND = "reference ± 1 SD"


def dream(model, volumes: list[Volume], settings: DreamSettings, segment: Volume | None = None) -> Steps:
    """Raise the logit of one output voxel by gradient ascent on the image, and follow features along the way.

    Parameters
    ----------
    model : Model
        A segmentation network.
    volumes : list of Volume
        One per channel of the network; the first gives the grid of every result. Never changed.
    settings : DreamSettings
        Without ``neuron_ras`` and ``neuron_ijk`` the voxel is the one with the highest logit inside ``segment`` (or anywhere).
    segment : Volume, optional
        Where to look for the best voxel; non-zero is inside.

    Yields
    ------
    Step
        One per ascent step, with the feature values that have come in; previews ``dream`` and ``mask``.

    Returns
    -------
    Explanation
        Maps ``dream`` (units of the volume) and ``change``, mask ``mask``, sequences ``steps`` and ``mask-steps``, curves ``curves``
        and (with a reference) ``normalized``, table ``verdicts``; with ``sensitivity``, the curve of that name and the table ``sensitivity-path``.

    Raises
    ------
    MedXAIError
        For bad input, each in one sentence.

    Notes
    -----
    X₍ⱼ₊₁₎ = Xⱼ + α ∂z/∂X with z the logit of the voxel, in network units; intensity statistics are those of the start. Only the
    change is mapped back and added, so voxels that did not change stay bit-identical.
    """
    began = time.perf_counter()
    model.require_task("segmentation", "dream")
    label = model.label_index(settings.label)
    volume = volumes[0]
    flat = model.package.input.spatial_dims == 2 or 1 in volume.shape
    names, reference, notes = _features(settings, 2 if flat else 3, volume.unit)
    engine = engine_of(settings.engine)
    resolve_soft(settings.sensitivity)  # a wrong name is refused before anything is computed
    inside = None if segment is None else mask_on_grid(segment, volume)
    voxel = None
    if settings.neuron_ras is not None or settings.neuron_ijk is not None:
        if settings.neuron_ras is not None and settings.neuron_ijk is not None:
            raise MedXAIError("The neuron is given twice (--neuron-ras and --neuron-ijk); leave one out.")
        voxel = volume.voxel(settings.neuron_ras, settings.neuron_ijk)
    prepared = prepare(model, volumes, _slice(model, volume, settings, voxel, inside))
    if settings.start == "noise":
        _noise(prepared, settings.seed)
        notes.append(f"The ascent starts from white noise (seed {settings.seed}), not from the volume.")
        if len(volumes) > 1:
            notes.append("Of the other channels the change of the noise is written, not the noise itself.")
    x, shape = prepared.x.clone(), tuple(prepared.x.shape[2:])
    multiple = model.package.input.multiple_of
    with model.frozen():
        yield Step(0.0, "Reading the network")
        sliding = model.package.input.fit == "window"
        field = model.receptive_field(model.package.input.size if sliding else shape)
        exact = field.exact and settings.crop
        yield Step(0.0, "Looking at the whole volume")
        logit, foreground, logits = first_look(model, x, label, field, multiple)
        if voxel is None:
            point, chosen = _best(prepared, logit, inside), "best in segment" if inside is not None else "best"
            voxel = prepared.to_volume(point)
        else:
            point, chosen = prepared.to_network(voxel), "given"
        box = frame(model.package.input, point, shape)
        if sliding:
            notes.append(
                f"The network takes windows of {box.shape}: the ascent and its mask stay in the one around the voxel."
            )
            with torch.no_grad():  # in the window the prediction is the network's own, not the blend of its neighbours
                logits = model.logits(x[box.index])
                foreground[box.index[1:]] = model.foreground(logits, label)[0].cpu().numpy()
        limits = (_per_channel(prepared.low, x), _per_channel(prepared.high, x))
        valid = (
            Box(tuple(s.start for s in prepared.valid), tuple(s.stop for s in prepared.valid)).common(box).within(box)
        )

        def begin(field):
            return Ascent(
                model, x[box.index], label, tuple(p - a for p, a in zip(point, box.start)), foreground[box.index[1:]], field,
                settings, limits, multiple, box.start, valid,
            )  # fmt: skip

        ascent = begin(field if exact else _no_crop(field))
        crop_error = None
        if exact and logits is not None:
            crop_error = ascent.check(logits)
            if crop_error > 1e-4:
                notes.append(
                    "The crop did not give the whole volume's answer, so everything was computed on the whole volume."
                )
                exact, ascent = False, begin(_no_crop(field))
        elif settings.crop and not field.exact:
            notes.append(f"Computed on the whole volume: {field.reason}.")
        del logits, logit
        model.require_memory(ascent.gradient_input.shape, gradient=True, lower="the volume's size (crop it)")
        if foreground[point]:
            notes.append("The network already saw the label at the voxel before the first step.")
        path = _Path(volume, prepared, ascent, settings, names)
        sensitivity = Sensitivity(ascent, prepared, settings) if settings.sensitivity else None
        options = {"ndim": 2 if flat else 3, "bin_width": settings.bin_width, "bin_count": settings.bin_count}
        options |= {"engine": engine, "device": model.device}
        with radiomics.FeatureQueue([n for n in names if n != "line_texture"], options=options) as queue:
            converged = False
            ascent_began = time.perf_counter()
            for j in range(settings.steps + 1):
                response, found, slope = ascent.look(gradient=j < settings.steps)
                if not np.isfinite(response) or (slope is not None and not bool(slope.isfinite().all())):
                    raise MedXAIError(
                        f"The response became infinite at step {j}; lower the step size (--step-size) or use --normalize."
                    )
                points = [path.record(j, response, found, queue)]
                points += [path.feature(*values) for values in queue.ready()]
                rise = path.responses[-1] - path.responses[-11] if j >= 10 else np.inf
                converged = j >= 10 and abs(rise) < settings.tolerance * abs(response - path.responses[0])
                if sensitivity:
                    sensitivity.look(found)
                    before = ascent.x[ascent.change.index].clone()
                stopping = converged or j == settings.steps or ascent.step(slope) == 0
                if sensitivity and not stopping:
                    shares = sensitivity.step(j, before, ascent.x[ascent.change.index])
                    points.append(Point("sensitivity", j, shares))
                yield Step(
                    0.95 * (j + 1) / (settings.steps + 1),
                    f"Step {j} of {settings.steps}, response {response:.4g}",
                    tuple(points),
                    path.previews,
                )
                if stopping:
                    break
            seconds_ascent = time.perf_counter() - ascent_began
            if not converged and j < settings.steps:
                notes.append(
                    f"The gradient is zero at step {j}: nothing in the image moves this voxel's logit any more."
                )
                if model.package.output.activation == "none" and abs(response) > np.log(1 / CLAMP - 1) - 1e-3:
                    notes.append(
                        f"Its probability is within {CLAMP:g} of 0 or 1, where its log-odds are cut off (activation none):"
                        " choose another voxel, or a model that gives logits."
                    )
            falls = int((np.diff(path.responses[-21:]) < 0).sum())
            if not converged and falls >= 5:
                notes.append(
                    f"The response fell in {falls} of the last {min(j, 20)} steps: a smaller step size (--step-size) climbs better."
                )
            rise = path.responses[-1] - path.responses[0]
            if rise <= 0:
                notes.append("The response did not rise: lower the step size (--step-size) or use --normalize.")
            elif rise < 0.01 * max(1.0, abs(path.responses[0])):
                notes.append(
                    f"The response hardly rose ({rise:.2g}): raise the step size (--step-size) or use --normalize."
                )
            for values in queue.finish(path.waiting):
                yield Step(0.97, "Features of the steps that were skipped", (path.feature(*values),))
            notes += queue.notes
        if path.between:
            notes.append(
                "At some steps the predicted component lies between the voxels of the volume: no mask, no features."
            )
        yield Step(0.99, "Checking the result")
        complete = (
            settings.start == "volume" or len(volumes) == 1
        )  # else the other channels' noise is not among the files
        again = _again(model, prepared, path, ascent, volumes) if complete else np.nan
    result = path.explanation(reference)
    result.notes = notes
    first, last = path.responses[0], path.responses[-1]
    result.scores.update(
        response_start=first, response_end=last, steps=len(path.responses) - 1, converged=bool(converged)
    )
    result.self_checks.update(
        response_rose={
            "value": last - first, "passed": last > first,
            "meaning": "Rise of the logit along the ascent; a dream that did not raise it explains nothing.",
        },
        converged={
            "value": float(converged), "passed": bool(converged),
            "meaning": "Whether the response stopped rising; if not, the curves end at the step limit, not at the network's optimum.",
        },
        mask_reached={
            "value": int(result.masks["mask"].array.sum()), "passed": bool(result.masks["mask"].array.any()),
            "meaning": "Voxels of the predicted component at the last step; without one, only whole-image features exist.",
        },
        response_of_written_volume={
            "value": again,
            "passed": bool(abs(again - last) <= 0.05 * max(abs(last - first), 1e-6)) if complete else None,
            "meaning": "The voxel's logit when dream.nrrd is prepared afresh as any volume would be; it differs where"
            " preprocessing clips or its statistics moved.",
        },
    )  # fmt: skip
    if sensitivity:
        result.curves["sensitivity"], result.tables["sensitivity-path"] = sensitivity.results()
        if sensitivity.capped:
            notes.append(
                f"Sensitivity: the intensities in the soft mask span more than {MAX_BINS} bins of {settings.bin_width:g} at some steps: no share"
                " of what is binned there (choose a larger bin width, or a number of bins)."
            )
        wrong = sensitivity.discrepancy
        result.self_checks["sensitivity_adds_up"] = {
            "value": wrong, "passed": bool(wrong <= 0.2) if np.isfinite(wrong) else None,
            "meaning": "The gradients of each feature summed along the path against its change, relative to all its movements: the greatest"
            " difference. A large one: the steps are too large for shares to mean much, or the feature jumps.",
        }  # fmt: skip
    if crop_error is not None:
        result.self_checks["crop"] = {
            "value": crop_error, "passed": exact,
            "meaning": "Largest relative difference between the cropped and the whole computation at the start.",
        }  # fmt: skip
    result.provenance = provenance(
        "dream", settings, model, volumes,
        label=model.labels[label], neuron_ijk=list(voxel[::-1]), neuron_ras=list(volume.index_to_ras(voxel)), neuron=chosen,
        segment=None if segment is None else segment.name, steps_kept=len(result.sequences["steps"].items),
        objective="logit of one output voxel", preparation=prepared.record(),
        crop={"exact": exact, "gradient": list(ascent.gradient_input.shape), "prediction": list(ascent.near.reach_input.shape)},
        features={"computed": path.counts["computed"], "filled_in_afterwards": path.counts["late"], "engine": engine},
        seconds_ascent=round(seconds_ascent, 3), seconds=round(time.perf_counter() - began, 3),
    )  # fmt: skip
    return result


class _Path:
    """What is kept along the way: image, mask, responses, features, frames."""

    def __init__(self, volume, prepared, ascent, settings, names):
        self.volume, self.prepared, self.ascent, self.names = volume, prepared, ascent, names
        self.channels = ascent.model.package.input.channels
        self.base = prepared.start
        self.current = self.base.copy()
        self.mask = None  # Patch of the present component on the volume's grid
        self.between = False  # whether a component lay between its voxels (the network's grid can be finer)
        self.responses, self.values, self.waiting = [], {}, Waiting(256 << 20)
        self.frames = Frames(volume, settings.memory_budget * 2**20)
        self.counts = {"computed": 0, "late": 0}
        self.shown = None  # box of the mask in the last preview; None before the first
        self.line = None
        if "line_texture" in names:  # of what the network sees: for a 2-D network its slice alone
            self.seen = Box(*prepared.box_to_volume((0,) * len(prepared.shape), prepared.shape))
            self.line = radiomics.LineTexture(self.base[self.seen.index[1:]], settings.line_angle, settings.line_length)

    def record(self, j, response, found, queue) -> Point:
        """Take in step j: image and mask on the volume's grid, frame, features asked for."""
        ascent = self.ascent
        change = self.prepared.change(ascent.delta(), ascent.place(ascent.change.start))
        self.current[change.box] = self.base[change.box] + change.array
        self.box = change.box
        self.responses.append(response)
        self.mask = None if found is None else self.prepared.mask(found[1], ascent.place(found[0].start))
        if self.mask is not None and not self.mask.array.any():
            self.mask, self.between = None, True
        self.frames.add(j, Patch(self.current[change.box].copy(), change.start), self.mask)
        values = {"response": response}
        if self.line is not None:
            start = tuple(a - b for a, b in zip(change.start, self.seen.start))
            values["line_texture"] = self.line.update(Patch(self.current[change.box], start))
        self.values[j] = values
        if any(n != "line_texture" for n in self.names) and self.mask is not None:
            start = self.mask.start
            stop = tuple(a + n for a, n in zip(start, self.mask.array.shape))
            whole = Volume(self.current, self.volume.ijk_to_ras, self.volume.name)
            image = whole.crop(start, stop)
            image = image.with_array(image.array.copy())
            mask = image.with_array(self.mask.array)
            if not queue.offer(j, image, mask):
                self.waiting.add(j, image, mask)
        return Point("curves", j, dict(values))

    def feature(self, step, values) -> Point:
        """Take in features of a step, whenever they come."""
        self.counts["computed"] += 1
        if step in self.waiting:
            self.counts["late"] += 1
        self.values[step].update(values)
        return Point("curves", step, dict(values))

    def previews(self):
        """The image and the mask now; the whole grid the first time, afterwards the box that may differ from the last preview."""
        box = None if self.mask is None else self.mask.box
        both = [b for b in (self.shown, box) if b]
        first, self.shown = self.shown is None, box or ()
        mask = self._whole_mask()
        if first:
            return {
                "dream": self.volume.with_array(self.current.copy(), "dream"),
                "mask": self.volume.with_array(mask, "mask", ""),
            }
        start = tuple(s.start for s in self.box)
        found = {"dream": Patch(self.current[self.box].copy(), start)}
        if both:
            where = tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*both))
            found["mask"] = Patch(mask[where].copy(), tuple(s.start for s in where))
        return found

    def _whole_mask(self) -> np.ndarray:
        mask = np.zeros(self.volume.shape, np.uint8)
        if self.mask is not None:
            mask[self.mask.box] = self.mask.array
        return mask

    def explanation(self, reference) -> Explanation:
        volume, ascent = self.volume, self.ascent
        change = self.current - self.base
        mask = self._whole_mask()
        unit = f" [{volume.unit}]" if volume.unit else ""
        steps = sorted(self.values)
        raw = {"step": np.array(steps, float), "response": np.array(self.responses)}
        for name in self.names:
            raw[name] = np.array([self.values[j].get(name, np.nan) for j in steps])
        result = Explanation("dream", "DeepDream analysis")
        result.maps["dream"] = Layer(volume.with_array(self.current, "dream"), "image", f"Dream{unit}")
        result.maps["change"] = Layer(volume.with_array(change, "change"), "signed", f"Change{unit}")
        for c, name in enumerate(self.channels[1:], 1):  # the other channels: their change, on the first one's grid
            patch = self.prepared.change(ascent.delta(), ascent.place(ascent.change.start), c)
            other = np.zeros(volume.shape, np.float32)
            other[patch.box] = patch.array
            file = "change-" + re.sub(r"[^\w.-]+", "_", name)  # a channel may be called T1/T2, a file may not
            result.maps[file if file not in result.maps else f"{file}-{c}"] = Layer(
                volume.with_array(other, f"change {name}", ""), "signed", f"Change of {name}"
            )
        result.masks["mask"] = volume.with_array(mask, "mask", "")
        result.sequences.update(self.frames.sequences())
        result.curves["curves"] = Curve(
            "Response and features", "step", raw, "Step", "Value", shown=("response",), units={"response": "logit"}
        )
        result.tables["verdicts"], z = _verdicts(raw, self.names, reference)
        if z is not None:
            result.curves["normalized"] = Curve(
                "Features along the dream", "step", {"step": raw["step"], **z}, "Step",
                "Normalized value (0: reference mean, 1: one SD)", {REFERENCE_BAND: (-1.0, 1.0)},
            )  # fmt: skip
        millimetres = float(abs(np.linalg.det(volume.ijk_to_ras[:3, :3])))
        result.scores["mask_voxels"] = int(mask.sum())
        result.scores["mask_volume_mm3"] = int(mask.sum()) * millimetres
        return result


def _verdicts(raw, names, reference):
    columns = {"feature": [], "start": [], "end": [], "z_start": [], "z_end": [], "verdict": []}
    z = {} if reference is not None else None
    for name in names:
        values = raw[name]
        known = values[np.isfinite(values)]
        first, last = (known[0], known[-1]) if len(known) else (np.nan, np.nan)
        normal = [np.nan if reference is None else reference.z(name, v) for v in values]
        seen = [v for v in normal if np.isfinite(v)]
        verdict = "no reference" if reference is None else radiomics.verdict(normal)
        row = (name, first, last, seen[0] if seen else np.nan, seen[-1] if seen else np.nan, verdict)
        for column, value in zip(columns.values(), row):
            column.append(value)
        if z is not None:
            z[name] = np.array(normal, float)
    return Table("Verdicts", columns), z


def _features(settings, dimensions, unit):
    """Names, reference and notes."""
    notes, reference = [], None
    names = radiomics.resolve(settings.features, dimensions)
    if settings.reference:
        reference = radiomics.Reference.read(settings.reference)
        here = {
            "ndim": dimensions, "bin_width": settings.bin_width, "bin_count": settings.bin_count, "line_angle": settings.line_angle,
            "line_length": settings.line_length, "unit": unit,
        }  # fmt: skip
        notes += reference.differences(here)
        unlike = [name for name in reference.unlike(here) if name in names]
        if unlike:
            reference.sd.update(dict.fromkeys(unlike, np.nan))
            notes.append(f"Not normalised for that reason: {', '.join(unlike)}.")
        strange = [n for n in names if n not in reference.mean]
        if strange:
            notes.append(f"The reference has no {', '.join(strange)}: these curves are not normalised.")
    return names, reference, notes


def _slice(model, volume, settings, voxel, inside) -> str:
    """For a 2-D network the slice asked for, or the voxel's, or the one with most of the segment."""
    if model.package.input.spatial_dims == 3 or settings.slice:
        return settings.slice
    if voxel is None and inside is not None:
        return fullest_slice(model.package, volume, inside)
    return "" if voxel is None else slice_of(model.package, volume, voxel)


def _best(prepared, logit, inside):
    """The voxel of the network's grid with the highest logit, inside the segment where there is one."""
    allowed = np.zeros(logit.shape, bool)
    allowed[tuple(prepared.valid)] = True
    if inside is not None:
        allowed &= prepared.mask_to_network(inside)
        if not allowed.any():
            raise MedXAIError("None of the segment lies where the network looks; choose another slice or segment.")
    return tuple(int(v) for v in np.unravel_index(np.where(allowed, logit, -np.inf).argmax(), logit.shape))


def _noise(prepared, seed):
    """White noise with the mean and standard deviation of each channel, drawn on the CPU so that a seed means one image everywhere."""
    x, axes = prepared.x.clone(), tuple(range(2, prepared.x.ndim))
    image = x[(..., *prepared.valid)]  # the padding is the minimum, as for any volume
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed)).to(x.device)
    noise = noise * image.std(axes, keepdim=True) + image.mean(axes, keepdim=True)
    x[...] = noise.amin(axes, keepdim=True)
    image[...] = noise
    prepared.replace(x)


def _per_channel(values, x):
    return torch.as_tensor(values, dtype=x.dtype, device=x.device).reshape(1, -1, *(1,) * (x.ndim - 2))


def _no_crop(field):
    return replace(field, exact=False, reason=field.reason or "cropping is off")


def _again(model, prepared, path, ascent, volumes) -> float:
    """The voxel's logit when the written dream (and the other channels with their change) is prepared as any volume would be."""
    written = [path.volume.with_array(path.current)]
    for channel, volume in enumerate(volumes[1:], 1):
        patch = prepared.change(ascent.delta(), ascent.place(ascent.change.start), channel)
        changed = on_grid(volume, path.volume)
        changed = changed.with_array(changed.array.astype(np.float32))
        changed.array[patch.box] += patch.array
        written.append(changed)
    fresh = prepare(model, written, prepared.slice)
    box = ascent.near.gradient_input
    here = Box(ascent.place(box.start), ascent.place(box.stop))
    with torch.no_grad():
        logits = model.logits(fresh.x[here.index])
    return float(logits[(0, ascent.label, *ascent.voxel.within(box).start)])
