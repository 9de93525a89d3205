"""Where a network computes, and with which type of number."""

from itertools import chain

from torch import Tensor, nn

__all__ = ["home"]


def home(model: nn.Module) -> Tensor | None:
    """Return an empty tensor of the device and type that a network computes with.

    Made for ``inputs.to(home)``. None for a network without floating-point weights.
    """
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.is_floating_point():
            return tensor.detach().new_empty(0)
    return None
