"""`python -m Testing.Benchmarks NAME`: one table on stdout, the numbers as JSON beside it. It reports; it never fails for being slow."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from importlib import import_module
from pathlib import Path

import torch


def interleaved(contenders: dict, runs: int, say=print) -> dict[str, list[float]]:
    """Seconds of each contender, run in turn (A B C A B C …) after one warm-up round, so that a drifting machine is fair to all.

    A contender may return its own figures (name -> seconds) instead of being timed as a whole.
    """
    seconds = {}
    for turn in range(runs + 1):
        for name, call in contenders.items():
            began = time.perf_counter()
            figures = call() or {name: time.perf_counter() - began}
            if turn:
                for figure, value in figures.items():
                    seconds.setdefault(figure, []).append(value)
        say(f"round {turn} of {runs}", file=sys.stderr)
    return seconds


def row(name: str, seconds: list[float], base: list[float] | None = None) -> dict:
    """Median and spread; against ``base`` the median of the ratios round by round."""
    found = {
        "what": name,
        "median_s": statistics.median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "runs": len(seconds),
    }
    if base is not None:
        found["ratio"] = statistics.median(a / b for a, b in zip(seconds, base))
    return found


def table(rows: list[dict]) -> str:
    columns = list(dict.fromkeys(c for r in rows for c in r))
    cells = [columns] + [[_cell(r.get(c, "")) for c in columns] for r in rows]
    widths = [max(len(line[n]) for line in cells) for n in range(len(columns))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths)) for line in cells]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def _cell(value) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m Testing.Benchmarks")
    parser.add_argument("name", choices=["dream", "ability", "backproject", "counterfactual", "cycle", "features"])
    parser.add_argument("--runs", type=int, default=5, help="counted rounds (at least 5 to quote)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=128, help="voxels along each axis (dream)")
    parser.add_argument(
        "--case", default="", help="only cases whose name holds this (backproject, counterfactual, cycle, features)"
    )
    parser.add_argument("--json", type=Path, default=None, help="where the numbers go (default: benchmark-NAME.json)")
    options = parser.parse_args()
    found = import_module(f"Testing.Benchmarks.{options.name}").run(options, interleaved, row)
    found["machine"] = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else options.device,
    }
    print(table(found["rows"]))
    for line in found.get("notes", []):
        print(line)
    path = options.json or Path(f"benchmark-{options.name}.json")
    path.write_text(json.dumps(found, indent=2) + "\n")
    print(f"numbers: {path}")


if __name__ == "__main__":
    main()
