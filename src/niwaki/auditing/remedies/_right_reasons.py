"""Right for the right reasons: fine-tuning that is told where not to look (Ross et al. 2017)."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from niwaki.contexts import undisturbed
from niwaki.errors import DataError
from niwaki.pruning import FineTune, Tuned, fine_tune
from niwaki.ranges import FACTOR, checked


@undisturbed
@checked(strength=FACTOR)
def right_reasons(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    masks: NDArray[Any],
    settings: FineTune | None = None,
    *,
    strength: float = 10.0,
) -> Tuned:
    """Fine-tune a network so that its predictions do not change with what is inside masks.

    Added to the loss is the squared gradient of the sum of the classes' log-probabilities with
    respect to the inputs inside the masks, as in Ross, Hughes and Doshi-Velez (2017), "Right for
    the right reasons", equation 1.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode; changed in place.
    data : pair of tensors
        Inputs of shape (N, C, H, W), with and without the artefact, and their classes.
    masks : ndarray
        Where the artefact is, shape (N, H, W), bool; nowhere on images without it.
    settings : FineTune, optional
        Settings of the training; default: `FineTune`'s.
    strength : float
        Weight of the penalty beside the loss; the mean over the images of a batch counts.

    Returns
    -------
    Tuned
        The epochs, see `niwaki.pruning.fine_tune`.

    Raises
    ------
    DataError
        Masks of another shape than the images, or all of them empty.

    Examples
    --------
    >>> masks = (images[:, 0] > 0.9).numpy()
    >>> told = niwaki.auditing.right_reasons(model, (images, labels), masks)
    """
    inputs, labels = data
    wanted = (len(inputs), *inputs.shape[-2:])
    if tuple(masks.shape) != wanted:
        raise DataError(
            f"masks are {tuple(masks.shape)}; for these images they have to be {wanted}"
        )
    if not masks.any():
        raise DataError("the masks are empty: there is nothing that the network should not look at")
    inside = torch.as_tensor(masks)[:, None].to(inputs)
    # The loop hands on inputs and labels; the mask travels as one more channel.
    together = TensorDataset(torch.cat([inputs, inside], 1).cpu(), labels.cpu())
    settings = settings or FineTune()
    if settings.distil > 0:
        raise ValueError("distil needs a teacher, and right_reasons has none; leave it at 0")

    def penalty(network: nn.Module, batch: Tensor) -> Tensor:
        return strength * input_penalty(model, batch[:, :-1], batch[:, -1:])

    return fine_tune(_Masked(model).eval(), together, settings, penalty=penalty)


def input_penalty(model: nn.Module, inputs: Tensor, masks: Tensor) -> Tensor:
    """Return the squared gradient of summed log-probabilities inside masks, mean over images.

    Parameters
    ----------
    model : nn.Module
        Returning shape (N, classes).
    inputs : Tensor
        Shape (N, C, H, W).
    masks : Tensor
        Shape (N, 1, H, W), 1 inside.
    """
    shown = inputs.detach().requires_grad_()
    total = nn.functional.log_softmax(model(shown.clone()), 1).sum()
    (slope,) = torch.autograd.grad(total, shown, create_graph=True)
    return ((slope * masks) ** 2).flatten(1).sum(1).mean()


class _Masked(nn.Module):
    """A network that leaves the last channel of its input, the mask, aside."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Answer without the last channel."""
        found: Tensor = self.model(x[:, :-1])
        return found
