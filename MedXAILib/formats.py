"""NRRD and NIfTI, byte by byte, where ITK is not enough: exact geometry, NaN that stays NaN, and a full disk that is noticed."""

from __future__ import annotations

import contextlib
import errno
import gzip
import math
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .errors import MedXAIError

_NRRD_TYPES = {"u1": "uint8", "i1": "int8", "u2": "uint16", "i2": "int16", "u4": "uint32", "i4": "int32", "u8": "uint64", "i8": "int64", "f4": "float"}  # fmt: skip
_NIFTI_TYPES = {"u1": 2, "i2": 4, "i4": 8, "f4": 16, "i1": 256, "u2": 512, "u4": 768, "i8": 1024, "u8": 1280}
_CHUNK = 1 << 22


def write_nrrd(path: Path, arrays, ijk_to_lps: np.ndarray, label: str = "", keys: dict | None = None) -> None:
    """Write one array (k, j, i), or a list of them as a fourth axis called ``label``.

    Raises
    ------
    MedXAIError
        ``kind="disk"`` when the file cannot be written; no part of it is left, and a file that was there before is kept.
    """
    several = isinstance(arrays, list)
    arrays = [_storable(a) for a in (arrays if several else [arrays])]
    first = arrays[0]
    sizes = [*first.shape[::-1], *([len(arrays)] if several else [])]
    directions = [_vector(ijk_to_lps[:3, n]) for n in range(3)] + ["none"] * several
    packed = _shrinks(arrays[len(arrays) // 2])
    header = [
        "NRRD0005",
        f"type: {_NRRD_TYPES[first.dtype.str[1:]]}",
        f"dimension: {len(sizes)}",
        "space: left-posterior-superior",
        "sizes: " + " ".join(map(str, sizes)),
        "space directions: " + " ".join(directions),
        "kinds: domain domain domain" + " list" * several,
        *([f'labels: "" "" "" "{label}"'] if several else []),
        "endian: little",
        f"encoding: {'gzip' if packed else 'raw'}",
        f"space origin: {_vector(ijk_to_lps[:3, 3])}",
        *(f"{key}:={' '.join(str(value).split())}" for key, value in (keys or {}).items()),
    ]
    with _whole_file(path) as file:
        file.write(("\n".join(header) + "\n\n").encode("utf-8"))
        _write_voxels(file, arrays, packed)


def write_nifti(path: Path, array: np.ndarray, ijk_to_ras: np.ndarray) -> None:
    """Write a NIfTI-1 file (gzip where the name ends in ``.gz``); the matrix is the sform, in float32; errors as `write_nrrd`."""
    array = _storable(array)
    if max(array.shape) > 32767:
        raise MedXAIError(f"An axis of {max(array.shape)} voxels does not fit a NIfTI file; write '{path.stem}.nrrd'.")
    spacing = np.linalg.norm(ijk_to_ras[:3, :3], axis=0)
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *array.shape[::-1], 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, _NIFTI_TYPES[array.dtype.str[1:]], array.dtype.itemsize * 8)
    struct.pack_into("<8f", header, 76, 1.0, *spacing, 0.0, 0.0, 0.0, 0.0)
    struct.pack_into("<3f", header, 108, 352.0, 1.0, 0.0)  # offset of the voxels, slope, intercept
    header[123] = 2  # millimetres
    struct.pack_into("<2h", header, 252, 0, 1)  # no qform; sform in scanner coordinates
    struct.pack_into("<12f", header, 280, *ijk_to_ras[:3].ravel())
    header[344:348] = b"n+1\0"
    with _whole_file(path) as file:
        if path.name.lower().endswith(".gz"):
            with gzip.GzipFile("", "wb", 1, file, mtime=0) as packed:
                packed.write(bytes(header))
                for chunk in _chunks(array):
                    packed.write(chunk)
        else:
            file.write(bytes(header))
            _write_voxels(file, [array], False)


def nifti_voxels(path: Path) -> np.ndarray | None:
    """The voxels (k, j, i) of a NIfTI-1 file (one volume of numbers), scaled as its header says; None for anything else.

    ITK reads NaN and infinity in NIfTI, and what a file cut short lacks, as 0 without a word; so voxels are read here.

    Raises
    ------
    EOFError, OSError
        When the file is shorter than its header says, or its compression is damaged.
    """
    with path.open("rb") as file, contextlib.ExitStack() as stack:
        gzipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream = stack.enter_context(gzip.GzipFile(fileobj=file)) if gzipped else file
        header = stream.read(352)
        if len(header) < 352 or header[344:348] != b"n+1\0":
            return None
        order = "<" if struct.unpack_from("<i", header)[0] == 348 else ">"
        axes = struct.unpack_from(order + "8h", header, 40)
        offset, slope, shift = struct.unpack_from(order + "3f", header, 108)
        kinds = {number: name for name, number in (_NIFTI_TYPES | {"f8": 64}).items()}
        kind = kinds.get(struct.unpack_from(order + "h", header, 70)[0])
        if kind is None or axes[0] < 1 or any(n > 1 for n in axes[4 : axes[0] + 1]):
            return None
        shape = [max(1, n) for n in ((*axes[1 : min(axes[0], 3) + 1], 1, 1))[:3]][::-1]
        stream.seek(int(offset) or 352)
        size = math.prod(shape) * int(kind[1])
        data = bytearray(stream.read(size))
        if len(data) < size:
            raise EOFError
        if gzipped:  # to the end, where the checksum is
            while stream.read(_CHUNK):
                pass
    array = np.frombuffer(data, order + kind).reshape(shape)
    if np.isfinite([slope, shift]).all() and slope != 0 and (slope, shift) != (1, 0):
        array = array * np.float64(slope) + np.float64(shift)
    if np.issubdtype(array.dtype, np.floating):
        with np.errstate(over="ignore"):
            return array.astype(np.float32)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _storable(array: np.ndarray) -> np.ndarray:
    """bool as uint8, other floats as float32, little-endian."""
    if array.dtype == bool:
        array = array.view(np.uint8)
    elif np.issubdtype(array.dtype, np.floating) and array.dtype.itemsize != 4:
        array = array.astype(np.float32)
    if array.dtype.str[1:] not in _NRRD_TYPES:
        raise MedXAIError(f"Voxels of type {array.dtype} cannot be written to a file.")
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _vector(values) -> str:
    return "(" + ",".join(repr(float(v)) for v in values) + ")"


def _chunks(array: np.ndarray) -> Iterator[memoryview]:
    for part in array:  # one plane at a time: a permuted view is not copied as a whole
        yield memoryview(np.ascontiguousarray(part)).cast("B")


def _shrinks(array: np.ndarray) -> bool:
    """Whether compression is worth its time, judged by a plane in the middle; noise is written faster as it is."""
    sample = np.ascontiguousarray(array[array.shape[0] // 2]).tobytes()[:_CHUNK]
    return len(zlib.compress(sample, 1)) < 0.75 * len(sample)


def _write_voxels(file, arrays, packed: bool) -> None:
    if packed:
        with gzip.GzipFile("", "wb", 1, file, mtime=0) as stream:
            for array in arrays:
                for chunk in _chunks(array):
                    stream.write(chunk)
    else:
        for array in arrays:
            for chunk in _chunks(array):
                file.write(chunk)


@contextlib.contextmanager
def _whole_file(path: Path):
    """A file that is complete or not there: written beside its place under another name, then renamed."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb", buffering=1 << 20) as file:
            yield file
        os.replace(temporary, path)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", -1))
        if full:
            words = f"The disk is full while writing '{path}'; free some space and run again."
        else:
            words = f"'{path}' cannot be written ({error.strerror or error}); choose another place."
        raise MedXAIError(words, kind="disk") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
