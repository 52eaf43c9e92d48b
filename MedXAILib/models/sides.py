"""The two classes of a classifier that an explanation stands between."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .model import Model


class Sides(NamedTuple):
    """Positive and negative class, as indices of the classifier's labels; None: that the other one is not there."""

    positive: int | None
    negative: int | None

    @property
    def exchanged(self) -> Sides:
        """The same pair, seen from the other side."""
        return Sides(self.negative, self.positive)

    def log_odds(self, model: Model, logits: Tensor, positive: bool = True) -> Tensor:
        """Log-odds of one of both, from logits (N, labels); shape (N,)."""
        mine, other = self if positive else self.exchanged
        return -model.log_odds(logits, other) if mine is None else model.log_odds(logits, mine)

    def is_positive(self, logits: Tensor) -> Tensor:
        """On which side images lie, whatever a third class says; bool, shape (N,)."""
        if None in self:
            return (logits[:, self.positive] > 0) if self.negative is None else (logits[:, self.negative] <= 0)
        return logits[:, self.positive] > logits[:, self.negative]

    def seen(self, model: Model, logits: Tensor, positive: bool) -> Tensor:
        """Whether the classifier answers one of both: the likeliest of all labels (softmax), or a probability above ½; bool, shape (N,)."""
        mine, other = self if positive else self.exchanged
        if mine is None:
            return logits[:, other] <= 0
        if model.package.output.activation == "softmax":
            return logits.argmax(1) == mine
        return logits[:, mine] > 0

    def flipped(self, model: Model, logits: Tensor, up: Tensor, down: Tensor) -> Tensor:
        """Whether the image made towards the other side, (N, labels) each for x, G⁺(x), G⁻(x), is one of it for the classifier; bool, shape (N,)."""
        return self.seen(model, down, False).where(self.is_positive(logits), self.seen(model, up, True))
