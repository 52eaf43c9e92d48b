"""Choosing a package that helps to explain a model, such as an inpainter; kept in the scene."""

from __future__ import annotations

import qt

from .model_picker import library


class PackageRow:
    """A combo box of packages, whose first item is that there is none, and a line about the choice below.

    Parameters
    ----------
    layout : qt.QFormLayout
        Where the rows go.
    title, toolTip : str
        Of the row.
    onChanged : callable
        Called without arguments when something was chosen.
    """

    name = ""  # of the setting that holds the folder, and of the widgets

    def __init__(self, layout, title: str, toolTip: str, onChanged):
        self._onChanged = onChanged
        self.parameters = None
        self._filling = False
        self.entries = []
        self.combo = qt.QComboBox()
        self.combo.objectName = f"{self.name}Combo"
        self.combo.setSizePolicy(qt.QSizePolicy.Ignored, qt.QSizePolicy.Fixed)
        self.combo.toolTip = toolTip
        self.combo.connect("currentIndexChanged(int)", self._changed)
        layout.addRow(title, self.combo)
        self.aboutLabel = qt.QLabel()
        self.aboutLabel.objectName = f"{self.name}Label"
        self.aboutLabel.wordWrap = True
        layout.addRow("", self.aboutLabel)

    def setParameterNode(self, parameters):
        """Keep the choice in this node from now on."""
        self.parameters = parameters
        self.update()

    @property
    def folder(self) -> str:
        """What the parameter node says; empty for none."""
        return self.parameters.getValue(self.name)

    @folder.setter
    def folder(self, value: str):
        self.parameters.setValue(self.name, value)

    @property
    def entry(self):
        """The chosen package; None where none is."""
        index = self.combo.currentIndex
        return self.entries[index - 1] if 0 < index <= len(self.entries) else None

    def fill(self, entries, none: str):
        """List these packages behind the item ``none``."""
        self.entries = []
        self._filling = True
        self.combo.clear()
        self.combo.addItem(none)
        for entry in entries:
            self._add(entry)
        self._filling = False

    def update(self):
        """Show what the parameter node says."""
        if self.parameters is None:
            return
        self._filling = True
        index = next((n for n, e in enumerate(self.entries, 1) if str(e.folder) == self.folder), 0)
        if self.folder and not index:  # a scene may name one that is not on this computer's list
            self._add(library().entry(self.folder))
            index = len(self.entries)
        self.combo.setCurrentIndex(index)
        self._filling = False
        self._tell()

    def about(self) -> str:
        """A line about the choice; may be empty."""
        raise NotImplementedError

    def _add(self, entry):
        self.entries.append(entry)
        self.combo.addItem(entry.title)
        self.combo.setItemData(self.combo.count - 1, str(entry.folder), qt.Qt.ToolTipRole)

    def _changed(self, _index):
        if self._filling or self.parameters is None:
            return
        self.folder = str(self.entry.folder) if self.entry else ""
        self._tell()
        self._onChanged()

    def _tell(self):
        self.aboutLabel.text = self.about()
        self.aboutLabel.visible = bool(self.aboutLabel.text)
