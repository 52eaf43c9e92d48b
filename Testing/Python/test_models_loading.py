"""Loading: every format computes the same, nothing runs that was not trusted, and each refusal is one clear sentence."""

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from MedXAILib.errors import MedXAIError
from MedXAILib.models import describe, load, memory
from MedXAILib.models import loading as loading_module
from MedXAILib.models.loading import MONAI_NETWORKS, pick_device
from MedXAILib.models.model import CLAMP, Model
from MedXAILib.models.networks import NETWORKS, MeshNet, PlainUNet
from MedXAILib.package import Network, Package, sha256, write_package

ARGUMENTS = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "filters": 4, "levels": 2}
FIELDS = {
    "name": "made here",
    "task": "segmentation",
    "input": {"spatial_dims": 2, "channels": ["CT"], "multiple_of": 2, "intensity": {"kind": "none"}},
    "output": {"labels": ["background", "liver"], "activation": "softmax"},
}


def network():
    torch.manual_seed(3)
    module = PlainUNet(**ARGUMENTS).eval()
    for one in module.modules():
        if isinstance(one, nn.BatchNorm2d):
            nn.init.uniform_(one.running_mean)
            nn.init.uniform_(one.running_var, 0.5, 2)
    return module


def save(module, path):
    """The weights of ``module`` in the format that the name of ``path`` says."""
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(module.state_dict(), path)
    elif path.suffix == ".pt":
        torch.save(module.state_dict(), path)
    elif path.suffix == ".ts":
        torch.jit.script(module).save(str(path))
    else:
        size = {n: 2 * torch.export.Dim(f"n{n}", min=4, max=64) for n in (2, 3)}
        torch.export.save(torch.export.export(module, (torch.zeros(1, 1, 16, 24),), dynamic_shapes=(size,)), path)


def package_of(folder, suffix, module=None, write=None, **changes):
    module = network() if module is None else module
    fields = copy.deepcopy(FIELDS) | {"weights": "weights" + suffix} | changes
    if suffix in (".safetensors", ".pt"):
        fields.setdefault("network", {"name": "PlainUNet", "arguments": ARGUMENTS})
    return write_package(folder, fields, write or (lambda path: save(module, path)))


def refusal(action, kind="refused") -> str:
    with pytest.raises(MedXAIError) as caught:
        action()
    message = caught.value.message
    assert caught.value.kind == kind and message.endswith(".") and "\n" not in message, message
    return message


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".ts", ".pt2"])
def test_every_format_computes_the_same(tmp_path, suffix):
    package = package_of(tmp_path / "m", suffix)
    before = torch.get_rng_state()
    model = load(tmp_path / "m", "cpu", {package.sha256.upper()})
    assert torch.equal(torch.get_rng_state(), before), "building a network drew random numbers"
    x = torch.rand(1, 1, 16, 24, requires_grad=True)
    torch.testing.assert_close(model.logits(x), network()(x))
    gradient = torch.autograd.grad(model.logits(x)[0, 1].sum(), x)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(network()(x)[0, 1].sum(), x)[0])
    assert model.parameters() == sum(p.numel() for p in network().parameters())
    assert len([one for one in model.layers() if one.kind == "convolution"]) == 7
    assert [one.kind for one in model.layers()].count("transposed convolution") == 1
    graph = model.graph(x.detach())
    assert torch.equal(graph(x.detach()), model.module(x.detach())) and model.graph(x.detach()) is graph


@pytest.mark.parametrize("suffix", [".ts", ".pt2"])
def test_a_program_needs_trust(tmp_path, suffix, monkeypatch):
    package = package_of(tmp_path / "m", suffix)
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: pytest.fail("an untrusted program was loaded"))
    monkeypatch.setattr(torch.export, "load", lambda *a, **k: pytest.fail("an untrusted program was loaded"))
    for trusted in ((), {"0" * 64}, [package.name]):
        message = refusal(lambda trusted=trusted: load(tmp_path / "m", "cpu", trusted), "untrusted")
        assert package.sha256 in message and "--trust" in message
    found = describe(tmp_path / "m")
    assert found["trusted"] is False and found["layers"] is None and found["labels"] == ["background", "liver"]


def test_trust_is_given_to_bytes_not_to_names(tmp_path):
    """A program that was exchanged after it was trusted does not run, though its model.json was adapted."""
    trusted = {package_of(tmp_path / "m", ".ts").sha256}
    save(MeshNet(2, 1, 2, 2, (1,)).eval(), tmp_path / "m" / "weights.ts")
    assert "not the ones" in refusal(lambda: load(tmp_path / "m", "cpu", trusted))
    fields = json.loads((tmp_path / "m" / "model.json").read_text(encoding="utf-8"))
    fields["sha256"] = sha256(tmp_path / "m" / "weights.ts")
    (tmp_path / "m" / "model.json").write_text(json.dumps(fields))
    refusal(lambda: load(tmp_path / "m", "cpu", trusted), "untrusted")


@pytest.mark.parametrize("suffix", [".ts", ".pt2"])
@pytest.mark.parametrize(
    "module", [nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)), nn.Sequential(nn.Conv2d(1, 2, 1), nn.Dropout())]
)
def test_programs_exported_in_training_mode(tmp_path, suffix, module):
    module.train()

    def write(path):
        if suffix == ".ts":
            torch.jit.trace(module, torch.zeros(1, 1, 16, 24), check_trace=False).save(str(path))
        else:
            save(module, path)

    package = package_of(tmp_path / "m", suffix, write=write)
    assert "network.eval()" in refusal(lambda: load(tmp_path / "m", "cpu", {package.sha256}))


class Evil:
    def __reduce__(self):
        return (exec, ("import builtins; builtins.medxai_was_here = True",))


def test_weights_that_run_code_are_refused(tmp_path):
    for number, content in enumerate(
        (Evil(), {"w": Evil()}, network(), {"state_dict": {"w": 3}}, [torch.zeros(1)], {}, {"a": {"b": torch.zeros(1)}})
    ):
        package_of(tmp_path / str(number), ".pt", write=lambda path, content=content: torch.save(content, path))
        message = refusal(lambda number=number: load(tmp_path / str(number), "cpu"))
        assert "runs code" in message if number < 3 else "does not hold a state dict" in message
    package_of(tmp_path / "old", ".pt", write=lambda path: path.write_bytes(pickle.dumps(Evil())))
    assert "state dict" in refusal(lambda: load(tmp_path / "old", "cpu"))
    package_of(tmp_path / "ts", ".pt", write=lambda path: torch.jit.script(network()).save(str(path)))
    assert ".ts" in refusal(lambda: load(tmp_path / "ts", "cpu"))
    assert not hasattr(sys.modules["builtins"], "medxai_was_here")


def test_old_torch_does_not_unpickle(tmp_path, monkeypatch):
    package_of(tmp_path / "m", ".pt")
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("torch.load was called"))
    assert "2.10" in refusal(lambda: load(tmp_path / "m", "cpu"))


def test_state_dicts_as_training_scripts_save_them(tmp_path):
    state = network().state_dict()
    wrapped = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items() if "num_batches" not in k}}
    package_of(tmp_path / "m", ".pt", write=lambda path: torch.save(wrapped, path))
    x = torch.rand(1, 1, 16, 16)
    torch.testing.assert_close(load(tmp_path / "m", "cpu").logits(x), network()(x))
    package_of(tmp_path / "half", ".pt", write=lambda path: torch.save({k: v.half() for k, v in state.items()}, path))
    torch.testing.assert_close(load(tmp_path / "half", "cpu").logits(x), network()(x), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".ts", ".pt2"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 cut short"])
def test_files_that_are_no_weights(tmp_path, suffix, content):
    package = package_of(tmp_path / "m", suffix, write=lambda path: path.write_bytes(content))
    assert "'made here'" in refusal(lambda: load(tmp_path / "m", "cpu", {package.sha256}))


def test_devices_written_into_an_exported_program_move_with_it(tmp_path, monkeypatch):
    class Adds(nn.Module):
        def forward(self, x):
            return torch.cat([x, x], 1) + torch.zeros(1, 2, 1, 1, device=x.device)

    package = package_of(tmp_path / "m", ".pt2", Adds())
    monkeypatch.setattr(
        loading_module, "pick_device", lambda name: torch.device("meta")
    )  # a device that is not the CPU
    model = load(tmp_path / "m", "meta", {package.sha256})
    assert model.logits(torch.zeros(1, 1, 16, 16, device="meta")).device.type == "meta"
    assert "device = 'meta'" in model.module.code


def test_weights_that_do_not_fit(tmp_path):
    state = network().state_dict()
    state["stranger"] = state.pop("last.bias")
    state["last.weight"] = torch.zeros(3, 4, 1, 1)
    package_of(tmp_path / "m", ".pt", write=lambda path: torch.save(state, path))
    message = refusal(lambda: load(tmp_path / "m", "cpu"))
    for words in ("1 missing ('last.bias')", "1 unexpected ('stranger')", "'last.weight' (3×4×1×1 instead of 2×4×1×1)"):
        assert words in message


@pytest.mark.parametrize(
    "name, arguments, words",
    [
        ("PlainUnet", {}, "did you mean 'PlainUNet'?"),
        ("os.system", {}, "not one that MedXAI builds"),
        ("VISTA3D", {}, "not one that MedXAI builds"),
        ("PlainUNet", {**ARGUMENTS, "filter": 3}, "did you mean 'filters'?"),
        ("PlainUNet", {**ARGUMENTS, "spatial_dims": 5}, "cannot be built"),
        ("PlainUNet", {}, "cannot be built"),
        ("resnet18", {"pretrained": True}, "'pretrained'"),
        ("DenseNet121", {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "pretrained": False}, "'pretrained'"),
        ("resnet18", {"n_inputs": 1}, "no argument 'n_inputs'"),
        ("resnet18", {"progress": False}, "no argument 'progress'"),
        ("DenseNet121", {"kwargs": 1}, "no argument 'kwargs'"),
    ],
)
def test_networks_and_arguments_are_checked(name, arguments, words):
    assert words in refusal(lambda: loading_module.build(Network(name, arguments)))


def test_nothing_is_fetched(monkeypatch):
    """EfficientNet's own default is to fetch weights; a package's network never does."""
    import urllib.request

    monkeypatch.setattr(urllib.request, "urlopen", lambda *a, **k: pytest.fail("something was fetched"))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *a, **k: pytest.fail("something was fetched"))
    loading_module.build(
        Network("EfficientNetBN", {"model_name": "efficientnet-b0", "in_channels": 1, "num_classes": 2})
    )


def test_every_listed_network_is_there():
    import monai.networks.nets as nets

    assert [name for name in MONAI_NETWORKS if not hasattr(nets, name)] == []
    assert not set(NETWORKS) & set(MONAI_NETWORKS), "a name must mean one class"


def test_monai_classifiers(tmp_path):
    fields = {"task": "classification", "output": {"labels": ["no", "yes"], "activation": "softmax"}}
    cases = {
        "resnet18": {"spatial_dims": 2, "n_input_channels": 1, "num_classes": 2, "feed_forward": True, "conv1_t_size": 3},
        "DenseNet121": {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "block_config": [1, 1], "init_features": 4, "growth_rate": 4},
    }  # fmt: skip
    for name, arguments in cases.items():
        module = loading_module.build(Network(name, arguments)).eval()
        about = {"name": name, "arguments": arguments}
        package_of(tmp_path / name, ".safetensors", module, network=about, **copy.deepcopy(fields))
        model = load(tmp_path / name, "cpu")
        x = torch.rand(2, 1, 64, 64)
        torch.testing.assert_close(model.logits(x), module(x))
        assert not model.receptive_field((64, 64)).exact
        assert model.probabilities(model.logits(x)).sum(1).allclose(torch.ones(2))


def test_devices(monkeypatch):
    assert pick_device("cpu") == torch.device("cpu")
    for name, words in (("gpu", "no device"), ("cuda:x", "no device"), ("cpu:1", "no device"), ("", "no device")):
        assert words in refusal(lambda name=name: pick_device(name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    assert "no CUDA GPU" in refusal(lambda: pick_device("cuda"))
    if not torch.backends.mps.is_available():
        assert "no Apple GPU" in refusal(lambda: pick_device("mps"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert pick_device("auto") == torch.device("cuda:1") and pick_device("cuda:0") == torch.device("cuda:0")
    assert "cuda:0 to cuda:1" in refusal(lambda: pick_device("cuda:2"))


# ---- the model -------------------------------------------------------------------------------------------------------


class Gives(nn.Module):
    """Whatever ``function`` makes of its input."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def model_of(tmp_path, function, labels=("a", "b"), activation="softmax", key=None, task="segmentation") -> Model:
    fields = copy.deepcopy(FIELDS) | {"task": task, "weights": "w.ts", "sha256": "0" * 64, "schema": 1}
    fields["output"] = {"labels": list(labels), "activation": activation, "key": key}
    from MedXAILib.package import from_json

    return Model(from_json(fields, tmp_path), Gives(function), "cpu")


def test_activations(tmp_path):
    x = torch.randn(1, 1, 6, 8) * 3
    two = model_of(tmp_path, lambda x: torch.cat([x, -x], 1))
    assert torch.equal(two.foreground(two.logits(x), "a"), x[:, 0] >= 0)
    assert torch.equal(two.foreground(two.logits(x), 1), x[:, 0] < 0)
    one = model_of(tmp_path, lambda x: x, ["lung"], "sigmoid")
    assert torch.equal(one.foreground(one.logits(x), "lung"), torch.sigmoid(x)[:, 0] > 0.5)
    p = torch.rand(1, 1, 6, 8)
    p[..., 0], p[..., 1] = 0, 1
    none = model_of(tmp_path, lambda x: p * (1 + 0 * x), ["lung"], "none")
    logits = none.logits(x)
    assert torch.isfinite(logits).all() and torch.equal(none.foreground(logits, 0), p[:, 0] > 0.5)
    torch.testing.assert_close(none.probabilities(logits), p.clamp(CLAMP, 1 - CLAMP), atol=2e-6, rtol=0)
    assert none.record()["probability_clamp"] == CLAMP and one.record()["probability_clamp"] is None


def test_labels(tmp_path):
    model = model_of(tmp_path, lambda x: x, ["liver", "tumour"])
    assert model.label_index("") == 1 and model.label_index("liver") == 0
    message = refusal(lambda: model.label_index("tumor"))
    assert "did you mean 'tumour'?" in message and "liver, tumour" in message


@pytest.mark.parametrize(
    "function, key, words",
    [
        (lambda x: (x, x), None, "several outputs (0, 1)"),
        (lambda x: {"seg": x, "aux": x}, "sag", "'sag' is not among them"),
        (lambda x: [1], None, "not a tensor"),
        (lambda x: x, "seg", "nothing to pick"),
        (lambda x: torch.cat([x, x, x], 1), None, "3 output channel(s)"),
        (lambda x: torch.cat([x, x], 1)[..., ::2], None, "6 × 4"),
        (lambda x: torch.cat([x, x], 1).mean((2, 3)), None, "shape (1, 2)"),
    ],
)
def test_outputs_that_are_not_as_described(tmp_path, function, key, words):
    assert words in refusal(lambda: model_of(tmp_path, function, key=key).logits(torch.rand(1, 1, 6, 8)))


def test_key_picks_the_output(tmp_path):
    both = lambda x: torch.cat([x, -x], 1)  # noqa: E731
    x = torch.rand(1, 1, 6, 8)
    for function, key in (
        (lambda x: {"seg": both(x), "aux": x}, "seg"),
        (lambda x: (x, both(x)), 1),
        (lambda x: [both(x)], None),
    ):
        assert torch.equal(model_of(tmp_path, function, key=key).logits(x), both(x))


def test_inputs_that_do_not_suit(tmp_path):
    package_of(tmp_path / "m", ".safetensors")
    model = load(tmp_path / "m", "cpu")
    assert "1 channel(s) in 2-D" in refusal(lambda: model.logits(torch.rand(1, 2, 16, 16)))
    assert "1 channel(s) in 2-D" in refusal(lambda: model.logits(torch.rand(1, 1, 16, 16, 16)))
    assert "multiples of 2 × 2" in refusal(lambda: model.logits(torch.rand(1, 1, 15, 17)))
    assert "use a larger one" in refusal(lambda: model.logits(torch.rand(1, 1, 0, 2)))


def test_logits_ignore_autocast_and_leave_the_input(tmp_path):
    package_of(tmp_path / "m", ".safetensors")
    model, x = load(tmp_path / "m", "cpu"), torch.randn(1, 1, 16, 16)
    plain = model.logits(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.logits(x), plain) and torch.is_autocast_cpu_enabled()
    spoiler = model_of(tmp_path, lambda x: torch.cat([x.relu_(), x], 1))
    before = x.clone()
    spoiler.logits(x)
    assert torch.equal(x, before), "a network that changes its input in place changed the caller's"


def test_memory(tmp_path, monkeypatch):
    package_of(tmp_path / "m", ".safetensors")
    model = load(tmp_path / "m", "cpu")
    small, large = model.estimate_bytes((64, 64), False), model.estimate_bytes((128, 128), False)
    assert 3.5 < large / small < 4.2 and model.estimate_bytes((64, 64), True) > 1.5 * small
    model.require_memory((64, 64), True, "nothing")
    have = memory.available(torch.device("cpu"))
    assert have is None or have > 1 << 24
    monkeypatch.setattr(memory, "available", lambda device: 1 << 30)
    message = refusal(lambda: model.require_memory((100_000, 100_000), True, "the volume's size (crop it)"), "memory")
    assert "1.0 GiB" in message and "lower the volume's size (crop it)" in message and "100000 × 100000" in message


MEASURE = """
import sys
sys.path[:0] = [{root!r}, {here!r}]
import torch
torch.set_num_threads(1)
from test_models_receptive import model_of
from MedXAILib.models.networks import PlainUNet
model = model_of(PlainUNet(3, 1, 2, 8, 3), 3, multiple=4)

def most():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

def compute(n, gradient):
    x = torch.rand(1, 1, n, n, n, requires_grad=gradient)
    with model.frozen(), torch.set_grad_enabled(gradient):
        z = model.logits(x)[0, 1, n // 2, n // 2, n // 2]
        if gradient:
            torch.autograd.grad(z, x)

compute(16, False), compute(16, True)
before = most()
for gradient in (False, True):  # the second takes more, so the highest mark is its own
    compute(80, gradient)
    print(model.estimate_bytes((80, 80, 80), gradient) / (most() - before))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
def test_the_estimate_against_what_is_taken():
    code = MEASURE.format(root=str(Path(__file__).resolve().parents[2]), here=str(Path(__file__).parent))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    ratios = [float(line) for line in done.stdout.split()]
    assert len(ratios) == 2 and all(0.9 < ratio < 2.5 for ratio in ratios), ratios


def test_out_of_memory_is_said_so(tmp_path):
    def fails(x):
        raise RuntimeError(
            "[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
        )

    assert "use a smaller volume" in refusal(lambda: model_of(tmp_path, fails).logits(torch.rand(1, 1, 6, 8)), "memory")


def test_describe(tmp_path, data):
    package_of(tmp_path / "m", ".safetensors")
    found = json.loads(json.dumps(describe(tmp_path / "m")))
    assert found["parameters"] == sum(p.numel() for p in network().parameters())
    assert {"name", "kind", "operation", "shape", "path", "number", "group"} == set(found["layers"][0]) and found[
        "receptive_field"
    ]["exact"]
    from MedXAILib.models.describing import text

    assert "PlainUNet" in text(found) and "transposed convolution" in text(found)
    for folder in sorted((data / "models").iterdir()):
        found = describe(folder, [Package.read(folder).sha256])
        assert found["parameters"] > 1000 and len(found["layers"]) > 15 and text(found)
