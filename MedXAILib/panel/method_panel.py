"""What the panels of all methods share: inputs, settings, Apply and Cancel, results; a method's panel adds its own rows."""

from __future__ import annotations

import ctk
import qt
import slicer
import vtk
from slicer.i18n import tr as _

from ..errors import MedXAIError
from ..worker.jobs import RunRequest
from . import environment as environments
from . import worker_session
from .application import waitCursor
from .form import SettingsForm
from .inputs import VolumeRows
from .live_run import LiveRun
from .model_picker import ModelPicker, library
from .parts import section
from .results import ResultSection
from .run_control import RunControl
from .run_state import RunState
from .trust import TrustRow
from .watch import Watch

SEGMENT = {
    "model": str,
    "segmentation": slicer.vtkMRMLSegmentationNode,
    "segmentId": str,
}  # parameters beside the settings


class MethodPanel:
    """Builds a panel and joins its parts.

    A method's panel sets the class attributes and overrides the methods under "what a method adds".

    Parameters
    ----------
    parent : qMRMLWidget
        The module's widget.
    layout : qt.QVBoxLayout
        Where the panel goes.
    logic : ScriptedLoadableModuleLogic
        Gives the parameter node.
    """

    method = module = ""  # as in `settings.METHODS`; the Slicer module
    task = "segmentation"  # of the networks that can be chosen
    anyLabel = ""  # what the list of labels offers first, where none need be chosen
    settingsClass = None
    resultClass = ResultSection
    labelHelp = ""
    kept = ("label",)  # settings that stay when all are reset
    folded = False  # whether every row of the settings form is under Advanced
    restarts = False  # whether a run can begin again in its own place
    private = ()  # settings that may name a person: not in the diagnostics

    def __init__(self, parent, layout, logic):
        self.parent, self.logic = parent, logic
        self.parameters = None
        self._tag = None
        self._filling = False
        self._kept = Watch(self._onParameters)
        self.environment = environments.Environment(lambda: worker_session.workerPython() or None)
        self._unobserveWorker = lambda: None
        self._build(layout)
        self.live = LiveRun(self.control, self._onFinished, onPoints=self.results.curvesGrew, keeps=self.restarts)
        scene = slicer.mrmlScene
        self._closing, self._closed = Watch(self._onSceneStartsToClose), Watch(self._onSceneClosed)
        self._closing.set(scene, scene.StartCloseEvent)
        self._closed.set(scene, scene.EndCloseEvent, scene.EndImportEvent)
        self.enter()

    # -- what a method adds --------------------------------------------------------------------------------------------------

    def buildInputs(self, layout, inputs):
        """More rows for the form ``inputs``, or sections of their own in ``layout``."""

    def ownWidgets(self) -> dict:
        """Settings that the panel shows in its own place, as `SettingsForm` takes them (beside label and device)."""
        return {}

    def buildSettings(self, settings, advanced):
        """More rows for the two forms of the settings."""

    def bind(self, parameters):
        """Keep the method's own rows in this parameter node; None: the scene goes away."""

    def sliceProblem(self, chosen, words: str) -> str:
        """Why a 2-D network cannot look at the volume, where neither the slice is named nor something else says which; ``words`` say how to."""
        package, node = self.picker.package, self.volumes.nodes[0]
        flat = package is not None and package.input.spatial_dims == 2
        if not flat or chosen or self.parameters.slice.strip() or node is None or node.GetImageData() is None:
            return ""
        return "" if 1 in node.GetImageData().GetDimensions() else _("This network looks at slices: ") + words

    def updateRows(self):
        """Show in the method's own rows what the parameter node says."""

    def problem(self) -> str:
        """Why the method's own rows cannot be used, one sentence; empty when they can."""
        return ""

    def segment(self):
        """(segmentation node, segment ID) for the run, or None."""

    def segments(self) -> tuple:
        """(segmentation node, segment IDs) for the run; (None, []) for none."""
        chosen = self.segment()
        return (chosen[0], [chosen[1]]) if chosen else (None, [])

    def masks(self, volume) -> list:
        """The segments that are sent, on the grid of a volume node."""
        from ..scene import read

        node, segmentIds = self.segments()
        return [read.segment(node, one, volume) for one in segmentIds]

    def begun(self, settings, request):
        """The run ``self.live.run`` has begun with this request."""

    def title(self) -> str:
        """Name of a run's folder."""
        label, model = self.picker.label, self.picker.package.name
        words = _("{method}: {label} ({model})") if label else _("{method} ({model})")
        return words.format(method=self.results.title, label=label, model=model)

    def repeating(self, known: dict) -> list[str]:
        """Fill the method's own rows as a run was, from its provenance; what cannot be filled, one sentence each."""
        return []

    def first(self, volume) -> dict:
        """Maps to show before the first step."""
        return {}

    # -- widgets -----------------------------------------------------------------------------------------------------------

    def _build(self, layout):
        disclaimer = qt.QLabel(_("For research. Not a medical device: do not use it for diagnosis."))
        disclaimer.wordWrap = True
        layout.addWidget(disclaimer)

        inputs = section(layout, _("Inputs"), qt.QFormLayout)
        self.picker = ModelPicker(inputs, self.task, self._onModelChosen, self.anyLabel)
        self.trust = TrustRow(inputs, self._check)
        self.volumes = VolumeRows(inputs, self._check)
        self.picker.addLabelRow(inputs, self.labelHelp)
        self.buildInputs(layout, inputs)

        settings = section(layout, _("Settings"), qt.QFormLayout)
        self.deviceCombo = qt.QComboBox()
        self.deviceCombo.connect("currentIndexChanged(int)", self._onDevice)
        advancedButton = ctk.ctkCollapsibleButton()
        advancedButton.text = _("Advanced")
        advancedButton.collapsed = True
        advanced = qt.QFormLayout(advancedButton)
        own = {"label": None, "device": None, **self.ownWidgets()}
        self.form = SettingsForm(self.settingsClass, advanced if self.folded else settings, advanced, own)
        self.buildSettings(settings, advanced)
        advanced.addRow(_("Device:"), self.deviceCombo)
        resetButton = qt.QPushButton(_("Reset settings"))
        resetButton.toolTip = _("Every setting back to its default; inputs stay.")
        resetButton.connect("clicked(bool)", lambda _checked=False: self._reset())
        advanced.addRow(resetButton)
        settings.addRow(advancedButton)

        self.control = RunControl(layout, self.apply, self.cancel, _("Apply"), self._facts, self._names)
        self.results = self.resultClass(section(layout, _("Result")), self.method, self.repeat, self.control.log)
        layout.addStretch(1)

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
        self.live.forget()
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
        self.bind(parameters)

    def _onSceneStartsToClose(self, _caller, _event):
        self.live.forget()
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
        self.updateRows()
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
        self._check()

    def _check(self):
        """Why Apply cannot be pressed, in one sentence beside the button."""
        if self.parameters is None:
            return
        own = self.problem()
        reason = self.environment.problem or environments.missing(self.environment.packages or [])
        reason = reason or self.picker.problem or self.trust.problem or self.volumes.problem or own
        if not reason:
            try:
                self.settings()
            except MedXAIError as error:
                reason = error.message
        self.control.setReason(reason)

    # -- a run ---------------------------------------------------------------------------------------------------------------

    def settings(self):
        """The settings as they stand."""
        return self.form.settings(self.parameters)

    def apply(self):
        """Start a run."""
        from ..scene import read

        try:
            with waitCursor():
                settings, nodes = self.settings(), self.volumes.nodes
                volumes = [read.volume(node) for node in nodes]
                node, segmentIds = self.segments()
                request = RunRequest(
                    self.method, self.picker.folder, volumes, settings.to_json(), self.masks(nodes[0]), self.trust.trusted, self.module
                )  # fmt: skip
                segmentId = segmentIds[0] if len(segmentIds) == 1 else ""
                first = self.first(volumes[0])
                self.live.start(worker_session.client(), request, nodes, self.title(), node, segmentId, first)
                self.begun(settings, request)
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
        notes += self.repeating(known)
        for note in notes:
            self.control.log(note)
        if self.control.state.active:
            return
        self.control.setState(
            RunState.IDLE, " ".join(notes) or _("The panel is filled as this run was; press Apply to repeat it.")
        )

    def _reset(self):
        keep = {name: self.parameters.getValue(name) for name in self.kept}
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
            found["settings"] = {n: self.parameters.getValue(n) for n in self.form.rows if n not in self.private}
        return found

    def _names(self) -> list:
        classes = ("vtkMRMLVolumeNode", "vtkMRMLSegmentationNode", "vtkMRMLMarkupsNode")
        names = [node.GetName() for name in classes for node in slicer.util.getNodesByClass(name)]
        for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
            segmentation = node.GetSegmentation()
            names += [segmentation.GetNthSegment(n).GetName() for n in range(segmentation.GetNumberOfSegments())]
        return names + [slicer.mrmlScene.GetURL() or ""]
