"""Tints: whose is the odd one, and what it takes to give it to others."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from niwaki.audit import audit
from niwaki.audit._quality import _QUALITIES, _having, _tinted, tint
from niwaki.data import TISSUE, Images, draw_tissue, plant


def tensor(pixels):
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="module")
def tiles():
    drawn = draw_tissue(200, seed=5)
    return drawn.pixels, drawn.labels


@pytest.mark.parametrize("stained_class", [0, 1])
def test_the_class_that_was_stained_has_the_tint(tiles, stained_class):
    """On whichever side of the plane of colours it lies."""
    pixels, labels = tiles
    stained = plant(pixels, labels, "stain", on=stained_class, share=0.5, seed=1)
    values = tint(tensor(stained.pixels))
    group, lean = _having(values, labels == 1, _QUALITIES["tint"], 0.5)
    assert (labels[group] == stained_class).all()
    most = group & (lean >= np.quantile(lean[group], 0.75))
    assert stained.chosen[most].mean() > 0.9


def test_the_tint_that_is_given_is_that_of_the_scanner(tiles):
    """Images that are given it look as if they had been stained, far more than they did before."""
    pixels, labels = tiles
    stained = plant(pixels, labels, "stain", on=1, share=0.5, seed=1)
    truth = tensor(plant(pixels, labels, "stain", on=0, share=1.0, seed=2).pixels[labels == 0])
    plain = tensor(pixels[labels == 0])
    has = torch.as_tensor(stained.chosen)
    own = tensor(stained.pixels)
    given = _tinted(own[has], own[~has & torch.as_tensor(labels == 1)], plain)
    before, after = ((images - truth).abs().mean() for images in (plain, given))
    assert after < 0.4 * before


class Blueness(nn.Module):
    """Says tumour where little blue is taken away: what the stain shift does."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(3, 2, 1, bias=False)
        with torch.no_grad():
            self.mix.weight.zero_()
            self.mix.weight[1, 2], self.mix.weight[1, 0] = 8.0, -8.0

    def forward(self, x):
        return self.mix(x).mean((2, 3)) - torch.tensor([0.0, 4.0])


def test_a_network_that_goes_by_the_tint_is_told_so(tiles):
    pixels, labels = tiles
    stained = plant(pixels, labels, "stain", on=1, share=0.6, seed=1).pixels
    images = Images(
        lambda i: Image.fromarray(stained[i]), labels.tolist(), ["normal", "tumour"], TISSUE
    )
    found = audit(Blueness().eval(), images, method="gradient", seed=0)
    assert "quality/tumour/tint" in [finding.key for finding in found.flagged]


def test_images_of_one_class_are_not_asked_what_tells_it_from_others(tiles):
    pixels = tiles[0][tiles[1] == 1][:40]
    images = Images(
        lambda i: Image.fromarray(pixels[i]), [1] * len(pixels), ["normal", "tumour"], TISSUE
    )
    found = audit(Blueness().eval(), images, method="gradient", seed=0)
    assert found.findings
    assert not [finding for finding in found.findings if finding.key.startswith("quality/")]
