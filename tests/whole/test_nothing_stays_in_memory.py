"""After a call, nothing of its passes is left in memory: no tensor, no operation, no graph.

A circle that leads through a hook in autograd's graph is never freed, as Python's garbage collector
does not see the graph. A few small tensors of each batch are enough for the heap to grow on and on.
"""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import niwaki
from niwaki.errors import NiwakiError
from niwaki.evaluation import Perturbation, perturbation_curves, randomisation_test
from niwaki.filters import feature_visualisation, pictures, profile, receptive_fields

pytestmark = pytest.mark.slow
SIZE = 12
PREPROCESSING = niwaki.data.Preprocessing(SIZE, mean=(0.5,) * 3, std=(0.25,) * 3)


class Residual(nn.Module):
    """Two convolutions with norms, the second in a branch."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.branch, self.behind = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.last = nn.Linear(6, 4)

    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        x = (x + self.behind(self.branch(x))).relu()
        return self.last(x.mean((2, 3)))


class Described(TensorDataset):
    preprocessing = PREPROCESSING
    classes = ("a", "b", "c", "d")


INPUTS = torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
DATA = INPUTS, torch.arange(4)


def kept_pictures(model):
    data = Described(*DATA)
    found = profile(model, data, layers=["branch"], patches=2, method="lrp.epsilon")
    return list(pictures(model, data, found["branch"], count=2, steps=1, method="lrp.epsilon"))


def curves(model):
    how = Perturbation((4, 4), 3)
    return perturbation_curves(model, DATA, ["gradient", "lrp.epsilon"], how)


FAMILIES = {
    "explain": {
        name: lambda model, name=name: niwaki.explain(model, INPUTS, 0, name)
        for name in niwaki.attribution.names()
        if not name.startswith("pattern.")
    },
    "score": {
        name: lambda model, name=name: niwaki.score(model, DATA, name)
        for name in niwaki.criteria.names()
    },
    "score weights": {
        name: lambda model, name=name: niwaki.score_weights(model, DATA, name)
        for name in niwaki.criteria.names("weight")
    },
    "filters": {
        "receptive fields": lambda model: receptive_fields(model, (3, SIZE, SIZE), ["branch"]),
        "visualisation": lambda model: feature_visualisation(
            model, "branch", PREPROCESSING, steps=2
        ),
        "pictures": kept_pictures,
    },
    "others": {
        "CAR": lambda model: niwaki.car.index(model, DATA),
        "curves": curves,
        "randomisation": lambda model: randomisation_test(model, DATA, ["gradient"], layers=2),
        "prune": lambda model: niwaki.prune(model, DATA, keep=0.8),
    },
}


def count():
    """Count the tensors, and the operations that a watch has seen."""
    gc.collect()
    kinds = [type(one) for one in gc.get_objects()]
    return sum(
        issubclass(kind, torch.Tensor) or kind.__name__ in ("Operation", "Watch") for kind in kinds
    )


def refused(family, model):
    """Do all of it; return what is refused on this network, which must leave nothing either."""
    found = []
    for name, job in FAMILIES[family].items():
        try:
            job(model)
        except NiwakiError:
            found.append(name)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore")
def test_nothing_of_a_pass_stays(family):
    torch.manual_seed(0)
    model = Residual().eval()
    told = refused(family, model)  # what is made once and for all
    assert len(told) < len(FAMILIES[family]) / 2
    before = count()
    for _ in range(2):
        assert refused(family, model) == told
    assert count() - before < 2, "of every call something stays in memory"
