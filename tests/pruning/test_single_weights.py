"""Unstructured pruning: exact numbers, masks that hold, folders that come back."""

import pytest
import torch
import torchvision
from pruning_networks import chain, data_for, randomise
from torch import nn
from torch.nn.utils import prune as torch_prune

import niwaki
from niwaki.criteria import Scores, create, score_weights
from niwaki.errors import ModelError, NothingToPruneError
from niwaki.pruning import (
    WeightTrajectory,
    load_masks,
    mask_weights,
    prune_weights,
    select_weights,
)


@pytest.fixture
def model():
    return randomise(chain())


def layers_of(model):
    kinds = (nn.Conv2d, nn.Linear)
    return {n: m.weight for n, m in model.named_modules() if isinstance(m, kinds)}


SCORES = Scores({"a": torch.tensor([[5.0, 1.0], [3.0, 1.0]]), "b": torch.tensor([[2.0, 9.0, 1.0]])})


def chosen(masks):
    return {layer: mask.int().flatten().tolist() for layer, mask in masks.items()}


def test_the_lowest_go_and_ties_go_by_order():
    masks = select_weights(SCORES, 4 / 7)
    assert chosen(masks) == {"a": [1, 0, 1, 0], "b": [1, 1, 0]}
    assert chosen(select_weights(SCORES, 5 / 7)) == {"a": [1, 0, 1, 0], "b": [1, 1, 1]}
    assert masks["a"].shape == (2, 2)
    assert masks["b"].shape == (1, 3)


def test_within_layers_each_keeps_its_share():
    masks = select_weights(SCORES, 0.5, over="layer")
    assert chosen(masks) == {"a": [1, 0, 1, 0], "b": [0, 1, 0]}


def test_no_layer_is_cut_through():
    scores = Scores({"a": torch.zeros(1, 4), "b": torch.ones(1, 4)})
    assert chosen(select_weights(scores, 0.5))["a"] == [0, 0, 0, 1]
    assert chosen(select_weights(scores, 0.5, min_weights=0))["a"] == [0, 0, 0, 0]


def test_what_is_gone_stays_gone():
    there = {"a": torch.tensor([[False, True], [True, True]]), "b": torch.ones(1, 3).bool()}
    masks = select_weights(SCORES, 4 / 7, among=there)
    assert chosen(masks) == {"a": [0, 0, 1, 0], "b": [1, 1, 1]}  # of the ties, only two go


@pytest.mark.parametrize("criterion", niwaki.criteria.names("weight"))
@pytest.mark.parametrize("over", ["network", "layer"])
def test_exact_numbers_and_nothing_else_changes(model, criterion, over):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = "lrp:max_loss=None" if criterion == "lrp" else criterion
    pruned = prune_weights(model, data_for(8), made, keep=0.3, over=over, steps=2)
    weights = layers_of(pruned.model)
    total = sum(weight.numel() for weight in weights.values())
    left = {layer: int(mask.sum()) for layer, mask in pruned.masks().items()}
    if over == "network":
        assert sum(left.values()) == round(0.3 * total)
    else:
        assert left == {n: w.numel() - round(0.7 * w.numel()) for n, w in weights.items()}
    assert pruned.sparsity == pytest.approx(1 - sum(left.values()) / total)
    for layer, mask in pruned.masks().items():
        assert torch.equal(weights[layer], before[f"{layer}.weight"] * mask)
    after = pruned.model.state_dict()
    assert set(after) == set(before)
    for name in set(before) - {f"{layer}.weight" for layer in weights}:
        assert torch.equal(after[name], before[name])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    hooks = [m._forward_pre_hooks for n in (model, pruned.model) for m in n.modules()]
    assert not any(hooks)


def test_one_step_is_scoring_selecting_and_masking(model):
    data = data_for(8)
    pruned = prune_weights(model, data, "taylor", keep=0.4)
    masks = select_weights(score_weights(model, data, "taylor"), 0.4)
    assert all(torch.equal(mask, masks[layer]) for layer, mask in pruned.masks().items())
    twin = mask_weights(model, masks)
    assert torch.equal(twin(data[0]), pruned.model(data[0]))


def test_the_trajectory_shrinks_geometrically_with_nested_masks(model):
    data, seen = data_for(8), []
    pruned = prune_weights(
        model,
        data,
        "taylor",
        keep=0.125,
        steps=3,
        test=data,
        run=niwaki.pruning.Run(callback=seen.append),
    )
    total = sum(weight.numel() for weight in layers_of(model).values())
    shares = [1 - step.sparsity for step in pruned.trajectory]
    assert shares == pytest.approx([1, 0.5, 0.25, 0.125], abs=1 / total)
    assert list(pruned.trajectory) == seen
    for step in range(1, 4):
        earlier, later = pruned.masks(step - 1), pruned.masks(step)
        assert all(bool((earlier[n] | ~later[n]).all()) for n in later)
        gone = {n: 1 - float(m.float().mean()) for n, m in later.items()}
        assert pruned.trajectory[step].sparsities() == pytest.approx(gone)
    assert niwaki.evaluation.accuracy(pruned.model, data) == pruned.trajectory[-1].accuracy
    assert f"{pruned.sparsity:.1%}" in str(pruned.trajectory)
    assert WeightTrajectory.from_json(pruned.trajectory.to_json()) == pruned.trajectory
    with pytest.raises(ValueError, match="0 to 3"):
        pruned.masks(4)


def test_saved_and_loaded_bit_for_bit(model, tmp_path):
    data = data_for(8)
    pruned = prune_weights(model, data, "magnitude", keep=0.3, steps=2)
    pruned.save(tmp_path / "sparse", about={"model": "mine:chain"})
    assert (tmp_path / "sparse" / "masks.safetensors").is_file()
    again = niwaki.load(tmp_path / "sparse", chain())
    assert torch.equal(again(data[0]), pruned.model(data[0]))
    for step in (0, 1, 2, None):
        masks = load_masks(tmp_path / "sparse", step)
        assert all(torch.equal(masks[n], m) for n, m in pruned.masks(step).items())
    with pytest.raises(ModelError, match="no folder of a network with masks"):
        load_masks(tmp_path)


def test_masks_hold_while_it_is_trained(model):
    data = data_for(8)
    pruned = prune_weights(model, data, "magnitude", keep=0.3)
    training = pruned.masked().train()
    optimizer = torch.optim.SGD(training.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(training(data[0]), data[1]).backward()
        optimizer.step()
    for name, module in training.named_modules():
        if name in pruned.masks():
            torch_prune.remove(module, "weight")
            left = pruned.masks()[name]
            assert not bool(module.weight[~left].any())
            assert not torch.equal(module.weight, pruned.model.get_submodule(name).weight)


class Bare(nn.Module):
    """A layer that is no module."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(5, 3, 3, 3))
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(nn.functional.conv2d(x, self.kernel).relu().mean((2, 3)))


def test_a_bare_parameter_is_masked_too():
    torch.manual_seed(0)
    model = Bare().eval()
    pruned = prune_weights(model, data_for(8), "taylor", keep=0.5, over="layer")
    assert int((pruned.model.kernel == 0).sum()) == round(0.5 * model.kernel.numel())


@pytest.mark.parametrize("ignored", ["{}", "[{}]"])  # by its name, or by a pattern
def test_ignored_layers_stay_whole(model, ignored):
    first, *rest = layers_of(model)
    ignore = [ignored.format(first)]
    pruned = prune_weights(model, data_for(8), "magnitude", keep=0.2, ignore=ignore)
    assert set(pruned.masks()) == set(rest)
    assert torch.equal(layers_of(pruned.model)[first], layers_of(model)[first])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0}, "keep = 0"),
        ({"keep": 1.0}, "keep = 1"),
        ({"over": "block"}, "over = 'block'"),
        ({"steps": 0}, "steps = 0"),
        ({"steps": 300}, "steps = 300|255"),
        ({"min_weights": -1}, "min_weights = -1"),
        ({"ignore": ["conv7"]}, "no convolution or linear layer 'conv7'"),
        ({"criterion": "lpr"}, "did you mean lrp"),
    ],
)
def test_what_cannot_be_asked_for(model, options, message):
    with pytest.raises(ValueError, match=message):
        prune_weights(
            model,
            data_for(8),
            **{"criterion": "magnitude", **options},
        )


def test_networks_whose_weights_cannot_be_masked(model):
    with pytest.raises(NothingToPruneError, match="no convolution or linear layer"):
        prune_weights(model, data_for(8), "magnitude", ignore=list(layers_of(model)))
    with pytest.raises(ValueError, match="the mask of '0' has shape"):
        mask_weights(model, {"0": torch.ones(2, 2)})
    with pytest.raises(ModelError, match="no parameter of Sequential"):
        mask_weights(model, {"conv7": torch.ones(2, 2)})
    torch_prune.l1_unstructured(model[3], "weight", 0.3)
    with pytest.raises(ModelError, match=r"the weight of '3' is no parameter"):
        prune_weights(model, data_for(8), "magnitude")


def test_a_network_whose_channels_cannot_be_followed_loses_weights():
    torch.manual_seed(0)
    model = torchvision.models.shufflenet_v2_x0_5(num_classes=3).eval()
    pruned = prune_weights(
        model, data_for(32, samples=2), create("lrp", "weight", max_loss=None), keep=0.5
    )
    assert pruned.sparsity == pytest.approx(0.5, abs=1e-4)
    assert pruned.model(data_for(32, samples=2)[0]).shape == (2, 3)
