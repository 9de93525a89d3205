"""Weights from a file into a network: read without unpickling, checked before they are set."""

import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from niwaki.errors import WeightsError

__all__ = ["fit", "load_weights", "read_weights"]

# Where training scripts put the weights among an optimizer's and a scheduler's state.
_NESTS = ("state_dict", "model_state_dict", "model")
# What DistributedDataParallel and torch.compile put before every name.
_PREFIXES = ("module.", "_orig_mod.")
_SHOWN = 5


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Fill a network with the weights of a file, or leave it as it is.

    Parameters
    ----------
    model
        Changed in place, once it is known that everything fits.
    path
        A `.safetensors` file, or a checkpoint that `torch.save` wrote from tensors: a
        `state_dict`, also one nested under "state_dict", "model_state_dict" or "model", or with
        the names of a wrapped (`module.`) or compiled (`_orig_mod.`) model.

    Raises
    ------
    WeightsError
        A file that is missing, broken or needs unpickling; names or shapes that differ from the
        network's; values that are not finite, or too large for the network's type; several sets of
        weights; two different ones for what the network shares.
    """
    fit(model, read_weights(path), path)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a file, on the CPU, without running anything that is stored in it."""
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"there is no file of weights at {path}")
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path} is no readable safetensors file: {error}") from error
    return _unwrap(_torch_load(path), path)


def fit(model: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Set the network's weights, which came from `path`, if every one of them fits."""
    own = model.state_dict()
    state = _strip(state, own)
    # A tensor that two layers share is saved once.
    places = {_place(own[name]) for name in own if name in state}
    missing = [
        f"{name} is missing"
        for name in own
        if name not in state
        and not name.endswith("num_batches_tracked")
        and _place(own[name]) not in places
    ]
    unexpected = [f"{name} is not in the network" for name in state if name not in own]
    shapes = [
        f"{name} has shape {tuple(state[name].shape)}, the network {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if wrong := missing + unexpected + shapes:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise WeightsError(
            f"{path} does not fit the network: {len(missing)} missing, {len(unexpected)} "
            f"unexpected, {len(shapes)} of another shape: {'; '.join(wrong[:_SHOWN])}{more}. "
            "Build the network these weights were saved from, with the same number of classes"
        )
    _check_tied(state, own, path)
    for name, tensor in state.items():
        if own[name].is_meta or tensor.layout != torch.strided:
            kind = f"the network's {name} is on the meta device, where it has no values"
            if not own[name].is_meta:
                kind = f"{name} is stored as {tensor.layout}; store it dense (tensor.to_dense())"
            raise WeightsError(f"{path} cannot be set: {kind}")
        if _kind(tensor) != _kind(own[name]):
            raise WeightsError(
                f"{name} in {path} is {tensor.dtype}, the network's {own[name].dtype}: these are "
                "no weights of it as it is. Quantised or complex weights must be turned back into "
                "those of the network first"
            )
        if tensor.is_floating_point():
            _check_finite(name, tensor, own[name].dtype, path)
    versioned = OrderedDict(state)
    # Some modules (MNASNet) refuse weights that do not say which version of them wrote them: these
    # fit, so they are of the network's own.
    versioned._metadata = own._metadata  # type: ignore[attr-defined]
    model.load_state_dict(versioned, strict=False)  # counts and shared tensors may be missing


def _check_tied(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: str | Path) -> None:
    """Refuse different values for what is one tensor in the network: the last would be taken."""
    first: dict[tuple[object, ...], str] = {}
    for name in state:
        other = first.setdefault(_place(own[name]), name)
        if other != name and not torch.equal(state[name], state[other]):
            raise WeightsError(
                f"{name} and {other} are one tensor in the network and two in {path}, with other "
                "values: build the network without sharing them"
            )


def _check_finite(name: str, tensor: Tensor, dtype: torch.dtype, path: str | Path) -> None:
    stored = tensor.to(torch.float64)
    if not bool(stored.isfinite().all()):
        raise WeightsError(
            f"{name} in {path} has NaN or infinite values; the training that wrote it has "
            "diverged, so take an earlier checkpoint"
        )
    if not bool(stored.to(dtype).isfinite().all()):
        raise WeightsError(
            f"{name} in {path} ({tensor.dtype}) has values up to {float(stored.abs().max()):g}, "
            f"which the network's {dtype} does not hold: build it in more precision"
        )


def _place(tensor: Tensor) -> tuple[object, ...]:
    return tensor.device, tensor.data_ptr() or id(tensor), tensor.shape


def _kind(tensor: Tensor) -> str:
    """Within a kind, another precision loses nothing but digits."""
    if tensor.is_complex() or tensor.is_floating_point():
        return "complex" if tensor.is_complex() else "real"
    return "whole"


def _torch_load(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # It announces the TorchScript archive that it then refuses.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    # A broken file can raise nearly anything: UnpicklingError, EOFError, KeyError, RuntimeError.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise WeightsError(
            f"{path} cannot be read as plain weights: {reason} It is broken, or holds Python "
            "objects, which are never unpickled here; save the model's state_dict() instead, "
            "best as safetensors"
        ) from error


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(content, Mapping):
        nests = [key for key in _NESTS if isinstance(content.get(key), Mapping)]
        if not nests:
            break
        if len(nests) > 1:
            raise WeightsError(
                f"{path} holds several networks, under {' and '.join(map(repr, nests))}: save the "
                "one that is meant in a file of its own"
            )
        content = content[nests[0]]
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a dict of tensors")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise WeightsError(
                f"{path} is no dict of tensors: {name!r} is a {type(value).__name__}; weights are "
                f"looked for at the top and under {', '.join(map(repr, _NESTS))}"
            )
    return {str(name): value for name, value in content.items()}


def _strip(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    stripped = dict(state)
    while stripped:
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in stripped)), None)
        # A network may itself keep everything in a child called "module".
        if prefix is None or stripped.keys() <= own.keys():
            break
        stripped = {name[len(prefix) :]: value for name, value in stripped.items()}
    return stripped
