"""Small parts every panel is made of."""

from __future__ import annotations

import ctk
import qt


def section(layout, title: str, kind=qt.QVBoxLayout):
    """A collapsible section; gives the layout inside it."""
    collapsible = ctk.ctkCollapsibleButton()
    collapsible.text = title
    inside = kind(collapsible)
    layout.addWidget(collapsible)
    return inside


def button(layout, text: str, toolTip: str, slot):
    """A push button that calls ``slot()``."""
    made = qt.QPushButton(text)
    made.toolTip = toolTip
    made.connect("clicked(bool)", lambda _checked=False: slot())
    layout.addWidget(made)
    return made


def toolButton(layout, text: str, toolTip: str, slot):
    """A small button beside a widget."""
    made = qt.QToolButton()
    made.text, made.toolTip = text, toolTip
    made.connect("clicked(bool)", lambda _checked=False: slot())
    layout.addWidget(made)
    return made


def table(name: str, titles):
    """A table to choose a row of, not to write in."""
    made = qt.QTableWidget()
    made.objectName = name + "Table"
    made.setColumnCount(len(titles))
    made.setHorizontalHeaderLabels(list(titles))
    made.horizontalHeader().setStretchLastSection(True)
    made.verticalHeader().hide()
    made.verticalHeader().setDefaultSectionSize(22)
    made.setSelectionBehavior(qt.QAbstractItemView.SelectRows)
    made.setSelectionMode(qt.QAbstractItemView.SingleSelection)
    made.setEditTriggers(qt.QAbstractItemView.NoEditTriggers)
    return made


def fill(made, rows):
    """Rows of texts for a table, at most nine of which are seen at once."""
    made.setRowCount(len(rows))
    made.setFixedHeight(34 + 22 * min(max(1, len(rows)), 9))
    for n, row in enumerate(rows):
        for column, text in enumerate(row):
            item = made.item(n, column)
            if item is None:
                item = qt.QTableWidgetItem()
                made.setItem(n, column, item)
            item.setText(text)
    if rows:
        made.resizeColumnsToContents()


def readable(layout, name: str):
    """A label for sentences: wrapped, and its text can be copied."""
    label = qt.QLabel()
    label.objectName = name
    label.wordWrap = True
    label.setTextInteractionFlags(qt.Qt.TextSelectableByMouse)
    layout.addWidget(label)
    return label
