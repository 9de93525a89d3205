"""Patches at the border, where a pooling window that reaches beyond the image sees less."""

import pytest
import torch
from torch import nn

from niwaki import filters
from niwaki.data import Preprocessing
from niwaki.filters._pictures import crop

SIDE = 40


@pytest.fixture
def network():
    """As SqueezeNet begins: the windows of its pools reach beyond the image (`ceil_mode`)."""
    layers = [nn.Conv2d(3, 4, 3, 2), nn.ReLU()]
    for _ in range(2):
        layers += [nn.MaxPool2d(3, 2, ceil_mode=True), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()]
    layers += [nn.MaxPool2d(3, 2, ceil_mode=True), nn.Conv2d(4, 6, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)).eval()


@pytest.mark.parametrize("name", ["3", "6", "9"])
def test_patches_of_different_sizes_are_padded(network, name):
    look = Preprocessing(SIDE, mean=(0.5,) * 3, std=(0.5,) * 3)
    data = torch.randn(40, 3, SIDE, SIDE).clamp(-1, 1), torch.arange(40) % 3
    found = filters.profile(network, data, layers=[name], patches=12, preprocessing=look)[name]
    height, width = found.field.size
    spans = {stop - start for start, stop in found.field.rows}
    assert len(spans) > 1  # otherwise this shows nothing
    sizes = set()
    pictures = filters.pictures(network, data, found, count=12, steps=0, preprocessing=look)
    for unit, shown in enumerate(pictures):
        for kind, patches in (
            ("activation", shown.by_activation),
            ("relevance", shown.by_relevance),
        ):
            if len(patches) == 0:
                continue
            assert patches.pixels.shape[1:] == (3, height, width)
            assert patches.heatmaps.shape[1:] == (height, width)
            best = getattr(found, f"by_{kind}").first(12)
            for row, image in enumerate(patches.images.tolist()):
                place = found.field.at(int(best.positions[unit, row]))
                expected = crop(look.denormalise(data[0][image]), place)
                sizes.add(tuple(expected.shape[1:]))
                there = patches.pixels[row].isfinite().all(0)
                assert int(there.sum()) == int(expected.isfinite().all(0).sum())
                torch.testing.assert_close(
                    patches.pixels[row][:, there], expected[:, expected.isfinite().all(0)]
                )
    assert sizes
