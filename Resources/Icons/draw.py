"""Draws the extension's and the modules' icons: ``python Resources/Icons/draw.py``."""

import sys
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Circle, Ellipse, FancyBboxPatch, Polygon

ROOT = Path(__file__).resolve().parents[2]
INK, PAPER, BLUE, HOT = "#16263d", "#f4f6f8", "#3f7fc1", "#f08c2e"


def canvas():
    """A transparent square from 0 to 1 that is saved as 128 x 128 pixels."""
    figure = plt.figure(figsize=(1.28, 1.28), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.axis("off")
    return figure, axes


def save(figure, path):
    """Write the drawing."""
    path = ROOT / path
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, transparent=True, metadata={"Software": None})
    plt.close(figure)


def tile(axes, colour=INK):
    """The rounded ground every icon has, so that it reads on a light and on a dark theme."""
    axes.add_patch(
        FancyBboxPatch((0.09, 0.09), 0.82, 0.82, boxstyle="round,pad=0.07,rounding_size=0.16", fc=colour, ec="none")
    )


def glow(axes, x, y, radius, inside):
    """A heat spot that fades into the ground."""
    v, u = np.mgrid[0:1:256j, 0:1:256j]
    heat = np.exp(-(((u - x) ** 2 + (v - y) ** 2) / (2 * radius**2)))
    colours = plt.get_cmap("inferno")(0.25 + 0.7 * heat)
    colours[..., 3] = np.clip((heat - 0.08) * 2.2, 0, 1)
    image = axes.imshow(colours, extent=(0, 1, 0, 1), origin="lower", interpolation="bilinear", zorder=3)
    image.set_clip_path(inside)
    axes.set(xlim=(0, 1), ylim=(0, 1))


def extension():
    """A section of a head, one hot spot in it, and the lens that looks at it."""
    figure, axes = canvas()
    tile(axes)
    head = Ellipse((0.46, 0.54), 0.60, 0.70, fc="#8d99a8", ec=PAPER, lw=3.2, zorder=2)
    axes.add_patch(head)
    axes.plot([0.46, 0.46], [0.24, 0.85], color="#6d7a8a", lw=1.6, zorder=2.5)
    glow(axes, 0.58, 0.47, 0.10, head)
    axes.add_patch(Circle((0.60, 0.45), 0.19, fc="none", ec=HOT, lw=5, zorder=5))
    axes.plot([0.74, 0.88], [0.31, 0.14], color=HOT, lw=8, solid_capstyle="round", zorder=5)
    save(figure, "Resources/MedXAI.png")


def deep_dream():
    """Steps that climb to a hot spot."""
    figure, axes = canvas()
    tile(axes)
    ground = FancyBboxPatch(
        (0.09, 0.09), 0.82, 0.82, boxstyle="round,pad=0.07,rounding_size=0.16", fc="none", ec="none"
    )
    axes.add_patch(ground)
    glow(axes, 0.68, 0.70, 0.13, ground)
    for radius, alpha in ((0.16, 1.0), (0.25, 0.75), (0.34, 0.5)):
        axes.add_patch(
            Circle((0.68, 0.70), radius, fc="none", ec=PAPER, lw=2.4, alpha=alpha, zorder=2, clip_path=ground)
        )
    x = np.linspace(0.13, 0.60, 60)
    y = 0.16 + 0.42 / (1 + np.exp(-(x - 0.38) * 14))
    axes.plot(x, y, color=PAPER, lw=6, solid_capstyle="round", zorder=6)
    axes.add_patch(Polygon([(0.56, 0.67), (0.69, 0.60), (0.57, 0.50)], closed=True, fc=PAPER, ec="none", zorder=6))
    save(figure, "MedXAI/MedXAIDeepDream/Resources/Icons/MedXAIDeepDream.png")


def ability():
    """The way from image to output: scores of layers that rise to an object found."""
    figure, axes = canvas()
    tile(axes)
    axes.add_patch(Ellipse((0.62, 0.66), 0.46, 0.34, angle=25, fc=HOT, ec="none", alpha=0.45, zorder=2))
    axes.add_patch(Ellipse((0.62, 0.66), 0.46, 0.34, angle=25, fc="none", ec=HOT, lw=4, zorder=3))
    x, y = [0.16, 0.33, 0.50, 0.67, 0.84], [0.17, 0.22, 0.33, 0.50, 0.70]
    axes.plot(x, y, color=PAPER, lw=4.5, solid_capstyle="round", zorder=5)
    for n, (u, v) in enumerate(zip(x, y)):
        axes.add_patch(Circle((u, v), 0.058, fc=BLUE if n < 4 else HOT, ec=PAPER, lw=2.6, zorder=6))
    save(figure, "MedXAI/MedXAISegmentationAbility/Resources/Icons/MedXAISegmentationAbility.png")


def back_projection():
    """A filter's answer that goes back to the place in the image it came from."""
    figure, axes = canvas()
    tile(axes)
    for n in range(3):
        for m in range(3):
            hot = (n, m) == (2, 2)
            corner = (0.60 + 0.12 * n, 0.55 + 0.12 * m)
            axes.add_patch(Polygon([corner, (corner[0] + 0.10, corner[1]), (corner[0] + 0.10, corner[1] + 0.10), (corner[0], corner[1] + 0.10)],
                                   closed=True, fc=HOT if hot else "#7d8da1", ec="none"))  # fmt: skip
    image = FancyBboxPatch(
        (0.13, 0.14), 0.44, 0.44, boxstyle="round,pad=0.02,rounding_size=0.04", fc="#8d99a8", ec=PAPER, lw=2.6
    )
    axes.add_patch(image)
    glow(axes, 0.31, 0.38, 0.085, image)
    axes.annotate("", (0.33, 0.40), (0.85, 0.80), zorder=6,
                  arrowprops=dict(arrowstyle="-|>,head_width=0.32,head_length=0.5", color=PAPER, lw=3.6, connectionstyle="arc3,rad=0.38"))  # fmt: skip
    save(figure, "MedXAI/MedXAIFeatureBackProjection/Resources/Icons/MedXAIFeatureBackProjection.png")


def counterfactual():
    """The same organ twice: with the finding, and with a hole where it was."""
    figure, axes = canvas()
    tile(axes)
    for x, finding in ((0.29, True), (0.71, False)):
        organ = Ellipse((x, 0.54), 0.34, 0.62, fc="#8d99a8", ec=PAPER, lw=2.8, zorder=2)
        axes.add_patch(organ)
        if finding:
            axes.add_patch(Circle((x, 0.50), 0.085, fc=HOT, ec="none", zorder=3))
        else:
            axes.add_patch(Circle((x, 0.50), 0.095, fc="none", ec=HOT, lw=3, ls=(0, (1.6, 1.2)), zorder=3))
    axes.plot([0.16, 0.84], [0.13, 0.13], color="#7d8da1", lw=4, solid_capstyle="round", zorder=4)
    axes.add_patch(Circle((0.62, 0.13), 0.05, fc=PAPER, ec="none", zorder=5))
    save(figure, "MedXAI/MedXAICounterfactualImpact/Resources/Icons/MedXAICounterfactualImpact.png")


def cycle():
    """A nodule that is smooth on one side and spiculated on the other, and the way round between both."""
    figure, axes = canvas()
    tile(axes)
    x, y, radius = 0.5, 0.5, 0.155
    angles = np.linspace(-np.pi / 2, np.pi / 2, 400)
    spikes = radius + 0.115 * np.clip(np.cos(7 * angles), 0, 1) ** 1.5
    outline = [(x + r * np.cos(a), y + r * np.sin(a)) for a, r in zip(angles, spikes)]
    axes.add_patch(Polygon(outline, closed=True, fc=HOT, ec="none", zorder=3))
    smooth = [(x - radius * np.cos(a), y + radius * np.sin(a)) for a in angles]
    axes.add_patch(Polygon(smooth, closed=True, fc="#9fb4cc", ec="none", zorder=3))
    axes.plot([x, x], [y - radius, y + radius], color=PAPER, lw=2.2, zorder=4)
    for start, end in (((0.80, 0.66), (0.20, 0.66)), ((0.20, 0.34), (0.80, 0.34))):
        axes.annotate("", end, start, zorder=5,
                      arrowprops=dict(arrowstyle="-|>,head_width=0.3,head_length=0.5", color=PAPER, lw=3.6, connectionstyle="arc3,rad=0.62"))  # fmt: skip
    save(figure, "MedXAI/MedXAICycleExplanation/Resources/Icons/MedXAICycleExplanation.png")


def models():
    """Layers of a network in a folder's place: a stack of planes."""
    figure, axes = canvas()
    tile(axes)
    for y, colour in ((0.27, "#7d8da1"), (0.45, BLUE), (0.63, HOT)):
        plane = [(0.13, y), (0.50, y - 0.14), (0.87, y), (0.50, y + 0.14)]
        axes.add_patch(Polygon(plane, closed=True, fc=colour, ec=PAPER, lw=2.6, joinstyle="round"))
    axes.add_patch(Circle((0.50, 0.84), 0.045, fc=PAPER, ec="none"))
    axes.plot([0.50, 0.50], [0.66, 0.82], color=PAPER, lw=2.6)
    save(figure, "MedXAI/MedXAIModels/Resources/Icons/MedXAIModels.png")


def sample():
    """The phantom of the tutorial, for Sample Data (260 x 280 pixels)."""
    sys.path.insert(0, str(ROOT))
    from MedXAILib.demo.phantom import case
    from MedXAILib.demo.run import PATIENT

    image = case(PATIENT, lesions=False).image
    figure = plt.figure(figsize=(2.6, 2.8), dpi=100, facecolor="black")
    axes = figure.add_axes((0, 0, 1, 1))
    section = image.array[image.shape[0] // 2]
    across = (
        image.orientation[0] == "R",
        image.orientation[1] == "P",
    )  # radiological view: the patient's right on the left
    axes.imshow(section[:: 1 if across[1] else -1, :: -1 if across[0] else 1], cmap="gray", vmin=-160, vmax=240)
    axes.axis("off")
    figure.savefig(
        ROOT / "MedXAI/MedXAIDeepDream/Resources/Icons/MedXAILiverPhantom.png", dpi=100, metadata={"Software": None}
    )
    plt.close(figure)


if __name__ == "__main__":
    extension()
    deep_dream()
    ability()
    back_projection()
    counterfactual()
    cycle()
    models()
    sample()
