"""One of several outputs of a network."""

from __future__ import annotations

from typing import Any

from torch import nn

from niwaki.errors import ModelError

__all__ = ["Part"]


class Part(nn.Module):
    """A network that returns one of the outputs of another, such as a segmentation network's.

    Parameters
    ----------
    model : nn.Module
        Returns a dict, a tuple, a list, or an object with attributes. It is held, not copied.
    key : str or int
        Which of them: ``"out"`` of torchvision's segmentation networks, ``0`` of a tuple,
        ``"logits"`` of an object.

    Raises
    ------
    ModelError
        When called, if there is no such output.

    Examples
    --------
    >>> network = niwaki.models.Part(torchvision.models.segmentation.fcn_resnet50(), "out").eval()
    """

    def __init__(self, model: nn.Module, key: str | int) -> None:
        super().__init__()
        self.model = model
        self.key = key
        self.training = model.training

    def forward(self, *inputs: Any) -> Any:
        """Return the part."""
        output = self.model(*inputs)
        try:
            if isinstance(self.key, str) and not isinstance(output, dict):
                return getattr(output, self.key)
            return output[self.key]
        except (AttributeError, LookupError, TypeError) as error:
            raise ModelError(
                f"{type(self.model).__name__} returns a {type(output).__name__} without "
                f"{self.key!r}"
            ) from error

    def extra_repr(self) -> str:
        """Say which part."""
        return f"key={self.key!r}"
