"""Small networks run best on one thread, on a machine that others use too."""

import pytest
import torch
from torch import nn

from niwaki.data import Preprocessing


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


PIXELS = Preprocessing(12, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def small_network(classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3, padding=1, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 36, classes),
    ).eval()


@pytest.fixture
def model() -> nn.Module:
    return small_network()


@pytest.fixture
def pixels() -> Preprocessing:
    return PIXELS


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    shown = torch.rand(14, 3, 12, 12, generator=generator)
    mean, std = (torch.tensor(v)[:, None, None] for v in (PIXELS.mean, PIXELS.std))
    return (shown - mean) / std, torch.arange(14) % 3
