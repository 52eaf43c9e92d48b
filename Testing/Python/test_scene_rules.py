"""The scene room: what it may use, and what it says where Slicer is missing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOM = ROOT / "MedXAILib" / "scene"


def test_only_the_host_knows_the_application():
    files = sorted(ROOM.glob("*.py"))
    assert len(files) > 8
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"\bslicer\.util\b", text), file
        assert not re.search(r"^\s*(import|from) (torch|SimpleITK|monai|qt|ctk)\b", text, re.MULTILINE), file
        if file.name != "host.py":
            assert not re.search(r"\bslicer\.(app|modules|mrmlScene)\b", text), file
            assert "getattr(slicer" not in text, file


@pytest.mark.parametrize("alien", ["None", "types.ModuleType('slicer')"])
@pytest.mark.parametrize("call", ["bundle.save_scene(None, [], [], 'x.mrb')", "report.report(None, [], 'x.png')"])
def test_without_slicer_one_sentence(alien, call):
    """Neither installed, nor PyPI's package of the same name."""
    code = (
        f"import sys, types; sys.modules['slicer'] = {alien}\n"
        "from MedXAILib.errors import MedXAIError\n"
        "from MedXAILib.scene import bundle, report\n"
        f"try:\n    {call}\n"
        "except MedXAIError as error:\n    print(error.kind, error.message)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.startswith("missing Scenes and reports need 3D Slicer's libraries"), done.stderr
    assert done.stdout.count("\n") == 1
