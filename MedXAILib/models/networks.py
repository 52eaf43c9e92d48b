"""The project's own networks. A package names one of them by its class name (`NETWORKS`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .generators import GeneratorPair
from .partial import PartialUNet

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


class _Classifier(nn.Module):
    """Convolution blocks, then fully connected layers to the logits; ``plan`` lists filters, ``"pool"`` and probabilities of dropout.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of the image, and classes.
    size : int
        Edge of the square image; the first fully connected layer depends on it. 224 in the paper.
    width : float
        Factor for the number of filters and of fully connected units, at least 4 of each; 1 is the paper's.
    dropout : float
        Factor for the probabilities of dropout; 1 is the paper's. Narrow networks learn little with them.

    Notes
    -----
    Input (N, in_channels, size, size), output (N, out_channels): logits, without the softmax of the paper's last row.

    Kumar & Menkovski 2016 (Tables 2 to 4) leave open, and here it is: zero padding of 1, so that a convolution keeps the size; a rectifier after every
    convolution and every fully connected layer but the last; batch normalisation between convolution and rectifier, the convolution then without
    a bias of its own; weights drawn as He et al. 2015, without which ten layers without normalisation do not begin to learn.
    """

    plan: tuple = ()
    connected: tuple = ()
    normalised = False

    def __init__(self, in_channels: int, out_channels: int, size: int = 224, width: float = 1.0, dropout: float = 1.0):
        super().__init__()
        parts, channels, edge = [], in_channels, size
        for one in self.plan:
            if one == "pool":
                parts.append(nn.MaxPool2d(2))
                edge //= 2
            elif isinstance(one, float):
                parts.append(nn.Dropout(one * dropout))
            else:
                filters = _scaled(one, width)
                parts.append(nn.Conv2d(channels, filters, 3, padding=1, bias=not self.normalised))
                parts += [nn.BatchNorm2d(filters)] * self.normalised + [nn.ReLU(inplace=True)]
                channels = filters
        if not edge:
            raise ValueError(f"size is {size}, which the pooling leaves nothing of")
        self.features = nn.Sequential(*parts)
        parts, units = [nn.Flatten()], channels * edge**2
        for one in self.connected:
            if isinstance(one, float):
                parts.append(nn.Dropout(one * dropout))
            else:
                parts += [nn.Linear(units, _scaled(one, width)), nn.ReLU(inplace=True)]
                units = _scaled(one, width)
        self.classifier = nn.Sequential(*parts, nn.Linear(units, out_channels))
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


def _scaled(count: int, width: float) -> int:
    return max(4, round(count * width))


class ShallowCNN(_Classifier):
    """The shallow network of Kumar & Menkovski 2016 (Table 2): two convolutions, one pooling. The first dropout's probability, which the table
    does not give, is that of the second, 0.25.

    Parameters as `_Classifier`, which also says what the tables leave open.
    """

    plan = (32, 64, "pool", 0.25)
    connected = (128, 0.25)


class DeeperCNN(_Classifier):
    """The deeper network of Kumar & Menkovski 2016 without data augmentation (Table 3): ten convolutions in four blocks.

    Parameters as `_Classifier`, which also says what the tables leave open.
    """

    plan = (32, 16, "pool", 64, 32, "pool", 128, 128, 64, "pool", 256, 256, 128, "pool")
    connected = (128, 128)


class DeeperBNCNN(_Classifier):
    """The deeper network of Kumar & Menkovski 2016 for data augmentation (Table 4): `DeeperCNN` with batch normalisation and dropout of 0.5.

    Parameters as `_Classifier`, which also says what the tables leave open.
    """

    plan = (*DeeperCNN.plan, 0.5)
    connected = (128, 0.5, 128, 0.5)
    normalised = True


class StridedCNN(nn.Module):
    """The classifier of Katzmann et al. 2021 (section 3.2): four strided convolutions, flattened, one fully connected layer to the logits.

    Parameters
    ----------
    spatial_dims : int
        2 or 3.
    in_channels, out_channels : int
        Channels of the image, and classes.
    size : int
        Edge of the image; the fully connected layer depends on it. 64 in the paper.
    width : float
        Factor for the number of filters, at least 4 of each; 1 is the paper's 32, 64, 128 and 256.

    Notes
    -----
    Input (N, in_channels, *spatial) with ``size`` along each axis, output (N, out_channels): logits, without the paper's softmax. The strides are 1, 2, 2
    and 2. Left open by the paper, and here it is: kernels of 3 with zero padding of 1, and no bias before the batch normalisation.
    """

    filters = (32, 64, 128, 256)

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, size: int = 64, width: float = 1.0):
        super().__init__()
        parts, channels, edge = [], in_channels, size
        for level, count in enumerate(self.filters):
            stride, count = 2 if level else 1, _scaled(count, width)
            parts.append(_CONV[spatial_dims](channels, count, 3, stride=stride, padding=1, bias=False))
            parts += [_NORM[spatial_dims](count), nn.ReLU(inplace=True)]
            channels, edge = count, -(-edge // stride)
        self.features = nn.Sequential(*parts)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(channels * edge**spatial_dims, out_channels))
        # A processor is faster at convolutions of few channels when these come last.
        self.features.to(memory_format=torch.channels_last if spatial_dims == 2 else torch.channels_last_3d)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


#: The classes that a package may name.
NETWORKS = {
    cls.__name__: cls
    for cls in (PlainUNet, MeshNet, ShallowCNN, DeeperCNN, DeeperBNCNN, StridedCNN, PartialUNet, GeneratorPair)
}
