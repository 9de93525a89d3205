"""What a network returns: one tensor of one row per sample, and one logit per class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from niwaki.data import as_tensor
from niwaki.errors import DataError, ModelError, NiwakiError
from niwaki.models._steady import check_steady


def check(model: nn.Module) -> None:
    """Raise a ModelError for a model in training mode or with weights that are not finite.

    In training mode, dropout and batch norm make every result depend on chance and on the other
    images of the batch.
    """
    for name, module in model.named_modules():
        if module.training:
            where = f"the submodule {name!r}" if name else "the model"
            raise ModelError(f"{where} is in training mode; call model.eval() first")
    _check_values(model)
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_floating_point() and not bool(tensor.detach().isfinite().all()):
            raise ModelError(
                f"{name} has NaN or infinite values; the training that made it has diverged, so "
                "load other weights"
            )


def _check_values(model: nn.Module) -> None:
    """Refuse weights that have no values yet."""
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if is_lazy(tensor):
            raise ModelError(
                f"{name} has no shape yet, as of a lazy module that has not been used: call the "
                "model once on a batch, or load its weights"
            )
        if tensor.is_meta:
            raise ModelError(
                f"{name} is on the meta device, where it has no values: build the network on a "
                "real one, and load its weights"
            )


def home(model: nn.Module) -> Tensor | None:
    """Return an empty tensor of the device and type that a network computes with.

    Made for ``inputs.to(home)``. None for a network without floating-point weights.

    Raises
    ------
    ModelError
        For weights without values: of lazy modules, or on the meta device.
    """
    _check_values(model)
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.is_floating_point():
            return tensor.detach().new_empty(0)
    return None


def device_of(model: nn.Module) -> torch.device:
    """Return where a network computes: the device of its parameters, or the CPU without any."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


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


def fitted(model: nn.Module, inputs: Any) -> Tensor:
    """Return inputs as a tensor of the device and the type of number that the network has.

    Parameters
    ----------
    model : nn.Module
        Not changed.
    inputs : Tensor, NumPy array, or list of these
        Shape (N, ...), floating point; the items of a list are samples.

    Raises
    ------
    DataError
        For inputs that are no numbers, integers, empty, or not finite.
    """
    tensor = as_tensor(inputs).detach()  # how they were made is no part of the network
    if not tensor.is_floating_point():
        raise DataError(
            f"inputs must be floating point, not {tensor.dtype}: scale and normalise them as the "
            "network was trained"
        )
    if tensor.dim() == 0 or len(tensor) == 0:
        raise DataError(f"inputs of shape {tuple(tensor.shape)} hold no sample")
    if not torch.isfinite(tensor).all():
        raise DataError("the inputs hold NaN or infinite values")
    place = home(model)
    moved = tensor if place is None else tensor.to(place)
    if moved is not tensor and not torch.isfinite(moved).all():
        raise DataError(f"the inputs hold values beyond {moved.dtype}, the network's type")
    return moved


@contextmanager
def attended(model: nn.Module, inputs: Tensor) -> Iterator[None]:
    """Run a forward pass in this context: where it fails, the error says on what.

    Raises
    ------
    DataError
        If the network fails on inputs of this shape, or takes a single image for a batch.
    ModelError
        If derivatives are asked for, which weights made in inference mode do not have.
    """
    # A convolution also takes an image without a batch, which makes its channels the samples.
    if torch.is_grad_enabled():
        _check_derivable(model)
    unbatched = any(p.dim() == inputs.dim() + 1 for p in model.parameters())
    guard = _Batched(inputs.dim()) if unbatched else nullcontext()
    try:
        with guard:
            yield
    except Exception as error:
        if isinstance(error, (NiwakiError, MemoryError)) or "memory" in str(error):
            raise
        raise DataError(
            f"{type(model).__name__} fails on inputs of shape {tuple(inputs.shape)}: "
            f"{type(error).__name__}: {_short(error)}. {_advice(inputs)}"
        ) from error


def _check_derivable(model: nn.Module) -> None:
    made = next((n for n, t in chain(model.named_parameters(), model.named_buffers())
                 if t.is_inference()), None)  # fmt: skip
    if made is not None:
        raise ModelError(
            f"{made!r} was made within torch.inference_mode(), so that no derivative can be taken "
            "of it: build or load the network outside, or pass copy.deepcopy(model)"
        )


def one_tensor(model: nn.Module, output: Any, inputs: Tensor) -> Tensor:
    """Return an output that is one tensor with a row for each sample.

    A network that calls ``squeeze()`` gives a batch of one without its dimension, which is put
    back.

    Raises
    ------
    ModelError
        For an output of another form.
    """
    if not isinstance(output, Tensor):
        raise ModelError(f"{type(model).__name__} returns {_form(output)}")
    found: Tensor = output
    if len(inputs) == 1 and (found.dim() == 0 or (found.dim() == 1 and len(found) > 1)):
        found = found.unsqueeze(0)
    if not found.is_floating_point():
        raise ModelError(f"{type(model).__name__} returns {found.dtype}, no floating-point scores")
    if found.dim() == 0 or len(found) != len(inputs):
        raise ModelError(
            f"{type(model).__name__} returns shape {tuple(found.shape)} for {len(inputs)} samples "
            f"of shape {tuple(inputs.shape[1:])}; there must be one row for each sample. If its "
            "forward folds frames or patches into the batch, let it bring them together again, "
            f"such as by a mean. {_advice(inputs)}"
        )
    return found


def respond(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return a network's outputs for a batch, without gradients; one row for each sample.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode; not changed.
    inputs : Tensor
        Shape (N, ...), as `fitted` or `niwaki.data.batches` gives it.

    Raises
    ------
    ModelError, DataError
        If the two do not fit each other, or the network is not steady, see `check_steady`.
    """
    check_steady(model, inputs)
    with torch.no_grad():
        try:
            with attended(model, inputs):
                output = model(inputs.clone())  # which it may overwrite
        except DataError as error:
            if len(inputs) != 1:
                raise
            try:  # What a forward with squeeze() does to a batch of one may fail further on.
                return respond(model, torch.cat([inputs, inputs]))[:1]
            except DataError:
                raise error from None
    return one_tensor(model, output, inputs)


def class_outputs(model: nn.Module, inputs: Tensor, what: str) -> Tensor:
    """Return a classifier's outputs for a batch, one logit per class; else see `respond`.

    A single column is the logit of the second of two classes, see `class_logits`.

    Raises
    ------
    ModelError
        For an output of another shape; `what` says what needs classes.
    """
    output = respond(model, inputs)
    if output.dim() > 2:
        raise ModelError(
            f"{type(model).__name__} returns shape {tuple(output.shape)}; {what} needs one value "
            "per class, (N, classes). Of a network with a map of outputs, pass one that ends in "
            "their mean: torch.nn.Sequential(model, torch.nn.AdaptiveAvgPool2d(1), "
            "torch.nn.Flatten())"
        )
    return class_logits(output, what)


class _Batched(TorchFunctionMode):
    """Context in which a convolution refuses the network's input as an image without a batch."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.dimensions = dimensions

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Look at convolutions; run the call."""
        kwargs = kwargs or {}
        if getattr(func, "__name__", "").startswith("conv"):
            x = args[0] if args else kwargs.get("input")
            weight = args[1] if len(args) > 1 else kwargs.get("weight")
            if isinstance(x, Tensor) and isinstance(weight, Tensor):
                self._check(x, weight)
        return func(*args, **kwargs)

    def _check(self, x: Tensor, weight: Tensor) -> None:
        if x.dim() == self.dimensions == weight.dim() - 1:
            raise DataError(
                f"the network's first convolution gets shape {tuple(x.shape)}, which has no "
                "dimension of samples. For a single image pass image[None], of shape (1, C, H, W)"
            )


def _form(output: Any) -> str:
    if isinstance(output, dict):
        keys = list(output)
        return (
            f"a dict with {', '.join(map(repr, keys[:5]))}, not one tensor; choose what is to be "
            f"looked at: niwaki.models.Part(model, {keys[0]!r})"
            if keys
            else "an empty dict, not one tensor"
        )
    if isinstance(output, (tuple, list)):
        return (
            f"a {type(output).__name__} of {len(output)}, not one tensor; choose what is to be "
            "looked at: niwaki.models.Part(model, 0)"
        )
    return (
        f"a {type(output).__name__}, not one tensor; wrap it in a module whose forward returns the "
        "tensor to look at"
    )


def _advice(inputs: Tensor) -> str:
    if inputs.dim() == 3:
        return (
            "Inputs are batches (N, ...): a single image is passed as image[None]. Else see "
            "whether channels and size are those that the network was built for"
        )
    if len(inputs) == 1:
        return (
            "See whether channels and size are those that the network was built for; if its "
            "forward calls squeeze(), a batch of one loses its dimension: use flatten(1) there"
        )
    return "See whether channels and size are those that the network was built for"


def _short(error: Exception, most: int = 300) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= most else text[: most - 3] + "..."


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
