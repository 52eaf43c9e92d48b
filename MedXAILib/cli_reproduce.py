"""`medxai reproduce`: the controlled experiments of a paper on data made by code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from . import settings
from .cli_parts import DONE, Parser, Progress, add_settings, tell, write_study


def reproduce_parser(commands):
    """Add the command; what it runs is imported when it runs."""
    from .demo.reproduce_settings import ReproduceSettings

    reproduce = commands.add_parser(
        "reproduce", help="a paper's controlled experiments on data made by code"
    ).add_subparsers(dest="what", required=True, parser_class=Parser, metavar="COMMAND")
    about = "the DeepDream paper (Couteaux et al. 2019, Fig. 4 and 5): does a dream show what a network relies on? One table, one picture"
    dream = reproduce.add_parser("dream", help=about, description=about, conflict_handler="resolve")
    dream.add_argument("--output", type=Path, required=True, help="a new folder; a run that was stopped goes on")
    dream.add_argument("--json", action="store_true", help="progress as JSON lines on stdout")
    group = dream.add_argument_group("settings")
    add_settings(group, ReproduceSettings)
    for one in settings.about(ReproduceSettings):
        if one.name in ("seeds", "probabilities"):  # as words of their own, or with commas
            default = " ".join(f"{v:g}" for v in one.default)
            group.add_argument(one.option, nargs="+", metavar="N", default=None, help=f"{one.help} [{default}]".replace("%", "%%"))  # fmt: skip
    dream.set_defaults(call=_dream, parser=dream)


def chosen_of(options):
    """The settings that a command names, those of ``--quick`` below them."""
    from .demo.reproduce_settings import QUICK, ReproduceSettings

    chosen = {}
    for one in settings.about(ReproduceSettings):
        value = getattr(options, one.name, None)
        if value is not None:
            chosen[one.name] = ",".join(value) if isinstance(value, list) else value
    return ReproduceSettings(**(QUICK if getattr(options, "quick", False) else {}) | chosen)


def _dream(options) -> int:
    from .files import check_new_folder
    from .resume import kept, resumable

    check_new_folder(options.output)
    wanted, progress = chosen_of(options), Progress(options.json)
    from .models.loading import pick_device

    wanted = replace(wanted, device=str(pick_device(wanted.device)))
    from .demo.reproduce import LOG, reproduce_dream
    from .demo.reproduce_page import reproduce_picture

    with resumable(options.output) as folder, kept(folder / LOG, "finished networks and dreams", where=False):
        explanation = progress.drive(reproduce_dream(folder, wanted))
        write_study(explanation, folder, reproduce_picture, options.arguments)
    progress.end()
    tell(explanation, options.output, False, options.json)
    return DONE
