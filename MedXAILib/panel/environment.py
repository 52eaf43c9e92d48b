"""What is installed in the worker's Python, without importing any of it; installation only when a person presses for it."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from dataclasses import dataclass

from ..errors import MedXAIError

EXTRA_HELP = {
    "pyradiomics": (
        "The feature engine 'pyradiomics' is not installed in the worker's Python: choose auto, which needs none, or get it (in Slicer"
        " the SlicerRadiomics extension, for Linux and Windows, then restart; in a Python 3.11 of your own pip install"
        " --no-build-isolation pyradiomics==3.0.1)."
    ),
    "torch": "Install the PyTorch extension with the Extensions Manager, restart Slicer, then press Install.",
}


@dataclass(frozen=True)
class Package:
    """A package of the worker's Python: what is needed, what is there, and what for."""

    name: str
    needs: str
    purpose: str
    optional: bool = False
    version: str = ""

    @property
    def satisfied(self) -> bool:
        """Whether it is installed, in a version that is new enough."""
        return bool(self.version) and _number(self.version) >= _number(self.needs)

    @property
    def requirement(self) -> str:
        """As pip takes it."""
        return self.name + (f">={self.needs}" if self.needs else "")

    @property
    def text(self) -> str:
        """One line for a person."""
        if self.satisfied:
            return self.version
        found = f"{self.version}, too old" if self.version else "not installed"
        return f"{found} (needs {self.needs or 'any version'}{', optional' if self.optional else ''})"


NEEDED = (
    Package("torch", "2.2", "runs the networks"),
    Package("monai", "1.3", "networks and geometry"),
    Package("safetensors", "0.4", "weights files"),
    Package("SimpleITK", "2.3", "volumes"),
    Package("scipy", "1.11", "geometry and statistics"),
    Package("pyradiomics", "", "reference engine for feature curves", optional=True),
)

# What a Python outside Slicer runs to say what it has. It imports none of the packages.
PROBE = (
    "import importlib.metadata as m, json, sys\n"
    "found = {}\n"
    "for name in sys.argv[1:]:\n"
    "    try: found[name] = m.version(name)\n"
    "    except m.PackageNotFoundError: found[name] = ''\n"
    "print(json.dumps({'python': sys.version.split()[0], 'packages': found}))"
)


def _number(version: str) -> tuple[int, ...]:
    numbers = []
    for part in version.split("+")[0].split("."):
        digits = "".join(c for c in part if c.isdigit()) if part[:1].isdigit() else ""
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def withVersions(versions: dict[str, str]) -> list[Package]:
    """The needed packages with the versions that were found."""
    return [Package(p.name, p.needs, p.purpose, p.optional, versions.get(p.name, "")) for p in NEEDED]


def installedHere() -> list[Package]:
    """The packages of this process's Python, by their metadata alone."""
    versions = {}
    for package in NEEDED:
        try:
            versions[package.name] = importlib.metadata.version(package.name)
        except importlib.metadata.PackageNotFoundError:
            versions[package.name] = ""
    return withVersions(versions)


def missing(packages: list[Package]) -> str:
    """Why no run can start, one sentence; empty when everything that must be there is there."""
    names = [p.name for p in packages if not p.optional and not p.satisfied]
    if not names:
        return ""
    return f"The worker's Python lacks {', '.join(names)}; open MedXAI Models, section Environment, and press Install."


def withoutEngine(packages: list[Package], engine: str) -> str:
    """Why this feature engine cannot be had, one sentence; empty when it can, or while nobody has looked."""
    lacks = [p for p in packages if p.name == engine and not p.satisfied]
    return EXTRA_HELP[engine] if lacks else ""


class Environment:
    """The worker's Python, asked without freezing the window.

    Parameters
    ----------
    python : callable
        Gives the interpreter's path when it lies outside Slicer, else None.
    """

    def __init__(self, python):
        self._python = python
        self._process = None
        self.packages: list[Package] | None = None
        self.pythonVersion = ""
        self.problem = ""

    def refresh(self, done):
        """Look again, then call ``done()``: at once for Slicer's own Python, later for another one."""
        outside = self._python()
        self.problem = ""
        if outside is None:
            importlib.invalidate_caches()
            self.packages, self.pythonVersion = installedHere(), sys.version.split()[0]
            done()
            return
        import qt

        self.stop()
        process = qt.QProcess()
        process.connect("finished(int,QProcess::ExitStatus)", lambda code, _status: self._finished(process, code, done))
        process.connect("errorOccurred(QProcess::ProcessError)", lambda error: self._failed(process, error, done))
        environment = qt.QProcessEnvironment()
        import slicer

        for name, value in slicer.util.startupEnvironment().items():
            environment.insert(name, value)
        process.setProcessEnvironment(environment)
        self._process = process
        process.start(str(outside), ["-c", PROBE, *(p.name for p in NEEDED)])

    def _finished(self, process, code, done):
        if process is not self._process:
            return
        self._process = None
        try:
            answer = json.loads(process.readAllStandardOutput().data())
            self.packages, self.pythonVersion = withVersions(answer["packages"]), answer["python"]
        except (ValueError, KeyError, TypeError):
            self.packages = None
            self.problem = (
                f"The worker's Python '{self._python()}' did not answer (exit status {code}); choose another one."
            )
        done()

    def _failed(self, process, error, done):
        import qt

        if process is self._process and error == qt.QProcess.FailedToStart:
            self._process = None
            self.packages = None
            self.problem = f"The worker's Python '{self._python()}' could not be started; choose another one."
            done()

    def stop(self):
        """End a look that is under way."""
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            process.waitForFinished(200)

    def install(self, packages: list[Package] | None = None) -> list[str]:
        """Install what is missing into Slicer's Python, because a person pressed for it; gives sentences on what was done.

        torch comes through the PyTorch extension, which knows the graphics card, the others through pip. Nothing is
        installed into a Python outside Slicer: that one belongs to somebody else.
        """
        outside = self._python()
        packages = [p for p in (packages or self.packages or installedHere()) if not p.satisfied and not p.optional]
        names = ", ".join(p.name for p in packages)
        if not packages:
            return ["Everything that is needed is installed."]
        if outside is not None:
            wanted = " ".join(f'"{p.requirement}"' for p in packages)
            raise MedXAIError(
                f"The worker's Python is not Slicer's; install there: {outside} -m pip install {wanted}", "missing"
            )
        if any(p.name == "torch" for p in packages):
            _installTorch()
        others = [p for p in packages if p.name != "torch"]
        if others:
            _pipInstall([p.requirement for p in others])
        importlib.invalidate_caches()
        left = missing(installedHere())
        if left:
            raise MedXAIError(left, "missing", "Not everything was installed; Slicer's Python console says why.")
        return [f"Installed: {names}."]


def _installTorch():
    try:
        import PyTorchUtils
    except ImportError:
        raise MedXAIError(
            "torch is installed by the PyTorch extension, which is missing.", "missing", EXTRA_HELP["torch"]
        ) from None
    needs = next(p.needs for p in NEEDED if p.name == "torch")
    logic = PyTorchUtils.PyTorchUtilsLogic()
    if logic.installTorch(askConfirmation=True, torchVersionRequirement=f">={needs}") is None:
        raise MedXAIError("torch was not installed; press Install to try again.", "missing")


def _pipInstall(requirements: list[str]):
    import subprocess

    import slicer

    try:
        try:
            from slicer.packaging import pip_ensure
        except ImportError:  # Slicer before 5.12
            text = "These packages will be installed into Slicer's Python:\n" + "\n".join(requirements)
            if not slicer.util.confirmOkCancelDisplay(text, "MedXAI"):
                raise RuntimeError("declined") from None
            slicer.util.pip_install(requirements)
        else:
            pip_ensure(requirements, requester="MedXAI")
    except RuntimeError:
        raise MedXAIError("Nothing was installed; press Install when you want it.", "missing") from None
    except subprocess.CalledProcessError as error:
        raise MedXAIError(
            f"pip could not install {', '.join(requirements)} (exit status {error.returncode}); the log in Slicer's Python"
            " console says why.", "missing",
        ) from None  # fmt: skip
