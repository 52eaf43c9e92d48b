"""What to do with a counterfactual: fade between before and after, look at the region, read what the network answers now."""

from __future__ import annotations

import math

import ctk
import qt
import slicer
from slicer.i18n import tr as _

from ..scene import impact, pick, remove, repeat
from . import parts
from .results import ResultSection

FADE = 1000  # positions of the fade slider
CLASSES = (_("Class"), _("Before"), _("After"))
COMPONENTS = (_("Part"), _("Voxels"), _("Size"), _("R, A, S [mm]"), _("Drop alone"))
MEASURES = (_("Region and annotation"), _("Value"))
WARNING = "#b3361b"
LEAST_DROP = 0.1  # of the log-odds


class CounterfactualResults(ResultSection):
    """Adds the gauge, the fade, the mask's sliders, and the tables of classes, distances and components."""

    title = _("Counterfactual")
    goText, goHelp = _("Go to region"), _("Shows the middle of the region in the slice views; zoom stays.")
    chartOrder = (impact.CURVE,)
    everyCheck = True

    def build(self, layout):
        self.warningLabel = parts.readable(layout, "warningLabel")
        gauge = qt.QFormLayout()
        self.beforeBar, self.nowBar = _bar("beforeBar", "#b8c0ca"), _bar("nowBar", "#8db7ea")
        self.nowLabel = qt.QLabel(_("Now:"))
        gauge.addRow(_("Probability before:"), self.beforeBar)
        gauge.addRow(self.nowLabel, self.nowBar)
        layout.addLayout(gauge)

        row = qt.QHBoxLayout()
        row.addWidget(qt.QLabel(_("Before")))
        self.fadeSlider = qt.QSlider(qt.Qt.Horizontal)
        self.fadeSlider.objectName = "fadeSlider"
        self.fadeSlider.setRange(0, FADE)
        self.fadeSlider.pageStep = FADE // 10
        self.fadeSlider.toolTip = _("Fades between the image as it is and the image without the finding, also while it is computed; zoom and slice stay.")  # fmt: skip
        self.fadeSlider.connect("valueChanged(int)", lambda value: self._set("fade", value / FADE))
        row.addWidget(self.fadeSlider, 1)
        row.addWidget(qt.QLabel(_("Without the finding")))
        layout.addLayout(row)

        form = qt.QFormLayout()
        self.opacitySlider = _share(
            "opacitySlider", _("How much the mask covers of the images; 0: the region's outline alone.")
        )
        self.opacitySlider.connect("valueChanged(double)", lambda value: self._set("opacity", value))
        form.addRow(_("Mask opacity:"), self.opacitySlider)
        self.leastSlider = _share(
            "leastSlider", _("What is deleted by less than this is not coloured; the outline is at θ.")
        )
        self.leastSlider.connect("valueChanged(double)", lambda value: self._set("least", value))
        form.addRow(_("Mask from:"), self.leastSlider)
        layout.addLayout(form)

        self.measureTable = parts.table("measures", MEASURES)
        layout.addWidget(self.measureTable)
        self.componentTable = parts.table("components", COMPONENTS)
        self.componentTable.toolTip = _("The parts of the region, the share of the drop in log-odds that each brings when it alone is inpainted; choose one to go there.")  # fmt: skip
        self.componentTable.connect("cellClicked(int,int)", lambda row, _column: self._goTo(row))
        self.componentTable.connect("currentCellChanged(int,int,int,int)", lambda row, *_rest: self._goTo(row))
        layout.addWidget(self.componentTable)
        self.classTable = parts.table("classes", CLASSES)
        layout.addWidget(self.classTable)

    # -- what is shown -------------------------------------------------------------------------------------------------

    @property
    def impact(self):
        """The layers of the run under way, else of the chosen one; None where there is neither."""
        run = self._live.run if self._live is not None else None
        if run is not None:
            return impact.Impact(slicer.mrmlScene, run.id, run.inputs[0])
        chosen = remove.run_of(slicer.mrmlScene, self.folder) if self.folder else ""
        return impact.Impact(slicer.mrmlScene, chosen) if chosen else None

    def setLive(self, live):
        super().setLive(live)
        self.update()

    def update(self):
        shown, run = self.impact, remove.run_of(slicer.mrmlScene, self.folder) if self.folder else ""
        known = repeat.provenance(slicer.mrmlScene, self.folder) if run else {}
        self._updating = True
        for widget in (self.fadeSlider, self.opacitySlider, self.leastSlider):
            widget.enabled = shown is not None
        if shown is not None:
            fade, opacity = shown.fade, shown.opacity
            self.fadeSlider.value = round(FADE * (1.0 if fade is None else fade))
            self.opacitySlider.value = impact.FAINT if opacity is None else opacity
            self.leastSlider.value = shown.least
        told = impact.sentences(known["provenance"]) if known else []
        self.warningLabel.text = "<br>".join(
            f'<span style="color:{WARNING}"><b>{words}</b></span>' if bad else words for words, bad in told
        )
        self.warningLabel.visible = bool(told)
        several = bool(known) and bool(known["inputs"]) and 1 not in known["inputs"][0].GetImageData().GetDimensions()
        place = str(known["provenance"].get("slice") or "") if several else ""
        measures = impact.measures(known["scores"]) if known else []
        parts.fill(self.measureTable, [*([(_("Slice"), place)] if place else []), *measures])
        components = impact.Impact(slicer.mrmlScene, run).components() if run else []
        parts.fill(self.componentTable, [_component(*row, told=_dropped(known["scores"])) for row in components])
        columns = ("label", "probability", "probability_after")
        rows = (
            [(n, float(a), float(b)) for n, a, b in pick.rows(slicer.mrmlScene, run, "classes", columns)] if run else []
        )
        rows.sort(key=lambda row: -row[1])
        parts.fill(self.classTable, [(label, _probability(a), _probability(b)) for label, a, b in rows])
        for table, found in ((self.measureTable, known), (self.componentTable, components), (self.classTable, rows)):
            table.visible = bool(found)
        self._updating = False
        self._gauge(known.get("scores") or {})

    def _gauge(self, scores: dict):
        """The probability before and now: while a run is under way, that of its last step."""
        run = self._live.run if self._live is not None else None
        live = run.live.get(impact.CURVE) if run is not None else None
        if run is not None and run.folder != self.folder:
            scores = {}  # they are those of another run
        last = {name: float(column[-1]) for name, column in live.columns.items()} if live is not None else {}
        before = last.get("before", scores.get("probability_before"))
        now = last.get("probability", scores.get("probability_after"))
        self.nowLabel.text = _("Now:") if run is not None else _("Without the region:")
        _tell(self.beforeBar, before)
        _tell(self.nowBar, now)

    def curvesGrew(self):
        super().curvesGrew()
        self._gauge(repeat.provenance(slicer.mrmlScene, self.folder)["scores"] if self.folder else {})

    def _set(self, what: str, value: float):
        """Fade, opacity or threshold of the layers, at once."""
        shown = None if self._updating else self.impact
        if shown is not None:
            setattr(shown, what, value)

    # -- buttons -------------------------------------------------------------------------------------------------------

    def show(self):
        """Before and after, with the mask over both."""
        if self.impact is not None:
            self.impact.show()
            self.update()
        self.showChart()

    def goTo(self):
        """The largest part of the region in the slice views; where there is none, the place most is deleted."""
        self._goTo(0)

    def _goTo(self, row: int):
        place = self.impact.place(row) if not self._updating and row >= 0 and self.impact is not None else None
        if place is not None:
            slicer.modules.markups.logic().JumpSlicesToLocation(*place, False)


def _bar(name: str, colour: str):
    bar = qt.QProgressBar()
    bar.objectName = name
    bar.setRange(0, 1000)
    bar.setFixedHeight(18)
    bar.setStyleSheet(
        f"QProgressBar {{ border: 1px solid #9aa3ad; border-radius: 3px; text-align: center; color: black; background: white }} QProgressBar::chunk {{ background: {colour} }}"
    )
    return bar


def _tell(bar, value):
    known = isinstance(value, (int, float)) and math.isfinite(value)
    bar.setValue(round(1000 * min(max(value, 0.0), 1.0)) if known else 0)
    bar.setFormat(f"{value:.3f}" if known else "–")


def _share(name: str, toolTip: str):
    slider = ctk.ctkSliderWidget()
    slider.objectName = name
    slider.minimum, slider.maximum, slider.singleStep, slider.decimals = 0.0, 1.0, 0.05, 2
    slider.toolTip = toolTip
    return slider


def _dropped(scores: dict) -> bool:
    """Whether the class became less likely at all, so that shares of the drop mean something."""
    before, after = (scores.get(f"log_odds_{when}") for when in ("before", "after"))
    return None in (before, after) or before - after > LEAST_DROP


def _component(number, voxels, size, r, a, s, share, told) -> tuple:
    share = float(share) if told else math.nan
    place = ", ".join(f"{float(v):.1f}" for v in (r, a, s))
    return number, voxels, size, place, "–" if math.isnan(share) else f"{round(100 * share)} %"


def _probability(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
