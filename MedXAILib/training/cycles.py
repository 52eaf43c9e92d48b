"""Training an explainer for a classifier on a folder of images, and writing the package, figures and pictures (Katzmann et al. 2021)."""

from __future__ import annotations

import shutil
import time
from collections.abc import Generator
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from ..errors import MedXAIError
from ..evaluation.resume import Log, resumable
from ..explanation import Curve, Explanation, Step, Steps, part
from ..files import check_new_folder, plain, write_csv
from ..methods.provenance import provenance
from ..models import prepare
from ..models.model import Model
from ..settings import CycleJobSettings, CycleTrainingSettings
from .cycle import BEST, JUDGED, LOSSES, Sides, best_weights, cut, train_pair
from .cycle_pages import samples_page
from .images import Images, kept_back, read_images, require_enough
from .saving import command_of, finished, lift, write_figures, write_trained

EPOCHS = "epochs.jsonl"  # finished epochs, while the training is not complete
KIND = "an explainer"
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
    if finish and not finished(folder, EPOCHS):
        raise MedXAIError(f"There is nothing to finish: no epoch of a training into '{folder}' is kept.")
    model.require_task("classification", "cycle")
    sides, names = sides_of(model, settings)
    package = model.package
    images = yield from part(read_images(source, settings, package, package.input.spatial_dims, KIND), 0.0, 0.04)
    command = f"{command_of(named(settings), 'FOLDER', 'cycle').removesuffix(' --output FOLDER')} --model {package.folder.name} --output FOLDER"
    return (yield from part(_whole(model, sides, names, images, source, folder, settings, command, finish, began), 0.04, 1.0))  # fmt: skip


def training_job(model: Model, settings: CycleJobSettings) -> Steps:
    """`train_cycle` as a job of the worker."""
    if not settings.source or not settings.output:
        raise MedXAIError("A training takes a folder of images and an output folder; choose both.")
    own = CycleTrainingSettings(**{one.name: getattr(settings, one.name) for one in fields(CycleTrainingSettings)})
    return train_cycle(model, settings.source, settings.output, own, settings.finish)


def epochs_kept(folder) -> int:
    """Finished epochs of a training that was stopped before ``folder`` was complete."""
    return finished(folder, EPOCHS)


def beside(model_folder) -> Path:
    """Where an explainer goes when nobody says where: ``NAME-cycle`` beside the model folder."""
    path = Path(model_folder).absolute()
    return path.with_name(f"{path.name}-cycle")


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


def _whole(model, sides, names, images, source, folder, settings, command, finish, began):
    yield Step(0.0, "Preparing images")
    shape, used, arrays, ranges = prepared_images(model, images, settings)
    chosen = yield from part(_answered(model, sides, names, used, arrays, shape, images), 0.0, 0.05)
    used, arrays = ([one for one, keep in zip(some, chosen) if keep] for some in (used, arrays))
    require_enough(used, images.skipped, KIND)
    back = kept_back(used, settings)
    data_range = settings.data_range or _range(model.package, ranges, arrays)
    train = [one for one, b in zip(arrays, back) if not b]
    held = torch.stack([cut(one, shape) for one, b in zip(arrays, back) if b])
    held_names = [one.name for one, b in zip(used, back) if b]
    # What may differ between two starts: where it computes, and when it ends.
    same = named(settings).to_json()
    about = {"settings": {n: v for n, v in same.items() if n not in ("device", "epochs", "patience")}, "images": images.fingerprint, "classifier": model.package.sha256}  # fmt: skip
    with resumable(folder) as partial:
        log = Log(partial / EPOCHS, about, ("finished epochs of another training", "settings, images and classifier"))
        state = partial / ".state"
        if not finish:
            sample = _Sampler(held, held_names, names, partial / "samples.png", images.notes)
            training = train_pair(model, sides, train, held, state, settings, data_range, log, shape, sample)
            yield from part(training, 0.05, 0.98)
        if not (state / BEST).exists():
            raise MedXAIError(f"There is nothing to finish: no weights are kept in '{state}'.")
        rows = {row["epoch"]: row for row in Log(partial / EPOCHS, about).rows}
        rows = [rows[epoch] for epoch in sorted(rows)]
        best = min(rows, key=lambda row: row["score"])
        changed = _changed(source, settings, model.package, images)
        if changed:
            images.notes.append(f"{changed} while this was trained; the images are those that were there at the start.")
        whole = package_fields(model, names, settings, command, shape, train, data_range)
        trained = partial / "explainer"
        shutil.rmtree(trained, ignore_errors=True)  # of a start that was stopped later
        weights = {name: value.half() if settings.half else value for name, value in best_weights(state).items()}
        write_trained(trained, whole, weights, {})
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        write_csv(partial / "epochs.csv", columns)
        figures = {
            "command": command,
            "settings": named(settings).to_json(),
            "policy": POLICY,
            "classes": {"positive": names[0], "negative": names[1]},
            "classifier": {"name": model.package.name, "sha256": model.package.sha256},
            "shape": list(shape),
            "data_range": data_range,
            "images": {"training": len(train), "kept_back": len(held), "skipped": images.skipped},
            "epochs": len(rows),
            "best_epoch": {name: best[name] for name in ("epoch", *LOSSES, *JUDGED)},
            "seconds_of_training": sum(columns["seconds"]),
            "notes": images.notes,
        }
        write_figures(partial, figures)
        lift(trained)
        shutil.rmtree(state)
        (partial / EPOCHS).unlink()
    return _told(model, settings, names, folder, columns, figures, began)


def prepared_images(model: Model, images: Images, settings) -> tuple[tuple[int, ...], list, list, list]:
    """Spatial shape of what the networks see; the images that can be used, each (C, *spatial) in the classifier's network units, and their intensity maps."""
    about = model.package.input
    on_cpu = SimpleNamespace(package=model.package, device="cpu")
    made, used, frozen = [], [], []
    for one in images.images:
        try:
            prepared = prepare(on_cpu, [one.volume], one.slice)
        except MedXAIError as error:
            images.skipped[one.name] = error.message
            continue
        made.append(prepared.x[0][(slice(None), *prepared.valid)])  # padding is no image to learn from
        used.append(one)
        frozen.append(prepared.intensity[0])
    require_enough(used, images.skipped, KIND)
    dims = about.spatial_dims
    if about.size is not None:
        shape = tuple(about.size)
        if settings.patch and (settings.patch,) * dims != shape:
            raise MedXAIError(f"'{model.package.name}' takes {_by(shape)} voxels, so --patch cannot be {settings.patch}; leave it out.")  # fmt: skip
    elif settings.patch:
        shape = (settings.patch,) * dims
    else:
        shapes = {tuple(one.shape[1:]) for one in made}
        if len(shapes) > 1:
            raise MedXAIError(f"The images have {len(shapes)} different sizes, and '{model.package.name}' takes any; give the edge of the patches (--patch).")  # fmt: skip
        shape = shapes.pop()
    large = [all(n >= s for n, s in zip(one.shape[1:], shape)) for one in made]
    if not any(large):
        most = _by(max(tuple(one.shape[1:]) for one in made))
        raise MedXAIError(f"The patch of {_by(shape)} voxels is larger than every image (the largest: {most}); give a smaller one (--patch) or larger images.")  # fmt: skip
    for one, there in zip(used, large):
        if not there:
            images.skipped[one.name] = f"it is smaller than the patch of {_by(shape)} voxels"
    kept = [[one for one, there in zip(some, large) if there] for some in (used, made, frozen)]
    return shape, *kept


def _answered(model, sides, names, used, arrays, shape, images):
    """Which images the classifier answers with one of both classes; refused where it answers all of them with one. A generator of steps."""
    softmax, answers = model.package.output.activation == "softmax", []
    with model.frozen():
        x = cut(arrays[0], shape)[None].to(model.device).requires_grad_()
        slope = model.gradient(model.log_odds(model.logits(x), sides.positive).sum(), x)
        if not torch.isfinite(slope).all() or not float(slope.abs().max()):
            raise MedXAIError(
                f"'{model.package.name}' has no usable gradient of '{names[0]}' with respect to the image, and the generators follow it; explain a network that "
                "gives its logits."
            )
        for start in range(0, len(arrays), 64):
            yield Step(start / len(arrays), "Asking the classifier")
            with torch.no_grad():
                some = torch.stack([cut(one, shape) for one in arrays[start : start + 64]]).to(model.device)
                logits = model.logits(some)
                answers.append(logits.argmax(1) if softmax else (logits[:, sides.positive] <= 0).long())
    answers = torch.cat(answers).cpu().numpy()
    wanted = (sides.positive, sides.negative) if softmax else (0, 1)
    counts = [int((answers == one).sum()) for one in wanted]
    for one, answer in zip(used, answers):
        if answer not in wanted:
            images.skipped[one.name] = f"the classifier answers '{model.labels[answer]}', which is neither '{names[0]}' nor '{names[1]}'"  # fmt: skip
    if not all(counts):
        seen, missing = names[::-1] if counts[1] else names
        raise MedXAIError(
            f"The classifier answers all {sum(counts)} images with '{seen}'; the discriminators must see both classes, so give images of '{missing}' too."
        )
    images.notes.append(f"The classifier answers '{names[0]}' in {counts[0]} and '{names[1]}' in {counts[1]} images; no other label of theirs was used.")  # fmt: skip
    return np.isin(answers, wanted)


def _range(package, frozen, arrays) -> float:
    """Range of the images in network units: what their window is clipped to, 8 bits, or from the 0.1th to the 99.9th percentile."""
    first, rule = frozen[0], package.input.intensity[0]
    if first.low is not None and first.high is not None:
        return first.high - first.low
    if rule.range == "uint8" and rule.kind in ("linear", "none"):
        return 255 * abs(rule.multiply)
    low, high = np.percentile(np.concatenate([one.numpy().ravel()[:: max(1, one.numel() // 65536)] for one in arrays]), (0.1, 99.9))  # fmt: skip
    if not high > low:
        raise MedXAIError("The images have one value only; there is nothing to learn from them.")
    return float(high - low)


def _changed(source, settings, package, images) -> str:
    """What has become of the folder since it was read; empty: nothing."""
    try:
        steps = read_images(source, settings, package, package.input.spatial_dims, KIND)
        with np.errstate(all="ignore"):
            while True:
                next(steps)
    except StopIteration as end:
        return "" if end.value.fingerprint == images.fingerprint else f"The folder '{Path(source).name}' changed"
    except MedXAIError:
        return f"The folder '{Path(source).name}' changed"


def package_fields(model, names, settings, command, shape, train, data_range) -> dict:
    """What ``model.json`` of the explainer holds."""
    package, about = model.package, model.package.to_json()["input"]
    if not about["size"]:
        about.pop("fit")  # a package names it beside a size only
    means, spreads = (np.percentile([float(how(one)) for one in train], (1, 99)).tolist() for how in (torch.mean, torch.std))  # fmt: skip
    license_of = {"license": package.about["license"]} if "license" in package.about else {}
    return {
        "name": f"{package.name}: {names[0]} against {names[1]}",
        "description": f"Generators of cycle-consistent activation maximization (Katzmann et al. 2021), width {settings.width:g}, trained on {len(train)} images "
        f"of {_by(shape)}; for research, never for patients.",
        "source": command,
        **license_of,
        "task": "explanation",
        "weights": "weights.safetensors",
        "network": {
            "name": "GeneratorPair",
            "arguments": {"spatial_dims": len(shape), "channels": 1, "width": settings.width, "residual": settings.residual},
        },
        "input": about,
        "output": {"labels": list(names), "activation": "none"},
        "explains": plain(
            {"sha256": package.sha256, "name": package.name, "positive": names[0], "negative": names[1], "data_range": data_range, "mean": means, "sd": spreads}
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
    result = Explanation("train-cycle", "Training of a cycle explainer", notes=list(figures["notes"]))
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
        "train-cycle", named(settings), model, [], folder=str(Path(folder).absolute()), label=names[0], negative=names[1],
        seconds=round(time.perf_counter() - began, 3),
    )  # fmt: skip
    return result


def _by(shape) -> str:
    return " × ".join(map(str, shape))
