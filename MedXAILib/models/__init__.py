"""Safe loading, layer access by graph, geometry in and out, tiling, and the project's own networks.

Names are imported on first use, so that ``import MedXAILib.models`` costs nothing.
"""

from importlib import import_module

_WHERE = {
    "load": "loading",
    "Model": "model",
    "ReceptiveField": "receptive",
    "describe": "describing",
    "prepare": "geometry",
    "Prepared": "geometry",
    "sliding_logits": "tiling",
}
__all__ = list(_WHERE)


def __getattr__(name):
    if name not in _WHERE:
        raise AttributeError(f"module 'MedXAILib.models' has no attribute '{name}'")
    return getattr(import_module("." + _WHERE[name], __name__), name)


def __dir__():
    return sorted(_WHERE)
