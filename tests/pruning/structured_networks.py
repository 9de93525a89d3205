"""Networks that split, join, shuffle, gate and view their channels.

Nothing shifts a channel between two layers, so that a unit whose weights are zero is one that is
not there: the truth that tests hold pruned networks against.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import nn


class Head(nn.Module, ABC):
    """A stem, a middle that each network writes, and a head."""

    def __init__(self, width=8, out=None):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.last = nn.Conv2d(out or width, 6, 1)
        self.fc = nn.Linear(6, 3)

    @abstractmethod
    def middle(self, x):
        """Return the channels that the last convolution reads."""

    def forward(self, x):
        x = self.middle(self.stem(x).relu())
        return self.fc(self.last(x).relu().mean((2, 3)))


class Ghost(Head):
    """A GhostNet block before a depthwise convolution."""

    def __init__(self):
        super().__init__(8, 12)
        self.primary = nn.Conv2d(8, 6, 1, bias=False)
        self.cheap = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)

    def middle(self, x):
        a = self.primary(x).relu()
        return self.depthwise(torch.cat([a, self.cheap(a).relu()], 1)).relu()


class GhostShuffled(Ghost):
    """As `Ghost`, where the depthwise convolution reads the cheap half first, then a sum."""

    def middle(self, x):
        a = self.primary(x).relu()
        b = self.cheap(a).relu()
        return self.depthwise(torch.cat([b, a], 1)) + torch.cat([a, b], 1)


class HalfGate(Head):
    def __init__(self):
        super().__init__(8, 5)
        self.both = nn.Conv2d(8, 10, 1, bias=False)

    def middle(self, x):
        u, v = self.both(x).chunk(2, 1)
        return u * v.sigmoid()


class Glu(HalfGate):
    def middle(self, x):
        return F.glu(self.both(x), 1)


class SlicedGate(HalfGate):
    """The same with slices that are counted from the shape."""

    def middle(self, x):
        x = self.both(x)
        half = x.shape[1] // 2
        return x[:, :half].tanh() * x[:, half:]


class SelectiveKernel(Head):
    def __init__(self):
        super().__init__(8, 8)
        self.three, self.five = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 5, padding=2)
        self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 16, 1)

    def middle(self, x):
        x = torch.stack([self.three(x).relu(), self.five(x).relu()], 1)
        gate = self.up(self.down(x.sum(1).mean((2, 3), keepdim=True)).relu())
        return (x * gate.view(len(x), 2, -1, 1, 1).softmax(1)).sum(1)


class SplitAttention(Head):
    """The radix form of ResNeSt: two splits of a grouped convolution, softmax between them."""

    def __init__(self):
        super().__init__(8, 8)
        self.conv = nn.Conv2d(8, 16, 3, padding=1, groups=2)
        self.fc1, self.fc2 = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 16, 1)

    def middle(self, x):
        n = len(x)
        x = self.conv(x).relu()
        x = x.reshape(n, 2, x.shape[1] // 2, *x.shape[2:])
        gate = self.fc2(self.fc1(x.sum(1).mean((2, 3), keepdim=True)).relu())
        gate = gate.view(n, 1, 2, -1).transpose(1, 2).softmax(1).reshape(n, 2, -1, 1, 1)
        return (x * gate).sum(1)


class Shuffle(Head):
    def __init__(self, groups=2):
        width = 4 * groups * groups
        super().__init__(8, 8)
        self.groups = groups
        self.one = nn.Conv2d(8, width, 1, groups=groups)
        self.two = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.three = nn.Conv2d(width, 8, 1, groups=groups)

    def middle(self, x):
        x = self.one(x).relu()
        n, c, h, w = x.shape
        x = x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.three(self.two(x)).relu()


class PixelShuffle(Head):
    def __init__(self):
        super().__init__(8, 5)
        self.up = nn.Conv2d(8, 20, 1)

    def middle(self, x):
        return F.pixel_shuffle(self.up(x), 2).relu()


class PixelUnshuffle(Head):
    def __init__(self):
        super().__init__(8, 24)
        self.down = nn.Conv2d(8, 6, 1)

    def middle(self, x):
        return F.pixel_unshuffle(self.down(x).relu(), 2)


class PaddedShortcut(Head):
    """Option A as a pad in the forward pass."""

    def __init__(self):
        super().__init__(8, 12)
        self.conv = nn.Conv2d(8, 12, 3, padding=1)

    def middle(self, x):
        return (self.conv(x) + F.pad(x, (0, 0, 0, 0, 2, 2))).relu()


class FlatConcat(nn.Module):
    """A concatenation that is flattened with several positions per channel."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 5, 3)
        self.fc1, self.fc2 = nn.Linear(9 * 16, 7), nn.Linear(7, 3)

    def forward(self, x):
        x = torch.cat([self.a(x).relu(), self.b(x).relu()], 1)
        return self.fc2(self.fc1(F.adaptive_avg_pool2d(x, 4).flatten(1)).relu())


class Excite(Head):
    """Squeeze and excite, as it is written in many ways."""

    def __init__(self, how):
        super().__init__(8, 8)
        self.how = how
        self.fc1, self.fc2 = nn.Linear(8, 4), nn.Linear(4, 8)

    def middle(self, x):
        n, c = x.shape[:2]
        gate = self.fc2(self.fc1(F.adaptive_avg_pool2d(x, 1).view(n, c)).relu()).view(n, c, 1, 1)
        return self.how(x, gate)


GATES = {
    "expand_as": lambda x, g: x * g.sigmoid().expand_as(x),
    "view_as": lambda x, g: x * g.sigmoid().view_as(x.mean((2, 3), keepdim=True)),
    "type_as": lambda x, g: x * g.sigmoid().type_as(x),
    "relu6": lambda x, g: x * F.relu6(g + 3) / 6,
    "relu6 inside": lambda x, g: (F.relu6(g + 3.0) / 6.0) * x,
    "1 + sigmoid": lambda x, g: x * (1 + g.sigmoid()),
    "2 * sigmoid": lambda x, g: x * (2 * g.sigmoid()),
    "interpolated": lambda x, g: x * F.interpolate(g.sigmoid(), size=x.shape[-2:], mode="nearest"),
    "bilinear": lambda x, g: x * F.interpolate(g.tanh(), size=x.shape[-2:], mode="bilinear"),
    "in place": lambda x, g: x.clone().mul_(g.sigmoid()),
    "residual": lambda x, g: x + x * g.sigmoid(),
    "repeated": lambda x, g: x * g.sigmoid().repeat(1, 1, *x.shape[2:]),
}


class Masked(Head):
    """A mask of one channel times all of a feature map."""

    def __init__(self):
        super().__init__(8, 8)
        self.mask, self.conv = nn.Conv2d(8, 1, 3, padding=1), nn.Conv2d(8, 8, 1)

    def middle(self, x):
        return self.conv(x).relu() * self.mask(x).sigmoid()


class Gram(nn.Module):
    """A head that reads how channels go together."""

    def __init__(self):
        super().__init__()
        self.conv, self.up = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 6, 1)
        self.fc = nn.Linear(36, 3)

    def forward(self, x):
        x = self.up(self.conv(x).relu()).flatten(2)
        return self.fc((x @ x.transpose(1, 2)).flatten(1))


class BilinearPool(nn.Module):
    """The outer product of two branches, with a layer behind it."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 5, 3)
        self.fc1, self.fc2 = nn.Linear(20, 6), nn.Linear(6, 3)

    def forward(self, x):
        a, b = self.a(x).relu().flatten(2), self.b(x).relu().flatten(2)
        x = torch.einsum("nip,njp->nij", a, b) / a.shape[2]
        return self.fc2(self.fc1(x.flatten(1)).relu())


class Cbam(Head):
    """Gates over channels, then one over places that is made of a mean and a maximum."""

    def __init__(self):
        super().__init__(8, 8)
        self.conv = nn.Conv2d(8, 8, 1)
        self.fc1, self.fc2 = nn.Conv2d(8, 4, 1, bias=False), nn.Conv2d(4, 8, 1, bias=False)
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)

    def middle(self, x):
        x = self.conv(x).relu()
        pooled = (F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1))
        x = x * sum(self.fc2(self.fc1(p).relu()) for p in pooled).sigmoid()
        both = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * self.spatial(both).sigmoid()


class Eca(Head):
    """A convolution that slides over the channels."""

    def __init__(self):
        super().__init__(8, 8)
        self.conv, self.slide = nn.Conv2d(8, 8, 1), nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def middle(self, x):
        x = self.conv(x).relu()
        y = self.slide(x.mean((2, 3), keepdim=True).squeeze(-1).transpose(-1, -2))
        return x * y.transpose(-1, -2).unsqueeze(-1).sigmoid()


class Grn(Head):
    """Global response normalisation (ConvNeXt V2)."""

    def __init__(self):
        super().__init__(8, 8)
        self.up, self.down = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 8, 1)
        self.gamma = nn.Parameter(torch.rand(1, 12, 1, 1))

    def middle(self, x):
        y = self.up(x).relu()
        size = y.norm(dim=(2, 3), keepdim=True)
        y = y + self.gamma * y * size / (size.mean(1, keepdim=True) + 1e-6)
        return self.down(y).relu()


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = self.weight
        weight = weight - weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class WeightStandardised(Head):
    def __init__(self):
        super().__init__(8, 8)
        self.a, self.b = Standardised(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def middle(self, x):
        return self.b(self.a(x).relu()).relu()


class BlurPool(Head):
    """A fixed kernel for each channel, kept as a buffer or made in the forward pass."""

    def __init__(self, kept):
        super().__init__(8, 8)
        self.conv, self.kept = nn.Conv2d(8, 8, 1), kept
        kernel = torch.tensor([1.0, 2.0, 1.0])
        kernel = (kernel[:, None] * kernel / 16)[None, None]
        self.register_buffer("kernel", kernel.repeat(8, 1, 1, 1) if kept else kernel)

    def middle(self, x):
        x = self.conv(x).relu()
        kernel = self.kernel if self.kept else self.kernel.repeat(x.shape[1], 1, 1, 1)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel, None, 2, 0, 1, x.shape[1])


class TiedWeights(Head):
    def __init__(self):
        super().__init__(8, 8)
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 7, 1)
        self.outer = nn.Conv2d(7, 8, 1)
        self.b.weight = self.a.weight

    def middle(self, x):
        x = self.b(self.a(x).relu()).relu()
        return self.outer(self.inner(x).relu()).relu()


class Clips(nn.Module):
    """Frames folded into the batch, a mean over time behind them; input (N, T, 3, H, W)."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3), nn.Linear(5, 3)

    def forward(self, x):
        n, t = x.shape[:2]
        x = self.b(self.a(x.view(n * t, *x.shape[2:])).relu()).relu()
        return self.fc(x.mean((2, 3)).view(n, t, -1).mean(1))


class C2f(Head):
    """A list of parts that grows, as in YOLO v8."""

    def __init__(self):
        super().__init__(8, 12)
        self.cv1 = nn.Conv2d(8, 8, 1)
        self.m = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(1))

    def middle(self, x):
        parts = list(self.cv1(x).relu().chunk(2, 1))
        parts.extend(m(parts[-1]).relu() for m in self.m)
        return torch.cat(parts, 1)


class Res2Net(Head):
    """Parts of a width that the code has a number for."""

    def __init__(self):
        super().__init__(8, 12)
        self.width = 4
        self.inner = nn.Conv2d(8, 12, 1)
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))

    def middle(self, x):
        parts = torch.split(self.inner(x).relu(), self.width, 1)
        done = [parts[0]]
        for part, conv in zip(parts[1:], self.convs, strict=True):
            done.append(conv(part + done[-1]).relu())
        return torch.cat(done, 1)


class Csp(Head):
    """A partial stage: one half of the channels goes around the block."""

    def __init__(self):
        super().__init__(8, 12)
        self.expand = nn.Conv2d(8, 12, 1)
        self.block = nn.Conv2d(6, 6, 3, padding=1)
        self.after = nn.Conv2d(6, 6, 1)

    def middle(self, x):
        x = self.expand(x).relu()
        one, two = x.split(x.shape[1] // 2, 1)
        return torch.cat([one, self.after(two + self.block(two).relu()).relu()], 1)


class Slices(Head):
    """Blocks that read fixed slices: only the layer behind them can lose anything."""

    def __init__(self):
        super().__init__(8, 8)
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(5, 4, 1)

    def middle(self, x):
        return torch.cat([self.a(x[:, :3]), self.b(x[:, 3:])], 1).relu()


class Squeezing(nn.Module):
    """`squeeze()` in the forward pass, which takes a batch of one away too."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3), nn.Linear(5, 3)

    def forward(self, x):
        x = F.adaptive_avg_pool2d(self.b(self.a(x).relu()).relu(), 1).squeeze()
        return self.fc(x.view(-1, x.shape[-1]))


class Autocast(nn.Module):
    """Lower precision inside of the forward pass."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3), nn.Linear(5, 3)

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            x = self.b(self.a(x).relu()).relu()
        return self.fc(x.float().mean((2, 3)))


class Normalised(Head):
    """Divided by the length over channels, which channels that are not there add nothing to."""

    def __init__(self):
        super().__init__(8, 8)
        self.conv = nn.Conv2d(8, 8, 1)

    def middle(self, x):
        return F.normalize(self.conv(x).relu(), dim=1)


class Attention(nn.Module):
    """A head of self-attention over places, written out."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.q, self.k, self.v = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(8, 7)
        self.out, self.fc = nn.Linear(7, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.conv(x).relu().flatten(2).transpose(1, 2)
        weights = (self.q(x) @ self.k(x).transpose(1, 2)).softmax(-1)
        return self.fc((x + self.out(weights @ self.v(x))).relu().mean(1))


def normed(how):
    """A chain whose weights are made anew in each pass."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    )  # fmt: skip
    for place in (0, 2, 6):
        how(model[place])
    return model


#: What loses units everywhere.
WHOLE = {
    "ghost": Ghost,
    "ghost shuffled": GhostShuffled,
    "half gate": HalfGate,
    "glu": Glu,
    "sliced gate": SlicedGate,
    "selective kernel": SelectiveKernel,
    "split attention": SplitAttention,
    "shuffle of 2": Shuffle,
    "shuffle of 4": lambda: Shuffle(4),
    "pixel shuffle": PixelShuffle,
    "pixel unshuffle": PixelUnshuffle,
    "flat concatenation": FlatConcat,
    "masked": Masked,
    "tied weights": TiedWeights,
    "blur pool": lambda: BlurPool(True),
    "blur pool, made": lambda: BlurPool(False),
    "c2f": C2f,
    "csp": Csp,
    "squeezing": Squeezing,
    "normalised": Normalised,
    "attention": Attention,
    **{f"gate: {name}": lambda how=how: Excite(how) for name, how in GATES.items()},
}

#: What keeps units somewhere: the layer, and words of the reason.
PARTLY = {
    "padded shortcut": (PaddedShortcut, "conv", "add in the forward pass"),
    "gram": (Gram, "up", "addmm in 'fc'"),
    "bilinear pool": (BilinearPool, "a", "addmm in 'fc1'"),
    "cbam": (Cbam, "conv", "mean in the forward pass takes in all channels"),
    "eca": (Eca, "conv", "convolution in 'slide' slides over channels"),
    "grn": (Grn, "up", "mean in the forward pass takes in all channels"),
    "weight standardised": (WeightStandardised, "stem", "mean in 'a' takes in all channels"),
    "res2net": (Res2Net, "inner", "does not follow"),
    "slices": (Slices, "stem", "does not follow"),
}
