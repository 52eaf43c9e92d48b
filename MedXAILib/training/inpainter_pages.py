"""The pictures that a training of an inpainter writes: examples, and ROC curves as in Fig. 2 of Major et al. 2020."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..evaluation.figure import new_figure


def examples_page(rows: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]], title: str, path) -> None:
    """Images, with holes, and inpainted.

    Parameters
    ----------
    rows : sequence of (str, ndarray, ndarray, ndarray)
        Name; image, holes (bool) and what was put into them, each (H, W).
    title : str
        Of the page.

    Raises
    ------
    MedXAIError
        ``kind="missing"`` without matplotlib.
    """
    figure = new_figure(6.0, 2.0 * len(rows) + 0.6)
    for line, (name, image, hole, made) in zip(figure.subplots(len(rows), 3, squeeze=False), rows):
        low, high = float(image.min()), float(image.max())
        for ax, shown, told in zip(
            line, (image, image, np.where(hole, made, image)), (name, f"holes: {hole.mean():.0%}", "inpainted")
        ):
            ax.axis("off")
            ax.imshow(shown, cmap="gray", vmin=low, vmax=high)
            ax.set_title(told, fontsize=7)
        line[1].imshow(np.ma.masked_where(~hole, hole), cmap="autumn", interpolation="nearest")
    figure.suptitle(title, fontsize=8, wrap=True)
    figure.savefig(path)


#: Conditions of the validation in the paper's order, with the colour of its Fig. 2 and what they are called.
CONDITIONS = {
    "original": ("tab:green", "as they are"),
    "healthy": ("tab:blue", "inpainted in healthy tissue"),
    "finding": ("tab:red", "inpainted in the finding"),
}


def roc_page(curves: dict[str, list[tuple[np.ndarray, np.ndarray]]], told: dict[str, str], title: str, path) -> None:
    """ROC curves: every draw thin, their mean thick.

    Parameters
    ----------
    curves : dict of list of (ndarray, ndarray)
        False and true positive rate of each draw, by condition.
    told : dict of str
        AUC with its interval, by condition.
    title : str
        Of the page.

    Raises
    ------
    MedXAIError
        ``kind="missing"`` without matplotlib.
    """
    figure = new_figure(5.0, 5.2)
    ax, at = figure.subplots(), np.linspace(0, 1, 201)
    for name, draws in curves.items():
        color, words = CONDITIONS[name]
        steps = [np.interp(at, fpr, tpr) for fpr, tpr in draws]
        if len(draws) > 1:
            for one in steps:
                ax.plot(at, one, color=color, linewidth=0.5, alpha=0.3)
        ax.plot(at, np.mean(steps, 0), color=color, linewidth=1.8, label=f"{words}: {told[name]}")
    ax.plot((0, 1), (0, 1), color="gray", linewidth=0.6, linestyle=":")
    ax.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(0, 1), ylim=(0, 1.01), aspect="equal")
    ax.legend(loc="lower right", fontsize=7)
    ax.set_title(title, fontsize=8, wrap=True)
    figure.savefig(path)
