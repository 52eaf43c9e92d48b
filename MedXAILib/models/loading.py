"""From a model folder to a `Model`: state dicts into listed classes, and programs only after they have been trusted."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import random
import warnings
from collections.abc import Collection

import numpy as np
import torch
from torch import nn

from ..errors import MedXAIError, nearest
from ..package import Network, Package
from . import graph
from .model import Model
from .networks import NETWORKS

#: Classes and functions of ``monai.networks.nets`` that a package may name: they map an image to logits, take plain
#: values only, and load nothing from elsewhere once ``pretrained`` is off.
MONAI_NETWORKS = (
    "AHNet", "AttentionUnet", "BasicUNet", "BasicUNetPlusPlus", "DynUNet", "EfficientNetBN", "FlexibleUNet", "HighResNet",
    "SegResNet", "SegResNetDS", "SegResNetDS2", "SwinUNETR", "UNETR", "UNet", "VNet",
    "Classifier", "DenseNet", "DenseNet121", "DenseNet169", "DenseNet201", "DenseNet264", "ResNet", "SENet", "SENet154",
    "SEResNet50", "SEResNet101", "SEResNet152", "SEResNext50", "SEResNext101", "ViT",
    "resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet200",
)  # fmt: skip
#: Where the ``**kwargs`` of a listed name go.
_REST = {"DenseNet": "DenseNet", "resnet": "ResNet", "SE": "SENet"}
_NEVER = ("pretrained", "progress")


def load(folder, device: str = "auto", trusted: Collection[str] = ()) -> Model:
    """Read a model folder and load its network.

    Parameters
    ----------
    folder : path
        A model package (DESIGN 3.2) or a MONAI bundle that can be read literally.
    device : str
        ``auto`` (the GPU where torch has CUDA, else the CPU), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    trusted : collection of str
        SHA-256 (hexadecimal) of the programs, ``.ts`` and ``.pt2``, that may run.

    Raises
    ------
    MedXAIError
        ``untrusted`` for a program whose SHA-256 is not in ``trusted``; otherwise one sentence on what is wrong.
    """
    package = Package.read(folder)
    place = pick_device(device)
    with _random_state_kept():
        module = _program(package, trusted, place) if package.is_program else _network(package)
        if package.format != "pt2":  # an exported program has no modes
            module.eval()
        try:
            module = module.float().to(place)
            for parameter in module.parameters():  # (a ScriptModule has no requires_grad_ of its own)
                parameter.requires_grad_(False)
        except (RuntimeError, NotImplementedError) as error:
            if "out of memory" in str(error):
                raise MedXAIError(
                    f"'{package.name}' does not fit into the memory of {place}; free it or use the device cpu.",
                    kind="memory",
                ) from error
            raise MedXAIError(
                f"'{package.name}' cannot be put on {place} ({_first_line(error)}); use the device cpu."
            ) from error
    model = Model(package, module, place)
    if package.is_program:
        _refuse_training_mode(model)
    return model


def load_companion(folder, device: str, task: str, kind: type, what: str, command: str) -> Model:
    """A network that helps to explain another one, such as an inpainter.

    Parameters
    ----------
    folder, device
        As `load`.
    task : str
        What its package says it does.
    kind : type
        The class of its network.
    what : str
        What it is called, such as ``inpainter``.
    command : str
        What makes one.

    Raises
    ------
    MedXAIError
        As `load`, and when the package is none of this kind.
    """
    try:
        model = load(folder, device)
    except MedXAIError as error:
        raise MedXAIError(f"The {what} cannot be used: {error.message}", error.kind, error.hint) from error
    if model.package.task != task or not isinstance(model.module, kind):
        a = "an" if what[0] in "aeiou" else "a"
        raise MedXAIError(f"'{model.package.name}' is a {model.package.task} network, not {a} {what}; choose one made by '{command}'.")  # fmt: skip
    return model


def pick_device(name: str) -> torch.device:
    """The device that ``name`` asks for; refused when this machine has none such."""
    cuda = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    kind, _, number = str(name).partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and not (kind == "cuda" and number.isdigit())):
        raise MedXAIError(f"There is no device '{name}'; use auto, cpu, cuda, cuda:N or mps.")
    if kind == "cuda" and not cuda:
        raise MedXAIError(f"The device '{name}' is not there: this torch sees no CUDA GPU; use auto or cpu.")
    if kind == "cuda":
        count = torch.cuda.device_count()
        if number and int(number) >= count:
            raise MedXAIError(f"The device '{name}' is not there: this machine has cuda:0 to cuda:{count - 1} only.")
        return torch.device("cuda", int(number) if number else torch.cuda.current_device())
    if kind == "mps" and not torch.backends.mps.is_available():
        raise MedXAIError("The device 'mps' is not there: this torch sees no Apple GPU; use auto or cpu.")
    return torch.device(kind)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200].rstrip(".") if lines else type(error).__name__


@contextlib.contextmanager
def _random_state_kept():
    """Building a network draws its initial weights: nobody asked for that, so nobody shall notice."""
    state, python, array = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(state)
        random.setstate(python)
        np.random.set_state(array)  # noqa: NPY002


def _bytes(package: Package) -> bytes:
    """The weights; the very bytes that were hashed are the ones that are loaded."""
    try:
        data = package.weights_path.read_bytes()
    except OSError as error:
        raise MedXAIError(f"The weights '{package.weights_path}' cannot be read ({error.strerror}).") from None
    package.check_sha256(hashlib.sha256(data).hexdigest())
    return data


# ---- programs --------------------------------------------------------------------------------------------------------


def _program(package: Package, trusted: Collection[str], place: torch.device) -> nn.Module:
    data = _bytes(package)
    digest = hashlib.sha256(data).hexdigest()
    if digest not in {str(one).lower() for one in trusted}:
        raise MedXAIError(
            f"The weights '{package.weights}' of '{package.name}' are a program (SHA-256 {digest}) that has not been trusted;"
            " trust it only if you know where it comes from (one click in MedXAI Models, --trust in the command).",
            kind="untrusted",
            hint=digest,
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice to whoever wrote the program
            if package.format == "ts":
                return torch.jit.load(io.BytesIO(data), map_location=place)
            return _moved(torch.export.load(io.BytesIO(data)), place).module()
    except Exception as error:  # whatever a broken or foreign file makes torch say
        kind = "TorchScript" if package.format == "ts" else "torch.export"
        raise MedXAIError(
            f"'{package.weights}' of '{package.name}' is not a {kind} program that torch {torch.__version__} can load"
            f" ({_first_line(error)}); save it again with this version or an older one."
        ) from error


def _moved(program, place: torch.device):
    """The exported program with the devices written into it changed, where this torch can (a plain ``to`` leaves them)."""
    try:
        from torch.export.passes import move_to_device_pass
    except ImportError:
        return program
    return program if place.type == "cpu" else move_to_device_pass(program, str(place))


def _refuse_training_mode(model: Model) -> None:
    """A program exported in training mode answers by chance and by batch; nothing can switch it any more."""
    try:
        traced, _ = graph.small(model)
    except MedXAIError:  # what cannot be traced cannot be looked at; it can still be run
        return
    for node in traced.graph.nodes:
        given = graph.arguments(node)
        dropout = "dropout" in graph.operation(node) and given.get("train") and given.get("p", 1)
        if dropout or (given.get("training") and given.get("running_mean") is not None):
            raise MedXAIError(
                f"The program '{model.package.weights}' of '{model.package.name}' was exported in training mode "
                f"(its layer '{node.name}' draws or averages); export it again after network.eval()."
            )


# ---- state dicts -----------------------------------------------------------------------------------------------------


def _network(package: Package) -> nn.Module:
    state = _state(package)
    network = build(package.network, package.name)
    if state and all(name.startswith("module.") for name in state):  # saved from a DataParallel wrapper
        state = {name[len("module.") :]: value for name, value in state.items()}
    have = network.state_dict()
    # Older state dicts lack the counters of batch normalisation, which evaluation does not use.
    missing = [name for name in have if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in have]
    shapes = [
        f"'{name}' ({'×'.join(map(str, state[name].shape)) or 'scalar'} instead of {'×'.join(map(str, have[name].shape)) or 'scalar'})"
        for name in have
        if name in state and state[name].shape != have[name].shape
    ]
    troubles = [
        f"{len(names)} {what} ({', '.join(names[:2])}{', …' if len(names) > 2 else ''})"
        for names, what in (
            ([f"'{n}'" for n in missing], "missing"),
            ([f"'{n}'" for n in unexpected], "unexpected"),
            (shapes, "of another shape"),
        )
        if names
    ]
    if troubles:
        raise MedXAIError(
            f"The weights of '{package.name}' do not fit the network '{package.network.name}' with its arguments: "
            f"{'; '.join(troubles)}; correct 'network' in model.json."
        )
    network.load_state_dict(state, strict=False)
    return network


def _state(package: Package) -> dict[str, torch.Tensor]:
    if package.format == "safetensors":
        import safetensors
        import safetensors.torch

        try:
            return safetensors.torch.load(_bytes(package))
        except (safetensors.SafetensorError, ValueError, KeyError) as error:
            raise MedXAIError(
                f"'{package.weights}' of '{package.name}' is not a readable .safetensors file ({_first_line(error)}); get it again."
            ) from None
    version = tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in torch.__version__.split(".")[:2])
    if version < (2, 10):
        raise MedXAIError(
            f"'{package.weights}' is a pickle, which torch {torch.__version__} may execute; update torch to 2.10 or newer, "
            "or save the weights as .safetensors."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(io.BytesIO(_bytes(package)), map_location="cpu", weights_only=True)
    except MedXAIError:
        raise
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError…: all mean that it is not plain weights
        words = str(error)
        if "TorchScript" in words:
            raise MedXAIError(
                f"'{package.weights}' of '{package.name}' is a TorchScript program; rename it to end in .ts."
            ) from None
        if "Weights only load failed" in words or "Unsupported" in words:
            raise MedXAIError(
                f"'{package.weights}' of '{package.name}' holds Python objects whose unpickling runs code; "
                "save only the state dict, best as .safetensors."
            ) from None
        raise MedXAIError(
            f"'{package.weights}' of '{package.name}' is not a readable state dict ({_first_line(error)}); save it again."
        ) from None
    for wrapper in ("state_dict", "model"):  # as training scripts save it
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise MedXAIError(
            f"'{package.weights}' of '{package.name}' does not hold a state dict (names and tensors); save network.state_dict()."
        )
    return state


def build(network: Network, title: str = "the model") -> nn.Module:
    """The listed class of that name, called with checked arguments.

    Raises
    ------
    MedXAIError
        For a name that is not listed, an unknown argument, ``pretrained``, or values the class refuses.
    """
    name, names = network.name, (*NETWORKS, *MONAI_NETWORKS)
    if name not in names:
        raise MedXAIError(
            f"The network '{name}' of '{title}' is not one that MedXAI builds{nearest(name, names)}; "
            "use a listed one, or export it as .pt2 or .ts."
        )
    if name in NETWORKS:
        make, allowed = NETWORKS[name], _parameters(NETWORKS[name])
    else:
        import monai.networks.nets as nets

        make = getattr(nets, name, None)
        if make is None:
            raise MedXAIError(f"This version of MONAI has no network '{name}'; update MONAI.", kind="missing")
        allowed = _parameters(make)
        if "kwargs" in allowed:
            base = next(_REST[start] for start in _REST if name.startswith(start))
            allowed = [n for n in allowed if n != "kwargs"] + _parameters(getattr(nets, base))
    arguments = dict(network.arguments)
    for argument in arguments:
        if argument == "pretrained":
            raise MedXAIError(
                f"The network '{name}' of '{title}' asks for 'pretrained', which fetches other weights; remove it from model.json."
            )
        if argument not in allowed or argument in _NEVER:
            raise MedXAIError(
                f"The network '{name}' of '{title}' has no argument '{argument}'{nearest(argument, set(allowed) - set(_NEVER))}; "
                "correct 'arguments' in model.json."
            )
    if "pretrained" in _parameters(make):
        arguments["pretrained"] = False  # some default to True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make(**arguments)
    except Exception as error:  # what MONAI raises for wrong values has many types
        raise MedXAIError(
            f"The network '{name}' of '{title}' cannot be built with its arguments ({_first_line(error)}); correct them in model.json."
        ) from error


def _parameters(make) -> list[str]:
    return [name for name in inspect.signature(make).parameters if name not in ("self", "args")]
