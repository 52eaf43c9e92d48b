"""What a settings form shows, without any Qt: one `Row` for each field of a settings class."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import MedXAIError
from ..settings import About, about

SLIDER_STEPS = 1000  # a slider with more positions than this cannot be aimed with a mouse


@dataclass(frozen=True)
class Row:
    """One row of a form, and the flat parameter of the scene that keeps its value.

    ``widget`` is ``check``, ``choice``, ``slider``, ``spin`` or ``text``; ``parameter`` the type kept in the scene
    (``bool``, ``int``, ``float`` or ``str``: None and lists are kept as text, so that every one is a flat parameter).
    """

    about: About
    widget: str
    parameter: type
    default: object
    low: float | None = None
    high: float | None = None
    decimals: int = 0
    increment: float = 1

    @property
    def name(self) -> str:
        """Name of the setting and of the parameter."""
        return self.about.name

    @property
    def toolTip(self) -> str:
        """Help, values allowed with unit, and the command's option."""
        note = f"Takes {self.about.takes}; in the command: {self.about.option}"
        return f"<p>{_escaped(self.about.help)}</p><p><i>{_escaped(note)}</i></p>"

    @property
    def placeholder(self) -> str:
        """What an empty line edit means."""
        if self.about.kind is tuple and self.about.length == 3:
            return "none" if self.about.optional else ", ".join("RAS" if self.about.item is float else "ijk")
        return ""

    def toParameter(self, value):
        """A setting's value as the scene keeps it."""
        if value is None:
            return ""
        if isinstance(value, (tuple, list)):
            return ", ".join(f"{v:.10g}" if isinstance(v, float) else str(v) for v in value)
        return self.parameter(value)

    def toSetting(self, value):
        """The value checked, as the settings class wants it; refused with a sentence that names the setting."""
        if self.about.optional and isinstance(value, str) and not value.strip():
            value = None
        elif self.widget == "text" and self.about.kind is str:
            value = value.strip()
        return self.about.check(value)


def rowsOf(settingsClass) -> list[Row]:
    """The rows of a settings class, in the order of its fields."""
    return [_row(one) for one in about(settingsClass)]


def _row(one: About) -> Row:
    if one.kind is bool:
        return Row(one, "check", bool, bool(one.default))
    if one.kind is str and one.choices:
        return Row(one, "choice", str, one.default)
    if one.kind in (int, float) and not one.optional:
        decimals = 0 if one.kind is int else (2 if one.decimals is None else one.decimals)
        increment = one.increment or (1 if one.kind is int else 10.0**-decimals)
        low, high = one.low, one.high
        if one.kind is float and low is not None and low > 0:
            low = max(low, 10.0**-decimals)  # a spin box shows a smaller lowest value as 0, which is refused
        bounded = low is not None and high is not None
        slider = bounded and (high - low) / increment <= SLIDER_STEPS
        return Row(one, "slider" if slider else "spin", one.kind, one.default, low, high, decimals, increment)
    row = Row(one, "text", str, "")
    return Row(one, "text", str, row.toParameter(one.default))


def decimalsOf(value: float, most: int = 12) -> int:
    """Decimals needed to show a number without changing it (at most ``most``)."""
    for decimals in range(most):
        if round(value, decimals) == value:
            return decimals
    return most


def settingsFrom(settingsClass, values: dict):
    """A settings object from parameter values by name; refused with one sentence."""
    return settingsClass(
        **{row.name: row.toSetting(values[row.name]) for row in rowsOf(settingsClass) if row.name in values}
    )


def parametersFrom(settingsClass, values: dict) -> tuple[dict, list[str]]:
    """Parameter values from plain settings (a run's provenance), and a sentence for each one that no longer fits."""
    rows = {row.name: row for row in rowsOf(settingsClass)}
    parameters, notes = {}, []
    for name, value in values.items():
        if name not in rows:
            notes.append(f"The run had a setting '{name}' that this version does not know.")
            continue
        try:
            parameters[name] = rows[name].toParameter(rows[name].about.check(value))
        except MedXAIError as error:
            notes.append(error.message)
    return parameters, notes


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
