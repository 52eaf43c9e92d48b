"""The panel of *MedXAI Counterfactual Impact*: the smallest region whose inpainting makes a classifier change its mind."""

from __future__ import annotations

from dataclasses import replace

import ctk
import qt
import slicer
from slicer.i18n import tr as _

from ..errors import MedXAIError
from ..scene import impact, read
from ..settings import CounterfactualSettings
from . import worker_session
from .application import waitCursor
from .counterfactual_results import CounterfactualResults
from .form import parameterNodeClass
from .inpainter_row import InpainterRow
from .method_panel import SEGMENT
from .segment_row import SegmentRow
from .slice_panel import SlicePanel

ORGAN = ("organSegmentation", "organSegmentId")
CounterfactualParameterNode = parameterNodeClass(
    CounterfactualSettings, {**SEGMENT, ORGAN[0]: slicer.vtkMRMLSegmentationNode, ORGAN[1]: str}
)
WEIGHTS = ("lambda_score", "lambda_tv", "lambda_area")
#: The settings of the search: a preset sets them, and a run that begins again takes them from the panel.
SEARCH = tuple(dict.fromkeys(name for preset in CounterfactualSettings.PRESETS.values() for name in preset))
PAUSE = 400  # ms without a move of a slider before a run begins again


class CounterfactualPanel(SlicePanel):
    """Adds organ, annotation, inpainter, the presets, and sliders that the run follows."""

    method, module = "counterfactual", "MedXAICounterfactualImpact"
    task = "classification"
    anyLabel = _("what the network answers")
    settingsClass = CounterfactualSettings
    resultClass = CounterfactualResults
    labelHelp = _("The class that is to vanish.")
    kept = ("label", "inpainter")
    private = ("inpainter",)
    folded = restarts = True

    def buildInputs(self, layout, inputs):
        self.inpainter = InpainterRow(inputs, self._check)
        self.organ = SegmentRow(
            inputs, _("Organ:"), _("Nothing outside this segment is deleted; without one, nothing outside the image."), self._check, ORGAN
        )  # fmt: skip
        self.annotation = SegmentRow(
            inputs, _("Annotation:"), _("The finding as a person drew it: the result tells how far the region lies from it."), self._check
        )  # fmt: skip
        for row, name in ((self.organ, "organSelector"), (self.annotation, "annotationSelector")):
            row.selector.objectName = name

    def ownWidgets(self) -> dict:
        self.sliders = {name: ctk.ctkSliderWidget() for name in WEIGHTS}
        return {**super().ownWidgets(), **self.sliders, "inpainter": None}

    def buildSettings(self, settings, advanced):
        self._weights = None  # as the sliders stood when we looked last
        self._request = None  # of the run that can begin again, without its volumes
        super().buildSettings(settings, advanced)
        self.presetCombo = qt.QComboBox()
        self.presetCombo.objectName = "presetCombo"
        self.presetCombo.toolTip = _("fitted: the best on training phantoms; paper: as printed. Sets the sliders and what is under Advanced.")  # fmt: skip
        for name in (*CounterfactualSettings.PRESETS, _("own")):
            self.presetCombo.addItem(name)
        self.presetCombo.connect("activated(int)", self._onPreset)
        settings.addRow(_("Preset:"), self.presetCombo)
        for name, slider in self.sliders.items():
            row = self.form.rows[name]
            most = max(1e-6, row.default, *(p.get(name, 0) for p in CounterfactualSettings.PRESETS.values()))
            slider.decimals = row.decimals
            slider.minimum, slider.maximum = row.low, 5 * most
            slider.singleStep, slider.pageStep = slider.maximum / 200, slider.maximum / 20
            label = qt.QLabel(row.about.title + ":")
            label.toolTip = row.toolTip
            settings.addRow(label, slider)
        self.followCheck = qt.QCheckBox(_("Follow the sliders"))
        self.followCheck.objectName = "followCheck"
        self.followCheck.checked = True
        self.followCheck.toolTip = _("A run begins again from its present mask when λ is moved, during and after it; its layers change in place. Apply makes a new run.")  # fmt: skip
        settings.addRow("", self.followCheck)
        self._soon = qt.QTimer()
        self._soon.setSingleShot(True)
        self._soon.setInterval(PAUSE)
        self._soon.connect("timeout()", self.follow)

    # -- rows ----------------------------------------------------------------------------------------------------------

    def enter(self):
        self.inpainter.refresh()
        super().enter()

    def cleanup(self):
        self._soon.stop()
        super().cleanup()

    def bind(self, parameters):
        self._soon.stop()
        self._weights = None
        if parameters is None:
            self._request = None
        for row in (self.inpainter, self.organ, self.annotation):
            row.setParameterNode(parameters)

    def updateRows(self):
        for row in (self.inpainter, self.organ, self.annotation):
            row.update()
        self.presetCombo.setCurrentIndex(self._preset())
        now = tuple(self.parameters.getValue(name) for name in WEIGHTS)
        moved, self._weights = self._weights not in (None, now), now
        if moved and self.followCheck.checked and self._followed() is not None:
            self._soon.start()

    def problem(self) -> str:
        chosen = self.annotation.segment or self.organ.segment
        words = _("press Shown beside Slice to take the one that is shown, or choose an organ or an annotation.")
        reason = self.inpainter.problem(self.picker.package) or self.organ.problem or self.annotation.problem
        return reason or self.sliceProblem(chosen, words)

    def segment(self):
        return self.annotation.segment

    def masks(self, volume) -> list:
        rows = {"organ": self.organ.segment, "annotation": self.annotation.segment}
        return [impact.with_role(read.segment(*one, volume), role) for role, one in rows.items() if one is not None]

    def first(self, volume) -> dict:
        image = volume.array.astype("float32")
        return {
            impact.INPAINTED: volume.with_array(image),
            impact.MASK: volume.with_array(0 * image, impact.MASK, ""),
        }

    def repeat(self, known: dict):
        super().repeat(known)
        self._soon.stop()  # nobody has moved a slider

    def repeating(self, known: dict) -> list[str]:
        node, segmentId = known["parts"].get("organ", (None, ""))
        with slicer.util.NodeModify(self.parameters):
            self.parameters.setValue(ORGAN[0], node)
            self.parameters.setValue(ORGAN[1], segmentId)
        return super().repeating(known)

    # -- presets -------------------------------------------------------------------------------------------------------

    def _valuesOf(self, preset: str) -> dict:
        defaults = {name: self.form.rows[name].default for name in SEARCH}
        return {**defaults, **CounterfactualSettings.PRESETS[preset]}

    def _preset(self) -> int:
        """The preset that the settings are, as an index of the combo box; the last for none."""
        now = {name: self.parameters.getValue(name) for name in SEARCH}
        presets = list(CounterfactualSettings.PRESETS)
        return next((n for n, name in enumerate(presets) if self._valuesOf(name) == now), len(presets))

    def _onPreset(self, index: int):
        presets = list(CounterfactualSettings.PRESETS)
        if self.parameters is not None and index < len(presets):
            with slicer.util.NodeModify(self.parameters):
                self.form.fill(self.parameters, self._valuesOf(presets[index]))
        elif self.parameters is not None:
            self.presetCombo.setCurrentIndex(self._preset())

    # -- a run that follows the sliders --------------------------------------------------------------------------------

    def begun(self, settings, request):
        self._soon.stop()
        self._request = replace(request, volumes=())
        self.live.run.theta = settings.theta
        if self.organ.segment is not None:
            self.live.run.parts["organ"] = self.organ.segment

    def _followed(self):
        """The run that begins again when a slider is moved: the one under way, or the chosen one if it ended last; else None."""
        run = self.live.restartable if self._request is not None else None
        shown = run is not None and (self.live.active or run.folder == self.results.folder)
        return run if shown else None

    def follow(self):
        """Begin again from the present mask with the sliders as they stand; what is shown changes in place."""
        run = self._followed() if self.parameters is not None else None
        if run is None:
            return
        try:
            with waitCursor():
                settings = replace(self.settings(), **self._inputsOf(self._request))
                client = worker_session.client()
                keys = [
                    (node.GetID(), node.GetImageData().GetPointData().GetScalars().GetMTime()) for node in run.inputs
                ]
                volumes = [client.store(read.volume(node), key) for node, key in zip(run.inputs, keys)]
                start = impact.Impact(slicer.mrmlScene, run.id, run.inputs[0]).start()
                segments = [*self._request.segments, *([start] if start is not None else [])]
                request = replace(self._request, volumes=volumes, segments=segments, settings=settings.to_json())
                self.live.restart(client, request)
                run.theta = settings.theta
                self.results.update()
        except MedXAIError as error:
            self.control.log(error.message)

    def _inputsOf(self, request) -> dict:
        """What a run that begins again keeps: all settings but those of the search."""
        known = CounterfactualSettings.from_json(request.settings)
        return {name: getattr(known, name) for name in self.form.rows if name not in SEARCH}
