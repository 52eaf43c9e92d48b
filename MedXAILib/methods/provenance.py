"""Where an explanation comes from: enough to repeat it and to cite it."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch

from .. import __version__


def provenance(method: str, settings, model, volumes, **more) -> dict:
    """Method, settings, model name and SHA-256, inputs, versions, device and time, ready for JSON."""
    device = str(model.device)
    if model.device.type == "cuda":
        device += f" ({torch.cuda.get_device_name(model.device)})"
    return {
        "method": method,
        "settings": settings.to_json(),
        "model": model.record(),
        "volumes": [volume.name for volume in volumes],
        "versions": dict(_versions()),
        "device": device,
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **more,
    }


@cache
def _versions() -> dict:
    """Looked up once: reading what is installed takes as long as a small network."""
    found = {"MedXAI": __version__, "python": platform.python_version()}
    for package in ("torch", "monai", "numpy", "SimpleITK", "pyradiomics"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
