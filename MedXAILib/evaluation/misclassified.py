"""Misclassified images beside the back-projections of their strongest filters on one page (Kumar & Menkovski 2016, Fig. 4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .figure import new_figure


def misclassified_page(
    rows: Sequence[tuple[str, np.ndarray, Sequence[tuple[str, np.ndarray]]]], title: str, path
) -> None:
    """Write the page as a picture.

    Parameters
    ----------
    rows : sequence of (str, ndarray, sequence of (str, ndarray))
        What is told of the image, the image (H, W), and name and signed back-projection (H, W) of its filters, strongest first.
    title : str
        Of the page.

    Raises
    ------
    MedXAIError
        ``kind="missing"`` without matplotlib.
    """
    columns = 1 + max(len(maps) for *_, maps in rows)
    figure = new_figure(1.6 * columns, 1.9 * len(rows) + 0.6)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for (told, image, maps), line in zip(rows, axes):
        for ax in line:
            ax.axis("off")
        line[0].imshow(image, cmap="gray")
        line[0].set_title(told, fontsize=7)
        for (name, values), ax in zip(maps, line[1:]):
            size = np.abs(values)
            high = float(np.percentile(size, 99.5)) or float(size.max()) or 1.0
            ax.imshow(image, cmap="gray")
            ax.imshow(size, cmap="inferno", vmin=0, vmax=high, alpha=np.clip(size / high, 0, 1) * 0.85)
            ax.set_title(name, fontsize=7)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path)
