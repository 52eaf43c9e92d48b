"""What an image would look like as either class of a classifier, and the difference (Katzmann et al. 2021, section 2.6)."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from scipy.special import expit

from ..errors import MedXAIError
from ..explanation import Curve, Explanation, Layer, Patch, Step, Steps, Table
from ..models import memory, prepare
from ..models.explainer import pair_of
from ..models.geometry import Prepared, parse_slice, patch_at, plane_axis
from ..models.ssim import cycle_errors
from ..models.tiling import windows
from ..settings import CycleSettings
from ..volume import Volume, mask_on_grid
from .provenance import provenance

POSITIONS = (-1.0, -0.5, 0.0, 0.5, 1.0)  # of the morph: −1 is G⁻(x), 0 is x, 1 is G⁺(x)
FOCUS = 0.1  # share of the voxels, those with the largest |R|, that are looked at by themselves
BYTES = 2**29  # that generators may take at once
AT_ONCE = 3  # images that the classifier is asked about at once: more leave a processor's caches, and take longer each
PERCENTILE = 99.5  # of |R| in the patch: the end of the colour scale


def cycle(model, volumes: list[Volume], settings: CycleSettings, lesion: Volume | None = None) -> Steps:
    """Show an image as the generators of a trained explainer make it for either class, and R = G⁺(x) − G⁻(x).

    Parameters
    ----------
    model : Model
        A classifier.
    volumes : list of Volume
        One per channel of the network; the first gives the grid of every result. Never changed.
    settings : CycleSettings
    lesion : Volume, optional
        A mask; the patch is laid around the midpoint of its largest part, unless the settings name a center. For a network that looks at whole images it chooses the slice.

    Yields
    ------
    Step
        With the preview ``relevance``, where there are several windows or slices.

    Returns
    -------
    Explanation
        Maps ``positive`` G⁺(x) and ``negative`` G⁻(x) (the input, with what the generators change added in the volume's units), ``relevance`` R, ``delta-positive``
        Δ⁺ = G⁺(x) − x and ``delta-negative`` (eq. 5 and 6, before any clamping, 0 outside what was looked at; of further channels ``relevance-2`` and so on); curve ``morph``;
        table ``classes``, and ``windows`` or ``slices`` where there are several.

    Raises
    ------
    MedXAIError
        For bad input, each in one sentence.

    Notes
    -----
    One pass of each generator. Where the image is larger than a patch and no place is named, windows overlap and their changes are blended with Gaussian weights;
    the probabilities are those of the window (or slice) in which the positive class is likeliest.
    """
    began = time.perf_counter()
    model.require_task("classification", "cycle")
    pair, record = pair_of(model, settings.explainer)
    if settings.label and None not in pair.sides:
        model.label_index(settings.label)  # one that the classifier does not have is refused with the closest
    run = _Run(model, volumes, settings, lesion, pair.towards(settings.label))
    with model.frozen():
        yield from run.look()
        result = run.result()
    result.provenance = provenance(
        "cycle",
        settings,
        model,
        volumes,
        explainer=record,
        **run.record(),
        seconds=round(time.perf_counter() - began, 3),
    )
    return result


@dataclass
class _View:
    """A part of the volume that the networks look at as one image."""

    prepared: Prepared
    start: tuple[int, int, int]  # where the volume that ``prepared`` was made of begins
    box: tuple[slice, ...]  # on the network's grid
    name: str  # of the slice or window


class _Run:
    def __init__(self, model, volumes, settings, lesion, pair):
        self.model, self.volumes, self.settings, self.pair = model, volumes, settings, pair
        self.volume, self.notes, self.center, self.patch = volumes[0], [], None, None
        self.labels, self.sides = pair.labels, pair.sides
        self.views = self._views(lesion)
        if model.package.input.size is not None and any(one.before or one.after for one in self.views[0].prepared.axes):
            self.notes.append("The image is smaller than the patch: what lies beyond its border was filled with its lowest value, which the classifier sees, and R at the border may come from that.")  # fmt: skip
        self._require_memory()

    # ---- where to look -----------------------------------------------------------------------------------------------

    def _views(self, lesion) -> list[_View]:
        model, volume, text = self.model, self.volume, self.settings.slice
        about = model.package.input
        patches = about.size is not None and about.fit != "resize"
        flat = about.spatial_dims == 2
        if len(self.volumes) == len(about.channels):  # else prepare says so
            for one in self.volumes:
                one.require_finite()
        center = None
        if self.settings.center_ras is not None:
            volume.voxel(ras=self.settings.center_ras)  # refused outside
            center = volume.ras_to_index(self.settings.center_ras)
            if lesion is not None:
                self.notes.append("A center was given, so the segment says nothing of where to look.")
        elif lesion is not None:
            center = _midpoint(mask_on_grid(lesion, volume))
        if center is not None and patches:
            if text.strip().lower() == "all":
                raise MedXAIError("A patch around a center lies on one slice; leave --slice or the center out.")
            self._require_slice(text, center)
            prepared, start, moved = patch_at(model, self.volumes, text, center)
            self.center, self.patch = volume.index_to_ras(center), (text, center)
            if moved:
                self.notes.append("The patch was moved so that it lies inside the image; the center asked for is not its middle.")  # fmt: skip
            name = f"{'kji'[plane_axis(model.package, volume)]}:{start[plane_axis(model.package, volume)]}" if flat else ""  # fmt: skip
            return [_View(prepared, start, tuple(np.s_[:n] for n in prepared.shape), name)]
        if center is not None and self.settings.center_ras is not None:
            self.notes.append("This network looks at the whole image; the center only chose the slice.")
        if flat and center is not None:
            self._require_slice(text, center)
        if flat and not text and center is not None:
            axis = plane_axis(model.package, volume)
            text = f"{'kji'[axis]}:{int(np.floor(center[axis] + 0.5))}"
        whole = []
        if flat and text.strip().lower() == "all":
            axis, first = plane_axis(model.package, volume), None
            for k in range(volume.shape[axis]):
                first = prepare(model, self.volumes, f"{'kji'[axis]}:{k}", first)
                whole.append(first)
        else:
            whole.append(prepare(model, self.volumes, text))
        found = []
        for one in whole:
            size = about.size if patches else one.shape
            boxes = [box for box, _ in windows(one.shape, size, self.settings.overlap)]
            for box in boxes:
                name = one.slice + (" at " + ", ".join(str(part.start) for part in box)) * (len(boxes) > 1)
                found.append(_View(one, (0, 0, 0), box, name.strip()))
        return found

    def _require_slice(self, text, center):
        """Refuse a slice that the center does not lie on."""
        if not text or text.strip().lower() == "all" or self.model.package.input.spatial_dims != 2:
            return
        axis, index = parse_slice(self.volume, text)
        if index != int(np.floor(center[axis] + 0.5)):
            name = f"{text.partition(':')[0]}:{int(np.floor(center[axis] + 0.5))}"
            raise MedXAIError(f"The center lies on slice {name}, and {text} was asked for; leave one of both out.")

    def _require_memory(self):
        """How many views are looked at in one pass; refused where not even one has room."""
        view = self.views[0].prepared.x[(..., *self.views[0].box)]
        # Numbers of 4 bytes at full resolution: what came from the way down, what joins it, and what a convolution makes of both.
        each = 4 * 6 * self.pair.filters * view[0, 0].numel()
        have = memory.available(self.model.device)
        if have is not None and each > have:
            raise MedXAIError(
                f"The generators need about {each / 2**30:.1f} GiB for {' × '.join(map(str, view.shape[2:]))} voxels, but {have / 2**30:.1f} GiB of "
                f"{self.model.device} memory are available; crop the volume.", kind="memory",
            )  # fmt: skip
        self.batch, self.need = max(1, min(16, BYTES // each)), each

    # ---- looking -----------------------------------------------------------------------------------------------------

    def look(self):
        """Every view through the generators and the classifier; a generator of steps."""
        model, views, kept = self.model, self.views, []
        # Changes on the network's grid, summed with the windows' weights; one for each prepared image.
        self.sums = {id(v.prepared): [torch.zeros_like(v.prepared.x), torch.zeros_like(v.prepared.x), None] for v in views}  # fmt: skip
        single = len(views) == len(self.sums)
        yield Step(0.0, f"Generating ({len(views)} image{'s' * (len(views) > 1)})")
        for start in range(0, len(views), self.batch):
            some = views[start : start + self.batch]
            x = torch.cat([v.prepared.x[(..., *v.box)] for v in some])
            up, down = self.pair.images(x)
            if not (torch.isfinite(up).all() and torch.isfinite(down).all()):
                raise MedXAIError(f"The explainer gives values that are not finite on '{self.volume.name}'; look at the volume's intensities.")  # fmt: skip
            if single:
                kept.append(self._asked(x, up, down))
            for n, view in enumerate(some):
                sums, at = self.sums[id(view.prepared)], (..., *view.box)
                weight = 1.0 if single else _weight(x.shape[2:], x.device)
                for total, made in zip(sums, (up, down)):
                    total[at] += weight * (made[n : n + 1] - x[n : n + 1])
                if not single:
                    sums[2] = torch.zeros_like(sums[0][:, :1]) if sums[2] is None else sums[2]
                    sums[2][at] += weight
            if self.batch < len(views):
                yield Step(0.9 * min(1, (start + len(some)) / len(views)), f"Image {start + len(some)} of {len(views)}", (), self._now)  # fmt: skip
        for start in range(0, 0 if single else len(views), self.batch):  # of windows, what is shown: the blended images
            some = views[start : start + self.batch]
            x, up, down = (torch.cat([one[(..., *v.box)] for one, v in zip(whole, some)]) for whole in (
                [v.prepared.x for v in some], *([self._change(v.prepared, n) for v in some] for n in (0, 1)),
            ))  # fmt: skip
            kept.append(self._asked(x, x + up, x + down))
        self.logits = torch.cat(kept, 1)
        self.odds = self.sides.log_odds(model, self.logits.flatten(0, 1)).reshape(3, -1)
        self.main = int(self.odds[0].argmax())
        view = views[self.main]
        self.x = view.prepared.x[(..., *view.box)]
        self.changes = [self._change(view.prepared, n)[(..., *view.box)] for n in (0, 1)]
        yield Step(0.95, "Checking")

    def _asked(self, x, up, down):
        """What the classifier answers to images, G⁺ and G⁻ of them; logits, shape (3, N, labels)."""
        with torch.no_grad():
            logits = self.model.logits(torch.cat([x, up, down]))
        if not torch.isfinite(logits).all():
            raise MedXAIError(f"'{self.model.package.name}' gives values that are not finite on '{self.volume.name}'; look at the volume's intensities and the 'intensity' in model.json.")  # fmt: skip
        return logits.reshape(3, len(x), -1)

    def _change(self, prepared, which):
        """Δ⁺ (0) or Δ⁻ (1) of a prepared image, (1, C, *spatial)."""
        sums = self.sums[id(prepared)]
        return sums[which] if sums[2] is None else sums[which] / sums[2].clamp(min=1e-6)

    def _now(self):
        return {"relevance": self._whole(lambda p: self._change(p, 0) - self._change(p, 1), 0, "relevance")}

    def _whole(self, change_of, channel, name) -> Volume:
        """A change on the volume's grid in its unit, 0 where nothing was looked at."""
        array, done = np.zeros(self.volume.shape, np.float32), set()
        for view in self.views:
            if id(view.prepared) in done:
                continue
            done.add(id(view.prepared))
            patch = view.prepared.change(change_of(view.prepared)[0, channel], (0,) * len(view.box))
            patch = Patch(patch.array, tuple(a + b for a, b in zip(patch.start, view.start)))
            array[patch.box] = patch.array
        return Volume(array, self.volume.ijk_to_ras, name, self.volume.unit)

    # ---- what is found -----------------------------------------------------------------------------------------------

    def result(self) -> Explanation:
        """The explanation with its self-checks."""
        model, (positive, negative) = self.model, self.labels
        result = Explanation("cycle", "Cycle-consistent activation maximization", notes=self.notes)
        unit = f" [{self.volume.unit}]" * bool(self.volume.unit)
        written = ([], [])
        for channel, volume in enumerate(self._channels()):
            end = f"-{channel + 1}" * bool(channel)
            up, down = (self._whole(lambda p, n=n: self._change(p, n), channel, f"delta-{name}{end}") for n, name in enumerate(("positive", "negative")))  # fmt: skip
            images = [volume.with_array(volume.array.astype(np.float32) + one.array, name + end) for one, name in ((up, "positive"), (down, "negative"))]  # fmt: skip
            relevance = Volume(up.array - down.array, self.volume.ijk_to_ras, "relevance" + end, self.volume.unit)
            high = self._scale(relevance.array)
            more = f", {model.package.input.channels[channel]}" * bool(channel)
            result.maps["relevance" + end] = Layer(relevance, "signed", f"R = G⁺ − G⁻{more}{unit}", -high, high)
            result.maps["positive" + end] = Layer(images[0], "image", f"G⁺: as {positive}{more}")
            result.maps["negative" + end] = Layer(images[1], "image", f"G⁻: as {negative}{more}")
            result.maps["delta-positive" + end] = Layer(up, "signed", f"Δ⁺ = G⁺ − x{more}{unit}", -high, high)
            result.maps["delta-negative" + end] = Layer(down, "signed", f"Δ⁻ = G⁻ − x{more}{unit}", -high, high)
            for some, one in zip(written, images):
                some.append(one)
        self._tables(result)
        self._checks(result, written)
        return result

    def _channels(self):
        first = self.views[0].prepared.channels
        if first[0].same_grid(self.volume):
            return [self.volume, *first[1:]]
        from ..models.resample import on_grid

        return [self.volume, *(on_grid(one, self.volume) for one in self.volumes[1:])]

    def _scale(self, array) -> float:
        inside = np.abs(array[self._box()])
        return float(np.percentile(inside, PERCENTILE)) or float(inside.max()) or 1.0

    def _box(self):
        """The part of the volume's grid that was looked at."""
        start, stop = self._ends()
        return tuple(np.s_[a:b] for a, b in zip(start, stop))

    def _ends(self, views=None):
        starts, stops = [], []
        for view in views or self.views:
            low, high = view.prepared.box_to_volume(
                [part.start or 0 for part in view.box], [part.stop for part in view.box]
            )
            starts.append(np.add(low, view.start))
            stops.append(np.add(high, view.start))
        return [int(v) for v in np.min(starts, 0)], [int(v) for v in np.max(stops, 0)]

    def _tables(self, result) -> None:
        model = self.model
        every = model.probabilities(self.logits[:, self.main])
        columns = {"label": list(model.labels)}
        for name, row in zip(("probability", "probability_positive", "probability_negative"), every):
            columns[name] = row.tolist()
        result.tables["classes"] = Table("Classes", columns)
        odds = self.odds[:, self.main]
        p = torch.sigmoid(odds)
        for name, value in zip(("", "_positive", "_negative"), p.tolist()):
            result.scores[f"probability{name}"] = value
        for name, value in zip(("", "_positive", "_negative"), odds.tolist()):
            result.scores[f"log_odds{name}"] = value
        main = self.logits[:, self.main]
        result.scores["flipped"] = int(self.sides.flipped(model, main[:1], main[1:2], main[2:]))
        result.scores["images"] = len(self.views)
        if len(self.views) > 1:
            kind = "slices" if len(self.sums) == len(self.views) else "windows"
            shares = torch.sigmoid(self.odds)
            rows = {kind[:-1]: [view.name for view in self.views]}
            centers = [self.volume.index_to_ras((np.add(*self._ends([view])) - 1) / 2) for view in self.views]
            rows |= {name: [round(center[n], 2) for center in centers] for n, name in enumerate("ras")}
            rows |= {f"probability{name}": row.tolist() for name, row in zip(("", "_positive", "_negative"), shares)}
            flips = self.sides.flipped(model, *self.logits)
            rows["flipped"] = [int(one) for one in flips]
            result.tables[kind] = Table(kind.capitalize(), rows)
            place = ", ".join(f"{v:.1f}" for v in centers[self.main])
            self.notes.append(
                f"{len(self.views)} {kind} were looked at, and in {int(flips.sum())} of them the class changes; probabilities, checks and the curve are those of the one in which "
                f"'{self.labels[0]}' is likeliest ({self.views[self.main].name}, RAS {place})" + (", which a patch around a center may see otherwise (--center-ras)." if kind == "windows" else ".")
            )  # fmt: skip

    def _checks(self, result, written) -> None:
        model, sides, main = self.model, self.sides, self.logits[:, self.main]
        x, (up, down), odds = self.x, self.changes, self.odds[:, self.main]
        positive = bool(sides.is_positive(main[:1]))
        # Asked about: the places of the morph, a few voxels carried over to the other class, and the images as they are written.
        other = down if positive else up
        top, drawn = _focus((up - down).abs(), other, FOCUS)
        between = [x + max(t, 0) * up + max(-t, 0) * down for t in POSITIONS if t not in (-1, 0, 1)]
        with torch.no_grad():
            images = torch.cat([*between, x + top, x + drawn, *self._again(written)])
            answers = torch.cat([model.logits(some) for some in images.split(AT_ONCE)])
        asked, against = (sides.log_odds(model, answers, side) for side in (True, not positive))
        known = dict(zip([t for t in POSITIONS if t not in (-1, 0, 1)], asked.tolist()))
        known |= {0: float(odds[0]), 1: float(odds[1]), -1: float(odds[2])}
        morph = np.array([known[t] for t in POSITIONS])
        result.curves["morph"] = Curve(
            f"From {self.labels[1]} to {self.labels[0]}", "position",
            {"position": np.array(POSITIONS), "probability": expit(morph), "log_odds": morph},
            "G⁻ (−1), x (0), G⁺ (1)", f"Probability of {self.labels[0]}", shown=("probability",), limits=(0.0, 1.0),
        )  # fmt: skip
        checks, notes = result.self_checks, result.notes
        to_negative = sides.log_odds(model, main, False)
        gain, loss = float(odds[1] - odds[0]), float(to_negative[2] - to_negative[0])
        checks["both_ways"] = {
            "value": min(gain, loss), "passed": min(gain, loss) > 0,
            "meaning": f"By how much G⁺ raises the log-odds of '{self.labels[0]}' and G⁻ those of '{self.labels[1]}', the smaller of both; passed above 0.",
        }  # fmt: skip
        checks["flipped"] = {
            "value": result.scores["flipped"], "passed": bool(result.scores["flipped"]),
            "meaning": "Whether the classifier answers the other class to the image made towards it (1) or not (0).",
        }  # fmt: skip
        towards = to_negative if positive else odds
        begin, whole = float(towards[0]), float(towards[2 if positive else 1] - towards[0])
        shares = [(float(one) - begin) / whole if abs(whole) > 1e-6 else math.nan for one in against[-4:-2]]
        checks["more_than_elsewhere"] = {
            "value": shares[0] - shares[1] if math.isfinite(shares[0]) else None,
            "passed": None if not math.isfinite(shares[0]) else shares[0] > shares[1],
            "meaning": f"Of the change of the log-odds towards the other class, the share that the {FOCUS:.0%} of the voxels with the largest |R| make alone, less the "
            "share that as many others, drawn at random, make; passed above 0.",
        }  # fmt: skip
        checks["known_intensities"] = self._known(x)
        checks["written_image"] = self._written(asked[-2:], odds)
        if self.settings.cycle_check:
            checks["cycle"] = self._cycled(x, up, down)
        if checks["both_ways"]["passed"] is False:
            notes.append("The generators do not push this image to both classes; R says little about it.")
        elif not checks["flipped"]["passed"]:
            notes.append(
                "The classifier does not answer the other class to the image made towards it: R shows the direction, not all of the way."
            )
        if checks["written_image"]["passed"] is False:
            notes.append(
                f"On the images as they are written the log-odds lie up to {checks['written_image']['value']:.2g} from those told here: resampling to the volume's voxels, or clipping, takes some of the "
                "change away."
            )
        if checks["known_intensities"]["passed"] is False:
            notes.insert(
                0,
                "The intensities differ from those of the images that the explainer was trained on; what it makes of them may mean nothing.",
            )

    def _known(self, x) -> dict:
        about, far = self.pair.about, 0.0
        for value, (low, high) in ((float(x.mean()), about.mean), (float(x.std()), about.sd)):
            far = max(far, (low - value) / (high - low or 1.0), (value - high) / (high - low or 1.0))
        return {
            "value": far, "passed": far <= 0.25,
            "meaning": "How far mean and SD of the image lie outside the range of the training images (1st to 99th percentile), in ranges; passed up to 0.25.",
        }  # fmt: skip

    def _again(self, written) -> list:
        """The written volumes as the network gets them."""
        view, found = self.views[self.main], []
        for volumes in written:
            if self.patch is None:
                again = prepare(self.model, volumes, view.prepared.slice)
            else:
                again = patch_at(self.model, volumes, *self.patch)[0]
            found.append(again.x[(..., *view.box)])
        return found

    def _written(self, asked, odds) -> dict:
        """What the network answers on the volumes as they are written."""
        value = float((asked - odds[1:]).abs().max())
        return {
            "value": value, "passed": value <= 0.1 * float(odds[1] - odds[2]) + 1e-3,
            "meaning": "How far the log-odds on the written images G⁺ and G⁻, prepared anew, lie from those of the generators' output; resampling, and clipping of intensities, "
            "part them. Passed within a tenth of their difference.",
        }  # fmt: skip

    def _cycled(self, x, up, down) -> dict:
        error = max(cycle_errors(x, self.pair.back(x + up, x + down), self.pair.about.data_range))
        return {
            "value": error, "passed": error < 0.05,
            "meaning": "½ (mean absolute difference + DSSIM) between the image and what comes back when it went through both generators (eq. 2), the larger of both "
            "orders; passed below 0.05.",
        }  # fmt: skip

    def record(self) -> dict:
        """For the provenance."""
        start, stop = self._ends()
        view = self.views[self.main]
        size = [n * mm for n, mm in zip(np.subtract(stop, start), self.volume.spacing[::-1])]
        every = self.model.probabilities(self.logits[:1, self.main])[0]
        several = len(self.sums) > 1
        return dict(
            label=self.labels[0], negative=self.labels[1], predicted=self.model.labels[int(every.argmax())], slice="all" if several else view.name.split(" at ")[0],
            center_ras=self.center, patch={"start": start, "stop": stop, "size_mm": [round(float(mm), 3) for mm in size]}, images=len(self.views),
            likeliest=dict(zip(("start", "stop"), self._ends([view]))), bytes_stated=self.need, preparation=view.prepared.record(),
        )  # fmt: skip


def _midpoint(mask: np.ndarray) -> list[float]:
    """The middle of the box around the largest part of a mask, (k, j, i)."""
    labels, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    box = ndimage.find_objects(labels)[int(np.bincount(labels.ravel())[1:].argmax())]
    return [(part.start + part.stop - 1) / 2 for part in box]


def _weight(shape, device) -> torch.Tensor:
    """Gaussian weight of a window, 1 in the middle; SD an eighth of the edge, as MONAI's."""
    result = torch.ones((), device=device)
    for axis, n in enumerate(shape):
        at = torch.arange(n, device=device, dtype=torch.float32) - (n - 1) / 2
        one = torch.exp(-0.5 * (at / (n / 8)) ** 2).clamp(min=1e-3)
        result = result[..., None] * one if axis else one
    return result


def _focus(size, change, share) -> tuple[torch.Tensor, torch.Tensor]:
    """A change where ``size`` is largest, and as many of its other voxels drawn at random (always the same); (1, C, *spatial)."""
    magnitude = size.amax(1).flatten()
    count = max(1, round(share * len(magnitude)))
    order = magnitude.argsort(descending=True, stable=True)
    random = torch.randperm(len(order) - count, generator=torch.Generator().manual_seed(0))[:count].to(order.device) + count  # fmt: skip
    found = []
    for chosen in (order[:count], order[random]):
        inside = torch.zeros(len(magnitude), device=change.device)
        inside[chosen] = 1
        found.append(change * inside.reshape(size.shape[2:]))
    return tuple(found)
