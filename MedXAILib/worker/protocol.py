"""The worker's protocol: bytes in, messages out. No input or output happens here.

A message is one JSON object on one line of ASCII. Commands go to the worker, events come from it; each names its ``job``,
a text chosen by the client (events that belong to no job have ``"job": null``). JSON is strict: a number that is not finite
travels as ``{"$float": "NaN"}`` (or ``Infinity``, ``-Infinity``) and is a float again on the other side.

Commands
--------
run
    ``panel`` (a newer job of the same panel replaces the older one), ``method`` (or ``train-cycle``), ``model`` (folder), ``trusted`` (SHA-256
    of the programs the user trusts), ``volumes`` and ``segments`` (masks; lists of `wire.describe_volume`, both may be empty), ``settings``
    (plain values), ``folder`` (private to this run, made by the client, removed by the client).
describe
    ``model``, and ``trusted`` as above (left out: none): the reply is ``described``.
release
    Forget models and volumes, give device memory back: the reply is ``released``.
cancel
    Stop that job between two steps: the reply is ``cancelled``, or ``result``/``error`` where it had just ended.
ack
    ``file``: that preview has been copied; the next may be written once all of them are.
quit
    Stop the running job and end.

Events
------
hello
    First of all, within a few hundredths of a second: ``pid`` (of the real process, not of a launcher: what has to be killed), ``python``,
    ``versions`` (read from the installed metadata, null where absent), ``devices`` (as far as known without torch: the CPU).
environment
    Once torch is imported (seconds later), or has failed to be: ``versions``, ``devices`` with title and memory, ``problem``.
queued
    ``position``: jobs ahead of this one, the running one counted.
progress
    ``fraction`` 0 to 1, ``stage``, ``eta`` in seconds or null. The first one says that the job has begun. At most ten a second.
preview
    ``name``, ``file``; with ``start`` (k, j, i) it is a patch of the first volume's grid, else a volume with ``ijk_to_ras``.
point
    ``points``: a batch of ``{curve, step, values}``.
log
    ``text`` for a person.
result
    ``folder`` and ``explanation``, read back by `wire.load`.
error
    ``kind`` (as in `MedXAIError`), ``message``, ``hint``.
cancelled
    ``reason``: ``asked`` or ``replaced``.
described, released
    ``description``; ``bytes`` that were given back.
"""

from __future__ import annotations

import json
import math

#: Longest line that is accepted, in bytes.
MAX_LINE = 16 * 2**20

_TAG = "$float"
_FLOATS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class ProtocolError(ValueError):
    """A line or message that does not follow the protocol.

    ``job`` is the job it belongs to, where that could be read; ``line`` begins with the line's first bytes.
    """

    def __init__(self, reason: str, job: str | None = None, line: bytes = b""):
        super().__init__(reason)
        self.reason = reason
        self.job = job
        self.line = bytes(line[:200])


class _Optional:
    """A field that may be null or left out."""

    def __init__(self, spec):
        self.spec = spec


def _real(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _row(value) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(_real(v) and math.isfinite(v) for v in value)


_TEXT = (lambda v: isinstance(v, str), "text")
_NAME = (lambda v: isinstance(v, str) and 0 < len(v) <= 200, "a text of 1 to 200 characters")
_OBJECT = (lambda v: isinstance(v, dict), "an object")
_COUNT = (lambda v: _whole(v) and v >= 0, "a whole number, 0 or more")
_WHOLE = (_whole, "a whole number")
_FRACTION = (lambda v: _real(v) and 0 <= v <= 1, "a number from 0 to 1")
_SECONDS = (lambda v: _real(v) and math.isfinite(v) and v >= 0, "a number of seconds")
_MATRIX = (lambda v: isinstance(v, list) and len(v) == 4 and all(map(_row, v)), "a 4×4 matrix of finite numbers")
_INDEX = (lambda v: isinstance(v, list) and len(v) == 3 and all(map(_whole, v)), "three whole numbers")
_VALUES = (lambda v: isinstance(v, dict) and all(map(_real, v.values())), "an object of numbers")
_JOB = _Optional(_NAME)
_VOLUME = {"file": _TEXT, "ijk_to_ras": _MATRIX, "name": _TEXT, "unit": _TEXT, "attributes": _OBJECT}
_DEVICE = {
    "name": _TEXT,
    "title": _Optional(_TEXT),
    "free_bytes": _Optional(_COUNT),
    "total_bytes": _Optional(_COUNT),
}
_POINT = {"curve": _TEXT, "step": _WHOLE, "values": _VALUES}

SCHEMAS = {
    "command": {
        "run": {
            "job": _NAME, "panel": _NAME, "method": _NAME, "model": _TEXT, "trusted": [_TEXT], "volumes": [_VOLUME],
            "segments": [_VOLUME], "settings": _OBJECT, "folder": _TEXT,
        },
        "describe": {"job": _NAME, "model": _TEXT, "trusted": _Optional([_TEXT])},
        "release": {"job": _NAME},
        "cancel": {"job": _NAME},
        "ack": {"job": _NAME, "file": _TEXT},
        "quit": {},
    },
    "event": {
        "hello": {"job": _JOB, "pid": _COUNT, "python": _TEXT, "versions": _OBJECT, "devices": [_DEVICE]},
        "environment": {"job": _JOB, "versions": _OBJECT, "devices": [_DEVICE], "problem": _Optional(_TEXT)},
        "queued": {"job": _NAME, "position": _COUNT},
        "progress": {"job": _NAME, "fraction": _FRACTION, "stage": _TEXT, "eta": _Optional(_SECONDS)},
        "preview": {
            "job": _NAME, "name": _TEXT, "file": _TEXT, "start": _Optional(_INDEX), "ijk_to_ras": _Optional(_MATRIX),
            "unit": _Optional(_TEXT),
        },
        "point": {"job": _NAME, "points": [_POINT]},
        "log": {"job": _JOB, "text": _TEXT},
        "result": {"job": _NAME, "folder": _TEXT, "explanation": _OBJECT},
        "error": {"job": _JOB, "kind": _NAME, "message": _TEXT, "hint": _TEXT},
        "cancelled": {"job": _NAME, "reason": _TEXT},
        "described": {"job": _NAME, "description": _OBJECT},
        "released": {"job": _NAME, "bytes": _COUNT},
    },
}  # fmt: skip


def check(message, direction: str | None = None) -> dict:
    """The message itself, when it follows its schema.

    Parameters
    ----------
    message : dict
        Holds ``command`` or ``event``: its name.
    direction : str, optional
        ``command`` or ``event``, where only one of them is allowed.

    Raises
    ------
    ProtocolError
        Naming the field and what it should be.
    """
    if not isinstance(message, dict):
        raise ProtocolError("a message is a JSON object")
    job = message.get("job")
    job = job if isinstance(job, str) else None
    if direction is None:
        direction = "command" if "command" in message else "event"
    name = message.get(direction)
    schema = SCHEMAS[direction].get(name) if isinstance(name, str) else None
    if schema is None:
        known = ", ".join(SCHEMAS[direction])
        raise ProtocolError(f"{_short(name)} is not a known {direction} ({known})", job)
    try:
        _check({k: v for k, v in message.items() if k != direction}, schema, name)
    except ProtocolError as error:
        error.job = job
        raise
    return message


def _check(value, spec, at: str) -> None:
    if isinstance(spec, _Optional):
        if value is None:
            return
        spec = spec.spec
    if isinstance(spec, dict):
        if not isinstance(value, dict):
            raise ProtocolError(f"'{at}' must be an object, not {_short(value)}")
        for name in value:
            if name not in spec:
                raise ProtocolError(f"'{at}' has no field {_short(name)}")
        for name, inner in spec.items():
            if name in value:
                _check(value[name], inner, f"{at}.{name}")
            elif not isinstance(inner, _Optional):
                raise ProtocolError(f"'{at}' needs the field '{name}'")
    elif isinstance(spec, list):
        if not isinstance(value, list):
            raise ProtocolError(f"'{at}' must be a list, not {_short(value)}")
        for n, one in enumerate(value):
            _check(one, spec[0], f"{at}[{n}]")
    elif not spec[0](value):
        raise ProtocolError(f"'{at}' must be {spec[1]}, not {_short(value)}")


def _short(value) -> str:
    told = repr(value)
    return told if len(told) <= 60 else told[:57] + "…"


def plain(value):
    """The same value in what strict JSON can hold: numpy's numbers and arrays as Python's, non-finite numbers tagged."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {_TAG: "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return plain(_native(value))


def restore(value):
    """The inverse of `plain` for the numbers that are not finite."""
    if isinstance(value, dict):
        return _untag({k: restore(v) for k, v in value.items()})
    if isinstance(value, list):
        return [restore(v) for v in value]
    return value


def _untag(value: dict):
    return _FLOATS.get(value[_TAG], value) if len(value) == 1 and isinstance(value.get(_TAG), str) else value


def _native(value):
    """A numpy scalar or array as Python's own, a path as text (without importing numpy: hello must be quick)."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "__fspath__"):
        return value.__fspath__()
    raise ProtocolError(f"{type(value).__name__} cannot travel in a message")


def encode(message: dict) -> bytes:
    """A message as one line.

    Raises
    ------
    ProtocolError
        When it does not follow its schema, or its line would be longer than `MAX_LINE`.
    """
    message = plain(message)
    check(restore(message))
    line = json.dumps(message, allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"
    if len(line) > MAX_LINE:
        raise ProtocolError(f"a message of {len(line)} bytes is longer than {MAX_LINE}", message.get("job"))
    return line


class Decoder:
    """Bytes, in whatever pieces they come, to messages.

    Parameters
    ----------
    direction : str
        ``command`` (the worker's side) or ``event`` (the client's).
    limit : int
        Longest line accepted, in bytes.
    """

    def __init__(self, direction: str, limit: int = MAX_LINE):
        self._direction = direction
        self._limit = limit
        self._buffer = bytearray()
        self._skipping = False

    def feed(self, data: bytes) -> list[dict | ProtocolError]:
        """The messages that are complete now, in order; a bad line is a `ProtocolError` in the list and spoils nothing else."""
        found = []
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            self._take(data[start:end], found)
            if not self._skipping:
                self._line(bytes(self._buffer), found)
            self._buffer.clear()
            self._skipping = False
            start = end + 1
        self._take(data[start:], found)
        return found

    def close(self) -> list[ProtocolError]:
        """What to say of bytes that no newline ended; none when there are none."""
        rest, self._buffer = bytes(self._buffer), bytearray()
        return [ProtocolError("the stream ended within a line", line=rest)] if rest.strip() else []

    def _take(self, piece: bytes, found: list) -> None:
        if self._skipping:
            return
        self._buffer += piece
        if len(self._buffer) > self._limit:
            found.append(ProtocolError(f"a line is longer than {self._limit} bytes", line=self._buffer))
            self._buffer.clear()
            self._skipping = True

    def _line(self, line: bytes, found: list) -> None:
        if not line.strip():
            return
        try:
            message = json.loads(line.decode("utf-8"), object_hook=_untag, parse_constant=_refuse)
            found.append(check(message, self._direction))
        except ProtocolError as error:
            error.line = line[:200]
            found.append(error)
        except (ValueError, RecursionError):  # not UTF-8, not JSON, or nested a thousand deep
            found.append(ProtocolError("a line is not JSON", line=line))


def _refuse(constant: str):
    raise ValueError(f"{constant} is not JSON")
