"""Repairs without training: batch norms measured again, and biases that replace removed units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.accumulation import Totals
from niwaki.contexts import undisturbed
from niwaki.data import Data, batches, count
from niwaki.errors import DataError
from niwaki.models import home
from niwaki.processes import agreed, gathered
from niwaki.pruning._plan import Removal
from niwaki.pruning.units._surgery import doomed
from niwaki.pruning.units._tracing import Followed, follow
from niwaki.ranges import BATCH, checked

__all__ = ["compensate", "has_batch_norms", "recalibrate"]

_Norm = nn.modules.batchnorm._BatchNorm
_READERS = (nn.modules.conv._ConvNd, nn.Linear)


def has_batch_norms(model: nn.Module) -> bool:
    """Whether there is a batch norm with running statistics, that could be measured anew."""
    return bool(_norms(model))


@undisturbed
@checked(batch_size=BATCH)
def recalibrate(model: nn.Module, data: Data, *, batch_size: int = 128) -> None:
    """Measure the running statistics of all batch norms again, without labels.

    Exact over all samples, whatever the batches: in evaluation mode the network then computes what
    it does in training mode on all of them at once. One norm is measured after the other, in a pass
    that ends there, since what it meets depends on those before it.

    Parameters
    ----------
    model : nn.Module
        Changed in place; a network without batch norms stays as it is.
    data : DataLoader, Dataset or pair of tensors
        The reference samples.
    batch_size : int
        Samples in a batch of a data set or tensors; a loader has its own.

    Raises
    ------
    DataError
        If a norm meets one value per channel only, which has no variance.
    """
    norms = _norms(model)
    if not norms:
        return
    device = home(model)
    first, _ = next(iter(batches(data, batch_size, device)))
    before = [(norm, norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]
    try:
        with torch.no_grad():
            uses = _uses(model, norms, first)
            if count(data) == len(first) and len({id(norm) for norm, _ in uses}) == len(uses):
                _at_once(model, norms, first)
                return
            for norm, number in uses:
                moments = _Moments()
                with agreed():
                    for inputs, _ in batches(data, batch_size, device, shared=True):
                        _until(model, norm, number, inputs, moments)
                moments.of_all().set(norm)
    except BaseException:
        with torch.no_grad():
            for norm, mean, variance in before:
                norm.running_mean.copy_(mean)
                norm.running_var.copy_(variance)
        raise


def _at_once(model: nn.Module, norms: Sequence[Any], inputs: Tensor) -> None:
    """Do the same in one pass, where all samples are in one batch."""

    def hook(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        moments = _Moments()
        moments.add(args[0])
        moments.set(norm)

    _run_hooked(model, inputs, norms, hook)


class _Moments:
    """Mean and summed squares around it of each channel, merged batch by batch (Chan et al.)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor = torch.zeros(())
        self.squares: Tensor = torch.zeros(())

    def add(self, inputs: Tensor) -> None:
        """Take in a norm's input, shape (N, channels, ...)."""
        x = inputs.detach().double().movedim(1, 0).flatten(1)
        mean = x.mean(1)
        self._merge(x.shape[1], mean, (x - mean[:, None]).square().sum(1))

    def of_all(self) -> _Moments:
        """Return those of all processes together."""
        whole = _Moments()
        for seen, mean, squares in gathered((self.count, self.mean.cpu(), self.squares.cpu())):
            if seen:
                whole._merge(seen, mean, squares)
        return whole

    def _merge(self, count: int, mean: Tensor, squares: Tensor) -> None:
        if self.count:
            apart = mean - self.mean
            total = self.count + count
            squares = self.squares + squares + apart.square() * (self.count * count / total)
            mean = self.mean + apart * (count / total)
        self.count, self.mean, self.squares = self.count + count, mean, squares

    def set(self, norm: Any) -> None:
        """Let a norm have them."""
        if self.count < 2:
            raise DataError(
                "recalibrate: one sample cannot tell how values vary; give more reference samples"
            )
        norm.running_mean.copy_(self.mean)
        norm.running_var.copy_(self.squares / self.count)


class _Enough(Exception):  # noqa: N818 - no error: it ends a pass
    """What was asked for has been seen."""


def _until(model: nn.Module, norm: Any, uses: int, inputs: Tensor, moments: _Moments) -> None:
    """Run a network until a norm has been used so often, and take in what it meets."""
    seen = 0

    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal seen
        seen += 1
        moments.add(args[0])
        if seen == uses:
            raise _Enough

    handle = norm.register_forward_pre_hook(hook)
    try:
        model(inputs.clone())  # which it may overwrite
    except _Enough:
        pass
    finally:
        handle.remove()


def _uses(model: nn.Module, norms: Sequence[Any], inputs: Tensor) -> list[tuple[Any, int]]:
    """List the norms in the order of their use, with how often each has been used by then."""
    order: list[tuple[Any, int]] = []

    def hook(norm: nn.Module, _: tuple[Tensor, ...]) -> None:
        order.append((norm, 1 + sum(other is norm for other, _ in order)))

    _run_hooked(model, inputs, norms, hook)
    return order


def _run_hooked(
    model: nn.Module, inputs: Tensor, norms: Sequence[Any], hook: Callable[..., None]
) -> None:
    """Run a network while each of its norms tells a hook what it gets."""
    handles = [norm.register_forward_pre_hook(hook) for norm in norms]
    try:
        model(inputs.clone())  # which it may overwrite
    finally:
        for handle in handles:
            handle.remove()


def _norms(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, _Norm) and m.running_mean is not None]


@undisturbed
@checked(batch_size=BATCH)
def compensate(
    model: nn.Module,
    example: Tensor,
    removals: Sequence[Removal],
    data: Data,
    *,
    batch_size: int = 32,
    followed: Followed | None = None,
) -> list[str]:
    """Add the mean contribution of units to be removed to the layers that read them.

    To be called before the units are removed. Each reader's outputs keep the mean that they have
    over the reference samples and all positions: its bias takes over the mean of what the doomed
    inputs add, or, where it has none, the running mean of the batch norm that follows it does.
    Without padding, a unit that is constant is replaced exactly. At the border of a padded
    convolution the kernel sees less of it: there the constant, a mean over all positions, is a
    little too large, and in the interior a little too small.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    example : Tensor
        Inputs to trace it with.
    removals : sequence of Removal
        What will go.
    data : DataLoader, Dataset or pair of tensors
        The reference samples; labels are not used.
    batch_size : int
        Samples in a batch of a data set or tensors; a loader has its own.
    followed : Followed, optional
        The channels, where they are known already: `Coupling.followed`.

    Returns
    -------
    list of str
        Readers that cannot take over anything: neither a bias nor a batch norm behind them.
    """
    followed = followed or follow(model, example)
    units = doomed(model, followed, removals)
    names: dict[Any, str] = {}
    lost: dict[Any, list[int]] = {}
    for name, module in model.named_modules():
        inputs = followed.sides(name, module)[1] if isinstance(module, _READERS) else None
        if inputs is None:
            continue
        gone = torch.isin(followed.units.find(inputs), units).nonzero().flatten().tolist()
        if gone:
            names[module], lost[module] = name, gone
    norms = {reader: _norm_behind(model, followed, names[reader]) for reader in lost}
    left_out = [r for r in lost if r.bias is None and norms[r] is None]
    means = _contributions(
        model, data, {r: c for r, c in lost.items() if r not in left_out}, batch_size
    )
    with torch.no_grad():
        for reader, mean in means.items():
            if reader.bias is not None:
                reader.bias.add_(mean.to(reader.bias))
            else:
                norms[reader].running_mean.sub_(mean.to(norms[reader].running_mean))
    return [names[reader] for reader in left_out]


def _norm_behind(model: nn.Module, followed: Followed, reader: str) -> Any:
    """Return the batch norm that alone reads a layer, and reads that layer alone."""
    if reader not in followed.norms:
        return None
    module = model.get_submodule(followed.norms[reader])
    return module if isinstance(module, _Norm) and module.running_mean is not None else None


def _contributions(
    model: nn.Module, data: Data, lost: dict[Any, list[int]], batch_size: int
) -> dict[Any, Tensor]:
    """Mean of what the doomed inputs add to each output of their readers; shape (outputs,)."""
    totals = Totals()
    names = {reader: str(number) for number, reader in enumerate(lost)}

    def hook(reader: Any, args: tuple[Tensor, ...]) -> None:
        nonlocal totals
        dimension = -1 if isinstance(reader, nn.Linear) else 1
        # The layer is linear: the mean passes as all do.
        x = args[0].double().mean(0, keepdim=True).to(args[0])
        doomed = torch.zeros_like(x)
        gone = torch.tensor(sorted(set(lost[reader])), device=x.device)
        doomed.index_copy_(dimension, gone, x.index_select(dimension, gone))
        # `forward`, unlike a call, does not come back to this hook.
        share = reader.forward(doomed) - reader.forward(torch.zeros_like(doomed))
        share = share.double().movedim(dimension, 0).flatten(1).mean(1) * len(args[0])
        seen = share.new_tensor(len(args[0]))
        totals = totals.update({names[reader]: share, f"seen by {names[reader]}": seen}, 0)

    if not lost:
        return {}
    handles = [reader.register_forward_pre_hook(hook) for reader in lost]
    try:
        with torch.no_grad(), agreed():
            for inputs, _ in batches(data, batch_size, home(model), shared=True):
                model(inputs.clone())  # which it may overwrite
    finally:
        for handle in handles:
            handle.remove()
    sums = totals.reduced().sums
    known = ((reader, name) for reader, name in names.items() if name in sums)
    return {reader: sums[name] / sums[f"seen by {name}"] for reader, name in known}
