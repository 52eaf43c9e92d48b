"""What every part of the `medxai` command shares: the parser, settings as options, progress, and the words at the end."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import time

from . import settings
from .errors import MedXAIError

DONE, REFUSED, CANCELLED = 0, 1, 130


class Parser(argparse.ArgumentParser):
    """Refuses with one sentence."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        # argparse takes -3.5 for a number, but -3.5e-05 and -3. for options.
        self._negative_number_matcher = re.compile(r"^-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$", re.IGNORECASE)

    def error(self, message):
        raise MedXAIError(f"{message} (see '{self.prog} --help').")


METAVARS = {str: "TEXT", int: "N", float: "NUMBER", tuple: "A,B,…"}


def add_preset(group, cls):
    if presets := getattr(cls, "PRESETS", {}):
        group.add_argument("--preset", choices=tuple(presets), default=next(iter(presets)), help=f"values of those that are not given [{next(iter(presets))}]")  # fmt: skip


def add_settings(group, cls):
    """One option for each setting; what is not given is not there."""
    for one in settings.about(cls):
        shown = one.help.replace("%", "%%")
        default = (
            ""
            if one.default in (None, "", ())
            else f" [{','.join(map(str, one.default)) if one.kind is tuple else one.default}]"
        )
        if one.kind is bool:
            group.add_argument(
                one.option, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=shown + default
            )
        elif one.kind is tuple and one.length:
            group.add_argument(one.option, nargs=one.length, default=argparse.SUPPRESS, help=shown, metavar=_parts(one))  # fmt: skip
        else:
            metavar = "|".join(one.choices) or METAVARS[one.kind]
            group.add_argument(one.option, default=argparse.SUPPRESS, help=shown + default, metavar=metavar)


def _parts(one) -> tuple[str, ...]:
    """What the numbers of a setting of fixed length are called."""
    return ("LOW", "HIGH") if one.length == 2 else tuple("RAS" if one.item is float else "IJK")


def given(options, cls) -> dict:
    """The settings of a class that the command names, and those of its preset."""
    preset = getattr(cls, "PRESETS", {}).get(getattr(options, "preset", ""), {})
    return preset | {one.name: getattr(options, one.name) for one in settings.about(cls) if hasattr(options, one.name)}


def refuse(names, chosen, where: str) -> None:
    """Refuse settings that mean nothing here."""
    for name in sorted(set(names).intersection(chosen)):
        raise MedXAIError(f"--{name.replace('_', '-')} means nothing with {where}; leave it out.")


def trusted(options, *folders) -> set[str]:
    """What ``--trust`` allows: the programs in these very folders, or the one with the SHA-256 given."""
    if options.trust is None:
        return set()
    if options.trust:
        return {options.trust.lower()}
    from .package import Package

    return {Package.read(folder).sha256 for folder in folders if folder}


def write_study(explanation, folder, picture, arguments) -> None:
    """Write what a study came to into ``folder``, with the command and, where ``picture`` draws one, ``report.png``; without a picture, say so."""
    from . import output

    explanation.provenance["command"] = ["medxai", *arguments]
    if picture:
        try:
            picture(explanation, folder / "report.png")
        except MedXAIError as error:
            explanation.notes.append(f"report.png was not written: {error.message}")
    output.write(explanation, [], [], folder, scene=False)


def tell(explanation, folder, scene, as_json):
    if as_json:
        print(json.dumps({"event": "result", "folder": str(folder)}), flush=True)
        return
    from .files import plain

    scores = plain(explanation.scores)
    if "predicted" in explanation.provenance:
        about = explanation.provenance
        print("  label: {label}; the network answers {predicted}".format(**about))
        layer, where = about.get("layer"), f"slice {about['slice']}" if about["slice"] else ""
        if layer:
            path = f" (module {layer['path']})" * bool(layer["path"])
            where = f"layer: {layer['name']}{path}" + f", {where}" * bool(where)
        if where:
            print(f"  {where}")
    for name, score in scores.items():
        if name.removesuffix("_low").removesuffix("_high") != name and name.rpartition("_")[0] in scores:
            continue  # told with the figure it is the interval of
        told = f"{score:.6g}" if isinstance(score, float) else score
        ends = [scores.get(name + end) for end in ("_low", "_high")]
        print(f"  {name.replace('_', ' ')}: {told}" + (" [{:.3g}, {:.3g}]".format(*ends) if None not in ends else ""))
    for name, check in plain(explanation.self_checks).items():
        state = {True: "passed", False: "NOT PASSED"}.get(check["passed"], "not done")
        value = check["value"]
        told = "" if value is None else f" ({value:.4g})" if isinstance(value, float) else f" ({value})"
        print(f"  check {name.replace('_', ' ')}: {state}{told}")
    for note in explanation.notes:
        print(f"  note: {note}")
    shown = "; open scene.mrb in 3D Slicer" if scene else ""
    print(f"Results are in {folder}{shown}.")


class Progress:
    """Progress of a generator: JSON lines, or one line that rewrites itself on a terminal."""

    def __init__(self, as_json: bool):
        self.as_json, self.began, self.line = as_json, time.monotonic(), 0
        self.terminal = sys.stderr.isatty()

    def drive(self, steps):
        """Iterate to the end; returns what the generator returns. An interrupt closes it, which puts the model back."""
        with contextlib.closing(steps):
            while True:
                try:
                    step = next(steps)
                except StopIteration as end:
                    return end.value
                except BaseException:
                    self.end()  # so that the reason stands on a line of its own
                    raise
                self.say(step.fraction, step.stage, step.points)

    def say(self, fraction, stage, points=()):
        gone = time.monotonic() - self.began
        left = gone / fraction - gone if fraction > 0.02 else None
        if self.as_json:
            from .files import plain

            print(json.dumps({"event": "progress", "fraction": round(fraction, 4), "stage": stage, "eta": left and round(left, 1)}), flush=True)  # fmt: skip
            for point in points:
                print(json.dumps({"event": "point", "curve": point.curve, "step": point.step, "values": plain(point.values)}), flush=True)  # fmt: skip
        elif self.terminal:
            text = f"{fraction:4.0%} {stage}" + (f", {left:.0f} s left" if left is not None else "")
            print("\r" + text.ljust(self.line), end="", file=sys.stderr, flush=True)
            self.line = len(text)

    def end(self):
        if self.line:
            print("\r" + " " * self.line + "\r", end="", file=sys.stderr, flush=True)
            self.line = 0
