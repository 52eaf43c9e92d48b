"""Registered model packages and trusted programs, kept in Slicer's settings; without Qt, so that it is tested without."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import MedXAIError
from ..package import Package

MODELS = "MedXAI/Models"
TRUSTED = "MedXAI/Trusted"


@dataclass(frozen=True)
class Entry:
    """A listed package: ``package`` is None when it cannot be read, and ``problem`` says why."""

    folder: Path
    package: Package | None
    problem: str
    sample: bool

    @property
    def title(self) -> str:
        """Name for a list."""
        return self.package.name if self.package else f"{self.folder.name} (cannot be read)"


class Library:
    """The model packages a person has added, the bundled samples, and which programs are trusted.

    Parameters
    ----------
    settings : object with ``value(key)`` and ``setValue(key, value)``
        Slicer's user settings (`qt.QSettings`).
    samples : Path or None
        Folder with the sample packages that come with MedXAI; they are listed and cannot be removed.
    """

    def __init__(self, settings, samples: Path | None):
        self._settings, self._samples = settings, samples

    def _list(self, key: str) -> list[str]:
        value = self._settings.value(key)  # QSettings gives back None, one string, a tuple or a list
        if not value:
            return []
        return [value] if isinstance(value, str) else [str(v) for v in value]

    @property
    def samples(self) -> list[Path]:
        """The bundled sample packages."""
        if self._samples is None or not self._samples.is_dir():
            return []
        return sorted(p.parent for p in self._samples.glob("*/model.json"))

    @property
    def added(self) -> list[Path]:
        """What a person has added, in that order."""
        return [Path(p) for p in self._list(MODELS)]

    @property
    def folders(self) -> list[Path]:
        """Every package: samples first."""
        samples = self.samples
        return samples + [p for p in self.added if p not in samples]

    def add(self, folder) -> Path:
        """List a package; refused when the folder holds none that can be read."""
        folder = Path(folder).expanduser().resolve()
        Package.read(folder)
        if folder not in self.folders:
            self._settings.setValue(MODELS, [str(p) for p in self.added] + [str(folder)])
        return folder

    def entries(self) -> list[Entry]:
        """Every package with what its `model.json` says; one that cannot be read says why."""
        return [self.entry(folder) for folder in self.folders]

    def entry(self, folder) -> Entry:
        """One package."""
        folder = Path(folder)
        try:
            return Entry(folder, Package.read(folder), "", folder in self.samples)
        except MedXAIError as error:
            return Entry(folder, None, error.message, folder in self.samples)

    def find(self, sha256: str, name: str) -> Entry | None:
        """The listed package with these weights; by name where no SHA-256 is known."""
        known = [entry for entry in self.entries() if entry.package is not None]
        same = [e for e in known if sha256 and e.package.sha256.lower() == sha256.lower()]
        same += [e for e in known if e.package.name == name and not (sha256 and e.package.sha256)]
        return same[0] if same else None

    def remove(self, folder) -> None:
        """Take a package off the list; its files stay. A sample cannot be taken off."""
        folder = Path(folder)
        if folder in self.samples:
            raise MedXAIError(f"'{folder.name}' came with MedXAI and stays listed.")
        self._settings.setValue(MODELS, [str(p) for p in self.added if p != folder])

    @property
    def trusted(self) -> set[str]:
        """SHA-256 of every program that may run."""
        return set(self._list(TRUSTED))

    def trust(self, sha256: str) -> None:
        """Let this very program run from now on."""
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise MedXAIError(f"'{sha256}' is not a SHA-256; describe the model again.")
        self._settings.setValue(TRUSTED, sorted(self.trusted | {sha256}))

    def distrust(self, sha256: str) -> None:
        """Take that back."""
        self._settings.setValue(TRUSTED, sorted(self.trusted - {sha256}))
