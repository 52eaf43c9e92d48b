"""What to do with a cycle explanation: morph from G⁻ over the image to G⁺, with the probability at each position, and R over it."""

from __future__ import annotations

import ctk
import qt
import slicer
from slicer.i18n import tr as _

from ..scene import cycle, pick, remove
from . import parts
from .results import ResultSection

PERCENT = 100
WIDEST = 22  # letters of a class beside the slider
PARTS = {"slices": _("Slice"), "windows": _("Window")}
THREE = ("probability_negative", "probability", "probability_positive")


class CycleResults(ResultSection):
    """Adds the three probabilities, the morph's slider, R, and the tables of classes and of slices or windows."""

    title = _("Cycle explanation")
    goText, goHelp = _("Go to patch"), _("Puts what was looked at into the middle of the slice views; zoom stays.")
    chartOrder = (cycle.CURVE,)
    everyCheck = True

    def build(self, layout):
        self._cycle, self._partNames, self._label = None, [], ""
        self.headlineLabel = parts.readable(layout, "headlineLabel")
        self.headlineLabel.setStyleSheet("font-weight: bold; font-size: 11pt")
        self.flipLabel = parts.readable(layout, "flipLabel")

        row = qt.QHBoxLayout()
        self.lowerLabel, self.upperLabel = qt.QLabel("G⁻"), qt.QLabel("G⁺")
        self.morphSlider = qt.QSlider(qt.Qt.Horizontal)
        self.morphSlider.objectName = "morphSlider"
        self.morphSlider.setRange(-PERCENT, PERCENT)
        self.morphSlider.pageStep = PERCENT // 4
        self.morphSlider.setTickPosition(qt.QSlider.TicksBelow)
        self.morphSlider.setTickInterval(PERCENT // 4)
        self.morphSlider.toolTip = _("Left: the image as G⁻ makes it; middle: the image itself; right: as G⁺ makes it. Zoom and slice stay.")  # fmt: skip
        self.morphSlider.connect("valueChanged(int)", self._onMorph)
        row.addWidget(self.lowerLabel)
        row.addWidget(self.morphSlider, 1)
        row.addWidget(self.upperLabel)
        self.imageButton = parts.toolButton(row, _("x"), _("Back to the image itself."), lambda: self._goMorph(0))
        layout.addLayout(row)
        self.positionLabel = parts.readable(layout, "positionLabel")

        row = qt.QHBoxLayout()
        self.relevanceCheck = qt.QCheckBox(_("Show R = G⁺ − G⁻ over it"))
        self.relevanceCheck.objectName = "relevanceCheck"
        self.relevanceCheck.toolTip = _("Red: brighter as G⁺ makes it; blue: brighter as G⁻ makes it; where nothing differs, the image is seen.")  # fmt: skip
        self.relevanceCheck.connect("toggled(bool)", self._onRelevance)
        self.opacitySlider = ctk.ctkSliderWidget()
        self.opacitySlider.objectName = "opacitySlider"
        self.opacitySlider.minimum, self.opacitySlider.maximum = 0.05, 1.0
        self.opacitySlider.singleStep, self.opacitySlider.decimals = 0.05, 2
        self.opacitySlider.toolTip = _("How much R covers of the image.")
        self.opacitySlider.connect("valueChanged(double)", lambda _value: self._onRelevance())
        row.addWidget(self.relevanceCheck)
        row.addWidget(self.opacitySlider, 1)
        layout.addLayout(row)

        self.classTable = parts.table("classes", (_("Class"), "G⁻", "x", "G⁺"))
        self.partTable = parts.table("parts", (_("Slice"), "G⁻", "x", "G⁺"))
        self.partTable.toolTip = _("The probability of the class in each; choose a slice to go there.")
        self.partTable.connect("currentCellChanged(int,int,int,int)", lambda row, *_rest: self._goToPart(row))
        for table in (self.classTable, self.partTable):
            layout.addWidget(table)

    # -- what is shown -------------------------------------------------------------------------------------------------

    @property
    def cycle(self):
        """The layers of the chosen run; None where there is none. Kept while the run is chosen, so that the slider moves at once."""
        chosen = remove.run_of(slicer.mrmlScene, self.folder) if self.folder else ""
        if self._cycle is None or self._cycle.run != chosen or self._cycle.scene is not slicer.mrmlScene:
            self._cycle = cycle.Cycle(slicer.mrmlScene, chosen) if chosen else None
        return self._cycle

    def stop(self):
        self._cycle = None
        super().stop()

    def leave(self):
        self._cycle = None

    def update(self):
        shown = self.cycle
        known = shown.known if shown is not None else {}
        about, scores = known.get("provenance") or {}, known.get("scores") or {}
        position, opacity = (shown.position, shown.opacity) if shown is not None else (None, None)
        self._updating = True
        self.headlineLabel.text = cycle.headline(about, scores) if known else ""
        self.flipLabel.text = _told(about, scores) if known else ""
        for label, sign, which in ((self.lowerLabel, "G⁻", "negative"), (self.upperLabel, "G⁺", "label")):
            name = str(about.get(which) or "")
            label.text = f"{sign} {name}" if name and len(name) <= WIDEST else sign
            label.toolTip = name
        self._label = str(about.get("label") or _("the class"))
        for widget in (self.morphSlider, self.imageButton):
            widget.enabled = position is not None
        self.morphSlider.value = round(PERCENT * (position or 0))
        for widget in (self.relevanceCheck, self.opacitySlider):
            widget.enabled = shown is not None and shown.node(cycle.RELEVANCE) is not None
        self.relevanceCheck.checked = opacity is not None
        self.opacitySlider.value = opacity or self.opacitySlider.value if opacity or known else cycle.COVERS
        if opacity is None and self.opacitySlider.value <= self.opacitySlider.minimum:
            self.opacitySlider.value = cycle.COVERS
        self._tables(shown.run if shown is not None else "")
        for widget in (self.headlineLabel, self.flipLabel):
            widget.visible = bool(widget.text)
        self._updating = False
        self._tellPosition()

    def _tables(self, run: str):
        rows = [(n, *map(float, v)) for n, *v in pick.rows(slicer.mrmlScene, run, "classes", ("label", *THREE))]
        rows.sort(key=lambda row: -row[2])
        parts.fill(self.classTable, [(label, *map(cycle.probability, values)) for label, *values in rows])
        self.classTable.visible = bool(rows)
        self._partNames = []
        for name, title in PARTS.items():
            rows = [(n, *map(float, v)) for n, *v in pick.rows(slicer.mrmlScene, run, name, (name[:-1], *THREE))]
            if rows:
                self._partNames = [row[0] for row in rows]
                self.partTable.setHorizontalHeaderLabels([title, "G⁻", "x", "G⁺"])
                parts.fill(self.partTable, [(label, *map(cycle.probability, values)) for label, *values in rows])
                break
        self.partTable.visible = bool(self._partNames)

    def _tellPosition(self):
        shown, value = self._cycle, self.morphSlider.value
        if shown is None:
            self.positionLabel.text = ""
            return
        if not self.morphSlider.enabled:
            self.positionLabel.text = _("A map of this run was removed, so there is nothing to morph.")
            return
        place = _("The image itself")
        if value:
            place = _("{share} % of the way to {which}").format(share=abs(value), which="G⁺" if value > 0 else "G⁻")
        told = cycle.probability(shown.probability(value / PERCENT))
        self.positionLabel.text = _("{place}: probability of {label} <b>{p}</b>").format(place=place, label=self._label, p=told.replace("<", "&lt;"))  # fmt: skip

    # -- what is moved -------------------------------------------------------------------------------------------------

    def _onMorph(self, value: int):
        shown = None if self._updating else self._cycle or self.cycle
        if shown is not None:
            shown.position = value / PERCENT
            self._tellPosition()

    def _goMorph(self, value: int):
        self.morphSlider.value = value

    def _onRelevance(self, _checked=None):
        shown = None if self._updating else self.cycle
        if shown is not None:
            shown.opacity = self.opacitySlider.value if self.relevanceCheck.checked else None

    # -- buttons -------------------------------------------------------------------------------------------------------

    def show(self):
        """The image, the morph and R."""
        if self.cycle is not None:
            self.cycle.show()
            self.update()
        self.showChart()

    def goTo(self):
        """The middle of what was looked at in the slice views."""
        self._jump(self.cycle.place() if self.cycle is not None else None, True)

    def _goToPart(self, row: int):
        known = not self._updating and self.cycle is not None and 0 <= row < len(self._partNames)
        self._jump(self.cycle.slice(self._partNames[row]) if known else None)

    def _jump(self, place, centred=False):
        if place is not None:
            slicer.modules.markups.logic().JumpSlicesToLocation(*place, centred)


def _told(about: dict, scores: dict) -> str:
    """What the network answered, whether the other image changed that, and what was looked at."""
    found = []
    if about.get("predicted"):
        flipped, other = scores.get("flipped"), "G⁻" if about["predicted"] == about.get("label") else "G⁺"
        words = _("{which} changes that") if flipped else _("{which} does not change that")
        found.append(_("The network answers {label}").format(label=about["predicted"]) + ("." if flipped is None else f"; {words.format(which=other)}."))  # fmt: skip
    place = cycle.looked_at(about)
    if place:
        found.append(_("Looked at: {place}.").format(place=place))
    if isinstance(about.get("explainer"), dict):
        found.append(_("Explainer: {name}.").format(name=about["explainer"].get("name") or ""))
    return " ".join(found)
