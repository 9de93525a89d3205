"""Networks with one output column: the logit of the second of two classes."""

import torch
from torch import Tensor

from niwaki.errors import ModelError

__all__ = ["class_logits"]


def class_logits(output: object, purpose: str = "this") -> Tensor:
    """Return one logit per class, whatever the number of output columns.

    A network that tells two classes apart may end in a single column z, the logit of class 1, as
    it is trained with the binary cross-entropy. Its class is 1 where z is above 0, and the
    probability of class 1 is the sigmoid of z; the two columns (0, z) have the same largest class,
    the same softmax and the same cross-entropy.

    Parameters
    ----------
    output : Tensor
        What a network returned: shape (N, classes), (N, 1), or (N,).
    purpose : str
        What needs the classes, for the message.

    Returns
    -------
    Tensor
        Shape (N, classes), with two classes or more.

    Raises
    ------
    ModelError
        For anything else.
    """
    if not isinstance(output, Tensor) or output.dim() not in (1, 2) or output.shape[-1] == 0:
        what = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ModelError(
            f"the network returns {what}; {purpose} needs one tensor of shape (N, classes), or of "
            "shape (N, 1) with the logit of the second of two classes"
        )
    column = output[:, None] if output.dim() == 1 else output
    if column.shape[1] > 1:
        return column
    return torch.cat([torch.zeros_like(column), column], 1)
