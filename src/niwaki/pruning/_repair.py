"""Repairs without training: batch norms measured anew, and biases that take over what went."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from niwaki.accumulation import Totals
from niwaki.data import Data, batches, count
from niwaki.errors import DataError
from niwaki.models import home
from niwaki.pruning._follow import Followed, follow
from niwaki.pruning._plan import Removal
from niwaki.pruning._surgery import doomed
from niwaki.ranges import BATCH, checked

__all__ = ["compensate", "has_batch_norms", "recalibrate"]

_Norm = nn.modules.batchnorm._BatchNorm
_READERS = (nn.modules.conv._ConvNd, nn.Linear)


def has_batch_norms(model: nn.Module) -> bool:
    """Whether there is a batch norm with running statistics, that could be measured anew."""
    return bool(_norms(model))


@checked(batch_size=BATCH)
def recalibrate(model: nn.Module, data: Data, *, batch_size: int = 128) -> None:
    """Measure the running statistics of all batch norms anew, in one pass without labels.

    Every batch is normalised by its own statistics on its way; what each norm meets is summed up,
    so that the order of the batches does not matter. Where all samples fit in one batch the result
    is exact: in evaluation mode the network then computes what it does in training mode. A data set
    or tensors are dealt out to the batches like cards, since samples sorted by class would give
    batches that are unlike the whole.

    Parameters
    ----------
    model : nn.Module
        Changed in place; a network without batch norms stays as it is.
    data : DataLoader, Dataset or pair of tensors
        The reference samples.
    batch_size : int
        For a data set or tensors; a loader is read as it is.

    Raises
    ------
    DataError
        If a batch has one value per channel only, which has no variance.
    """
    norms = _norms(model)
    if not norms:
        return
    sums: dict[str, Tensor] = {}

    def add(name: str, values: Tensor) -> None:
        sums[name] = values + sums[name] if name in sums else values

    def watch(number: int) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].detach().double().movedim(1, 0).flatten(1)
            add(f"{number}.count", torch.tensor(float(x.shape[1])))
            add(f"{number}.mean", x.sum(1))
            # Around the old mean, so that little is lost when both sums are subtracted.
            shift = norms[number].running_mean
            assert shift is not None
            add(f"{number}.square", (x - shift.double()[:, None]).square().sum(1))

        return hook

    totals = Totals()
    with torch.no_grad(), _normalising_by_batch(norms):
        handles = [norm.register_forward_pre_hook(watch(i)) for i, norm in enumerate(norms)]
        try:
            for inputs, _ in batches(_dealt(data, batch_size), batch_size, home(model)):
                sums.clear()
                model(inputs)
                totals = totals.update(sums, len(inputs))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise DataError(
                "recalibrate: a batch with one sample cannot tell how values vary; give more "
                "reference samples, or other batches"
            ) from error
        finally:
            for handle in handles:
                handle.remove()
    for number, norm in enumerate(norms):
        if f"{number}.count" in totals.sums:  # else the forward pass does not use it
            _set(norm, *(totals.sums[f"{number}.{what}"] for what in ("count", "mean", "square")))


def _set(norm: Any, samples: Tensor, total: Tensor, square: Tensor) -> None:
    old = norm.running_mean.double()
    mean = total / samples
    variance = (square / samples - (mean - old).square()).clamp_min(0)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)


def _norms(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, _Norm) and m.running_mean is not None]


@contextmanager
def _normalising_by_batch(norms: Sequence[Any]) -> Iterator[None]:
    """Let batch norms use the batch at hand, and their running statistics be as they were."""
    kept = [(norm, norm.training, norm.track_running_stats) for norm in norms]
    for norm in norms:
        norm.training, norm.track_running_stats = True, False
    try:
        yield
    finally:
        for norm, training, tracked in kept:
            norm.training, norm.track_running_stats = training, tracked


def _dealt(data: Data, batch_size: int) -> Data:
    """Put samples that stand together into different batches; a loader stays as it is."""
    samples = count(data)
    if isinstance(data, DataLoader) or samples is None or batch_size < 1 or samples <= batch_size:
        return data
    dataset: Dataset[Any] = data if isinstance(data, Dataset) else TensorDataset(*data)
    hands = ceil(samples / batch_size)
    dealt = [list(range(hand, samples, hands)) for hand in range(hands)]
    return DataLoader(dataset, batch_sampler=dealt)


@checked(batch_size=BATCH)
def compensate(
    model: nn.Module,
    example: Tensor,
    removals: Sequence[Removal],
    data: Data,
    *,
    batch_size: int = 32,
) -> list[str]:
    """Fold what doomed units contribute on average into the layers that read them.

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
        For a data set or tensors; a loader has its own.

    Returns
    -------
    list of str
        Readers that cannot take over anything: neither a bias nor a batch norm behind them.
    """
    followed = follow(model, example)
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
    sums: dict[Any, Tensor] = {}
    samples: dict[Any, int] = {}

    def hook(reader: Any, args: tuple[Tensor, ...]) -> None:
        dimension = -1 if isinstance(reader, nn.Linear) else 1
        x = args[0].mean(0, keepdim=True)  # the layer is linear: the mean passes as all do
        doomed = torch.zeros_like(x)
        gone = torch.tensor(sorted(set(lost[reader])), device=x.device)
        doomed.index_copy_(dimension, gone, x.index_select(dimension, gone))
        # `forward`, unlike a call, does not come back to this hook.
        share = reader.forward(doomed) - reader.forward(torch.zeros_like(doomed))
        share = share.double().movedim(dimension, 0).flatten(1).mean(1) * len(args[0])
        sums[reader] = share + sums.get(reader, 0)
        samples[reader] = len(args[0]) + samples.get(reader, 0)

    if not lost:
        return {}
    handles = [reader.register_forward_pre_hook(hook) for reader in lost]
    try:
        with torch.no_grad():
            for inputs, _ in batches(data, batch_size, home(model)):
                model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {reader: total / samples[reader] for reader, total in sums.items()}
