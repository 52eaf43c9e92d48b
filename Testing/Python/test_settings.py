"""One field is one form row, one option, one check and one line of documentation."""

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from MedXAILib.errors import MedXAIError
from MedXAILib.settings import METHODS, DreamSettings, Settings, about, documentation, setting


@dataclasses.dataclass(frozen=True)
class Every(Settings):
    """One setting of each kind."""

    flag: bool = setting(True, "A flag.")
    count: int = setting(3, "A count.", low=1, high=10)
    share: float = setting(0.5, "A share.", low=0, unit="mm", title="Share of all")
    word: str = setting("one", "A word.", choices=("one", "two"))
    text: str = setting("", "Any text.")
    names: tuple[str, ...] = setting(("a", "b"), "Names.")
    point: tuple[float, float, float] | None = setting(None, "A point.")
    index: tuple[int, int, int] | None = setting(None, "An index.", low=0)
    limit: int | None = setting(None, "A limit.", advanced=True)


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("flag", "no", False), ("flag", "Yes", True), ("flag", 1, True), ("flag", "false", False),
        ("count", "7", 7), ("count", 7.0, 7), ("count", 10, 10),
        ("share", "1e-3", 1e-3), ("share", 2, 2.0),
        ("word", "two", "two"), ("text", "a, b", "a, b"),
        ("names", "x, y,", ("x", "y")), ("names", [], ()), ("names", ["q"], ("q",)),
        ("point", [1, "2", 3.5], (1.0, 2.0, 3.5)), ("point", "1,2,3", (1.0, 2.0, 3.0)), ("point", None, None),
        ("index", (0, 1, 2), (0, 1, 2)), ("limit", 4, 4), ("limit", None, None),
    ],
)  # fmt: skip
def test_values_are_taken_in_their_type(name, value, expected):
    got = getattr(Every(**{name: value}), name)
    assert got == expected and type(got) is type(expected)


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("flag", "perhaps", r"The setting 'flag' \(--flag\) cannot be 'perhaps'; it takes yes or no"),
        ("flag", 2, "cannot be 2"), ("flag", None, "cannot be None"),
        ("count", 0, r"'count' \(--count\) is 0; it takes a whole number from 1 to 10"),
        ("count", 11, "is 11; it takes"), ("count", 1.5, "cannot be 1.5; it takes a whole number"),
        ("count", True, "cannot be True"), ("count", "many", "cannot be 'many'"), ("count", math.inf, "cannot be inf"),
        ("count", math.nan, "cannot be nan"),
        ("share", -1, r"'share of all' \(--share\) is -1; it takes a number, at least 0 \(mm\)"),
        ("share", math.nan, "must be a finite number"), ("share", "inf", "must be a finite number"),
        ("share", None, "cannot be None"), ("share", True, "cannot be True"),
        ("word", "tow", r"cannot be 'tow' \(did you mean 'two'\?\); it takes one, two"), ("word", 1, "cannot be 1"),
        ("point", [1, 2], r"cannot be \[1, 2\]; it takes 3 numbers"), ("point", "1,x,3", "cannot be '1,x,3'"),
        ("point", 5, "cannot be 5"), ("point", [1, 2, math.inf], "must be a finite number"),
        ("index", [0, 1.5, 2], "takes 3 whole numbers"), ("index", [0, -1, 2], "is -1; it takes"),
        ("names", None, "cannot be None"), ("names", [1], "takes names"), ("limit", "x", "cannot be 'x'"),
    ],
)  # fmt: skip
def test_other_values_are_refused_by_name(name, value, words):
    with pytest.raises(MedXAIError, match=words) as refusal:
        Every(**{name: value})
    assert refusal.value.kind == "refused"


def test_about_says_what_a_form_needs():
    rows = {row.name: row for row in about(Every)}
    assert list(rows) == [f.name for f in dataclasses.fields(Every)]
    assert (rows["share"].title, rows["share"].option, rows["share"].unit, rows["share"].kind) == (
        "Share of all", "--share", "mm", float,
    )  # fmt: skip
    assert (rows["point"].kind, rows["point"].item, rows["point"].length, rows["point"].optional) == (
        tuple,
        float,
        3,
        True,
    )
    assert (rows["names"].item, rows["names"].length, rows["names"].optional) == (str, None, False)
    assert rows["limit"].kind is int and rows["limit"].optional and rows["limit"].advanced
    assert rows["word"].takes == "one, two" and rows["flag"].takes == "yes or no" and rows["names"].takes == "names"


@pytest.mark.parametrize("cls", METHODS.values())
def test_every_methods_settings_are_sound(cls):
    rows = about(cls)
    assert cls().to_json() == cls.from_json(json.loads(json.dumps(cls().to_json()))).to_json()
    assert len({row.option for row in rows}) == len(rows) and len({row.title for row in rows}) == len(rows)
    for row in rows:
        assert row.help.strip().endswith((".", ")")) and row.check(row.default) == row.default
        assert not (row.kind is float and row.decimals is None and row.increment is not None)


def test_the_documentation_has_a_row_for_each():
    text = documentation(DreamSettings)
    for row in about(DreamSettings):
        assert f"`{row.option}`" in text and row.help in text
    assert "`--normalize`, `--no-normalize`" in text and len(text.splitlines()) == len(about(DreamSettings)) + 2
    assert all(line.count("|") == 5 for line in text.splitlines())


def test_json_there_and_back():
    one = Every(point=(1, 2, 3), names=("x",), flag=False)
    assert Every.from_json(json.loads(json.dumps(one.to_json()))) == one
    with pytest.raises(MedXAIError, match=r"There is no setting 'cuont' \(did you mean 'count'\?\)"):
        Every.from_json({"cuont": 3})


@given(st.dictionaries(st.sampled_from([f.name for f in dataclasses.fields(Every)]),
                       st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
                                 st.lists(st.one_of(st.integers(), st.floats(), st.text(max_size=3)), max_size=4))))  # fmt: skip
def test_anything_is_taken_or_refused_never_a_crash(values):
    try:
        one = Every.from_json(values)
    except MedXAIError as refusal:
        assert "\n" not in refusal.message.replace("\\n", "")
        return
    assert Every.from_json(one.to_json()) == one


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Every().count = 4
