"""Points in the plane, and the network that the study prunes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from sklearn.datasets import make_circles, make_moons
from torch import Tensor, nn

WIDTH = 1000
EPOCHS, BATCH, RATE, DECAY = 20, 128, 0.05, 5e-3
# Hinges all over the plane: with torch's own biases they all lie near the origin.
BIAS = 1.4


def moons(per_class: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two interleaved half circles."""
    return make_moons(2 * per_class, noise=0.1, random_state=seed)


def circles(per_class: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A small circle within a large one."""
    return make_circles(2 * per_class, noise=0.1, factor=0.3, random_state=seed)


def spiral(per_class: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Four arms with noise in the angle."""
    generator = np.random.default_rng(seed)
    points, labels = [], []
    for arm in range(4):
        radius = np.linspace(0, 1, per_class)
        angle = np.linspace(4 * arm, 4 * (arm + 1), per_class)
        angle = angle + 0.2 * generator.standard_normal(per_class)
        points.append(np.stack([radius * np.sin(angle), radius * np.cos(angle)], 1))
        labels.append(np.full(per_class, arm))
    return np.concatenate(points), np.concatenate(labels)


SETS: dict[str, Callable[[int, int], tuple[np.ndarray, np.ndarray]]] = {
    "moons": moons,
    "circles": circles,
    "spiral": spiral,
}


def draw(name: str, per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw points (N, 2) and labels (N,) of a set."""
    points, labels = SETS[name](per_class, seed)
    return torch.tensor(points, dtype=torch.float32), torch.tensor(labels)


def network(classes: int, bias: float | None = BIAS) -> nn.Sequential:
    """Three hidden layers; the first biases are drawn from -bias to bias, or as torch does."""
    model = nn.Sequential(
        nn.Linear(2, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, classes),
    )
    if bias is not None:
        nn.init.uniform_(model[0].bias, -bias, bias)
    return model


def train(name: str, seed: int, bias: float | None = BIAS) -> nn.Sequential:
    """Train on 1000 points per class; the same seed gives the same network on the same machine."""
    points, labels = draw(name, 1000, seed)
    with torch.random.fork_rng():  # initial weights and order come from torch's global generator
        torch.manual_seed(seed)
        model = network(int(labels.max()) + 1, bias)
        optimizer = torch.optim.SGD(
            model.parameters(), lr=RATE, momentum=0.9, weight_decay=0 if bias is None else DECAY
        )
        steps = EPOCHS * -(-len(points) // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
        for _ in range(EPOCHS):
            for chosen in torch.randperm(len(points)).split(BATCH):
                loss = nn.functional.cross_entropy(model(points[chosen]), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return model.eval()
