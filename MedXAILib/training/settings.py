"""The settings of trainings; without torch, so that the command can tell them."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import MedXAIError
from ..settings import Settings, setting

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


#: The small 3-D U-Net of the demonstration (`MedXAILib.demo.train`).
DEMO = dict(
    steps=1600, batch=2, patch=40, learning_rate=6e-3, halve_every=0, loss="dice+cross-entropy", noise=0.02, shift=0.03, scale=0.05,
    flip=True, half=True, checkpoints=0,
)  # fmt: skip
