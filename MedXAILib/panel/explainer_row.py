"""Choosing the explainer of a classifier, kept in the scene: only those that were trained for it are offered."""

from __future__ import annotations

from pathlib import Path

from slicer.i18n import tr as _

from .model_picker import library
from .package_row import PackageRow

TASK = "explanation"


class ExplainerRow(PackageRow):
    """A combo box of the explainers that were trained for the chosen classifier, by the SHA-256 of its weights."""

    name = "explainer"

    def __init__(self, layout, onChanged):
        words = _(
            "A trained pair of generators; it belongs to one classifier. Listed are those of MedXAI Models and those beside the classifier."
        )
        super().__init__(layout, _("Explainer:"), words, onChanged)
        self._classifier = None

    def setClassifier(self, package):
        """List the explainers of this classifier (None: of none).

        When none is chosen, or one of another classifier, and exactly one fits, it is taken; one that is not listed, or cannot be read, stays chosen.
        """
        if package is not None and package is self._classifier:
            return self.update()
        self._classifier = package
        found = _explainersOf(package)
        self.fill(found, _("Choose an explainer") if found else _("none: train one below"))
        if self.parameters is not None and package is not None:
            kept = library().entry(self.folder).package if self.folder else None
            others = kept is not None and kept.explains is not None and kept.explains.sha256 != package.sha256
            if others or not self.folder:
                self.folder = str(found[0].folder) if len(found) == 1 else ""
        self.update()

    def choose(self, folder):
        """List the explainers again and choose this one, where it is of the classifier."""
        classifier, self._classifier = self._classifier, None
        self.setClassifier(classifier)
        if self.parameters is not None and any(str(e.folder) == str(folder) for e in self.entries):
            self.folder = str(folder)
            self.update()
            self._onChanged()

    def about(self) -> str:
        package = self.entry.package if self.entry else None
        about = package.explains if package is not None else None
        return (
            _("G⁺: {positive}; G⁻: {negative}").format(positive=about.positive, negative=about.negative)
            if about
            else ""
        )

    def problem(self, classifier, label: str) -> str:
        """Why the choice cannot be used with a classifier's package and a class, one sentence; empty when it can."""
        if classifier is None:
            return ""
        if self.entry is None:
            if self.entries:
                return _("Choose an explainer.")
            return _("No explainer of '{name}' is listed. Train one below.").format(name=classifier.name)
        package = self.entry.package
        if package is None:
            return self.entry.problem
        about = package.explains
        if about is None:
            return _("'{name}' is a {task} network; choose an explainer.").format(name=package.name, task=package.task)
        if about.sha256 != classifier.sha256:
            return _("The explainer '{name}' was trained for '{other}'; choose one of '{mine}', or train one below.").format(
                name=package.name, other=about.name, mine=classifier.name
            )  # fmt: skip
        if label and label not in (about.positive, about.negative):
            return _("The explainer knows '{a}' and '{b}', not '{label}'; choose one of both.").format(a=about.positive, b=about.negative, label=label)  # fmt: skip
        return ""


def _explainersOf(package) -> list:
    """The explainers of a classifier that are listed, and those that lie beside it."""
    if package is None:
        return []
    entries = library().entries()
    known = {entry.folder for entry in entries}
    try:
        beside = sorted(p.parent for p in Path(package.folder).resolve().parent.glob("*/model.json"))
    except OSError:
        beside = []
    entries += [library().entry(folder) for folder in beside if folder not in known]
    found = [e for e in entries if e.package is not None and e.package.task == TASK and e.package.explains is not None]
    return [e for e in found if e.package.explains.sha256 == package.sha256]
