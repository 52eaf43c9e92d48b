"""Reference distributions: from folders and from memory, exact over their own cases, honest about what is missing."""

import json
import math
import statistics

import numpy as np
import pytest

from MedXAILib.cases import pairs
from MedXAILib.errors import MedXAIError
from MedXAILib.features import Reference, compute, reference
from MedXAILib.volume import Volume

NAMES = ["firstorder_Mean", "glcm_Contrast", "shape_Sphericity", "line_texture"]
LINE = ["line_texture"]  # needs no pyradiomics


def case(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    matrix = np.diag([1.0, 1.5, 2.0, 1.0])
    shape = rng.integers(10, 16, 3)
    image = Volume((rng.normal(size=shape) * 60 * scale + seed).astype(np.float32), matrix, unit="HU")
    mask = np.zeros(shape, np.uint8)
    mask[2:-2, 2:-2, 2:-2] = rng.random([n - 4 for n in shape]) > 0.2
    return image, Volume(mask, matrix)


def cases(number):
    return [(f"case-{seed}", *case(seed)) for seed in range(number)]


@pytest.fixture
def write():
    io = pytest.importorskip("MedXAILib.io")

    def to(path, volume):
        path.parent.mkdir(parents=True, exist_ok=True)
        io.write_volume(path, volume)

    return to


def last(steps):
    """The steps of a generator, and what it returns."""
    seen = []
    while True:
        try:
            seen.append(next(steps))
        except StopIteration as end:
            return seen, end.value


def test_its_own_cases_have_mean_0_and_sd_1():
    pytest.importorskip("radiomics")
    found = Reference.from_cases(cases(7), NAMES, bin_width=20)
    assert found.names == NAMES and found.cases == [f"case-{n}" for n in range(7)] and not found.skipped
    for name in NAMES:
        own = [compute(*case(seed), NAMES, bin_width=20)[name] for seed in range(7)]
        assert found.values[name] == own and found.n[name] == 7
        z = found.z(name, np.array(own))
        assert abs(statistics.fmean(z)) < 1e-12 and abs(statistics.stdev(z) - 1) < 1e-12
        assert found.z(name, own[0]) == z[0]
    assert found.options["bin_width"] == 20 and found.options["ndim"] == 3 and found.options["unit"] == "HU"


def test_hard_numbers_keep_their_digits():
    """A large mean with a small spread: the one-pass formula would lose every digit."""
    image, mask = case(0)
    offsets = (1e9, 1e9 + 1, 1e9 + 2)
    found = Reference.from_cases(
        [(str(v), image.with_array(np.full(image.shape, v)), mask) for v in offsets], ["line_texture"]
    )
    assert found.unusable == {"line_texture": "the same value in every case"}  # a flat image has no line
    pytest.importorskip("radiomics")
    found = Reference.from_cases(
        [(str(v), image.with_array(np.full(image.shape, v)), mask) for v in offsets], ["firstorder_Mean"]
    )
    assert found.mean["firstorder_Mean"] == 1e9 + 1 and found.sd["firstorder_Mean"] == 1
    assert [found.z("firstorder_Mean", v) for v in offsets] == [-1, 0, 1]


def test_written_and_read_again_it_is_the_same(tmp_path):
    found = Reference.from_cases(cases(3), LINE, line_angle=45, line_length=5)
    found.mean["x"], found.sd["x"], found.n["x"], found.values["x"] = math.nan, math.nan, 0, [math.nan] * 3
    found.skipped["bad"] = "no reason"
    path = tmp_path / "reference.json"
    found.write(path)
    again = Reference.read(path)
    assert again.options == found.options and again.options["line_angle"] == 45
    assert again.cases == found.cases and again.skipped == found.skipped and again.notes == found.notes
    assert again.mean["line_texture"] == found.mean["line_texture"] and math.isnan(again.mean["x"])
    assert again.sd["line_texture"] == found.sd["line_texture"] and again.n == found.n
    assert again.values["line_texture"] == found.values["line_texture"]
    assert "NaN" not in path.read_text(encoding="utf-8") and [p.name for p in tmp_path.iterdir()] == ["reference.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"kind": "medxai-reference", "schema": 1}'])
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(MedXAIError, match="not a reference distribution"):
        Reference.read(tmp_path / "other.json")


def test_refusals_name_what_is_wrong(tmp_path):
    with pytest.raises(MedXAIError, match="cannot be read"):
        Reference.read(tmp_path / "absent.json")
    (tmp_path / "later.json").write_text('{"kind": "medxai-reference", "schema": 99}')
    with pytest.raises(MedXAIError, match="another version"):
        Reference.read(tmp_path / "later.json")
    with pytest.raises(MedXAIError, match="no folder"):
        last(reference(tmp_path / "absent"))
    with pytest.raises(MedXAIError, match="holds no image and mask pair"):
        last(reference(tmp_path))
    with pytest.raises(MedXAIError, match="firstorder_Mean"):
        Reference.from_cases(cases(2), ["firstorder_Meen"])
    with pytest.raises(MedXAIError, match="cannot be written"):
        Reference.from_cases(cases(2), LINE).write(tmp_path / "absent" / "reference.json")


def test_one_case_or_no_spread_gives_nan_and_is_told():
    one = Reference.from_cases(cases(1), LINE)
    assert (
        one.n == {"line_texture": 1} and math.isnan(one.sd["line_texture"]) and math.isnan(one.z("line_texture", 1.0))
    )
    assert one.unusable == {"line_texture": "1 case with a value; two are needed"}
    same = Reference.from_cases([(name, *case(3)) for name in "abc"], LINE)
    assert same.sd["line_texture"] == 0 and math.isnan(same.z("line_texture", 1.0))
    assert same.unusable == {"line_texture": "the same value in every case"}
    assert same.notes == ["'line_texture' cannot normalise: the same value in every case."]
    assert math.isnan(same.z("unknown", 3.0)) and np.isnan(same.z("unknown", np.zeros(4))).all()


def test_bad_cases_are_skipped_counted_and_told():
    pytest.importorskip("radiomics")
    image, mask = case(9)
    empty = mask.with_array(np.zeros_like(mask.array))
    flat = image.crop((0, 0, 0), (1, *image.shape[1:]))
    given = [*cases(3), ("empty", image, empty), ("flat", flat, mask.crop((0, 0, 0), (1, *image.shape[1:])))]
    found = Reference.from_cases(given, NAMES)
    assert found.cases == ["case-0", "case-1", "case-2"] and set(found.skipped) == {"empty", "flat"}
    assert found.skipped["empty"].startswith("empty") and "2 dimensions" in found.skipped["flat"]
    with pytest.raises(MedXAIError, match="None of 1 cases could be used"):
        Reference.from_cases([("empty", image, empty)], NAMES)
    wild = [(name, *case(seed, 1e9)) for seed, name in enumerate("ab")]
    found = Reference.from_cases([*cases(2), *wild], NAMES)
    assert found.n["glcm_Contrast"] == 2 and found.n["firstorder_Mean"] == 4
    assert any(note.startswith("capped") and "cases: a, b" in note for note in found.notes)


def test_features_made_otherwise_are_told_apart():
    found = Reference.from_cases(cases(2), LINE)
    assert found.differences({"bin_width": 25.0, "ndim": 3, "line_angle": 135.0, "line_length": 9, "unit": "HU"}) == []
    told = found.differences({"bin_width": 10.0, "ndim": 2})
    assert len(told) == 2 and "bin width 25.0, this run has 10.0" in told[1]


def test_the_layouts_of_a_folder(tmp_path, write):
    image, mask = case(0)
    layouts = {
        "beside": [
            "a.nii.gz",
            "a_mask.nii.gz",
            "b_image.nrrd",
            "b_label.nrrd",
            "c.nrrd",
            "c_seg.nii.gz",
            "lonely.nrrd",
        ],
        "folders": ["one/image.nrrd", "one/mask.nrrd", "two/image.nii.gz", "two/label.nii.gz", "three/image.nrrd"],
        "across": ["images/x.nrrd", "masks/x.nii.gz", "images/y.nrrd", "masks/y_mask.nrrd", "images/z.nrrd"],
        "labels": ["images/x.nrrd", "labels/x.nrrd"],
    }
    for folder, files in layouts.items():
        for name in files:
            path = tmp_path / folder / name
            masked = any(word in name for word in ("_mask", "_label", "_seg", "/mask", "/label", "masks", "labels"))
            write(path, mask if masked else image)
    names = {folder: [name for name, _, _ in pairs(tmp_path / folder)] for folder in layouts}
    assert names == {"beside": ["a", "b", "c"], "folders": ["one", "two"], "across": ["x", "y"], "labels": ["x"]}
    _, first, second = pairs(tmp_path / "beside")[1]
    assert (first.name, second.name) == ("b_image.nrrd", "b_label.nrrd")


def test_a_folder_gives_the_reference_of_its_cases_step_by_step(tmp_path, write):
    pytest.importorskip("radiomics")
    for seed in range(4):
        image, mask = case(seed)
        write(tmp_path / f"p{seed}.nrrd", image)
        labels = mask.array * 3
        labels[0, 0, 0] = 1  # another label, which is not asked for
        write(tmp_path / f"p{seed}_mask.nrrd", mask.with_array(labels))
    (tmp_path / "p2.nrrd").write_bytes(b"NRRD0004\nbroken")
    steps, found = last(reference(tmp_path, NAMES, segment="3", bin_width=20))
    assert found.cases == ["p0", "p1", "p3"] and list(found.skipped) == ["p2"]
    assert [step.stage for step in steps][:2] == ["Case 1 of 4: p0", "Case 2 of 4: p1"]
    assert steps[-1].fraction == 1.0 and "3 cases, 1 skipped" in steps[-1].stage
    memory = Reference.from_cases([(f"p{seed}", *case(seed)) for seed in (0, 1, 3)], NAMES, bin_width=20)
    for name in NAMES:
        assert found.mean[name] == pytest.approx(memory.mean[name], rel=1e-6)
    assert Reference.from_folder(tmp_path, NAMES, segment="3", bin_width=20).mean == found.mean
    with pytest.raises(MedXAIError, match="None of 4 cases"):
        last(reference(tmp_path, NAMES, segment="7"))


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "reference.json"
    found = Reference.from_cases(cases(2), LINE)
    found.write(path)
    before = path.read_text(encoding="utf-8")

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(json, "dump", stop)
    with pytest.raises(KeyboardInterrupt):
        found.write(path)
    assert path.read_text(encoding="utf-8") == before and len(list(tmp_path.iterdir())) == 1
