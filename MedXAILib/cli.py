"""The `medxai` command. Imports lazily: `--help` needs nothing but the standard library and numpy."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from . import __version__, settings
from .cli_parts import (
    CANCELLED,
    DONE,
    METAVARS,
    REFUSED,
    Parser,
    Progress,
    add_preset,
    add_settings,
    given,
    tell,
    trusted,
    write_study,
)
from .cli_reproduce import reproduce_parser
from .cli_train import train_parser
from .errors import MedXAIError, nearest


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
    except KeyboardInterrupt as stopped:
        print(f"medxai: cancelled; {str(stopped) or 'nothing was written'}.", file=sys.stderr)
        return CANCELLED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return REFUSED
    except MemoryError:
        print("medxai: out of memory; use a smaller volume or crop it.", file=sys.stderr)
        return REFUSED


def _parser():
    parser = Parser(
        prog="medxai", description="Why a medical-imaging network answers as it does. Not a medical device."
    )
    parser.add_argument("--version", action="version", version=f"medxai {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser, metavar="COMMAND")
    for name, cls in settings.METHODS.items():
        _method_parser(commands, name, cls)
    _models_parser(commands)
    _features_parser(commands)
    train_parser(commands)
    reproduce_parser(commands)
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
        parser.add_argument("--background", type=int, metavar="N", help="with --cohort: images of the train side that DeepSHAP compares with, at most [32]")  # fmt: skip
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
    add_preset(group, cls)
    add_settings(group, cls)
    parser.set_defaults(call=_method, method=name, settings_class=cls, parser=parser)


def _models_parser(commands):
    models = commands.add_parser("models", help="look at model packages").add_subparsers(
        dest="what", required=True, parser_class=Parser, metavar="COMMAND"
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
        dest="what", required=True, parser_class=Parser, metavar="COMMAND"
    )
    reference = features.add_parser(
        "reference", help="mean, standard deviation and n of each feature over a folder of cases"
    )
    reference.add_argument("folder", type=Path, help="image and mask pairs: see the README")
    reference.add_argument("--segment", help="name, or label value, of the segment in the masks")
    reference.add_argument("--features", default="paper", help="names, classes, 'paper' or 'all' [paper]")
    for one in _of_features():
        metavar = "|".join(one.choices) or METAVARS[one.kind]
        reference.add_argument(one.option, default=one.default, help=f"{one.help} [{one.default}]", metavar=metavar)
    reference.add_argument(
        "--jobs", type=int, metavar="N", help="cases at once [one for each processor core, at most 4]"
    )
    reference.add_argument("--output", type=Path, required=True, help="a new JSON file")
    reference.add_argument("--json", action="store_true", help="progress as JSON lines on stdout")
    reference.set_defaults(call=_reference, parser=reference)


def _of_features():
    """The settings of a dream that its reference must share."""
    names = ("engine", "bin_width", "bin_count", "line_angle", "line_length")
    return [one for one in settings.about(settings.DreamSettings) if one.name in names]


def _method(options) -> int:
    from . import files, output

    files.check_new_folder(options.output)
    chosen = options.settings_class.from_json(given(options, options.settings_class))
    if getattr(options, "cohort", None):
        return _cohort(options, chosen)
    for name in ("grid", "no_ablation", "background"):
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

    model = load(options.model, device=chosen.device, trusted=trusted(options, options.model))
    progress = Progress(options.json)
    explanation = progress.drive(explain(options.method, model, volumes, chosen, segments))
    explanation.provenance["command"] = ["medxai", *options.arguments]
    with files.new_folder(options.output) as folder:
        progress.say(0.99, "Writing")
        left_out = output.write(explanation, volumes, segments, folder, scene=not options.no_scene)
    progress.end()
    tell(
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
        return lambda model, log: cycle_cohort(
            model, folder, chosen, log, background=32 if options.background is None else options.background
        ), cycle_picture
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
    from .models import load
    from .resume import kept, resumable

    for name in ("segmentation", "start"):
        if getattr(options, name, None):
            raise MedXAIError(f"The cases of --cohort bring their own masks; leave --{name} out.")
    study, picture = _study(options, chosen)
    progress = Progress(options.json)
    with resumable(options.output) as folder, kept(log := folder / "cases.jsonl"):
        model = load(options.model, device=chosen.device, trusted=trusted(options, options.model))
        explanation = progress.drive(study(model, log))
        write_study(explanation, folder, None if options.no_scene else picture, options.arguments)
    progress.end()
    tell(explanation, options.output, False, options.json)
    return DONE


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
    progress = Progress(options.json)
    progress.drive(steps)
    progress.end()
    print(f"  {options.output}")
    return DONE


def _describe(options) -> int:
    from .models import describe
    from .models.describing import text

    about = describe(options.folder, trusted=trusted(options, options.folder))
    print(json.dumps(about, indent=2, ensure_ascii=False) if options.json else text(about))
    return DONE


def _reference(options) -> int:
    from .features import reference
    from .resume import kept, resumable_file

    if options.output.exists():
        raise MedXAIError(f"'{options.output}' exists already; choose a new name or remove it.")
    if not options.output.absolute().parent.is_dir():  # said before all the cases are computed
        raise MedXAIError(f"The folder of '{options.output}' does not exist; make it first or choose another place.")
    names = tuple(n.strip() for n in options.features.split(",") if n.strip())
    chosen = {one.name: one.check(getattr(options, one.name)) for one in _of_features()}
    progress = Progress(options.json)
    with resumable_file(options.output) as partial, kept(log := partial / "cases.jsonl"):
        steps = reference(options.folder, names, segment=options.segment, jobs=options.jobs, log=log, **chosen)
        found = progress.drive(steps)
        found.write(options.output)
    progress.end()
    for case, reason in found.skipped.items():
        print(f"  skipped {case}: {reason}", file=sys.stderr)
    print(f"{len(found.cases)} cases, {len(found.skipped)} skipped; the reference is in {options.output}.")
    return DONE


def _demo(options) -> int:
    from .demo.run import demo

    return demo(options.output, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
