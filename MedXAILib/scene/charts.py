"""Curves and tables as table nodes, and curves as charts."""

from __future__ import annotations

import bisect
import dataclasses

import numpy as np
import slicer
import vtk
from vtk.util import numpy_support

from ..explanation import Curve, Explanation, Table
from . import colors
from .nodes import drawable, modifying, of_class

#: What a chart can show before it becomes unreadable; everything else is in its table.
MOST = 12

#: How much of a chart's width is left free on the right for the legend, which the plot view draws over what is there.
LEGEND = 0.4
SHORT = 12  # letters: with names no longer than this, half of it is enough


def add_table(scene, name: str):
    node = slicer.vtkMRMLTableNode()
    node.SetName(scene.GenerateUniqueName(name))
    return scene.AddNode(node)


def fill(node, columns: dict, units: dict | None = None) -> None:
    """The table's columns, as they are now; numbers become doubles (NaN where undefined), everything else text."""
    inner = node.GetTable()
    with modifying(node):
        for name in [inner.GetColumnName(n) for n in range(inner.GetNumberOfColumns())]:
            if name not in columns:
                node.RemoveColumn(node.GetColumnIndex(name))
        for name, values in columns.items():
            array = _column(values)
            array.SetName(name)
            known = inner.GetColumnByName(name)
            if known is not None and known.GetClassName() == array.GetClassName():
                known.DeepCopy(array)
                known.Modified()
                continue
            if known is not None:
                node.RemoveColumn(node.GetColumnIndex(name))
            inner.AddColumn(array)
            if isinstance(array, vtk.vtkDoubleArray):
                # An undefined number survives saving: without it an empty cell would be read as 0.
                node.SetColumnProperty(name, "nullValue", "nan")
            if units and units.get(name):
                node.SetColumnUnitLabel(name, units[name])
        inner.Modified()
        node.Modified()


def _column(values):
    values = list(values) if not isinstance(values, np.ndarray) else values
    if all(isinstance(v, (int, float, np.number)) and not isinstance(v, bool) for v in values):
        return numpy_support.numpy_to_vtk(np.ascontiguousarray(values, dtype=np.float64), deep=True)
    array = vtk.vtkStringArray()
    for value in values:
        array.InsertNextValue("" if value is None else str(value))
    return array


def add_curve(scene, name: str) -> dict:
    """An empty table and chart, for `update_curve`.

    Returns
    -------
    dict
        ``table``, ``chart`` and ``series`` (a list).
    """
    table = add_table(scene, f"{name} table")
    chart = slicer.vtkMRMLPlotChartNode()
    chart.SetName(scene.GenerateUniqueName(f"{name} chart"))
    return {"table": table, "chart": scene.AddNode(chart), "series": []}


def update_curve(scene, made: dict, curve: Curve) -> list:
    """Bring table, chart and series up to date: one series for each shown column and each end of a band.

    A single row is not drawn: a line needs two points. Returns the series nodes that are new.
    """
    columns, ends = dict(curve.columns), _ends(curve)
    rows = len(next(iter(columns.values()))) if columns else 0
    columns.update({column: np.full(rows, value) for column, value in ends.items()})
    fill(made["table"], columns, curve.units)
    wanted = [*shown(curve), *curve.dots, *ends] if rows > 1 else []
    for series in [one for one in made["series"] if one.GetYColumnName() not in wanted]:
        made["series"].remove(series)
        made["chart"].RemovePlotSeriesNodeID(series.GetID())
        scene.RemoveNode(series)
    new, known = [], {series.GetYColumnName(): series for series in made["series"]}
    with modifying(made["chart"]) as chart:
        chart.SetTitle(drawable(curve.title))
        chart.SetXAxisTitle(drawable(curve.index_title or curve.index))
        chart.SetYAxisTitle(drawable(_value_title(curve)))
        chart.SetLegendVisibility(True)
        chart.SetLegendFontSize(12 if len(wanted) <= 4 else 10)
        if wanted:
            _room(chart, columns, curve, wanted, made)
        chart.SetGridVisibility(True)
        for n, column in enumerate(wanted):
            if column not in known:
                series = _series(scene, made["table"], curve, column, None if column in ends else n)
                new.append(series)
                chart.AddAndObservePlotSeriesNodeID(series.GetID())
    made["series"] += new
    return new


def _room(chart, columns: dict, curve: Curve, drawn: list[str], made: dict) -> None:
    """Show all of the curves, with the right of the chart free for the legend, unless somebody has zoomed."""
    now = None if chart.GetXAxisRangeAuto() else (*chart.GetXAxisRange(), *chart.GetYAxisRange())
    across = np.asarray(columns[curve.index], float)
    up = np.concatenate([np.asarray(columns[name], float) for name in drawn] + [np.array(curve.limits or (), float)])
    across, up = across[np.isfinite(across)], up[np.isfinite(up)]
    if not len(across) or not len(up) or now != made.get("range"):
        return
    left, right, low, high = (float(v) for v in (across.min(), across.max(), up.min(), up.max()))
    margin = (0.02 if curve.limits else 0.05) * (high - low) or 0.5
    share = LEGEND if len(drawn) > 1 and max(map(len, drawn)) > SHORT else LEGEND / 2
    left -= 0.02 * (right - left) if curve.dots else 0.0  # a dot on the axis would be cut in half
    made["range"] = (left, right + (right - left) * share / (1 - share), low - margin, high + margin)
    chart.SetXAxisRangeAuto(False)
    chart.SetYAxisRangeAuto(False)  # the plot view follows growing curves with a fixed range only
    chart.SetXAxisRange(*made["range"][:2])
    chart.SetYAxisRange(*made["range"][2:])


def shown(curve: Curve, most: int = MOST) -> list[str]:
    """The columns a chart draws as lines: those the curve names, else all, else the ``most`` that moved farthest."""
    names = [name for name in curve.columns if name != curve.index and name not in curve.dots]
    chosen = [name for name in curve.shown if name in names] or names
    if len(chosen) > most:
        farthest = set(sorted(chosen, key=lambda name: _moved(curve.columns[name]), reverse=True)[:most])
        chosen = [name for name in chosen if name in farthest]
    return chosen


def _moved(values) -> float:
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    return abs(float(values[-1] - values[0])) if len(values) else -1.0


def _ends(curve: Curve) -> dict[str, float]:
    return {f"{title}: {value:+g}": value for title, ends in curve.bands.items() for value in ends}


def _value_title(curve: Curve) -> str:
    units = {curve.units.get(name, "") for name in shown(curve)}
    unit = units.pop() if len(units) == 1 else ""
    title = curve.value_title or "Value"
    return f"{title} [{unit}]" if unit and f"[{unit}]" not in title else title


def _series(scene, table, curve: Curve, column: str, number: int | None):
    series = slicer.vtkMRMLPlotSeriesNode()
    series.SetName(column.replace("_", " "))
    series.SetPlotType(series.PlotTypeScatter)  # a line over the real values of x
    series.SetMarkerStyle(series.MarkerStyleNone)
    series.SetXColumnName(curve.index)
    series.SetYColumnName(column)
    if column in curve.dots:
        series.SetLineStyle(series.LineStyleNone)
        series.SetMarkerStyle(series.MarkerStyleCircle)
        series.SetMarkerSize(9)
        series.SetColor(*colors.LINES[number % len(colors.LINES)])
    elif number is None:
        series.SetLineStyle(series.LineStyleDash)
        series.SetColor(0.45, 0.45, 0.45)
        series.SetLineWidth(1.5)
    else:
        series.SetLineStyle(series.LineStyleSolid if number < len(colors.LINES) else series.LineStyleDashDot)
        series.SetColor(*colors.LINES[number % len(colors.LINES)])
        series.SetLineWidth(2.5)
    scene.AddNode(series)
    series.SetAndObserveTableNodeID(table.GetID())
    return series


#: Curves of scores whose points belong to groups: their table, its column of the curve's index and its column of groups.
GROUPS = {"transition": ("layers", "number", "group"), "ranking": ("units", "rank", "state")}


def grouped(explanation: Explanation, name: str) -> Curve:
    """A curve of an explanation; where its points belong to groups (early, deep and late layers), each group has a colour of its own."""
    curve = explanation.curves[name]
    title, index, group = GROUPS.get(name, ("", "", ""))
    table = explanation.tables.get(title)
    if table is None or group not in table.columns:
        return curve
    shown_ = shown(curve)
    group_of = dict(zip(table.columns[index], table.columns[group]))
    groups = [group_of.get(int(n), "") for n in curve.columns[curve.index]]
    dots = {
        one: np.where([one == other for other in groups], curve.columns[shown_[0]], np.nan)
        for one in dict.fromkeys(groups)
    }
    return dataclasses.replace(
        curve, columns={**curve.columns, **dots}, shown=tuple(shown_), dots=tuple(dots), limits=(0.0, 1.0)
    )


class Live:
    """A curve that grows: values arrive by step, some of them late."""

    def __init__(self, curve: Curve):
        self.curve = curve
        self.steps: list[int] = []
        self.columns: dict[str, np.ndarray] = {}

    def add(self, step: int, values: dict[str, float]) -> None:
        """Take in the values of one step."""
        row = bisect.bisect_left(self.steps, step)
        if row == len(self.steps) or self.steps[row] != step:
            self.steps.insert(row, int(step))
            self.columns = {name: np.insert(column, row, np.nan) for name, column in self.columns.items()}
        for name, value in values.items():
            if name == self.curve.index:
                continue
            if name not in self.columns:
                self.columns[name] = np.full(len(self.steps), np.nan)
            self.columns[name][row] = value

    def now(self) -> Curve:
        """The curve as it is now."""
        columns = {self.curve.index: np.array(self.steps, float), **self.columns}
        return dataclasses.replace(self.curve, columns=columns)


def add_plain_table(scene, table: Table, name: str):
    node = add_table(scene, table.title or name)
    fill(node, table.columns)
    return node


class Charts:
    """What the chart and table views showed before a run."""

    def __init__(self, scene):
        self.scene = scene
        self.charts = {n.GetID(): n.GetPlotChartNodeID() for n in of_class(scene, "vtkMRMLPlotViewNode")}
        self.tables = {n.GetID(): n.GetTableNodeID() for n in of_class(scene, "vtkMRMLTableViewNode")}

    def put_back(self, gone: set[str]) -> None:
        """Where a view shows one of the nodes ``gone``, show what it showed before."""
        leave(self.scene, gone, self.charts, self.tables)


def leave(scene, gone: set[str], charts: dict | None = None, tables: dict | None = None) -> None:
    """Take nodes out of the chart and table views; put back what was there, if it still is, else nothing."""
    for kind, get, set_, before in (
        ("vtkMRMLPlotViewNode", "GetPlotChartNodeID", "SetPlotChartNodeID", charts or {}),
        ("vtkMRMLTableViewNode", "GetTableNodeID", "SetTableNodeID", tables or {}),
    ):
        for node in of_class(scene, kind):
            if getattr(node, get)() in gone:
                old = before.get(node.GetID())
                getattr(node, set_)(old if old and old not in gone and scene.GetNodeByID(old) else None)


def show_chart(scene, chart) -> None:
    """Show a chart in every chart view there is; the layout stays as it is."""
    for node in of_class(scene, "vtkMRMLPlotViewNode"):
        node.SetPlotChartNodeID(chart.GetID())
