"""Networks whose code keeps what a pass has computed, with its history, as for a penalty."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.models import deep_copy
from niwaki.pruning import Schedule

INPUTS = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 3


class Keeping(nn.Module):
    """Keeps its activations: alone, in a list and deep in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3)
        self.second = nn.Conv2d(8, 6, 3)
        self.last = nn.Linear(6, 3)
        self.hidden: Tensor | None = None
        self.history: list[Tensor] = []
        self.by_layer: dict[str, list[Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Compute, and keep."""
        self.hidden = self.first(x).relu()
        self.history.append(self.second(self.hidden).relu())
        self.by_layer["last"] = [self.history[-1].mean((2, 3))]
        given: Tensor = self.last(self.by_layer["last"][0])
        return given


def networks() -> tuple[Keeping, Keeping]:
    """Build one that holds what a pass with gradients has left, and one that holds nothing."""
    torch.manual_seed(0)
    fresh = Keeping().eval()
    used = copy.deepcopy(fresh)
    used(INPUTS)
    assert used.hidden is not None
    assert used.hidden.grad_fn is not None
    return used, fresh


def test_copies_have_the_values_without_the_history() -> None:
    used, _ = networks()
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(used)
    twin = deep_copy(used)
    for ours, theirs in (
        (twin.hidden, used.hidden),
        (twin.history[0], used.history[0]),
        (twin.by_layer["last"][0], used.by_layer["last"][0]),
    ):
        assert ours is not theirs
        assert ours.grad_fn is None
        assert theirs.grad_fn is not None
        assert ours.data_ptr() != theirs.data_ptr()
        assert torch.equal(ours, theirs)


def outputs_of(job: str, model: nn.Module) -> Tensor:
    """Run a job, and return numbers of what it finds."""
    few = INPUTS, LABELS
    if job == "explain":
        return niwaki.explain(model, INPUTS, LABELS, "lrp.epsilon_plus")
    if job == "score":
        return torch.cat(list(niwaki.score(model, few, "lrp").values()))
    if job == "prune":
        pruned = niwaki.prune(model, few, keep=0.6, schedule=Schedule(steps=2))
        return torch.cat([value.flatten() for value in pruned.model.state_dict().values()])
    if job == "prune_weights":
        sparse = niwaki.pruning.prune_weights(model, few, keep=0.5)
        return torch.cat([value.flatten() for value in sparse.model.state_dict().values()])
    found = niwaki.car.index(model, few)
    return torch.cat([found[layer].margin_change.flatten() for layer in found])


@pytest.mark.parametrize("job", ["explain", "score", "prune", "prune_weights", "car"])
def test_jobs_give_what_they_give_without(job: str) -> None:
    used, fresh = networks()
    assert torch.equal(outputs_of(job, used), outputs_of(job, fresh))
