"""The settings form: widgets from a settings class, bound both ways to a parameter node made at run time."""

from __future__ import annotations

from typing import Annotated

import ctk
import qt
from slicer.parameterNodeWrapper import Choice, Default, GuiConnector, Maximum, Minimum, parameterNodeWrapper

from .rows import Row, decimalsOf, parametersFrom, rowsOf, settingsFrom


def parameterNodeClass(settingsClass, extra: dict | None = None):
    """A parameter-node class with one flat parameter for each setting.

    Flat, because a scene saved before a setting existed then takes its default (a pack would fail to load).

    Parameters
    ----------
    settingsClass : type
        A settings dataclass of `MedXAILib.settings`.
    extra : dict
        More parameters: name to type or ``Annotated`` type.
    """
    annotations = {}
    for row in rowsOf(settingsClass):
        marks = [Default(row.default)]
        if row.widget == "choice":
            marks.append(Choice(list(row.about.choices)))
        if row.about.low is not None and row.parameter is not str:
            marks.append(Minimum(row.parameter(row.about.low)))
        if row.about.high is not None and row.parameter is not str:
            marks.append(Maximum(row.parameter(row.about.high)))
        annotations[row.name] = Annotated[(row.parameter, *marks)]
    annotations.update(extra or {})
    return parameterNodeWrapper(type(settingsClass.__name__ + "ParameterNode", (), {"__annotations__": annotations}))


class NumberConnector(GuiConnector):
    """Binds a number to a spin box or slider, which gets more decimals where a value needs them."""

    def __init__(self, widget, row: Row):
        super().__init__()
        self._widget, self._row = widget, row

    @staticmethod
    def canRepresent(widget, datatype) -> bool:
        return False  # made by hand, never chosen

    @staticmethod
    def create(widget, datatype):
        return None

    def _connect(self):
        self._widget.connect("valueChanged(double)", self.changed)

    def _disconnect(self):
        self._widget.disconnect("valueChanged(double)", self.changed)

    def changed(self, _value=None):
        super().changed()

    def widget(self):
        return self._widget

    def read(self):
        value = self._widget.value
        return round(value) if self._row.parameter is int else round(value, self._widget.decimals)

    def write(self, value):
        if self._row.parameter is float:
            self._widget.decimals = max(self._row.decimals, decimalsOf(value))
            if self._row.low is not None and value < self._widget.minimum:
                self._widget.minimum = value  # allowed, only finer than the spin box's own lowest value
            if value > self._widget.maximum:
                self._widget.maximum = value  # allowed, only beyond the range that a slider of the panel shows
        self._widget.value = value


class SettingsForm:
    """The rows of a settings class in two form layouts, ordinary and advanced.

    Parameters
    ----------
    settingsClass : type
        A settings dataclass.
    layout, advancedLayout : qt.QFormLayout
        Where the rows go.
    own : dict
        Settings that the panel shows in its own place: name to the widget that holds it (a `qt.QLineEdit`), or to None
        when the panel keeps the parameter itself.
    ordinary : tuple of str, optional
        The settings that are not advanced; by default as the settings class says.
    """

    def __init__(self, settingsClass, layout, advancedLayout, own: dict | None = None, ordinary=None):
        self.settingsClass = settingsClass
        self.rows = {row.name: row for row in rowsOf(settingsClass)}
        self.widgets, self.labels = {}, {}
        own = own or {}
        for row in self.rows.values():
            if row.name in own:
                if own[row.name] is not None:
                    self._adopt(row, own[row.name])
                continue
            widget = widgetOf(row)
            self._adopt(row, widget)
            label = qt.QLabel(row.about.title + ":")
            label.toolTip = row.toolTip
            label.setBuddy(widget)
            self.labels[row.name] = label
            hidden = row.about.advanced if ordinary is None else row.name not in ordinary
            (advancedLayout if hidden else layout).addRow(label, widget)

    def _adopt(self, row: Row, widget):
        widget.toolTip = row.toolTip
        widget.objectName = "setting_" + row.name
        self.widgets[row.name] = widget

    def setRowVisible(self, name: str, visible: bool):
        """Show or hide a row of the form."""
        for widget in (self.widgets.get(name), self.labels.get(name)):
            if widget is not None:
                widget.visible = visible

    def connectors(self) -> dict:
        """What ``connectParametersToGui`` takes for every row of the form."""
        found = {}
        for name, widget in self.widgets.items():
            row = self.rows[name]
            found[name] = NumberConnector(widget, row) if row.widget in ("slider", "spin") else widget
        return found

    def settings(self, parameterNode):
        """The settings the parameter node holds; `MedXAIError` names the first that is wrong."""
        return settingsFrom(self.settingsClass, {name: parameterNode.getValue(name) for name in self.rows})

    def fill(self, parameterNode, values: dict) -> list[str]:
        """Put a run's settings into the parameter node; gives a sentence for each that no longer fits."""
        parameters, notes = parametersFrom(self.settingsClass, values)
        for name, value in parameters.items():
            parameterNode.setValue(name, value)
        return notes

    def reset(self, parameterNode):
        """Every setting back to its default."""
        for name, row in self.rows.items():
            parameterNode.setValue(name, row.default)


def widgetOf(row: Row):
    """The widget of a row."""
    if row.widget == "check":
        return qt.QCheckBox()
    if row.widget == "choice":
        return qt.QComboBox()  # the connector fills it from Choice
    if row.widget == "text":
        edit = qt.QLineEdit()
        edit.placeholderText = row.placeholder
        return edit
    widget = ctk.ctkSliderWidget() if row.widget == "slider" else qt.QDoubleSpinBox()
    widget.decimals = row.decimals
    widget.minimum = -1e9 if row.low is None else row.low
    widget.maximum = 1e9 if row.high is None else row.high
    widget.singleStep = row.increment
    if row.about.unit:
        widget.suffix = " " + row.about.unit
    if row.widget == "spin":
        widget.keyboardTracking = False  # typing 100 is one change, not three
    widget.setFocusPolicy(qt.Qt.StrongFocus)
    return widget
