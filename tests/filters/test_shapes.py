"""The embedded coloured shapes: known answers both ways."""

from collections import Counter

import numpy as np
import pytest
import torch

from niwaki.data import names, open_data
from niwaki.datasets import SHAPES
from niwaki.errors import DataError


def test_both_labels_are_of_the_same_images_and_independent():
    assert {"shapes", "shapes:colour"} <= set(names())
    shape, colour = open_data("shapes"), open_data("shapes:colour")
    assert (len(shape), len(open_data("shapes", split="train"))) == (1200, 3000)
    assert len(shape.classes) == len(colour.classes) == 6
    for index in (0, 7, 1199):
        assert torch.equal(shape[index][0], colour[index][0])
        assert torch.equal(shape[index][0], open_data("shapes")[index][0])
    pairs = Counter(zip(shape.targets, colour.targets, strict=True))
    assert len(pairs) == 36
    assert max(pairs.values()) - min(pairs.values()) <= 6
    assert not torch.equal(shape[0][0], open_data("shapes", split="train")[0][0])


def test_colours_are_equally_bright_and_differ_in_hue():
    images = open_data("shapes:colour")
    pixels = np.stack([np.asarray(images.image(i), dtype=float) for i in range(432)])
    luma = pixels @ [0.299, 0.587, 0.114]
    brightest = luma > np.quantile(luma, 0.9, axis=(1, 2), keepdims=True)  # on the shape
    targets = np.array(images.targets[:432])
    brightness = [luma[targets == c][brightest[targets == c]].mean() for c in range(6)]
    assert np.ptp(brightness) < 10  # of 255
    hues = np.array([pixels[targets == c][brightest[targets == c]].mean(0) for c in range(6)])
    strongest = [set(np.flatnonzero(hue > hue.mean() + 3)) for hue in hues]
    assert strongest == [{0}, {0, 1}, {1}, {1, 2}, {2}, {0, 2}]


def test_preprocessing_centres_them_and_a_split_must_exist():
    inputs = torch.stack([open_data("shapes")[i][0] for i in range(72)])
    assert inputs.shape[1:] == (3, 32, 32)
    assert inputs.mean().abs() < 0.6
    assert open_data("shapes").preprocessing is SHAPES
    with pytest.raises(DataError, match="no split 'rest'"):
        open_data("shapes", split="rest")
