"""A cohort of `counterfactual` on one page: D, H and A of every method, with Dice and hits in words."""

from __future__ import annotations

import math

import numpy as np

from ..explanation import Explanation
from .figure import new_figure

_TITLES = {
    "D": "D: between centres [mm]",
    "H": "H: Hausdorff distance [mm]",
    "A": "A: share of the organ",
}
_COLORS = {"ours": "#2a9d4a", "ablation": "#9bcfa8", "cam": "#3b6fb6", "sal": "#888888"}


def impact_picture(explanation: Explanation, path) -> None:
    """Write the figures of a cohort as a picture: a box and every case for each method, with n and Holm's p against ours.

    Raises
    ------
    MedXAIError
        ``kind="missing"`` without matplotlib.
    """
    figure = new_figure(14, 6.2, "report")
    cases, about, scores = explanation.tables["cases"].columns, explanation.provenance, explanation.scores
    methods, jitter = explanation.tables["methods"].columns["method"], np.random.default_rng(0)
    tests = explanation.tables["tests"].columns
    p_values = {
        (measure, rival if math.isnan(q) else f"{rival}_{q:g}"): p
        for measure, rival, q, p in zip(*(tests[name] for name in ("measure", "rival", "percentile", "p_holm")))
    }
    for (measure, title), ax in zip(_TITLES.items(), figure.subplots(1, 3)):
        names = []
        for at, method in enumerate(methods):
            values = np.array(cases[f"{measure}_{method}"], float)
            values = values[np.isfinite(values)]
            kind, _, percentile = method.partition("_")
            color = _COLORS[kind]
            ax.plot(at + jitter.uniform(-0.25, 0.25, len(values)), values, ".", color=color, alpha=0.6, markersize=4)
            if len(values):
                ax.boxplot(values, positions=[at], widths=0.6, showfliers=False, medianprops={"color": "black"})
            named = {"ours": "ours", "ablation": "ablation", "cam": "/".join(about["cam"]), "sal": "saliency"}[kind]
            names.append(
                f"{named} {percentile}\nn {len(values)}"
                + f"\np {_short(p_values.get((measure, method), math.nan))}" * (kind != "ours")
            )
        ax.set_xticks(range(len(methods)), names, fontsize=7, rotation=45, ha="right", rotation_mode="anchor")
        ax.set(title=title, ylim=(0, None))
    figure.suptitle(
        f"{about['model']['name']}, '{about['label']}': {scores['cases']} cases ({scores['without_region']} without a region), inpainter "
        f"{about['inpainter']['name']}{' (a fall-back)' if about['inpainter']['fallback'] else ''}; Dice {_short(scores['dice'])}, "
        f"hits in {_short(scores['hit'])} of cases, drop kept in {_short(scores['drop_kept_passed'])}; boxes: quartiles; p: Wilcoxon against ours, Holm",
        fontsize=9,
    )  # fmt: skip
    figure.savefig(path)


def _short(value) -> str:
    return "–" if math.isnan(value) else f"{value:.2g}"
