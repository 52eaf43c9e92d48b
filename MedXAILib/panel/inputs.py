"""Which volumes go into the network: one selector for each of its channels, kept in the scene as node references."""

from __future__ import annotations

import slicer
from slicer.i18n import tr as _

REFERENCE = "MedXAI.Volume{}"  # role of the parameter node's reference for a channel, from 0


class VolumeRows:
    """Selectors for the volumes of a network.

    Parameters
    ----------
    layout : qt.QFormLayout
        Where the rows go.
    onChanged : callable
        Called without arguments when a volume was chosen or has gone.
    """

    def __init__(self, layout, onChanged):
        self._layout, self._onChanged = layout, onChanged
        self.selectors = []
        self._labels = []
        self._node = None  # the parameter node
        self._updating = False
        self.setChannels(("",))

    def setChannels(self, channels):
        """Show one selector for each channel."""
        import qt

        while len(self.selectors) < max(1, len(channels)):
            selector = slicer.qMRMLNodeComboBox()
            selector.nodeTypes = [
                "vtkMRMLScalarVolumeNode",
                "vtkMRMLVectorVolumeNode",
            ]  # a picture may be three times grey
            selector.showChildNodeTypes = False  # no label maps
            selector.noneEnabled = True
            selector.addEnabled = selector.removeEnabled = selector.renameEnabled = False
            selector.objectName = f"volume{len(self.selectors)}"
            selector.setMRMLScene(slicer.mrmlScene)
            label = qt.QLabel()
            self._layout.addRow(label, selector)
            self.selectors.append(selector)
            self._labels.append(label)
            selector.connect("currentNodeChanged(vtkMRMLNode*)", self._changed)
        for n, (selector, label) in enumerate(zip(self.selectors, self._labels)):
            shown = n < max(1, len(channels))
            selector.visible = label.visible = shown
            channel = channels[n] if n < len(channels) else ""
            label.text = _("Volume:") if len(channels) < 2 else _("Volume, {channel}:").format(channel=channel)
            selector.toolTip = _("The image the network looks at ({channel}). It is never changed.").format(
                channel=channel or _("as the model names it")
            )
        self._count = max(1, len(channels))
        self.update()

    def setParameterNode(self, node):
        """Keep the choice in this node from now on; None: keep it nowhere."""
        self._node = node
        self.update()

    def update(self):
        """Show what the parameter node refers to."""
        if self._node is None:
            return
        self._updating = True
        for n, selector in enumerate(self.selectors[: self._count]):
            selector.setCurrentNode(self._node.GetNodeReference(REFERENCE.format(n)))
        self._updating = False

    def _changed(self, _node=None):
        if self._node is not None and not self._updating:
            for n, selector in enumerate(self.selectors[: self._count]):
                self._node.SetNodeReferenceID(REFERENCE.format(n), selector.currentNodeID or None)
        if not self._updating:
            self._onChanged()

    @property
    def nodes(self) -> list:
        """The chosen volume nodes, in the order of the channels; None where nothing is chosen."""
        return [selector.currentNode() for selector in self.selectors[: self._count]]

    def choose(self, nodes):
        """Choose volumes."""
        self._updating = True
        for selector, node in zip(self.selectors, nodes):
            selector.setCurrentNode(node)
        self._updating = False
        self._changed()

    def suggest(self):
        """Where nothing is chosen yet, take the volume the slice views show; a result of ours only if nothing else is there."""
        if self.selectors[0].currentNode() is not None or self._node is None:
            return
        scene = slicer.mrmlScene
        shown = scene.GetNthNodeByClass(0, "vtkMRMLSliceCompositeNode")
        candidates = [scene.GetNodeByID(shown.GetBackgroundVolumeID() or "")] if shown else []
        candidates += slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
        for node in candidates:
            if node and node.GetClassName() == "vtkMRMLScalarVolumeNode" and not node.GetAttribute("MedXAI.Run"):
                self.choose([node])
                return

    @property
    def problem(self) -> str:
        """Why the volumes cannot be used, one sentence; empty when they can."""
        missing = [n for n, node in enumerate(self.nodes) if node is None]
        if missing:
            if slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 0:
                return _("Load a volume first.")
            return _("Choose a volume.") if self._count == 1 else self._labels[missing[0]].text + _(" choose one.")
        names = [node.GetID() for node in self.nodes]
        if len(set(names)) < len(names):
            return _("Two channels have the same volume; choose one volume for each channel.")
        return ""
