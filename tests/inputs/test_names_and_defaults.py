"""Options within names, and defaults that fall back."""

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v3_small

import niwaki
from niwaki.errors import DataError, FallbackWarning, NiwakiError
from niwaki.options import split_options

NET = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).eval()
IMAGES = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(4) % 2


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("lrp", "lrp", {}),
        ("lrp:max_loss=None", "lrp", {"max_loss": None}),
        ("lrp: max_loss = null", "lrp", {"max_loss": None}),
        ("a:b=true,c=False,d=0.5,e=-3,f=word", "a", {"b": True, "c": False, "d": 0.5, "e": -3,
                                                    "f": "word"}),
        ("lrp:composite=rules/a=b.json", "lrp", {"composite": "rules/a=b.json"}),
    ],
)  # fmt: skip
def test_options_within_a_name(text, name, options):
    assert split_options(text) == (name, options)


@pytest.mark.parametrize("text", ["lrp:max_loss", "lrp:=3", "lrp:a=1,,b=2"])
def test_text_of_another_form(text):
    for make in (
        split_options,
        niwaki.criteria.create,
        lambda t: niwaki.explain(NET, IMAGES, 0, t),
    ):
        with pytest.raises(NiwakiError, match="OPTION=VALUE"):
            make(text)


def test_the_same_as_options_given_by_keyword():
    told = niwaki.explain(NET, IMAGES, 1, "smoothgrad:samples=3,sigma=0.2,relative=true")
    given = niwaki.explain(NET, IMAGES, 1, "smoothgrad", samples=3, sigma=0.2, relative=True)
    assert torch.equal(told, given)
    criterion = niwaki.criteria.create("lrp:max_loss=None,reduce=signed")
    assert criterion.max_loss is None
    assert criterion.reduce == "signed"


def test_an_option_that_is_not_there():
    with pytest.raises(NiwakiError, match="nothing"):
        niwaki.explain(NET, IMAGES, 1, "smoothgrad:nothing=3")
    with pytest.raises(NiwakiError, match="nothing"):
        niwaki.criteria.create("lrp:nothing=3")


def test_a_method_that_is_made_already_is_not_for_other_networks():
    made = niwaki.attribution.create("gradient", NET)
    with pytest.raises(DataError, match="lambda network"):
        niwaki.evaluation.perturbation_curves(NET, (IMAGES, LABELS), {"mine": made})


@pytest.mark.long
def test_the_default_criterion_falls_back_and_says_so():
    torch.manual_seed(0)
    model = mobilenet_v3_small(num_classes=4).eval()
    data = torch.randn(4, 3, 32, 32), torch.arange(4)
    with pytest.warns(FallbackWarning, match="is tried in its place"):
        found = niwaki.score(model, data)
    assert found.criterion in ("lrp.ratio_sums", "lrp.z_plus_sums", "taylor")
    expected = niwaki.score(model, data, found.criterion)
    assert all(torch.equal(found[layer], expected[layer]) for layer in expected)
    with pytest.raises(NiwakiError, match="max_loss=None"):
        niwaki.score(model, data, "lrp", reduce="signed")  # chosen, and so not changed


class Normalised(nn.Module):
    """Its operation has no rule, as those of some attention blocks."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 4, 3), nn.Linear(64, 2)

    def forward(self, x):
        return self.two(nn.functional.normalize(self.one(x).relu().flatten(1)))


def test_the_default_criterion_falls_back_where_an_operation_has_no_rule():
    torch.manual_seed(0)
    model = Normalised().eval()
    with pytest.warns(FallbackWarning, match="no rule for the operation 'normalize'"):
        found = niwaki.score(model, (IMAGES, LABELS))
    assert found.criterion == "taylor"
    expected = niwaki.score(model, (IMAGES, LABELS), "taylor")
    assert torch.equal(found["one"], expected["one"])


def test_an_error_of_rules_names_what_serves_without_them():
    torch.manual_seed(0)
    model = Normalised().eval()
    with pytest.raises(NiwakiError, match="no rule") as caught:
        niwaki.explain(model, IMAGES)
    named = [name for name in niwaki.attribution.names() if name in str(caught.value)]
    assert len(set(named) - {"gradient", "input"}) >= 3
    for method in ("input_t_gradient", "integrated_gradients", "occlusion"):
        assert method in named
        assert niwaki.explain(model, IMAGES, method=method).isfinite().all()
    assert "taylor" in str(caught.value)
    with pytest.raises(NiwakiError, match="no rule"):
        niwaki.score(model, (IMAGES, LABELS), "lrp.epsilon_plus")  # chosen, and so not changed
