"""Volumes and explanations between processes: every array is a `.npy` file, the rest plain JSON. Nothing is pickled."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np

from ..errors import MedXAIError
from ..explanation import Curve, Explanation, Layer, Sequence, Table
from ..volume import Volume
from . import protocol

_TYPES = {cls.__name__: cls for cls in (Volume, Layer, Curve, Table, Sequence, Explanation)}


def save_array(file, array) -> None:
    """Write an array as `.npy`.

    Raises
    ------
    OSError
        With the system's own ``errno`` (``np.save`` loses it, so a full disk could not be told from anything else); no
        part of the file is left then.
    ValueError
        For an array of Python objects.
    """
    array = np.asarray(array, order="C")
    if array.dtype.hasobject:
        raise ValueError(f"An array of {array.dtype} cannot be written without pickling; use numbers or text.")
    try:
        with open(file, "wb") as out:
            np.lib.format.write_array_header_1_0(out, np.lib.format.header_data_from_array_1_0(array))
            if array.nbytes:
                out.write(array.reshape(-1).view(np.uint8).data)
    except BaseException:
        if Path(file).is_file():  # never a device
            Path(file).unlink()
        raise


def load_array(file) -> np.ndarray:
    """Read a `.npy` file, memory-mapped and read-only."""
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except ValueError:
        return np.load(
            file, allow_pickle=False
        )  # an empty array cannot be mapped; what cannot be read at all raises again


def describe_volume(volume: Volume, file) -> dict:
    """What a ``run`` command says of a volume whose array lies in ``file``."""
    attributes = {str(k): v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in volume.attributes.items()}
    return {
        "file": os.fspath(file),
        "ijk_to_ras": volume.ijk_to_ras.tolist(),
        "name": volume.name,
        "unit": volume.unit,
        "attributes": attributes,
    }


def read_volume(message: dict) -> Volume:
    """The volume that `describe_volume` described, memory-mapped.

    Raises
    ------
    MedXAIError
        When the file is gone or is not a `.npy` file.
    """
    try:
        array = load_array(message["file"])
    except (OSError, ValueError, EOFError) as error:
        raise MedXAIError(f"The voxels of '{message['name']}' could not be read ({error}); run it again.") from None
    return Volume(array, message["ijk_to_ras"], message["name"], message["unit"], dict(message["attributes"]))


def dump(explanation: Explanation, folder) -> dict:
    """Write the arrays of an explanation into an existing folder.

    Returns
    -------
    dict
        The rest, in plain values for strict JSON; `load` takes it back.
    """
    written: dict[int, tuple[str, np.ndarray]] = {}  # the array is kept, so that its id stays its own

    def pack(value, at):
        if isinstance(value, np.ndarray):
            if id(value) not in written:
                name = f"{len(written):04d}.npy"
                save_array(Path(folder, name), value)
                written[id(value)] = (name, value)
            return {"$array": written[id(value)][0]}
        if type(value) in _TYPES.values():
            fields = {f.name: pack(getattr(value, f.name), f"{at}.{f.name}") for f in dataclasses.fields(value)}
            return {"$type": type(value).__name__, "fields": fields}
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str) or key.startswith("$"):
                    raise ValueError(f"{at} has the key {key!r}; keys are texts that do not begin with '$'.")
            return {k: pack(v, f"{at}.{k}") for k, v in value.items()}
        if isinstance(value, tuple):
            return {"$tuple": [pack(v, at) for v in value]}
        if isinstance(value, list):
            return [pack(v, at) for v in value]
        try:
            return protocol.plain(value)
        except protocol.ProtocolError:
            raise ValueError(f"{at} is a {type(value).__name__}, which cannot be sent.") from None

    return pack(explanation, explanation.method)


def load(message: dict, folder) -> Explanation:
    """The explanation that `dump` wrote; its arrays are memory-mapped, read-only.

    Raises
    ------
    ValueError, OSError
        When it was not written by `dump`, or a file is missing.
    """
    arrays: dict[str, np.ndarray] = {}

    def unpack(value):
        if isinstance(value, list):
            return [unpack(v) for v in value]
        if not isinstance(value, dict):
            return value
        if "$array" in value:
            name = value["$array"]
            if Path(name).name != name:
                raise ValueError(f"'{name}' is not a bare file name.")
            if name not in arrays:
                arrays[name] = load_array(Path(folder, name))
            return arrays[name]
        if "$tuple" in value:
            return tuple(unpack(v) for v in value["$tuple"])
        if "$type" in value:
            if value["$type"] not in _TYPES:
                raise ValueError(f"'{value['$type']}' is not a part of an explanation.")
            return _TYPES[value["$type"]](**{k: unpack(v) for k, v in value["fields"].items()})
        return {k: unpack(v) for k, v in value.items()}

    explanation = unpack(protocol.restore(message))
    if not isinstance(explanation, Explanation):
        raise ValueError("This is not an explanation.")
    return explanation
