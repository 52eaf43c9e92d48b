"""The cases of a study of `counterfactual`: what each holds, how a region of it is measured, and which are done."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from .. import __version__, io, methods
from ..cases import incomplete, pairs
from ..errors import MedXAIError
from ..explanation import Point, Step, part
from ..methods.ability import annotation
from ..models import Prepared, prepare
from ..models.geometry import fullest_slice
from ..package import Package
from ..resume import Log, each_case, none_used
from ..settings import CounterfactualSettings
from ..volume import Volume
from .localisation import area_ratio, dice, distance, hausdorff, hit

EMPTY = "An empty region has no D, H, A or O: it is left out of their means and pairs and counted; it has Dice 0 and is no hit."


class Study:
    """The cases of a folder: what each is, which are done, and what to say of those that could not be used."""

    def __init__(self, model, folder, settings, segment, organ, more, kind, log):
        model.require_task("classification", "counterfactual")
        package = model.package
        if len(package.input.channels) > 1:
            raise MedXAIError(
                f"'{package.name}' takes {len(package.input.channels)} channels ({', '.join(package.input.channels)}), and a case of a cohort is "
                "one image with its mask; run its cases one by one."
            )
        self.model, self.folder, self.segment, self.organ = model, Path(folder), segment, organ
        self.label = model.label_index(settings.label)
        self.settings, self.named = replace(settings, label=model.labels[self.label]), bool(settings.label)
        self.inpainter = {"name": settings.fill, "sha256": None, "fallback": True}
        if settings.inpainter:
            other = Package.read(settings.inpainter)
            self.inpainter = {"name": other.name, "sha256": other.sha256 or other.verify(), "fallback": False}
        self.listed, self.skipped = pairs(self.folder), incomplete(self.folder)
        self.log = Log(log, {
            "kind": kind, "version": __version__, "model": package.sha256 or package.verify(), "inpainter": self.inpainter["sha256"],
            "segment": segment or "", "organ": organ or "", **more,
            **{name: value for name, value in self.settings.to_json().items() if name != "inpainter"},  # known by its SHA-256
        })  # fmt: skip

    def each(self, work):
        """Steps over the cases, `work` for each; ends with the rows, what was skipped, and how many were there already."""
        yield Step(0.0, "Looking for cases")
        skipped = dict(self.skipped)
        rows, resumed = yield from each_case(
            self.listed, self.log, skipped,
            lambda paths: self._row(paths, work),
            lambda row, n: (Point("distances", n, {"D": number(row.get("ours", {}).get("D"))}),),
            lambda row: row["state"] == "done",  # the others take one question to the network
        )  # fmt: skip
        if not any(row["state"] == "done" for row in rows):
            self._refuse(rows, skipped)
        return rows, skipped, resumed

    def _refuse(self, rows, skipped):
        name, label = self.model.package.name, self.model.labels[self.label]
        if rows:
            best = max(rows, key=lambda row: row["probability_before"])
            raise MedXAIError(
                f"'{name}' answers '{label}' in none of the {len(rows)} cases in '{self.folder}' (the nearest: {best['case']}, probability "
                f"{best['probability_before']:.3g}), so there is nothing to explain; choose another class (--label)."
            )
        raise none_used(skipped, self.skipped, self.folder)

    def _row(self, paths, work):
        began = time.perf_counter()
        yield Step(0.0, "Reading")
        case, row = Case.read(self, paths), {"state": "not predicted"}
        row |= {"slice": case.prepared.slice, "probability_before": case.probability}
        if case.predicted:
            row |= {"state": "done", **(yield from work(case))}
        return row | {"seconds": round(time.perf_counter() - began, 3)}

    def notes(self, result, rows, skipped) -> None:
        """What a reader must know of the cases and of the inpainter."""
        label = self.settings.label
        if self.inpainter["fallback"]:
            result.notes.append(
                f"Without an inpainter: regions were filled by the fall-back '{self.settings.fill}', so these are not figures of the paper's method."
            )
        if not self.named:
            result.notes.append(
                f"No class was named (--label): '{label}', the last label of the model, was explained in every case."
            )
        missed = [row["case"] for row in rows if row["state"] != "done"]
        if missed:
            result.notes.append(
                f"In {len(missed)} of {len(rows)} cases the network does not answer '{label}' ({_some(missed)}): there is nothing to explain, and they are in no"
                " table but the cases."
            )
        if skipped:
            told = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:3])
            result.notes.append(
                f"{len(skipped)} of {len(rows) + len(skipped)} cases were skipped ({told}{'; and more' if len(skipped) > 3 else ''})."
            )
        if not self.organ:
            result.notes.append("No organ was named: shares and percentiles are those of the whole image.")

    def record(self, rows, skipped, resumed) -> dict:
        """For the provenance."""
        return {
            "folder": str(self.folder), "segment": self.segment or None, "organ": self.organ or None, "label": self.settings.label,
            "inpainter": self.inpainter, "cases": sum(row["state"] == "done" for row in rows), "skipped": skipped, "resumed": resumed,
        }  # fmt: skip


@dataclass
class Case:
    """One case. Masks are cut to the box of the volume that the network looks at."""

    model: object
    settings: CounterfactualSettings  # with the slice
    image: Volume
    segments: list[Volume]  # with their roles
    prepared: Prepared
    box: tuple[slice, ...]
    truth: np.ndarray
    organ: np.ndarray
    label: int
    predicted: bool
    probability: float

    @classmethod
    def read(cls, study, paths) -> Case:
        """Read a case and ask the network; refused without a finding or an organ where the network looks."""
        model, settings = study.model, study.settings
        image = io.read_volume(paths[0])
        mask = io.read_mask(paths[1], study.organ) if study.organ else None
        finding = io.read_mask(paths[1], study.segment or _only(paths[1], study.organ))
        truth, organ = annotation(finding, image), np.ones(image.shape, bool)
        segments = [replace(finding, attributes=finding.attributes | {"role": "annotation"})]
        if mask is not None:
            organ = annotation(mask, image)
            if not organ.any():
                raise MedXAIError(f"The organ '{mask.name}' is empty.")
            organ = organ | truth
            segments.append(
                Volume(organ.astype(np.uint8), image.ijk_to_ras, mask.name, "", mask.attributes | {"role": "organ"})
            )
        if not truth.any():
            raise MedXAIError(f"The finding '{finding.name}' is empty.")
        if not settings.slice and model.package.input.spatial_dims == 2:
            settings = replace(settings, slice=fullest_slice(model.package, image, truth))
        prepared = prepare(model, [image], settings.slice)
        box = tuple(slice(*ends) for ends in zip(*prepared.box_to_volume((0,) * len(prepared.shape), prepared.shape)))
        if not truth[box].any():
            raise MedXAIError(f"The finding '{finding.name}' has no voxel where the network looks ({prepared.slice}).")
        with model.frozen(), torch.no_grad():
            logits = model.logits(prepared.x)
        probability = float(model.probabilities(logits)[0, study.label])
        if not math.isfinite(probability):
            raise MedXAIError(f"'{model.package.name}' gives values that are not finite on '{image.name}'.")
        predicted = bool(model.foreground(logits, study.label)[0])
        return cls(
            model, settings, image, segments, prepared, box, truth[box], organ[box], study.label, predicted, probability
        )

    @property
    def spacing(self) -> tuple[float, ...]:
        """mm along (k, j, i)."""
        return self.image.spacing[::-1]

    def on_grid(self, values) -> np.ndarray:
        """A map of the network's grid in the box."""
        patch = self.prepared.map(values, (0,) * len(self.prepared.shape))
        whole = np.zeros(self.image.shape, np.float32)
        whole[patch.box] = patch.array
        return whole[self.box]

    def measured(self, mask: np.ndarray) -> dict:
        """The figures of one region."""
        return {
            "D": distance(mask, self.truth, self.spacing), "H": hausdorff(mask, self.truth, self.spacing),
            "A": area_ratio(mask, self.organ) if mask.any() else math.nan, "dice": dice(mask, self.truth), "hit": hit(mask, self.truth),
        }  # fmt: skip

    def explained(self, start: float, stop: float, **changes):
        """Steps of a run with changed settings; ends with its region (in the box) and its figures."""
        began = time.perf_counter()
        settings = replace(self.settings, **changes)
        running = methods.explain("counterfactual", self.model, [self.image], settings, self.segments)
        found = yield from part(running, start, stop)
        region = found.masks["region"].array[self.box] > 0
        return region, self.measured(region) | {
            "probability_after": found.scores["probability_after"], "drop_kept_passed": found.self_checks["drop_kept"]["passed"],
            "seconds": round(time.perf_counter() - began, 3),
        }  # fmt: skip


def _only(path, organ) -> str | None:
    """The segment beside the organ, where there is one only."""
    rest = [name for name in io.segments(path) if name != organ] if organ else []
    return rest[0] if len(rest) == 1 else None


def counts(rows, skipped) -> dict:
    """How many cases there are of each kind, as scores."""
    states = [row["state"] for row in rows]
    return {"cases": states.count("done"), "skipped": len(skipped), "not_predicted": states.count("not predicted")}


def number(value) -> float:
    """What a log line holds as null is undefined."""
    return math.nan if value is None else float(value)


def _some(names) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
