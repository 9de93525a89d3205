"""Networks to judge, and the truth: each unit physically removed, one pass after another."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from niwaki.car._images import judge
from niwaki.data import batches, open_data, references
from niwaki.models import load_weights, zoo
from niwaki.pruning import Removal, operate


def randomise(model, seed=0):
    """Weights and norms under which images differ and channels matter, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            fan = module.weight[0].numel()
            with torch.no_grad():
                size = module.weight.shape
                module.weight.copy_(torch.randn(size, generator=generator) * (2 / fan) ** 0.5)
                if module.bias is not None:
                    module.bias.uniform_(-0.2, 0.2, generator=generator)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight, module.running_var):
                tensor.data.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias, module.running_mean):
                tensor.data.uniform_(-0.3, 0.3, generator=generator)
    return model.eval()


def noise(samples, size, channels=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(7)
    return torch.randn(samples, channels, size, size, generator=generator, dtype=dtype)


def judged(model, images):
    """Shift the outputs so that each class wins somewhere; three of four labels say which."""
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        logits = model(images)
        last.weight /= logits.std(0, keepdim=True).t()
        last.bias.copy_((last.bias - logits.mean(0)) / logits.std(0))
        labels = model(images).argmax(1)
    labels[::4] = (labels[::4] + 1) % logits.shape[1]
    return images, labels


class Dense(nn.Module):
    """Three layers, each of which reads all before it behind a norm of its own."""

    def __init__(self, growth=4, classes=3):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.layers = nn.ModuleList()
        for i in range(3):
            width = 6 + growth * i
            self.layers.append(
                nn.Sequential(
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                    nn.Conv2d(width, growth, 3, padding=1, bias=False),
                )
            )
        self.norm = nn.BatchNorm2d(6 + 3 * growth)
        self.fc = nn.Linear(6 + 3 * growth, classes)

    def forward(self, x):
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        x = F.relu(self.norm(torch.cat(features, 1)), inplace=True)
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


class Functional(nn.Module):
    """Everything but the layers is a function, some of them in place; two branches."""

    def __init__(self, classes=3):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1)
        self.left, self.right = nn.Conv2d(6, 5, 1), nn.Conv2d(6, 4, 3, stride=2, padding=1)
        self.fc1, self.fc2 = nn.Linear(9, 8), nn.Linear(8, classes)

    def forward(self, x):
        x = F.relu(self.a(x), inplace=True)
        x = (x + F.leaky_relu(self.b(x), 0.1)).relu_()
        left = F.max_pool2d(self.left(x), 2)
        right = torch.sigmoid(self.right(x))
        x = F.adaptive_avg_pool2d(torch.cat([left, right], dim=1), 1)
        x = x.view(x.size(0), -1)
        return self.fc2(F.relu(self.fc1(x)))


class Untraceable(nn.Module):
    """Its forward looks at its values, which no list of operations can tell."""

    def __init__(self, classes=3):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 5, 3, padding=1)
        self.fc = nn.Linear(5, classes)

    def forward(self, x):
        x = self.a(x).relu()
        if float(x.detach().abs().sum()) > -1:
            x = x + self.b(x).relu()
        return self.fc(x.mean((2, 3)))


class Normed(nn.Module):
    """A norm over channels, which tells channels that are gone from channels that are silent."""

    def __init__(self, classes=3):
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.LayerNorm(6)
        self.b = nn.Linear(6, 5)
        self.fc = nn.Linear(5, classes)

    def forward(self, x):
        x = self.a(x).relu().mean((2, 3))
        return self.fc(self.b(self.norm(x)).relu())


def depthwise():
    return nn.Sequential(
        nn.Conv2d(3, 6, 1),
        nn.BatchNorm2d(6),
        nn.ReLU6(inplace=True),
        nn.Conv2d(6, 6, 3, groups=6, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU6(inplace=True),
        nn.Conv2d(6, 4, 1, groups=2),
        nn.SiLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


SMALL = {
    "dense": Dense,
    "functional": Functional,
    "depthwise": depthwise,
    "untraceable": Untraceable,
    "norm over channels": Normed,
}


def without(model, group, unit, images):
    """Outputs of the network from which a unit is physically gone."""
    smaller = copy.deepcopy(model)
    operate(smaller, images[:2], [Removal(group, unit)])
    with torch.no_grad():
        return smaller(images)


def masked(model, layer, unit, images):
    """Outputs where a channel of a layer, and of the norm that follows it in its block, is zero."""
    silent = copy.deepcopy(model)
    parent = layer.rpartition(".")[0]
    modules = [silent.get_submodule(layer)]
    block = silent.get_submodule(parent)
    if isinstance(block, nn.Sequential):
        modules += [m for m in block if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for module in modules:
            module.weight[list(unit)] = 0
            if module.bias is not None:
                module.bias[list(unit)] = 0
        return silent(images)


def brute_force(model, images, labels, layer, unit, out=without):
    """Counts by class, near ties and sums, as the index has them; by physical removal."""
    with torch.no_grad():
        before = judge(model(images), labels)
    after = judge(out(model, layer, unit, images), labels)
    classes = model(images[:1]).shape[1]
    count = lambda which: torch.bincount(labels[which], minlength=classes)  # noqa: E731
    return {
        "broken": count(before.right & ~after.right),
        "mended": count(~before.right & after.right),
        "near_ties": int(after.near.sum()),
        "loss_change": float((after.loss - before.loss).mean()),
        "margin_change": float((after.margin - before.margin).mean()),
        "tied": int((after.near | before.near).sum()),
    }


def real(shared, name, per_class, split="test"):
    """A trained network of the zoo, and some images of each class."""
    weights, folder = {
        "lenet": ("lenet_mnist", "mnist"),
        "vgglike": ("vgglike_cifar10", "cifar10"),
        "resnet20": ("resnet20_cifar10_jpeg", "cifar10"),
    }[name]
    build = getattr(zoo, name)
    model = build().eval()
    load_weights(model, shared / f"data/weights/{weights}.safetensors")
    data = open_data(shared / "data" / folder, build.preprocessing, split=split)
    parts = list(batches(references(data, per_class, seed=0), 100))
    return model, torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
