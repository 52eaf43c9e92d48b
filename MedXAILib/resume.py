"""Results that outlive a stop: a folder or file that is complete or not there, and beside it what is finished so far."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

from .errors import MedXAIError
from .explanation import Step, part
from .files import alone, check_new_folder, disk_error, partial_of, plain


@contextlib.contextmanager
def resumable(folder):
    """A folder that gets its name when it is complete; until then, also after a stop, it is ``.NAME.partial`` beside it.

    Left without a file in it, it is removed.

    Raises
    ------
    MedXAIError
        When the folder exists already, another process works on it, it cannot be made, or the disk is full (``kind="disk"``; what is finished stays).
    """
    check_new_folder(folder)
    with _held(folder, "output folder") as partial:
        yield partial
        partial.rename(Path(folder).absolute())


@contextlib.contextmanager
def resumable_file(path):
    """The folder ``.NAME.partial`` beside a file for what is finished; it is gone when the block ends well, with the file written, and stays after a stop.

    Raises
    ------
    MedXAIError
        As `resumable`; a file that exists is for the caller to refuse.
    """
    with _held(path, "output file") as partial:
        yield partial
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _held(output, what):
    output, partial = Path(output).absolute(), partial_of(output)
    made = [one for one in (partial, *partial.parents) if not one.exists()]
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with alone(
            partial, f"Another process is working on '{output}'; wait for it, stop it, or choose another {what}."
        ):
            yield partial
    except OSError as error:
        raise _with_hint(disk_error(error, output), partial) from error
    except MedXAIError as error:
        raise _with_hint(error, partial) from None
    finally:
        for one in made:
            try:
                one.rmdir()
            except OSError:  # it holds something, or has its name
                break


def _with_hint(error: MedXAIError, partial: Path) -> MedXAIError:
    if error.kind in ("disk", "memory") and partial.is_dir() and any(partial.iterdir()):
        error.hint = f"What is finished is kept in '{partial}', and the same command goes on from there."
    return error


@contextlib.contextmanager
def kept(log, what: str = "finished cases", where: bool = True):
    """A Ctrl-C inside leaves with words that say what of a log is kept; as it came, where that is nothing.

    Parameters
    ----------
    log : Path
        As `Log` writes it.
    what : str
        What its lines are.
    where : bool
        Whether to name its folder.
    """
    try:
        yield
    except KeyboardInterrupt:
        number = len(log.read_bytes().splitlines()) - 1 if log.exists() else 0
        if number < 1:
            raise
        place = f" in '{log.parent}'" * where
        raise KeyboardInterrupt(f"{number} {what} are kept{place}, and the same command goes on from there") from None


class Log:
    """Finished cases (or epochs), one JSON line each behind a first line that says of what study; a torn last line is dropped.

    Parameters
    ----------
    path : path or None
        None: nothing is kept.
    about : dict
        What must be the same for the cases to belong together, by name.
    of : (str, str)
        What is kept, and what must be given again to go on, for the refusal.

    Attributes
    ----------
    rows : list of dict
        What was there already.

    Raises
    ------
    MedXAIError
        When the file belongs to another study, or is damaged elsewhere than at its end.
    """

    def __init__(self, path, about: dict, of=("finished cases of another study", "model and settings")):
        self.path, self.about, self.rows = path and Path(path), json.loads(json.dumps(plain(about))), []
        if self.path is None or not self.path.exists():
            return
        whole, _, torn = self.path.read_bytes().rpartition(b"\n")
        try:
            first, *self.rows = [json.loads(line) for line in whole.splitlines()] or [self.about]
            there = dict(first)
        except (ValueError, TypeError):
            raise self.damaged() from None
        if not all(isinstance(row, dict) for row in self.rows):
            raise self.damaged()
        differs = sorted(name for name in {*there, *self.about} if there.get(name) != self.about.get(name))
        if differs:
            raise MedXAIError(
                f"'{self._whole}' holds {len(self.rows)} {of[0]} ({', '.join(differs)} differ); give the same {of[1]} to go on with it,"
                f" choose another {'file' if self._whole == self.path else 'output folder'}, or remove that one."
            )
        if torn or not whole:
            self._write(whole + b"\n" if whole else b"", "wb")

    def damaged(self) -> MedXAIError:
        """What to say of a file with lines that are something else."""
        return MedXAIError(f"'{self.path}' is not a list of finished cases; remove '{self._whole}'.")

    @property
    def _whole(self) -> Path:
        """What to remove so as to begin anew: the folder where all in it is of this work, else the file alone."""
        folder = self.path.parent
        return folder if folder.name.startswith(".") and folder.name.endswith(".partial") else self.path

    def add(self, row: dict) -> None:
        """Keep one more finished case."""
        if self.path is None:
            return
        lines = [row] if self.path.exists() and self.path.stat().st_size else [self.about, row]
        text = "".join(json.dumps(plain(one), ensure_ascii=False, allow_nan=False) + "\n" for one in lines)
        self._write(text.encode("utf-8"), "ab")

    def _write(self, data, mode):
        try:
            with self.path.open(mode) as file:
                file.write(data)
        except OSError as error:
            raise disk_error(error, self.path) from error


def each_case(listed, log: Log, skipped: dict, work, point, keep=lambda row: True):
    """Do a work on every case that the log does not hold; what fails is one case less, and told in ``skipped``.

    Parameters
    ----------
    listed : sequence of (str, *paths)
        Name and files of each case.
    log : Log
    skipped : dict
        Gets the reason by name.
    work : callable
        ``work(paths)``, a generator of steps that ends with the row of the case, a dict.
    point : callable
        ``point(row, number)``, the points of the step that ends a case.
    keep : callable
        Whether a row is kept in the log.

    Yields
    ------
    Step

    Returns
    -------
    rows, resumed : list of dict, int
        With ``case`` and ``files``, in the order listed; and how many were in the log.
    """
    rows, order, todo = _left(listed, log)
    for done, (name, paths, files) in enumerate(todo):
        told, points = f"Case {len(listed) - len(todo) + done + 1} of {len(listed)}: {name}", ()
        try:
            found = yield from part(work(paths), done / len(todo), (done + 1) / len(todo), told)
        except MedXAIError as error:
            skipped[name] = error.message
        except Exception as error:  # a damaged file is one case less, not the end
            skipped[name] = f"{type(error).__name__}: {error}"
        else:
            row = {"case": name, "files": files, **found}
            if keep(row):
                log.add(row)
            rows.append(row)
            points = point(row, len(rows))
        yield Step((done + 1) / len(todo), told, points)
    rows.sort(key=lambda row: order[row["case"]])
    return rows, len(listed) - len(todo)


def cases_together(listed, log: Log, skipped: dict, work):
    """As `each_case`, for cases that are computed side by side; neither order nor names depend on which is ready first.

    Parameters
    ----------
    listed, log, skipped
        As in `each_case`.
    work : callable
        ``work([paths, …])``, a generator of (number of the case, its row or the reason why it has none) as they come.

    Yields
    ------
    Step

    Returns
    -------
    rows, resumed : list of dict, int
    """
    rows, order, todo = _left(listed, log)
    done, reasons = len(rows), {}
    with contextlib.closing(work([paths for _, paths, _ in todo])) as found:
        for number, one in found:
            name, _, files = todo[number]
            if isinstance(one, str):
                reasons[name] = one
            else:
                rows.append({"case": name, "files": files, **one})
                log.add(rows[-1])
            done += 1
            yield Step(done / len(listed), f"Case {done} of {len(listed)}: {name}")
    skipped.update((name, reasons[name]) for name in order if name in reasons)
    rows.sort(key=lambda row: order[row["case"]])
    return rows, len(listed) - len(todo)


def none_used(skipped: dict, untried, folder) -> MedXAIError:
    """What to say when no case could be used; ``untried``: names that were skipped before one was tried."""
    # What stopped a case that was tried says more than an image without a mask.
    first = next((one for one in skipped.items() if one[0] not in untried), next(iter(skipped.items())))
    return MedXAIError(
        f"None of the {len(skipped)} cases in '{folder}' could be used (the first: {first[0]}: {first[1]})."
    )


def _left(listed, log):
    """Rows that the log holds, the place of each case by its name, and (name, paths, files) of those that are left."""
    try:
        known = {_key(row["files"]): row for row in log.rows}
    except (KeyError, TypeError):
        raise log.damaged() from None
    rows, order, todo = [], {}, []
    for name, *paths in listed:
        name = f"{name} ({len(order) + 1})" if name in order else name  # the same name in two layouts
        order[name] = len(order)
        files = [_identity(path) for path in paths]
        if _key(files) in known:
            rows.append(known[_key(files)] | {"case": name})
        else:
            todo.append((name, paths, files))
    return rows, order, todo


def _identity(path: Path) -> list:
    """A file as it is now: path, bytes, time of the last change; the path alone where it cannot be looked at."""
    try:
        about = path.stat()
    except OSError:
        return [str(path.absolute())]
    return [str(path.absolute()), about.st_size, about.st_mtime_ns]


def _key(identity):
    return tuple(map(tuple, identity))
