"""Where to look: a segment, a point or a region of interest; nothing is the whole image."""

from __future__ import annotations

import qt
import slicer
from slicer.i18n import tr as _

from ..errors import MedXAIError
from ..scene import read
from .parts import toolButton
from .segment_row import SegmentRow
from .watch import Watch

MARKUP = "place"  # the parameter that keeps the point list or ROI
#: Events of a point list or ROI after which its place may be another one.
MOVES = ("PointModified", "PointPositionDefined", "PointPositionUndefined", "PointRemoved", "TransformModified")


class LesionRows:
    """Rows for a segment, a point or ROI, and the centre they give.

    The parameters: ``segmentation`` and ``segmentId``, ``place`` (a markups node), ``center_ras`` (a setting, text). A point or ROI is
    followed when it is moved; a segment and a centre exclude each other.

    Parameters
    ----------
    layout : qt.QFormLayout
        Where the rows go.
    volumeNode : callable
        Gives the first volume node, or None.
    onChanged : callable
        Called without arguments when something was chosen.
    """

    def __init__(self, layout, volumeNode, onChanged):
        self._volumeNode, self._onChanged = volumeNode, onChanged
        self._parameters = None
        self._updating = False
        self._input = None
        self._moved, self._carried = Watch(self._onMoved), Watch(self._onMoved)
        self.segmentRow = SegmentRow(
            layout, _("Lesion:"), _("A patch around the middle of its largest part is looked at; the segment itself is not needed by the networks."), self._segmentChosen
        )  # fmt: skip
        self.segmentRow.selector.objectName = "lesionSelector"

        self.placeSelector = slicer.qMRMLNodeComboBox()
        self.placeSelector.nodeTypes = ["vtkMRMLMarkupsFiducialNode", "vtkMRMLMarkupsROINode"]
        self.placeSelector.noneEnabled = True
        self.placeSelector.noneDisplay = _("or a point or ROI…")
        self.placeSelector.addEnabled = self.placeSelector.removeEnabled = self.placeSelector.renameEnabled = False
        self.placeSelector.objectName = "placeSelector"
        self.placeSelector.toolTip = _("A patch around the point placed last in this list, or around the middle of the ROI; it follows when you move it.")  # fmt: skip
        self.placeSelector.setMRMLScene(slicer.mrmlScene)
        self.placeSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._placeChosen)
        row = qt.QHBoxLayout()
        row.addWidget(self.placeSelector, 1)
        self.placeButton = toolButton(row, _("Place"), _("Makes a point: click on the lesion in a slice view."), self.placePoint)  # fmt: skip
        layout.addRow(_("Point or ROI:"), row)

        self.centerEdit = qt.QLineEdit()
        self.centerEdit.objectName = "centerEdit"
        self.centerEdit.connect("textEdited(QString)", self._typed)
        row = qt.QHBoxLayout()
        row.addWidget(self.centerEdit, 1)
        self.crosshairButton = toolButton(row, _("Crosshair"), _("Takes the crosshair's place: hold Shift and move the mouse in a slice view."), self.takeFromCrosshair)  # fmt: skip
        self.goButton = toolButton(row, _("Go"), _("Shows this place in the slice views; zoom stays."), self.goTo)
        self.clearButton = toolButton(row, "✕", _("No lesion: the whole image is looked at."), self.clear)
        layout.addRow(_("Center (RAS):"), row)
        self.infoLabel = qt.QLabel()
        self.infoLabel.objectName = "lesionInfo"
        self.infoLabel.wordWrap = True
        layout.addRow("", self.infoLabel)

    # -- the scene -----------------------------------------------------------------------------------------------------

    def setParameterNode(self, parameters):
        """Keep the choice in this node from now on; None: nowhere."""
        self._parameters = parameters
        self.segmentRow.setParameterNode(parameters)
        if parameters is None:
            self._moved.clear()
            self._carried.clear()
        self.update()

    def setInput(self, about):
        """What the network takes, as in its package; None: none is chosen."""
        self._input = about

    def update(self):
        """Show what the parameter node says."""
        if self._parameters is None:
            return
        self.segmentRow.update()
        node = self._parameters.getValue(MARKUP)
        self._updating = True
        self.placeSelector.setCurrentNode(node)
        self._updating = False
        if node is not self._moved.object:
            self._moved.set(node, *(getattr(node, name + "Event") for name in MOVES if node))
        volumeNode = self._volumeNode() if node else None
        if volumeNode is not self._carried.object:
            self._carried.set(volumeNode, slicer.vtkMRMLTransformableNode.TransformModifiedEvent)
        self._follow()
        self.infoLabel.text = self._info()
        self.goButton.enabled = bool(self._parameters.center_ras)
        self.clearButton.enabled = bool(self._parameters.center_ras) or self.segmentRow.segment is not None

    def _segmentChosen(self):
        if self.segmentRow.segment is not None:
            self._set(None, "")
        self._onChanged()

    def _placeChosen(self, node=None):
        if self._updating or self._parameters is None:
            return
        self._set(node, self._centerOf(node) if node is not None else "")
        self._onChanged()

    def _onMoved(self, _caller=None, _event=None):
        if self._parameters is not None and self._follow():
            self._onChanged()

    def _follow(self) -> bool:
        """Take the center from the chosen point or ROI, none where it has none; whether that is another one."""
        node = self._parameters.getValue(MARKUP)
        if node is None or self._volumeNode() is None:  # a scene that is read may have no volume yet
            return False
        center = self._centerOf(node)
        if center == self._parameters.center_ras:
            return False
        self._set(node, center)
        return True

    def _typed(self, _text):
        if self._parameters is not None:
            self._parameters.setValue(MARKUP, None)

    def _set(self, node, center: str):
        with slicer.util.NodeModify(self._parameters):
            self._parameters.setValue(MARKUP, node)
            self._parameters.center_ras = center
            if center:
                self._parameters.segmentation, self._parameters.segmentId = None, ""

    def _centerOf(self, node) -> str:
        """A markup's place in the volume's own coordinates, as text; empty where it has none yet."""
        volumeNode = self._volumeNode()
        placed = [n for n in range(node.GetNumberOfControlPoints()) if node.GetNthControlPointPositionStatus(n) == node.PositionDefined]  # fmt: skip
        if volumeNode is None or not placed:
            return ""
        if node.IsA("vtkMRMLMarkupsROINode"):
            world = read.world(node, node.GetCenter())  # its GetCenterWorld is late when a transform is set
        else:
            world = node.GetNthControlPointPositionWorld(placed[-1])
        return _text(read.position(volumeNode, world))

    # -- buttons -------------------------------------------------------------------------------------------------------

    def placePoint(self):
        """Make a point list, or take one that is left without a point, and let a click place its point."""
        logic = slicer.modules.markups.logic()
        lists = slicer.util.getNodesByClass("vtkMRMLMarkupsFiducialNode")
        left = (n for n in lists if n.GetName() == _("Lesion") and not n.GetNumberOfDefinedControlPoints())
        node = next(left, None) or slicer.mrmlScene.GetNodeByID(logic.AddNewFiducialNode(_("Lesion")) or "")
        if node is not None and self._parameters is not None:
            self._set(node, "")
            logic.SetActiveList(node) if hasattr(logic, "SetActiveList") else None
            logic.StartPlaceMode(False)

    def takeFromCrosshair(self):
        """The crosshair's place."""
        volumeNode = self._volumeNode()
        if volumeNode is not None and self._parameters is not None:
            self._set(None, _text(read.crosshair(slicer.mrmlScene, volumeNode)))

    def clear(self):
        """No lesion."""
        if self._parameters is not None:
            with slicer.util.NodeModify(self._parameters):
                self._set(None, "")
                self._parameters.segmentation, self._parameters.segmentId = None, ""

    def goTo(self):
        """Show the center in the slice views (zoom and orientation stay)."""
        ras, volumeNode = self.ras, self._volumeNode()
        if ras is not None and volumeNode is not None:
            slicer.modules.markups.logic().JumpSlicesToLocation(*read.world(volumeNode, ras), False)

    # -- what is chosen ------------------------------------------------------------------------------------------------

    @property
    def ras(self):
        """The center; None where there is none, or it is not three numbers."""
        try:
            numbers = tuple(float(v) for v in self._parameters.center_ras.replace(";", ",").split(","))
        except (ValueError, AttributeError):
            return None
        return numbers if len(numbers) == 3 else None

    @property
    def segment(self):
        """(segmentation node, segment ID) of the lesion; None when a center is given or no segment is chosen."""
        return None if self._parameters is None or self._parameters.center_ras.strip() else self.segmentRow.segment

    @property
    def chosen(self) -> bool:
        """Whether a lesion is named at all."""
        return self.segment is not None or (self._parameters is not None and bool(self._parameters.center_ras.strip()))

    @property
    def problem(self) -> str:
        """Why the choice cannot be used, one sentence; empty when it can."""
        if self._parameters is None:
            return ""
        if self._parameters.center_ras.strip():
            volumeNode, ras = self._volumeNode(), self.ras
            if ras is None:
                return _("The center is not three numbers, such as 12.5, -30, 40; take it from a point, or clear it.")
            if volumeNode is not None and volumeNode.GetImageData() is not None:
                try:
                    read.volume(volumeNode).voxel(ras=ras)
                except MedXAIError as error:
                    return error.message
        node = self._parameters.getValue(MARKUP)
        if node is not None and not self._parameters.center_ras.strip():
            return _("'{name}' has no point yet: click on the lesion in a slice view.").format(name=node.GetName())
        return self.segmentRow.problem

    def _info(self) -> str:
        """What is looked at, in words."""
        about = self._input
        if about is None:
            return ""
        if about.size is None or about.fit == "resize":
            if not self.chosen:
                return _("This network looks at whole images.")
            return _("This network looks at whole images: the lesion only chooses the slice.") if about.spatial_dims == 2 else _("This network looks at whole images: the lesion does not matter.")  # fmt: skip
        spacing = about.spacing or (None,) * len(about.size)
        known = all(spacing)
        edges = [n * s if known else n for n, s in zip(about.size, spacing)]
        size = " × ".join(f"{edge:.3g}" for edge in edges) + (" mm" if known else _(" voxels"))
        if self.chosen:
            return _("A patch of {size} around its middle is looked at.").format(size=size)
        return _("Nothing chosen: the whole image is looked at, in windows of {size} where it is larger.").format(size=size)  # fmt: skip


def _text(ras) -> str:
    return ", ".join(f"{v:.2f}" for v in ras)
