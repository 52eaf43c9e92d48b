"""Reference distributions: mean and standard deviation of each feature over cases, which normalise the curves of a dream."""

from __future__ import annotations

import contextlib
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
from ..files import alone, disk_error
from ..resume import Log, cases_together
from .children import cores, side_by_side
from .names import BINNED, LINE, resolve, without_line
from .radiomic import MAX_BINS, check_bins, compute, engine_of

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
        ``ndim``, ``engine``, ``bin_width``, ``bin_count``, ``max_bins``, ``line_angle``, ``line_length``, ``unit`` and ``versions``.
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

    def unlike(self, options: dict) -> list[str]:
        """Features that depend on bins or on the line, where these are not those of ``options``: their values cannot be compared."""
        found = []
        if _bins(self.options) != _bins(options):
            found += [name for name in self.mean if name.startswith(BINNED)]
        if any(self.options.get(key) != options.get(key) for key in ("line_angle", "line_length")):
            found += [name for name in self.mean if name == LINE]
        return found

    def differences(self, options: dict) -> list[str]:
        """One sentence for each way in which features computed with ``options`` cannot be compared with this reference.

        Where bins are counted, their width does not matter; nor does the engine ever, as all give the same values.
        """
        words = {
            "ndim": "dimensions ",
            "bins": "",
            "line_angle": "line angle ",
            "line_length": "line length ",
            "unit": "unit ",
        }
        made, run = ({**one, "bins": _bins(one)} for one in (self.options, options))
        found = []
        for key, word in words.items():
            here, there = made.get(key), run.get(key)
            if here not in (None, "") and there not in (None, "") and here != there:
                found.append(f"The reference was made with {word}{here}, this run has {there}.")
        return found

    @classmethod
    def from_cases(
        cls,
        cases,
        names=("paper",),
        *,
        bin_width: float = 25.0,
        bin_count: int = 0,
        line_angle: float = 135.0,
        line_length: int = 9,
        max_bins: int = MAX_BINS,
        engine: str = "auto",
    ) -> Reference:
        """The reference of cases in memory, (name, image `Volume`, mask `Volume`) one after the other. See `reference`."""
        options = _options(names, bin_width, bin_count, line_angle, line_length, max_bins, engine)
        rows, skipped = {}, {}
        for number, (name, *pair) in enumerate(cases):
            found = _measure(lambda pair=pair: pair, names, options)
            if "skipped" in found:
                skipped[name] = found["skipped"]
            else:
                name = f"{name} ({number + 1})" if name in rows else name
                rows[name] = found | {"case": name}
        return _summary(list(rows.values()), skipped, options)

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
    bin_count: int = 0,
    line_angle: float = 135.0,
    line_length: int = 9,
    max_bins: int = MAX_BINS,
    engine: str = "auto",
    jobs: int | None = None,
    log=None,
):
    """The reference distribution of the image and mask pairs in a folder; a generator of steps that ends with it.

    Pairs are found in any of three layouts: ``NAME.nii.gz`` or ``NAME_image.nii.gz`` beside ``NAME_mask.nii.gz`` (also
    ``_seg``, ``_label``); folders that hold ``image.*`` and ``mask.*`` (or ``seg.*``, ``label.*``), one for each case; or
    ``images/NAME.*`` with ``masks/NAME.*`` (or ``labels/``). Files are NIfTI, NRRD, MetaImage, PNG or JPEG.

    Each case is read and computed in another process, on one core, so neither values nor order depend on ``jobs``;
    closing the generator ends the processes.

    Parameters
    ----------
    folder : path
    names : iterable of str
        As `resolve` takes them.
    segment : str, optional
        Name or label value of the segment; may be left out where each mask holds one.
    bin_width, bin_count, line_angle, line_length, max_bins, engine
        As in `compute`; they are recorded.
    jobs : int, optional
        Cases at once; by default one for each core, at most four.
    log : path, optional
        A file that finished cases are added to, one by one. Those that it holds, with the same files (path, size, time
        of change), are not computed again; skipped ones are tried again. One run at a time may add to it.

    Yields
    ------
    Step

    Returns
    -------
    Reference
        A case that cannot be read, whose mask has no features, or over which a process ended twice, is skipped and told
        in ``skipped``.

    Raises
    ------
    MedXAIError
        When the folder holds no pair, no case could be used, a name does not exist or none is given, ``log`` is of other
        settings or in use, or pyradiomics is asked for and missing.
    """
    names = [names] if isinstance(names, str) else list(names)
    options = _options(names, bin_width, bin_count, line_angle, line_length, max_bins, engine)
    if jobs is not None and jobs < 1:
        raise MedXAIError(f"{jobs} cases at once cannot be computed; give --jobs a number from 1 on.")
    listed, skipped = pairs(folder), {}
    yield Step(0.0, f"{len(listed)} cases")
    about = {"kind": "medxai-reference", "features": names, "segment": segment or "", **options}
    about["versions"] = _versions(options)
    same = {"segment": segment, "names": names, "options": options}

    def work(todo):
        tasks = [{"case": {"image": str(image), "mask": str(mask), **same}} for image, mask in todo]
        with contextlib.closing(side_by_side(tasks, options["engine"], jobs or min(4, cores()))) as answers:
            for number, found in answers:
                if "died" in found:
                    reason = f"its process ended twice while it was computed ({found['died']}), as it does for want of memory"
                    yield number, f"{reason}: try fewer at once (--jobs)"
                else:
                    yield number, found.get("skipped") or found

    with _held(log):
        log = Log(log, about, ("finished cases of another reference", "settings"))
        rows, _ = yield from cases_together(listed, log, skipped, work)
    found = _summary(rows, skipped, options)
    yield Step(1.0, f"{len(found.cases)} cases, {len(found.skipped)} skipped")
    return found


@contextlib.contextmanager
def _held(log):
    """Keep other runs away from a log."""
    with contextlib.ExitStack() as held:
        try:
            if log is not None:
                refusal = f"Another run is adding to '{log}'; wait for it, stop it, or choose another file."
                held.enter_context(alone(log, refusal))
        except OSError as error:
            raise disk_error(error, log) from None
        yield


def measure(image: str, mask: str, segment: str | None, names: list[str], options: dict) -> dict:
    """One case of two files: ``values``, ``notes``, ``ndim`` and ``unit``, or the reason why it is ``skipped``."""

    def load():
        from .. import io

        return io.read_volume(image), io.read_mask(mask, segment)

    return _measure(load, names, options)


def _measure(load, names, options) -> dict:
    renamed = []
    try:
        image, mask = load()
        ndim = 2 if 1 in image.shape else 3
        resolve(names, ndim, renamed)
        values = compute(image, mask, names, ndim=ndim, **options)
    except MedXAIError as error:
        return {"skipped": error.message}
    except Exception as error:  # a damaged file is one case less, not the end
        return {"skipped": f"{type(error).__name__}: {error}"}
    masked = without_line(values)
    if masked and not any(math.isfinite(values[one]) for one in masked):
        return {"skipped": " ".join(one for one in values.notes if one not in renamed) or "no feature has a value"}
    return {
        "values": {one: float(value) for one, value in values.items()},
        "notes": list(values.notes),
        "ndim": ndim,
        "unit": image.unit,
    }


def _options(names, bin_width, bin_count, line_angle, line_length, max_bins, engine) -> dict:
    """The options of `compute`, with the engine that it comes to; what is wrong is refused at once."""
    names = [names] if isinstance(names, str) else list(names)
    if not resolve(names, 3 if not any(name.startswith("shape2D") for name in names) else 2):
        raise MedXAIError("A reference without features normalises nothing; name at least one, or 'paper'.")
    check_bins(bin_width, bin_count, max_bins)
    return dict(
        engine=engine_of(engine), bin_width=bin_width, bin_count=bin_count, line_angle=line_angle, line_length=line_length,
        max_bins=max_bins,
    )  # fmt: skip


def _bins(options) -> str:
    """What the bins of texture features are made by, in words."""
    count, width = options.get("bin_count"), options.get("bin_width")
    return f"{count} bins" if count else "" if width is None else f"bin width {width:g}"


def _summary(rows: list[dict], skipped: dict, options: dict) -> Reference:
    """The distribution of the cases; those with other dimensions than the first one are skipped."""
    used, notes = [], {}
    for row in rows:
        if row["ndim"] != rows[0]["ndim"]:
            skipped[row["case"]] = f"it has {row['ndim']} dimensions, the cases before it {rows[0]['ndim']}"
            continue
        used.append(row)
        for text in row["notes"]:
            notes.setdefault(text.split(":")[0], [text, []])[1].append(row["case"])
    if not used:
        first = next(iter(skipped.items()), None)
        told = f" (the first: {first[0]}: {first[1]})" if first else ""
        raise MedXAIError(
            f"None of {len(skipped)} cases could be used{told}; check that images and masks belong together."
        )
    columns = {one: [_number(row["values"][one]) for row in used] for one in used[0]["values"]}
    summary = {one: _distribution(values) for one, values in columns.items()}
    units = {row["unit"] for row in used}
    unit = units.pop() if len(units) == 1 else ""
    found = Reference(
        {one: s[0] for one, s in summary.items()}, {one: s[1] for one, s in summary.items()},
        {one: s[2] for one, s in summary.items()}, columns, [row["case"] for row in used], skipped,
        {"ndim": used[0]["ndim"], **options, "unit": unit, "versions": _versions(options)},
        [f"{text} (cases: {', '.join(cases)})" for text, cases in notes.values()],
    )  # fmt: skip
    found.notes += [f"'{one}' cannot normalise: {reason}." for one, reason in found.unusable.items()]
    return found


def _number(value) -> float:
    """As it comes from a log, where what is not finite is null."""
    return float(value) if value is not None and math.isfinite(value) else math.nan


def _distribution(values):
    """Mean, sample standard deviation and number of the finite values, in exact arithmetic up to the last rounding."""
    finite = [value for value in values if math.isfinite(value)]
    mean = statistics.fmean(finite) if finite else math.nan
    if len(finite) < 2:
        return mean, math.nan, len(finite)
    return mean, statistics.stdev(finite), len(finite)


def _finite(value):
    return value if math.isfinite(value) else None


def _versions(options) -> dict[str, str]:
    import importlib.metadata

    found = {}
    for package in ("medxai", "pyradiomics" if options["engine"] == "pyradiomics" else "torch", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _last(steps) -> Reference:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
