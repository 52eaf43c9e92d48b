"""The `medxai` command. Imports lazily: `--help` needs nothing but the standard library and numpy."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

from . import __version__, settings
from .errors import MedXAIError, nearest

DONE, REFUSED, CANCELLED = 0, 1, 130


class _Parser(argparse.ArgumentParser):
    """Refuses with one sentence."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        # argparse takes -3.5 for a number, but -3.5e-05 and -3. for options.
        self._negative_number_matcher = re.compile(r"^-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$", re.IGNORECASE)

    def error(self, message):
        raise MedXAIError(f"{message} (see '{self.prog} --help').")


def _parse(arguments):
    """The options; an unknown one is refused with the closest that exists."""
    options, unknown = _parser().parse_known_args(arguments)
    for word in unknown:
        if word.startswith("--"):
            name = word.split("=")[0]
            raise MedXAIError(f"There is no option '{name}'{nearest(name, options.parser._option_string_actions)}.")
    if unknown:
        raise MedXAIError(f"'{unknown[0]}' is one argument too many (see '{options.parser.prog} --help').")
    return options


def main(arguments=None) -> int:
    """Run the command; returns the exit status (0 done, 1 refused with one line on stderr, 130 cancelled)."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    arguments = sys.argv[1:] if arguments is None else [str(a) for a in arguments]
    try:
        options = _parse(arguments)
        options.arguments = arguments
        return options.call(options) or DONE
    except MedXAIError as error:
        print(
            f"medxai: {error.message}" + (f" {error.hint}" if error.hint and error.kind != "untrusted" else ""),
            file=sys.stderr,
        )
        return REFUSED
    except KeyboardInterrupt:
        print("medxai: cancelled; nothing was written.", file=sys.stderr)
        return CANCELLED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return REFUSED
    except MemoryError:
        print("medxai: out of memory; use a smaller volume or crop it.", file=sys.stderr)
        return REFUSED


def _parser():
    parser = _Parser(
        prog="medxai", description="Why a medical-imaging network answers as it does. Not a medical device."
    )
    parser.add_argument("--version", action="version", version=f"medxai {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser, metavar="COMMAND")
    for name, cls in settings.METHODS.items():
        _method_parser(commands, name, cls)
    _models_parser(commands)
    _features_parser(commands)
    _train_parser(commands)
    about = "write phantoms of two classes with what tells them apart: mammograms with and without masses, or smooth and spiculated nodules of the lung"
    phantoms = commands.add_parser("phantoms", help=about, description=about)
    phantoms.add_argument("--kind", choices=("mammogram", "nodule"), default="mammogram", help="[mammogram]")
    phantoms.add_argument(
        "--seeds", type=int, nargs=2, action="append", metavar=("FIRST", "LAST"), help="LAST excluded; may come again [1000 1060]"
    )  # fmt: skip
    phantoms.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("ROWS", "COLUMNS"),
        help="of mammograms [128 128]; nodules are 64 × 64 at 45 mm",
    )
    phantoms.add_argument("--output", type=Path, required=True, help="a new folder")
    phantoms.add_argument("--json", action="store_true", help="progress as JSON lines on stdout")
    phantoms.set_defaults(call=_phantoms, parser=phantoms)
    demo = commands.add_parser("demo", help="run the demonstration on a phantom and say where to look")
    demo.add_argument("--output", type=Path, default=Path("demo"), help="a new folder (default: demo)")
    demo.add_argument("--json", action="store_true", help="progress as JSON lines on stdout")
    demo.set_defaults(call=_demo, parser=demo)
    return parser


def _method_parser(commands, name, cls):
    titles = {
        "dream": "what a segmentation network reacts to: gradient ascent on one output voxel, with feature curves",
        "ability": "how well each layer and unit of a segmentation network separates the object from the background",
        "backproject": "where the strongest filters of a classifier look: their activation maps sent back to the image",
        "counterfactual": "the smallest region whose inpainting removes the class that a classifier sees, and the image without it",
        "cycle": "the image as it would look as either class of a classifier, made by an explainer trained for it, and their difference",
    }
    parser = commands.add_parser(name, help=titles[name], description=titles[name])
    parser.add_argument("--model", required=True, type=Path, help="model folder (with model.json)")
    inputs = parser.add_mutually_exclusive_group(required=True)
    inputs.add_argument(
        "--volume", type=Path, action="append", help="image file or DICOM folder; once per channel of the network"
    )
    if name in ("ability", "counterfactual", "cycle"):
        cases = "labelled images" if name == "cycle" else "image and mask pairs"
        inputs.add_argument(
            "--cohort", type=Path, metavar="FOLDER", help=f"a study of all {cases} in a folder: see the README"
        )  # fmt: skip
    what = "file with segments" + (
        {
            "backproject": ": landmarks, all of them unless --segment names one",
            "cycle": ": the patch is laid around --segment",
        }.get(name, "")
    )
    parser.add_argument("--segmentation", type=Path, help=what)
    parser.add_argument("--segment", help="name, or label value, of one of its segments")
    if name == "cycle":
        parser.add_argument("--background", type=int, default=32, metavar="N", help="with --cohort: images of the train side that DeepSHAP compares with, at most [32]")  # fmt: skip
    if name == "counterfactual":
        parser.add_argument("--organ", help="name, or label value, of the segment that the region must lie in")
        parser.add_argument("--start", type=Path, metavar="FILE", help="mask.nrrd of an earlier run, to go on from")
        parser.add_argument(
            "--no-ablation", action="store_true", help="with --cohort: leave out the runs without λ₂ and λ₃"
        )
        parser.add_argument(
            "--grid", action="append", metavar="NAME=A,B,…", help="with --cohort: try every combination of these values and say the best; once per setting"
        )  # fmt: skip
    parser.add_argument("--output", required=True, type=Path, help="a new folder for the results")
    parser.add_argument(
        "--trust", nargs="?", const="", metavar="SHA256", help="run the model although it is a program (.ts, .pt2); with its SHA-256, only that one"
    )  # fmt: skip
    parser.add_argument("--no-scene", action="store_true", help="leave out scene.mrb and report.png")
    parser.add_argument("--json", action="store_true", help="progress as JSON lines on stdout")
    group = parser.add_argument_group("settings")
    _add_preset(group, cls)
    _add_settings(group, cls)
    parser.set_defaults(call=_method, method=name, settings_class=cls, parser=parser)


_METAVARS = {str: "TEXT", int: "N", float: "NUMBER", tuple: "A,B,…"}


def _add_preset(group, cls):
    if presets := getattr(cls, "PRESETS", {}):
        group.add_argument("--preset", choices=tuple(presets), default=next(iter(presets)), help=f"values of those that are not given [{next(iter(presets))}]")  # fmt: skip


def _add_settings(group, cls):
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
            group.add_argument(one.option, default=argparse.SUPPRESS, help=shown + default, metavar=_METAVARS[one.kind])


def _parts(one) -> tuple[str, ...]:
    """What the numbers of a setting of fixed length are called."""
    return ("LOW", "HIGH") if one.length == 2 else tuple("RAS" if one.item is float else "IJK")


def _models_parser(commands):
    models = commands.add_parser("models", help="look at model packages").add_subparsers(
        dest="what", required=True, parser_class=_Parser, metavar="COMMAND"
    )
    describe = models.add_parser("describe", help="labels, input and layers of a model")
    describe.add_argument("folder", type=Path)
    describe.add_argument("--json", action="store_true", help="as JSON")
    describe.add_argument(
        "--trust", nargs="?", const="", metavar="SHA256", help="also look inside a program (.ts, .pt2)"
    )
    describe.set_defaults(call=_describe, parser=describe)


def _features_parser(commands):
    features = commands.add_parser("features", help="features of image and mask").add_subparsers(
        dest="what", required=True, parser_class=_Parser, metavar="COMMAND"
    )
    reference = features.add_parser(
        "reference", help="mean, standard deviation and n of each feature over a folder of cases"
    )
    reference.add_argument("folder", type=Path, help="image and mask pairs: see the README")
    reference.add_argument("--segment", help="name, or label value, of the segment in the masks")
    reference.add_argument("--features", default="paper", help="names, classes, 'paper' or 'all' [paper]")
    reference.add_argument("--bin-width", default="25", help="grey-level bin width in units of the volume [25]")
    for one in settings.about(settings.DreamSettings):
        if one.name in ("line_angle", "line_length"):  # as the runs that it is to normalise
            reference.add_argument(
                one.option, default=one.default, help=f"{one.help} [{one.default}]", metavar=_METAVARS[one.kind]
            )
    reference.add_argument("--output", type=Path, required=True, help="a new JSON file")
    reference.add_argument("--json", action="store_true", help="progress as JSON lines on stdout")
    reference.set_defaults(call=_reference, parser=reference)


def _train_parser(commands):
    from .training.settings import (
        ClassificationSettings,
        InpainterSettings,
        SegmentationSettings,
    )

    train = commands.add_parser("train", help="train networks").add_subparsers(
        dest="what", required=True, parser_class=_Parser, metavar="COMMAND"
    )
    about = "a segmentation network: the 18-layer U-Net of He et al. 2023 on 2-D slices, or (--preset demo) the demonstration's"
    segmentation = train.add_parser("segmentation", help=about, description=about)
    segmentation.add_argument("folder", type=Path, nargs="?", help="image and mask pairs: see the README")
    segmentation.add_argument("--phantom", action="store_true", help="cases made by code from a seed")
    segmentation.add_argument("--preset", choices=("paper", "demo"), default="paper", help="[paper]")
    segmentation.add_argument(
        "--output", type=Path, required=True, help="a new folder: a model, or two with --ability-loss"
    )
    segmentation.add_argument("--json", action="store_true", help="progress as JSON lines on stdout")
    _add_settings(segmentation.add_argument_group("settings"), SegmentationSettings)
    segmentation.set_defaults(call=_train_segmentation, parser=segmentation)
    about = "a classifier of 2-D images: the shallow, the deeper or the deeper network with batch normalisation of Kumar & Menkovski 2016"
    classification = train.add_parser("classification", help=about, description=about)
    classification.add_argument(
        "folder", type=Path, nargs="?", help="one folder of images per class, or images with a table (labels.csv)"
    )
    classification.add_argument("--phantom", action="store_true", help="slices of phantoms: lesion or no lesion")
    classification.add_argument(
        "--output", type=Path, required=True, help="a new folder: a model, or three with --network all; a training that was stopped goes on"
    )  # fmt: skip
    classification.add_argument("--json", action="store_true", help="progress as JSON lines on stdout")
    _add_settings(classification.add_argument_group("settings"), ClassificationSettings)
    classification.set_defaults(call=_train_classification, parser=classification)
    about = "an inpainter, for counterfactual: the U-Net of partial convolutions of Liu et al. 2018, trained as by Major et al. 2020"
    inpainter = train.add_parser("inpainter", help=about, description=about)
    inpainter.add_argument("folder", type=Path, nargs="?", help="healthy images, or images with a table (labels.csv)")
    inpainter.add_argument("--judge", type=Path, metavar="MODEL", help="train nothing: judge this inpainter")
    inpainter.add_argument("--classifier", type=Path, help="judge with this classifier (model folder), see the README")
    inpainter.add_argument("--findings", type=Path, help="for that: image and mask pairs, the mask is the finding")
    inpainter.add_argument("--healthy", type=Path, help="for that: other images, without finding")
    inpainter.add_argument(
        "--output", type=Path, required=True, help="a new folder: the model, or the figures with --judge; a training that was stopped goes on"
    )  # fmt: skip
    inpainter.add_argument(
        "--trust", nargs="?", const="", metavar="SHA256", help="run the classifier and the network of --perceptual although they are programs (.ts, .pt2); with its SHA-256, only that one"
    )  # fmt: skip
    inpainter.add_argument("--json", action="store_true", help="progress as JSON lines on stdout")
    _add_settings(inpainter.add_argument_group("settings"), InpainterSettings)
    inpainter.set_defaults(call=_train_inpainter, parser=inpainter)
    about = "an explainer of a classifier, for cycle: the two generators of Katzmann et al. 2021"
    cycle = train.add_parser("cycle", help=about, description=about)
    cycle.add_argument(
        "folder", type=Path, help="images, or images with a table (labels.csv); no class of theirs is used"
    )
    cycle.add_argument("--model", type=Path, required=True, help="the classifier (model folder)")
    cycle.add_argument(
        "--output", type=Path, help="a new folder: the explainer; a training that was stopped goes on [beside the model: NAME-cycle]"
    )  # fmt: skip
    cycle.add_argument("--finish", action="store_true", help="train no further: make the explainer of the best weights of a training that was stopped")  # fmt: skip
    cycle.add_argument(
        "--trust", nargs="?", const="", metavar="SHA256", help="run the classifier although it is a program (.ts, .pt2); with its SHA-256, only that one"
    )  # fmt: skip
    cycle.add_argument("--json", action="store_true", help="progress as JSON lines on stdout")
    _add_preset(cycle, settings.CycleTrainingSettings)
    _add_settings(cycle.add_argument_group("settings"), settings.CycleTrainingSettings)
    cycle.set_defaults(call=_train_cycle, parser=cycle)


def _method(options) -> int:
    from . import files, output

    files.check_new_folder(options.output)
    chosen = options.settings_class.from_json(_given(options, options.settings_class))
    if getattr(options, "cohort", None):
        return _cohort(options, chosen)
    for name in ("grid", "no_ablation"):
        if getattr(options, name, None):
            raise MedXAIError(f"--{name.replace('_', '-')} belongs to --cohort FOLDER, which is missing.")
    for name in ("segment", "organ"):
        if getattr(options, name, None) and not options.segmentation:
            raise MedXAIError(f"--{name} names a segment of --segmentation FILE, which is missing.")
    from . import io

    volumes = [io.read_volume(path) for path in options.volume]
    segments = _segments(options)
    from .evaluation.judged import explain
    from .models import load

    model = load(options.model, device=chosen.device, trusted=_trusted(options, options.model))
    progress = _Progress(options.json)
    explanation = progress.drive(explain(options.method, model, volumes, chosen, segments))
    explanation.provenance["command"] = ["medxai", *options.arguments]
    with files.new_folder(options.output) as folder:
        progress.say(0.99, "Writing")
        left_out = output.write(explanation, volumes, segments, folder, scene=not options.no_scene)
    progress.end()
    _tell(
        explanation, options.output, not options.no_scene and not any("scene.mrb" in n for n in left_out), options.json
    )
    return DONE


def _segments(options) -> list:
    """The masks that a run is given, for `counterfactual` with their role."""
    from . import io

    path, counterfactual = options.segmentation, options.method == "counterfactual"
    if path and options.method == "backproject" and not options.segment:
        return io.read_masks(path)
    if not counterfactual:
        return [io.read_mask(path, options.segment)] if path else []
    found = {}
    if path and (options.segment or not options.organ):
        found["annotation"] = io.read_mask(path, options.segment)
    if options.organ:
        found["organ"] = io.read_mask(path, options.organ)
    if options.start:
        found["start"] = io.read_volume(options.start)
    return [replace(one, attributes=one.attributes | {"role": role}) for role, one in found.items()]


def _study(options, chosen):
    """What --cohort asks for, of (model, log), and what draws its report."""
    folder, segment = options.cohort, options.segment
    if options.method == "ability":
        from .evaluation import cohort, picture

        return lambda model, log: cohort(model, folder, chosen, segment, log), picture
    if options.method == "cycle":
        from .evaluation.cycle_cohort import cycle_cohort
        from .evaluation.cycle_page import cycle_picture

        if segment:
            raise MedXAIError("The cases of --cohort bring their own masks; leave --segment out.")
        return lambda model, log: cycle_cohort(model, folder, chosen, log, background=options.background), cycle_picture
    if options.grid:
        from .evaluation.impact_grid import grid_of, impact_grid

        values = grid_of(options.grid)
        return lambda model, log: impact_grid(model, folder, chosen, values, segment, options.organ, log), None
    from .evaluation.impact_cohort import impact_cohort
    from .evaluation.impact_page import impact_picture

    ablation = not options.no_ablation
    return lambda model, log: impact_cohort(
        model, folder, chosen, segment, options.organ, log, ablation
    ), impact_picture


def _cohort(options, chosen) -> int:
    from . import output
    from .evaluation import resumable
    from .models import load

    for name in ("segmentation", "start"):
        if getattr(options, name, None):
            raise MedXAIError(f"The cases of --cohort bring their own masks; leave --{name} out.")
    study, picture = _study(options, chosen)
    progress, kept = _Progress(options.json), 0
    try:
        with resumable(options.output) as folder:
            log = folder / "cases.jsonl"
            try:
                model = load(options.model, device=chosen.device, trusted=_trusted(options, options.model))
                explanation = progress.drive(study(model, log))
                explanation.provenance["command"] = ["medxai", *options.arguments]
                if picture and not options.no_scene:
                    try:
                        picture(explanation, folder / "report.png")
                    except MedXAIError as error:
                        explanation.notes.append(f"report.png was not written: {error.message}")
                output.write(explanation, [], [], folder, scene=False)
            finally:
                kept = len(log.read_bytes().splitlines()) - 1 if log.exists() else 0
    except KeyboardInterrupt:
        if not kept:
            raise
        print(
            f"medxai: cancelled; {kept} finished cases are kept in '{folder}', and the same command goes on from there.",
            file=sys.stderr,
        )
        return CANCELLED
    progress.end()
    _tell(explanation, options.output, False, options.json)
    return DONE


def _tell(explanation, folder, scene, as_json):
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


def _trusted(options, *folders) -> set[str]:
    """What ``--trust`` allows: the programs in these very folders, or the one with the SHA-256 given."""
    if options.trust is None:
        return set()
    if options.trust:
        return {options.trust.lower()}
    from .package import Package

    return {Package.read(folder).sha256 for folder in folders if folder}


def _phantoms(options) -> int:
    seeds = [seed for ends in options.seeds or [(1000, 1060)] for seed in range(*ends)]
    if options.kind == "nodule":
        from .demo.nodule import write_nodules

        if options.size:
            raise MedXAIError("--size means nothing with --kind nodule; leave it out.")
        steps = write_nodules(options.output, seeds)
    else:
        from .demo.mammogram import SHAPE, write_mammograms

        steps = write_mammograms(options.output, seeds, tuple(options.size or SHAPE))
    progress = _Progress(options.json)
    progress.drive(steps)
    progress.end()
    print(f"  {options.output}")
    return DONE


def _describe(options) -> int:
    from .models import describe
    from .models.describing import text

    about = describe(options.folder, trusted=_trusted(options, options.folder))
    print(json.dumps(about, indent=2, ensure_ascii=False) if options.json else text(about))
    return DONE


def _reference(options) -> int:
    from .features import reference

    if options.output.exists():
        raise MedXAIError(f"'{options.output}' exists already; choose a new name or remove it.")
    if not options.output.absolute().parent.is_dir():  # said before all the cases are computed
        raise MedXAIError(f"The folder of '{options.output}' does not exist; make it first or choose another place.")
    names = tuple(n.strip() for n in options.features.split(",") if n.strip())
    chosen = {
        one.name: one.check(getattr(options, one.name))
        for one in settings.about(settings.DreamSettings)
        if one.name in ("bin_width", "line_angle", "line_length")
    }
    progress = _Progress(options.json)
    found = progress.drive(reference(options.folder, names, segment=options.segment, **chosen))
    found.write(options.output)
    progress.end()
    for case, reason in found.skipped.items():
        print(f"  skipped {case}: {reason}", file=sys.stderr)
    print(f"{len(found.cases)} cases, {len(found.skipped)} skipped; the reference is in {options.output}.")
    return DONE


def _given(options, cls) -> dict:
    """The settings of a class that the command names, and those of its preset."""
    preset = getattr(cls, "PRESETS", {}).get(getattr(options, "preset", ""), {})
    return preset | {one.name: getattr(options, one.name) for one in settings.about(cls) if hasattr(options, one.name)}


def _refuse(names, chosen, where: str) -> None:
    """Refuse settings that mean nothing here."""
    for name in sorted(set(names).intersection(chosen)):
        raise MedXAIError(f"--{name.replace('_', '-')} means nothing with {where}; leave it out.")


def _train_segmentation(options) -> int:
    from .files import check_new_folder
    from .training.settings import SegmentationSettings, TrainingSettings

    if (options.folder is None) != options.phantom:
        raise MedXAIError("Give either a folder of image and mask pairs or --phantom to train on.")
    check_new_folder(options.output)
    chosen = _given(options, SegmentationSettings)
    out, where = ({"test_share"}, "--phantom") if options.phantom else ({"cases", "test_cases"}, "a folder")
    if options.preset == "demo":
        if not options.phantom:
            raise MedXAIError("--preset demo trains on --phantom alone; leave the folder or the preset out.")
        out, where = set(chosen) - {one.name for one in settings.about(TrainingSettings)}, "--preset demo"
    _refuse(out, chosen, where)
    progress, figures = _Progress(options.json), {}
    if options.preset == "demo":
        from .demo.train import train_phantom

        progress.drive(train_phantom(options.output, **chosen))
    elif options.phantom:
        from .demo.train import train_slices

        figures = progress.drive(train_slices(options.output, SegmentationSettings(**chosen)))
    else:
        from .training.comparison import train_folder

        figures = progress.drive(train_folder(options.folder, options.output, SegmentationSettings(**chosen)))
    progress.end()
    for case, reason in figures.get("cases", {}).get("skipped", {}).items():
        print(f"  skipped {case}: {reason}", file=sys.stderr)
    for training in ("without", "with"):
        if training in figures:
            told = ", ".join(f"{figures[training][name]['mean']:.3f} {name.replace('_', ' ')}" for name in ("output", "last_layer", "all_layers"))  # fmt: skip
            print(f"  {training} the ability loss, mean Dice on test cases: {told}")
    print(f"The model{'s are' if 'with' in figures else ' is'} in {options.output}.")
    return DONE


def _stopped(epochs: int) -> int:
    """The end of a training that was interrupted after so many epochs."""
    if not epochs:
        raise KeyboardInterrupt
    print(f"medxai: cancelled; {epochs} finished epochs are kept, and the same command goes on from there.", file=sys.stderr)  # fmt: skip
    return CANCELLED


def _on_device(settings):
    """The settings of a training with the device that is meant; refused where this machine has none such."""
    from .models.loading import pick_device

    return replace(settings, device=str(pick_device(settings.device)))


def _train_classification(options) -> int:
    from .files import check_new_folder
    from .training.settings import ClassificationSettings

    if (options.folder is None) != options.phantom:
        raise MedXAIError("Give either a folder of images or --phantom to train on.")
    check_new_folder(options.output)
    chosen = _given(options, ClassificationSettings)
    tables = {name for name in chosen if name.endswith("_column")} | {"table", "test_share"}
    out, where = (tables, "--phantom") if options.phantom else ({"cases", "test_cases"}, "a folder")
    _refuse(out, chosen, where)
    wanted = _on_device(ClassificationSettings(**chosen))
    progress = _Progress(options.json)
    from .training.classifiers import epochs_kept, train_images

    try:
        if options.phantom:
            from .demo.classifier import train_phantom_classifier

            figures = progress.drive(train_phantom_classifier(options.output, wanted))
        else:
            figures = progress.drive(train_images(options.folder, options.output, wanted))
    except KeyboardInterrupt:
        return _stopped(epochs_kept(options.output))
    progress.end()
    for case, reason in figures["cases"]["skipped"].items():
        print(f"  skipped {case}: {reason}", file=sys.stderr)
    for network, found in figures["networks"].items():
        one = found["accuracy"]
        print(
            f"  {network}: accuracy {one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}] on {one['n']} images kept back"
        )
    for note in figures["notes"]:
        print(f"  note: {note}")
    several = len(figures["networks"]) > 1
    print(f"The model{'s are' if several else ' is'} in {options.output}.")
    return DONE


def _train_inpainter(options) -> int:
    from .files import check_new_folder
    from .training.settings import InpainterSettings

    if (options.folder is None) == (options.judge is None):
        raise MedXAIError("Give either a folder of healthy images to train on or --judge MODEL.")
    judge = {name: getattr(options, name) for name in ("classifier", "findings", "healthy")}
    missing = [name for name, path in judge.items() if path is None]
    if (options.judge and missing) or 0 < len(missing) < 3:
        raise MedXAIError(f"Judging takes --classifier, --findings and --healthy; --{missing[0]} is missing.")
    check_new_folder(options.output)
    wanted = _on_device(InpainterSettings(**_given(options, InpainterSettings)))
    trusted = _trusted(options, options.classifier, wanted.perceptual)
    progress = _Progress(options.json)
    if options.judge:
        from .training.inpainter_judging import judge_folder

        found = progress.drive(judge_folder(options.judge, options.output, wanted, judge, trusted))
        progress.end()
        _tell_roc(found)
        print(f"The figures are in {options.output}.")
        return DONE
    from .training.inpainters import epochs_kept, train_folder

    try:
        found = progress.drive(train_folder(options.folder, options.output, wanted, trusted, judge if not missing else None))  # fmt: skip
    except KeyboardInterrupt:
        return _stopped(epochs_kept(options.output))
    progress.end()
    for case, reason in found["images"]["skipped"].items():
        print(f"  skipped {case}: {reason}", file=sys.stderr)
    made, mean = (found["hole_error"][name] for name in ("inpainted", "mean"))
    print(
        f"  error in holes of {found['images']['kept_back']} images kept back: {made['value']:.3f} (filled with the mean: {mean['value']:.3f})"
    )
    if "roc" in found:
        _tell_roc(found["roc"])
    for note in found["notes"]:
        print(f"  note: {note}")
    print(f"The model is in {options.output}.")
    return DONE


def _train_cycle(options) -> int:
    from .models import load
    from .training.cycles import beside, epochs_kept, train_cycle

    wanted = _on_device(settings.CycleTrainingSettings(**_given(options, settings.CycleTrainingSettings)))
    output = options.output or beside(options.model)
    progress = _Progress(options.json)
    model = load(options.model, wanted.device, _trusted(options, options.model))
    try:
        explanation = progress.drive(train_cycle(model, options.folder, output, wanted, options.finish))
    except KeyboardInterrupt:
        return _stopped(epochs_kept(output))
    progress.end()
    _tell(explanation, output, False, options.json)
    return DONE


def _tell_roc(found) -> None:
    for one in found["auc"].values():
        interval = f" [{one['low']:.3f}, {one['high']:.3f}]" if one["low"] == one["low"] else ""
        print(f"  AUC {one['of']}: {one['value']:.3f}{interval}")
    for note in found["notes"]:
        print(f"  note: {note}")


def _demo(options) -> int:
    from .demo.run import demo

    return demo(options.output, as_json=options.json)


class _Progress:
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


if __name__ == "__main__":
    sys.exit(main())
