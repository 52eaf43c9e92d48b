"""The model package: every field, every refusal, bundles read literally, folders written whole or not at all."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest

from MedXAILib.errors import MedXAIError
from MedXAILib.package import Intensity, Package, from_json, sha256, write_package

GOOD = {
    "schema": 1,
    "name": "Liver tumour U-Net",
    "task": "segmentation",
    "weights": "weights.safetensors",
    "network": {"name": "UNet", "arguments": {"spatial_dims": 3, "channels": [16, 32]}},
    "input": {
        "spatial_dims": 3,
        "channels": ["CT"],
        "orientation": "RAS",
        "spacing": [1.5, 1.5, 2.0],
        "size": None,
        "multiple_of": 4,
        "intensity": {"kind": "window", "low": -160, "high": 240},
    },
    "output": {"labels": ["background", "tumour"], "activation": "softmax"},
    "license": "MIT",
}
INTENSITIES = [
    {"kind": "window", "low": -1, "high": 2.5},
    {"kind": "percentile", "low": 0.5, "high": 99.5, "clip": True},
    {"kind": "minmax", "per_slice": True},
    {"kind": "zscore", "nonzero": True},
    {"kind": "linear", "multiply": 0.5, "add": -2, "low": None, "high": 3, "range": "uint8"},
    {"kind": "none"},
]


def folder_of(tmp_path, fields=None, **changes):
    fields = copy.deepcopy(GOOD if fields is None else fields) | changes
    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    (folder / "weights.safetensors").write_bytes(b"numbers")
    fields.setdefault("sha256", sha256(folder / "weights.safetensors"))
    (folder / "model.json").write_text(json.dumps(fields))
    return folder


def refusal(folder) -> str:
    """The one sentence that `Package.read` refuses with."""
    with pytest.raises(MedXAIError) as caught:
        Package.read(folder)
    message = caught.value.message
    assert message.endswith(".") and "\n" not in message and len(message) < 420, message
    return message


def changed(path: str, value) -> dict:
    """The good fields with one entry (``input.spacing``) set, or removed where ``value`` is `...`."""
    fields = copy.deepcopy(GOOD)
    part, *names = fields, *path.split(".")
    for name in names[:-1]:
        part = part[name]
    if value is ...:
        del part[names[-1]]
    else:
        part[names[-1]] = value
    return fields


def test_reads_every_field(tmp_path):
    package = Package.read(folder_of(tmp_path))
    assert (package.name, package.task, package.format, package.is_program) == (
        GOOD["name"],
        "segmentation",
        "safetensors",
        False,
    )
    assert package.input.multiple_of == (4, 4, 4) and package.input.spacing == (1.5, 1.5, 2.0)
    assert package.input.intensity == (Intensity("window", -160, 240),)
    assert package.output.labels == ("background", "tumour") and package.about == {"license": "MIT"}
    assert package.verify() == sha256(package.weights_path)
    assert from_json(package.to_json(), package.folder) == package
    package = Package.read(folder_of(tmp_path, changed("input.multiple_of", [2, 4, 8])))
    assert package.input.multiple_of == (2, 4, 8) and package.to_json()["input"]["multiple_of"] == [2, 4, 8]


@pytest.mark.parametrize("intensity", [*INTENSITIES, INTENSITIES])
def test_intensities(tmp_path, intensity):
    fields = changed("input.intensity", intensity)
    if isinstance(intensity, list):
        fields["input"]["channels"] = [f"c{n}" for n in range(len(intensity))]
    package = Package.read(folder_of(tmp_path, fields))
    assert len(package.input.intensity) == len(package.input.channels)
    assert from_json(package.to_json(), package.folder) == package


def test_two_dimensions_and_what_may_be_left_out(tmp_path):
    about = {
        "spatial_dims": 2,
        "channels": ["CR"],
        "orientation": "PL",
        "size": [64, 32],
        "fit": "pad",
        "intensity": {"kind": "none"},
    }
    package = Package.read(folder_of(tmp_path, changed("input", about)))
    assert package.input.size == (64, 32) and package.input.spacing is None and package.input.multiple_of == (1, 1)


@pytest.mark.parametrize("path", ["name", "task", "weights", "sha256", "input", "output", "schema", "network",
                                  "input.spatial_dims", "input.channels", "input.intensity", "output.labels", "output.activation",
                                  "network.name", "input.intensity.low", "input.intensity.kind"])  # fmt: skip
def test_a_missing_field_is_named(tmp_path, path):
    fields = changed(path, ...) if path != "sha256" else copy.deepcopy(GOOD)
    folder = folder_of(tmp_path, fields)
    if path == "sha256":
        (folder / "model.json").write_text(json.dumps(fields))
    assert f"'{path.split('.')[-1]}'" in refusal(folder)


@pytest.mark.parametrize(
    "path, value, words",
    [
        ("colour", 1, "unknown field 'colour'"),
        ("licence", "MIT", "did you mean 'license'?"),
        ("input.orientaton", "RAS", "did you mean 'orientation'?"),
        ("input.intensity.clip", True, "unknown field 'clip'"),
        ("output.activations", "softmax", "did you mean 'activation'?"),
        ("network.args", {}, "unknown field 'args'"),
        ("schema", 2, "schema 1 only"),
        ("schema", True, "'schema'"),
        ("name", "  ", "takes text"),
        ("name", 3, "takes text"),
        ("task", "segmentations", "did you mean 'segmentation'?"),
        ("task", ["segmentation"], "takes segmentation, classification, inpainting or explanation"),
        ("description", 5, "takes text"),
        ("weights", "../weights.pt", "bare name"),
        ("weights", "C:\\weights.pt", "bare name"),
        ("weights", "sub/weights.pt", "bare name"),
        ("weights", ".pt", "bare name"),
        ("weights", "weights.pth", ".safetensors"),
        ("weights", "other.safetensors", "not there"),
        ("weights", None, "bare name"),
        ("weights", "program.ts", "remove it"),
        ("sha256", "abc", "64 hexadecimal digits"),
        ("sha256", "g" * 64, "64 hexadecimal digits"),
        ("network", ["UNet"], "an object in braces"),
        ("network.arguments", [1], "an object in braces"),
        ("input", 3, "an object in braces"),
        ("input.spatial_dims", 4, "takes 2 or 3"),
        ("input.spatial_dims", True, "takes 2 or 3"),
        ("input.channels", [], "list of channel names"),
        ("input.channels", ["T1", "T1"], "twice"),
        ("input.orientation", "RLS", "one of R/L"),
        ("input.orientation", "RA", "3 letters"),
        ("input.orientation", "ras", "3 letters"),
        ("input.orientation", 3, "3 letters"),
        ("input.spacing", [1, 1], "3 positive numbers"),
        ("input.spacing", [1, 1, 0], "3 positive numbers"),
        ("input.spacing", 1.5, "3 positive numbers"),
        ("input.size", [64, 64, 64], "'fit'"),
        ("input.size", [64, 64, 1.5], "whole numbers"),
        ("input.fit", "pad", "without 'size'"),
        ("input.multiple_of", 0, "whole number from 1"),
        ("input.multiple_of", "8", "whole number from 1"),
        ("input.multiple_of", [8, 8], "3 positive whole numbers"),
        ("input.intensity", {"kind": "windw", "low": 0, "high": 1}, "did you mean 'window'?"),
        ("input.intensity", None, "'kind'"),
        ("input.intensity", [{"kind": "none"}] * 2, "one per channel"),
        ("input.intensity.low", "0", "finite number"),
        ("input.intensity.low", 500, "smaller one"),
        ("input.intensity.range", "uint16", "uint8"),
        ("input.intensity.per_slice", "yes", "true or false"),
        ("input.intensity", {"kind": "percentile", "low": -1, "high": 99}, "between 0 and 100"),
        ("input.intensity", {"kind": "linear", "multiply": 0, "add": 1}, "not 0"),
        ("output.labels", ["a", "a"], "twice"),
        ("output.labels", "a", "list of label names"),
        ("output.labels", ["only"], "at least two labels"),
        ("output.activation", "relu", "softmax, sigmoid or none"),
        ("output.key", 1.5, "a name or a whole number"),
    ],
)
def test_a_wrong_value_is_refused(tmp_path, path, value, words):
    assert words in refusal(folder_of(tmp_path, changed(path, value)))


def test_sizes_that_contradict_each_other(tmp_path):
    fields = changed("input.size", [66, 64, 64])
    fields["input"]["fit"] = "window"
    assert "not a multiple" in refusal(folder_of(tmp_path, fields))


@pytest.mark.parametrize(
    "content, words",
    [
        ('{"schema": 1,', "line 1"),
        ("[1]", "one JSON object"),
        ('{"schema": 1, "schema": 1}', "twice"),
        ('{"schema": NaN}', "not a number in JSON"),
        (b"\xff\xfe\x00", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_what_is_not_json(tmp_path, content, words):
    folder = folder_of(tmp_path)
    (folder / "model.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert words in refusal(folder)


def test_folders_without_a_model(tmp_path):
    assert "no model folder" in refusal(tmp_path / "nowhere")
    assert "no model.json" in refusal(tmp_path)


def test_changed_weights_are_noticed(tmp_path):
    folder = folder_of(tmp_path)
    (folder / "weights.safetensors").write_bytes(b"other numbers")
    with pytest.raises(MedXAIError, match="not the ones its model"):
        Package.read(folder).verify()


def test_write_makes_a_whole_folder_or_none(tmp_path):
    source = tmp_path / "w.bin"
    source.write_bytes(b"numbers")
    package = write_package(tmp_path / "a", GOOD, source)
    assert package.verify() == sha256(source) and package.name == GOOD["name"]
    assert write_package(tmp_path / "b" / "c", GOOD, lambda path: path.write_bytes(b"1")).verify()
    again = package.write(tmp_path / "d")
    assert again.to_json() == package.to_json()
    with pytest.raises(MedXAIError, match="exists already"):
        write_package(tmp_path / "a", GOOD, source)
    with pytest.raises(MedXAIError, match="unknown field"):
        write_package(tmp_path / "e", GOOD | {"colour": 1}, source)

    def disk_full(path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(MedXAIError, match="No space left") as caught:
        write_package(tmp_path / "e", GOOD, disk_full)
    assert caught.value.kind == "disk"
    with pytest.raises(KeyboardInterrupt):
        write_package(tmp_path / "e", GOOD, lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "d", "w.bin"]


# ---- MONAI bundles ---------------------------------------------------------------------------------------------------

METADATA = {
    "name": "Spleen",
    "network_data_format": {
        "inputs": {"image": {"num_channels": 1, "spatial_shape": [96, 96, 96], "channel_def": {"0": "CT"}}},
        "outputs": {"pred": {"num_channels": 2, "channel_def": {"0": "background", "1": "spleen"}}},
    },
}
INFERENCE = {
    "imports": ["$import os"],
    "network_def": {"_target_": "monai.networks.nets.UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2,
                    "channels": [4, 8], "strides": [2], "norm": "batch"},
    "network": "$@network_def.to(@device)",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "@image"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
            {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 1.5, 2.0], "mode": "bilinear"},
            {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -57, "a_max": 164, "b_min": 0, "b_max": 1, "clip": True},
        ],
    },
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [96, 96, 96]},
    "postprocessing": {"_target_": "Compose", "transforms": [{"_target_": "Activationsd", "keys": "pred", "softmax": True}]},
}  # fmt: skip


def bundle_of(tmp_path, config=INFERENCE, metadata=METADATA, weights="model.pt"):
    folder = tmp_path / "spleen"
    for name in ("configs", "models"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    (folder / "models" / weights).write_bytes(b"numbers")
    return folder


def test_a_bundle_is_read_literally(tmp_path):
    package = Package.read(bundle_of(tmp_path))
    assert package.network.name == "UNet" and package.network.arguments["channels"] == [4, 8]
    assert "_target_" not in package.network.arguments
    assert package.weights_path.is_file() and package.verify() == package.sha256
    assert package.input.orientation == "RAS" and package.input.size == (96, 96, 96) and package.input.fit == "window"
    assert package.input.intensity == (Intensity("window", -57, 164),)
    assert package.output.labels == ("background", "spleen") and package.output.activation == "softmax"
    copied = package.write(tmp_path / "copy")
    assert copied.input == package.input and copied.verify() == package.sha256


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda c: c["network_def"].update(_target_="scripts.mine.Net"), "not one of MONAI's"),
        (lambda c: c["network_def"].update(_target_="os.system"), "not one of MONAI's"),
        (lambda c: c["network_def"].update(in_channels="$1 + 1"), "expression"),
        (lambda c: c["network_def"].update(channels=["@n"]), "expression"),
        (lambda c: c.pop("network_def"), "network_def"),
        (lambda c: c["preprocessing"]["transforms"].pop(2), "orientation"),
        (lambda c: c["preprocessing"]["transforms"][3].update(pixdim="$@spacing"), "expression"),
        (lambda c: c["preprocessing"]["transforms"].append({"_target_": "RandFlipd"}), "follows the intensities"),
        (lambda c: c["preprocessing"]["transforms"].insert(2, {"_target_": "CropForegroundd"}), "CropForeground"),
        (lambda c: c["postprocessing"].update(transforms=[]), "neither softmax nor sigmoid"),
        (lambda c: c["inferer"].update(roi_size="@roi"), "expression"),
        (lambda c: c.update(preprocessing="$something()"), "not a list of transforms"),
    ],
)
def test_what_cannot_be_read_literally_is_refused(tmp_path, change, words):
    config = copy.deepcopy(INFERENCE)
    change(config)
    message = refusal(bundle_of(tmp_path, config))
    assert words in message and "write a model.json" in message


def test_the_package_needs_no_torch():
    """The noun is read by Slicer's process, where torch must not be."""
    root = Path(__file__).resolve().parents[2]
    code = "import sys, MedXAILib.package, MedXAILib.bundle; assert not {'torch', 'monai', 'scipy'} & set(sys.modules), 'heavy'"
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=60)


def test_real_packages(data):
    folders = sorted((data / "models").iterdir())
    assert len(folders) >= 5
    for folder in folders:
        package = Package.read(folder)
        assert package.verify() == package.sha256 and package.is_program
