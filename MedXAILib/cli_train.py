"""`medxai train`: segmentation, classification, inpainter, cycle."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from . import settings
from .cli_parts import CANCELLED, DONE, Parser, Progress, add_preset, add_settings, given, refuse, tell, trusted
from .errors import MedXAIError


def train_parser(commands):
    from .training.settings import (
        ClassificationSettings,
        InpainterSettings,
        SegmentationSettings,
    )

    train = commands.add_parser("train", help="train networks").add_subparsers(
        dest="what", required=True, parser_class=Parser, metavar="COMMAND"
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
    add_settings(segmentation.add_argument_group("settings"), SegmentationSettings)
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
    add_settings(classification.add_argument_group("settings"), ClassificationSettings)
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
    add_settings(inpainter.add_argument_group("settings"), InpainterSettings)
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
    add_preset(cycle, settings.CycleTrainingSettings)
    add_settings(cycle.add_argument_group("settings"), settings.CycleTrainingSettings)
    cycle.set_defaults(call=_train_cycle, parser=cycle)


def _train_segmentation(options) -> int:
    from .files import check_new_folder
    from .training.settings import SegmentationSettings, TrainingSettings

    if (options.folder is None) != options.phantom:
        raise MedXAIError("Give either a folder of image and mask pairs or --phantom to train on.")
    check_new_folder(options.output)
    chosen = given(options, SegmentationSettings)
    out, where = ({"test_share"}, "--phantom") if options.phantom else ({"cases", "test_cases"}, "a folder")
    if options.preset == "demo":
        if not options.phantom:
            raise MedXAIError("--preset demo trains on --phantom alone; leave the folder or the preset out.")
        out, where = set(chosen) - {one.name for one in settings.about(TrainingSettings)}, "--preset demo"
    refuse(out, chosen, where)
    progress, figures = Progress(options.json), {}
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
    chosen = given(options, ClassificationSettings)
    tables = {name for name in chosen if name.endswith("_column")} | {"table", "test_share"}
    out, where = (tables, "--phantom") if options.phantom else ({"cases", "test_cases"}, "a folder")
    refuse(out, chosen, where)
    wanted = _on_device(ClassificationSettings(**chosen))
    progress = Progress(options.json)
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
    wanted = _on_device(InpainterSettings(**given(options, InpainterSettings)))
    programs = trusted(options, options.classifier, wanted.perceptual)
    progress = Progress(options.json)
    if options.judge:
        from .training.inpainter_judging import judge_folder

        found = progress.drive(judge_folder(options.judge, options.output, wanted, judge, programs))
        progress.end()
        _tell_roc(found)
        print(f"The figures are in {options.output}.")
        return DONE
    from .training.inpainters import epochs_kept, train_folder

    try:
        found = progress.drive(train_folder(options.folder, options.output, wanted, programs, judge if not missing else None))  # fmt: skip
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
    from .package import explainer_beside
    from .training.cycles import epochs_kept, train_cycle

    wanted = _on_device(settings.CycleTrainingSettings(**given(options, settings.CycleTrainingSettings)))
    output = options.output or explainer_beside(options.model)
    progress = Progress(options.json)
    model = load(options.model, wanted.device, trusted(options, options.model))
    try:
        explanation = progress.drive(train_cycle(model, options.folder, output, wanted, options.finish))
    except KeyboardInterrupt:
        return _stopped(epochs_kept(output))
    progress.end()
    for image, reason in explanation.provenance["skipped"].items():
        print(f"  skipped {image}: {reason}", file=sys.stderr)
    tell(explanation, output, False, options.json)
    return DONE


def _tell_roc(found) -> None:
    for one in found["auc"].values():
        interval = f" [{one['low']:.3f}, {one['high']:.3f}]" if one["low"] == one["low"] else ""
        print(f"  AUC {one['of']}: {one['value']:.3f}{interval}")
    for note in found["notes"]:
        print(f"  note: {note}")
