"""Training an explainer for a classifier on a folder of images, and writing the package, figures and pictures (Katzmann et al. 2021)."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Generator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch

from ..errors import MedXAIError
from ..explanation import Curve, Explanation, Step, Steps, part
from ..files import check_new_folder, plain, write_csv
from ..methods.provenance import provenance
from ..models.model import Model
from ..models.sides import Sides
from ..resume import Log, resumable
from ..settings import CYCLE_LOG, CYCLE_PICTURE, TRAIN_CYCLE, CycleJobSettings, CycleTrainingSettings
from .cycle import BEST, JUDGED, LOSSES, STATE, best_weights, cut, train_pair
from .cycle_images import KIND, patches_of
from .cycle_pages import samples_page
from .images import read_images, snapshot
from .saving import command_of, finished, lift, state_told, write_figures, write_trained

IMAGES = "images.json"  # what the package is to say of the images, so that finishing needs none
_FREE = (
    "device",
    "epochs",
    "patience",
)  # settings that may differ between two starts: where it computes, and when it ends
SAMPLES = 5  # images kept back that samples.png shows
POLICY = "The weights are those with the best validation score (cycle, similarity and activation loss) on the images kept back, so figures on these images flatter."


def train_cycle(
    model: Model, source, folder, settings: CycleTrainingSettings, finish: bool = False
) -> Generator[Step, None, Explanation]:
    """Train on the images of a folder.

    Parameters
    ----------
    model : Model
        The classifier to be explained, of one channel.
    source : path
        Folder of images, see `read_images`. No class of theirs is used; the classifier's answers must hold both classes.
    folder : path
        New: the explainer package, with ``figures.json``, ``epochs.csv`` and ``samples.png``. A training that was stopped is kept in ``.NAME.partial`` beside
        it and gone on from.
    settings : CycleTrainingSettings
    finish : bool
        Train no further: make the package of the best weights of a training that was stopped.

    Returns
    -------
    Explanation
        Curves ``training`` and ``validation``, the scores of the best epoch, and in the provenance ``folder``.

    Raises
    ------
    MedXAIError
        When the classifier has no such classes, takes several channels or gives no gradient, the images are too few, all smaller than the patch or answered with one class, or a loss is no
        longer finite.
    """
    began = time.perf_counter()
    check_new_folder(folder)
    if finish and not finished(folder, CYCLE_LOG):
        raise MedXAIError(f"There is nothing to finish: no epoch of a training into '{folder}' is kept.")
    model.require_task("classification", "cycle")
    sides, names = sides_of(model, settings)
    where = shlex.quote(model.package.folder.absolute().name)
    command = f"{command_of(named(settings), 'FOLDER', 'cycle').removesuffix(' --output FOLDER')} --model {where} --output FOLDER"
    same = {n: v for n, v in named(settings).to_json().items() if n not in _FREE}
    about = {"settings": same, "classifier": model.package.sha256}
    with resumable(folder) as partial:
        if finish:
            told = json.loads((partial / IMAGES).read_text("utf-8"))
            about["images"] = told["fingerprint"]
        else:
            told = yield from _trained(model, sides, names, source, partial, settings, about)
        columns, figures = _packed(model, names, partial, settings, command, about, told)
    folder = Path(folder)  # it has its name now; what it was trained from is not needed any more
    shutil.rmtree(folder / ".state")
    for name in (CYCLE_LOG, IMAGES):
        (folder / name).unlink()
    return _told(model, settings, names, folder, columns, figures, began)


def training_job(model: Model, settings: CycleJobSettings) -> Steps:
    """`train_cycle` as a job of the worker."""
    if not settings.source or not settings.output:
        raise MedXAIError("A training takes a folder of images and an output folder; choose both.")
    own = CycleTrainingSettings(**{one.name: getattr(settings, one.name) for one in fields(CycleTrainingSettings)})
    return train_cycle(model, settings.source, settings.output, own, settings.finish)


def epochs_kept(folder) -> int:
    """Finished epochs of a training that was stopped before ``folder`` was complete."""
    return finished(folder, CYCLE_LOG)


def named(settings):
    """The settings without paths of this computer."""
    return replace(settings, table=Path(settings.table).name if settings.table else "")


def sides_of(model: Model, settings) -> tuple[Sides, tuple[str, str]]:
    """The class pair that the settings mean, as indices and by name.

    Raises
    ------
    MedXAIError
        When the model has no such class, both are the same, or there are more than two and one is not named.
    """
    softmax, labels = model.package.output.activation == "softmax", model.labels
    if len(labels) > 2 and not settings.positive:
        raise MedXAIError(
            f"'{model.package.name}' has {len(labels)} classes ({', '.join(labels)}); name the one of G⁺ (--positive)" + (" and the one of G⁻ (--negative)." if softmax else ".")
        )  # fmt: skip
    positive = model.label_index(settings.positive)
    if not settings.negative and not softmax:
        return Sides(positive, None), (labels[positive], f"not {labels[positive]}")
    if not settings.negative and len(labels) > 2:
        raise MedXAIError(f"'{model.package.name}' has {len(labels)} classes; name the one of G⁻ too (--negative).")
    negative = model.label_index(settings.negative) if settings.negative else 1 - positive
    if negative == positive:
        raise MedXAIError(f"Both classes are '{labels[positive]}'; name two different ones (--positive, --negative).")
    return Sides(positive, negative), (labels[positive], labels[negative])


# ---- the work --------------------------------------------------------------------------------------------------------


def _trained(model, sides, names, source, partial, settings, about):
    """Train, or go on; ends with what the package is to say of the images, which is kept so that finishing needs none."""
    package, before = model.package, snapshot(source, settings)
    images = yield from part(read_images(source, settings, package, package.input.spatial_dims, KIND), 0.0, 0.04)
    patches = yield from part(patches_of(model, sides, names, images, settings), 0.04, 0.08)
    about["images"] = images.fingerprint
    log = Log(partial / CYCLE_LOG, about, ("finished epochs of another training", "settings, images and classifier"))
    rng = np.random.default_rng(0)
    some = [cut(one, patches.shape, rng) for one in patches.train]
    mean, sd = (np.percentile([float(how(one)) for one in some], (1, 99)).tolist() for how in (torch.mean, torch.std))
    told = plain(
        {
            "fingerprint": images.fingerprint, "shape": patches.shape, "training": len(patches.train), "kept_back": len(patches.held), "data_range": patches.data_range,
            "mean": mean, "sd": sd, "skipped": images.skipped, "notes": images.notes,
        }
    )  # fmt: skip
    (partial / IMAGES).write_text(json.dumps(told, ensure_ascii=False), "utf-8")
    sample = _Sampler(patches.held, patches.held_names, names, partial / CYCLE_PICTURE, told["notes"])
    training = train_pair(
        model, sides, patches.train, patches.held, partial / ".state", settings, patches.data_range, log, patches.shape, sample
    )  # fmt: skip
    try:
        yield from part(training, 0.08, 0.98)
    finally:
        if not (partial / CYCLE_LOG).exists():  # nothing to go on with
            (partial / IMAGES).unlink()
    if before != snapshot(source, settings):
        told["notes"].append(
            f"The folder '{Path(source).name}' changed while this was trained; the images are those that were there at the start."
        )
    return told


def _packed(model, names, partial, settings, command, about, told) -> tuple[dict, dict]:
    """Write package, tables and figures of the best weights; the columns of ``epochs.csv``, and the figures."""
    state = partial / ".state"
    if not (state / BEST).exists():
        raise MedXAIError(f"There is nothing to finish: no weights are kept in '{partial}'.")
    weights, epoch = best_weights(state)
    last = max(epoch, state_told(state / STATE).get("epoch", 0))
    log = Log(partial / CYCLE_LOG, about, ("finished epochs of another training", "settings and classifier"))
    rows = {row["epoch"]: row for row in log.rows if row["epoch"] <= last}
    rows = [rows[number] for number in sorted(rows)]
    best = next(row for row in rows if row["epoch"] == epoch)
    if last < settings.epochs and not 0 < settings.patience <= last - epoch:
        told["notes"].append(f"The training was ended after {last} of {settings.epochs} epochs at most.")
    if best["flip_rate"] < 0.5:
        told["notes"].append(
            f"The class changes in {best['flip_rate']:.0%} of the images kept back only: train longer, or with more images, before trusting R."
        )
    trained = partial / "explainer"
    shutil.rmtree(trained, ignore_errors=True)  # of a start that was stopped later
    if settings.half:
        weights = {name: value.half() for name, value in weights.items()}
    write_trained(trained, package_fields(model, names, settings, command, told), weights, {})
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    write_csv(partial / "epochs.csv", columns)
    figures = {
        "command": command,
        "settings": named(settings).to_json(),
        "policy": POLICY,
        "classes": {"positive": names[0], "negative": names[1]},
        "classifier": {"name": model.package.name, "sha256": model.package.sha256},
        "shape": told["shape"],
        "data_range": told["data_range"],
        "images": {name: told[name] for name in ("training", "kept_back", "skipped")},
        "epochs": len(rows),
        "best_epoch": {name: best[name] for name in ("epoch", *LOSSES, *JUDGED)},
        "seconds_of_training": sum(columns["seconds"]),
        "notes": told["notes"],
    }
    write_figures(partial, figures)
    lift(trained)
    return columns, figures


def package_fields(model, names, settings, command, told: dict) -> dict:
    """What ``model.json`` of the explainer holds."""
    package, about = model.package, model.package.to_json()["input"]
    if not about["size"]:
        about.pop("fit")  # a package names it beside a size only
    license_of = {"license": package.about["license"]} if "license" in package.about else {}
    return {
        "name": f"{package.name}: {names[0]} against {names[1]}",
        "description": f"Generators of cycle-consistent activation maximization (Katzmann et al. 2021), width {settings.width:g}, trained on {told['training']} images "
        f"of {' × '.join(map(str, told['shape']))}; for research, never for patients.",
        "source": command,
        **license_of,
        "task": "explanation",
        "weights": "weights.safetensors",
        "network": {
            "name": "GeneratorPair",
            "arguments": {"spatial_dims": len(told["shape"]), "channels": 1, "width": settings.width, "residual": settings.residual},
        },
        "input": about,
        "output": {"labels": list(names), "activation": "none"},
        "explains": plain(
            {"sha256": package.sha256, "name": package.name, "positive": names[0], "negative": names[1], "labels": list(model.labels), "data_range": told["data_range"], "mean": told["mean"], "sd": told["sd"]}
        ),
    }  # fmt: skip


class _Sampler:
    """Draws ``samples.png``: the first images kept back, and what the generators make of them; of volumes the middle slice."""

    def __init__(self, held, names, classes, path, notes):
        self.held, self.names, self.classes, self.path, self.notes = (
            held[:SAMPLES],
            names[:SAMPLES],
            classes,
            path,
            notes,
        )

    def __call__(self, pair, epoch):
        device = next(pair.parameters()).device
        x = self.held.to(device)
        shown = [one[:, 0].float().cpu().numpy() for one in (x, pair.negative(x), pair.positive(x))]
        if shown[0].ndim == 4:
            shown = [one[:, one.shape[1] // 2] for one in shown]
        new = self.path.with_suffix(".new.png")
        try:
            samples_page([Path(name).name for name in self.names], *shown, self.classes, epoch, new)
        except MedXAIError as error:
            note = f"samples.png was not written: {error.message}"
            if note not in self.notes:
                self.notes.append(note)
        else:
            new.replace(self.path)


def _told(model, settings, names, folder, columns, figures, began) -> Explanation:
    best = figures["best_epoch"]
    result = Explanation(TRAIN_CYCLE, "Training of a cycle explainer", notes=list(figures["notes"]))
    epochs = np.array(columns["epoch"], float)
    for curve, title, kinds, value, limits in (
        ("training", "Losses of the training", LOSSES, "Loss", None),
        ("validation", "Images kept back", JUDGED, f"Probability of {names[0]}, share flipped, error", (0.0, 1.0)),
    ):
        rows = {"epoch": epochs} | {name: np.array(columns[name], float) for name in kinds}
        shown = kinds if curve == "training" else JUDGED[:-1]
        result.curves[curve] = Curve(title, "epoch", rows, "Epoch", value, shown=tuple(shown), limits=limits)
    result.scores.update({name: best[name] for name in ("epoch", *JUDGED)}, images=figures["images"]["training"], images_skipped=len(figures["images"]["skipped"]))  # fmt: skip
    up, down = best["probability_positive"] - best["probability"], best["probability"] - best["probability_negative"]
    result.self_checks["transfer"] = {
        "value": min(up, down), "passed": min(up, down) > 0.05,
        "meaning": f"By how much G⁺ raises and G⁻ lowers the mean probability of '{names[0]}' on the images kept back, the smaller of both; passed above 0.05.",
    }  # fmt: skip
    result.provenance = provenance(
        TRAIN_CYCLE, named(settings), model, [], folder=str(Path(folder).absolute()), label=names[0], negative=names[1], skipped=figures["images"]["skipped"],
        seconds=round(time.perf_counter() - began, 3),
    )  # fmt: skip
    return result
