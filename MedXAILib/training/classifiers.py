"""Training classifiers (those of Kumar & Menkovski 2016 also side by side), judging them, and writing packages, tables and figures."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from pathlib import Path

import numpy as np

from ..errors import MedXAIError
from ..evaluation.misclassified import misclassified_page
from ..explanation import Step, part
from ..files import check_new_folder, write_csv
from ..models import load
from ..models.resample import spaced_axis
from ..resume import Log, resumable
from .classification import images_of, train_classifier
from .classifier_judging import (
    accuracies,
    confusion,
    filter_maps,
    heat_shares,
    landmark_rows,
    probabilities,
    random_weights,
)
from .labelled import LabelledCases, folder_images
from .saving import command_of, epoch_rows, finished, intensity_of, lift, write_figures
from .settings import CLASSIFIERS, PAPER_CLASSIFIERS, ClassificationSettings

EPOCHS = "epochs.jsonl"  # finished epochs, while the training is not complete
_PAPERS = dict.fromkeys(PAPER_CLASSIFIERS, " of Kumar & Menkovski 2016") | {"strided": " of Katzmann et al. 2021"}
POLICY = "The weights are those after the last epoch; the images kept back were used for no choice."


def train_images(source, folder, settings: ClassificationSettings) -> Generator[Step, None, dict]:
    """`train_classifiers` on the images of a folder (see `folder_images`)."""
    check_new_folder(folder)
    cases = yield from part(folder_images(source, settings), 0.0, 0.05)
    command = command_of(settings, "FOLDER", "classification")
    return (yield from part(train_classifiers(cases, folder, settings, command), 0.05, 1.0))


def train_classifiers(
    cases: LabelledCases, folder, settings: ClassificationSettings, command: str, more: dict | None = None
) -> Generator[Step, None, dict]:
    """Train on some cases, judge on the others.

    Parameters
    ----------
    cases : LabelledCases
    folder : path
        New. A training that was stopped is kept in ``.NAME.partial`` beside it and gone on from. It is the model package, or holds one for each
        network; with ``figures.json``, ``confusion.csv``, ``cases.csv``, ``epochs.csv``, ``landmarks.csv`` and, in the package, ``misclassified.png``.
    settings : ClassificationSettings
    command : str
        How to do the same again, for the packages and the figures.
    more : dict, optional
        Further entries of the figures.

    Returns
    -------
    dict
        The figures.
    """
    _keep_of_size(cases, settings)
    about = {"settings": settings.to_json(), "labels": cases.labels, "images": cases.fingerprint}
    with resumable(folder) as partial:
        log = Log(partial / EPOCHS, about, ("finished epochs of another training", "settings and images"))
        figures = yield from _work(cases, partial, settings, command, log)
        figures |= more or {}
        write_figures(partial, figures)
        if len(settings.networks) == 1:
            lift(partial / settings.network)
        shutil.rmtree(partial / ".state")
        (partial / EPOCHS).unlink()
    return figures


def _keep_of_size(cases: LabelledCases, settings: ClassificationSettings) -> None:
    """With a spacing: skip the images that are not of the network's size after resampling, and refuse when a class is gone."""
    if not settings.spacing:
        return
    wanted = settings.size * settings.spacing
    for name in ("train", "test"):
        kept = []
        for one in getattr(cases, name):
            rows, columns = (
                spaced_axis(axis, one.volume.shape[axis], False, settings.spacing / one.volume.spacing[2 - axis]).count
                for axis in (1, 2)
            )
            if (rows, columns) == (settings.size, settings.size):
                kept.append(one)
            else:
                cases.skipped[one.name] = (
                    f"it has {rows} × {columns} pixels of {settings.spacing:g} mm, and the network takes {settings.size} × {settings.size} ({wanted:g} mm)"
                )
        setattr(cases, name, kept)
    gone = [label for label in cases.labels if not any(one.label == label for one in cases.train)]
    if gone or not cases.test:
        told = next(iter(cases.skipped.items()), None)
        raise MedXAIError(
            f"No image {f'of the class {gone[0]!r} ' if gone else ''}of {wanted:g} × {wanted:g} mm is left to {'train' if gone else 'judge'} on"
            + (f" (such as {told[0]}: {told[1]})" if told else "")
            + "; choose --spacing and --size by the images."
        )


def epochs_kept(folder) -> int:
    """Finished epochs of a training that was stopped before ``folder`` was complete."""
    return finished(folder, EPOCHS)


def _work(cases, partial, settings, command, log):
    networks, found, tables = settings.networks, {}, {}
    begun = fields(cases, settings, command, networks[0])  # the input is the same for all
    yield Step(0.0, "Preparing images")
    images, labels = images_of(cases.train, begun)
    for number, network in enumerate(networks):
        shutil.rmtree(partial / network, ignore_errors=True)  # of a start that was stopped later
        training = train_classifier(
            images, labels, partial / network, fields(cases, settings, command, network), settings, network,
            partial / ".state" / network, log,
        )  # fmt: skip
        yield from part(training, 0.9 * number / len(networks), 0.9 * (number + 1) / len(networks))
    for number, network in enumerate(networks):
        judging = _judge(partial / network, cases, settings, network)
        start, stop = ((n + number) / len(networks) for n in (0, 1))
        found[network], one = yield from part(judging, 0.9 + 0.1 * start, 0.9 + 0.1 * stop)
        for name, columns in one.items():
            for title, values in columns.items():
                tables.setdefault(name, {}).setdefault(title, []).extend(values)
    rows = epoch_rows(partial / EPOCHS, "network")
    tables["epochs"] = {name: [row[name] for row in rows] for name in rows[0]}
    for name, columns in tables.items():
        write_csv(partial / f"{name}.csv", columns)
    for network in networks:
        found[network]["seconds_of_training"] = sum(row["seconds"] for row in rows if row["network"] == network)
    sides = (("training", cases.train), ("test", cases.test))
    return {
        "command": command,
        "settings": settings.to_json(),
        "policy": POLICY,
        "labels": list(cases.labels),
        "cases": {name: len(side) for name, side in sides}
        | {f"{name}_by_class": {label: sum(one.label == label for one in side) for label in cases.labels} for name, side in sides}
        | {f"{name}_groups": len({one.group for one in side if one.group}) for name, side in sides}
        | {"skipped": cases.skipped},
        "notes": cases.notes,
        "networks": found,
    }  # fmt: skip


def _judge(folder, cases, settings, network):
    """Figures, and the columns of the tables, of one network; and its page of misclassified cases."""
    model = load(folder, device=settings.device)
    labels = list(cases.labels)
    answers = probabilities(model, cases.test)
    true, predicted = np.array([labels.index(one.label) for one in cases.test]), answers.argmax(1)
    matrix = confusion(true, predicted, len(labels))
    figures = {"parameters": sum(p.numel() for p in model.module.parameters())} | accuracies(matrix, labels)
    tables = {
        "confusion": {"network": [network] * len(labels), "true": labels}
        | {f"as {label}": matrix[:, n].tolist() for n, label in enumerate(labels)},
        "cases": {
            "network": [network] * len(cases.test),
            "case": [one.name for one in cases.test],
            "group": [one.group for one in cases.test],
            "true": [one.label for one in cases.test],
            "predicted": [labels[n] for n in predicted],
        }
        | {f"p {label}": answers[:, n].tolist() for n, label in enumerate(labels)},
    }
    yield Step(0.1, f"{network}: judged")
    if settings.heat_cases:
        chosen = np.sort(np.random.default_rng([settings.seed, 4]).permutation(len(cases.test))[: settings.heat_cases])
        some = [cases.test[n] for n in chosen]
        trained = yield from part(heat_shares(model, some, settings.filters), 0.1, 0.5)
        drawn = yield from part(heat_shares(random_weights(model, settings.seed), some, settings.filters), 0.5, 0.9)
        rows = landmark_rows(trained, drawn)
        tables["landmarks"] = {"network": [network] * len(rows["landmark"])} | rows
        figures["landmarks"] = [dict(zip(rows, row)) for row in zip(*rows.values())]
        for name in dict.fromkeys(rows["landmark"]):
            shares = np.full(len(cases.test), np.nan)
            shares[chosen] = [row.get(name, (np.nan, np.nan))[1] for row in trained]
            tables["cases"][f"heat {name}"] = shares.tolist()
    wrong = sorted(np.flatnonzero(true != predicted), key=lambda n: cases.test[n].name)[: settings.show_errors]
    if wrong:
        page = []
        for n in wrong:
            case = cases.test[n]
            told = f"{Path(case.name).name}\n{case.label}, taken for {labels[predicted[n]]} ({answers[n, predicted[n]]:.2f})"
            page.append((told, case.volume.array[0], filter_maps(model, case)))
            yield Step(0.9, f"{network}: misclassified cases")
        count = int((true != predicted).sum())
        title = f"{network}: the first {len(wrong)} by name of {count} misclassified among {len(true)}, each with its strongest filters"
        try:
            misclassified_page(page, title, folder / "misclassified.png")
        except MedXAIError as error:
            cases.notes.append(f"misclassified.png was not written: {error.message}")
    return figures, tables


def _arguments(network: str, labels: int, settings: ClassificationSettings) -> dict:
    if network == "strided":
        about = {"size": settings.size, "width": settings.width}
        return {"spatial_dims": 2, "in_channels": 1, "out_channels": labels} | about
    if network != "resnet":
        about = {name: getattr(settings, name) for name in ("size", "width", "dropout")}
        return {"in_channels": 1, "out_channels": labels} | about
    return {
        "block": "basic", "layers": [1, 1, 1, 1], "block_inplanes": [max(4, round(n * settings.width)) for n in (16, 32, 64, 128)],
        "spatial_dims": 2, "n_input_channels": 1, "num_classes": labels, "conv1_t_size": 5, "conv1_t_stride": 1, "no_max_pool": True,
    }  # fmt: skip


def fields(cases: LabelledCases, settings: ClassificationSettings, command: str, network: str) -> dict:
    """What ``model.json`` of a trained network holds."""
    whole = [*cases.train, *cases.test]
    title = cases.title or (" or ".join(cases.labels) if len(cases.labels) < 4 else f"{len(cases.labels)} classes")
    return {
        "name": f"{title} ({network})",
        "description": f"The {network} network{_PAPERS.get(network, '')}, width {settings.width:g}; for research,"
        " never for patients.",
        "source": command,
        **({"license": cases.license} if cases.license else {}),
        "task": "classification",
        "weights": "weights.safetensors",
        "network": {"name": CLASSIFIERS[network], "arguments": _arguments(network, len(cases.labels), settings)},
        "input": {
            "spatial_dims": 2,
            "channels": [cases.channel],
            "orientation": cases.orientation,
            "spacing": [settings.spacing] * 2 if settings.spacing else None,
            "size": [settings.size] * 2,
            "fit": "window" if settings.spacing else "resize",
            "multiple_of": 1,
            "intensity": intensity_of(settings, [one.volume for one in whole]),
        },
        "output": {"labels": list(cases.labels), "activation": "softmax"},
    }  # fmt: skip
