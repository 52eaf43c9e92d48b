"""Which voxel's answer is raised: from the crosshair, from a point, typed, or the best place in a segment."""

from __future__ import annotations

import qt
import slicer
from slicer.i18n import tr as _

from ..errors import MedXAIError
from .parts import toolButton
from .segment_row import SegmentRow


class NeuronRows:
    """Rows for the voxel and the segment.

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

        self.rasEdit = qt.QLineEdit()
        self.crosshairButton = qt.QPushButton(_("Take from crosshair"))
        self.crosshairButton.objectName = "crosshairButton"
        self.crosshairButton.toolTip = _(
            "Hold Shift and move the mouse in a slice view to place the crosshair; then press here."
        )
        self.crosshairButton.connect("clicked(bool)", lambda _checked=False: self.takeFromCrosshair())
        row = qt.QHBoxLayout()
        row.addWidget(self.rasEdit, 1)
        self.goButton = toolButton(row, _("Go"), _("Show this voxel in the slice views."), self.goTo)
        clear = _("No voxel: the best place in the segment, or in the volume, is looked for.")
        self.clearButton = toolButton(row, "✕", clear, lambda: self.setRas(None))
        layout.addRow(_("Voxel (RAS):"), row)
        layout.addRow("", self.crosshairButton)

        self.pointSelector = slicer.qMRMLNodeComboBox()
        self.pointSelector.nodeTypes = ["vtkMRMLMarkupsFiducialNode"]
        self.pointSelector.noneEnabled = True
        self.pointSelector.addEnabled = self.pointSelector.removeEnabled = self.pointSelector.renameEnabled = False
        self.pointSelector.noneDisplay = _("Or from a point list…")
        self.pointSelector.toolTip = _("Takes the point placed last in this list.")
        self.pointSelector.setMRMLScene(slicer.mrmlScene)
        self.pointSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._pointChosen)
        layout.addRow(_("Point:"), self.pointSelector)

        self.segmentRow = SegmentRow(
            layout,
            _("Best in segment:"),
            _("Without a voxel, the one in this segment that the network is nearest to accepting is taken."),
            onChanged,
        )
        self.segmentSelector = self.segmentRow.selector

        self.infoLabel = qt.QLabel()
        self.infoLabel.wordWrap = True
        self.infoLabel.objectName = "neuronInfo"
        layout.addRow("", self.infoLabel)

    # -- the scene -----------------------------------------------------------------------------------------------------

    def setParameterNode(self, parameters):
        """Bind the segment to the parameter node (the voxel is a setting, bound by the form)."""
        self._parameters = parameters
        self.segmentRow.setParameterNode(parameters)
        self.update()

    def update(self):
        """Show what the parameter node says."""
        if self._parameters is not None:
            self.segmentRow.update()
            self.describe()

    def _pointChosen(self, node=None):
        if node is None or node.GetNumberOfControlPoints() == 0:
            return
        volumeNode = self._volumeNode()
        if volumeNode is not None:
            from ..scene import read

            self.setRas(read.control_point(node, node.GetNumberOfControlPoints() - 1, volumeNode))

    # -- the voxel -----------------------------------------------------------------------------------------------------

    def takeFromCrosshair(self):
        """The crosshair's place, in the volume's own coordinates (a parent transform is taken into account)."""
        volumeNode = self._volumeNode()
        if volumeNode is None:
            self.infoLabel.text = _("Choose a volume first.")
            return
        from ..scene import read

        self.setRas(read.crosshair(slicer.mrmlScene, volumeNode))

    def setRas(self, ras):
        """Put a point into the row; None: none."""
        self.rasEdit.text = "" if ras is None else ", ".join(f"{v:.2f}" for v in ras)

    @property
    def ras(self):
        """The point typed, or None; ValueError when it is not three numbers."""
        text = self.rasEdit.text.strip()
        if not text:
            return None
        numbers = tuple(float(v) for v in text.replace(";", ",").split(","))
        if len(numbers) != 3:
            raise ValueError(text)
        return numbers

    def goTo(self):
        """Show the voxel in the slice views (zoom and orientation stay)."""
        try:
            ras, volumeNode = self.ras, self._volumeNode()
        except ValueError:
            return
        if ras is not None and volumeNode is not None:
            from ..scene import read

            slicer.modules.markups.logic().JumpSlicesToLocation(*read.world(volumeNode, ras), False)

    def describe(self) -> str:
        """Say below the rows which voxel it is; gives the reason when there is none, else an empty text."""
        problem, text = "", ""
        volumeNode = self._volumeNode()
        try:
            ras = self.ras
        except ValueError:
            problem = _(
                "The voxel is not three numbers, such as 12.5, -30, 40; take it from the crosshair, or clear it."
            )
        else:
            if ras is not None and volumeNode is not None and volumeNode.GetImageData() is not None:
                try:
                    text = _voxelText(volumeNode, ras)
                except MedXAIError as error:
                    problem = error.message
            elif ras is None:
                text = self._bestText()
        self.goButton.enabled = self.clearButton.enabled = bool(self.rasEdit.text)
        self.infoLabel.text = text
        self.infoLabel.visible = bool(text)
        return problem

    def _bestText(self) -> str:
        if self.segmentSelector.currentNode() is None:
            return _("No voxel: the best place in the whole volume is looked for.")
        return self.segmentRow.problem or _("The best place in this segment is looked for.")

    @property
    def segment(self):
        """(segmentation node, segment ID) for "best in segment"; None when a voxel is given or no segment is chosen."""
        return None if self.rasEdit.text.strip() else self.segmentRow.segment


def _voxelText(volumeNode, ras) -> str:
    from ..scene import read

    volume = read.volume(volumeNode)
    k, j, i = volume.voxel(ras=ras)
    value = f"{volume.array[k, j, i]:g} {volume.unit}".strip()
    text = _("Voxel {i}, {j}, {k} of the volume; value {value}.").format(i=i, j=j, k=k, value=value)
    if volumeNode.GetParentTransformNode() is not None:
        r, a, s = read.world(volumeNode, ras)
        text += _(" The volume is transformed: in the views it is at R {r:.1f}, A {a:.1f}, S {s:.1f}.").format(
            r=r, a=a, s=s
        )
    return text
