"""Choosing a segment, kept in the scene."""

from __future__ import annotations

import slicer
from slicer.i18n import tr as _


class SegmentRow:
    """A selector for a segmentation and one of its segments; either may be left out.

    Parameters
    ----------
    layout : qt.QFormLayout
        Where the row goes.
    title, toolTip : str
        What it is for.
    onChanged : callable
        Called without arguments when something was chosen.
    names : tuple of str
        The parameters that keep the segmentation and the segment's ID.
    """

    def __init__(self, layout, title: str, toolTip: str, onChanged, names=("segmentation", "segmentId")):
        self._onChanged, self._names = onChanged, names
        self._parameters = None
        self._updating = False
        self.selector = slicer.qMRMLSegmentSelectorWidget()
        self.selector.noneEnabled = True
        self.selector.horizontalLayout = True
        self.selector.setMRMLScene(slicer.mrmlScene)
        self.selector.toolTip = toolTip
        self.selector.connect("currentNodeChanged(vtkMRMLNode*)", self._changed)
        self.selector.connect("currentSegmentChanged(QString)", self._changed)
        layout.addRow(title, self.selector)

    def setParameterNode(self, parameters):
        """Keep the choice in this node from now on."""
        self._parameters = parameters
        self.update()

    def update(self):
        """Show what the parameter node says."""
        if self._parameters is None:
            return
        self._updating = True
        node, segmentId = (self._parameters.getValue(name) for name in self._names)
        self.selector.setCurrentNode(node)
        if node is not None and segmentId:
            self.selector.setCurrentSegmentID(segmentId)
        self._updating = False

    def _changed(self, _what=None):
        if self._updating or self._parameters is None:
            return
        with slicer.util.NodeModify(self._parameters):
            self._parameters.setValue(self._names[0], self.selector.currentNode())
            self._parameters.setValue(self._names[1], self.selector.currentSegmentID() or "")
        self._onChanged()

    @property
    def problem(self) -> str:
        """Why the choice cannot be used, one sentence; empty when it can."""
        chosen = self.selector.currentNode() is not None and not self.selector.currentSegmentID()
        return _("Choose a segment, or no segmentation.") if chosen else ""

    @property
    def segment(self):
        """(segmentation node, segment ID); None when no segment is chosen."""
        node, segmentId = self.selector.currentNode(), self.selector.currentSegmentID()
        return None if node is None or not segmentId else (node, segmentId)
