"""A criterion in torch-pruning's own pruner."""

from functools import partial

import pytest
import torch
import torch_pruning as tp
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from niwaki.criteria import Importance, names, score
from niwaki.pruning import couple


@pytest.fixture
def data():
    torch.manual_seed(0)
    return torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])


@pytest.fixture
def resnet18():
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=4).eval()


@pytest.mark.filterwarnings("ignore")  # torch-pruning's own
@pytest.mark.parametrize(
    ("criterion", "everywhere"),
    [("lrp", True), ("taylor", True), ("weight", True), ("weight", False)],
    ids=["lrp", "taylor", "weight", "weight by layer"],
)
def test_three_lines_prune_resnet18(resnet18, data, criterion, everywhere):
    before = sum(p.numel() for p in resnet18.parameters())
    importance = Importance(resnet18, data, criterion)
    pruner = tp.pruner.BasePruner(
        resnet18,
        data[0][:1],
        importance,
        pruning_ratio=0.4,
        iterative_steps=2,
        global_pruning=everywhere,
        ignored_layers=[resnet18.fc],
    )
    sizes = []
    for _ in range(2):
        pruner.step()
        sizes.append(sum(p.numel() for p in resnet18.parameters()))
    assert before > sizes[0] > sizes[1]
    assert resnet18(data[0]).shape == (4, 4)
    assert importance.scores().keys() <= dict(resnet18.named_modules()).keys()


class Narrow(ResNet):
    """A ResNet with an eighth of the channels in its blocks, of which it has one for each width."""

    def __init__(self, num_classes):
        super().__init__(BasicBlock, [1, 1, 1, 1])
        self.fc = nn.Linear(64, num_classes)

    def _make_layer(self, block, planes, *rest, **more):
        return super()._make_layer(block, planes // 8, *rest, **more)


@pytest.mark.parametrize(
    ("network", "criterion"),
    [
        *[
            pytest.param("narrow", name, marks=pytest.mark.long if name == "car" else ())
            for name in names()
            if not name.startswith("lrp.")
        ],
        ("resnet18", "lrp"),
        ("mobilenet_v2", "random"),
        ("squeezenet1_1", "random"),
    ],
)
def test_a_groups_importance_is_its_score(network, criterion, data):
    torch.manual_seed(0)
    build = Narrow if network == "narrow" else partial(torchvision.models.get_model, network)
    model = build(num_classes=4).eval()
    importance = Importance(model, data, criterion)
    scores = score(model, data, criterion)
    graph = tp.DependencyGraph().build_dependency(model, data[0])
    theirs = {}
    names_of = {module: name for name, module in model.named_modules()}
    for group in graph.get_all_groups():
        theirs[names_of[group[0].dep.target.module]] = importance(group)
    for group in couple(model, data[0], list(scores)):
        root = next(m.layer for m in group.members if m.output and m.layer in theirs)
        torch.testing.assert_close(theirs[root], group.scores(scores))


def test_what_has_no_score_has_no_importance(data):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3600, 4)).eval()
    importance = Importance(model, data, "weight")
    graph = tp.DependencyGraph().build_dependency(model, data[0])
    last, first = model[3], model[0]
    group = graph.get_pruning_group(last, tp.prune_linear_out_channels, [0, 1])
    assert importance(group) is None
    group = graph.get_pruning_group(first, tp.prune_conv_out_channels, [1, 3])
    expected = importance.scores()["0"][[1, 3]]
    torch.testing.assert_close(importance(group), expected)
