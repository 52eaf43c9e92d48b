"""A small chart of a few curves in a label: for what is no part of the scene."""

from __future__ import annotations

import math
from itertools import pairwise

import qt
from slicer.i18n import tr as _

from ..scene.colors import LINES

WIDE, HIGH = 520, 210  # pixels
LEFT, RIGHT, TOP, BOTTOM = 40, 150, 12, 34
INK, SOFT, GRID = "#1c2530", "#66717f", "#e2e6ea"


class LineChart:
    """Draws curves over whole numbers with axes, titles and a legend that tells the last values.

    Parameters
    ----------
    layout : qt.QLayout
        Where it goes.
    across, up : str
        Titles of the axes.
    """

    def __init__(self, layout, across: str, up: str):
        self._across, self._up = across, up
        self.label = qt.QLabel()
        self.label.objectName = "trainingChart"
        self.label.setAlignment(qt.Qt.AlignCenter)
        self.label.visible = False
        layout.addWidget(self.label)

    def show(self, rows: dict[int, dict], names: dict[str, str]):
        """Draw the columns ``names`` (with their titles) of rows by number; nothing is hidden."""
        self.label.visible = bool(rows)
        if rows:
            self.label.setPixmap(self._draw(rows, names))

    def _draw(self, rows: dict, names: dict):
        pixmap = qt.QPixmap(WIDE, HIGH)
        pixmap.fill(qt.QColor("white"))
        painter = qt.QPainter(pixmap)
        painter.setRenderHint(qt.QPainter.Antialiasing)
        font = painter.font()
        font.setPixelSize(11)
        painter.setFont(font)
        numbers = sorted(rows)
        values = [v for row in rows.values() for v in (row.get(name) for name in names) if _known(v)]
        high = max(1.0, *values) if values else 1.0
        first, last = numbers[0], max(numbers[-1], numbers[0] + 1)
        wide, tall = WIDE - LEFT - RIGHT, HIGH - TOP - BOTTOM

        def x(n):
            return LEFT + round(wide * (n - first) / (last - first))

        def y(v):
            return TOP + round(tall * (1 - v / high))

        for share in (0, 0.25, 0.5, 0.75, 1):
            level = share * high
            self._pen(painter, GRID)
            painter.drawLine(LEFT, y(level), LEFT + wide, y(level))
            self._pen(painter, SOFT)
            painter.drawText(0, y(level) - 8, LEFT - 5, 16, qt.Qt.AlignRight | qt.Qt.AlignVCenter, f"{level:.2g}")
        for n in sorted({first, (first + last) // 2, last}):
            painter.drawText(x(n) - 30, HIGH - BOTTOM + 2, 60, 14, qt.Qt.AlignHCenter, str(n))
        painter.drawText(LEFT, HIGH - 16, wide, 14, qt.Qt.AlignHCenter, self._across)
        painter.drawText(LEFT + wide + 12, TOP - 6, RIGHT - 12, 14, qt.Qt.AlignLeft, self._up)
        for n, (name, title) in enumerate(names.items()):
            colour = "#{:02x}{:02x}{:02x}".format(*(round(255 * part) for part in LINES[n % len(LINES)]))
            self._pen(painter, colour, 2)
            points = [(x(at), y(rows[at][name])) for at in numbers if _known(rows[at].get(name))]
            for (a, b), (c, d) in pairwise(points):
                painter.drawLine(a, b, c, d)
            for a, b in points if len(points) < 30 else points[-1:]:
                painter.drawEllipse(a - 1, b - 1, 3, 3)
            now = rows[numbers[-1]].get(name)
            down = TOP + 14 + 18 * n
            painter.drawLine(LEFT + wide + 12, down + 7, LEFT + wide + 28, down + 7)
            self._pen(painter, INK)
            told = f"{title}  {now:.2f}" if _known(now) else title
            painter.drawText(LEFT + wide + 34, down, RIGHT - 34, 16, qt.Qt.AlignLeft | qt.Qt.AlignVCenter, told)
        painter.end()
        return pixmap

    @staticmethod
    def _pen(painter, colour: str, width: int = 1):
        pen = qt.QPen(qt.QColor(colour))
        pen.setWidth(width)
        painter.setPen(pen)


def _known(value) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


EPOCH, JUDGED = _("Epoch"), _("Images kept back")
