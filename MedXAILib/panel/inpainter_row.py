"""Choosing an inpainter, kept in the scene; none of them is the stated fall-back."""

from __future__ import annotations

import qt
from slicer.i18n import tr as _

from .model_picker import library, summary


class InpainterRow:
    """A combo box of the packages that inpaint.

    Parameters
    ----------
    layout : qt.QFormLayout
        Where the rows go.
    onChanged : callable
        Called without arguments when something was chosen.
    """

    def __init__(self, layout, onChanged):
        self._onChanged = onChanged
        self._parameters = None
        self._filling = False
        self._entries = []
        self.combo = qt.QComboBox()
        self.combo.objectName = "inpainterCombo"
        self.combo.setSizePolicy(qt.QSizePolicy.Ignored, qt.QSizePolicy.Fixed)
        self.combo.toolTip = _(
            "Draws healthy tissue where the region was. Add one in MedXAI Models; 'medxai train inpainter' makes one from healthy images."
        )
        self.combo.connect("currentIndexChanged(int)", self._changed)
        layout.addRow(_("Inpainter:"), self.combo)
        self.aboutLabel = qt.QLabel()
        self.aboutLabel.objectName = "inpainterLabel"
        self.aboutLabel.wordWrap = True
        layout.addRow("", self.aboutLabel)

    def setParameterNode(self, parameters):
        """Keep the choice in this node (``inpainter``, a folder) from now on."""
        self._parameters = parameters
        self.update()

    def refresh(self):
        """List the packages again."""
        found = library().entries()
        self._entries = [e for e in found if e.package is not None and e.package.task == "inpainting"]
        self._filling = True
        self.combo.clear()
        self.combo.addItem(_("none: fall-back"))
        for entry in self._entries:
            self.combo.addItem(entry.title)
            self.combo.setItemData(self.combo.count - 1, str(entry.folder), qt.Qt.ToolTipRole)
        self._filling = False
        self.update()

    def update(self):
        """Show what the parameter node says."""
        if self._parameters is None:
            return
        folder = self._parameters.inpainter
        self._filling = True
        index = next((n for n, e in enumerate(self._entries, 1) if str(e.folder) == folder), 0)
        if folder and not index:  # a scene may name one that is not on this computer's list
            self._entries.append(library().entry(folder))
            self.combo.addItem(self._entries[-1].title)
            index = len(self._entries)
        self.combo.setCurrentIndex(index)
        self._filling = False
        self._tell()

    def _changed(self, _index):
        if self._filling or self._parameters is None:
            return
        self._parameters.inpainter = str(self.entry.folder) if self.entry else ""
        self._tell()
        self._onChanged()

    def _tell(self):
        if self.entry is None:
            fill = {"blur": _("blurred surroundings"), "mean": _("the mean"), "noise": _("noise")}
            words = _("Without an inpainter the region is filled with {what}; the result says so.")
            self.aboutLabel.text = words.format(what=fill.get(self._parameters.fill, self._parameters.fill))
        else:
            self.aboutLabel.text = summary(self.entry.package) if self.entry.package else ""
        self.aboutLabel.visible = bool(self.aboutLabel.text)

    @property
    def entry(self):
        """The chosen package; None for the fall-back."""
        index = self.combo.currentIndex
        return self._entries[index - 1] if 0 < index <= len(self._entries) else None

    def problem(self, classifier) -> str:
        """Why the choice cannot be used with a classifier's package, one sentence; empty when it can."""
        if self.entry is None:
            return ""
        package = self.entry.package
        if package is None:
            return self.entry.problem
        if package.task != "inpainting":
            return _("'{name}' is a {task} network; choose an inpainter.").format(name=package.name, task=package.task)
        if classifier is None:
            return ""
        mine, its = package.input, classifier.input
        for what, a, b in (
            (_("{n}-D images"), mine.spatial_dims, its.spatial_dims),
            (_("{n} channel(s)"), len(mine.channels), len(its.channels)),
            (_("{n} voxels"), mine.size, its.size),
        ):
            if a != b and a is not None and b is not None:
                told = [what.format(n=" × ".join(map(str, n)) if isinstance(n, tuple) else n) for n in (a, b)]
                return _("The inpainter '{name}' takes {a}, and the classifier {b}; choose another inpainter, or none.").format(
                    name=package.name, a=told[0], b=told[1]
                )  # fmt: skip
        return ""
