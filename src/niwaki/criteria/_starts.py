"""What a backward pass starts from: the derivative of the loss, or the class to explain."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from niwaki.accumulation import Totals
from niwaki.errors import ModelError, NoEvidenceWarning
from niwaki.models import class_logits

__all__ = ["Evidence", "check_evidence", "cross_entropy", "one_hot"]

Start = Callable[[Tensor], Tensor]


def cross_entropy(labels: Tensor) -> Start:
    """Start with the derivative of the summed cross-entropy by the outputs."""

    def start(output: Tensor) -> Tensor:
        # One column is the logit of class 1, whose derivative is the second of both.
        probabilities = torch.softmax(class_logits(output), 1)
        derivative = probabilities.scatter_add_(
            1, labels[:, None], -output.new_ones(len(output), 1)
        )
        return derivative[:, -output[0].numel() :].view_as(output)

    return start


def one_hot(labels: Tensor | None) -> Start:
    """Start with 1 at the class of each label; None: at each sample's largest output."""

    def start(output: Tensor) -> Tensor:
        classes = output.argmax(1) if labels is None else labels
        return torch.zeros_like(output).scatter_(1, classes[:, None], 1)

    return start


class Evidence:
    """Start as `one_hot`, but with nothing where the class has an output of exactly zero.

    Networks that end in a ReLU give such outputs. There is no evidence to hand back then: under
    LRP the 1 would be lost at once.

    Parameters
    ----------
    labels : Tensor or None
        See `one_hot`.

    Attributes
    ----------
    sums : dict of str to Tensor
        How many samples had none, as one of the sums of a batch, for `check_evidence`.
    """

    _NAME = "samples without evidence"  # no layer's name holds spaces

    def __init__(self, labels: Tensor | None) -> None:
        self._start = one_hot(labels)
        self.sums: dict[str, Tensor] = {}

    def __call__(self, output: Tensor) -> Tensor:
        chosen = self._start(output) * (output != 0)
        self.sums[self._NAME] = (chosen == 0).all(1).sum()
        return chosen

    @classmethod
    def missing(cls, totals: Totals) -> int:
        """Return how many samples had no evidence, in all."""
        return int(totals.sums.get(cls._NAME, torch.zeros(())))


def check_evidence(totals: Totals, which: str) -> None:
    """Warn of samples without evidence for their true (or predicted) class.

    Raises
    ------
    ModelError
        If no sample has any.
    """
    silent = Evidence.missing(totals)
    if silent == totals.samples:
        raise ModelError(
            f"the output of the {which} class is exactly zero for all {silent} samples: the "
            "network is dead there (a ReLU at its end has gone off for good), and nothing can be "
            "ranked by what it says. Stop at a larger network, or fine-tune with a smaller "
            "learning rate"
        )
    if silent:
        warnings.warn(
            f"{silent} of {totals.samples} samples count for nothing: the output of their {which} "
            "class is exactly zero (a ReLU at the network's end is off)",
            NoEvidenceWarning,
            stacklevel=4,
        )
