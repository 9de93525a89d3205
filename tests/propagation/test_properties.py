"""On random small networks: batches are independent, rules are linear, z-plus conserves."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from niwaki.propagation import AlphaBeta, Assign, Maps, epsilon_plus, epsilon_plus_flat, propagate

CHANNELS = 4
FEW = settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


PARTS = {
    "conv": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
    "grouped": lambda: nn.Conv2d(CHANNELS, CHANNELS, 1, groups=2),
    "norm": lambda: nn.BatchNorm2d(CHANNELS),
    "relu": lambda: nn.ReLU(inplace=True),
    "max": lambda: nn.MaxPool2d(3, 1, 1),
    "average": lambda: nn.AvgPool2d(3, 1, 1),
    "residual": lambda: Residual(
        nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), nn.BatchNorm2d(CHANNELS))
    ),
}


def build(parts: list[str], seed: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    body = [PARTS[part]() for part in parts]
    model = nn.Sequential(
        nn.Conv2d(2, CHANNELS, 3, padding=1),
        *body,
        nn.Conv2d(CHANNELS, CHANNELS, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(CHANNELS, 3),
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
            module.running_mean.normal_(0, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
    return model.double().eval(), torch.randn(3, 2, 5, 5, dtype=torch.float64)


networks = st.builds(
    build, st.lists(st.sampled_from(sorted(PARTS)), max_size=6), st.integers(0, 1000)
)
composites = st.sampled_from(
    [
        epsilon_plus(),
        epsilon_plus_flat(),
        epsilon_plus().with_rows(Assign(AlphaBeta(2, 1), kind="convolution")),
    ]
)


def relevance(model: nn.Module, x: Tensor, composite: object, start: Tensor) -> Tensor:
    result = propagate(model, x, composite, lambda _: start, max_loss=None).relevance
    assert result is not None
    return result


def close(a: Tensor, b: Tensor) -> None:
    scale = max(float(a.abs().max()), float(b.abs().max()), 1e-3)
    torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9 * scale)


@FEW
@given(networks, composites)
def test_a_batch_is_its_samples(network: tuple[nn.Module, Tensor], composite: object) -> None:
    model, x = network
    start = torch.randn(3, 3, dtype=torch.float64)
    single = [relevance(model, x[i : i + 1], composite, start[i : i + 1]) for i in range(len(x))]
    close(relevance(model, x, composite, start), torch.cat(single))


@FEW
@given(networks, composites)
def test_relevance_is_linear_in_the_start(
    network: tuple[nn.Module, Tensor], composite: object
) -> None:
    model, x = network
    one, other = torch.randn(2, 3, 3, dtype=torch.float64)
    both = relevance(model, x, composite, 2 * one - 3 * other)
    parts = relevance(model, x, composite, one), relevance(model, x, composite, other)
    close(both, 2 * parts[0] - 3 * parts[1])


@FEW
@given(networks)
def test_what_does_not_arrive_was_reported_lost(network: tuple[nn.Module, Tensor]) -> None:
    model, x = network
    for name, tensor in model.state_dict().items():
        if name.endswith(("bias", "running_mean")):
            tensor.zero_()
    maps = Maps()
    start = torch.randn(3, 3, dtype=torch.float64)
    result = propagate(model, x, epsilon_plus(), lambda _: start, [maps], max_loss=None)
    arrived = float(result.relevance.sum())
    lost = sum(float(torch.as_tensor(op.ledger.lost).sum()) for op in result.operations)
    scale = float(sum(r.abs().sum() for r in maps.relevances.values()))
    assert abs(arrived + lost - float(start.sum())) <= 1e-9 * scale
