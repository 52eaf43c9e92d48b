"""How much memory a network will need, and how much there is."""

from __future__ import annotations

import ctypes
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from . import graph

if TYPE_CHECKING:
    from .model import Model


@dataclass(frozen=True)
class Costs:
    """Bytes per input voxel and fixed bytes of a pass, measured on the graph at a small size."""

    forward: float
    backward: float
    fixed: int


def costs(model: Model) -> dict:
    """The costs of ``model`` for one image: key ``costs``."""
    traced, size = graph.small(model)
    voxels = math.prod(size)
    nodes = [n for n in traced.graph.nodes if n.op in ("placeholder", "call_function")]
    dims = len(size)

    def size_of(node) -> tuple[float, float]:
        """Bytes of a node's new output: the part that grows with the input, and the part that does not."""
        shape = graph.shape_of(node)
        name = graph.operation(node)
        if node.op == "get_attr" or shape is None or name in graph.VIEWS or name.endswith("_"):
            return 0.0, 0.0
        value = node.meta["val"]
        count = float(math.prod(shape) * value.element_size())
        return (count, 0.0) if len(shape) >= dims + 2 and max(shape[-dims:]) > 1 else (0.0, count)

    last = {}
    for position, node in enumerate(nodes):
        for source in node.all_input_nodes:
            last[source] = position
    # A view keeps what it looks at alive.
    for node in reversed(nodes):
        if (graph.operation(node) in graph.VIEWS or graph.operation(node).endswith("_")) and node.all_input_nodes:
            source = node.all_input_nodes[0]
            last[source] = max(last.get(source, 0), last.get(node, 0))
    # Python blocks keep their input until they return, some operations later than its last use; programs do not.
    held = 0 if isinstance(model.module, (torch.jit.ScriptModule, torch.fx.GraphModule)) else 3
    release = {}
    for node, position in last.items():
        release.setdefault(min(position + held, len(nodes) - 1), []).append(node)
    start = sum(size_of(node)[0] for node in nodes if node.op == "placeholder")
    alive, total, peak, largest, fixed = start, start, 0.0, 0.0, 0.0  # `logits` computes on a copy of its input
    for position, node in enumerate(nodes):
        grows, constant = size_of(node)
        alive += grows
        total += grows
        fixed += constant
        work = _workspace(node, dims)
        inputs = sum(size_of(source)[0] for source in node.all_input_nodes)
        peak = max(peak, alive + work)
        largest = max(largest, inputs + grows + work)
        alive -= sum(size_of(source)[0] for source in release.get(position, ()))
    return {"costs": Costs(peak / voxels, (total + largest) / voxels, int(fixed))}


def _workspace(node, dims: int) -> float:
    """Bytes that a convolution takes while it computes: its input and output in the library's own layout, in blocks of channels.

    For few input channels the library unfolds the image instead (seen with torch's CPU kernels).
    """
    if "conv" not in graph.operation(node):
        return 0.0
    given = graph.arguments(node)
    image, after, weight = graph.shape_of(given["input"]), graph.shape_of(node), graph.shape_of(given["weight"])
    if len(image) != dims + 2:
        return 0.0

    def blocked(shape):
        return -(-shape[1] // 8) * 8 * math.prod(shape[2:])

    if math.prod(weight[2:]) == 1:
        return 4.0 * (blocked(image) + blocked(after))
    if graph.is_transposed(node):
        return 4.0 * (blocked(image) + 2 * blocked(after))
    unfolded = image[1] * math.prod(weight[2:]) * math.prod(after[2:]) if image[1] <= 4 else 0
    return 4.0 * max(unfolded, blocked(image) + blocked(after))


def estimate(measured: dict, shape: Sequence[int], gradient: bool) -> int:
    """Bytes at spatial ``shape``, with half of reserve (measured needs were 0.85 to 1.45 of what is counted)."""
    found: Costs = measured["costs"]
    per_voxel = found.backward if gradient else found.forward
    return int(1.5 * (per_voxel * math.prod(shape) + found.fixed))


def available(device: torch.device) -> int | None:
    """Bytes that a computation on ``device`` may still take; None where the system does not tell."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        if sys.platform.startswith("linux"):
            return _linux()
        if sys.platform == "win32":
            return _windows()
        if sys.platform == "darwin":
            return _macos()
    except (OSError, ValueError, AttributeError, subprocess.SubprocessError):
        pass
    return None


def _linux() -> int:
    with open("/proc/meminfo", encoding="ascii") as stream:
        found = next(int(line.split()[1]) * 1024 for line in stream if line.startswith("MemAvailable:"))
    # A container may allow less than the machine has.
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            with open(limit, encoding="ascii") as a, open(used, encoding="ascii") as b:
                words = a.read().strip()
                if words.isdigit():
                    found = min(found, max(0, int(words) - int(b.read())))
        except OSError:
            continue
    return found


def _windows() -> int:
    class Status(ctypes.Structure):
        _fields_ = [
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            *[
                (name, ctypes.c_ulonglong)
                for name in ("total", "free", "page", "page_free", "virtual", "virtual_free", "extended")
            ],
        ]

    status = Status()
    status.length = ctypes.sizeof(Status)
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        raise OSError
    return int(status.free)


def _macos() -> int:
    words = subprocess.run(["/usr/bin/vm_stat"], capture_output=True, text=True, timeout=5, check=True).stdout
    pages = {}
    for line in words.splitlines()[1:]:
        name, _, count = line.partition(":")
        pages[name.strip()] = int(count.strip().rstrip(".")) if count.strip().rstrip(".").isdigit() else 0
    free = sum(pages.get(name, 0) for name in ("Pages free", "Pages inactive", "Pages speculative", "Pages purgeable"))
    return free * os.sysconf("SC_PAGE_SIZE")
