"""The project's own networks. A package names one of them by its class name (`NETWORKS`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_UP = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}


class _Double(nn.Sequential):
    """Two 3×3(×3) convolutions, each with batch normalisation and rectifier."""

    def __init__(self, dims: int, before: int, after: int):
        parts = []
        for channels in (before, after):
            convolution = _CONV[dims](channels, after, 3, padding=1, bias=False)
            parts += [convolution, _NORM[dims](after), nn.ReLU(inplace=True)]
        super().__init__(*parts)


class PlainUNet(nn.Module):
    """The plain U-Net of Couteaux et al. 2019 (section 3): a max-pooling or up-convolution after every two convolutions.

    Parameters
    ----------
    spatial_dims : int
        2 or 3.
    in_channels, out_channels : int
        Channels of the image, and of the logits.
    filters : int
        Filters of the first level; each level below has twice as many.
    levels : int
        Resolutions. With 4, there are 14 convolutions of size 3, 3 up-convolutions and a last one of size 1: 18 layers.

    Notes
    -----
    Sizes must be multiples of ``2 ** (levels - 1)``. Input (N, in_channels, *spatial), output (N, out_channels, *spatial).
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, filters: int = 16, levels: int = 4):
        super().__init__()
        widths = [filters * 2**level for level in range(levels)]
        self.pool = _POOL[spatial_dims](2)
        self.down = nn.ModuleList(_Double(spatial_dims, a, b) for a, b in zip([in_channels, *widths], widths))
        steps = list(zip(widths[1:], widths))[::-1]
        self.up = nn.ModuleList(_UP[spatial_dims](a, b, 2, stride=2) for a, b in steps)
        self.merge = nn.ModuleList(_Double(spatial_dims, 2 * b, b) for _, b in steps)
        self.last = _CONV[spatial_dims](filters, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for level, block in enumerate(self.down):
            x = block(self.pool(x) if level else x)
            kept.append(x)
        kept.pop()
        for up, merge in zip(self.up, self.merge):
            x = merge(torch.cat([kept.pop(), up(x)], dim=1))
        return self.last(x)


class MeshNet(nn.Module):
    """A stack of dilated convolutions at full resolution (Fedorov et al. 2017): small, and any size is allowed.

    Parameters
    ----------
    spatial_dims : int
        2 or 3.
    in_channels, out_channels : int
        Channels of the image, and of the logits.
    filters : int
        Channels of every hidden layer.
    dilations : sequence of int
        One 3×3(×3) convolution each; the receptive field reaches their sum in every direction.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        filters: int = 8,
        dilations: Sequence[int] = (1, 1, 1, 2, 4, 8, 1),
    ):
        super().__init__()
        parts = []
        for channels, dilation in zip([in_channels] + [filters] * len(dilations), dilations):
            convolution = _CONV[spatial_dims](channels, filters, 3, padding=dilation, dilation=dilation, bias=False)
            parts += [convolution, _NORM[spatial_dims](filters), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*parts, _CONV[spatial_dims](filters, out_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


#: The classes that a package may name.
NETWORKS = {cls.__name__: cls for cls in (PlainUNet, MeshNet)}
