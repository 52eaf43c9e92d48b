"""Images that each have one class: from one folder per class, or from a table; split so that a patient is on one side alone."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..cases import ENDINGS, SIDES, found_image, read_table, require_columns, table_of
from ..errors import MedXAIError
from ..explanation import Step
from ..volume import Volume
from .settings import ClassificationSettings

_PLAIN = (".png", ".jpg", ".jpeg", ".dcm", ".ima")  # pictures and radiographs: used as they are


@dataclass
class Labelled:
    """One image of one slice with its class; images of one ``group`` (a patient) belong on one side of the split."""

    name: str
    volume: Volume
    label: str
    group: str = ""
    side: str = ""  # train or test, where that is given
    oriented: bool = True  # whether the file says how the image lies in the patient
    landmarks: tuple[Volume, ...] = ()  # masks on the volume's grid


@dataclass
class LabelledCases:
    """What a classifier is trained and judged on; ``skipped`` tells of each image that could not be used why."""

    train: list[Labelled]
    test: list[Labelled]
    labels: tuple[str, ...]
    orientation: str | None = None  # of the images, as a model package has it
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    title: str = ""  # of the package; by default made of the classes
    channel: str = "image"  # what a package calls its input
    license: str = ""  # of the package, where it is known
    fingerprint: str = ""  # differs when the images, their classes or their groups do


def folder_images(folder, settings: ClassificationSettings) -> Generator[Step, None, LabelledCases]:
    """Read the images of a folder and split them.

    Parameters
    ----------
    folder : path
        With a table of images and classes (``settings.table``, or ``labels.csv`` in it), or with one folder per class.

    Raises
    ------
    MedXAIError
        When the table or its columns are missing, fewer than two classes or two images of a class can be used, or colour pictures are mixed with grey
        ones. A bad image alone is skipped, and told.
    """
    from .. import io

    folder = Path(folder)
    if not folder.is_dir():
        raise MedXAIError(f"There is no folder '{folder}'; give the folder that holds the images.")
    listed, skipped, notes = _listed(folder, settings)
    found, prints, colour = [], [], []
    for number, one in enumerate(listed):
        if number % 16 == 0:
            yield Step(number / len(listed), f"Image {number + 1} of {len(listed)}")
        try:
            volume = io.read_volume(one["path"])
            volume.require_finite()
            if volume.shape[0] != 1:
                raise MedXAIError(f"it has {volume.shape[0]} slices, and a 2-D classifier takes images of one")
            about = one["path"].stat()
        except MedXAIError as error:
            skipped[one["name"]] = error.message
            if "colour picture" in error.message:
                colour.append(one["name"])
            continue
        except Exception as error:  # a damaged file is one image less, not the end
            skipped[one["name"]] = f"{type(error).__name__}: {error}"
            continue
        oriented = not one["path"].name.lower().endswith(_PLAIN)
        found.append(Labelled(one["name"], volume, one["label"], one["group"], one["side"], oriented))
        prints.append((one["name"], one["label"], one["group"], one["side"], about.st_size, about.st_mtime_ns))
    if colour and found:
        raise MedXAIError(
            f"{len(colour)} of the images are colour pictures and {len(found)} are grey (the first: {colour[0]}); "
            "save all of them as grey values."
        )
    return divided(found, settings, skipped, notes, hashlib.sha256(repr(prints).encode()).hexdigest())


def divided(
    found: list[Labelled], settings: ClassificationSettings, skipped: dict, notes: list, fingerprint: str
) -> LabelledCases:
    """Split images into those to train on and those to judge on; refused where there is too little to learn or to judge."""
    counts = Counter(one.label for one in found)
    told = "".join(f" (the first skipped: {name}: {why})" for name, why in list(skipped.items())[:1])
    if len(counts) < 2:
        raise MedXAIError(
            f"{len(found)} images can be used, of {'one class alone, ' + repr(next(iter(counts))) if counts else 'no class'}{told}; "
            "a classifier needs two classes: a folder for each, or a table with a column of classes (--table, --label-column)."
        )
    few = sorted(label for label, count in counts.items() if count < 2)
    if few:
        raise MedXAIError(f"The class '{few[0]}' has {counts[few[0]]} image that can be used{told}; at least 2 of each are needed.")  # fmt: skip
    labels = tuple(sorted(counts))
    numbers = [labels.index(one.label) for one in found]
    if settings.split_column or any(one.side for one in found):
        tests = np.array([one.side == "test" for one in found])
    else:
        tests = split(
            numbers, [one.group or f"\0{n}" for n, one in enumerate(found)], settings.test_share, settings.seed
        )
    train, test = ([one for one, t in zip(found, tests) if t == side] for side in (False, True))
    for side, name, do in ((train, "train", None), (test, "test", notes.append)):
        for label in labels:
            if not any(one.label == label for one in side):
                if do is None or not side:
                    raise MedXAIError(
                        f"No image of the class '{label}' is on the {name} side of the split; give more images of it, another --seed or "
                        "another --split-column."
                    )
                do(f"No image of the class '{label}' is on the test side, so nothing is known of how it is recognised.")
    both = {one.group for one in train if one.group} & {one.group for one in test}
    if both:
        notes.append(f"{len(both)} groups (such as {min(both)}) are on both sides of the given split, which flatters the figures.")  # fmt: skip
    first = found[0].volume
    one_plane = all(one.oriented and one.volume.patient_axes[2] == first.patient_axes[2] for one in found)
    orientation = first.orientation[1] + first.orientation[0] if one_plane else None
    return LabelledCases(train, test, labels, orientation, skipped, notes, fingerprint=fingerprint)


def split(labels: Sequence[int], groups: Sequence, share: float, seed: int) -> np.ndarray:
    """Which cases are kept for judging: whole groups, each class with its share, at least one of it where it has two groups.

    Groups come in an order drawn with ``seed``; one is taken when that brings the classes nearer to their shares (in sum, in cases).

    Returns
    -------
    ndarray of bool, one per case
    """
    labels, (names, groups) = np.asarray(labels), np.unique(np.asarray(groups, str), return_inverse=True)
    counts = np.zeros((len(names), labels.max() + 1), int)
    np.add.at(counts, (groups, labels), 1)
    total = counts.sum(0)
    missing = np.clip(np.rint(share * total), 1, total - 1)
    left, chosen = (counts > 0).sum(0), np.zeros(len(names), bool)
    for n in np.random.default_rng([seed, 2]).permutation(len(names)):
        keeps = not ((counts[n] > 0) & (left < 2)).any()  # the last group of a class stays to train on
        if keeps and np.abs(missing - counts[n]).sum() < np.abs(missing).sum():
            missing, chosen[n] = missing - counts[n], True
            left = left - (counts[n] > 0)
    return chosen[groups]


def _listed(folder: Path, settings):
    """Images with path, class, group and side; those of the table that have none or no file, with the reason; notes."""
    table = table_of(folder, settings.table)
    if table is not None:
        return _from_table(folder, table, settings)
    if settings.split_column or settings.group_column:
        raise MedXAIError(f"'{folder}' has no table (labels.csv); --group-column and --split-column name columns of one (--table).")  # fmt: skip
    listed = []
    for inner in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        for path in sorted(inner.rglob("*")):
            if path.name.lower().endswith(ENDINGS) and path.is_file() and not path.name.startswith("."):
                name = path.relative_to(folder).as_posix()
                listed.append({"name": name, "path": path, "label": inner.name, "group": "", "side": ""})
    if not listed:
        raise MedXAIError(
            f"'{folder}' holds no folder with images; it takes FOLDER/CLASS/IMAGE ({', '.join(ENDINGS[:6])}, …) or a table (labels.csv, --table)."
        )
    return listed, {}, []


def _from_table(folder, table, settings):
    rows, names = read_table(table)
    group = settings.group_column or ("patient_id" if "patient_id" in names else "")
    columns = {
        "image": settings.image_column,
        "label": settings.label_column,
        "group": group,
        "split": settings.split_column,
    }
    require_columns(table, columns, names)
    listed, skipped, seen = [], {}, set()
    for row in rows:
        image, label, group, side = ((row[column] or "").strip() if column else "" for column in columns.values())
        side = SIDES.get(side.lower(), side)
        path = found_image(folder, image)
        if not label:
            why = "it has no class"
        elif path is None:
            why = "there is no such file"
        elif path in seen:
            why = "the table has it twice"
        elif columns["split"] and side not in ("train", "test"):
            why = f"its split is '{side}', neither train nor test"
        else:
            seen.add(path)
            listed.append({"name": image, "path": path, "label": label, "group": group, "side": side})
            continue
        skipped[image if image not in skipped and path not in seen else f"{image} ({len(skipped) + 1})"] = why
    if not listed:
        raise MedXAIError(
            f"None of the {len(rows)} images of the table '{table}' can be used; put them into '{folder}' or its folder 'images'."
        )
    listed.sort(key=lambda one: one["name"])
    notes = [] if columns["group"] else ["The table names no patients (--group-column), so one may be on both sides of the split."]  # fmt: skip
    return listed, skipped, notes
