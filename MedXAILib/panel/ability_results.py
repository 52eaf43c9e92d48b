"""What to do with a finished run of *Segmentation Ability*: look at the map of any layer, unit and noise level at once."""

from __future__ import annotations

import ctk
import qt
import slicer
import vtk
from slicer.i18n import tr as _

from ..errors import MedXAIError
from ..scene import judge, layers, pick, read, remove, repeat
from ..scene.nodes import NAME, RUN, of_class
from . import parts
from .results import ResultSection

#: Colours of the words, readable on a light and on a dark ground; the words say the same.
LIGHT = {"green": "#2e9e5b", "amber": "#c98500", "red": "#d9472b"}
COLUMNS = {
    "layers": ((_("No."), "number"), (_("Layer"), "title"), (_("Group"), "group"), (_("SA score"), "dice")),
    "units": (
        (_("Rank"), "rank"), (_("Layer"), "layer"), (_("Unit"), "unit"), (_("SA score"), "dice"), (_("State"), "state"),
    ),
}  # fmt: skip
CHARTS = {
    "transition": _("From image to output"), "ranking": _("Units by SA score"), "noise-effect": _("SA under noise"),
}  # fmt: skip
NUMBER = 256  # Qt.UserRole: the number of a row's layer or unit


class AbilityResults(ResultSection):
    """Adds μ, the tables of layers and units, and the sliders of noise and heat map."""

    title = _("Ability")
    goText, goHelp = _("Go to label"), _("Shows the network's output in the slice views; zoom stays.")

    def build(self, layout):
        self._run, self._mean, self._filled, self._slider = "", None, None, None
        self._levels: list[float] = []
        self._plots: list = []

        self.meanLabel = qt.QLabel()
        self.meanLabel.objectName = "meanLabel"
        self.meanLabel.wordWrap = True
        layout.addWidget(self.meanLabel)
        self._accept = qt.QFormLayout()
        layout.addLayout(self._accept)

        self.tabs = qt.QTabWidget()
        self.tables = {}
        for name, title in (("layers", _("Layers")), ("units", _("Units"))):
            self.tables[name] = self._table(name)
            self.tabs.addTab(self.tables[name], title)
        self.tabs.connect("currentChanged(int)", self._onTab)
        layout.addWidget(self.tabs)
        self.shownLabel = qt.QLabel()
        self.shownLabel.objectName = "shownLabel"
        self.shownLabel.wordWrap = True
        layout.addWidget(self.shownLabel)

        form = qt.QFormLayout()
        self.noiseSlider = qt.QSlider(qt.Qt.Horizontal)
        self.noiseSlider.objectName = "noiseSlider"
        self.noiseSlider.setTickPosition(qt.QSlider.TicksBelow)
        self.noiseSlider.pageStep = 1
        self.noiseSlider.toolTip = _(
            "The chosen layer's map at the noise levels of this run; nothing is computed anew."
        )
        self.noiseSlider.connect("valueChanged(int)", self._onNoise)
        self.noiseLabel = qt.QLabel()
        row = qt.QHBoxLayout()
        row.addWidget(self.noiseSlider, 1)
        row.addWidget(self.noiseLabel)
        form.addRow(_("Noise up to:"), row)
        self.heatCheck = qt.QCheckBox()
        self.heatCheck.objectName = "heatCheck"
        self.heatCheck.toolTip = _("Lay the heat map over the input: the share of units that see the label.")
        self.heatCheck.connect("toggled(bool)", lambda _on: self._heat())
        self.heatSlider = ctk.ctkSliderWidget()
        self.heatSlider.objectName = "heatSlider"
        self.heatSlider.minimum, self.heatSlider.maximum = 0, 1
        self.heatSlider.singleStep, self.heatSlider.decimals = 0.01, 2
        self.heatSlider.toolTip = _("Where fewer units see the label, the heat map is transparent.")
        self.heatSlider.connect("valueChanged(double)", lambda _value: self._heat(moved=True))
        row = qt.QHBoxLayout()
        row.addWidget(self.heatCheck)
        row.addWidget(self.heatSlider, 1)
        form.addRow(_("Heat map from:"), row)
        self.chartCombo = qt.QComboBox()
        self.chartCombo.objectName = "chartCombo"
        self.chartCombo.toolTip = _("Click a point of the chart to see its map.")
        self.chartCombo.connect("currentIndexChanged(int)", lambda _index: self._onChart())
        form.addRow(_("Chart:"), self.chartCombo)
        layout.addLayout(form)

    def _table(self, name: str):
        table = parts.table(name, [title for title, _column in COLUMNS[name]])
        table.minimumHeight = 180
        table.toolTip = _("Choose a row to see its map in the slice views.")
        table.connect("currentCellChanged(int,int,int,int)", lambda *_cells: self._onRow(name))
        return table

    def setAcceptSlider(self, slider):
        """Put the slider of the setting `accept` below μ; it answers while it is moved."""
        label = qt.QLabel(_("Accept from:"))
        label.toolTip = slider.toolTip
        self._accept.addRow(label, slider)
        self._slider = slider
        slider.connect("valueChanged(double)", lambda _value: self._judge())
        self._judge()

    # -- the chosen run ------------------------------------------------------------------------------------------------------

    def update(self):
        run = remove.run_of(slicer.mrmlScene, self.folder) if self.folder else ""
        masks = self.nodes("vtkMRMLSegmentationNode")
        told = (run, len(masks))
        if told == self._filled:  # the list was made again, the run is the same
            return
        self._filled, self._run = told, run
        known = repeat.provenance(slicer.mrmlScene, self.folder) if run else {}
        self._mean = known.get("scores", {}).get("mean_sa")
        self._fill("layers")
        self._fill("units")
        self._updating = True
        self._levels = [0.0, *pick.levels(slicer.mrmlScene, run)] if run else [0.0]
        self.noiseSlider.setRange(0, len(self._levels) - 1)
        self.noiseSlider.value = 0
        heat = self._heatNode()
        self.heatCheck.enabled = self.heatSlider.enabled = heat is not None
        self.heatCheck.checked = heat is not None and any(
            node.GetForegroundVolumeID() == heat.GetID()
            for node in of_class(slicer.mrmlScene, "vtkMRMLSliceCompositeNode")
        )
        self.heatSlider.value = heat.GetDisplayNode().GetLowerThreshold() if heat is not None else 0
        found = {node.GetAttribute(NAME) for node in self.nodes("vtkMRMLPlotChartNode")}
        self.chartCombo.clear()
        for name, title in CHARTS.items():
            if name in found:
                self.chartCombo.addItem(title, name)
        self.chartCombo.enabled = bool(found)
        self._updating = False
        shown = pick.shown(slicer.mrmlScene, run) if run else None
        if shown is not None:
            self._mark(*shown)
        self._judge()
        self._say(pick.title_of(slicer.mrmlScene, run, *shown) if shown else "")
        self._watchPlots(bool(run))
        self._markPoint()

    def leave(self):
        self._filled = None

    def stop(self):
        super().stop()
        self._filled = None
        self._watchPlots(False)

    def _fill(self, name: str):
        """The rows of one table, sorted: layers from the image on, units from the best on."""
        table, rows = self.tables[name], []
        if self._run:
            wanted = {"title": "layer"}
            columns = tuple(wanted.get(column, column) for _title, column in COLUMNS[name])
            rows = list(pick.rows(slicer.mrmlScene, self._run, name, ("number", *columns)))
        paths = pick.paths(slicer.mrmlScene, self._run) if self._run else {}
        kept = set(pick.numbers(slicer.mrmlScene, self._run, name)) if self._run else set()
        self._updating = True
        table.setSortingEnabled(False)
        table.clearContents()
        table.setRowCount(len(rows))
        for n, row in enumerate(rows):
            number = int(row[0])
            for column, ((_title, key), text) in enumerate(zip(COLUMNS[name], row[1:])):
                if key == "title":
                    text = paths.get(text) or text if number else _("input image")
                elif key == "layer":
                    text = paths.get(text) or text
                item = qt.QTableWidgetItem()
                item.setData(qt.Qt.DisplayRole, _plain(key, text))
                item.setData(NUMBER, number)
                if number not in kept:
                    item.setFlags(qt.Qt.NoItemFlags)
                    item.setToolTip(_("This map was scored but not kept (memory budget)."))
                table.setItem(n, column, item)
        table.setSortingEnabled(True)
        table.sortByColumn(0, qt.Qt.AscendingOrder)
        table.resizeColumnsToContents()
        self._updating = False

    @property
    def tab(self) -> str:
        """Which table is in front: ``layers`` or ``units``."""
        return list(self.tables)[max(0, self.tabs.currentIndex)]

    def number(self, name: str) -> int | None:
        """The number of a table's current row."""
        item = self.tables[name].item(self.tables[name].currentRow(), 0)
        return None if item is None else int(item.data(NUMBER))

    def select(self, sequence: str, number: int):
        """Show a map, and mark its row and its noise level."""
        self._mark(sequence, number)
        self._chartOfTab()
        self._show()

    def _mark(self, sequence: str, number: int):
        name = "units" if sequence == "units" else "layers"
        self._updating = True
        if sequence.startswith("noise-"):
            level = float(sequence.removeprefix("noise-"))
            self.noiseSlider.value = self._levels.index(level) if level in self._levels else 0
        elif name == "layers":
            self.noiseSlider.value = 0
        self.tabs.setCurrentIndex(list(self.tables).index(name))
        table = self.tables[name]
        for row in range(table.rowCount):
            if int(table.item(row, 0).data(NUMBER)) == number:
                table.setCurrentCell(row, 0)
                table.scrollToItem(table.item(row, 0))
                break
        self._updating = False

    # -- what is shown -------------------------------------------------------------------------------------------------------

    def _onRow(self, name: str):
        if not self._updating and name == self.tab:
            self._show()

    def _onTab(self, _index):
        if self._updating:
            return
        self._chartOfTab()
        if self.number(self.tab) is not None:
            self._show()
        else:
            self._say(self.shownLabel.text)

    def _chartOfTab(self):
        """Beside layers the transition, beside units the ranking; the study of noise stays where it was chosen for layers."""
        chosen = self.chartCombo.itemData(self.chartCombo.currentIndex) if self.chartCombo.count else None
        if chosen in {"layers": ("transition", "noise-effect"), "units": ("ranking",)}[self.tab]:
            return
        chart = self.chartCombo.findData("ranking" if self.tab == "units" else "transition")
        if chart >= 0:
            self.chartCombo.setCurrentIndex(chart)

    def _onNoise(self, _value):
        if not self._updating:
            self._show()

    def _show(self):
        """The map of the current row, at the noise level of the slider."""
        number = self.number(self.tab)
        if number is None or not self._run:
            return
        level = self._levels[self.noiseSlider.value] if self.tab == "layers" else 0
        sequence = f"noise-{level:g}" if level else self.tab
        try:
            self._say(pick.show(slicer.mrmlScene, self._run, sequence, number))
            self._markPoint()
        except MedXAIError as error:
            self._say(error.message)

    def _say(self, text: str):
        """What is shown, and whether the noise slider can say anything."""
        self.shownLabel.text = text
        self.noiseSlider.enabled = len(self._levels) > 1 and self.tab == "layers"
        level = self._levels[min(self.noiseSlider.value, len(self._levels) - 1)]
        none = _("maps not kept") if self.chartCombo.findData("noise-effect") >= 0 else _("no study")
        self.noiseLabel.text = f"{level:g}" if level else _("0 (clean)") if len(self._levels) > 1 else none

    def _judge(self):
        """μ against the threshold as it is now, in words and colour."""
        if not self._run:
            self.meanLabel.text = ""
        else:
            state, words = judge.judgement(self._mean, self._slider.value if self._slider is not None else 0.5)
            self.meanLabel.text = words
            colour = f"color: {LIGHT[state]};" if state else ""
            self.meanLabel.setStyleSheet(f"font-weight: bold; {colour}")
        self.meanLabel.visible = bool(self._run)

    def _heatNode(self):
        nodes = self.nodes("vtkMRMLScalarVolumeNode")
        return next((node for node in nodes if node.GetAttribute(NAME) == "heat"), None)

    def _heat(self, moved: bool = False):
        if self._updating or not self._run:
            return
        if moved and not self.heatCheck.checked:
            self._updating = True
            self.heatCheck.checked = True  # somebody who moves it wants to see it
            self._updating = False
        pick.heat(slicer.mrmlScene, self._run, self.heatCheck.checked, self.heatSlider.value)

    # -- charts --------------------------------------------------------------------------------------------------------------

    @property
    def chartOrder(self):
        """The chosen chart first."""
        chosen = self.chartCombo.itemData(self.chartCombo.currentIndex) if self.chartCombo.count else None
        return (chosen, "transition")

    def _onChart(self):
        views = of_class(slicer.mrmlScene, "vtkMRMLPlotViewNode")
        if not self._updating and any(node.IsMappedInLayout() for node in views):  # the layout is a person's own
            self.showChart()

    def showChart(self):
        super().showChart()
        self._watchPlots(True)
        self._markPoint()

    def _watchPlots(self, on: bool):
        """Hear what is clicked in the chart views there are."""
        for view, _node in self._plots:
            view.disconnect("dataSelected(vtkStringArray*,vtkCollection*)", self._onPoint)
        manager = slicer.app.layoutManager() if on else None
        count = manager.plotViewCount if manager is not None else 0
        widgets = [manager.plotWidget(n) for n in range(count)]
        self._plots = [(widget.plotView(), widget.mrmlPlotViewNode()) for widget in widgets]
        for view, _node in self._plots:
            view.connect("dataSelected(vtkStringArray*,vtkCollection*)", self._onPoint)

    def _onPoint(self, series, selections):
        """A point of a chart was clicked: its row is chosen, and its map shown. What is marked already was not clicked."""
        scene = slicer.mrmlScene
        shown = pick.shown(scene, self._run) if self._run else None
        for n in range(min(series.GetNumberOfValues(), selections.GetNumberOfItems())):
            chosen, node = selections.GetItemAsObject(n), scene.GetNodeByID(series.GetValue(n))
            if chosen is None or not chosen.GetNumberOfValues() or remove.run_of(scene, node) != self._run:
                continue
            found = pick.point(scene, series.GetValue(n), chosen.GetValue(0))
            if found is not None and found != shown:
                self.select(*found)
                return

    def _markPoint(self):
        """The point whose map is shown is the one that is marked in the chart views."""
        shown = pick.shown(slicer.mrmlScene, self._run) if self._run else None
        for view, node in self._plots:
            chart = node.GetPlotChartNode() if node is not None else None
            if chart is None or chart.GetAttribute(RUN) != self._run or shown is None:
                continue
            series = [chart.GetNthPlotSeriesNode(n) for n in range(chart.GetNumberOfPlotSeriesNodes())]
            found = [(one.GetName(), pick.row_of(slicer.mrmlScene, one.GetID(), *shown)) for one in series]
            marked = [one for one in found if one[1] is not None][-1:]  # the last is drawn on top
            for n in range(view.chart().GetNumberOfPlots()):
                rows = vtk.vtkIdTypeArray()
                for name, row in marked:
                    if view.chart().GetPlot(n).GetLabel() == name:
                        rows.InsertNextValue(row)
                view.chart().GetPlot(n).SetSelection(rows)
            view.scene().SetDirty(True)
            view.update()

    def _notes(self) -> str:
        # μ is judged above, against the threshold as it is now.
        return "\n".join(line for line in super()._notes().split("\n") if not line.startswith("• mean sa:"))

    # -- buttons -------------------------------------------------------------------------------------------------------------

    def show(self):
        """The input with this run's map over it."""
        if not self.folder:
            return
        known = repeat.provenance(slicer.mrmlScene, self.folder)
        for node in self.nodes("vtkMRMLSegmentationNode"):
            node.GetDisplayNode().SetVisibility(True)
            node.GetDisplayNode().SetSegmentVisibility(pick.SEGMENT, True)
        if known["inputs"]:
            layers.show(slicer.mrmlScene, known["inputs"][0])
        if self._heatNode() is not None:
            self._heat()
        self.showChart()

    def goTo(self):
        """The output (or the map) in the slice views."""
        known = repeat.provenance(slicer.mrmlScene, self.folder) if self.folder else {}
        for node in self.nodes("vtkMRMLSegmentationNode") if known.get("inputs") else ():
            for segment in ("output", pick.SEGMENT):
                point = read.inside(node, segment, known["inputs"][0])
                if point is not None:
                    slicer.modules.markups.logic().JumpSlicesToLocation(*point, False)
                    return


def _plain(key: str, text: str):
    """A cell as Qt sorts it: numbers as numbers."""
    if key == "dice":
        return f"{float(text):.3f}"  # from 0 to 1: sorted as text as well
    return int(text) if key in ("number", "rank", "unit") else text
