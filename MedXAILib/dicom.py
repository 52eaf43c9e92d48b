"""DICOM: one file, a series in a folder, or a segmentation object."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from .errors import MedXAIError, nearest
from .volume import Volume

_NO_IMAGE = {"SEG", "SR", "PR", "KO", "RTSTRUCT", "RTPLAN", "RTDOSE", "REG", "DOC", "PLAN"}
_EVEN = 0.05  # of the slice distance: positions in headers are rounded


@dataclass(frozen=True)
class _Header:
    """What is needed of one DICOM file before its voxels are read."""

    path: Path
    tags: dict
    size: tuple[int, ...]

    def text(self, tag: str, default: str = "") -> str:
        return self.tags.get(tag, default).strip().strip("\0")

    def numbers(self, tag: str) -> np.ndarray | None:
        try:
            return np.array([float(v) for v in self.text(tag).split("\\")])
        except ValueError:
            return None

    @property
    def number(self) -> str:
        return self.text("0020|0011") or "?"

    @property
    def description(self) -> str:
        return self.text("0008|103e") or self.text("0018|1030") or self.text("0008|0060") or "no description"


def read_dicom(path: Path, series: str = "") -> Volume:
    """One DICOM file, or the series in a folder (``series``: its number, UID or description where there are several)."""
    if not path.is_dir():
        header = _header(path)
        if header is None:
            raise MedXAIError(f"'{path}' cannot be read as DICOM; the file is damaged or incomplete.")
        if header.text("0008|0060") in _NO_IMAGE:
            raise MedXAIError(f"'{path}' is a DICOM {header.text('0008|0060')} object and not an image.")
        return _one_file(header)
    found: dict[str, list[_Header]] = {}
    for header in _headers(path):
        if header.text("0008|0060") not in _NO_IMAGE:
            found.setdefault(header.text("0020|000e"), []).append(header)
    if not found:
        raise MedXAIError(f"The folder '{path}' holds no DICOM images.")
    chosen = _choose(path, found, series)
    return _one_file(chosen[0]) if len(chosen) == 1 else _stack(path, chosen)


def _choose(path, found, series):
    if not series and len(found) == 1:
        return next(iter(found.values()))
    groups = sorted(found.values(), key=lambda g: (len(g[0].number), g[0].number))
    listed = "; ".join(f"{g[0].number}: {g[0].description}, {len(g)} image{'s' * (len(g) > 1)}" for g in groups[:20])
    if series:
        for name in (lambda h: h.text("0020|000e"), lambda h: h.number, lambda h: h.description):
            match = [g for g in groups if name(g[0]) == series]
            if len(match) == 1:
                return match[0]
        close = nearest(series, [g[0].description for g in groups])
        raise MedXAIError(f"'{path}' has no single DICOM series '{series}'{close}; it has {listed}.")
    number = groups[0][0].number
    if [g[0].number for g in groups].count(number) > 1:
        number = groups[0][0].text("0020|000e")
    raise MedXAIError(f"'{path}' holds {len(groups)} DICOM series ({listed}); choose one, such as '{path}#{number}'.")


def _headers(folder: Path):
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != "DICOMDIR" and not file.name.startswith("."):
            try:
                with file.open("rb") as stream:
                    marked = stream.read(132)[128:] == b"DICM"
            except OSError as error:
                raise MedXAIError(f"'{file}' cannot be read: {error.strerror}.") from None
            if marked or file.suffix.lower() in ("", ".dcm", ".ima"):
                header = _header(file)
                if header is not None:
                    yield header
                elif marked and file.suffix.lower() in (".dcm", ".ima"):
                    raise MedXAIError(f"'{file}' cannot be read as DICOM; the file is damaged or incomplete.")


def _header(path: Path) -> _Header | None:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    return _Header(path, {key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys()}, reader.GetSize())


def _pixels(header: _Header) -> sitk.Image:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(header.path))
    try:
        return reader.Execute()
    except RuntimeError:
        raise MedXAIError(f"'{header.path}' cannot be read; the file is damaged or incomplete.") from None


def _one_file(header: _Header) -> Volume:
    from .io import stem, to_volume

    frames = header.size[2] if len(header.size) > 2 else 1
    if frames > 1:
        return _frames(header, frames)
    attributes, unit = _about(header)
    image = _pixels(header)
    for tag in ("0028|0030", "0018|1164", "0018|2010"):  # ITK knows only one of them for each kind of image
        spacing = header.numbers(tag)
        if spacing is not None and len(spacing) == 2 and (spacing > 0).all():
            image.SetSpacing([spacing[1], spacing[0], image.GetSpacing()[2]][: image.GetDimension()])
            break
    return to_volume(image, stem(header.path), header.path, unit, attributes)


def _stack(path, headers) -> Volume:
    """Slices sorted along their normal, evenly spaced or refused."""
    from .io import _one_channel, ras

    first = headers[0]
    across, at = first.numbers("0020|0037"), [h.numbers("0020|0032") for h in headers]
    if across is None or len(across) != 6 or any(p is None or len(p) != 3 for p in at):
        raise MedXAIError(
            f"The {len(headers)} images of the DICOM series '{first.description}' in '{path}' do not say where they lie;"
            " give one of them by its file name."
        )
    spacing = first.numbers("0028|0030")
    for header in headers:
        direction, distance = header.numbers("0020|0037"), header.numbers("0028|0030")
        if (
            header.size != first.size
            or direction is None
            or np.shape(distance) != np.shape(spacing)
            or np.abs(direction - across).max() > 1e-3
            or (spacing is not None and np.abs(distance - spacing).max() > 1e-3 * spacing.max())
        ):
            raise MedXAIError(
                f"The images of the DICOM series '{first.description}' in '{path}' differ in size, spacing or direction"
                f" ('{header.path.name}' from '{first.path.name}'); give a folder with one stack of slices."
            )
    order, step = _even(
        np.array(at), across, [h.path.name for h in headers], f"DICOM series '{first.description}' in '{path}'"
    )
    headers, origin = [headers[n] for n in order], at[order[0]]
    planes, image = [], None
    for header in headers:
        image = _pixels(header)
        plane = _one_channel(image, header.path).reshape(image.GetSize()[1::-1])
        planes.append(plane)
    array = np.stack(planes)
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    elif array.dtype == np.int32 and array.min() >= -32768 and array.max() <= 32767:
        array = array.astype(np.int16)  # GDCM widens where slope and intercept could overflow; these did not
    attributes, unit = _about(first)
    matrix = _matrix(across, image.GetSpacing()[1::-1] if spacing is None else spacing, step, origin)
    return Volume(array, ras(matrix), first.description if first.text("0008|103e") else path.name, unit, attributes)


def _even(at: np.ndarray, across: np.ndarray, names: list[str], what: str) -> tuple[np.ndarray, np.ndarray]:
    """The order of slices along their normal, and the step between them (mm, LPS); uneven ones are refused.

    The step need not be along the normal: a tilted gantry keeps every slice where it was.
    """
    normal = np.cross(across[:3], across[3:])
    order = np.argsort(at @ normal, kind="stable")
    at, names = at[order], [names[n] for n in order]
    gaps = np.diff(at @ normal)
    usual = float(np.median(gaps))
    if gaps.min() < 1e-3:
        n = int(gaps.argmin())
        raise MedXAIError(
            f"The {what} has several images at one place ('{names[n]}' and '{names[n + 1]}'), such as time points or echoes;"
            " give a folder with one volume."
        )
    step = (at[-1] - at[0]) / (len(at) - 1)
    drift = np.linalg.norm(at - (at[0] + np.arange(len(at))[:, None] * step), axis=1).max()
    if drift > _EVEN * usual or np.abs(gaps - usual).max() > _EVEN * usual:
        worst = int(np.abs(gaps - usual).argmax())
        many = round(gaps[worst] / usual) - 1
        fault = "is unevenly spaced"
        if many > 0 and abs(gaps[worst] / usual - many - 1) < _EVEN:
            fault = f"is missing {many} slice{'s' * (many > 1)}"
        raise MedXAIError(
            f"The {what} {fault}: {gaps[worst]:.3g} mm between '{names[worst]}' and '{names[worst + 1]}', {usual:.3g} mm elsewhere;"
            " export it again, or resample it in Slicer."
        )
    return order, step


def _matrix(across, spacing, step, origin) -> np.ndarray:
    """IJK to LPS from row and column direction, (row, column) spacing, step between slices and first position."""
    row, column = across[:3] / np.linalg.norm(across[:3]), across[3:] / np.linalg.norm(across[3:])
    matrix = np.eye(4)
    matrix[:3] = np.stack([row * spacing[1], column * spacing[0], step, origin], 1)
    return matrix


def _frames(header: _Header, frames: int) -> Volume:
    """An enhanced (multi-frame) object, each frame where its own header puts it."""
    from .io import _one_channel, ras, stem, to_volume

    attributes, unit = _about(header)
    data = _pydicom("a DICOM file of several frames").dcmread(header.path, stop_before_pixels=True)
    image = _pixels(header)
    try:
        groups = data.PerFrameFunctionalGroupsSequence
        shared = data.SharedFunctionalGroupsSequence[0]
        at = np.array([_group(f, shared, "PlanePositionSequence").ImagePositionPatient for f in groups], float)
        turns = np.array([_group(f, shared, "PlaneOrientationSequence").ImageOrientationPatient for f in groups], float)
        sizes = np.array([_group(f, shared, "PixelMeasuresSequence").PixelSpacing for f in groups], float)
    except (AttributeError, KeyError, IndexError):
        if header.text("0008|0060") == "NM":  # no groups there, but ITK reads its geometry
            return to_volume(image, stem(header.path), header.path, unit, attributes)
        raise MedXAIError(f"'{header.path}' is a film of {frames} frames; save the frame you mean by itself.") from None
    if np.ptp(turns, axis=0).max() > 1e-3 or np.ptp(sizes, axis=0).max() > 1e-3:
        raise MedXAIError(
            f"The frames of '{header.path}' differ in spacing or direction; save one stack of slices by itself."
        )
    order, step = _even(at, turns[0], [f"frame {n + 1}" for n in range(frames)], f"DICOM file '{header.path}'")
    array = _one_channel(image, header.path)[order]
    array = array.astype(np.float32) if array.dtype == np.float64 else array
    del attributes["stored_low"], attributes["stored_high"]  # slope and intercept may differ from frame to frame
    matrix = _matrix(turns[0], sizes[0], step, at[order[0]])
    return Volume(array, ras(matrix), stem(header.path), unit, attributes)


def _group(frame, shared, kind):
    return (frame[kind] if kind in frame else shared[kind])[0]


def _pydicom(what: str):
    try:
        import pydicom
    except ImportError:
        raise MedXAIError(f"Reading {what} needs pydicom; install it (pip install pydicom).", kind="missing") from None
    return pydicom


def _about(header: _Header) -> tuple[dict, str]:
    """Attributes and unit: what is known of the stored numbers.

    MONOCHROME1 (small is white) needs nothing here: GDCM turns it over within the stored range as it decodes (a test watches).
    """
    bits = int(header.text("0028|0101") or header.text("0028|0100") or 16)
    slope, shift = (header.numbers(tag) for tag in ("0028|1053", "0028|1052"))
    slope, shift = (float(v[0]) if v is not None else d for v, d in ((slope, 1.0), (shift, 0.0)))
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if header.text("0028|0103") == "1" else (0, 2**bits - 1)
    ends = sorted((slope * low + shift, slope * high + shift))
    modality = header.text("0008|0060")
    attributes = {
        "modality": modality,
        "photometric": header.text("0028|0004"),
        "bits_stored": bits,
        "stored_low": ends[0],
        "stored_high": ends[1],
        "series": header.text("0020|000e"),
    }
    unit = "HU" if modality == "CT" and header.text("0028|1054") in ("", "HU") else ""
    return attributes, unit


def read_segmentation(path: Path):
    """Segment names of a DICOM SEG (a file, or the only one in a folder), and a function that gives one as a mask."""
    pydicom = _pydicom("a DICOM segmentation")
    if path.is_dir():
        found = [
            f for f in sorted(path.rglob("*")) if f.is_file() and (h := _header(f)) and h.text("0008|0060") == "SEG"
        ]
        if len(found) != 1:
            raise MedXAIError(f"The folder '{path}' holds {len(found)} DICOM segmentations; give one file.")
        path = found[0]
    try:
        data = pydicom.dcmread(path)
    except Exception:
        raise MedXAIError(f"'{path}' cannot be read as DICOM; the file is damaged or incomplete.") from None
    if data.get("Modality") != "SEG":
        raise MedXAIError(f"'{path}' is no DICOM segmentation; give a SEG object, a label map or a .seg.nrrd file.")
    numbers: dict[str, int] = {}
    for item in data.SegmentSequence:
        numbers.setdefault(str(item.SegmentLabel), int(item.SegmentNumber))
    return list(numbers), lambda name: _segment(data, numbers[name], name)


def _segment(data, number: int, name: str) -> Volume:
    from .io import ras

    shared = data.SharedFunctionalGroupsSequence[0]
    frames = data.PerFrameFunctionalGroupsSequence

    across = np.array(_group(frames[0], shared, "PlaneOrientationSequence").ImageOrientationPatient, float)
    measures = _group(frames[0], shared, "PixelMeasuresSequence")
    normal = np.cross(across[:3], across[3:])
    at = np.array([_group(f, shared, "PlanePositionSequence").ImagePositionPatient for f in frames], float)
    mine = [
        n for n, f in enumerate(frames)
        if int(_group(f, shared, "SegmentIdentificationSequence").ReferencedSegmentNumber) == number
    ]  # fmt: skip
    along = at @ normal
    levels = np.unique(np.round(along, 3))
    step = float(measures.get("SpacingBetweenSlices", 0)) or (
        float(np.diff(levels).min()) if len(levels) > 1 else float(measures.get("SliceThickness", 0)) or 1.0
    )
    planes = (along - along.min()) / step
    if np.abs(planes - np.round(planes)).max() > 10 * _EVEN:
        raise MedXAIError(f"The slices of the DICOM segment '{name}' are unevenly spaced; export it on an even grid.")
    pixels = data.pixel_array.reshape(len(frames), int(data.Rows), int(data.Columns))
    half = 1 if data.SegmentationType == "BINARY" else int(data.MaximumFractionalValue) / 2
    array = np.zeros((int(planes.max().round()) + 1, *pixels.shape[1:]), np.uint8)
    for n in mine:
        array[int(planes[n].round())] |= (pixels[n] >= half).astype(np.uint8)
    spacing = [float(v) for v in measures.PixelSpacing]
    return Volume(array, ras(_matrix(across, spacing, normal * step, at[int(along.argmin())])), name)
