"""Partial convolutions and the inpainting network made of them (Liu et al. 2018; Major et al. 2020, section 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_CONVOLVE = {2: functional.conv2d, 3: functional.conv3d}
_POOL = {2: functional.avg_pool2d, 3: functional.avg_pool3d}
#: Edges of the encoder's kernels, and its channels at width 1 (Liu et al. 2018, appendix).
KERNELS, CHANNELS = (7, 5, 5, 3, 3, 3, 3, 3), (64, 128, 256, 512, 512, 512, 512, 512)


class PartialConv(nn.Module):
    """A convolution that takes nothing from holes: Wᵀ(X⊙M)·sum(1)/sum(M) + b, and 0 where the window holds nothing but hole.

    sum(1) counts the taps inside the image, so a mask without holes gives what `torch.nn.Conv2d` or `Conv3d` gives with zero padding, borders
    included. The image under a hole is never multiplied, so NaN there is harmless. Nothing is kept between calls.

    Parameters
    ----------
    spatial_dims : int
        2 or 3.
    in_channels, out_channels : int
    kernel : int
        Edge, odd; the padding is half of it.
    stride : int
    bias : bool
    """

    def __init__(
        self, spatial_dims, in_channels: int, out_channels: int, kernel: int, stride: int = 1, bias: bool = True
    ):
        super().__init__()
        self.stride, self.padding = stride, kernel // 2
        made = _CONV[spatial_dims](in_channels, out_channels, kernel, stride, kernel // 2, bias=bias)
        self.weight, self.bias = made.weight, made.bias

    def forward(self, branches: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Convolve what was concatenated.

        Parameters
        ----------
        branches : sequence of (Tensor, Tensor)
            Features (N, C, *spatial) and their mask (N, 1, *spatial), 1 where there is an image and 0 in holes. Each branch's mask counts as often as the branch
            has channels.

        Returns
        -------
        (Tensor, Tensor)
            Features (N, out_channels, *spatial) and their mask (N, 1, *spatial).
        """
        dims = self.weight.ndim - 2
        held = torch.cat([torch.where(mask > 0, x, 0) for x, mask in branches], 1)
        convolved = _CONVOLVE[dims](held, self.weight, None, self.stride, self.padding)
        count = sum(x.shape[1] * self._taps(mask) for x, mask in branches)
        full = held.shape[1] * self._taps(torch.ones_like(branches[0][1][:1]))
        known = count > 0
        result = convolved * torch.where(known, full / count.clamp(min=1), 0).to(convolved.dtype)
        if self.bias is not None:
            bias = self.bias.reshape(1, -1, *(1,) * dims)
            result = torch.where(known, result + bias, 0)
        return result, known.float()

    def _taps(self, mask: Tensor) -> Tensor:
        """How many taps of each window lie on 1; exact, in float32 also under autocast."""
        edge, dims = self.weight.shape[-1], mask.ndim - 2
        padded = functional.pad(mask.float(), (self.padding,) * 2 * dims)
        return _POOL[dims](padded, edge, self.stride, divisor_override=1)


class _Level(nn.Module):
    """A partial convolution, with batch normalisation and (leaky) rectifier where the network has them."""

    def __init__(self, dims, before, after, kernel, stride, normalised: bool, slope: float | None):
        super().__init__()
        self.conv = PartialConv(dims, before, after, kernel, stride, bias=not normalised)
        self.norm = _NORM[dims](after) if normalised else nn.Identity()
        self.slope = slope

    def forward(self, branches):
        x, mask = self.conv(branches)
        x = self.norm(x)
        return (x if self.slope is None else functional.leaky_relu(x, self.slope)), mask


class PartialUNet(nn.Module):
    """The inpainter: a U-Net of partial convolutions (Liu et al. 2018, appendix; Major et al. 2020, section 2).

    Parameters
    ----------
    spatial_dims : int
        2 or 3.
    channels : int
        Of the image; the answer has as many.
    levels : int
        Encoder layers, each halving the image, and as many decoder layers; 8 in the paper. See `levels_for`.
    width : float
        Factor for the number of filters, at least 4 of each; 1 is the paper's.

    Notes
    -----
    Encoder: kernels of 7, 5, 5 and then 3, stride 2, batch normalisation but in the first, rectifier. Decoder: doubled (nearest), the encoder's features and mask of
    that size concatenated, kernels of 3, batch normalisation and leaky rectifier (0.2) but in the last. Any image size; odd ones are cut after doubling.
    """

    def __init__(self, spatial_dims: int, channels: int, levels: int = 8, width: float = 1.0):
        super().__init__()
        if not 1 <= levels <= len(KERNELS):
            raise ValueError(f"levels is {levels}; it takes 1 to {len(KERNELS)}")
        widths = [channels, *(max(4, round(width * count)) for count in CHANNELS[:levels])]
        self.encoder = nn.ModuleList(
            _Level(spatial_dims, widths[n], widths[n + 1], KERNELS[n], 2, n > 0, 0.0) for n in range(levels)
        )
        self.decoder = nn.ModuleList(
            _Level(spatial_dims, widths[n + 1] + widths[n], widths[n], 3, 1, n > 0, 0.2 if n else None)
            for n in reversed(range(levels))
        )
        for level in (*self.encoder, *self.decoder):
            nn.init.kaiming_normal_(level.conv.weight, a=level.slope or 0.0, nonlinearity="leaky_relu")

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Inpaint.

        Parameters
        ----------
        image : Tensor, shape (N, channels, *spatial)
            What is under holes does not count.
        mask : Tensor, shape (N, 1, *spatial)
            1 where the image is known, 0 in holes.

        Returns
        -------
        Tensor, shape of ``image``
            What the network makes of every place, also of those that are known.
        """
        x, mask, kept = image, mask.float(), []
        for level in self.encoder:
            kept.append((x, mask))
            x, mask = level([(x, mask)])
        for level in self.decoder:
            skip = kept.pop()
            x, mask = level([(_doubled(x, skip[0]), _doubled(mask, skip[1])), skip])
        return x


def levels_for(shape: Sequence[int]) -> int:
    """Levels of the inpainter for images of a spatial shape: as many halvings as leave two voxels of the shortest axis, 8 at most (the paper's)."""
    return max(1, min(len(KERNELS), (int(min(shape)) - 1).bit_length() - 1))


def _doubled(x: Tensor, like: Tensor) -> Tensor:
    """Nearest neighbour to twice the size, cut to the size of ``like``."""
    for axis in range(2, x.ndim):
        x = x.repeat_interleave(2, axis).narrow(axis, 0, like.shape[axis])
    return x
