"""The network between two removals: its candidates, and all that is known of its passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from niwaki.car._evaluator import Evaluator
from niwaki.car._groups import judged, within
from niwaki.car._look import Look, gather
from niwaki.car._outcome import judge
from niwaki.car._pool import Pool
from niwaki.car._tally import Candidate
from niwaki.car._units import Kind, kind_of, losing, name_of, outputs, units_of
from niwaki.errors import NothingToPruneError
from niwaki.pruning import Group

__all__ = ["Stand"]

_WORN = 0.25  # share of the units gone after which the operations are listed anew, and narrower


class Stand:
    """A network whose units go one after the other.

    Its operations are listed, and checked against physical removal, once: a unit that goes is
    afterwards read by nobody, and only what follows it is computed anew. As its channels are still
    there, all is listed anew when many are gone.

    Parameters
    ----------
    model : nn.Module
        The physically pruned network; not changed.
    pool : Pool
        The images.
    example : Tensor
        A few of them.
    layers : sequence of str, optional
        To which the candidates are confined.
    min_units : int
        Units that each layer keeps at the least.
    memory : int
        Bytes to stay below.
    size : int
        Images that are looked at together.
    paths : mapping
        How groups were evaluated before, by their kind.

    Attributes
    ----------
    groups : list of Group
        As they were listed, without those that cannot lose a unit.
    evaluator : Evaluator
        Of the network as it stands.
    whole : Look, optional
        At all images, where that fits into memory.

    Raises
    ------
    NothingToPruneError
        If no layer has a unit left to lose.
    """

    def __init__(
        self,
        model: nn.Module,
        pool: Pool,
        example: Tensor,
        layers: Sequence[str] | None,
        min_units: int,
        memory: int,
        size: int,
        paths: Mapping[Kind, str],
    ) -> None:
        found = judged(model, example)
        counts = units_of(found.coupled, found.widths)
        groups = losing(found.groups, counts, max(1, min_units))
        if layers is not None:  # a layer that is down to its last unit is no longer among them
            groups = within(groups, layers)
        if not groups:
            raise NothingToPruneError("every layer is down to its last units")
        self._min = max(1, min_units)
        self._left = counts
        self.whole: Look | None = None
        known = [paths.get(kind_of(group), "") for group in groups]
        self.evaluator = Evaluator(
            model, example, groups, memory // 2, known if all(known) else None
        )
        self.groups: list[Group] = self.evaluator.groups
        self._gone: list[set[int]] = [set() for _ in self.groups]
        self._lost: dict[str, list[int]] = {}  # channels of each layer, as they were listed
        self.size = self.evaluator.images(size)
        if self.evaluator.kept_bytes * len(pool) <= memory // 4:
            self.whole = gather(len(pool), self.size, pool.read, self.evaluator.look)

    def candidates(self) -> list[Candidate]:
        """List the units that may go, in the order that decides between equals."""
        may = {name_of(group) for group in losing(self.groups, self._left, self._min)}
        return [
            Candidate(g, u)
            for g, group in enumerate(self.groups)
            if name_of(group) in may
            for u in range(len(group))
            if u not in self._gone[g]
        ]

    def taken(self, candidate: Candidate) -> dict[str, tuple[int, ...]]:
        """Return the channels that layers lose with a unit, as they are numbered now."""
        return {
            layer: tuple(
                c - sum(gone < c for gone in self._lost.get(layer, ()))
                for c in member.channels[candidate.unit]
            )
            for layer, member in outputs(self.groups[candidate.group]).items()
        }

    def remove(self, candidate: Candidate) -> bool:
        """Go on without a unit, or return False where all must be listed anew."""
        if self.whole is None or not self.evaluator.lasts:
            return False
        self._gone[candidate.group].add(candidate.unit)
        for layer, member in outputs(self.groups[candidate.group]).items():
            self._lost.setdefault(layer, []).extend(member.channels[candidate.unit])
            if layer in self._left:
                self._left[layer] -= 1
        if sum(map(len, self._gone)) >= _WORN * sum(map(len, self.groups)):
            return False
        self.evaluator.remove(self.whole, candidate.group, candidate.unit)
        return True

    def margins(self, pool: Pool) -> Tensor | None:
        """Return the margin of each image, where they are at hand."""
        if self.whole is None:
            return None
        return judge(self.whole.logits, pool.labels).margin
