"""Training an inpainter on healthy images, judging it, and writing the package, tables, figures and pictures (Major et al. 2020, section 3)."""

from __future__ import annotations

import math
import shutil
from collections.abc import Collection, Generator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from ..errors import MedXAIError
from ..evaluation.statistics import estimate
from ..explanation import Step, part
from ..files import check_new_folder, write_csv
from ..models import load, prepare
from ..package import Package, from_json
from ..resume import Log, resumable
from .images import Image, Images, kept_back, read_images, require_enough
from .inpainter_pages import examples_page
from .inpainting import Healthy, hole_errors, kept_back_case, train_inpainter
from .inpainting_losses import FeatureLoss
from .saving import command_of, epoch_rows, finished, intensity_of, lift, write_figures
from .settings import InpainterSettings

EPOCHS = "epochs.jsonl"  # finished epochs, while the training is not complete
KIND = "an inpainter"
EXAMPLES = 6
POLICY = {
    False: "The weights are those after the last epoch; the images kept back were used for no choice.",
    True: "The weights are those with the smallest loss on the images kept back, so figures on these images flatter.",
}


def train_folder(
    source, folder, settings: InpainterSettings, trusted: Collection[str] = (), judge: dict | None = None
) -> Generator[Step, None, dict]:
    """`train_inpainters` on the images of a folder (see `healthy_images`).

    Parameters
    ----------
    judge : dict, optional
        ``classifier``, ``findings``, ``healthy`` (folders): the package is judged with them, see `judge_inpainter`.
    """
    check_new_folder(folder)
    images = yield from part(healthy_images(source, settings), 0.0, 0.05)
    command = command_of(_named(settings), "FOLDER", "inpainter")
    return (yield from part(train_inpainters(images, folder, settings, command, trusted, judge), 0.05, 1.0))


def train_inpainters(
    images: Images,
    folder,
    settings: InpainterSettings,
    command: str,
    trusted: Collection[str] = (),
    judge: dict | None = None,
    more: dict | None = None,
) -> Generator[Step, None, dict]:
    """Train on images, judge on those kept back.

    Parameters
    ----------
    images : Images
    folder : path
        New: the model package, with ``figures.json``, ``epochs.csv``, ``examples.png`` and, with ``judge``, ``roc.csv`` and ``roc.png``. A training
        that was stopped is kept in ``.NAME.partial`` beside it and gone on from.
    settings : InpainterSettings
    command : str
        How to do the same again, for the package and the figures.
    trusted : collection of str
        SHA-256 of the programs that may run as network for features, or as classifier.
    judge : dict, optional
        As `train_folder`.
    more : dict, optional
        Further entries of the figures.

    Returns
    -------
    dict
        The figures.

    Raises
    ------
    MedXAIError
        When there are too few images, they are not of one size and are not resized, or the network for the features is the classifier to be explained.
    """
    explained = [path for path in ((judge or {}).get("classifier"), settings.match) if path]
    feature_model = _feature_model(settings, explained, trusted)
    if judge:
        from .inpainter_judging import require_judges

        require_judges(**judge, settings=settings, trusted=trusted)
    about = {
        "settings": _named(settings).to_json(),
        "images": images.fingerprint,
        "classifier to fit": Package.read(settings.match).sha256 if settings.match else "",
        "network for features": feature_model.package.sha256 if feature_model else "",
    }
    with resumable(folder) as partial:
        log = Log(partial / EPOCHS, about, ("finished epochs of another training", "settings and images"))
        figures = yield from _work(images, partial, settings, command, log, feature_model, trusted, judge)
        figures |= more or {}
        write_figures(partial, figures)
        lift(partial / "inpainter")
        shutil.rmtree(partial / ".state")
        (partial / EPOCHS).unlink()
    return figures


def epochs_kept(folder) -> int:
    """Finished epochs of a training that was stopped before ``folder`` was complete."""
    return finished(folder, EPOCHS)


def _named(settings):
    """The settings without paths of this computer: names of folders in their place."""
    return replace(settings, **{name: Path(getattr(settings, name)).name for name in ("match", "perceptual", "table") if getattr(settings, name)})  # fmt: skip


def _feature_model(settings, explained, trusted):
    """The network whose features count; refused where it is one of those to be explained."""
    if not settings.perceptual:
        return None
    model = load(settings.perceptual, settings.device, trusted)
    for folder in explained:
        if Package.read(folder).sha256 == model.package.sha256:
            raise MedXAIError(
                f"The network for the features (--perceptual) is '{model.package.name}', the very classifier to be explained, which would be circular; "
                "name another one, or none."
            )
    if model.package.input.spatial_dims != _dims(settings):
        raise MedXAIError(
            f"'{model.package.name}' (--perceptual) takes {model.package.input.spatial_dims}-D images, and the inpainter {_dims(settings)}-D ones; "
            "name another one, or none."
        )
    return model


def _dims(settings):
    return Package.read(settings.match).input.spatial_dims if settings.match else settings.dims


def healthy_images(folder, settings: InpainterSettings) -> Generator[Step, None, Images]:
    """`read_images` for an inpainter."""
    package = Package.read(settings.match) if settings.match else None
    return (yield from read_images(folder, settings, package, _dims(settings), KIND, "healthy"))


# ---- the work --------------------------------------------------------------------------------------------------------


def _work(images, partial, settings, command, log, feature_model, trusted, judge):
    require_enough(images.images, images.skipped, KIND)
    volumes = {id(one.volume): one.volume for one in images.images}.values()
    back = kept_back(images.images, settings)
    begun = fields(images, settings, command, volumes)
    yield Step(0.0, "Preparing images")
    made = [_network_input(one, begun, feature_model) for one in images.images]
    shape = shape_of(images, made, settings, begun)
    whole = fields(images, settings, command, volumes, shape, int((~back).sum()))
    features = FeatureLoss(feature_model, settings.perceptual_layers, shape) if feature_model else None
    sides = [[one for one, b in zip(made, back) if b == side] for side in (False, True)]
    package = partial / "inpainter"
    shutil.rmtree(package, ignore_errors=True)  # of a start that was stopped later
    stop = 0.8 if judge else 0.95
    training = train_inpainter(*sides, package, whole, settings, shape, partial / ".state", log, features)
    yield from part(training, 0.02, stop)
    rows = epoch_rows(partial / EPOCHS, "phase")
    write_csv(partial / "epochs.csv", {name: [row[name] for row in rows] for name in rows[0]})
    yield Step(stop, "Judging on the images kept back")
    module = load(package, settings.device).module
    errors = hole_errors(module, sides[1], shape, settings)
    names = [one.name for one, b in zip(images.images, back) if b]
    _examples(module, sides[1], names, shape, settings, package / "examples.png", images.notes)
    best = min(rows, key=lambda row: row["kept_back_loss"])
    figures = {
        "command": command,
        "settings": _named(settings).to_json(),
        "policy": POLICY[bool(settings.patience)],
        "shape": list(shape),
        "levels": whole["network"]["arguments"]["levels"],
        "parameters": sum(p.numel() for p in module.parameters()),
        "images": {
            "training": len(sides[0]),
            "kept_back": len(sides[1]),
            "kept_back_groups": len({one.group for one, b in zip(images.images, back) if b}),
            "skipped": images.skipped,
        },
        "epochs": {str(phase): sum(row["phase"] == phase for row in rows) for phase in (1, 2)},
        "best_epoch": {name: best[name] for name in ("phase", "epoch", "kept_back_loss")},
        "hole_error": {name: _told(values) for name, values in errors.items()}
        | {"unit": "mean absolute error in the holes of the images kept back, network units"},
        "features_of": None if feature_model is None else feature_model.record() | {"layers": [one.name for one in features.layers]},
        "seconds_of_training": sum(row["seconds"] for row in rows),
        "notes": images.notes,
    }  # fmt: skip
    if judge:
        from .inpainter_judging import judge_inpainter

        judging = judge_inpainter(package, **judge, settings=settings, trusted=trusted, output=partial)
        figures["roc"] = yield from part(judging, stop, 1.0)
    return figures


def _told(values) -> dict:
    one = estimate(np.mean, values)
    return {"value": float(np.nanmean(values)), "low": one.low, "high": one.high, "n": one.n}


def _network_input(one: Image, about: dict, feature_model) -> Healthy:
    """The image (C, *spatial) in network units, and what makes the units of the network for features of them."""

    def prepared(fields):
        package = from_json({"schema": 1, "sha256": "0" * 64} | fields, Path("."))
        return prepare(SimpleNamespace(package=package, device="cpu"), [one.volume], one.slice)

    own = prepared(about)
    units = torch.tensor([1.0, 0.0, -math.inf, math.inf])
    if feature_model:
        rule = feature_model.package.to_json()["input"]["intensity"]
        rule = rule[0] if isinstance(rule, list) else rule
        its = prepared(about | {"input": about["input"] | {"intensity": rule}}).intensity[0]
        units = torch.tensor(own.intensity[0].to(its))
    return Healthy(own.x[0], units)


def shape_of(images: Images, made: list[Healthy], settings: InpainterSettings, about: dict) -> tuple[int, ...]:
    """Spatial shape of what the network sees: the images', or that of patches; refused where images that are not resized have several."""
    shapes = [tuple(one.x.shape[1:]) for one in made]
    smallest = tuple(min(axis) for axis in zip(*shapes))
    if settings.size and not about["input"]["size"]:
        return tuple(min(settings.size, n) for n in smallest)
    if len(set(shapes)) > 1:
        other = next(n for n, shape in enumerate(shapes) if shape != shapes[0])
        one, two = (" × ".join(map(str, shapes[n])) for n in (0, other))
        raise MedXAIError(
            f"The images have different sizes ({images.images[0].name}: {one}, {images.images[other].name}: {two}); bring them to one with --size."
        )
    return shapes[0]


def levels_of(shape, settings: InpainterSettings) -> int:
    """Levels of the network for images of a spatial shape: those asked for, or by the rule of `levels_for`; never so many that a single pixel is left, of
    which a batch of one image has no variance to normalise by."""
    from ..models.partial import levels_for

    most = levels_for(shape)
    if settings.levels > most and math.prod(-(-n // 2**settings.levels) for n in shape) < 2:
        raise MedXAIError(
            f"--levels is {settings.levels}, which leaves one pixel of images of {' × '.join(map(str, shape))}; give at most {most}."
        )
    return settings.levels or most


def fields(images: Images, settings: InpainterSettings, command: str, volumes, shape=None, count: int = 0) -> dict:
    """What ``model.json`` of an inpainter holds, trained on ``count`` images; before ``shape`` is known, enough to prepare images."""
    match = Package.read(settings.match) if settings.match else None
    if match:
        about = match.to_json()["input"]
        if settings.size and about["size"]:
            raise MedXAIError(
                f"'{match.name}' takes images of {' × '.join(map(str, about['size']))}, which --match brings along; leave --size out."
            )
    else:
        size = [settings.size] * 2 if settings.size and settings.dims == 2 else None
        about = {
            "spatial_dims": settings.dims,
            "channels": [images.channel],
            "orientation": images.orientation if settings.dims == 2 else None,
            "spacing": None,
            "size": size,
            "fit": "resize",
            "multiple_of": 1,
            "intensity": intensity_of(settings, volumes, settings.dims == 2),
        }
    if not about["size"]:
        about.pop("fit")  # a package names it beside a size only
    size = " × ".join(map(str, shape or ()))
    patches = f"patches of {size} from " if settings.size and not about["size"] else ""
    trained = f"{patches}{count} images" + f" of {size}" * (not patches)
    return {
        "name": images.title or (f"Inpainter for {match.name}" if match else "Inpainter"),
        "description": f"U-Net of partial convolutions (Liu et al. 2018, Major et al. 2020), width {settings.width:g}, trained on {trained}; "
        "for research, never for patients.",
        "source": command,
        **({"license": images.license} if images.license else {}),
        "task": "inpainting",
        "weights": "weights.safetensors",
        "network": {
            "name": "PartialUNet",
            "arguments": {
                "spatial_dims": about["spatial_dims"],
                "channels": len(about["channels"]),
                "levels": levels_of(shape, settings) if shape else 1,
                "width": settings.width,
            },
        },
        "input": about,
        "output": {"labels": list(about["channels"]), "activation": "none"},
    }


def _examples(module, cases, names, shape, settings, path, notes):
    """``examples.png``: the first images kept back; of a volume the slice with most hole."""
    rows = []
    with torch.no_grad():
        for n, one in list(enumerate(cases))[:EXAMPLES]:
            true, hole = (t[None].to(settings.device) for t in kept_back_case(one.x, shape, settings, n))
            made = module(true, (~hole).float())
            image, inside, put = (t[0, 0].cpu().numpy() for t in (true, hole, made))
            if image.ndim == 3:
                k = int(inside.sum((1, 2)).argmax())
                image, inside, put = image[k], inside[k], put[k]
            rows.append((Path(names[n]).name, image, inside, put))
    which = f"The first {len(rows)} of" if len(rows) < len(cases) else "All"
    title = f"{which} {len(cases)} healthy images kept back, random holes, and what the inpainter puts there"
    try:
        examples_page(rows, title, path)
    except MedXAIError as error:
        notes.append(f"examples.png was not written: {error.message}")
