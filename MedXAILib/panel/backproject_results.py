"""What to do with a finished back-projection: look at each filter, combine more or fewer of them, read the landmarks."""

from __future__ import annotations

import math

import ctk
import qt
import slicer
from slicer.i18n import tr as _

from ..errors import MedXAIError
from ..scene import filters, layers, pick, read, remove, repeat
from ..scene.nodes import NAME
from ..scene.thumbnails import ppm
from . import parts
from .results import ResultSection

PICTURE = 80  # pixels of a thumbnail
RANK = 256  # Qt.UserRole: the rank of a list item's filter
CLASSES = (_("Label"), _("Probability"))
LANDMARKS = (_("Landmark"), _("Heat"), _("95 % interval"), _("Area"), _("Heat by area"), _("Filters"))


class BackprojectResults(ResultSection):
    """Adds the classes, the filters as small pictures, the slider for their number, and the landmarks."""

    title = _("Back-projection")
    goText, goHelp = _("Go to heat"), _("Shows the place with most heat in the slice views; zoom stays.")
    chartOrder = ("ranking",)
    everyCheck = True

    def build(self, layout):
        self._filters, self._filled = None, None
        self.classTable = parts.table("classes", CLASSES)
        layout.addWidget(self.classTable)
        row = qt.QHBoxLayout()
        row.addWidget(qt.QLabel(_("Strongest filters:")))
        self.countSlider = qt.QSlider(qt.Qt.Horizontal)
        self.countSlider.objectName = "countSlider"
        self.countSlider.pageStep = 1
        self.countSlider.toolTip = _("How many of the strongest filters are in the heat map and in the landmarks; nothing is computed anew by the network.")  # fmt: skip
        self.countSlider.connect("valueChanged(int)", lambda _value: self._combine())
        row.addWidget(self.countSlider, 1)
        self.countLabel = qt.QLabel()
        row.addWidget(self.countLabel)
        self.heatButton = parts.button(
            row, _("Heat"), _("Shows the heat map of these filters."), lambda: self.choose(0)
        )
        parts.button(row, _("Go"), self.goHelp, self.goTo)
        layout.addLayout(row)
        form = qt.QFormLayout()
        self.thresholdSlider = ctk.ctkSliderWidget()
        self.thresholdSlider.objectName = "thresholdSlider"
        self.thresholdSlider.singleStep, self.thresholdSlider.decimals = 0.1, 1
        self.thresholdSlider.suffix = _(" × an even spread")
        self.thresholdSlider.toolTip = _("Where there is less heat than this, the heat map is transparent; 1 is what every place would have, were it spread evenly.")  # fmt: skip
        self.thresholdSlider.connect("valueChanged(double)", self._onThreshold)
        form.addRow(_("Heat from:"), self.thresholdSlider)
        layout.addLayout(form)
        self.strip = qt.QListWidget()
        self.strip.objectName = "filterStrip"
        self.strip.setViewMode(qt.QListView.IconMode)
        self.strip.setMovement(qt.QListView.Static)
        self.strip.setResizeMode(qt.QListView.Adjust)
        self.strip.setUniformItemSizes(True)
        self.strip.setSpacing(2)
        self.strip.setIconSize(qt.QSize(PICTURE, PICTURE))
        self.strip.minimumHeight = 2 * (PICTURE + 30)
        self.strip.toolTip = _("Each filter's back-projection over the image, with its number and score; choose one to see its map in the slice views.")  # fmt: skip
        self.strip.connect("currentRowChanged(int)", self._onFilter)
        layout.addWidget(self.strip)
        self.shownLabel = qt.QLabel()
        self.shownLabel.objectName = "shownLabel"
        self.shownLabel.wordWrap = True
        layout.addWidget(self.shownLabel)
        self.landmarkLabel = qt.QLabel()
        layout.addWidget(self.landmarkLabel)
        self.landmarkTable = parts.table("landmarks", LANDMARKS)
        self.landmarkTable.toolTip = _("The share of the heat in each landmark, with its interval over the filters, against its share of the area: 1 is what chance would give. Filters: how many have more of their heat there than chance.")  # fmt: skip
        layout.addWidget(self.landmarkTable)

    # -- the chosen run ------------------------------------------------------------------------------------------------------

    def update(self):
        run = remove.run_of(slicer.mrmlScene, self.folder) if self.folder else ""
        told = (run, len(self.nodes("vtkMRMLSequenceNode")))
        if told == self._filled:  # the list was made again, the run is the same
            return
        self._filled = told
        self._filters = filters.Filters(slicer.mrmlScene, run) if run and told[1] else None
        count = len(self._filters) if self._filters is not None else 0
        self._updating = True
        rows = list(pick.rows(slicer.mrmlScene, run, "classes", ("label", "probability"))) if run else []
        rows.sort(key=lambda row: -float(row[1]))
        parts.fill(self.classTable, [(label, f"{float(probability):.3f}") for label, probability in rows])
        self.strip.clear()
        for rank in self._filters.ranks if count else ():
            self.strip.addItem(self._item(rank))
        self.countSlider.setRange(1, max(1, count))
        self.countSlider.value = min(self._filters.used, count) if count else 1
        if count:
            self._filters.combined(count)  # the first move of the slider is as quick as the next
        display = self._filters.heatDisplay if count else None
        if display is not None:
            self.thresholdSlider.maximum = max(1.0, display.GetWindowLevelMax())
            self.thresholdSlider.value = display.GetLowerThreshold()
        for widget in (self.countSlider, self.strip, self.heatButton, self.thresholdSlider):
            widget.enabled = count > 0
        shown = self._filters.shown if count else None
        if shown:
            self.strip.setCurrentRow(self._filters.ranks.index(shown))
        self._updating = False
        self._say(self._filters.title(shown) if shown else "")
        anatomical = count and self._filters.known["provenance"].get("landmarks")
        self.landmarkLabel.text = _("Landmarks") if anatomical else _("Coarse parts (not anatomical)") if count else ""
        self._landmarks()

    def leave(self):
        self._filters = self._filled = None

    def stop(self):
        super().stop()
        self.leave()

    def _item(self, rank: int):
        pixmap = qt.QPixmap()
        pixmap.loadFromData(qt.QByteArray(ppm(self._filters.thumbnail(rank, PICTURE))), "PPM")
        n = self._filters.ranks.index(rank)
        item = qt.QListWidgetItem(qt.QIcon(pixmap), f"{self._filters.numbers[n]}: {self._filters.scores[n]:.3g}")
        item.setData(RANK, rank)
        item.setToolTip(self._filters.title(rank))
        return item

    # -- what is shown -------------------------------------------------------------------------------------------------------

    def choose(self, rank: int):
        """Show a filter's map by its rank, or the heat map (0)."""
        self._updating = True
        self.strip.setCurrentRow(self._filters.ranks.index(rank) if rank else -1)
        if not rank:
            self.strip.clearSelection()
        self._updating = False
        try:
            self._say(self._filters.show(rank))
        except MedXAIError as error:
            self._say(error.message)

    def _onFilter(self, row: int):
        if not self._updating and self._filters is not None and row >= 0:
            self.choose(int(self.strip.item(row).data(RANK)))

    def _combine(self):
        """The heat map and the landmarks of as many filters as the slider says."""
        if self._updating or self._filters is None:
            return
        self._filters.heat(self.countSlider.value)
        if self._filters.shown != 0:
            self.choose(0)  # somebody who moves it wants to see it
        else:
            self._say("")
        self._landmarks()

    def _onThreshold(self, value: float):
        if self._updating or self._filters is None:
            return
        if self._filters.shown != 0:
            self.choose(0)
        pick.heat(slicer.mrmlScene, self._filters.run, True, value)

    def _say(self, text: str):
        used = self._filters.used if self._filters is not None else 0
        self.countLabel.text = str(used) if used else ""
        place = str(self._filters.known["provenance"].get("slice") or "") if used else ""
        place = _(" in slice {place}: Go shows it").format(place=place) if place else ""
        self.shownLabel.text = (text or _("heat of {n} filters").format(n=used)) + place if used else ""

    def _landmarks(self):
        """The table for as many filters as are in the heat map; as the run told it where that cannot be known anew."""
        columns = ("landmark", "heat_share", "low", "high", "area_share", "ratio", "filters", "of")
        found = None
        if self._filters is not None and self._filters.used <= len(self._filters):
            found = self._filters.landmarks(self._filters.used)
        if found is not None:
            rows = zip(*(found.columns[name] for name in columns))
        else:
            rows = pick.rows(slicer.mrmlScene, self._filled[0], "landmarks", columns) if self._filled[0] else ()
        parts.fill(self.landmarkTable, [_landmark(name, *map(float, rest)) for name, *rest in rows])

    # -- buttons -------------------------------------------------------------------------------------------------------------

    def show(self):
        """The input with the heat over it."""
        known = repeat.provenance(slicer.mrmlScene, self.folder) if self.folder else {}
        if known.get("inputs"):
            layers.show(slicer.mrmlScene, known["inputs"][0])
        if self._filters is not None:
            self.choose(0)
        self.showChart()

    def goTo(self):
        """The place with most heat in the slice views."""
        node = next((n for n in self.nodes("vtkMRMLScalarVolumeNode") if n.GetAttribute(NAME) == "heat"), None)
        if node is not None:
            point = read.world(node, layers.hottest(read.volume(node)))
            slicer.modules.markups.logic().JumpSlicesToLocation(*point, False)


def _landmark(name, heat, low, high, area, ratio, count, of) -> tuple:
    interval = "–" if math.isnan(low) else f"{100 * low:.1f}–{100 * high:.1f} %"
    return (
        name,
        _percent(heat),
        interval,
        _percent(area),
        "–" if math.isnan(ratio) else f"{ratio:.2f}",
        f"{count:.0f} of {of:.0f}",
    )


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.1f} %"
