"""The generators G⁺ and G⁻ of cycle-consistent activation maximization (Katzmann et al. 2021, section 3.2 and Fig. 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import MedXAIError

FILTERS = (48, 96, 192, 384)  # of stages 0 to 3
CONVOLUTIONS = 3  # of a stage
MULTIPLE = 2 ** (len(FILTERS) - 1)  # sizes are padded to multiples of it
SLOPE = 0.2  # of the leaky rectifiers
CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_POOL = {2: nn.AvgPool2d, 3: nn.AvgPool3d}


def widths(width: float) -> list[int]:
    """Filters of each stage; at least 4."""
    return [max(4, round(width * one)) for one in FILTERS]


def draw(network: nn.Module) -> None:
    """Weights of convolutions as He et al. 2015, for leaky rectifiers; biases 0."""
    for module in network.modules():
        if isinstance(module, tuple(CONV.values())):
            nn.init.kaiming_normal_(module.weight, SLOPE)
            nn.init.zeros_(module.bias)


class Stage(nn.Sequential):
    """Convolutions of size 3, each with a leaky rectifier; the size stays."""

    def __init__(self, dims: int, before: int, after: int, count: int = CONVOLUTIONS):
        parts = []
        for channels in (before, *[after] * (count - 1)):
            parts += [CONV[dims](channels, after, 3, padding=1), nn.LeakyReLU(SLOPE, inplace=True)]
        super().__init__(*parts)


class Encoder(nn.Module):
    """The stages on the way down, with the mean of 2 × 2 (× 2) between them.

    Input (N, channels, *spatial), output a list with the features of each stage, (N, `widths`[n], *spatial / 2ⁿ).
    """

    def __init__(self, spatial_dims: int, channels: int, width: float = 1.0):
        super().__init__()
        self.pool = _POOL[spatial_dims](2)
        counts = widths(width)
        self.stages = nn.ModuleList(Stage(spatial_dims, a, b) for a, b in zip([channels, *counts], counts))

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for number, stage in enumerate(self.stages):
            x = stage(self.pool(x) if number else x)
            found.append(x)
        return found


class Generator(nn.Module):
    """A U-Net of depth 3 with three convolutions a stage and resize-convolutions on the way up: transposed ones would leave a checkerboard in R.

    Parameters
    ----------
    spatial_dims : int
        2 or 3.
    channels : int
        Of the image, and of what comes out.
    width : float
        Factor for the filters, 48, 96, 192, 384; 1 is the paper's.
    residual : bool
        Whether what the last convolution gives, 0 at the start, is added to the image.

    Notes
    -----
    The paper leaves open, and here it is: leaky rectifiers; the mean of 2 × 2 (× 2) on the way down; nearest neighbours before the convolution on the way up; no
    normalisation, so that what happens at a voxel depends on its surroundings alone and windows that overlap enough give what the whole image gives.
    Input and output (N, channels, *spatial) in network units, of any size: inside, the border is repeated up to a multiple of `MULTIPLE`.
    """

    def __init__(self, spatial_dims: int, channels: int, width: float = 1.0, residual: bool = True):
        super().__init__()
        counts = widths(width)
        self.residual = residual
        self.encoder = Encoder(spatial_dims, channels, width)
        steps = list(zip(counts[1:], counts))[::-1]
        self.grow = nn.Upsample(scale_factor=2, mode="nearest")
        self.up = nn.ModuleList(Stage(spatial_dims, a, b, 1) for a, b in steps)
        self.merge = nn.ModuleList(Stage(spatial_dims, 2 * b, b) for _, b in steps)
        self.last = CONV[spatial_dims](counts[0], channels, 3, padding=1)
        self.draw()

    def draw(self) -> None:
        """Draw the weights anew."""
        draw(self)
        if self.residual:
            nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        missing = [-n % MULTIPLE for n in x.shape[2:]]
        if any(missing):  # repeat the border, and cut it off again
            padded = functional.pad(x, [n for one in reversed(missing) for n in (0, one)], mode="replicate")
            return self(padded)[(..., *(slice(n) for n in x.shape[2:]))]
        *kept, found = self.encoder(x)
        for up, merge in zip(self.up, self.merge):
            found = merge(torch.cat([kept.pop(), up(self.grow(found))], 1))
        found = self.last(found)
        return x + found if self.residual else found


class GeneratorPair(nn.Module):
    """G⁺ and G⁻ side by side.

    Parameters as `Generator`. Input (N, channels, *spatial), output (N, 2 · channels, *spatial): G⁺(x), then G⁻(x).
    """

    def __init__(self, spatial_dims: int, channels: int, width: float = 1.0, residual: bool = True):
        super().__init__()
        if spatial_dims not in CONV:
            raise MedXAIError(f"Generators have 2 or 3 spatial dimensions, not {spatial_dims}.")
        self.positive = Generator(spatial_dims, channels, width, residual)
        self.negative = Generator(spatial_dims, channels, width, residual)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.positive(x), self.negative(x)], 1)
