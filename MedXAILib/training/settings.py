"""The settings of trainings; without torch, so that the command can tell them."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import MedXAIError
from ..settings import Settings, check_where, setting

LEVELS = 5  # of the U-Net of He et al. 2023: 18 convolutions of size 3, as in their Fig. 4


@dataclass(frozen=True)
class TrainingSettings(Settings):
    """Settings of `train`. The defaults are those of He et al. 2023 (section 4.2)."""

    epochs: int = setting(50, "Times that every training image is seen.", low=1, high=10**6)
    steps: int = setting(0, "Optimiser steps in place of epochs; 0: as many as the epochs take.", low=0, high=10**7)
    batch: int = setting(10, "Images per step.", low=1, high=1024)
    learning_rate: float = setting(1e-4, "Learning rate of Adam at the start.", low=1e-8, high=1)
    halve_every: int = setting(
        20, "Epochs after which the learning rate is halved; 0: it falls to a hundredth on a cosine.", low=0, high=10**6
    )
    loss: str = setting("cross-entropy", "Loss of the output.", choices=("cross-entropy", "dice+cross-entropy"))
    ability_loss: bool = setting(False, "Add the segmentation ability of the layers to the loss (online ProtoSeg).")
    layers: tuple[str, ...] = setting(
        (), "Modules whose ability counts; by default the end of every convolution block."
    )
    patch: int = setting(
        0, "Edge of a patch, shortened where the image is smaller; 0: whole images.", low=0, high=4096, unit="voxels"
    )
    foreground: float = setting(0.85, "Share of patches centred on a voxel of a foreground label.", low=0, high=1)
    noise: float = setting(0.0, "Largest SD of the noise added to an image, in network units.", low=0, high=10)
    shift: float = setting(0.0, "Largest shift of intensity, in network units.", low=0, high=10)
    scale: float = setting(0.0, "Largest relative change of contrast.", low=0, high=0.9)
    flip: bool = setting(False, "Mirror images along each axis at random.")
    checkpoints: int = setting(5, "Weights kept on the way, evenly spaced, the last ones included.", low=0, high=1000)
    half: bool = setting(False, "Store the weights as 16-bit numbers.")
    seed: int = setting(0, "Seed of everything random.", low=0, high=2**31 - 1)
    device: str = setting("cpu", "Where to compute, as torch names it.")


@dataclass(frozen=True)
class SegmentationSettings(TrainingSettings):
    """Settings of `medxai train segmentation` with the preset ``paper``: the 18-layer U-Net of He et al. 2023 (Fig. 4) on 2-D slices."""

    filters: int = setting(
        64, "Filters of the U-Net's first level; each level below has twice as many.", low=1, high=1024
    )
    segment: str = setting("", "Segment to learn, by name or label value; may be left out where each mask holds one.")
    slices: int = setting(
        0, "Slices of each case at most, those with most of the object; 0: all that hold it.", low=0, high=10**6
    )
    size: int = setting(
        0, "Edge of the square that every slice is resized to; 0: slices as they are.", low=0, high=4096, unit="pixels"
    )
    window: tuple[float, float] | None = setting(
        None,
        "Values of the volume that become 0 and 1, what is outside is clipped; by default mean 0 and SD 1 in each slice.",
    )
    seeds: int = setting(1, "Trainings, from --seed on.", low=1, high=1000)
    test_share: float = setting(
        0.2, "Share of the cases of the folder that are kept for judging, drawn with --seed.", low=0, high=0.9
    )
    cases: int = setting(240, "Phantoms to train on: seeds from 0.", low=1, high=1000)
    test_cases: int = setting(60, "Phantoms to judge on: seeds from 1000.", low=0, high=10**6)

    def __post_init__(self):
        super().__post_init__()
        if self.size and (self.size % 2 ** (LEVELS - 1) or self.size < 2**LEVELS):
            raise MedXAIError(
                f"--size is {self.size}; it takes 0 or a multiple of {2 ** (LEVELS - 1)}, at least {2**LEVELS}."
            )


#: The classes of the three networks of Kumar & Menkovski 2016, by the name of the setting ``network``.
PAPER_CLASSIFIERS = {"shallow": "ShallowCNN", "deeper": "DeeperCNN", "deeper-bn": "DeeperBNCNN"}
#: And a small residual network of MONAI that ends in global average pooling, so that CAM is defined on it.
#: The classifier of Katzmann et al. 2021, with strides in place of pooling.
CLASSIFIERS = {**PAPER_CLASSIFIERS, "resnet": "ResNet", "strided": "StridedCNN"}


@dataclass(frozen=True)
class ClassificationSettings(Settings):
    """Settings of `medxai train classification`: the networks of Kumar & Menkovski 2016, and others. What the paper does not tell is chosen, and said so."""

    network: str = setting(
        "deeper-bn",
        "Network of the paper's Table 2, 3 or 4, all three side by side, a small residual network (9 convolutions, average pooling), or that of Katzmann et al. 2021"
        " (4 strided convolutions).",
        choices=(*CLASSIFIERS, "all"),
    )
    width: float = setting(1.0, "Factor for the number of filters and units; 1: the paper's.", low=0.01, high=16)
    dropout: float = setting(
        1.0, "Factor for the probabilities of dropout; 1: the paper's. Narrow networks learn little with them.", low=0, high=1.5
    )  # fmt: skip
    size: int = setting(224, "Edge of the square that every image is resized to.", low=16, high=4096, unit="pixels")
    spacing: float = setting(
        0.0, "Pixel that images are resampled to, so that a square of --size pixels has a physical size; an image that is not of that size is skipped."
        " 0: the size is resized to, whatever an image's pixels are.",
        low=0, high=100, unit="mm",
    )  # fmt: skip
    epochs: int = setting(30, "Times that every training image is seen (not told in the paper).", low=1, high=10**6)
    batch: int = setting(32, "Images per step (not told in the paper).", low=1, high=4096)
    learning_rate: float = setting(
        1e-3, "Learning rate of Adam at the start, falling to a hundredth on a cosine (not told in the paper).", low=1e-8, high=1
    )  # fmt: skip
    augment: str = setting(
        "paper", "Which networks see varied images: those of the papers that do, and the residual one, all, or none.", choices=("paper", "all", "none")
    )  # fmt: skip
    rotation: float = setting(10.0, "Varied images: largest turn either way.", low=0, high=180, unit="degrees")
    translation: float = setting(0.05, "Varied images: largest shift along each axis, as a share of the edge.", low=0, high=0.5)  # fmt: skip
    shear: float = setting(5.0, "Varied images: largest shear either way.", low=0, high=45, unit="degrees")
    stretch: float = setting(0.1, "Varied images: largest relative change of width and of height.", low=0, high=0.5)
    crop: float = setting(0.1, "Varied images: largest share of the edge that is cut off, at a random place.", low=0, high=0.9)  # fmt: skip
    flip: bool = setting(False, "Varied images: mirror half of them left to right; only where no class depends on the side.")  # fmt: skip
    class_weights: bool = setting(False, "Weigh classes in the loss by how rare they are.")
    intensity: str = setting(
        "auto", "Network units: 8-bit values (x / 255 - 0.5) / 0.25, or mean 0 and SD 1 in each image; auto: the first where all images are 8-bit.",
        choices=("auto", "uint8", "zscore"),
    )  # fmt: skip
    window: tuple[float, float] | None = setting(
        None, "In place of it: values of the image that become 0 and 1; what is outside is clipped."
    )
    table: str = setting("", "Table of the images (CSV); by default labels.csv in the folder, or one folder per class.")
    label_column: str = setting("label", "Column of the table that holds the class.")
    image_column: str = setting("image", "Column that holds the file name, in the folder or in its folder 'images'.")
    group_column: str = setting(
        "", "Column whose equal values stay on one side of the split; by default patient_id, where the table has it."
    )
    split_column: str = setting("", "Column that says train or test; by default the split is drawn with --seed.")
    test_share: float = setting(0.1, "Share of the images of each class that is kept for judging.", low=0.01, high=0.9)
    checkpoints: int = setting(5, "Weights kept on the way, evenly spaced, the last ones included.", low=0, high=1000)
    half: bool = setting(False, "Store the weights as 16-bit numbers.")
    heat_cases: int = setting(
        100, "Kept-back images, drawn at random, whose back-projection is judged, at most; 0: none.", low=0, high=10**6
    )
    filters: int = setting(25, "Strongest filters in the heat map.", low=1, high=100000)
    show_errors: int = setting(
        6, "Misclassified images shown with their filter maps, the first by name.", low=0, high=40
    )
    cases: int = setting(100, "With --phantom, phantoms to train on: seeds from 0.", low=8, high=1000)
    test_cases: int = setting(80, "With --phantom, phantoms to judge on: seeds from 1000.", low=8, high=10**6)
    seed: int = setting(0, "Seed of everything random.", low=0, high=2**31 - 1)
    device: str = setting("cpu", "Where to compute, as torch names it.")

    def __post_init__(self):
        super().__post_init__()
        _check_window(self.window)

    @property
    def networks(self) -> tuple[str, ...]:
        """The networks to train, by name."""
        return tuple(PAPER_CLASSIFIERS) if self.network == "all" else (self.network,)

    def varied(self, network: str) -> bool:
        """Whether a network sees varied images."""
        return self.augment == "all" or (self.augment == "paper" and network not in ("shallow", "deeper", "strided"))


def _check_window(window) -> None:
    if window and window[0] >= window[1]:
        raise MedXAIError(f"--window is {window[0]:g} {window[1]:g}; the first value must be the smaller one.")


@dataclass(frozen=True)
class InpainterSettings(Settings):
    """Settings of `medxai train inpainter`. The schedule is that of Major et al. 2020 (section 3), the loss that of Liu et al. 2018 (eq. 1 to 7)."""

    match: str = setting(
        "", "Folder of the classifier that the inpainter is to fit: channel, orientation, spacing, size and intensity are taken from it."
    )  # fmt: skip
    dims: int = setting(2, "Dimensions of the network.", low=2, high=3)
    size: int = setting(
        0, "Edge of the square that every image is resized to, or of the random cubes cut from 3-D volumes; 0: whole images, all of one size.",
        low=0, high=4096, unit="pixels",
    )  # fmt: skip
    width: float = setting(1.0, "Factor for the number of filters; 1: the paper's.", low=0.01, high=16)
    levels: int = setting(
        0, "Encoder layers, and as many decoder layers; 0: as many halvings as leave more than one pixel, 8 at most (the paper's).", low=0, high=8
    )  # fmt: skip
    epochs: int = setting(100, "Epochs of the first phase.", low=1, high=10**6)
    learning_rate: float = setting(1e-5, "Learning rate of Adam in the first phase.", low=1e-8, high=1)
    second_epochs: int = setting(
        50, "Epochs of the second phase, with the encoder's batch normalisation frozen; 0: none.", low=0, high=10**6
    )
    second_learning_rate: float = setting(1e-6, "Learning rate of Adam in the second phase.", low=1e-8, high=1)
    batch: int = setting(1, "Images per step.", low=1, high=1024)
    patience: int = setting(
        0, "Epochs without a better loss on the images kept back after which a phase ends, and the best weights count; 0: never, and the last ones count.",
        low=0, high=10**6,
    )  # fmt: skip
    validation_share: float = setting(0.1, "Share of the images that is kept back, at least one.", low=0.01, high=0.5)
    holes: int = setting(400, "Blocks in one image at most; how many is drawn anew each time.", low=1, high=100000)
    hole_size: int = setting(8, "Edge of a block.", low=1, high=512, unit="pixels")
    clusters: float = setting(
        0.5, "How often a cluster of touching blocks is set in place of a single one.", low=0, high=1
    )
    cluster_size: float = setting(
        0.25, "Largest extent of a cluster along an axis, as a share of the image's shortest edge.", low=0.01, high=1
    )
    largest: float = setting(
        0.25, "Share of the image that may be hole: fewer blocks in small images, and smaller ones in those that one block would exceed.",
        low=0.001, high=0.9,
    )  # fmt: skip
    valid_weight: float = setting(1.0, "Weight of the error outside holes.", low=0, high=1e6)
    hole_weight: float = setting(6.0, "Weight of the error in holes.", low=0, high=1e6)
    perceptual_weight: float = setting(0.05, "Weight of the difference in features.", low=0, high=1e6)
    style_weight: float = setting(120.0, "Weight of the difference in the features' Gram matrices.", low=0, high=1e6)
    tv_weight: float = setting(0.1, "Weight of the total variation in and around holes.", low=0, high=1e6)
    perceptual: str = setting(
        "",
        "Folder of a network whose features count, never the classifier to be explained; empty: perceptual and style loss are left out.",
    )
    perceptual_layers: tuple[str, ...] = setting(
        (), "Its layers, by name, module path or number; by default its first three blocks."
    )
    flip: bool = setting(False, "Mirror images along each axis at random.")
    intensity: str = setting(
        "auto", "Network units: 8-bit values (x / 255 - 0.5) / 0.25, or mean 0 and SD 1 in each image; auto: the first where all images are 8-bit.",
        choices=("auto", "uint8", "zscore"),
    )  # fmt: skip
    window: tuple[float, float] | None = setting(
        None, "In place of it: values of the image that become 0 and 1; what is outside is clipped."
    )
    table: str = setting("", "Table of the images (CSV); by default labels.csv in the folder, or every image in it.")
    image_column: str = setting("image", "Column that holds the file name, in the folder or in its folder 'images'.")
    where: tuple[str, ...] = setting(
        (), "Rows of the table to take, such as 'finding=No Finding'; of several conditions all must hold."
    )
    split_column: str = setting(
        "", "Column that says train or test: rows with train are trained on, those with test are for --healthy."
    )
    group_column: str = setting(
        "", "Column whose equal values are kept back together; by default patient_id, where the table has it."
    )
    finding_label: str = setting("", "With --classifier: its class for images with a finding; empty: its last label.")
    segment: str = setting(
        "",
        "With --findings: the segment of the masks that is the finding, by name or label value; empty: all there are.",
    )
    organ: str = setting(
        "",
        "With --findings: the segment that holds healthy tissue; empty: the body, by Otsu's threshold, or the image.",
    )
    draws: int = setting(
        10, "With --classifier: times that each image is inpainted with other holes.", low=1, high=1000
    )
    margin: int = setting(2, "With --classifier: largest distance from a finding up to which it is covered.", low=0, high=512, unit="pixels")  # fmt: skip
    checkpoints: int = setting(5, "Weights kept on the way, evenly spaced, the last ones included.", low=0, high=1000)
    half: bool = setting(False, "Store the weights as 16-bit numbers.")
    seed: int = setting(0, "Seed of everything random.", low=0, high=2**31 - 1)
    device: str = setting("cpu", "Where to compute, as torch names it.")

    def __post_init__(self):
        super().__post_init__()
        if self.size and self.size < 8:
            raise MedXAIError(f"--size is {self.size}; it takes 0 or at least 8 pixels.")
        _check_window(self.window)
        check_where(self.where)


#: The small 3-D U-Net of the demonstration (`MedXAILib.demo.train`).
DEMO = dict(
    steps=1600, batch=2, patch=40, learning_rate=6e-3, halve_every=0, loss="dice+cross-entropy", noise=0.02, shift=0.03, scale=0.05,
    flip=True, half=True, checkpoints=0,
)  # fmt: skip
