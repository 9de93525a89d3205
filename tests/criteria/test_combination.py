"""Weighted sums of ranks against scipy."""

import numpy as np
import pytest
import torch
from criteria_networks import Functional, Plain, close, randomise
from scipy import stats

from niwaki.criteria import Combination, create, score
from niwaki.errors import ModelError


@pytest.fixture
def plain():
    torch.manual_seed(0)
    return randomise(Plain())


@pytest.fixture
def samples():
    torch.manual_seed(1)
    return torch.randn(5, 3, 12, 12).double(), torch.tensor([0, 1, 2, 3, 0])


@pytest.mark.parametrize(
    ("given", "weights"),
    [
        ("taylor + 0.5*weight", {"taylor": 1, "weight": 0.5}),
        ("2 * activation+weight.l2", {"activation": 2, "weight.l2": 1}),
        ({"random": 1, "lamp": 3.5, "apoz": 1}, {"random": 1, "lamp": 3.5, "apoz": 1}),
        ("3*fpgm", {"fpgm": 3}),
    ],
)
def test_the_sum_of_scipys_ranks(plain, samples, given, weights):
    criterion = given if isinstance(given, str) else Combination(given)
    found = score(plain, samples, criterion, batch_size=2)
    expected = 0
    for name, weight in weights.items():
        flat = score(plain, samples, name).flat().numpy()
        expected = expected + weight * (stats.rankdata(flat) - 1) / (len(flat) - 1)
    np.testing.assert_allclose(found.flat().numpy(), expected, rtol=1e-12)
    assert list(found) == list(score(plain, samples, "weight"))
    assert float(found.flat().max()) <= sum(weights.values())


def test_options_of_the_parts(plain, samples):
    parts = {create("lrp", reduce="signed", max_loss=None): 1.0, create("random", seed=3): 0.25}
    found = score(plain, samples, Combination(parts))
    ranks = [score(plain, samples, part).ranks() for part in parts]
    torch.testing.assert_close(found.flat(), (ranks[0] + 0.25 * ranks[1]) / (len(ranks[0]) - 1))


def test_it_is_named_after_its_parts(plain, samples):
    made = create(" 0.5*weight+ lrp.signed ")
    assert made.name == "0.5*weight + lrp.signed"
    assert "0.5" in repr(made)
    assert "Weight(" in repr(made)
    assert score(plain, samples, "weight + random").criterion == "weight + random"


def test_only_layers_that_all_score(plain, samples):
    found = score(plain, samples, "bn_scale + weight")
    assert list(found) == ["0", "5"]
    both = {layer: score(plain, samples, "weight")[layer] for layer in found}
    ranks = stats.rankdata(torch.cat(list(both.values())).numpy()) - 1
    ranks += stats.rankdata(score(plain, samples, "bn_scale").flat().numpy()) - 1
    np.testing.assert_allclose(found.flat().numpy(), ranks / (len(ranks) - 1))


def test_parts_learn_from_the_data(samples):
    torch.manual_seed(0)
    model = randomise(Plain(transposed=False))
    made = create("pattern_attribution + weight")
    alone = score(model, samples, "pattern_attribution").ranks()
    weight = score(model, samples, "weight").ranks()
    found = score(model, samples, made)
    torch.testing.assert_close(found.flat(), (alone + weight) / (len(alone) - 1))
    close(score(model, samples, made), dict(found))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lrp + ", "no sum of criteria"),
        ("lrp + lrp", "each once"),
        ("half*lrp", "half"),
        ("nan*lrp", "nan"),
        ("0*lrp + weight", "not above 0"),
        ("-1*lrp + weight", "not above 0"),
        ("lrp + wieght", "did you mean weight"),
    ],
)
def test_what_is_no_sum_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        create(text)


def test_other_refusals():
    with pytest.raises(ValueError, match="at least one"):
        Combination({})
    with pytest.raises(TypeError, match="seed"):
        create("random + weight", seed=3)
    data = torch.randn(1, 3, 6, 6), torch.tensor([0])
    with pytest.raises(ModelError, match="no hidden layer"):
        score(Functional().eval(), data, "bn_scale + weight")


@pytest.mark.parametrize("name", ["random", "random.rebuilt", "weight + 2*random"])
def test_a_seed_reaches_all_that_draw(plain, samples, name):
    told = {
        "random": create("random", seed=7),
        "random.rebuilt": create("random.rebuilt", seed=7),
        "weight + 2*random": Combination({"weight": 1, create("random", seed=7): 2}),
    }[name]
    made = create(name)
    assert made.draws
    assert not told.draws
    for criterion in (made.seeded(7), made.seeded(7).seeded(8), told.seeded(8)):
        assert torch.equal(
            score(plain, samples, criterion).flat(), score(plain, samples, told).flat()
        )
    assert not torch.equal(
        score(plain, samples, made.seeded(7)).flat(), score(plain, samples, made.seeded(8)).flat()
    )
    assert torch.equal(
        score(plain, samples, made).flat(), score(plain, samples, made.seeded(0)).flat()
    )


def test_what_does_not_draw_is_handed_on(plain):
    made = create("lrp.rebuilt")
    assert not made.draws
    assert made.seeded(3).base.seeded(3) is made.base
