"""Reference distributions: mean and standard deviation of each feature over cases, which normalise the curves of a dream."""

from __future__ import annotations

import json
import math
import os
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..cases import pairs
from ..errors import MedXAIError
from ..explanation import Step
from .names import resolve, without_line
from .radiomic import MAX_BINS, available, compute

_SCHEMA = 1


@dataclass
class Reference:
    """Mean, standard deviation and number of cases of each feature.

    The standard deviation is the sample's (n − 1 in the denominator), so that over the reference's own cases ``z`` has mean 0
    and, again with n − 1, standard deviation 1.

    Attributes
    ----------
    mean, sd : dict of str to float
        By full feature name; NaN where no case has a value, ``sd`` also where only one has.
    n : dict of str to int
        Cases with a value.
    values : dict of str to list of float
        The value of each case, in the order of ``cases``; NaN where undefined.
    cases : list of str
        Names of the cases used.
    skipped : dict of str to str
        Cases that were not used, each with the reason.
    options : dict
        ``ndim``, ``bin_width``, ``max_bins``, ``line_angle``, ``line_length``, ``unit`` and ``versions``.
    notes : list of str
        What is to be told, such as capped grey levels.
    """

    mean: dict[str, float]
    sd: dict[str, float]
    n: dict[str, int]
    values: dict[str, list[float]]
    cases: list[str]
    skipped: dict[str, str] = field(default_factory=dict)
    options: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Full names of the features."""
        return list(self.mean)

    @property
    def unusable(self) -> dict[str, str]:
        """Features whose ``z`` is NaN, each with the reason."""
        found = {}
        for name in self.mean:
            if self.n[name] < 2:
                found[name] = f"{self.n[name]} case{'' if self.n[name] == 1 else 's'} with a value; two are needed"
            elif not self._spread(name):
                found[name] = "the same value in every case"
        return found

    def z(self, name: str, value):
        """``(value − mean) / sd``; NaN for a feature that is not in the reference, or that has no spread there.

        Parameters
        ----------
        name : str
        value : float or ndarray

        Returns
        -------
        float or ndarray
        """
        sd = self._spread(name)
        if np.ndim(value) == 0:
            return (float(value) - self.mean[name]) / sd if sd else math.nan
        value = np.asarray(value, float)
        return (value - self.mean[name]) / sd if sd else np.full(value.shape, np.nan)

    def _spread(self, name) -> float:
        """The standard deviation, or 0 where there is none beyond rounding."""
        sd = self.sd.get(name, math.nan)
        return sd if math.isfinite(sd) and sd > 1e-12 * abs(self.mean[name]) else 0.0

    def differences(self, options: dict) -> list[str]:
        """One sentence for each way in which features computed with ``options`` cannot be compared with this reference."""
        words = {
            "ndim": "dimensions",
            "bin_width": "bin width",
            "line_angle": "line angle",
            "line_length": "line length",
            "unit": "unit",
        }
        found = []
        for key, word in words.items():
            here, there = self.options.get(key), options.get(key)
            if here not in (None, "") and there not in (None, "") and here != there:
                found.append(f"The reference was made with {word} {here}, this run has {there}.")
        return found

    @classmethod
    def from_cases(
        cls,
        cases,
        names=("paper",),
        *,
        bin_width: float = 25.0,
        line_angle: float = 135.0,
        line_length: int = 9,
        max_bins: int = MAX_BINS,
    ) -> Reference:
        """The reference of cases in memory: an iterable of (name, image `Volume`, mask `Volume`). See `reference`."""
        options = dict(bin_width=bin_width, line_angle=line_angle, line_length=line_length, max_bins=max_bins)
        return _last(_gather(((name, lambda pair=pair: pair) for name, *pair in cases), None, names, options))

    @classmethod
    def from_folder(cls, folder, names=("paper",), **options) -> Reference:
        """`reference` driven to its end."""
        return _last(reference(folder, names, **options))

    @classmethod
    def read(cls, path) -> Reference:
        """From a file that `write` made; refused in one sentence when it is something else."""
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise MedXAIError(f"The reference '{path}' cannot be read: {error.strerror or error}.") from None
        except ValueError:
            found = None
        told = f"'{path}' is not a reference distribution; make one with 'medxai features reference FOLDER'."
        if not isinstance(found, dict) or found.get("kind") != "medxai-reference":
            raise MedXAIError(told)
        if found.get("schema") != _SCHEMA:
            raise MedXAIError(f"The reference '{path}' was written by another version of MedXAI; make it again.")
        try:
            features = found["features"]
            number = {None: math.nan}
            return cls(
                {name: float(number.get(one["mean"], one["mean"])) for name, one in features.items()},
                {name: float(number.get(one["sd"], one["sd"])) for name, one in features.items()},
                {name: int(one["n"]) for name, one in features.items()},
                {name: [float(number.get(v, v)) for v in one["values"]] for name, one in features.items()},
                [str(case) for case in found["cases"]],
                dict(found["skipped"]),
                dict(found["options"]),
                list(found["notes"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise MedXAIError(told) from None

    def write(self, path) -> None:
        """To a JSON file (numbers that are not finite as null), in one go: an interrupted write leaves no file behind."""
        found = {
            "kind": "medxai-reference",
            "schema": _SCHEMA,
            "standard_deviation": "sample (n - 1)",
            "options": self.options,
            "cases": self.cases,
            "skipped": self.skipped,
            "notes": self.notes,
            "features": {
                name: {
                    "mean": _finite(self.mean[name]),
                    "sd": _finite(self.sd[name]),
                    "n": self.n[name],
                    "values": [_finite(value) for value in self.values[name]],
                }
                for name in self.mean
            },
        }
        path = Path(path)
        try:
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        except OSError as error:
            raise MedXAIError(f"'{path}' cannot be written: {error.strerror or error}.", kind="disk") from None
        try:
            with open(handle, "w", encoding="utf-8") as file:
                json.dump(found, file, indent=1, ensure_ascii=False, allow_nan=False)
                file.write("\n")
            os.replace(temporary, path)
        except BaseException as error:
            Path(temporary).unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise MedXAIError(f"'{path}' cannot be written: {error.strerror or error}.", kind="disk") from None
            raise


def reference(
    folder,
    names=("paper",),
    *,
    segment: str | None = None,
    bin_width: float = 25.0,
    line_angle: float = 135.0,
    line_length: int = 9,
    max_bins: int = MAX_BINS,
):
    """The reference distribution of the image and mask pairs in a folder; a generator of steps that ends with it.

    Pairs are found in any of three layouts: ``NAME.nii.gz`` or ``NAME_image.nii.gz`` beside ``NAME_mask.nii.gz`` (also
    ``_seg``, ``_label``); folders that hold ``image.*`` and ``mask.*`` (or ``seg.*``, ``label.*``), one for each case; or
    ``images/NAME.*`` with ``masks/NAME.*`` (or ``labels/``). Files are NIfTI, NRRD, MetaImage, PNG or JPEG.

    Parameters
    ----------
    folder : path
    names : iterable of str
        As `resolve` takes them.
    segment : str, optional
        Name or label value of the segment; may be left out where each mask holds one.
    bin_width, line_angle, line_length, max_bins
        As in `compute`; they are recorded.

    Yields
    ------
    Step

    Returns
    -------
    Reference
        A case that cannot be read, or whose mask has no features, is skipped and told in ``skipped``.

    Raises
    ------
    MedXAIError
        When the folder holds no pair or no case could be used, pyradiomics is missing, or a name does not exist.
    """
    found = pairs(folder)
    options = dict(bin_width=bin_width, line_angle=line_angle, line_length=line_length, max_bins=max_bins)
    loaders = ((name, lambda image=image, mask=mask: _load(image, mask, segment)) for name, image, mask in found)
    return (yield from _gather(loaders, len(found), names, options))


def _load(image, mask, segment):
    from .. import io

    return io.read_volume(image), io.read_mask(mask, segment)


def _gather(loaders, total, names, options):
    """Features of each case as it is loaded, then their distribution."""
    names = [names] if isinstance(names, str) else list(names)
    resolve(names, 3 if not any(name.startswith("shape2D") for name in names) else 2)  # a wrong name is refused at once
    rows, skipped, notes, full, ndim, units = {}, {}, {}, None, None, set()
    for number, (name, load) in enumerate(loaders):
        if total:
            yield Step(number / total, f"Case {number + 1} of {total}: {name}")
        try:
            image, mask = load()
            here = 2 if 1 in image.shape else 3
            if ndim not in (None, here):
                raise MedXAIError(f"it has {here} dimensions, the cases before it {ndim}")
            values = compute(image, mask, names, ndim=here, **options)
        except MedXAIError as error:
            skipped[name] = error.message
            continue
        except Exception as error:  # a damaged file is one case less, not the end
            skipped[name] = f"{type(error).__name__}: {error}"
            continue
        masked = without_line(values)
        if masked:
            there, told = available()
            if not there:
                raise MedXAIError(told, kind="missing")
        if masked and not any(math.isfinite(values[one]) for one in masked):
            skipped[name] = "; ".join(values.notes) or "no feature has a value"
            continue
        if name in rows:  # the same name in two layouts
            name = f"{name} ({number + 1})"
        full, ndim, rows[name] = list(values), here, values
        units.add(image.unit)
        for text in values.notes:
            notes.setdefault(text.split(":")[0], [text, []])[1].append(name)
    if not rows:
        first = next(iter(skipped.items()), None)
        told = f" (the first: {first[0]}: {first[1]})" if first else ""
        raise MedXAIError(
            f"None of {len(skipped)} cases could be used{told}; check that images and masks belong together."
        )
    columns = {one: [float(row[one]) for row in rows.values()] for one in full}
    summary = {one: _distribution(values) for one, values in columns.items()}
    recorded = {"ndim": ndim, **options, "unit": units.pop() if len(units) == 1 else "", "versions": _versions()}
    told = [f"{text} (cases: {', '.join(cases)})" for text, cases in notes.values()]
    found = Reference(
        {one: s[0] for one, s in summary.items()}, {one: s[1] for one, s in summary.items()},
        {one: s[2] for one, s in summary.items()}, columns, list(rows), skipped, recorded, told,
    )  # fmt: skip
    found.notes += [f"'{one}' cannot normalise: {reason}." for one, reason in found.unusable.items()]
    yield Step(1.0, f"{len(rows)} cases, {len(skipped)} skipped")
    return found


def _distribution(values):
    """Mean, sample standard deviation and number of the finite values, in exact arithmetic up to the last rounding."""
    finite = [value for value in values if math.isfinite(value)]
    mean = statistics.fmean(finite) if finite else math.nan
    if len(finite) < 2:
        return mean, math.nan, len(finite)
    return mean, statistics.stdev(finite), len(finite)


def _finite(value):
    return value if math.isfinite(value) else None


def _versions() -> dict[str, str]:
    import importlib.metadata

    found = {}
    for package in ("medxai", "pyradiomics", "numpy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _last(steps) -> Reference:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
