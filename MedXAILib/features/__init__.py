"""Radiomic features of (image, mask), their reference distributions, and the words for what their curves did.

Nothing is imported until it is used; importing this package costs no more than the names below, and never torch.
"""

import importlib

# No module may be named as one of these names: importing it would put the module in the name's place.
_WHERE = {
    "names": ("CLASSES", "PAPER", "counterpart", "resolve"),
    "radiomic": ("Values", "available", "compute"),
    "line": ("LineTexture", "line_texture"),
    "beside": ("FeatureQueue",),
    "references": ("Reference", "reference"),
    "verdicts": ("verdict",),
}
_HOME = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [  # noqa: RUF022 - by room, as in _WHERE
    "CLASSES", "PAPER", "counterpart", "resolve",
    "Values", "available", "compute",
    "LineTexture", "line_texture",
    "FeatureQueue",
    "Reference", "reference",
    "verdict",
]  # fmt: skip


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("." + _HOME[name], __name__), name)


def __dir__():
    return sorted({*globals(), *__all__})
