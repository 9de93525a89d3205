"""Small networks with everything that ties channels together, and what tests ask of a network."""

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn


def randomise(model, seed=0):
    """Norms with statistics that matter, in evaluation mode."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return model.eval()


def data_for(size, samples=6, classes=3, channels=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(samples, channels, size, size, generator=generator, dtype=dtype)
    return images, torch.arange(samples) % classes


def chain(width=6):
    return nn.Sequential(
        nn.Conv2d(3, width, 3),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 4, 3),
    )


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.inner, self.outer = nn.Conv2d(6, 5, 1), nn.Conv2d(5, 6, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = (x + self.outer(self.inner(x).relu())).relu()
        return self.head(x.mean((2, 3)))


def depthwise():
    return nn.Sequential(
        nn.Conv2d(3, 6, 1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=6, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU6(),
        nn.Conv2d(6, 4, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


class Concat(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 5, 1)
        self.norm, self.c = nn.BatchNorm2d(9), nn.Conv2d(9, 4, 3)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = torch.cat([self.a(x), self.b(x)], 1)
        return self.fc(self.c(self.norm(x).relu()).relu().mean((2, 3)))


class Grouped(nn.Module):
    """One layer read by convolutions of two and of four groups, behind a grouped one."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.own = nn.Conv2d(16, 16, 3, groups=2, padding=1)
        self.two, self.four = nn.Conv2d(16, 8, 1, groups=2), nn.Conv2d(16, 8, 1, groups=4)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        x = self.own(self.stem(x).relu()).relu()
        return self.fc((self.two(x) + self.four(x)).relu().mean((2, 3)))


class GroupPerLayer(nn.Module):
    """Each group of a grouped convolution reads another layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.grouped = nn.Conv2d(8, 6, 3, groups=2)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        x = torch.cat([self.a(x), self.b(x)], 1).relu()
        return self.fc(self.grouped(x).relu().mean((2, 3)))


class Activated(nn.Module):
    """A PReLU with one slope and one with a slope per channel, group norm, transposed layer."""

    def __init__(self):
        super().__init__()
        self.one, self.act1 = nn.Conv2d(3, 6, 3), nn.PReLU()
        self.two, self.act2 = nn.Conv2d(6, 8, 3), nn.PReLU(8)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.norm = nn.GroupNorm(4, 8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        x = self.act2(self.two(self.act1(self.one(x))))
        return self.fc(self.norm(self.up(x)).relu().mean((2, 3)))


class PartlyFunctional(nn.Module):
    """Half its layers are no modules: they count, but cannot be pruned."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(5, 3, 3, 3) / 4)
        self.conv, self.fc = nn.Conv2d(5, 6, 3), nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu(F.conv2d(x, self.kernel))
        return self.fc(self.conv(x).relu().mean((2, 3)))


SMALL = {
    "chain": chain,
    "residual": Residual,
    "depthwise": depthwise,
    "concat": Concat,
    "grouped": Grouped,
    "group per layer": GroupPerLayer,
    "activated": Activated,
    "partly functional": PartlyFunctional,
}


class Drawn(nn.Module):
    """A network of blocks drawn by hypothesis."""

    def __init__(self, blocks, flatten):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.kinds = [kind for kind, _ in blocks]
        self.blocks = nn.ModuleList()
        width = 4
        for kind, new in blocks:
            if kind == "plain":
                block = nn.Sequential(nn.Conv2d(width, new, 3, padding=1), nn.ReLU())
            elif kind == "norm":
                block = nn.Sequential(
                    nn.Conv2d(width, new, 3, padding=1, bias=False), nn.BatchNorm2d(new), nn.ReLU()
                )
            elif kind == "grouped":
                block = nn.Conv2d(width, new, 1, groups=2)
            elif kind == "depthwise":
                block, new = nn.Conv2d(width, width, 3, padding=1, groups=width), width
            else:  # residual
                block = nn.Sequential(nn.Conv2d(width, new, 1), nn.ReLU(), nn.Conv2d(new, width, 1))
                new = width
            self.blocks.append(block)
            width = new
        self.flatten = flatten
        self.fc1 = nn.Linear(width * 9 if flatten else width, 6)
        self.fc2 = nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        for kind, block in zip(self.kinds, self.blocks, strict=True):
            x = F.relu(x + block(x) if kind == "residual" else block(x))
        x = F.adaptive_avg_pool2d(x, 3) if self.flatten else x.mean((2, 3))
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


KINDS = ["plain", "norm", "grouped", "depthwise", "residual"]
drawn = st.builds(
    Drawn,
    st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from([2, 4, 6, 8])), max_size=4),
    st.booleans(),
)


def lost(before, after):
    """Count the outputs that each layer has lost, by its weights alone."""
    counts = {}
    for name, old in before.named_modules():
        if isinstance(old, (nn.modules.conv._ConvNd, nn.Linear)):
            new = after.get_submodule(name)
            outputs = [
                m.weight.shape[1] * m.groups
                if isinstance(m, nn.modules.conv._ConvTransposeNd)
                else len(m.weight)
                for m in (old, new)
            ]
            if outputs[0] != outputs[1]:
                counts[name] = outputs[0] - outputs[1]
    return counts


def snapshot(model):
    """All of a network that a user can see, by bit."""

    def bits(tensor):
        return None if tensor is None else tensor.detach().clone()

    hooks = [name for name in vars(nn.Module()) if name.endswith("hooks")]
    return {
        "state": {name: bits(t) for name, t in model.state_dict(keep_vars=True).items()},
        "identity": {name: id(p) for name, p in model.named_parameters()},
        "grad": {name: bits(p.grad) for name, p in model.named_parameters()},
        "requires_grad": {n: p.requires_grad for n, p in model.named_parameters()},
        "versions": {n: p._version for n, p in model.named_parameters()},
        "training": [m.training for m in model.modules()],
        "hooks": [[len(getattr(m, h)) for h in hooks] for m in model.modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "tensor hooks": [bool(p._backward_hooks) for p in model.parameters()],
    }


def assert_same(before, after):
    assert before.keys() == after.keys()
    for what, old in before.items():
        if what not in ("state", "grad"):
            assert old == after[what], what
            continue
        assert old.keys() == after[what].keys()
        for name, tensor in old.items():
            other = after[what][name]
            assert (tensor is None) == (other is None), (what, name)
            assert tensor is None or torch.equal(tensor, other), (what, name)
