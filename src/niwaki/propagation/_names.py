"""What the layers of a network are called: by the module or parameter that holds their weight."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from torch import Tensor, nn

from niwaki.propagation._calls import tensors_in

__all__ = ["WEIGHT_NAMES", "Names"]

#: The weight of a layer, and what norms and masks of torch make it of. Other names that begin so,
#: such as `weight1` and `weight2`, are weights of their own.
WEIGHT_NAMES = frozenset(
    ["weight", "weight_orig", "weight_mask", "weight_g", "weight_v", "weight_u"]
)

#: How many units a weight has, how far apart they lie in memory, and the place of the first.
_Form: TypeAlias = "tuple[int, int, int]"


class Names:
    """The names of layers in one forward pass.

    A weight that is used in several forms, such as transposed or in parts, makes a layer of each,
    as their units are not the same: the further ones are called ``"fc (form 2)"``.

    Parameters
    ----------
    model : nn.Module
        Not changed.

    Attributes
    ----------
    held : dict of int to tuple
        By the id of each tensor that the model holds, the tensor (as ids are used again) and the
        name of its layer.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.held: dict[int, tuple[Tensor, str]] = {}
        self._unnamed: dict[int, Tensor] = {}
        self._forms: dict[str, list[_Form]] = {}
        self._look_up()

    def keep(self, weight: Tensor) -> None:
        """Keep a weight, so that its id is not used again, and look at what the model holds."""
        if id(weight) not in self.held:  # assigned since, as torch.nn.utils.prune does
            self._look_up()
        self._unnamed.setdefault(id(weight), weight)

    def of(self, weight: Tensor, owner: str, channel_dim: int) -> tuple[str, int]:
        """Return the name of the layer that a weight makes, and the number of its form, from 1.

        Parameters
        ----------
        weight : Tensor
            As it is used.
        owner : str
            The layer that holds it or from whose parameters it was made; else empty.
        channel_dim : int
            The dimension of its units, 0 or 1.
        """
        if not owner:
            return f"unnamed layer {list(self._unnamed).index(id(weight))}", 1
        if owner not in self._forms:
            self._forms[owner] = self._own_form(owner)
        known, form = self._forms[owner], _form(weight, channel_dim)
        if form not in known:
            known.append(form)
        number = known.index(form) + 1
        return (owner if number == 1 else f"{owner} (form {number})"), number

    def _own_form(self, owner: str) -> list[_Form]:
        """Return the form that a module of torch uses its weight in; none for other weights."""
        try:
            module = self._model.get_submodule(owner)
        except AttributeError:  # a parameter
            return []
        if not isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            return []
        weight = module._parameters.get("weight")
        transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
        return [] if weight is None else [_form(weight, int(transposed))]

    def _look_up(self) -> None:
        for name, tensor in _named_tensors(self._model):
            self.held.setdefault(id(tensor), (tensor, name))


def _form(weight: Tensor, channel_dim: int) -> _Form:
    if weight.dim() <= channel_dim:
        return weight.numel(), 0, 0
    step = weight.stride(channel_dim)
    return weight.shape[channel_dim], step, int(weight.storage_offset()) // max(step, 1)


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that a model holds, also as plain attributes, with their layer's name."""
    for prefix, module in model.named_modules():
        held = {**module._parameters, **module._buffers, **vars(module)}
        layer = prefix.split(".parametrizations.")[0].removeprefix("parametrizations.")
        for name, value in held.items():
            whole = name in WEIGHT_NAMES or layer != prefix
            for tensor in tensors_in(value):
                own = layer if whole else f"{layer}.{name}".strip(".")
                yield own or name, tensor
