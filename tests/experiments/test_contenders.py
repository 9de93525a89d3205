"""Other papers' repairs and choices: on networks where the right answer is known."""

import copy
from itertools import combinations

import choices
import pytest
import recipes
import repairs
import torch
from recipes import Recipe, Scene
from torch import nn

import niwaki
from niwaki.evaluation import cost
from niwaki.models.zoo import ResNet
from niwaki.pruning import Plan, Removal, operate, recalibrate

TWINS = Plan(((Removal("0", (3, 4, 5)),),))


def plain(norm=True):
    """A layer of six units, a norm, a ReLU and what reads them."""
    torch.manual_seed(0)
    bn = nn.BatchNorm2d(6) if norm else nn.Identity()
    tail = [nn.Conv2d(6, 5, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    model = nn.Sequential(nn.Conv2d(3, 6, 3), bn, nn.ReLU(), *tail, nn.Linear(20, 4))
    return model.eval()


def twins(factor=1.0):
    """Units 3 to 5 give what 0 to 2 do, times a factor; filters of another length, too."""
    model = plain()
    conv, norm = model[0], model[1]
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.uniform_(-0.5, 0.5)
    recalibrate(model, images())
    norm.eps = 0.0
    with torch.no_grad():
        for tensor in (conv.weight, conv.bias, norm.running_mean):
            tensor[3:] = factor * tensor[:3]
        norm.running_var[3:] = factor**2 * norm.running_var[:3]
        for tensor in (norm.weight, norm.bias):
            tensor[3:] = factor * tensor[:3]
    return model


def images(count=40):
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(count, 3, 8, 8, generator=generator),
        torch.arange(count) % 4,
    )


def scene_of(model, plan):
    smaller = copy.deepcopy(model)
    operate(smaller, images()[0][:2], plan.steps[0])
    return Scene(model, copy.deepcopy(model), images(), 0.5, 0, plan, smaller)


def error(scene):
    """How far the smaller network is from the whole one, as a share of its outputs."""
    with torch.no_grad():
        whole, left = scene.original(images()[0]), scene.smaller(images()[0])
    return float((whole - left).norm() / (whole - whole.mean(0)).norm())


@pytest.mark.parametrize(
    ("repair", "tolerance"),
    [
        (repairs.interpolated, 1e-4),
        (repairs.merged, 1e-4),
        (repairs.folded, 1e-4),
        (repairs.symmetric, 1e-4),
        (repairs.least_squares, 1e-4),
        (repairs.grail, 0.02),  # a ridge of a thousandth
        (repairs.osscar, 0.1),  # of a hundredth
    ],
)
def test_twins_are_taken_over(repair, tolerance):
    scene = scene_of(twins(), TWINS)
    assert error(scene) > 0.3
    whole = copy.deepcopy(scene.original.state_dict())
    repair(scene)
    assert error(scene) < tolerance
    assert all(torch.equal(whole[k], v) for k, v in scene.original.state_dict().items())


@pytest.mark.parametrize("repair", [repairs.interpolated, repairs.merged])
def test_multiples_are_taken_over(repair):
    scene = scene_of(twins(factor=1.7), TWINS)
    assert error(scene) > 0.3
    repair(scene)
    assert error(scene) < 1e-4


def test_merging_leaves_opposite_filters():
    """A ReLU does not keep a negative factor: there is nothing to merge with."""
    model = twins()
    with torch.no_grad():
        model[1].weight[3] *= -1
        model[1].weight[1:3].neg_()
        model[1].weight[0] = model[1].weight[0].abs()
    weight = model[0].weight.detach().flatten(1).double()
    one = torch.ones(2).double()
    scale = torch.tensor([1.0, -1.0]).double()
    found = repairs._most_similar(weight[[0, 3]], scale, 0 * one, 0 * one, one, torch.tensor([0]))
    assert found.tolist() == [[1.0], [0.0]]


def test_grail_follows_its_formula():
    scene = scene_of(plain(norm=False), TWINS)
    with torch.no_grad():
        x = scene.original[:3](images()[0]).movedim(1, -1).reshape(-1, 6).double()
    gram, stay = x.T @ x, [0, 1, 2]
    inner = gram[stay][:, stay]
    ridge = 1e-3 * inner.diagonal().mean() * torch.eye(3).double()
    mixing = gram[:, stay] @ torch.linalg.inv(inner + ridge)
    expected = torch.einsum("ochw,ck->okhw", scene.original[3].weight.double(), mixing)
    repairs.grail(scene)
    torch.testing.assert_close(scene.smaller[3].weight.double(), expected, rtol=1e-4, atol=1e-5)


def test_osscars_update_is_the_ridge_regression_without_the_removed():
    scene = scene_of(plain(norm=False), TWINS)
    layer = scene.original[3]
    with torch.no_grad():
        x = recipes.rows(layer, scene.original[:3](images()[0]))
    gram = x.T @ x
    gram += 1e-2 * gram.diagonal().mean() * torch.eye(len(gram)).double()
    stay = torch.arange(27)  # three channels of nine places
    weight = layer.weight.detach().flatten(1).double()
    expected = torch.linalg.solve(gram[stay][:, stay], (gram @ weight.T)[stay]).T
    repairs.osscar(scene)
    found = scene.smaller[3].weight.detach().flatten(1).double()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_patches_times_weights_are_what_a_layer_gives():
    for layer in (nn.Conv2d(3, 4, (3, 2), stride=2, padding=1, bias=False), nn.Conv2d(3, 4, 1)):
        x = images(3)[0]
        with torch.no_grad():
            expected = layer(x).movedim(1, -1).flatten(0, 2).double()
            found = recipes.rows(layer, x) @ recipes.matrix(layer).T
            if layer.bias is not None:
                found = found + layer.bias
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_kept_counts_in_the_unpruned_network():
    model = plain()
    plan = Plan(((Removal("0", (0, 4)),), (Removal("0", (0,)), Removal("3", (2,)))))
    found = recipes.kept(model, images()[0][:2], plan)
    assert found["0"][0].tolist() == [2, 3, 5]  # 1 is the first of those that are left
    assert found["3"][1].tolist() == [2, 3, 5]
    assert found["3"][0].tolist() == [0, 1, 3, 4]
    assert found["7"][1].tolist() == [c for c in range(20) if not 8 <= c < 12]


@pytest.mark.parametrize(
    "repair", [repairs.grail, repairs.merged, repairs.folded, repairs.osscar, repairs.symmetric]
)
def test_repairs_fit_a_residual_network(repair):
    """Coupled channels go, and inner ones, in two steps."""
    torch.manual_seed(0)
    model = ResNet(1, 4).eval()
    gone = [Removal("conv1", (0,)), Removal("layer2.0.conv1", (3, 8))]
    steps = Recipe(lambda scene: _all_of(scene, gone), repair)(model, images(), 0)
    for count in (1, 2):
        network = next(steps)
        assert network.conv1.out_channels == 16 - count
        assert network.layer2[0].conv1.out_channels == 32 - 2 * count
        with torch.no_grad():
            assert bool(network(images()[0]).isfinite().all())


def _all_of(scene, gone):
    """List all layers that lose outputs."""
    groups = recipes.groups_of(scene.before, scene.example)
    lost = {removal.layer: set(removal.channels) for removal in gone}
    doomed = [
        [u for u, channels in enumerate(g.units) if lost.get(g.root, set()).issuperset(channels)]
        for g in groups
    ]
    return recipes.removals(groups, doomed)


@pytest.mark.slow
def test_lrp_as_a_recipe_is_what_prune_does():
    torch.manual_seed(0)
    model, x = ResNet(1, 4).eval(), images()
    *_, recipe = Recipe(recipes.ranked, repairs.rebuilt)(copy.deepcopy(model), x, 0)
    pruned = niwaki.prune(
        model,
        x,
        "lrp",
        keep=0.3,
        schedule=niwaki.pruning.Schedule(steps=7),
        repair="rebuild",
        run=niwaki.pruning.Run(batch_size=recipes.BATCH),
    )
    there = pruned.model.state_dict()
    assert {k: v.shape for k, v in recipe.state_dict().items()} == {
        k: v.shape for k, v in there.items()
    }
    torch.testing.assert_close(recipe(x[0]), pruned.model(x[0]), rtol=1e-3, atol=1e-3)


ORDERS = (choices.asymmetric, choices.osscar, choices.lasso, choices.pivoted)


def readers_of(model):
    scene = Scene(model, model, images(), 0.5, 0, Plan())
    groups = recipes.groups_of(model, scene.example)
    return choices._readers(model, groups[0], choices._moments(scene, groups))


@pytest.mark.parametrize("order", [choices.asymmetric, choices.osscar, choices.pivoted])
def test_of_twins_one_stays(order):
    alive = order(readers_of(twins()), 3)
    assert sorted(unit % 3 for unit in alive) == [0, 1, 2]


@pytest.mark.parametrize("order", ORDERS)
def test_units_without_effect_go_first(order):
    model = plain(norm=False)
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias):
            tensor[[1, 4]] = 0
    assert sorted(order(readers_of(model), 4)) == [0, 2, 3, 5]


def test_asymmetric_selection_takes_what_explains_most():
    """The first two units, against least squares for each that could come."""
    (reader,) = readers_of(plain(norm=False))

    def missed(units):
        at = reader.blocks[list(units)].flatten()
        solved = torch.linalg.solve(reader.gram[at][:, at], reader.cross[:, at].T)
        return reader.energy - float((solved * reader.cross[:, at].T).sum())

    first = min(range(6), key=lambda u: missed([u]))
    second = min((u for u in range(6) if u != first), key=lambda u: missed([first, u]))
    assert choices.asymmetric([reader], 1) == [first]
    assert choices.asymmetric([reader], 2) == sorted([first, second])


def test_osscars_saliency_is_what_a_removal_costs():
    (reader,) = readers_of(plain(norm=False))
    ridge = 1e-2 * reader.gram.diagonal().mean() * torch.eye(len(reader.gram)).double()
    gram = reader.gram + ridge
    costs = []
    for unit in range(6):
        stay = torch.tensor([u for u in range(6) if u != unit])
        at = reader.blocks[stay].flatten()
        left = torch.linalg.solve(gram[at][:, at], (gram @ reader.weight.T)[at]).T
        change = reader.weight.clone()
        change[:, at] -= left
        costs.append(float(((change @ gram) * change).sum()) / 2 / reader.energy)
    found = choices._harm(reader, reader.weight, choices._inverse(reader))
    assert found.tolist() == pytest.approx(costs, rel=1e-6)


def test_osscar_goes_backwards_by_what_is_left():
    (reader,) = readers_of(plain(norm=False))
    alive = list(range(6))
    gram = reader.gram + 1e-2 * reader.gram.diagonal().mean() * torch.eye(54).double()

    def lost(units):
        at = reader.blocks[list(units)].flatten()
        left = torch.linalg.solve(gram[at][:, at], (gram @ reader.weight.T)[at]).T
        change = reader.weight.clone()
        change[:, at] -= left
        return float(((change @ gram) * change).sum())

    while len(alive) > 3:
        alive = list(min(combinations(alive, len(alive) - 1), key=lost))
    assert sorted(choices.osscar([reader], 3)) == alive


def test_lasso_meets_its_conditions():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(50, 6, generator=generator).double()
    gram, goal, strength = z.T @ z, z.T @ z.sum(1), 30.0
    beta = choices._lasso(gram, goal, strength, torch.ones(6).double())
    slope = goal - gram @ beta
    chosen = beta != 0
    assert 0 < int(chosen.sum()) <= 6
    torch.testing.assert_close(slope[chosen], strength * beta[chosen].sign(), rtol=1e-4, atol=1e-3)
    assert bool((slope[~chosen].abs() <= strength + 1e-3).all())


def test_clusters_keep_one_of_each():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]]).double()
    points = centres.repeat(4, 1) + 0.1 * torch.randn(12, 2).double()
    assert sorted(unit % 3 for unit in choices._representatives(points, 3, 0)) == [0, 1, 2]


def test_layers_lose_alike_or_as_lrp_has_it():
    torch.manual_seed(0)
    model, x = ResNet(1, 4).eval(), images()
    scene = Scene(model, copy.deepcopy(model), x, 0.5, 0, Plan())
    groups, counts = choices._widths(scene, by_lrp=False)
    shares = [count / len(group) for group, count in zip(groups, counts, strict=True)]
    assert max(shares) - min(shares) <= 1 / min(map(len, groups)) + 1e-9
    groups, counts = choices._widths(scene, by_lrp=True)
    taken = recipes.ranked(scene)
    found = recipes.removals(groups, [range(count) for count in counts])
    assert {r.layer: len(r.channels) for r in found} == {r.layer: len(r.channels) for r in taken}
    for by_lrp in (True, False):
        chosen = choices.Within(choices.asymmetric, by_lrp)(scene)
        smaller = copy.deepcopy(model)
        operate(smaller, x[0][:2], chosen)
        left = cost(smaller, x[0][:1]).macs / cost(model, x[0][:1]).macs
        assert 0.4 < left <= 0.5
