"""The panel of *MedXAI DeepDream*: what a segmentation network reacts to, from click to chart."""

from __future__ import annotations

from pathlib import Path

import ctk
import qt
import slicer
import vtk
from slicer.i18n import tr as _

from ..errors import MedXAIError
from ..settings import DreamSettings
from ..worker.jobs import RunRequest
from . import environment as environments
from . import worker_session
from .application import waitCursor
from .form import SettingsForm, parameterNodeClass
from .inputs import VolumeRows
from .live_run import LiveRun
from .model_picker import ModelPicker, library
from .neuron import NeuronRows
from .parts import section, toolButton
from .results import ResultSection
from .run_control import RunControl
from .run_state import RunState
from .trust import TrustRow
from .watch import Watch

METHOD = "dream"
DreamParameterNode = parameterNodeClass(
    DreamSettings, {"model": str, "segmentation": slicer.vtkMRMLSegmentationNode, "segmentId": str}
)


class DreamPanel:
    """Builds the panel and joins its parts.

    Parameters
    ----------
    parent : qMRMLWidget
        The module's widget.
    layout : qt.QVBoxLayout
        Where the panel goes.
    logic : MedXAIDeepDreamLogic
        Gives the parameter node.
    """

    def __init__(self, parent, layout, logic):
        self.parent, self.logic = parent, logic
        self.parameters = None
        self._tag = None
        self._filling = False
        self._kept = Watch(self._onParameters)
        self.environment = environments.Environment(lambda: worker_session.workerPython() or None)
        self._unobserveWorker = lambda: None
        self._build(layout)
        self.live = LiveRun(self.control, self._onFinished, onPoints=self.results.curvesGrew)
        scene = slicer.mrmlScene
        self._closing, self._closed = Watch(self._onSceneStartsToClose), Watch(self._onSceneClosed)
        self._closing.set(scene, scene.StartCloseEvent)
        self._closed.set(scene, scene.EndCloseEvent, scene.EndImportEvent)
        self.enter()

    # -- widgets -----------------------------------------------------------------------------------------------------------

    def _build(self, layout):
        disclaimer = qt.QLabel(_("For research. Not a medical device: do not use it for diagnosis."))
        disclaimer.wordWrap = True
        layout.addWidget(disclaimer)

        inputs = section(layout, _("Inputs"), qt.QFormLayout)
        self.picker = ModelPicker(inputs, "segmentation", self._onModelChosen)
        self.trust = TrustRow(inputs, self._check)
        self.volumes = VolumeRows(inputs, self._onVolumesChanged)
        self.picker.addLabelRow(inputs, _("The network's answer for this label is raised."))

        where = section(layout, _("Voxel"), qt.QFormLayout)
        self.neuron = NeuronRows(where, lambda: self.volumes.nodes[0], self._check)

        settings = section(layout, _("Settings"), qt.QFormLayout)
        self.referenceEdit = qt.QLineEdit()
        self.referenceEdit.placeholderText = _("none")
        self.deviceCombo = qt.QComboBox()
        self.deviceCombo.connect("currentIndexChanged(int)", self._onDevice)
        advancedButton = ctk.ctkCollapsibleButton()
        advancedButton.text = _("Advanced")
        advancedButton.collapsed = True
        advanced = qt.QFormLayout(advancedButton)
        own = {"label": None, "neuron_ras": self.neuron.rasEdit, "reference": self.referenceEdit, "device": None}
        self.form = SettingsForm(DreamSettings, settings, advanced, own)
        row = qt.QHBoxLayout()
        row.addWidget(self.referenceEdit, 1)
        toolButton(row, "…", _("Choose a reference distribution."), self._chooseReference)
        settings.addRow(_("Reference:"), row)
        self.featuresLabel = qt.QLabel()
        self.featuresLabel.wordWrap = True
        self.featuresLabel.objectName = "featuresLabel"
        settings.addRow("", self.featuresLabel)
        advanced.addRow(_("Device:"), self.deviceCombo)
        resetButton = qt.QPushButton(_("Reset settings"))
        resetButton.toolTip = _("Every setting back to its default; volume, model and voxel stay.")
        resetButton.connect("clicked(bool)", lambda _checked=False: self._reset())
        advanced.addRow(resetButton)
        settings.addRow(advancedButton)

        self.control = RunControl(layout, self.apply, self.cancel, _("Apply"), self._facts, self._names)
        self.results = ResultSection(section(layout, _("Result")), METHOD, self.repeat, self.control.log)
        layout.addStretch(1)

    def _chooseReference(self):
        path = qt.QFileDialog.getOpenFileName(
            self.parent, _("Reference distribution"), self.referenceEdit.text, "JSON (*.json)"
        )
        if path:
            self.referenceEdit.text = path

    # -- life ----------------------------------------------------------------------------------------------------------------

    def enter(self):
        """The panel is opened: look again at models, environment and runs."""
        if self.parameters is None:
            self.setParameterNode(self.logic.getParameterNode())
        self._unobserveWorker()
        self._unobserveWorker = worker_session.client().observe(self._onWorker)
        self.picker.refresh(self.parameters.model, self.parameters.label)
        self._onModelChosen(remember=False)
        self.volumes.suggest()
        self._fillDevices()
        self.environment.refresh(self._onEnvironment)
        self.results.observe()
        self._check()

    def exit(self):
        """Another module is opened: a run goes on."""

    def cleanup(self):
        """The panel goes away: so does its run."""
        self.live.stop("")
        self._unobserveWorker()
        self.environment.stop()
        self.results.stop()
        self.setParameterNode(None)
        self._closing.clear()
        self._closed.clear()

    def setParameterNode(self, parameters):
        """Keep everything in this node of the scene from now on; None: the scene goes away."""
        if self.parameters is not None:
            self.parameters.disconnectGui(self._tag)
        self.parameters = parameters
        self._kept.set(parameters.parameterNode if parameters is not None else None, vtk.vtkCommand.ModifiedEvent)
        if parameters is not None:
            self._tag = parameters.connectParametersToGui(self.form.connectors())
        self.volumes.setParameterNode(parameters.parameterNode if parameters is not None else None)
        self.neuron.setParameterNode(parameters)

    def _onSceneStartsToClose(self, _caller, _event):
        self.results.stop()
        self.setParameterNode(None)

    def _onSceneClosed(self, _caller, _event):
        self.setParameterNode(None)
        self.setParameterNode(self.logic.getParameterNode())
        if not self.parameters.model:  # closing a study is no reason to choose the model again
            with slicer.util.NodeModify(self.parameters):
                self.parameters.model, self.parameters.label = self.picker.folder, self.picker.label
        self.picker.choose(self.parameters.model, self.parameters.label)
        self._onModelChosen(remember=False)
        self.results.observe()
        self._check()

    # -- what changes --------------------------------------------------------------------------------------------------------

    def _onParameters(self, _caller=None, _event=None):
        self.volumes.update()
        self.neuron.update()
        if (self.picker.folder, self.picker.label) != (self.parameters.model, self.parameters.label):
            self.picker.choose(self.parameters.model, self.parameters.label)
            self._onModelChosen(remember=False)
        self._showDevice()
        self._check()

    def _onModelChosen(self, remember=True):
        package = self.picker.package
        if remember and self.parameters is not None:
            with slicer.util.NodeModify(self.parameters):
                self.parameters.model, self.parameters.label = self.picker.folder, self.picker.label
        self.volumes.setChannels(package.input.channels if package else ("",))
        self.form.setRowVisible("slice", package is None or package.input.spatial_dims == 2)
        self.trust.setPackage(package)
        self._check()

    def _onVolumesChanged(self):
        self._check()

    def _onDevice(self, _index):
        if self.parameters is not None and not self._filling and self.deviceCombo.currentIndex >= 0:
            self.parameters.device = self.deviceCombo.itemData(self.deviceCombo.currentIndex)

    def _fillDevices(self):
        self._filling = True
        self.deviceCombo.clear()
        self.deviceCombo.addItem(_("automatic"), "auto")
        names = [one["name"] for one in worker_session.client().environment.get("devices", ())]
        for name in dict.fromkeys(["cpu", *names]):
            self.deviceCombo.addItem(worker_session.device(name), name)
        self._filling = False
        self._showDevice()

    def _showDevice(self):
        if self.parameters is None:
            return
        self._filling = True
        index = self.deviceCombo.findData(self.parameters.device)
        if index < 0:
            self.deviceCombo.addItem(self.parameters.device, self.parameters.device)
            index = self.deviceCombo.count - 1
        self.deviceCombo.setCurrentIndex(index)
        self._filling = False

    def _onWorker(self, what, value):
        if what == "environment":
            self._fillDevices()
            if value.get("problem"):
                self.control.log(value["problem"])
        elif what == "log" and self.live.active:
            self.control.log(value)

    def _onEnvironment(self):
        text = environments.withoutFeatures(self.environment.packages or [])
        self.featuresLabel.text = text
        self.featuresLabel.visible = bool(text)
        self._check()

    def _check(self):
        """Why Apply cannot be pressed, in one sentence beside the button."""
        if self.parameters is None:
            return
        point = self.neuron.describe()
        reason = self.environment.problem or environments.missing(self.environment.packages or [])
        reason = reason or self.picker.problem or self.trust.problem or self.volumes.problem or point
        if not reason:
            try:
                settings = self.settings()
            except MedXAIError as error:
                reason = error.message
            else:
                if settings.reference and not Path(settings.reference).is_file():
                    reason = _("The reference '{path}' does not exist; choose another file or clear it.").format(
                        path=settings.reference
                    )
        self.control.setReason(reason)

    # -- a run ---------------------------------------------------------------------------------------------------------------

    def settings(self) -> DreamSettings:
        """The settings as they stand."""
        return self.form.settings(self.parameters)

    def apply(self):
        """Start a run."""
        from ..scene import read

        try:
            with waitCursor():
                settings, package = self.settings(), self.picker.package
                nodes = self.volumes.nodes
                volumes = [read.volume(node) for node in nodes]
                chosen = self.neuron.segment
                segment = read.segment(*chosen, nodes[0]) if chosen else None
                request = RunRequest(
                    METHOD,
                    self.picker.folder,
                    volumes,
                    settings.to_json(),
                    segment,
                    self.trust.trusted,
                    "MedXAIDeepDream",
                )
                node, segmentId = chosen or (None, "")
                title = _("DeepDream: {label} ({model})").format(label=self.picker.label, model=package.name)
                first = {"dream": volumes[0].with_array(volumes[0].array.astype("float32", copy=False))}
                self.live.start(worker_session.client(), request, nodes, title, node, segmentId, first)
                self.results.setLive(self.live)
        except MedXAIError as error:
            self.control.setState(RunState.FAILED, error.message, error.hint)

    def cancel(self):
        """Stop the run."""
        self.live.cancel()

    def _onFinished(self, folder, explanation):
        self.results.refresh(folder)
        self._check()

    def repeat(self, known: dict):
        """Fill the panel from a run's provenance."""
        notes = []
        entry = library().find(known["sha256"], known["model"])
        if entry is None:
            notes.append(_("The model '{name}' of this run is not on the list; add it.").format(name=known["model"]))
        gone = [name for name in known["input_names"] if name not in {node.GetName() for node in known["inputs"]}]
        if gone:
            notes.append(_("No longer in the scene: {names}.").format(names=", ".join(gone)))
        with slicer.util.NodeModify(self.parameters):
            notes += self.form.fill(self.parameters, known["settings"])
            self.parameters.model = str(entry.folder) if entry else ""
            self.parameters.segmentation, self.parameters.segmentId = known["segmentation"], known["segment"]
        self.picker.choose(self.parameters.model, self.parameters.label)
        self._onModelChosen(remember=False)
        if known["inputs"]:
            self.volumes.choose(known["inputs"])
        self._onParameters()
        for note in notes:
            self.control.log(note)
        if self.control.state.active:
            return
        self.control.setState(
            RunState.IDLE, " ".join(notes) or _("The panel is filled as this run was; press Apply to repeat it.")
        )

    def _reset(self):
        keep = {name: self.parameters.getValue(name) for name in ("label", "neuron_ras")}
        with slicer.util.NodeModify(self.parameters):
            self.form.reset(self.parameters)
            for name, value in keep.items():
                self.parameters.setValue(name, value)

    # -- diagnostics ---------------------------------------------------------------------------------------------------------

    def _facts(self) -> dict:
        client = worker_session.client()
        package = self.picker.package
        found = {
            "Slicer": slicer.app.applicationVersion,
            "worker": client.phase,
            "python": self.environment.pythonVersion,
        }
        found.update({p.name: p.version or "missing" for p in self.environment.packages or []})
        found["devices"] = "; ".join(worker_session.deviceText(d) for d in client.environment.get("devices", ()))
        if package is not None:
            found["model"] = f"{package.format}, {package.input.spatial_dims}-D, {package.sha256[:12]}"
        if self.parameters is not None:
            found["settings"] = {
                n: self.parameters.getValue(n) for n in self.form.rows if n not in ("neuron_ras", "reference")
            }
        return found

    def _names(self) -> list:
        classes = ("vtkMRMLVolumeNode", "vtkMRMLSegmentationNode", "vtkMRMLMarkupsNode")
        names = [node.GetName() for name in classes for node in slicer.util.getNodesByClass(name)]
        for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
            segmentation = node.GetSegmentation()
            names += [segmentation.GetNthSegment(n).GetName() for n in range(segmentation.GetNumberOfSegments())]
        return names + [slicer.mrmlScene.GetURL() or ""]
