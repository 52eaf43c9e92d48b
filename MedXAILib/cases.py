"""Cases in a folder: which image belongs to which mask."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from .errors import MedXAIError, nearest

_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".png", ".jpg", ".jpeg")
_MASK_WORDS = ("_mask", "_seg", "_segmentation", "_label", "_labels", "-mask", "-seg", "-label")
_MASK_NAMES = ("mask", "seg", "segmentation", "label", "labels")
_MASK_FOLDERS = ("masks", "labels", "segmentations")
#: Of images that have a class (`listed_images`, training).
ENDINGS = (".png", ".jpg", ".jpeg", ".nrrd", ".nhdr", ".nii.gz", ".nii", ".mha", ".mhd", ".dcm", ".ima")
SIDES = {"train": "train", "training": "train", "test": "test", "testing": "test"}

LAYOUTS = (
    "NAME.nii.gz beside NAME_mask.nii.gz (or _seg, _label; NAME_image also names the image),"
    " folders that hold image.* and mask.*, or images/NAME.* with masks/NAME.* or labels/NAME.*"
)


def pairs(folder) -> list[tuple[str, Path, Path]]:
    """(name, image, mask) of the cases in a folder, in any of the `LAYOUTS`; refused when there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise MedXAIError(f"There is no folder '{folder}'; give the folder that holds the image and mask pairs.")
    found = _beside(folder) + _across(folder)
    for inner in sorted(p for p in folder.iterdir() if p.is_dir()):
        found += [(inner.name, image, mask) for image, mask in [_named(inner)] if image and mask]
    if not found:
        raise MedXAIError(f"'{folder}' holds no image and mask pair; it takes {LAYOUTS}.")
    return found


def incomplete(folder) -> dict[str, str]:
    """Files in the places of cases that belong to no pair, each with what is missing; such cases are not in `pairs`."""
    folder = Path(folder)
    used = {path for _, *paths in pairs(folder) for path in paths}
    places = [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]
    found = {}
    for place in (folder, *sorted(places)):
        for path in _files(place).values():
            if path not in used:
                stem = path.name.lower().split(".")[0]
                mask = place.name in _MASK_FOLDERS or stem in _MASK_NAMES or stem.endswith(_MASK_WORDS)
                found[str(path.relative_to(folder))] = f"no {'image' if mask else 'mask'} belongs to it"
    return found


def _files(folder) -> dict[str, Path]:
    """File name without its ending -> file, of the volumes in a folder."""
    found = {}
    for path in sorted(folder.iterdir()):
        ending = next((e for e in _ENDINGS if path.name.lower().endswith(e)), None)
        if ending and not path.is_dir() and not path.name.startswith("."):
            found.setdefault(path.name[: -len(ending)], path)
    return found


def _beside(folder):
    files = _files(folder)
    found = []
    for stem, path in files.items():
        word = next((w for w in _MASK_WORDS if stem.lower().endswith(w)), None)
        if word is None:
            continue
        name = stem[: -len(word)]
        image = next((files[other] for other in (name, name + "_image", name + "-image") if other in files), None)
        if image is not None:
            found.append((name, image, path))
    return found


def _across(folder):
    images = folder / "images"
    masks = next((folder / m for m in _MASK_FOLDERS if (folder / m).is_dir()), None)
    if masks is None or not images.is_dir():
        return []
    known, found = _files(masks), []
    for stem, image in _files(images).items():
        mask = next((known[stem + w] for w in ("", *_MASK_WORDS) if stem + w in known), None)
        if mask is not None:
            found.append((stem, image, mask))
    return found


def _named(folder):
    files = {stem.lower(): path for stem, path in _files(folder).items()}
    return files.get("image"), next((files[name] for name in _MASK_NAMES if name in files), None)


# ---- images with a class ---------------------------------------------------------------------------------------------


def table_of(folder: Path, given: str) -> Path | None:
    """The table of the images in a folder: the one that was given, here or in the folder, or its ``labels.csv``; None without."""
    table = Path(given) if given else folder / "labels.csv"
    if given and not table.is_file():
        if not (folder / given).is_file():
            raise MedXAIError(f"There is no table '{given}', here or in '{folder}'.")
        table = folder / given
    return table if table.is_file() else None


def read_table(table: Path) -> tuple[list[dict], list[str]]:
    """Rows and column names of a table of images (CSV)."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            return list(reader), list(reader.fieldnames or [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MedXAIError(f"The table '{table}' cannot be read ({error}); save it as CSV in UTF-8.") from None


def require_columns(table, columns: dict[str, str], names) -> None:
    """Refuse a column, by what it is for, that the table does not have; an empty one is not wanted."""
    for what, column in columns.items():
        if column and column not in names:
            raise MedXAIError(
                f"The table '{table}' has no column '{column}'{nearest(column, names)}; it has {', '.join(names)} (--{what}-column)."
            )


def found_image(folder: Path, image: str) -> Path | None:
    """The file that a table means; None where there is none."""
    for place in (folder, folder / "images"):
        for ending in ("", *ENDINGS):
            path = place / (image + ending)
            if image and path.is_file():
                return path
    return None


@dataclass(frozen=True)
class LabelledImage:
    """An image file with its class; ``side`` is ``train``, ``test`` or empty; ``cause`` and ``mask`` are further files on its grid, where the table names them."""

    name: str
    path: Path
    label: str
    side: str = ""
    cause: Path | None = None
    mask: Path | None = None


def labelled_images(folder) -> tuple[list[LabelledImage], dict[str, str]]:
    """The images of a folder with their classes, by name: of its ``labels.csv`` (columns ``image`` and ``label``, and where there are such ``split``, ``cause``, ``mask``), else
    one folder per class.

    Returns
    -------
    images, skipped : list of LabelledImage, dict of str
        Those of the table that cannot be used, each with the reason.

    Raises
    ------
    MedXAIError
        When there is no folder, no image, or the table lacks one of the two columns.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MedXAIError(f"There is no folder '{folder}'; give the folder that holds the images.")
    table, found, skipped = table_of(folder, ""), [], {}
    if table is None:
        for inner in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
            for path in sorted(inner.rglob("*")):
                if path.name.lower().endswith(ENDINGS) and path.is_file() and not path.name.startswith("."):
                    found.append(LabelledImage(path.relative_to(folder).as_posix(), path, inner.name))
    else:
        rows, names = read_table(table)
        require_columns(table, {"image": "image", "label": "label"}, names)
        for row in rows:
            told = {name: (row.get(name) or "").strip() for name in ("image", "label", "split", "cause", "mask")}
            name, side = told["image"], SIDES.get(told["split"].lower(), "")
            paths = {"image": found_image(folder, name)}
            paths |= {what: _beside_image(folder, what, told[what]) for what in ("cause", "mask")}
            if not told["label"]:
                skipped[name] = "it has no class"
            elif paths["image"] is None:
                skipped[name] = "there is no such file"
            elif "split" in names and not side:
                skipped[name] = f"its split is '{told['split']}', neither train nor test"
            elif any(one.path == paths["image"] for one in found):
                skipped[f"{name} (again)"] = "the table has it twice"
            elif lost := [what for what in ("cause", "mask") if told[what] and paths[what] is None]:
                skipped[name] = f"its {lost[0]} '{told[lost[0]]}' is not there"
            else:
                found.append(LabelledImage(name, paths["image"], told["label"], side, paths["cause"], paths["mask"]))
    if not found:
        raise MedXAIError(
            f"'{folder}' holds no image with a class; it takes labels.csv (columns image and label) with the images beside it or in 'images', or one folder of "
            "images per class."
        )
    return sorted(found, key=lambda one: one.name), skipped


def _beside_image(folder: Path, what: str, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / f"{what}s" / name) if name and p.is_file()), None)
