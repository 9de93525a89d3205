"""An option that nobody has is told as one of the function that was called."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import niwaki
from niwaki import criteria, pruning
from niwaki.auditing import audit, collect, gather
from niwaki.data import Described
from niwaki.datasets import DIGITS
from niwaki.errors import UnknownOptionError

INPUTS, LABELS = torch.rand(6, 3, 8, 8), torch.arange(6) % 3
PAIR = (INPUTS, LABELS)
IMAGES = Described(TensorDataset(*PAIR), preprocessing=DIGITS)


@pytest.fixture
def model():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)]
    return nn.Sequential(*layers).eval()


CALLS = {
    "audit": (
        lambda model, _: audit(model, IMAGES, tissues=True),
        "audit() has no option 'tissues', nor has method 'lrp.epsilon_plus'; "
        "did you mean 'tissue'?",
    ),
    "gather": (
        lambda model, _: gather(model, IMAGES, batchsize=2),
        "gather() has no option 'batchsize', nor has method 'lrp.epsilon_plus'; "
        "did you mean 'batch_size'?",
    ),
    "collect": (
        lambda model, path: collect(model, IMAGES, path, overwrit=True),
        "collect() has no option 'overwrit', nor has method 'lrp.epsilon_plus'; "
        "did you mean 'overwrite'?",
    ),
    "explain, its own": (
        lambda model, _: niwaki.explain(model, INPUTS, methd="gradient"),
        "explain() has no option 'methd', nor has method 'lrp.epsilon_plus'; "
        "did you mean 'method'?",
    ),
    "explain, the method's": (
        lambda model, _: niwaki.explain(model, INPUTS, method="smoothgrad", sampels=3),
        "explain() has no option 'sampels', nor has method 'smoothgrad'; did you mean 'samples'?",
    ),
    "score": (
        lambda model, _: criteria.score(model, PAIR, "lrp", batchsize=2),
        "score() has no option 'batchsize', nor has criterion 'lrp'; did you mean 'batch_size'?",
    ),
    "prune": (
        lambda model, _: niwaki.prune(model, PAIR, "weight + taylor", kep=0.5),
        "prune() has no option 'kep'; did you mean 'keep'?",
    ),
    "prune, made already": (
        lambda model, _: niwaki.prune(model, PAIR, criteria.create("weight"), kep=0.5),
        "prune() has no option 'kep'; did you mean 'keep'?",
    ),
    "prune_weights": (
        lambda model, _: pruning.prune_weights(model, PAIR, "lrp", kep=0.5),
        "prune_weights() has no option 'kep'; did you mean 'keep'?",
    ),
    "compare": (
        lambda model, _: pruning.compare(
            model, PAIR, ["weight"], test=PAIR, references=1, seeds=1, limit=2
        ),
        "compare() has no option 'limit', nor has prune(); did you mean 'limits'?",
    ),
    "text": (
        lambda model, _: niwaki.prune(model, PAIR, "lrp:redduce=3"),
        "criterion 'lrp' has no option 'redduce'; did you mean 'reduce'?",
    ),
}


@pytest.mark.parametrize(("call", "said"), CALLS.values(), ids=CALLS)
def test_the_error_names_the_function_called_and_what_was_meant(call, said, model, tmp_path):
    with pytest.raises(UnknownOptionError) as error:
        call(model, tmp_path / "out")
    assert str(error.value) == said
    assert isinstance(error.value, TypeError)
    assert not (tmp_path / "out").exists()


def test_a_contenders_own_option_is_told_of_the_contender(model):
    entry = pruning.Contender("mine", "weight", options={"q": 3})
    with pytest.raises(UnknownOptionError, match="criterion 'weight' has no option 'q'"):
        pruning.compare(model, PAIR, [entry], test=PAIR, references=1, seeds=1)


def test_where_nothing_is_close_all_options_are_listed(model):
    with pytest.raises(UnknownOptionError, match=r"explain\(\) has model, inputs, target, method"):
        niwaki.explain(model, INPUTS, xyzzy=1)


def test_the_error_can_be_copied_and_pickled():
    error = UnknownOptionError("a", {"f()": ("b",)})
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (str(again), again.option, again.takers) == (str(error), "a", {"f()": ("b",)})


def test_a_type_error_of_another_kind_is_left_alone(model):
    with pytest.raises(TypeError) as error:
        niwaki.explain(model)
    assert not isinstance(error.value, UnknownOptionError)
