"""The comparison of criteria: every contender, on every draw of reference samples, once."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from niwaki import models
from niwaki.criteria import Criterion, Scores, hidden_layers, score
from niwaki.data import Data, batches, count, in_memory
from niwaki.data import references as draw
from niwaki.errors import NiwakiError
from niwaki.evaluation import accuracy, cost
from niwaki.pruning._budget import Of
from niwaki.pruning._comparison import Comparison
from niwaki.pruning._contender import Contender, Contenders, contenders_of, readable
from niwaki.pruning._outcome import Outcome
from niwaki.pruning._prune import prune
from niwaki.pruning._pruned import Pruned
from niwaki.pruning._shelf import Shelf
from niwaki.pruning._trajectory import Step, Trajectory

__all__ = ["compare"]

FORMAT = 1


def compare(
    model: nn.Module,
    data: Dataset[Any] | tuple[Tensor, Tensor],
    contenders: Contenders,
    *,
    test: Data,
    references: Sequence[int] | int = (10,),
    seeds: Sequence[int] | int = 5,
    keep: float = 0.3,
    of: Of = "macs",
    folder: str | Path | None = None,
    batch_size: int = 32,
    callback: Callable[[Outcome], None] | None = None,
    **prune_options: Any,
) -> Comparison:
    """Prune a network by several criteria on the same draws of reference samples.

    Contenders that look at the samples are run for every number of references and every seed;
    those that do not, once, or once per seed where they are seeded (random).

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, returning shape (N, classes). It stays as it is.
    data : Dataset or pair of tensors
        What reference samples are drawn from, by `niwaki.data.references`.
    contenders : sequence or mapping
        Names of criteria, criteria, or `Contender` objects; or a mapping from labels to a name, a
        criterion, a function ``(model, references, seed)`` (see `Contender`), or options such as
        ``{"criterion": "lrp", "reduce": "signed"}``.
    test : DataLoader, Dataset or pair of tensors
        Measures the accuracy after each step.
    references : int or sequence of int
        Samples per class.
    seeds : int or sequence of int
        Of the draws; a number stands for 0, 1, ...
    keep, of
        See `prune`: the share at which the curves end, and of what.
    folder : str or Path, optional
        Each finished run is written there at once, and is not run again when the same comparison
        is started anew; contenders, numbers of references and seeds may be added.
    batch_size : int
        For data sets and tensors; a loader has its own.
    callback : callable, optional
        Told about each finished run, also about one that was read from the folder.
    **prune_options
        Further options of `prune`, for all contenders.

    Returns
    -------
    Comparison
        Curves, areas, agreement of the rankings, and what each layer lost.

    Raises
    ------
    ValueError, TypeError
        For options or contenders that make no sense.
    NiwakiError
        If a run fails (which one is named), or the folder holds a comparison of another network,
        of other data or settings (which one is named).

    Examples
    --------
    >>> found = niwaki.pruning.compare(model, training, ["lrp", "weight"], test=test, seeds=5)
    >>> print(found)
    >>> found.areas(of="macs", between=(0.3, 1.0))
    """
    entries = contenders_of(contenders)
    sizes, draws = _sizes(references), _seeds(seeds)
    models.check(model)
    test = test if isinstance(test, (DataLoader, tuple)) else in_memory(test)
    options = {"keep": keep, "of": of, **prune_options}
    settings = {
        "format": FORMAT,
        "model": type(model).__name__,
        "weights": models.fingerprint(model),
        "data": _fingerprint(data),
        "test": _fingerprint(test),
        **{name: _written(name, value) for name, value in options.items()},
    }
    shelf = None if folder is None else Shelf.open(Path(folder), settings)
    match = _Match(model, test, options, batch_size)
    done: dict[str, list[Outcome]] = {entry.label: [] for entry in entries}
    for size, seed, due in _jobs(entries, sizes, draws, options):
        few: Data | None = None
        for entry, run in due:
            found = shelf.read(run) if shelf else None
            if found is None:
                few = in_memory(draw(data, size, seed)) if few is None else few
                found = _named_errors(match, entry, run, few, seed)
                if shelf:
                    shelf.write(found)
            done[entry.label].append(found)
            if callback is not None:
                callback(found)
    runs = tuple(run for found in done.values() for run in found)
    return Comparison(runs, {**settings, "references": sizes, "seeds": draws})


def _jobs(
    entries: Sequence[Contender],
    sizes: Sequence[int],
    seeds: Sequence[int],
    options: Mapping[str, Any],
) -> Iterable[tuple[int, int, list[tuple[Contender, Outcome]]]]:
    """List, for each draw, the runs that are due; draw by draw, so that all advance alike."""
    for seed in seeds:
        for size in sizes:
            due = []
            for entry in entries:
                looks, seeded = entry.looks(options), entry.is_seeded()
                if not looks and (size != sizes[0] or (not seeded and seed != seeds[0])):
                    continue
                empty = Outcome(
                    entry.label,
                    size if looks else None,
                    seed if looks or seeded else None,
                    Trajectory(),
                    about=entry.describe(),
                )
                due.append((entry, empty))
            yield size, seed, due


@dataclass(frozen=True)
class _Match:
    """What is the same for all runs, and how one is made."""

    model: nn.Module
    test: Data
    options: Mapping[str, Any]
    batch_size: int

    def play(self, entry: Contender, run: Outcome, few: Data, seed: int) -> Outcome:
        """Fill a run."""
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        example = next(iter(batches(few, 2, device)))[0]
        ranks = None
        result: Iterable[nn.Module] | Trajectory | Pruned
        if isinstance(entry.criterion, (str, Criterion)):
            made = entry.create(seed)
            scores = score(self.model, few, made, batch_size=self.batch_size)
            ranks = Scores(_split(scores), entry.label)
            chosen = {"batch_size": self.batch_size, **self.options, **entry.prune_options}
            result = prune(self.model, few, made, test=self.test, **chosen)
        else:
            result = entry.criterion(copy.deepcopy(self.model), few, seed)
        trajectory, last = self._watch(result, example)
        removed = {} if last is None else _removed(self.model, last, example)
        return replace(run, trajectory=trajectory, removed=removed, ranks=ranks)

    def _watch(
        self, result: Iterable[nn.Module] | Trajectory | Pruned, example: Tensor
    ) -> tuple[Trajectory, nn.Module | None]:
        if isinstance(result, Pruned):
            return result.trajectory, result.model
        if isinstance(result, Trajectory):
            return result, None
        started = time.perf_counter()
        rows, last = [self._look(0, self.model, example, started)], None
        started = time.perf_counter()
        for number, last in enumerate(result, 1):
            rows.append(self._look(number, last, example, started))
            started = time.perf_counter()
        return Trajectory(tuple(rows)), last

    def _look(self, step: int, network: nn.Module, example: Tensor, since: float) -> Step:
        now = cost(network, example)
        right = accuracy(network, self.test, batch_size=self.batch_size)
        seconds = time.perf_counter() - since
        return Step(step, now.units, now.params, now.macs, right, None, seconds)


def _named_errors(match: _Match, entry: Contender, run: Outcome, few: Data, seed: int) -> Outcome:
    try:
        return match.play(entry, run, few, seed)
    except NiwakiError as error:
        raise NiwakiError(
            f"{entry.label!r}, {run.references} references per class, seed {seed}: {error}"
        ) from error


def _split(scores: Scores) -> dict[str, Tensor]:
    """Ranks by layer."""
    widths = [len(value) for value in scores.values()]
    return dict(zip(scores, torch.split(scores.ranks(), widths), strict=True))


def _removed(before: nn.Module, after: nn.Module, example: Tensor) -> dict[str, float]:
    left = {layer.name: layer.units for layer in hidden_layers(after, example[:1])}
    return {
        layer.name: 1 - left.get(layer.name, 0) / layer.units
        for layer in hidden_layers(before, example[:1])
    }


def _fingerprint(data: Data) -> str:
    """Say how many samples there are, with a hash of some of them."""
    number = count(data)
    source = data.dataset if isinstance(data, DataLoader) else data
    if number is None or (not isinstance(source, tuple) and not isinstance(source, Sized)):
        return type(source).__name__
    digest = hashlib.sha256()
    whole = len(source[0]) if isinstance(source, tuple) else len(source)
    for index in sorted({i * whole // 16 for i in range(16)} if whole else ()):
        sample, label = (
            (source[0][index], source[1][index]) if isinstance(source, tuple) else source[index]
        )
        digest.update(torch.as_tensor(sample).detach().cpu().contiguous().numpy().tobytes())
        digest.update(str(int(label)).encode())
    return f"{number} samples {digest.hexdigest()[:16]}"


def _written(option: str, value: Any) -> Any:
    """Write an option of `prune` down, to tell whether a folder was made with the same."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return _fingerprint(value) if option in ("validation", "training") else readable(value)


def _sizes(references: Sequence[int] | int) -> list[int]:
    sizes = [references] if isinstance(references, int) else list(references)
    if not sizes or min(sizes) < 1:
        raise ValueError(f"references = {references}: at least one number from 1 up")
    return sorted(set(sizes))


def _seeds(seeds: Sequence[int] | int) -> list[int]:
    drawn = list(range(seeds)) if isinstance(seeds, int) else list(dict.fromkeys(seeds))
    if not drawn:
        raise ValueError(f"seeds = {seeds}: at least one is needed")
    return drawn
