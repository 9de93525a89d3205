"""Forms in which inputs come and outputs go: each entry is right, or says what is wrong."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import niwaki
from niwaki.errors import DataError, NiwakiError
from niwaki.evaluation import Perturbation, perturbation_curves, randomisation_test

Entry = Callable[[nn.Module, Any, Any], Any]

METHODS = [name for name in niwaki.attribution.names() if not name.startswith("pattern.")]

ENTRIES: dict[str, Entry] = {
    "explain": lambda net, x, y: niwaki.explain(net, x),
    "gradient": lambda net, x, y: niwaki.explain(net, x, method="gradient"),
    "integrated_gradients": lambda net, x, y: niwaki.explain(
        net, x, method="integrated_gradients", steps=4
    ),
    "occlusion": lambda net, x, y: niwaki.explain(net, x, method="occlusion"),
    "deep_lift": lambda net, x, y: niwaki.explain(net, x, method="deep_lift"),
    "grad_cam": lambda net, x, y: niwaki.explain(net, x, method="grad_cam"),
    "score lrp": lambda net, x, y: niwaki.score(net, (x, y)),
    "score taylor": lambda net, x, y: niwaki.score(net, (x, y), "taylor"),
    "score activation": lambda net, x, y: niwaki.score(net, (x, y), "activation"),
    "score weight": lambda net, x, y: niwaki.score(net, (x, y), "weight"),
    "score_weights": lambda net, x, y: niwaki.score_weights(net, (x, y)),
    "prune": lambda net, x, y: niwaki.prune(
        net, (x, y), keep=0.7, schedule=niwaki.pruning.Schedule(steps=1)
    ),
    "prune_weights": lambda net, x, y: niwaki.prune_weights(net, (x, y), keep=0.7, steps=1),
    "car.index": lambda net, x, y: niwaki.car.index(net, (x, y)),
    "car.greedy": lambda net, x, y: niwaki.car.greedy(net, (x, y), niwaki.car.Stop(remove=1)),
    "fit_patterns": lambda net, x, y: niwaki.attribution.fit_patterns(net, (x, y)),
    "accuracy": lambda net, x, y: niwaki.evaluation.accuracy(net, (x, y)),
    "perturbation_curves": lambda net, x, y: perturbation_curves(
        net, (x, y), ["gradient"], Perturbation(steps=2)
    ),
    "randomisation_test": lambda net, x, y: randomisation_test(net, (x, y), ["gradient"], layers=1),
}


def batch(seed: int = 0, channels: int = 3, size: int = 12, count: int = 6) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


LABELS = torch.arange(6) % 3


class Dense(nn.Module):
    """A map of outputs, as segmentation networks give it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 1)
        with torch.no_grad():  # each output has something that speaks for it
            self.two.weight[:, :4].abs_()
            self.two.bias.abs_()

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu())


class Classifier(Dense):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean((-2, -1))


class Clips(Classifier):
    """Frames are folded into the batch and brought together in the end."""

    def forward(self, x: Tensor) -> Tensor:
        n, t = x.shape[:2]
        return super().forward(x.reshape(n * t, *x.shape[2:])).view(n, t, -1).mean(1)


class Frames(Classifier):
    """Frames stay in the batch: a row for each of them."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(-1, *x.shape[2:]))


class Squeezing(Classifier):
    """``squeeze()`` takes the samples, too, where there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        pooled = nn.functional.adaptive_avg_pool2d(self.one(x).relu(), 1)
        return self.head(pooled.squeeze())


class OneByOne(Classifier):
    """A loop over samples, each without a dimension of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.two(self.one(image).relu()).mean((-2, -1)) for image in x])


class Several(Classifier):
    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Any:
        return self.form(super().forward(x))


def of(kind: type[nn.Module], *options: Any, like: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(1)
    made = kind(*options).eval()
    if like is not None:
        made.load_state_dict(like.state_dict())
    return made


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES.keys())
class TestEntries:
    """In every entry a wrong form is our own error, with a way out, and changes nothing."""

    def refuses(
        self, entry: Entry, net: nn.Module, inputs: Any, says: str, y: Any = LABELS
    ) -> None:
        before = {k: v.clone() for k, v in net.state_dict().items()}
        with pytest.raises(NiwakiError, match=says):
            entry(net, inputs, y)
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
        assert not net.training
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())

    def test_an_image_without_a_batch(self, entry: Entry) -> None:
        for net in (of(Dense), of(Classifier)):
            self.refuses(entry, net, batch()[0], r"image\[None\]|no dimension", LABELS[:3])

    def test_wrong_channels(self, entry: Entry) -> None:
        self.refuses(entry, of(Classifier), batch(channels=1), "fails on inputs of shape")

    def test_wrong_size(self, entry: Entry) -> None:
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 3)).eval()
        self.refuses(entry, net, batch(size=16), "fails on inputs of shape")

    def test_a_tuple_of_outputs(self, entry: Entry) -> None:
        net = of(Several, lambda out: (out, out.mean(1)))
        self.refuses(entry, net, batch(), r"tuple of 2.*niwaki.models.Part\(model, 0\)")

    def test_a_dict_of_outputs(self, entry: Entry) -> None:
        net = of(Several, lambda out: {"out": out, "aux": out})
        self.refuses(entry, net, batch(), r"niwaki.models.Part\(model, 'out'\)")

    def test_a_row_for_each_frame(self, entry: Entry) -> None:
        self.refuses(
            entry,
            of(Frames),
            batch().view(3, 2, 3, 12, 12),
            "one row for each|Grad-CAM",
            LABELS[:3],
        )

    def test_several_inputs(self, entry: Entry) -> None:
        self.refuses(entry, of(Classifier), (batch(), batch()), "tuple")

    def test_integers(self, entry: Entry) -> None:
        self.refuses(entry, of(Classifier), (batch() * 9).int(), "int32")

    def test_pictures(self, entry: Entry) -> None:
        self.refuses(entry, of(Classifier), [Image.new("RGB", (12, 12))] * 6, "Preprocessing")

    def test_tensors_of_different_sizes(self, entry: Entry) -> None:
        sizes = [batch(size=s)[0] for s in (12, 13, 12, 12, 12, 12)]
        self.refuses(entry, of(Classifier), sizes, "different shapes")


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES.keys())
class TestSameInAnotherForm:
    """What means the same gives the same."""

    @pytest.mark.parametrize("form", ["array", "double", "double array", "half", "list", "arrays"])
    def test_inputs(self, entry: Entry, form: str) -> None:
        net, exact = of(Classifier), batch().half()  # exact in all of these types
        given: Any = {
            "array": exact.float().numpy(),
            "double": exact.double(),
            "double array": exact.double().numpy(),
            "half": exact,
            "list": list(exact.float()),
            "arrays": list(exact.float().numpy()),
        }[form]
        same(entry(net, given, LABELS), entry(net, exact.float(), LABELS))

    def test_single_precision_for_a_double_network(self, entry: Entry) -> None:
        net = of(Classifier).double()
        same(entry(net, batch(), LABELS), entry(net, batch().double(), LABELS))

    @pytest.mark.parametrize("form", [np.asarray, list, torch.Tensor.int], ids=str)
    def test_labels(self, entry: Entry, form: Callable[[Tensor], Any]) -> None:
        net = of(Classifier)
        same(entry(net, batch(), form(LABELS)), entry(net, batch(), LABELS))


def same(found: Any, expected: Any) -> None:
    for one, other in zip(numbers(found), numbers(expected), strict=True):
        torch.testing.assert_close(one, other, check_dtype=False, rtol=1e-4, atol=1e-6)


def numbers(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, float):
        return [torch.tensor(result)]
    if hasattr(result, "model"):
        return list(result.model.state_dict().values())
    if isinstance(result, niwaki.car.CarIndex):
        return [layer.margin_change for layer in result.values()]
    values = []
    for value in result.values():
        values.append(next(iter(vars(value).values())) if hasattr(value, "method") else value)
    if all(isinstance(v, Tensor) for v in values):
        return values
    return [v.spearman if hasattr(v, "spearman") else v.scores["most"] for v in result.values()]


@pytest.mark.filterwarnings("ignore::niwaki.errors.CompletenessWarning")
@pytest.mark.parametrize("method", METHODS)
class TestMethods:
    def test_an_image_without_a_batch(self, method: str) -> None:
        if method in ("input", "random"):
            pytest.skip("looks at no network")
        with pytest.raises(DataError, match=r"image\[None\]"):
            niwaki.explain(of(Dense), batch()[0], method=method)

    def test_doubles(self, method: str) -> None:
        net, exact = of(Classifier), batch().half()
        found = explained(net, exact.double().numpy(), 1, method)
        torch.testing.assert_close(found, explained(net, exact.float(), 1, method))

    def test_one_image_of_a_network_that_squeezes(self, method: str) -> None:
        net = of(Squeezing)
        alone = explained(net, batch()[:1], 1, method)
        both = explained(net, batch()[[0, 0]], 1, method)[:1]
        torch.testing.assert_close(alone, both)

    def test_clips_are_the_mean_of_their_frames(self, method: str) -> None:
        if method in ("occlusion", "random", "smoothgrad", "grad_cam", "guided_grad_cam"):
            pytest.skip("depends on the shape of the input")
        if method in ("deep_taylor", "deep_taylor.bounded"):
            pytest.skip("clips at zero what comes before the mean")
        plain = of(Classifier)
        clips, folded = of(Clips, like=plain), batch().view(3, 2, 3, 12, 12)
        start = {"start": "one"} if _takes(method, start="one") else {}
        frames = explained(plain, batch(), 1, method, **start)
        found = explained(clips, folded, 1, method, **start)
        share = 1.0 if method == "input" else 0.5
        if "gradient" in method or "Grad" in method or method in ("guided_backprop", "deconvnet"):
            torch.testing.assert_close(found.flatten(0, 1), share * frames)
        assert torch.isfinite(found).all()

    def test_segmentation(self, method: str) -> None:
        found = explained(of(Dense), batch(), 1, method)
        assert found.shape == batch().shape
        torch.testing.assert_close(found[:2], explained(of(Dense), batch()[:2], 1, method))


def explained(net: nn.Module, x: Any, target: int, method: str, **options: Any) -> Tensor:
    """Explain; how much relevance rules lose is not what these tests are about."""
    if _takes(method, max_loss=None):
        options["max_loss"] = None
    return niwaki.explain(net, x, target, method, **options)


def _takes(method: str, **option: Any) -> bool:
    try:
        niwaki.attribution.create(method, of(Classifier), **option)
    except TypeError:
        return False
    return True


def test_a_loop_over_samples_gives_the_same_scores() -> None:
    """Within the loop a convolution's units lie in the first dimension."""
    plain = of(Classifier)
    loop = of(OneByOne, like=plain)
    for name in (
        "lrp",
        "lrp.epsilon_plus",
        "lrp.signed",
        "taylor",
        "gradient",
        "activation",
        "apoz",
    ):
        expected = niwaki.score(plain, (batch(), LABELS), name)
        found = niwaki.score(loop, (batch(), LABELS), name)
        torch.testing.assert_close(found["one"], expected["one"], rtol=1e-4, atol=1e-7)
    with pytest.raises(NiwakiError, match="per sample"):
        niwaki.score(loop, (batch(), LABELS), "taylor_gates")


def test_a_loop_and_folded_clips_cost_as_much() -> None:
    plain = of(Classifier)
    counted = niwaki.evaluation.cost(plain, batch())
    assert niwaki.evaluation.cost(of(OneByOne), batch()) == counted
    clips = niwaki.evaluation.cost(of(Clips), batch().view(3, 2, 3, 12, 12))
    assert (clips.units, clips.params) == (counted.units, counted.params)
    assert clips.macs == 2 * counted.macs == 2 * 144 * (8 * 27 + 24)


def test_scores_of_one_sample_in_a_network_that_squeezes() -> None:
    net = of(Squeezing)
    for name in ("lrp", "lrp.epsilon_plus", "taylor", "taylor_gates", "activation", "gradient"):
        alone = niwaki.score(net, (batch()[:1], LABELS[:1]), name, normalise="none")
        twice = niwaki.score(net, (batch()[[0, 0]], LABELS[[0, 0]]), name, normalise="none")
        for layer in alone:
            ratio = 2 if name.startswith("lrp") else 1  # those are sums over samples
            torch.testing.assert_close(ratio * alone[layer], twice[layer], rtol=1e-4, atol=1e-7)


def test_a_last_batch_of_one_in_a_network_that_squeezes() -> None:
    net = of(Squeezing)
    data = batch(count=5), LABELS[:5]
    whole = niwaki.evaluation.accuracy(net, data, batch_size=5)
    assert niwaki.evaluation.accuracy(net, data, batch_size=2) == whole
    one, other = (niwaki.car.index(net, data, batch_size=size) for size in (5, 2))
    for layer in one:
        assert torch.equal(one[layer].lost, other[layer].lost)
        torch.testing.assert_close(one[layer].margin_change, other[layer].margin_change)
    pruned = niwaki.prune(
        net,
        data,
        keep=0.8,
        repair=None,
        test=data,
        schedule=niwaki.pruning.Schedule(steps=1),
        run=niwaki.pruning.Run(batch_size=2),
    )
    assert pruned.trajectory.final.accuracy is not None


def test_part_is_the_output_that_it_names() -> None:
    plain, x = of(Classifier), batch()
    expected = niwaki.explain(plain, x, 1)
    for form, key in (
        (lambda out: {"aux": out.sum(1), "out": out}, "out"),
        (lambda out: (out, out.sum(1)), 0),
        (lambda out: type("Answer", (), {"logits": out})(), "logits"),
    ):
        net = niwaki.models.Part(of(Several, form, like=plain), key).eval()
        assert torch.equal(niwaki.explain(net, x, 1), expected)
        assert niwaki.prune(
            net, (x, LABELS), keep=0.7, schedule=niwaki.pruning.Schedule(steps=1)
        ).model(x).shape == (6, 3)
    with pytest.raises(NiwakiError, match="without 'nothing'"):
        niwaki.explain(niwaki.models.Part(plain, "nothing").eval(), x)


@pytest.mark.parametrize("target", ["cat", ["cat", "dog"], 1.5, True, {"a": 1}, ("cat",)])
def test_a_target_that_is_no_number(target: Any) -> None:
    with pytest.raises(DataError, match="target"):
        niwaki.explain(of(Classifier), batch(), target)


def test_targets_in_other_forms() -> None:
    net, x = of(Classifier), batch()
    expected = niwaki.explain(net, x, LABELS)
    for form in (np.asarray, list, tuple, torch.Tensor.tolist, torch.Tensor.int):
        assert torch.equal(niwaki.explain(net, x, form(LABELS)), expected)
    for one in (np.int64(1), np.array(1), torch.tensor(1)):
        assert torch.equal(niwaki.explain(net, x, one), niwaki.explain(net, x, 1))
    weights = torch.nn.functional.one_hot(LABELS, 3)
    assert torch.equal(niwaki.explain(net, x, weights.numpy().astype("float64")), expected)


@pytest.mark.filterwarnings("ignore::niwaki.errors.PrecisionWarning")
@pytest.mark.filterwarnings("ignore::niwaki.errors.CompletenessWarning")
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_of_other_types(kind: torch.dtype) -> None:
    plain, x = of(Classifier), batch()
    net = of(Classifier, like=plain).to(kind)
    for method in ("gradient", "lrp.epsilon_plus", "integrated_gradients", "deep_lift"):
        found = niwaki.explain(net, x, 1, method)
        assert found.dtype == kind
        expected = niwaki.explain(plain, x, 1, method).double()
        error = (found.double() - expected).norm() / expected.norm()
        assert error < {torch.float16: 0.02, torch.bfloat16: 0.1}.get(kind, 1e-2), method
    pruned = niwaki.prune(net, (x, LABELS), keep=0.7, schedule=niwaki.pruning.Schedule(steps=1))
    assert pruned.model(x.to(kind)).dtype == kind
    assert niwaki.car.index(net, (x, LABELS))["one"].baseline.total == 6


def test_weights_of_another_kind_are_no_weights(tmp_path: Any) -> None:
    net = of(Classifier)
    for kind in (torch.int32, torch.complex64, torch.bool):
        path = tmp_path / f"{kind}.pt"
        torch.save({name: value.to(kind) for name, value in net.state_dict().items()}, path)
        before = {k: v.clone() for k, v in net.state_dict().items()}
        with pytest.raises(niwaki.errors.WeightsError, match=str(kind)):
            niwaki.models.load_weights(net, path)
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    path = tmp_path / "half.pt"
    torch.save({name: value.half() for name, value in net.state_dict().items()}, path)
    niwaki.models.load_weights(net, path)


def test_a_loop_over_images_without_a_batch() -> None:
    plain = of(Classifier)
    loop = of(OneByOne, like=plain)
    torch.testing.assert_close(loop(batch()), plain(batch()))
    for method in ("lrp.epsilon", "lrp.epsilon_plus", "lrp.sequential_preset_a", "gradient"):
        expected = explained(plain, batch(), 1, method)
        torch.testing.assert_close(explained(loop, batch(), 1, method), expected)
    for criterion in ("lrp", "taylor", "weight"):
        found, expected = (
            niwaki.prune(
                net,
                (batch(), LABELS),
                criterion,
                keep=0.7,
                repair=None,
                schedule=niwaki.pruning.Schedule(steps=1),
            )
            for net in (loop, plain)
        )
        assert found.plan.removed() == expected.plan.removed()
        torch.testing.assert_close(found.model(batch()), expected.model(batch()))
    indices = [niwaki.car.index(net, (batch(), LABELS)) for net in (loop, plain)]
    assert torch.equal(indices[0]["one"].lost, indices[1]["one"].lost)


def test_weights_made_in_inference_mode() -> None:
    """Derivatives are refused with the way out; all else is as with other weights."""
    plain = of(Classifier)
    with torch.inference_mode():
        made = of(Classifier, like=plain)
    assert next(made.parameters()).is_inference()
    for method in ("lrp.epsilon_plus", "gradient", "smoothgrad", "deep_lift", "grad_cam"):
        with pytest.raises(niwaki.errors.ModelError, match=r"inference_mode.*deepcopy"):
            explained(made, batch(), 1, method)
        expected = explained(plain, batch(), 1, method)
        assert torch.equal(explained(copy.deepcopy(made), batch(), 1, method), expected)
    assert torch.equal(
        explained(made, batch(), 1, "occlusion"), explained(plain, batch(), 1, "occlusion")
    )
    for criterion in ("lrp", "taylor", "weight"):
        found, expected = (
            niwaki.prune(
                net,
                (batch(), LABELS),
                criterion,
                keep=0.7,
                schedule=niwaki.pruning.Schedule(steps=1),
            )
            for net in (made, plain)
        )
        assert found.plan.removed() == expected.plan.removed()
    assert torch.equal(
        niwaki.car.index(made, (batch(), LABELS))["one"].lost,
        niwaki.car.index(plain, (batch(), LABELS))["one"].lost,
    )
