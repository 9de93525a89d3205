"""What a network's outputs are worth, image by image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from niwaki.models import class_logits

__all__ = ["TIE", "Outcome", "judge"]

#: Two outputs that are closer than this are a near tie: rounding may decide which is larger.
#: Mean margins are compared in steps of it.
TIE = 1e-4


@dataclass(frozen=True)
class Outcome:
    """What a network says about each image.

    Attributes
    ----------
    right : Tensor
        Whether the largest output is the true class; bool.
    loss : Tensor
        Cross-entropy; float64.
    margin : Tensor
        Output of the true class minus the largest of the others; float64.
    near : Tensor
        Whether the two largest outputs differ by less than `TIE`; bool.
    """

    right: Tensor
    loss: Tensor
    margin: Tensor
    near: Tensor

    def __getitem__(self, images: Tensor) -> Outcome:
        return Outcome(
            self.right[images], self.loss[images], self.margin[images], self.near[images]
        )


def judge(logits: Tensor, labels: Tensor) -> Outcome:
    """Judge outputs by the true classes, shape (N,).

    Outputs have the shape (N, classes), or (N, 1) with the logit of the second of two classes.
    """
    logits = class_logits(logits, "the classification accuracy reduction").double()
    own = labels.unsqueeze(1)
    others = logits.scatter(1, own, -torch.inf).amax(1)
    best = logits.topk(2, dim=1).values
    return Outcome(
        logits.argmax(1) == labels,
        F.cross_entropy(logits, labels, reduction="none"),
        logits.gather(1, own).squeeze(1) - others,
        best[:, 0] - best[:, 1] < TIE,
    )
