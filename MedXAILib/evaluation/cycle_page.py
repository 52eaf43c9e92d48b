"""A cohort of `cycle` on one page: the transfer and the agreement with their intervals, and the first cases by name as pictures."""

from __future__ import annotations

import numpy as np

from ..methods.attributions import TITLES
from .cycle_cases import OURS
from .cycle_cohort import CycleCohort
from .figure import new_figure

BLUE, RED, GREY, GREEN = "#2f6db3", "#c0392b", "#777777", "#2a9d4a"
_ENDS = {"deepshap": "logits", "deeptaylor": "logits", "lrp": "logits", "gradient": "logits per network unit"}


def cycle_picture(cohort: CycleCohort, path) -> None:
    """Write a cohort as a picture: means with 95 % intervals and every case as a point; x, G⁻(x), G⁺(x), R, the rivals and the cause of the first cases by name.

    Maps are blue for the negative and red for the positive class, white at 0, with one scale for each column.

    Raises
    ------
    MedXAIError
        ``kind="missing"`` without matplotlib.
    """
    rows = len(cohort.examples)
    methods = dict.fromkeys(name for one in cohort.examples for name in one.maps)
    caused = any(one.cause is not None for one in cohort.examples)
    shown = ["x", "G⁻(x)", "G⁺(x)", *methods, *["cause"] * caused]
    figure = new_figure(max(12.5, 1.75 * len(shown)), 4.6 + 1.75 * rows, "report")
    top, bottom = figure.subfigures(2, 1, height_ratios=(4.0, max(0.1, 1.75 * rows))) if rows else (figure, None)
    tested = "tests" in cohort.tables
    axes = top.subplots(1, 3 if tested else 1, squeeze=False)[0]
    _transfer(cohort, axes[0])
    if tested:
        _agreement(cohort, axes[1], "auc", "AUC of |map| for the cause", (0.0, 1.0), 0.5)
        _agreement(cohort, axes[2], "correlation", "Correlation of the map with the cause", None, 0.0)
    if bottom is not None:
        _pictures(cohort, bottom, shown)
    about, scores = cohort.provenance, cohort.scores
    top.suptitle(
        f"{about['model']['name']}: '{about['label']}' against '{about['negative']}', {scores['cases']} cases; accuracy {_told(scores, 'accuracy')}, "
        f"AUC {_told(scores, 'classifier_auc')}; the class changes in {_told(scores, 'flipped')}; cycle error {_told(scores, 'cycle_error')}",
        fontsize=9,
    )  # fmt: skip
    figure.savefig(path)


def _told(scores, name) -> str:
    if scores[name] != scores[name]:
        return "–"
    low, high = scores[f"{name}_low"], scores[f"{name}_high"]
    return f"{scores[name]:.3f}" + (f" [{low:.3f}, {high:.3f}]" if low == low else "")


def _points(ax, at, values, low, mean, high, color, jitter) -> None:
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    ax.plot(at + jitter.uniform(-0.2, 0.2, len(values)), values, ".", color=color, alpha=0.5, markersize=5, markeredgewidth=0)  # fmt: skip
    if mean == mean:
        ends = [[0], [0]] if low != low else [[mean - low], [high - mean]]
        ax.errorbar([at], [mean], ends, fmt="o", color="black", capsize=4, markersize=5)
        ax.text(at + 0.27, mean, f"{mean:.2f}", va="center", fontsize=8)


def _transfer(cohort, ax) -> None:
    table, cases, jitter = cohort.tables["transfer"].columns, cohort.tables["cases"].columns, np.random.default_rng(0)
    shown = (("G⁻(x)", "probability_negative", BLUE), ("x", "probability", GREY), ("G⁺(x)", "probability_positive", RED))  # fmt: skip
    for at, (name, column, color) in enumerate(shown):
        n = table["of"].index(name)
        _points(ax, at, cases[column], table["low"][n], table["probability"][n], table["high"][n], color, jitter)
    tests = []
    for name in ("x − G⁻(x)", "G⁺(x) − x"):
        n = table["of"].index(name)
        t, df, p, d = (table[one][n] for one in ("t", "df", "p", "d_z"))
        tests.append(f"{name}: t({df:.0f}) = {t:.1f}, p {_p(p)}, d_z = {d:.2f}" if t == t else f"{name}: –")
    ax.set_xticks(range(3), [name for name, *_ in shown])
    ax.set(xlim=(-0.5, 2.6), ylim=(-0.03, 1.03), ylabel=f"Probability of '{cohort.provenance['label']}'")
    ax.set_title("Transfer\n" + "\n".join(tests), fontsize=8)


def _agreement(cohort, ax, measure, title, limits, chance) -> None:
    table, cases = cohort.tables["agreement"].columns, cohort.tables["cases"].columns
    tests, jitter = cohort.tables["tests"].columns, np.random.default_rng(0)
    p = {rival: q for one, rival, q in zip(tests["measure"], tests["rival"], tests["p_holm"]) if one == measure}
    names = []
    for at, method in enumerate(table["method"]):
        n = table["method"].index(method)
        ends = (table[f"{measure}_low"][n], table[measure][n], table[f"{measure}_high"][n])
        _points(ax, at, cases[f"{measure}_{method}"], *ends, GREEN if method == OURS else GREY, jitter)
        names.append(TITLES.get(method, "R (ours)") + (f"\np {_p(p[method])}" if method in p else ""))
    ax.axhline(chance, color=GREY, linewidth=0.8, linestyle=":")
    ax.set_xticks(range(len(names)), names, fontsize=8)
    ax.set(xlim=(-0.5, len(names) - 0.3), ylim=limits)
    ax.set_title(f"{title}\n(p: Wilcoxon against R, Holm)", fontsize=8)


def _p(p) -> str:
    return "–" if p != p else "< 0.0001" if p < 1e-4 else f"= {p:.2g}"


def _pictures(cohort, figure, shown) -> None:
    axes = figure.subplots(len(cohort.examples), len(shown), squeeze=False)
    unit = cohort.examples[0].unit
    for column, name in enumerate(shown):
        drawn, maps = None, [_picture(one, column, name) for one in cohort.examples]
        high = 1.0
        if column > 2:
            sizes = np.concatenate([np.abs(one).ravel() for one in maps if one is not None] or [np.ones(1)])
            high = float(np.percentile(sizes, 99.5)) or float(sizes.max()) or 1.0
        for row, (one, values) in enumerate(zip(cohort.examples, maps)):
            ax = axes[row, column]
            ax.set(xticks=[], yticks=[])
            for side in ax.spines.values():
                side.set_visible(False)
            if values is None:
                continue
            if column > 2:
                drawn = ax.imshow(values, cmap="RdBu_r", vmin=-high, vmax=high, interpolation="nearest")
            else:
                drawn = ax.imshow(values, cmap="gray", vmin=one.window[0], vmax=one.window[1], interpolation="nearest")
                p = one.probability[(0, 1, 2)[column]]
                ax.set_xlabel(f"p = {p:.2f}", fontsize=7, labelpad=1)
            if column == 0:
                ax.set_ylabel(f"{one.name.rsplit('/')[-1].split('.')[0]}\n{one.label}", fontsize=6)
            if row == 0:
                ax.set_title("R = G⁺ − G⁻" if name == OURS else TITLES.get(name, name), fontsize=8)
        if drawn is not None:
            bar = figure.colorbar(drawn, ax=list(axes[:, column]), location="bottom", fraction=0.03, pad=0.01, aspect=12)  # fmt: skip
            bar.ax.tick_params(labelsize=6)
            bar.ax.locator_params(nbins=3)
            bar.set_label(_ENDS.get(name, unit or "units of the image"), fontsize=6)


def _picture(example, column, name):
    if column < 3:
        return example.images[column]
    return example.cause if name == "cause" else example.maps.get(name)
