"""The picture that a training of an explainer renews each epoch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..evaluation.figure import new_figure


def samples_page(names: Sequence[str], images, negative, positive, classes: tuple[str, str], epoch: int, path) -> None:
    """Images kept back, G⁻ and G⁺ of each, and R.

    Parameters
    ----------
    names : sequence of str
        Of the images.
    images, negative, positive : ndarray, shape (n, H, W)
        x, G⁻(x) and G⁺(x) in network units.
    classes : (str, str)
        The positive and the negative class.
    epoch : int
        After which this is.
    path : path
        Where to write.

    Raises
    ------
    MedXAIError
        ``kind="missing"`` without matplotlib.
    """
    figure = new_figure(6.4, 1.6 * len(names) + 0.6)
    most = max(1e-6, float(np.percentile(np.abs(positive - negative), 99.8)))
    titles = ("x", f"G⁻: {classes[1]}", f"G⁺: {classes[0]}", "R = G⁺ − G⁻")
    lines = figure.subplots(len(names), 4, squeeze=False)
    for number, (line, name) in enumerate(zip(lines, names)):
        low, high = float(images[number].min()), float(images[number].max())
        for ax, shown in zip(line, (images[number], negative[number], positive[number])):
            ax.imshow(shown, cmap="gray", vmin=low, vmax=high)
        last = line[3].imshow(positive[number] - negative[number], cmap="RdBu_r", vmin=-most, vmax=most)
        for ax, title in zip(line, titles):
            ax.set_xticks([])
            ax.set_yticks([])
            if number == 0:
                ax.set_title(title, fontsize=7)
        line[0].set_ylabel(name[:24], fontsize=5)
    figure.colorbar(last, ax=lines[:, 3].tolist(), shrink=0.6).ax.tick_params(labelsize=5)
    figure.suptitle(f"Images kept back, after epoch {epoch}; R in network units", fontsize=8)
    figure.savefig(path)
