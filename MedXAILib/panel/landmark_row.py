"""Choosing landmarks: a segmentation, whose visible segments they are."""

from __future__ import annotations

import qt
import slicer
import vtk
from slicer.i18n import tr as _

from ..scene import read
from .watch import Watch


class LandmarkRow:
    """A selector for a segmentation; its segments that are not hidden are the landmarks.

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
        self._updating = False
        self._hidden = Watch(self._onHidden)
        self.selector = slicer.qMRMLNodeComboBox()
        self.selector.nodeTypes = ["vtkMRMLSegmentationNode"]
        self.selector.noneEnabled = True
        self.selector.noneDisplay = _("none: corners, borders and centre")
        self.selector.addEnabled = self.selector.removeEnabled = self.selector.renameEnabled = False
        self.selector.objectName = "landmarkSelector"
        self.selector.setMRMLScene(slicer.mrmlScene)
        self.selector.toolTip = _(
            "How much of the heat falls into each segment that is not hidden; hide the others in the module Segmentations or Data."
        )
        self.selector.connect("currentNodeChanged(vtkMRMLNode*)", self._changed)
        layout.addRow(_("Landmarks:"), self.selector)
        self.namesLabel = qt.QLabel()
        self.namesLabel.wordWrap = True
        self.namesLabel.objectName = "landmarkNames"
        layout.addRow("", self.namesLabel)

    def setParameterNode(self, parameters):
        """Keep the choice in this node (``segmentation``) from now on."""
        self._parameters = parameters
        self.update()

    def update(self):
        """Show what the parameter node says."""
        if self._parameters is None:
            self._hidden.clear()
            return
        self._updating = True
        self.selector.setCurrentNode(self._parameters.segmentation)
        self._updating = False
        self._tell()

    def _changed(self, _node=None):
        if self._updating or self._parameters is None:
            return
        self._parameters.segmentation = self.selector.currentNode()
        self._tell()
        self._onChanged()

    def _onHidden(self, _caller=None, _event=None):
        self._tell()
        self._onChanged()

    def _tell(self):
        node = self.selector.currentNode() if self._parameters is not None else None
        shown = node.GetDisplayNode() if node is not None else None
        if shown is not self._hidden.object:
            self._hidden.set(shown, vtk.vtkCommand.ModifiedEvent)
        self.namesLabel.text = ", ".join(self.names)
        self.namesLabel.visible = bool(self.names)

    @property
    def names(self) -> list[str]:
        """The landmarks' names."""
        node, chosen = self.segments
        return [node.GetSegmentation().GetSegment(one).GetName() for one in chosen]

    @property
    def problem(self) -> str:
        """Why the choice cannot be used, one sentence; empty when it can."""
        node, chosen = self.segments
        if node is None or chosen:
            return ""
        return _("All segments of '{name}' are hidden; show those that are landmarks.").format(name=node.GetName())

    @property
    def segments(self) -> tuple:
        """(segmentation node, IDs of its visible segments); (None, []) when none is chosen."""
        node = self.selector.currentNode()
        return (None, []) if node is None else (node, read.visible_segments(node))
