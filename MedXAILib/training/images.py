"""Images to train on that need no class: from a folder, or from a table; slices of volumes for 2-D networks."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import MedXAIError
from ..explanation import Step
from ..package import Package
from ..volume import Volume
from .labelled import ENDINGS, SIDES, found_image, read_table, require_columns, table_of

FEWEST = 8  # images, those kept back included
_DICOM = (".dcm", ".ima")


@dataclass
class Image:
    """One image, or a slice of one; images of one ``group`` (a patient, a volume) are kept back together."""

    name: str
    volume: Volume
    slice: str = ""  # for 2-D networks, such as ``k:57``
    group: str = ""


@dataclass
class Images:
    """What a network is trained on; ``skipped`` tells of each image that could not be used why."""

    images: list[Image]
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    title: str = ""  # of the package; by default made of what it fits
    channel: str = "image"  # what a package calls its input
    orientation: str | None = None  # of the images, as a model package has it
    license: str = ""  # of the package, where it is known
    fingerprint: str = ""  # differs when the images' voxels, names or groups do


def read_images(
    folder, settings, package: Package | None, dims: int, what: str, all_rows: str = ""
) -> Generator[Step, None, Images]:
    """Read the images of a folder.

    Parameters
    ----------
    folder : path
        With images, at any depth; or with a table of them (``settings.table``, or ``labels.csv`` in it), whose rows ``where`` and ``split_column`` select.
        For a 3-D network volumes (DICOM series: one folder each). For a 2-D network a volume of several slices gives each that is not constant.
    settings : InpainterSettings or CycleTrainingSettings
        Its ``table``, ``image_column``, ``where``, ``split_column``, ``group_column``.
    package : Package, optional
        The network that the images are for: which slices it takes.
    dims : int
        Spatial dimensions of the network that is trained.
    what : str
        What is trained, such as ``an inpainter``.
    all_rows : str
        What every row of a table is taken for when none are selected.

    Raises
    ------
    MedXAIError
        When the folder, the table or its columns are missing, images are colour pictures, or fewer than `FEWEST` can be used. A bad image alone is
        skipped, and told.
    """
    from .. import io

    folder = Path(folder)
    if not folder.is_dir():
        raise MedXAIError(f"There is no folder '{folder}'; give the folder that holds the images.")
    listed, skipped, notes = listed_images(folder, settings, dims, all_rows=all_rows)
    if package and len(package.input.channels) > 1:
        raise MedXAIError(
            f"'{package.name}' takes {len(package.input.channels)} channels, and {what} is trained on images of one; choose a model of one channel."
        )
    found, prints, colour, volumes = [], [], [], []
    for number, (name, path, group) in enumerate(listed):
        if number % 16 == 0:
            yield Step(number / len(listed), f"Image {number + 1} of {len(listed)}")
        try:
            volume = io.read_volume(path)
            volume.require_finite()
            some = _usable(name, volume, group, dims, package, what)
        except MedXAIError as error:
            skipped[name] = error.message
            if "colour picture" in error.message:
                colour.append(name)
            continue
        except Exception as error:  # a damaged file is one image less, not the end
            skipped[name] = f"{type(error).__name__}: {error}"
            continue
        found += some
        volumes.append((path, volume))
        prints.append((name, group, hashlib.blake2b(np.ascontiguousarray(volume.array)).hexdigest()))
    if colour:
        raise MedXAIError(
            f"{len(colour)} of the images are colour pictures (the first: {colour[0]}); save all of them as grey values."
        )
    require_enough(found, skipped, what)
    oriented = dims == 2 and all(not path.name.lower().endswith((".png", ".jpg", ".jpeg", *_DICOM)) for path, _ in volumes)  # fmt: skip
    planes = {volume.patient_axes[2] for _, volume in volumes}
    first = volumes[0][1].orientation
    orientation = first[1] + first[0] if oriented and len(planes) == 1 else None
    fingerprint = hashlib.sha256(repr(prints).encode()).hexdigest()
    return Images(found, skipped, notes, orientation=orientation, fingerprint=fingerprint)


def require_enough(images, skipped, what: str) -> None:
    """Refuse to train on next to nothing."""
    if len(images) < FEWEST:
        told = "".join(f" (the first skipped: {name}: {why})" for name, why in list(skipped.items())[:1])
        raise MedXAIError(
            f"{len(images)} images can be used{told}; {what} needs at least {FEWEST}, and hundreds to be any good."
        )


def _usable(name, volume, group, dims, package, what) -> list[Image]:
    if dims == 3:
        if 1 in volume.shape:
            raise MedXAIError(f"it is one slice, and {what} in 3-D takes volumes")
        if volume.array.min() == volume.array.max():
            raise MedXAIError("it has one value only")
        return [Image(name, volume, "", group or name)]
    from ..models.geometry import plane_axis

    axis = plane_axis(package, volume) if package else 0
    count = volume.shape[axis]
    slices = np.moveaxis(volume.array, axis, 0).reshape(count, -1)
    there = np.flatnonzero(slices.min(1) < slices.max(1))
    if not len(there):
        raise MedXAIError("it has one value only")
    if count == 1:
        return [Image(name, volume, "", group or name)]
    return [Image(f"{name} {'kji'[axis]}:{k}", volume, f"{'kji'[axis]}:{k}", group or name) for k in there]


def listed_images(folder: Path, settings, dims: int, side: str = "train", all_rows: str = ""):
    """Name, path and group of each image of a folder; those of its table that have no file, with the reason; notes.

    ``side``: of a table with ``split_column`` the rows with train, or with test.
    """
    table = table_of(folder, settings.table)
    if table is not None:
        return _from_table(folder, table, settings, side, all_rows)
    if side == "train" and (settings.where or settings.split_column or settings.group_column):
        raise MedXAIError(f"'{folder}' has no table (labels.csv); --where, --split-column and --group-column name columns of one (--table).")  # fmt: skip
    listed = {}
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        if path.name.lower().endswith(ENDINGS) and path.is_file() and not any(p.startswith(".") for p in inner.parts):
            if dims == 3 and path.name.lower().endswith(_DICOM):  # a series is one volume
                path = path.parent
            name = path.relative_to(folder).as_posix()
            listed[name] = (name, path, "")
    if not listed:
        raise MedXAIError(f"'{folder}' holds no image; it takes {', '.join(ENDINGS[:6])}, … or a table (labels.csv, --table).")  # fmt: skip
    return list(listed.values()), {}, []


def _from_table(folder, table, settings, wanted_side, all_rows):
    rows, names = read_table(table)
    group = settings.group_column or ("patient_id" if "patient_id" in names else "")
    split = settings.split_column or ("split" if "split" in names else "")
    require_columns(table, {"image": settings.image_column, "split": split, "group": group}, names)
    wanted = [tuple(part.strip() for part in one.split("=", 1)) for one in settings.where]
    for column, _ in wanted:
        if column not in names:
            raise MedXAIError(f"The table '{table}' has no column '{column}' (--where); it has {', '.join(names)}.")
    chosen = [row for row in rows if all((row[column] or "").strip() == value for column, value in wanted)]
    rows_there = len(chosen)
    if split:
        sides = [(row[split] or "").strip().lower() for row in chosen]
        chosen = [row for row, side in zip(chosen, sides) if SIDES.get(side) == wanted_side]
    if not chosen:
        told = " and ".join([*settings.where, *([f"{split}={wanted_side}"] if split else [])])
        raise MedXAIError(
            f"No row of the table '{table}' has {told or 'an image'}; see its columns {', '.join(names)}."
        )
    listed, skipped = {}, {}
    for row in chosen:
        name = (row[settings.image_column] or "").strip()
        path = found_image(folder, name)
        if path is None:
            skipped[name] = "there is no such file"
        else:
            listed.setdefault(path, (name, path, (row[group] or "").strip() if group else ""))
    notes = (
        [f"Every row of {table.name} was taken for {all_rows} (--where selects rows)."]
        if all_rows and not settings.where
        else []
    )
    if not settings.split_column and len(chosen) < rows_there:
        notes.append(f"Of {rows_there} rows of {table.name} the {len(chosen)} with {split}={wanted_side} were taken.")
    return sorted(listed.values()), skipped, notes


def snapshot(folder, settings) -> list[tuple]:
    """Name, size and time of every file of a folder of images, and of its table; differs when the folder has changed."""
    folder = Path(folder)
    table = table_of(folder, settings.table) if folder.is_dir() else None
    files = [path for path in [*folder.rglob("*"), *([table] if table else [])] if path.is_file()]
    return sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)


def kept_back(images: list[Image], settings) -> np.ndarray:
    """Which images are kept back: whole groups in an order drawn with the seed until there are enough; where there is one group alone, images.

    Returns
    -------
    ndarray of bool, one per image
    """
    groups = np.array([one.group or f"\0{n}" for n, one in enumerate(images)])
    if len(np.unique(groups)) == 1:
        groups = np.arange(len(images))
    names, counts = np.unique(groups, return_counts=True)
    wanted, chosen = max(1, round(settings.validation_share * len(images))), []
    for n in np.random.default_rng([settings.seed, 2]).permutation(len(names))[:-1]:  # one stays to train on
        if counts[np.isin(names, chosen)].sum() >= wanted:
            break
        chosen.append(names[n])
    return np.isin(groups, chosen)
