"""The smallest region whose inpainting removes the class that a classifier sees (Major et al. 2020)."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn import functional

from ..errors import MedXAIError
from ..explanation import Curve, Explanation, Layer, Patch, Point, Step, Steps, Table
from ..models import memory, prepare
from ..models.geometry import fullest_slice
from ..models.inpainter import Inpainter, fallback
from ..models.model import CLAMP
from ..package import Intensity
from ..settings import CounterfactualSettings
from ..volume import Volume, mask_on_grid
from .ability import annotation as on_lattice
from .deletion import Deletion, surroundings
from .impact_checks import PARTS, Asking, kept, split
from .phases import during
from .provenance import provenance

REFINED = 20  # times at most that a written image is prepared again and what was lost in resampling is added


def counterfactual(
    model,
    volumes: list[Volume],
    settings: CounterfactualSettings,
    organ: Volume | None = None,
    annotation: Volume | None = None,
    start: Volume | None = None,
) -> Steps:
    """Find the region whose inpainting makes the class vanish, and show the image without it.

    Minimises λ₁ (φ + ψ) + λ₂ tv + λ₃ ar over the deleted share S with Adam, where φ = −log(1 − p(c|π)) and ψ = log odds(π) − log odds(I) (section 2, with the
    signs by which the class becomes less likely), π = (1 − S) ⊙ I + S ⊙ inpainted, and tv and ar as in `deletion`. The inpainter gets binary holes, S > θ. Where S is at or
    below θ, π blends towards what the inpainter makes of the voxel from its surroundings alone (`surroundings`, made once): so the gradient also says
    which voxels would be worth deleting. A hole is constant in S almost everywhere, so the gradient passes through the blend, not through the inpainter.

    Parameters
    ----------
    model : Model
        A classifier.
    volumes : list of Volume
        One per channel of the network; the first gives the grid of every result. Never changed.
    settings : CounterfactualSettings
    organ : Volume, optional
        Mask within which something may be deleted; all of the image without it.
    annotation : Volume, optional
        Mask of the finding as a person drew it, on the lattice of the first volume. It chooses the slice, and is taken into the organ; the search does not
        know it. `evaluation.judged` tells its distances to the region.
    start : Volume, optional
        The map ``mask`` of an earlier run, to go on from.

    Yields
    ------
    Step
        With points of the curve ``optimisation`` and the previews ``mask`` and ``inpainted`` of the start that is best so far.

    Returns
    -------
    Explanation
        Maps ``mask`` (S), ``inpainted`` (the input with the region inpainted, in the volume's units, other voxels as they were; of further channels ``inpainted-2`` and so on) and ``difference``; mask ``region``
        (S > θ); curve ``optimisation``; tables ``classes`` and ``components``.

    Raises
    ------
    MedXAIError
        For bad input, each in one sentence.
    """
    began = time.perf_counter()
    model.require_task("classification", "counterfactual")
    run = yield from _Run.begin(model, volumes, settings, organ, annotation, start)
    with model.frozen():
        yield from run.neighbourhoods()
        yield from run.optimise()
        yield Step(0.9, "Cutting the region out")
        result = yield from run.result()
    result.provenance = provenance(
        "counterfactual", settings, model, volumes, **run.record(), seconds=round(time.perf_counter() - began, 3)
    )
    return result


class _Run:
    """One image with what is deleted of it."""

    @classmethod
    def begin(cls, model, volumes, settings, organ, annotation, start):
        """Look at the input and at what the network answers; a generator of steps that ends with the run."""
        self = cls()
        self.model, self.settings, self.volume = model, settings, volumes[0]
        inpainter = Inpainter(settings.inpainter, str(model.device)) if settings.inpainter else None
        truth = None if annotation is None else on_lattice(annotation, self.volume)
        if truth is not None and not truth.any():
            raise MedXAIError(f"The annotation '{annotation.name}' is empty; draw it or leave it out.")
        allowed = None if organ is None else mask_on_grid(organ, self.volume)
        self.notes, self._shown = [], False
        if allowed is not None and truth is not None and (truth & ~allowed).any():
            allowed = allowed | truth
            self.notes.append("The organ left out some of the annotation (as label maps do); it was taken in.")
        chosen = settings.slice
        for mask in (truth, allowed):
            if not chosen and mask is not None and mask.any() and model.package.input.spatial_dims == 2:
                chosen = fullest_slice(model.package, self.volume, mask)
        self.prepared = prepare(model, volumes, chosen)
        self.organ_name = None if organ is None else organ.name
        shape, device = self.prepared.shape, model.device
        inside = np.zeros(shape, bool)
        inside[self.prepared.valid] = True
        if allowed is not None:
            inside = self.prepared.mask_to_network(allowed)
            if not inside.any():
                where = "the network's grid; choose a larger one"
                if self.prepared.slice:
                    where = f"slice {self.prepared.slice}; choose another slice or organ"
                raise MedXAIError(f"The organ '{organ.name}' has no voxel on {where}.")
        self.organ = torch.from_numpy(inside).to(device)
        if inpainter is None:
            self.fill = fallback(settings.fill, self.prepared, self.organ, settings.seed)
            self.inpainter = {"name": settings.fill, "sha256": None, "fallback": True}
        else:
            self.fill, self.inpainter = inpainter.bind(model, self.prepared, volumes), inpainter.record()
            self.notes += inpainter.doubts(model)
        self.start = [volume.array for volume in self.prepared.channels]
        self._require_memory()
        yield Step(0.0, f"Asking the network (about {self.need / 2**20:,.0f} MiB)")
        with model.frozen():
            self._ask()
        self.spacing = [abs(one.step) * self.volume.spacing[2 - one.axis] for one in self.prepared.axes]
        self.deletion = Deletion(
            self.organ, self.spacing, settings.mask_nodes, settings.theta, settings.restarts, allowed is None
        )
        self.edges = self.deletion.edges
        if start is not None:
            self.deletion.start_from(torch.from_numpy(_on_network(start, self.volume, self.prepared)))
        self.warm = start is not None
        return self

    def _require_memory(self):
        """Say what is needed, and refuse what does not fit, before anything is computed."""
        settings, shape = self.settings, self.prepared.shape
        try:
            self.need = self.model.estimate_bytes(shape, gradient=True) * settings.restarts
        except MedXAIError:  # a program of one size cannot be looked at in a small one
            self.need = 0
        self.need += self.fill.bytes(settings.restarts) + 12 * 4 * settings.restarts * self.prepared.x.numel()
        have = memory.available(self.model.device)
        if have is not None and self.need > have:
            raise MedXAIError(
                f"This needs about {self.need / 2**30:.1f} GiB, but {have / 2**30:.1f} GiB of {self.model.device} memory are available; lower the"
                " restarts (--restarts), or crop the volume.", kind="memory",
            )  # fmt: skip

    def _ask(self):
        """What the network answers; refused where the class is not there, or nothing can be learned from it."""
        model, names = self.model, self.model.labels
        x = self.prepared.x.detach().clone().requires_grad_()
        with torch.enable_grad():
            logits = model.logits(x)
        self.logits = logits.detach()
        if not torch.isfinite(self.logits).all():
            raise MedXAIError(
                f"'{model.package.name}' gives values that are not finite on '{self.volume.name}'; look at the volume's intensities and the"
                " 'intensity' in model.json."
            )
        probability = model.probabilities(self.logits)[0]
        top = int(probability.argmax())
        self.predicted = names[top]
        self.label = model.label_index(self.settings.label) if self.settings.label else top
        self.probability = float(probability[self.label])
        softmax = model.package.output.activation == "softmax"
        if self.label != top if softmax else self.probability <= 0.5:
            instead = (
                f"the network answers '{names[top]}' ({float(probability[top]):.3g})" if softmax else "0.5 is needed"
            )
            raise MedXAIError(
                f"'{names[self.label]}' is not what '{model.package.name}' sees in '{self.volume.name}': its probability is {self.probability:.3g},"
                f" and {instead}; there is nothing to remove, so choose a class that is seen (--label).", kind="absent",
            )  # fmt: skip
        with torch.enable_grad():
            odds = model.log_odds(logits, self.label)
        self.before = odds.detach()
        slope = model.gradient(odds.sum(), x) if odds.requires_grad else None
        if slope is None or not torch.isfinite(slope).all() or float(slope.abs().max()) == 0:
            if model.package.output.activation == "none" and self.probability > 1 - 2 * CLAMP:
                raise MedXAIError(
                    f"'{model.package.name}' is so sure of '{names[self.label]}' ({self.probability:.7g}) that its probabilities tell no change; export it with"
                    " its logits as output, and say softmax or sigmoid in model.json."
                )
            raise MedXAIError(
                f"'{model.package.name}' has no usable gradient of '{names[self.label]}' with respect to the image (it is zero, not finite, or cut off by"
                " rounding or thresholds), and counterfactual follows it; choose another network, or another image."
            )

    # ---- the search --------------------------------------------------------------------------------------------------

    def neighbourhoods(self):
        """What the surroundings say of every voxel, one image for each start; a generator of steps."""
        found, count = [], len(self.edges)
        for number, edge in enumerate(self.edges):
            making = surroundings(self.fill, self.prepared.shape, edge, self.organ, count)
            found.append((yield from during(making, 0.02 + 0.08 * number / count, 0.02 + 0.08 * (number + 1) / count)))
        self.guess = torch.cat(found)

    def optimise(self):
        """Adam on the mask's nodes; a generator of steps."""
        settings, deletion, x = self.settings, self.deletion, self.prepared.x
        adam = torch.optim.Adam([deletion.field], lr=settings.learning_rate)
        holes, self.history = None, {name: [] for name in ("probability", "area", "loss")}
        for step in range(settings.steps + 1):
            with torch.enable_grad():
                share = deletion.share()
                region = share.detach() > settings.theta
                if holes is None or not torch.equal(region, holes):  # asked anew only when a hole has changed
                    holes, self.filled = region, self.fill.fill(region)
                    target = torch.where(holes, self.filled, self.guess)
                blend = torch.lerp(x, target, share)
                odds = self.model.log_odds(self.model.logits(blend), self.label)
                loss = self.loss(odds, share)
            if not torch.isfinite(loss).all():
                raise MedXAIError(
                    f"What '{self.model.package.name}' answers is no longer finite at step {step}; lower the learning rate (--learning-rate) or look at the"
                    " 'intensity' in model.json."
                )
            yield self._step(step, odds.detach(), loss.detach(), share.detach(), target)
            if step == 0:
                self.first = share.detach()[:1], region[:1], self.filled[:1]
            if step == settings.steps:
                break
            try:
                (deletion.field.grad,) = torch.autograd.grad(loss.sum(), deletion.field)
            except RuntimeError as error:
                raise self.model.refusal(error, x) from error
            adam.step()
            deletion.clamp()
        self.share, self.region, self.soft = share.detach(), region, odds.detach()

    def loss(self, odds, share):
        """λ₁ (φ + ψ) + λ₂ tv + λ₃ ar, shape (starts,)."""
        settings, deletion = self.settings, self.deletion
        score = functional.softplus(odds) + odds - self.before  # −log(1 − p) is softplus of the log-odds
        return (
            settings.lambda_score * score
            + settings.lambda_tv * deletion.border(share)
            + settings.lambda_area * deletion.area(share)
        )

    def _step(self, step, odds, loss, share, target):
        """Keeps what is known of every start, and tells of the one that is best now."""
        best = int(loss.argmin())
        known = (torch.sigmoid(odds), share.flatten(1).sum(1) / self.organ.sum(), loss)
        values = {}
        for (name, rows), row in zip(self.history.items(), torch.stack(known).tolist()):
            rows.append(row)
            values[name] = row[best]

        def now():
            first, self._shown = not self._shown, True
            mask = self.prepared.map(share[best, 0], (0,) * self.organ.ndim)
            change = self._replaced(target[best], mask, 0)
            if first:
                return {"mask": self._whole(mask, "mask", ""), "inpainted": self._changed(change, 0)}
            return {"mask": mask, "inpainted": Patch(self.start[0][change.box] + change.array, change.start)}

        told = f"Step {step} of {self.settings.steps}: probability {values['probability']:.3f}"
        return Step(
            0.1 + 0.8 * step / self.settings.steps,
            told,
            (Point("optimisation", step, values | {"before": self.probability}),),
            now,
        )

    # ---- what is found -----------------------------------------------------------------------------------------------

    def result(self):
        """The explanation with its self-checks; a generator of steps."""
        model, prepared, label, x = self.model, self.prepared, self.label, self.prepared.x
        shares, regions, filled = self.share, self.region, self.filled
        if self.warm:  # what a run went on from is not given up for something worse
            shares, regions, filled = (torch.cat(both) for both in zip((shares, regions, filled), self.first))
        with torch.no_grad():
            images = torch.where(regions, filled, x)
            logits = model.logits(images)
        odds = model.log_odds(logits, label)
        self.best = best = int(self.loss(odds, regions.float()).argmin())
        start = min(best, len(self.share) - 1)
        if best > start:
            self.notes.append("Nothing better than the start was found with these weights; its mask is kept.")
        region, image = regions[best, 0], images[best : best + 1]
        self.crossed = bool(region.any())
        drop = float(self.before - odds[best])
        result = Explanation("counterfactual", "Counterfactual impact", notes=self.notes)
        origin = (0,) * region.ndim
        share = self.prepared.map(shares[best, 0], origin)
        result.maps["mask"] = Layer(
            self._whole(share, "mask", ""), "probability", "Deleted share", 0.0, 1.0, least=0.05
        )
        mask = self._whole(prepared.mask(region, origin), "region", "")
        result.masks["region"] = mask
        inpainted, changes = self._written_images(image[0], region, mask)
        for channel, volume in enumerate(inpainted):
            title = f"Without {model.labels[label]}" + f", {model.package.input.channels[channel]}" * bool(channel)
            result.maps[volume.name] = Layer(volume, "image", title)
        difference = self._whole(changes[0], "difference", self.volume.unit)
        unit = f" [{self.volume.unit}]" * bool(self.volume.unit)
        high = float(np.abs(difference.array).max()) or 1.0
        result.maps["difference"] = Layer(difference, "signed", f"Inpainted − input{unit}", -high, high)
        columns = {"step": np.arange(len(self.history["loss"]), dtype=float)}
        columns |= {name: np.array(rows)[:, start] for name, rows in self.history.items()}
        result.curves["optimisation"] = Curve(
            "Optimisation", "step", columns, "Step", f"Probability of {model.labels[label]}, share deleted",
            shown=("probability", "area"), limits=(0.0, 1.0),
        )  # fmt: skip
        before, after = model.probabilities(self.logits)[0], model.probabilities(logits[best : best + 1])[0]
        result.tables["classes"] = Table(
            "Classes",
            {
                "label": list(model.labels),
                "logit": self.logits[0].tolist(),
                "probability": before.tolist(),
                "logit_after": logits[best].tolist(),
                "probability_after": after.tolist(),
            },
        )
        result.scores.update(
            probability_before=float(before[label]),
            probability_after=float(after[label]),
            log_odds_before=float(self.before),
            log_odds_after=float(odds[best]),
            area_share=float(region.sum() / self.organ.sum()),
        )
        size, name = self._voxel_size()
        result.scores[f"area_{name}"] = float(mask.array.sum()) * size
        ask = Asking(model, label, self.before, self.fill, x, self.organ, self.settings.restarts)
        yield Step(0.91, "Looking at each part")
        result.tables["components"] = self._components(ask, region, drop, size, name)
        result.scores["components"] = self.parts
        checks = result.self_checks
        checks["drop_kept"] = kept(float(self.before), float(self.soft[start]), float(odds[best]), self.crossed)
        checks["more_than_elsewhere"] = yield from during(ask.elsewhere(region, drop, self.settings.seed), 0.92, 0.97)
        checks["complement_keeps_class"] = ask.complement(region, self.guess[start : start + 1])
        checks["hole_content_invariance"] = ask.content(region)
        checks["written_image"] = self._written(inpainted, float(odds[best]))
        self._tell(result, region)
        return result

    def _components(self, ask, region, drop, size, name) -> Table:
        """What the region's parts (full connectivity) are, the largest first, and how much of the drop each makes alone."""
        parts, self.parts = split(region)
        drops = ask.drops(torch.stack(parts)[:, None]) if parts else []
        rows = {title: [] for title in ("component", "voxels", name, "r", "a", "s", "share_of_drop")}
        for number, (part, one) in enumerate(zip(parts, drops), 1):
            patch = self.prepared.mask(part, (0,) * part.ndim)
            at = np.argwhere(patch.array)
            centre = self.volume.index_to_ras(np.add(at.mean(0), patch.start)) if len(at) else (np.nan,) * 3
            values = (number, len(at), len(at) * size, *centre, float(one) / drop if drop > 0 else np.nan)
            for column, value in zip(rows.values(), values):
                column.append(value)
        return Table("Parts of the region", rows)

    def _written(self, inpainted: list[Volume], odds: float) -> dict:
        """What the network answers on the volumes as they are written."""
        again = prepare(self.model, inpainted, self.prepared.slice)
        with torch.no_grad():
            value = abs(float(self.model.log_odds(self.model.logits(again.x), self.label)) - odds)
        drop = abs(float(self.before) - odds)
        return {
            "value": value,
            "passed": value <= 0.1 * drop + 1e-3,
            "meaning": "How far the log-odds on the written image, prepared anew, lie from those that were reached; resampling and statistics of the"
            " image part them. Passed within a tenth of the drop.",
        }

    def _tell(self, result, region) -> None:
        settings, notes = self.settings, result.notes
        if self.inpainter["fallback"]:
            notes.append(
                f"No inpainter was given: the region was filled with a fall-back ({settings.fill}), which leaves traces that no real image has;"
                " what the network makes of them may say nothing about the finding. Train one (medxai train inpainter)."
            )
        if not self.crossed:
            notes.append(
                f"No voxel crossed θ = {settings.theta:g}: there is no region. Lower the weights of border and area (--lambda-tv, --lambda-area), or"
                " take more steps or a higher learning rate."
            )
        if self.parts > PARTS:
            notes.append(f"The region has {self.parts} parts; the {PARTS} largest were looked at one by one.")
        if result.self_checks["written_image"]["passed"] is False:
            notes.append(
                "On the written image the network answers otherwise than on the one that was searched: the figures are those of the search, not of the picture."
            )
        if result.scores["area_share"] > 0.25:
            notes.append(
                f"The region takes {result.scores['area_share']:.0%} of the organ or image: hardly the smallest one. Raise --lambda-area; or the class is"
                " nowhere in particular."
            )
        if self.crossed and float(result.scores["log_odds_after"]) > 0:
            notes.append(
                f"The class has not vanished: its probability is {result.scores['probability_after']:.3g} without the region."
            )

    def record(self) -> dict:
        """For the provenance."""
        return dict(
            label=self.model.labels[self.label], predicted=self.predicted, inpainter=self.inpainter, slice=self.prepared.slice,
            restart=self.best, starts=[[round(one, 2) for one in edge] for edge in self.edges], nodes=list(self.deletion.nodes), crossed=self.crossed,
            warm_start=self.warm, organ=self.organ_name, spacing_mm=[round(mm, 6) for mm in self.spacing], bytes_stated=self.need,
            preparation=self.prepared.record(),
        )  # fmt: skip

    # ---- grids -------------------------------------------------------------------------------------------------------

    def _whole(self, patch: Patch, name: str, unit: str) -> Volume:
        array = np.zeros(self.volume.shape, patch.array.dtype)
        array[patch.box] = patch.array
        return Volume(array, self.volume.ijk_to_ras, name, unit)

    def _written_images(self, image, region, mask: Volume) -> tuple[list[Volume], list[Patch]]:
        """Each channel with the region of an image (C, *spatial) in it, and what was changed; outside ``mask``, the region on the volume's grid, nothing is.

        Where the network resamples, what is put in is smoother than what the network was shown; what is lost is added until it comes back.
        """
        channels, origin = range(len(self.start)), (0,) * region.ndim
        inside = Patch((mask.array > 0).astype(np.float32), (0, 0, 0))
        changes = [self._replaced(image, inside, channel) for channel in channels]
        for turn in range(REFINED):
            volumes = [self._changed(changes[channel], channel) for channel in channels]
            if self.prepared.exact or turn + 1 == REFINED:
                break
            now, most = _in_volume_units(self.model, volumes, self.prepared), 0.0
            for channel, change in enumerate(changes):
                rule = self.prepared.intensity[channel]
                lost = torch.where(region, (image[channel] - rule.offset) / rule.scale - now[channel], 0)
                more = self.prepared.map(lost, origin)
                change.array[:] += more.array * inside.array[more.box]
                size = float(np.abs(change.array).max(initial=0)) or 1.0
                most = max(most, float(np.abs(more.array).max(initial=0)) / size)
            if most < 1e-3:
                break
        return volumes, changes

    def _replaced(self, image, share: Patch, channel: int) -> Patch:
        """What putting an image (C, *spatial, network units) in the volume's place changes, times a share of 0 to 1 on the volume's grid.

        In the volume's units and from its own voxels: neither what the network's window cuts off nor what is finer than its grid is left behind.
        """
        rule = self.prepared.intensity[channel]
        patch = self.prepared.map((image[channel] - rule.offset) / rule.scale, (0,) * self.organ.ndim)
        part = share.array if share.array.shape == patch.array.shape else share.array[patch.box]
        return Patch(part * (patch.array - self.start[channel][patch.box]), patch.start)

    def _changed(self, change: Patch, channel: int) -> Volume:
        """A channel with a change; where there is none, the voxels are what they were."""
        array = self.start[channel].astype(np.float32)
        array[change.box] += change.array
        return self.prepared.channels[channel].with_array(array, "inpainted" + f"-{channel + 1}" * bool(channel))

    def _voxel_size(self) -> tuple[float, str]:
        """Size of a voxel of the volume, and its unit: in 3-D its volume, in 2-D its area on the slice."""
        axes = [one.axis for one in self.prepared.axes]
        size = float(np.prod([self.volume.spacing[2 - axis] for axis in axes]))
        return size, f"mm{len(axes)}"


def _in_volume_units(model, volumes, prepared) -> torch.Tensor:
    """The volumes on the network's grid in their own units, shape (C, *spatial): what the network takes, before intensities are scaled and cut."""
    about = model.package.input
    package = replace(model.package, input=replace(about, intensity=(Intensity("none"),) * len(about.channels)))
    return prepare(SimpleNamespace(package=package, device=model.device), volumes, prepared.slice).x[0]


def _on_network(start: Volume, volume: Volume, prepared) -> np.ndarray:
    """A mask of 0 to 1 on the volume's grid, nearest neighbour, on the grid of the network."""
    if not start.same_grid(volume):
        raise MedXAIError(
            f"The start '{start.name}' lies on another grid than '{volume.name}'; give the mask of a run on it."
        )
    values = start.array.astype(np.float32)
    if not (values.min() >= 0 and values.max() <= 1):
        raise MedXAIError(f"The start '{start.name}' holds values from {values.min():g} to {values.max():g}, and a mask goes from 0 to 1; give the mask.nrrd of a run.")  # fmt: skip
    levels = prepared.values_to_network(values)
    if not levels.any():
        raise MedXAIError(f"The start '{start.name}' is empty where the network looks; give the mask of a run on the same slice, or leave it out.")  # fmt: skip
    return levels
