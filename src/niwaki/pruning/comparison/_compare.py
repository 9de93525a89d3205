"""The comparison of criteria: every contender, on every draw of reference samples, once."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from niwaki import models
from niwaki import runs as run_folders
from niwaki.contexts import undisturbed
from niwaki.criteria import Criterion, Scores, hidden_layers, score
from niwaki.data import Data, batches, check_same_classes, decoded, in_memory
from niwaki.data import references as draw
from niwaki.errors import NiwakiError, UnknownOptionError
from niwaki.pruning._bundles import Limits, Run, Schedule
from niwaki.pruning._loop import Repair
from niwaki.pruning._prune import prune
from niwaki.pruning._pruned import Pruned
from niwaki.pruning._trajectory import Step, Trajectory
from niwaki.pruning.comparison._comparison import Comparison
from niwaki.pruning.comparison._contenders import Contender, Contenders, Outcome, contenders_of
from niwaki.pruning.steps import Measure, Structure
from niwaki.pruning.units._budget import Of
from niwaki.ranges import INSIDE, SEED, SOME, checked
from niwaki.runs import described, digest, identified, open_run

__all__ = ["compare"]


@undisturbed
@checked(references=SOME, seeds=SEED, keep=INSIDE)
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
    repair: Repair | None = "rebuild",
    run: Run = Run(),
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
        Seeds of the draws; a number stands for 0, 1, ...
    keep, of
        See `prune`: the share at which the curves end, and of what.
    repair : {"rebuild", "rebuild_jointly", "recalibrate", "compensate"}, optional
        See `prune`. The default, which fits each layer by itself, takes a quarter of the time of
        that of `prune` and treats all contenders alike.
    run : Run
        The batch size, the callback for each `Outcome`, and the folder in which finished runs are
        kept. These are not run again when the same comparison is started anew; contenders, numbers
        of references and seeds may be added.
    **prune_options
        Further options of `prune`, such as its schedule, for all contenders.

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
    check_same_classes(data, test, "the reference and the test images")
    test = test if isinstance(test, (DataLoader, tuple)) else decoded(test)
    options = {"keep": keep, "of": of, "repair": repair, **prune_options}
    settings = {"batch_size": run.batch_size, **_written(options)}
    match = _Match(model, Measure(test, None, run.batch_size), options)
    done: dict[str, list[Outcome]] = {entry.label: [] for entry in entries}

    def identity() -> dict[str, Any]:
        known = {"model": identified(model), "data": digest(data, ordered=True)}
        return {**known, "test": digest(test), **settings}

    with open_run(run.folder, identity) as kept:
        abouts = {entry.label: entry.describe() for entry in entries}  # which may read much data
        for size, seed, due in _jobs(entries, sizes, draws, options, abouts):
            few: Data | None = None
            for entry, planned in due:
                found = _finished(kept, planned)
                if found is None:
                    few = in_memory(draw(data, size, seed)) if few is None else few
                    found = _named_errors(match, entry, planned, few, seed)
                    kept.write(_name(found), outcome=found.to_json())
                done[entry.label].append(found)
                run.tell(found)
    runs = tuple(one for found in done.values() for one in found)
    named = {"model": type(model).__name__, "weights": models.fingerprint(model)}
    return Comparison(runs, {**named, **settings, "references": sizes, "seeds": draws})


def _finished(kept: run_folders.Run, run: Outcome) -> Outcome | None:
    """Return a run that is finished, by the same contender."""
    part = kept.read(_name(run))
    if part is None:
        return None
    found = Outcome.from_json(part.about.get("outcome"))
    for name, now in run.about.items():
        if found.about.get(name) != now:
            raise NiwakiError(
                f"the folder holds a run of another contender {run.label!r}: its {name} was "
                f"{found.about.get(name)}, is {now}. Choose another label or folder"
            )
    return found


def _name(run: Outcome) -> str:
    draw = ["any" if part is None else str(part) for part in (run.references, run.seed)]
    return f"{run.label}--{draw[0]}--{draw[1]}"


def _jobs(
    entries: Sequence[Contender],
    sizes: Sequence[int],
    seeds: Sequence[int],
    options: Mapping[str, Any],
    abouts: Mapping[str, dict[str, Any]],
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
                    about=abouts[entry.label],
                )
                due.append((entry, empty))
            yield size, seed, due


@dataclass(frozen=True)
class _Match:
    """What is the same for all runs, and how one is made."""

    model: nn.Module
    measure: Measure
    options: Mapping[str, Any]

    def play(self, entry: Contender, run: Outcome, few: Data, seed: int) -> Outcome:
        """Fill a run."""
        example = next(iter(batches(few, 2, models.home(self.model))))[0]
        ranks = None
        result: Iterable[nn.Module] | Trajectory | Pruned
        if isinstance(entry.criterion, (str, Criterion)):
            made = entry.create(seed)
            scores = score(self.model, few, made, batch_size=self.measure.batch_size)
            ranks = Scores(_split(scores), entry.label)
            chosen = {**self.options, **entry.prune_options}
            # Curves are compared step by step, whatever the repair: all in steps of the same size.
            chosen["schedule"] = chosen.get("schedule", Schedule()).paced()
            run_ = Run(batch_size=self.measure.batch_size)
            result = prune(self.model, few, made, test=self.measure.test, **{"run": run_, **chosen})
        else:
            result = entry.criterion(models.deep_copy(self.model), few, seed)
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
        rows, last = [self._look(0, self.model, example, time.perf_counter())], None
        started = time.perf_counter()
        for number, last in enumerate(result, 1):
            rows.append(self._look(number, last, example, started))
            started = time.perf_counter()
        return Trajectory(tuple(rows)), last

    def _look(self, step: int, network: nn.Module, example: Tensor, since: float) -> Step:
        return self.measure.step(step, Structure(network, example), since)


def _named_errors(match: _Match, entry: Contender, run: Outcome, few: Data, seed: int) -> Outcome:
    try:
        return match.play(entry, run, few, seed)
    except NiwakiError as error:
        if isinstance(error, UnknownOptionError) and error.option in match.options:
            raise  # of `compare` itself, not of this contender
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


def _written(options: Mapping[str, Any]) -> dict[str, Any]:
    """Write options of `prune` down, to tell whether a folder was made with the same."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, (Limits, Schedule)):
            found |= {field: described(setting) for field, setting in vars(value).items()}
        else:
            data = name == "validation" and value is not None
            found[name] = digest(value) if data else described(value)
    return found


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
