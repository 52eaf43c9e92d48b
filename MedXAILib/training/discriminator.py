"""The pairwise, multi-scale PatchGAN discriminator of Katzmann et al. 2021 (section 2.3, Fig. 5)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..models.generators import CONV, Encoder, draw, widths

SCALES = (2, 3)  # the stages whose features are judged


class PairDiscriminator(nn.Module):
    """Which of two images is real, said at every position of the stages 2 and 3 of one encoder that sees both.

    Parameters
    ----------
    spatial_dims, channels, width
        As `Generator`, whose encoder this is.
    tied : bool
        Whether the two neurons treat both images alike: exchanging the images exchanges the answers. Otherwise the order of the pair has to be shuffled.

    Notes
    -----
    The features of both images are joined and taken to two logits by one layer for all positions of a scale: W [f(a), f(b)] + c. Tied, W = [[u, v], [v, u]] and
    c = 0.
    """

    def __init__(self, spatial_dims: int, channels: int, width: float = 1.0, tied: bool = False):
        super().__init__()
        self.encoder = Encoder(spatial_dims, channels, width)
        self.tied = tied
        self.heads = nn.ModuleList(
            CONV[spatial_dims](2 * widths(width)[scale], 1 if tied else 2, 1, bias=not tied) for scale in SCALES
        )
        draw(self.encoder)

    def features(self, x: Tensor) -> list[Tensor]:
        """What is judged of images (N, channels, *spatial), one tensor for each scale."""
        found = self.encoder(x)
        return [found[scale] for scale in SCALES]

    def forward(self, first: list[Tensor], second: list[Tensor]) -> list[Tensor]:
        """Logits (N, 2, *positions) for each scale, from the `features` of both images: that the first, the second one is real."""
        found = []
        for head, a, b in zip(self.heads, first, second):
            if self.tied:
                found.append(torch.cat([head(torch.cat([a, b], 1)), head(torch.cat([b, a], 1))], 1))
            else:
                found.append(head(torch.cat([a, b], 1)))
        return found

    def loss(self, real: list[Tensor], fake: list[Tensor], swapped: Tensor, inverted: bool = False) -> Tensor:
        """Cross-entropy over positions and scales (eq. 3), from `features`.

        Parameters
        ----------
        real, fake : list of Tensor
        swapped : Tensor of bool, shape (N,)
            Of which pairs the fake image comes first.
        inverted : bool
            As if the fake ones were real: the generators' loss.
        """
        choose = [swapped.reshape(-1, *[1] * (a.ndim - 1)) for a in real]
        first = [torch.where(s, f, r) for s, f, r in zip(choose, fake, real)]
        second = [torch.where(s, r, f) for s, f, r in zip(choose, fake, real)]
        wanted = (swapped ^ inverted).long()  # the neuron of the image that is to count as real
        found = [
            functional.cross_entropy(logits.float(), wanted.reshape(-1, *[1] * (logits.ndim - 2)).expand(-1, *logits.shape[2:]))
            for logits in self(first, second)
        ]  # fmt: skip
        return torch.stack(found).mean()
