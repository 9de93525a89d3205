"""Networks that split, slice, shuffle and mix their channels, as the literature has them."""

import torch
import torch.nn.functional as F
from torch import nn


class Network(nn.Module):
    """A convolution, something made of its eight channels, and a classifier."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.make()
        self.fc = nn.Linear(5, 3)

    def forward(self, x):
        x = self.body(self.a(x).relu())
        return self.fc(x.relu().flatten(2).mean(2))


class CrossStage(Network):
    """C2f: half of the channels goes on, all is concatenated."""

    def make(self):
        self.m, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(12, 5, 1)

    def body(self, x):
        parts = list(x.chunk(2, 1))
        parts.append(self.m(parts[-1]).relu())
        return self.b(torch.cat(parts, 1))


class CrossStageSum(CrossStage):
    def body(self, x):
        parts = list(x.split((4, 4), 1))
        parts.append(parts[-1] + self.m(parts[-1]).relu())
        return self.b(torch.cat(parts, 1))


class Res2(Network):
    def make(self):
        self.m = nn.ModuleList(nn.Conv2d(2, 2, 3, padding=1) for _ in range(3))
        self.b = nn.Conv2d(8, 5, 1)

    def body(self, x):
        parts, made = torch.split(x, 2, 1), []
        for i, convolution in enumerate(self.m):
            part = convolution(parts[i] if i == 0 else made[-1] + parts[i])
            made.append(part.relu())
        return self.b(torch.cat([*made, parts[3]], 1))


class PixelShuffle(Network):
    def make(self):
        self.b = nn.Conv2d(2, 5, 3, padding=1)

    def body(self, x):
        return self.b(F.pixel_shuffle(x, 2))


class ChannelShuffle(Network):
    def make(self):
        self.b = nn.Conv2d(8, 5, 3, padding=1)

    def body(self, x):
        return self.b(F.channel_shuffle(x, 2))


class Gram(Network):
    def make(self):
        self.b = nn.Linear(64, 5)

    def body(self, x):
        x = x.flatten(2)
        return self.b((x @ x.transpose(1, 2) / x.shape[2]).flatten(1))[..., None]


class OneChannelMask(Network):
    def make(self):
        self.m, self.b = nn.Conv2d(8, 1, 1), nn.Conv2d(8, 5, 3, padding=1)

    def body(self, x):
        return self.b(x * self.m(x).sigmoid())


class Glu(Network):
    def make(self):
        self.b = nn.Conv2d(4, 5, 3, padding=1)

    def body(self, x):
        return self.b(F.glu(x, 1))


class GateByHalves(Glu):
    def body(self, x):
        u, v = x.chunk(2, 1)
        return self.b(u * v.sigmoid())


class Maxout(Glu):
    def body(self, x):
        return self.b(x.unflatten(1, (4, 2)).amax(2))


class Slices(Network):
    def make(self):
        self.m, self.b = nn.Conv2d(5, 4, 3, padding=1), nn.Conv2d(7, 5, 3, padding=1)

    def body(self, x):
        return self.b(torch.cat([self.m(x[:, :5]).relu(), x[:, 5:]], 1))


class ConcatenatedThenFlattened(Network):
    def make(self):
        self.m, self.b = nn.Conv2d(8, 4, 3, padding=1), nn.Linear(12 * 4, 5)

    def body(self, x):
        x = torch.cat([x, self.m(x).relu()], 1)
        return self.b(F.adaptive_avg_pool2d(x, 2).flatten(1))[..., None]


class OptionA(Network):
    def make(self):
        self.m = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.b = nn.Conv2d(12, 5, 3, padding=1)

    def body(self, x):
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.b((self.m(x) + shortcut).relu())


class Lstm(Network):
    def make(self):
        self.b = nn.LSTM(8, 5, batch_first=True)

    def body(self, x):
        return self.b(x.mean(2).transpose(1, 2))[0][:, -1, :, None]


class Attention(Network):
    def make(self):
        self.m = nn.MultiheadAttention(8, 2, batch_first=True)
        self.b = nn.Conv2d(8, 5, 3, padding=1)

    def body(self, x):
        rows = x.flatten(2).transpose(1, 2)
        return self.b(self.m(rows, rows, rows)[0].transpose(1, 2).view_as(x))


class Volumes(Network):
    """A Conv3d, whose depth is averaged, beside Conv2d."""

    def make(self):
        self.a = nn.Conv3d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 5, 3, padding=1)

    def forward(self, x):
        x = self.a(torch.stack([x, x.flip(-1)], 2)).relu().mean(2)
        return self.fc(self.b(x).relu().flatten(2).mean(2))


class SelectiveKernel(Network):
    def make(self):
        self.m = nn.Conv2d(3, 8, 5, padding=2)
        self.q, self.k = nn.Linear(8, 4), nn.Linear(4, 16)
        self.b = nn.Conv2d(8, 5, 3, padding=1)

    def forward(self, x):
        both = torch.stack([self.a(x).relu(), self.m(x).relu()], 1)
        z = self.k(self.q(both.sum(1).mean((2, 3))).relu())
        x = (both * z.view(-1, 2, 8, 1, 1).softmax(1)).sum(1)
        return self.fc(self.b(x).relu().flatten(2).mean(2))


class Normed(Network):
    """A norm and an activation that is not zero at zero, before halves."""

    def make(self):
        self.norm = nn.BatchNorm2d(8)
        self.m, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(8, 5, 3, padding=1)

    def forward(self, x):
        u, v = self.norm(self.a(x)).sigmoid().split([4, 4], 1)
        return self.fc(self.b(torch.cat([self.m(u), v], 1)).relu().flatten(2).mean(2))


STRUCTURES = {
    kind.__name__: kind
    for kind in (
        CrossStage, CrossStageSum, Res2, PixelShuffle, ChannelShuffle, Gram, OneChannelMask, Glu,
        GateByHalves, Maxout, Slices, ConcatenatedThenFlattened, OptionA, Lstm, Attention,
        Volumes, SelectiveKernel, Normed,
    )
}  # fmt: skip
