"""Whether a model can be explained and pruned as it is."""

from itertools import chain

from torch import nn

from niwaki.errors import ModelError

__all__ = ["check"]


def check(model: nn.Module) -> None:
    """Raise a ModelError for a model in training mode or with weights that are not finite.

    In training mode, dropout and batch norm make every result depend on chance and on the other
    images of the batch.
    """
    for name, module in model.named_modules():
        if module.training:
            where = f"the submodule {name!r}" if name else "the model"
            raise ModelError(f"{where} is in training mode; call model.eval() first")
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_floating_point() and not bool(tensor.detach().isfinite().all()):
            raise ModelError(
                f"{name} has NaN or infinite values; the training that made it has diverged, so "
                "load other weights"
            )
