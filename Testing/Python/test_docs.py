"""What the README says of settings and files is what the code does."""

import re
from pathlib import Path

import pytest

from MedXAILib import settings

REPOSITORY = Path(__file__).resolve().parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("method", settings.METHODS)
def test_the_settings_table_is_the_one_in_the_code(method):
    found = re.search(rf"<!-- settings of {method}:.*?-->\n(.*?)\n<!-- end of settings -->", README, re.S).group(1)
    assert found == settings.documentation(settings.METHODS[method]), (
        f"put the output of settings.documentation of {method} between the marks in README.md"
    )


def test_every_picture_and_link_of_the_readme_exists():
    prose = re.sub(r"```.*?```", "", README, flags=re.S)
    targets = re.findall(r"\]\((?!https?:|#)([^)]+)\)", prose)
    assert any(t.endswith(".png") for t in targets)
    for target in targets:
        assert (REPOSITORY / target).exists(), target


def test_no_placeholder_is_left():
    assert not re.findall(r"^(SETTINGS|REAL|HARDWARE)$", README, re.M)


def test_the_house_in_the_readme_is_the_house():
    rooms = {p.name for p in (REPOSITORY / "MedXAILib").iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    for room in rooms:
        assert re.search(rf"^  {room}/? ", README, re.M), room
