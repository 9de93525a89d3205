"""Whether a network takes the images, and the memory a batch of them, before the work."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from niwaki.errors import DataError
from niwaki.machine import physical, shown

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["check_fits", "check_memory"]

_LARGE = 2**22  # values of an input from which its memory is worth an estimate


def check_fits(model: nn.Module, shape: tuple[int, ...], batch_size: int) -> int | None:
    """Run two empty images through a network, where the memory allows it.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, on its device.
    shape : tuple of int
        Shape of an image.
    batch_size : int
        Number of images that will be processed together.

    Returns
    -------
    int or None
        How many outputs it has; None where they are no table.

    Raises
    ------
    DataError
        For images of a shape that the network does not take, or more than the memory holds.
    """
    import torch

    from niwaki.models import device_of

    check_memory(model, shape, batch_size)
    device = device_of(model)
    told = " x ".join(map(str, shape))
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    try:
        with torch.no_grad():
            said = model(torch.zeros(2, *shape, device=device, dtype=dtype))
    # What a network raises for a shape that it does not take is its own affair.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DataError(
            f"the network does not take images of {told} (channels x height x width): {reason}. "
            "The side is --size, the channels are the number of values of --mean and --std"
        ) from error
    return said.shape[1] if isinstance(said, torch.Tensor) and said.dim() == 2 else None


def check_memory(model: nn.Module, shape: tuple[int, ...], batch_size: int) -> None:
    """Refuse a batch of images that is larger than the memory, without computing anything.

    Raises
    ------
    DataError
        If the images, or what the network makes of them, do not fit.
    """
    import torch

    from niwaki.models import device_of

    device = device_of(model)
    there = physical()
    if device.type == "cuda":
        there = torch.cuda.mem_get_info(device)[1]
    told = " x ".join(map(str, shape))
    needed = 4 * prod(shape) * batch_size
    if needed < there and prod(shape) >= _LARGE:
        needed = max(needed, batch_size * _largest(model, shape))
    if needed >= there:
        raise DataError(
            f"a batch of {batch_size} images of {told} needs at least {shown(needed)}, and there "
            f"are {shown(there)}; choose a smaller --size or --batch-size"
        )


def _largest(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Bytes of the largest value that an image makes, found without computing any."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Sizes(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal largest
            made = func(*args, **(kwargs or {}))
            for value in made if isinstance(made, (tuple, list)) else (made,):
                if isinstance(value, torch.Tensor):
                    largest = max(largest, value.numel() * value.element_size())
            return made

    def empty(tensors: Any) -> dict[str, Tensor]:
        return {name: torch.empty_like(value, device="meta") for name, value in tensors}

    bare = {**empty(model.named_parameters()), **empty(model.named_buffers())}
    try:
        with torch.no_grad(), Sizes():  # type: ignore[no-untyped-call]
            torch.func.functional_call(model, bare, torch.empty(1, *shape, device="meta"))
    except Exception:  # some operations need numbers; then what was seen so far must do
        pass
    return largest
