"""Reading and writing volumes, masks and sequences. RAS and LPS are converted here, in `ras` and `lps`, and nowhere else."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from .errors import MedXAIError, nearest
from .explanation import Sequence
from .formats import nifti_voxels, write_nifti, write_nrrd
from .volume import Volume

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_FORMATS = "NRRD, NIfTI, DICOM, PNG and JPEG"


def ras(lps_matrix: np.ndarray) -> np.ndarray:
    """An IJK-to-RAS matrix from the IJK-to-LPS matrix that ITK, DICOM and NRRD files use."""
    return _LPS @ lps_matrix


def lps(ras_matrix: np.ndarray) -> np.ndarray:
    """An IJK-to-LPS matrix from an IJK-to-RAS matrix."""
    return _LPS @ ras_matrix


def read_volume(path) -> Volume:
    """Read an image: NRRD, NIfTI, one DICOM file, a folder with a DICOM series, PNG or JPEG.

    Parameters
    ----------
    path : path
        A folder that holds several DICOM series takes ``FOLDER#NUMBER`` (the series number, its UID or its description).

    Returns
    -------
    Volume
        Integers stay integers, float64 becomes float32, NaN stays. A 2-D image is one slice. ``attributes`` may hold ``modality``,
        ``photometric`` (as stored; MONOCHROME1 has been inverted), ``bits_stored`` and ``stored_low``, ``stored_high`` (the smallest and largest value
        that could be stored, in the units of the array).

    Raises
    ------
    MedXAIError
        For what is no image of one channel in three dimensions, in one sentence.
    """
    path, series = _split(path)
    if path.is_dir() or series or _is_dicom(path):
        from .dicom import read_dicom

        return read_dicom(path, series)
    return _read_file(path)


def read_masks(path) -> list[Volume]:
    """Every segment of a file, as `read_mask` gives each; the file is looked into once."""
    names, pick = _some_segments(path)
    return [pick(name) for name in names]


def read_mask(path, segment: str | None = None) -> Volume:
    """Read one segment of a label map (NIfTI, NRRD, PNG…), a Slicer segmentation (.seg.nrrd) or a DICOM SEG.

    Parameters
    ----------
    segment : str, optional
        Its name, or its label value where the file has no names. May be left out where there is only one.

    Returns
    -------
    Volume
        uint8, 1 inside.

    Raises
    ------
    MedXAIError
        When there is no such segment (with the nearest name and the list), or several and none was chosen.
    """
    names, pick = _some_segments(path)
    path, _ = _split(path)
    listed = ", ".join(f"'{n}'" for n in names[:30]) + (f" and {len(names) - 30} more" if len(names) > 30 else "")
    if segment is None or segment == "":
        if len(set(names)) > 1:
            raise MedXAIError(f"'{path.name}' holds {len(names)} segments; choose one (--segment): {listed}.")
        segment = names[0]
    if str(segment) not in names:
        raise MedXAIError(f"'{path.name}' has no segment '{segment}'{nearest(str(segment), names)}; it has {listed}.")
    return pick(str(segment))


def segments(path) -> list[str]:
    """The names of a file's segments; label values as text where the file has no names."""
    return _segments(_split(path)[0])[0]


def write_volume(path, volume: Volume) -> None:
    """Write ``.nrrd`` (geometry exact in float64), ``.nii`` or ``.nii.gz`` (geometry in float32, as the format has it).

    Raises
    ------
    MedXAIError
        ``kind="disk"`` when the disk is full or the place cannot be written to; no partial file is left.
    """
    path = Path(path)
    if path.name.lower().endswith((".nii", ".nii.gz")):
        write_nifti(path, volume.array, volume.ijk_to_ras)
    elif path.suffix.lower() == ".nrrd":
        write_nrrd(path, volume.array, lps(volume.ijk_to_ras))
    else:
        raise MedXAIError(f"'{path.name}' must end in .nrrd, .nii or .nii.gz.")


def write_sequence(path, sequence: Sequence) -> None:
    """Write a sequence as Slicer's Sequences module reads it (``.seq.nrrd``): four axes, the last one the list of steps.

    Raises
    ------
    MedXAIError
        When the items do not share one lattice; ``kind="disk"`` as `write_volume`.
    """
    path = Path(path)
    if not path.name.lower().endswith(".seq.nrrd"):
        raise MedXAIError(f"'{path.name}' must end in .seq.nrrd.")
    if not sequence.items:
        raise MedXAIError(f"The sequence '{sequence.title}' has no steps to write.")
    first = sequence.items[0][1]
    for step, volume in sequence.items:
        if not volume.same_grid(first) or volume.array.dtype != first.array.dtype:
            raise MedXAIError(
                f"Step {step} of the sequence '{sequence.title}' lies on another grid than the first one."
            )
    keys = {
        "DataNodeClassName": "vtkMRMLLabelMapVolumeNode" if sequence.kind == "mask" else "vtkMRMLScalarVolumeNode",
        "axis 3 index type": "numeric",
        "axis 3 index values": " ".join(str(step) for step, _ in sequence.items),
        "MedXAI title": sequence.title,
        "MedXAI kind": sequence.kind,
    }
    write_nrrd(path, [v.array for _, v in sequence.items], lps(first.ijk_to_ras), label=sequence.index, keys=keys)


# ---- files that SimpleITK reads as they are --------------------------------------------------------------------------


def to_volume(image: sitk.Image, name: str, path, unit: str = "", attributes: dict | None = None) -> Volume:
    """A one-channel image of two or three dimensions (or a fourth of length one) as a volume."""
    if image.GetDimension() == 4:
        if image.GetSize()[3] > 1:
            raise MedXAIError(f"'{path}' is a series of {image.GetSize()[3]} volumes; save the one you mean by itself.")
        image = image[:, :, :, 0]
    return _volume(_one_channel(image, path), _matrix(image), name, unit, attributes)


def _matrix(image) -> np.ndarray:
    """The IJK-to-LPS matrix of an image or of a reader that has seen the header; of four axes the first three."""
    n, m = image.GetDimension(), min(image.GetDimension(), 3)
    matrix = np.eye(4)
    matrix[:m, :m] = (np.reshape(image.GetDirection(), (n, n)) * image.GetSpacing())[:m, :m]
    matrix[:m, 3] = image.GetOrigin()[:m]
    return matrix


def _volume(array, lps_matrix, name, unit="", attributes=None) -> Volume:
    if array.ndim == 2:
        array = array[None]
    if array.dtype == np.float64:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    attributes = dict(attributes or {})
    if array.dtype == np.uint8:
        attributes = {"stored_low": 0, "stored_high": 255} | attributes
    return Volume(array, ras(lps_matrix), name, unit, attributes)


def _one_channel(image, path):
    array = sitk.GetArrayFromImage(image)
    channels = image.GetNumberOfComponentsPerPixel()
    if np.issubdtype(array.dtype, np.complexfloating):
        raise MedXAIError(f"'{path}' holds complex numbers; save their magnitude.")
    if channels == 1:
        return array
    colours = array[..., :3] if channels in (3, 4) else array[..., :1] if channels == 2 else None
    if colours is None or array.dtype not in (np.uint8, np.uint16):
        raise MedXAIError(
            f"'{path}' is a sequence or has {channels} numbers in each voxel; MedXAI takes one volume with one number each."
        )
    if (colours != colours[..., :1]).any():
        raise MedXAIError(f"'{path}' is a colour picture; MedXAI takes grey images, so save it as grey values.")
    return np.ascontiguousarray(colours[..., 0])


def _read_file(path: Path) -> Volume:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        size = reader.GetSize()
        if len(size) > 4 or (len(size) == 4 and size[3] > 1):
            raise MedXAIError(f"'{path}' is a series of {size[3]} volumes; save the one you mean by itself.")
        array = nifti_voxels(path) if path.name.lower().endswith((".nii", ".nii.gz")) else None
        image = reader.Execute() if array is None else None
    except (RuntimeError, EOFError, OSError, zlib.error) as error:
        raise MedXAIError(_why(path, str(error))) from None
    if array is not None:
        return _volume(array, _matrix(reader), stem(path))
    attributes = {}
    if path.suffix.lower() in (".png", ".jpg", ".jpeg"):
        high = 65535 if "16" in image.GetPixelIDTypeAsString() else 255
        attributes = {"stored_low": 0, "stored_high": high, "bits_stored": 16 if high > 255 else 8}
    return to_volume(image, stem(path), path, attributes=attributes)


def _why(path, said: str) -> str:
    if "orthonormal" in said:
        return f"The axes of '{path}' are not at right angles; resample it to a straight grid first."
    if "Unable to determine ImageIO" in said:
        return f"'{path}' is not an image that MedXAI reads; it takes {_FORMATS}."
    return f"'{path}' cannot be read; the file is damaged or incomplete."


def stem(path: Path) -> str:
    """The file's name without its ending."""
    name = path.name
    for ending in (".seg.nrrd", ".seq.nrrd", ".nii.gz"):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return path.stem or name


def _split(path) -> tuple[Path, str]:
    """A path that exists, and what stands after ``#`` where it does not."""
    whole = Path(path)
    if whole.exists():
        return whole, ""
    front, mark, series = str(path).rpartition("#")
    if mark and front and Path(front).is_dir():
        return Path(front), series
    raise MedXAIError(f"There is no file or folder '{path}'.")


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            if file.read(132)[128:] == b"DICM":
                return True
    except OSError as error:
        raise MedXAIError(f"'{path}' cannot be read: {error.strerror}.") from None
    return path.suffix.lower() in (".dcm", ".ima")


# ---- segments --------------------------------------------------------------------------------------------------------


def _some_segments(path):
    """As `_segments`; refused where there is none."""
    path, _ = _split(path)
    names, pick = _segments(path)
    if not names:
        raise MedXAIError(f"'{path.name}' holds no segment; draw one first.")
    return names, pick


def _segments(path: Path):
    """Names of a file's segments, and a function that gives the one with a name."""
    if path.is_dir() or _is_dicom(path):
        from .dicom import read_segmentation

        return read_segmentation(path)
    if path.name.lower().endswith(".nrrd"):
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise MedXAIError(_why(path, str(error))) from None
        if reader.HasMetaDataKey("Segment0_ID") or reader.HasMetaDataKey("Segment0_Name"):
            return _slicer_segments(path, reader)
    volume = _read_file(path)
    array = volume.array
    if np.issubdtype(array.dtype, np.floating):
        if not np.array_equal(array, np.round(array)):  # NaN is never equal
            raise MedXAIError(f"'{path.name}' holds fractions, so it is an image and not a mask; give a label map.")
        array = array.astype(np.int64)
    values = [int(v) for v in np.unique(array) if v != 0]
    if len(values) > 4096 or (values and values[0] < 0):
        raise MedXAIError(
            f"'{path.name}' holds {len(values)} different values from {values[0]} to {values[-1]}, so it is an image and not a mask."
        )

    def pick(name):
        return Volume((array == int(name)).astype(np.uint8), volume.ijk_to_ras, f"{volume.name} {name}")

    return [str(v) for v in values], pick


def _slicer_segments(path, reader):
    """Slicer's own segmentation file: names, label values and layers are header fields, layers the first axis of the data."""
    found, n = {}, 0
    while reader.HasMetaDataKey(f"Segment{n}_ID") or reader.HasMetaDataKey(f"Segment{n}_Name"):

        def field(what, default, n=n):
            key = f"Segment{n}_{what}"
            return reader.GetMetaData(key).strip() if reader.HasMetaDataKey(key) else default

        name = field("Name", "") or field("ID", f"Segment_{n}")
        # Files of Slicer before 4.11 have one layer per segment and neither field.
        found.setdefault(name, (int(field("Layer", n)), int(field("LabelValue", 1))))
        n += 1

    def pick(name):
        image = reader.Execute()
        layer, value = found[name]
        array = sitk.GetArrayFromImage(image)
        if image.GetNumberOfComponentsPerPixel() > 1:
            array = array[..., layer]
        elif image.GetDimension() == 4:
            array = array[layer]
        return Volume((array == value).astype(np.uint8), ras(_matrix(image)), name)

    return list(found), pick
