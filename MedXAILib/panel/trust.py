"""One click to trust a program (TorchScript, torch.export) by its SHA-256."""

from __future__ import annotations

import qt
from slicer.i18n import tr as _

from ..errors import MedXAIError
from .application import waitCursor
from .model_picker import library


class TrustRow:
    """Shown only for a program that nobody has trusted yet.

    Parameters
    ----------
    layout : qt.QFormLayout
        Where it goes.
    onChanged : callable
        Called without arguments once the program is trusted.
    """

    def __init__(self, layout, onChanged):
        self._onChanged = onChanged
        self._package = None
        self._sha256 = ""
        self.label = qt.QLabel()
        self.label.wordWrap = True
        self.button = qt.QPushButton(_("Trust this model"))
        self.button.objectName = "trustButton"
        self.button.connect("clicked(bool)", lambda _checked=False: self.trust())
        layout.addRow(self.label)
        layout.addRow(self.button)
        self._update()

    def setPackage(self, package):
        """The package that is chosen now."""
        if package is not self._package:
            self._package, self._sha256 = package, package.sha256.lower() if package is not None else ""
        self._update()

    @property
    def trusted(self) -> tuple[str, ...]:
        """What to tell the worker: the chosen program's SHA-256, once it is trusted."""
        known = library().trusted
        return (self._sha256,) if self._sha256 in known else ()

    @property
    def problem(self) -> str:
        """Why the model cannot run yet, one sentence; empty when it can."""
        if self._package is None or not self._package.is_program or self.trusted:
            return ""
        return _("This model is a program: press Trust this model if you know where it comes from.")

    def trust(self):
        """Let this very program run from now on; another file under the same name is asked for again."""
        try:
            if not self._sha256:  # a MONAI bundle states none
                with waitCursor():
                    self._sha256 = self._package.verify()
            library().trust(self._sha256)
        except MedXAIError as error:
            self.label.text = error.message
            return
        self._update()
        self._onChanged()

    def _update(self):
        shown = bool(self.problem)
        self.label.visible = self.button.visible = shown
        if shown:
            source = self._package.about.get("source") or _("no source is stated")
            self.label.text = _(
                "The weights of this model are a program, which can do whatever you can do on this computer. Source: {source}."
                " SHA-256: {sha}…"
            ).format(source=source, sha=self._sha256[:16])
