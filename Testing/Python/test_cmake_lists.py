"""The extension as Slicer packages it: every file listed, nothing where Slicer would take it for a module."""

import ast
import importlib.util
import json
import re
import struct
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = (
    "MedXAIModels", "MedXAIDeepDream", "MedXAISegmentationAbility", "MedXAIFeatureBackProjection", "MedXAICounterfactualImpact",
    "MedXAICycleExplanation",
)  # fmt: skip
FIRST = 'if importlib.util.find_spec("MedXAILib") is None: sys.path.append(str(Path(__file__).resolve().parents[2]))'
# What a module file and the panels may import before anybody has opened a panel (Slicer starts without numpy).
LIGHT = {"importlib", "sys", "pathlib", "slicer", "qt", "ctk", "vtk", "__future__"}


def load_lists():
    spec = importlib.util.spec_from_file_location("cmake_lists", ROOT / "Testing" / "cmake_lists.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


lists = load_lists()


@pytest.mark.parametrize("place, variable", sorted(lists.wanted()))
def test_every_file_is_listed(place, variable):
    wanted, found = lists.wanted()[place, variable], lists.listed(place, variable)
    assert found == wanted, "run: python Testing/cmake_lists.py"
    folder = (ROOT / place).parent
    for name in found:
        assert (folder / name.replace("${MODULE_NAME}", folder.name)).is_file(), name


def test_the_lists_are_not_empty():
    wanted = lists.wanted()
    assert "panel/form.py" in wanted["MedXAILib/CMakeLists.txt", "MODULE_PYTHON_SCRIPTS"]
    assert "volume.py" in wanted["MedXAILib/CMakeLists.txt", "MODULE_PYTHON_SCRIPTS"]
    icons = wanted["MedXAI/MedXAIDeepDream/CMakeLists.txt", "MODULE_PYTHON_RESOURCES"]
    assert "Resources/Icons/${MODULE_NAME}.png" in icons


def test_rewriting_mends_a_list(tmp_path, monkeypatch, capsys):
    (tmp_path / "MedXAILib").mkdir()
    (tmp_path / "MedXAILib" / "a.py").write_text("")
    (tmp_path / "MedXAILib" / "CMakeLists.txt").write_text("set(MODULE_PYTHON_SCRIPTS\n  gone.py\n  )\n")
    wanted = {("MedXAILib/CMakeLists.txt", "MODULE_PYTHON_SCRIPTS"): ["a.py"]}
    monkeypatch.setattr(lists, "ROOT", tmp_path)
    monkeypatch.setattr(lists, "wanted", lambda: wanted)
    assert lists.main(["--check"]) == 1
    assert lists.main([]) == 0
    assert lists.main(["--check"]) == 0
    assert lists.listed("MedXAILib/CMakeLists.txt", "MODULE_PYTHON_SCRIPTS") == ["a.py"]


def test_no_python_file_lies_at_the_root():
    names = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert names and [n for n in names if "/" not in n] == []


def test_every_module_is_added_and_has_its_files():
    text = (ROOT / "CMakeLists.txt").read_text("utf-8")
    folders = {p.name for p in (ROOT / "MedXAI").iterdir() if p.is_dir() and (p / "CMakeLists.txt").exists()}
    assert folders == set(MODULES)
    for name in MODULES:
        assert f"add_subdirectory(MedXAI/{name})" in text
        assert (ROOT / "MedXAI" / name / f"{name}.py").is_file()
        tests = (ROOT / "MedXAI" / name / "Testing" / "CMakeLists.txt").read_text("utf-8")
        for script in re.findall(r"SCRIPT (\S+)\)", tests):
            assert (ROOT / "MedXAI" / name / "Testing" / script).is_file(), script


@pytest.mark.parametrize("name", MODULES)
def test_module_file_finds_the_library_first(name):
    source = (ROOT / "MedXAI" / name / f"{name}.py").read_text("utf-8")
    tree = ast.parse(source)
    after = [node for node in tree.body[1:] if not isinstance(node, (ast.Import, ast.ImportFrom))]
    assert ast.unparse(after[0]) == ast.unparse(ast.parse(FIRST).body[0])
    before = [node for node in tree.body if node.lineno < after[0].lineno][1:]
    assert {ast.unparse(node) for node in before} == {"import importlib.util", "import sys", "from pathlib import Path"}
    classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    assert {name, f"{name}Widget", f"{name}Test"} <= classes
    assert len(source.splitlines()) < 150, "a module file is thin; the panel belongs into MedXAILib/panel"


@pytest.mark.parametrize("name", MODULES)
def test_module_file_imports_nothing_heavy(name):
    tree = ast.parse((ROOT / "MedXAI" / name / f"{name}.py").read_text("utf-8"))
    assert imported(tree.body) <= LIGHT


@pytest.mark.parametrize("path", sorted((ROOT / "MedXAILib" / "panel").glob("*.py")), ids=lambda p: p.name)
def test_panels_import_nothing_heavy(path):
    tree = ast.parse(path.read_text("utf-8"))
    heavy = {"torch", "monai", "radiomics", "captum", "SimpleITK", "scipy", "pandas", "matplotlib"}
    assert not imported(ast.walk(tree)) & heavy
    assert not imported(tree.body) & (heavy | {"numpy"})


def imported(nodes) -> set[str]:
    """Top-level names of every absolute import among ``nodes``."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


def test_top_level_cmake():
    text = (ROOT / "CMakeLists.txt").read_text("utf-8")
    assert re.search(r"^project\(MedXAI\)$", text, re.MULTILINE)
    for name in ("HOMEPAGE", "CONTRIBUTORS", "DESCRIPTION", "ICONURL", "SCREENSHOTURLS", "DEPENDS"):
        assert re.search(rf'^set\(EXTENSION_{name} "[^"]+"\)', text, re.MULTILINE), name
    order = [
        "find_package(Slicer REQUIRED)", "include(${Slicer_USE_FILE})", "add_subdirectory(MedXAILib)",
        "include(${Slicer_EXTENSION_GENERATE_CONFIG})", "include(${Slicer_EXTENSION_CPACK})",
    ]  # fmt: skip
    assert sorted(order, key=text.index) == order


def test_index_entry_follows_the_catalog_schema():
    """The fields of slicer-extension-catalog-entry-schema-v1.0.1 (no others are allowed)."""
    raw = (ROOT / "MedXAI.json").read_bytes()
    assert b"\r" not in raw
    entry = json.loads(raw)
    types = {
        "$schema": str, "category": str, "scm_url": str, "scm_revision": str, "scm_type": str,
        "build_dependencies": list, "build_subdirectory": str, "enabled": bool, "tier": int,
    }  # fmt: skip
    assert {"$schema", "category", "scm_url"} <= set(entry) <= set(types)
    assert all(type(value) is types[name] for name, value in entry.items())
    assert entry["$schema"].endswith("/slicer-extension-catalog-entry-schema-v1.0.1.json#")
    assert 1 <= entry.get("tier", 1) <= 5 and entry.get("scm_type", "git") in ("git", "local")
    assert all(isinstance(name, str) for name in entry["build_dependencies"])
    assert entry["scm_url"].endswith("/SlicerMedXAI.git")
    depends = re.search(r'EXTENSION_DEPENDS "([^"]*)"', (ROOT / "CMakeLists.txt").read_text("utf-8")).group(1)
    assert entry["build_dependencies"] == ([] if depends == "NA" else depends.split())


@pytest.mark.parametrize("path", ["Resources/MedXAI.png"] + [f"MedXAI/{n}/Resources/Icons/{n}.png" for n in MODULES])
def test_icons_are_128_pixels_square(path):
    data = (ROOT / path).read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (128, 128)
    assert len(data) < 30_000
