"""What to do with a finished run: show its chart, repeat it, remove it; a method adds how its maps are looked through."""

from __future__ import annotations

import qt
import slicer
from slicer.i18n import tr as _

from ..scene import charts, remove, repeat
from ..scene.nodes import NAME, RUN, children, hierarchy
from .parts import button
from .watch import Watch

CHART_LAYOUT = 36  # conventional views with a chart (vtkMRMLLayoutNode::SlicerLayoutConventionalPlotView)


class ResultSection:
    """The section for the runs of one method.

    A method's section sets the class attributes and overrides the methods under "what a method adds".

    Parameters
    ----------
    layout : qt.QVBoxLayout
        Where it goes.
    method : str
        Only its runs are listed.
    onRepeat : callable
        Called with what `scene.repeat.provenance` gives.
    onMessage : callable
        Called with a sentence to show.
    """

    title = ""
    goText = goHelp = ""
    chartOrder = ("normalized", "transition")  # which chart is shown first
    everyCheck = False  # whether the notes hold the self-checks that passed as well

    def __init__(self, layout, method: str, onRepeat, onMessage):
        self._method, self._onRepeat, self._onMessage = method, onRepeat, onMessage
        self._layoutBefore = None
        self._live = None
        self._tree = Watch(self._onHierarchy)
        self._updating = False
        self.folders: list[int] = []

        self.runCombo = qt.QComboBox()
        self.runCombo.objectName = "runCombo"
        self.runCombo.toolTip = _("The runs in this scene, the newest first.")
        self.runCombo.setSizePolicy(qt.QSizePolicy.Ignored, qt.QSizePolicy.Fixed)
        self.runCombo.connect("currentIndexChanged(int)", lambda _index: self._choose())
        layout.addWidget(self.runCombo)

        self.build(layout)

        first, second = qt.QHBoxLayout(), qt.QHBoxLayout()
        self.chartButton = button(first, _("Show chart"), _("Shows the curves beside the slice views; press again for your own layout."), self._chart)  # fmt: skip
        self.chartButton.checkable = True
        self.showButton = button(first, _("Show in views"), _("Puts this run's layers into the slice views; zoom and slice stay."), self.show)  # fmt: skip
        self.goButton = button(first, self.goText, self.goHelp, self.goTo)  # fmt: skip
        self.repeatButton = button(second, _("Repeat this run"), _("Fills the panel with this run's inputs and settings."), self._repeat)  # fmt: skip
        self.removeButton = button(second, _("Remove run"), _("Takes everything of this run out of the scene; volumes and models stay."), self._remove)  # fmt: skip
        layout.addLayout(first)
        layout.addLayout(second)

        self.notesLabel = qt.QLabel()
        self.notesLabel.objectName = "notesLabel"
        self.notesLabel.wordWrap = True
        self.notesLabel.setTextInteractionFlags(qt.Qt.TextSelectableByMouse)
        layout.addWidget(self.notesLabel)

        # Many nodes come and go at once; the list is made again once they have.
        self._soon = qt.QTimer()
        self._soon.setSingleShot(True)
        self._soon.setInterval(100)
        self._soon.connect("timeout()", self.refresh)
        self._fitSoon = qt.QTimer()
        self._fitSoon.setSingleShot(True)
        self._fitSoon.setInterval(500)
        self._fitSoon.connect("timeout()", self.fitCharts)
        self.observe()

    def setLive(self, live):
        """The run that is under way: its chart is the one to show."""
        self._live = live

    # -- what a method adds --------------------------------------------------------------------------------------------------

    def build(self, layout):
        """Widgets between the list of runs and the buttons."""

    def update(self):
        """Show what the chosen run has."""

    def leave(self):
        """The chosen run is about to be removed: hold nothing of it."""

    def show(self):
        """Put this run's layers into the slice views."""

    def goTo(self):
        """Go to the run's place in the slice views."""

    # -- the list of runs --------------------------------------------------------------------------------------------------

    def observe(self):
        """Follow the runs of the scene (again, after it was closed)."""
        tree = hierarchy(slicer.mrmlScene)
        self._tree.set(
            tree,
            tree.SubjectHierarchyItemAddedEvent,
            tree.SubjectHierarchyItemRemovedEvent,
            tree.SubjectHierarchyItemModifiedEvent,
        )
        self.refresh()

    def stop(self):
        """The scene or the panel goes away: hold nothing of it."""
        self._soon.stop()
        self._fitSoon.stop()
        self._tree.clear()

    def _onHierarchy(self, _caller, _event):
        if not self._soon.active:
            self._soon.start()

    def refresh(self, choose: int = 0):
        """List the runs again; ``choose`` is the folder to choose."""
        tree = hierarchy(slicer.mrmlScene)
        chosen = choose or self.folder
        found = [
            item for item in children(slicer.mrmlScene, tree.GetSceneItemID())
            if tree.GetItemAttribute(item, RUN) and tree.GetItemAttribute(item, "MedXAI.Method") == self._method
        ]  # fmt: skip
        self.folders = sorted(found, reverse=True)
        self._updating = True
        self.runCombo.clear()
        for item in self.folders:
            self.runCombo.addItem(tree.GetItemName(item))
        if not self.folders:
            self.runCombo.addItem(_("No run yet"))
        self.runCombo.setCurrentIndex(self.folders.index(chosen) if chosen in self.folders else 0)
        self._updating = False
        self._choose()
        if choose:
            self.curvesGrew()

    @property
    def folder(self) -> int:
        """The chosen run's folder (its item); 0 when there is none."""
        index = self.runCombo.currentIndex
        return self.folders[index] if 0 <= index < len(self.folders) else 0

    def nodes(self, className: str = "vtkMRMLNode") -> list:
        """The chosen run's nodes of a class."""
        if not self.folder:
            return []
        run = remove.run_of(slicer.mrmlScene, self.folder)
        return [node for node in remove.nodes_of(slicer.mrmlScene, run) if node.IsA(className)]

    def _choose(self):
        if self._updating:
            return
        self.update()
        known = bool(self.folder)
        for widget in (self.runCombo, self.repeatButton, self.removeButton, self.showButton, self.goButton):
            widget.enabled = known
        self.notesLabel.text = self._notes()
        self.notesLabel.visible = bool(self.notesLabel.text)

    def _notes(self) -> str:
        if not self.folder:
            return ""
        about = next((n for n in self.nodes("vtkMRMLTextNode") if n.GetAttribute(NAME) == "about"), None)
        return reading(about.GetText(), self.everyCheck) if about is not None else ""

    # -- buttons ---------------------------------------------------------------------------------------------------------------

    def _chart(self):
        """The layout changes only here, because somebody pressed, and goes back to what it was."""
        manager = slicer.app.layoutManager()
        if manager is None:
            return
        if self._layoutBefore is None:
            self._layoutBefore = manager.layout
            manager.setLayout(CHART_LAYOUT)
            self.showChart()
        else:
            manager.setLayout(self._layoutBefore)
            self._layoutBefore = None
        self.chartButton.checked = self._layoutBefore is not None
        self.chartButton.text = _("Hide chart") if self._layoutBefore is not None else _("Show chart")

    def showChart(self):
        """The chart of the run under way, else of the chosen one, in the chart views there are: normalised curves first."""
        run = self._live.run if self._live is not None else None
        if run is not None and run.curves:
            found = {name: made["chart"] for name, made in run.curves.items()}
        else:
            found = {node.GetAttribute(NAME): node for node in self.nodes("vtkMRMLPlotChartNode")}
        chart = next((found[name] for name in (*self.chartOrder, *found) if name in found), None)
        if chart is not None:
            charts.show_chart(slicer.mrmlScene, chart)
            self.curvesGrew()

    def curvesGrew(self):
        """New points have come: the chart views follow, twice a second at most (they do not by themselves)."""
        if not self._fitSoon.active:
            self._fitSoon.start()

    def fitCharts(self):
        """Fit the axes of the chart views that show a chart of ours, unless the chart says what they show."""
        manager = slicer.app.layoutManager()
        for n in range(manager.plotViewCount if manager is not None else 0):
            chart = manager.plotWidget(n).mrmlPlotViewNode().GetPlotChartNode()
            if chart is not None and chart.GetAttribute(RUN) and chart.GetXAxisRangeAuto():
                manager.plotWidget(n).plotView().fitToContent()

    def _repeat(self):
        if self.folder:
            self._onRepeat(repeat.provenance(slicer.mrmlScene, self.folder))

    def _remove(self):
        if self.folder:
            name = hierarchy(slicer.mrmlScene).GetItemName(self.folder)
            self.leave()
            remove.remove(slicer.mrmlScene, self.folder)
            self.refresh()
            self._onMessage(_("'{name}' was removed from the scene.").format(name=name))


def reading(text: str, every: bool = False) -> str:
    """What a reader must see of a run's own words: its notes, and the self-checks that failed (or every one)."""
    section, found = "", []
    lines = text.split("\n")
    for line, below in zip(lines, [*lines[1:], ""]):
        if below and set(below) <= {"-"}:
            section = line
        elif line.startswith("- ") and (
            section == "Notes" or (section == "Self-checks" and (every or "(NOT PASSED)" in line))
        ):
            found.append("• " + line[2:])
    return "\n".join(found)
