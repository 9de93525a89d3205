"""Preprocessing against torchvision's and timm's own transforms."""

import json

import numpy as np
import pytest
import torch
import torchvision.models
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from niwaki.data import Preprocessing
from niwaki.errors import DataError, RangeError

PLAIN = Preprocessing(8, mean=(0, 0, 0), std=(1, 1, 1))
GREY = Preprocessing(8, mean=(0,), std=(1,), channels=1)


def random_image(width, height, mode="RGB", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "swin_t", "inception_v3"])
@pytest.mark.parametrize("size", [(300, 260), (120, 500)])
def test_equals_torchvisions_own_transforms(name, size):
    from niwaki.models import preprocessing

    image = random_image(*size)
    expected = torchvision.models.get_model_weights(name).DEFAULT.transforms()(image)
    torch.testing.assert_close(preprocessing(f"torchvision:{name}")(image), expected)


@pytest.mark.parametrize("name", ["resnet18", "test_resnet", "vit_tiny_patch16_224"])
def test_equals_timms_own_transforms(name):
    timm = pytest.importorskip("timm")
    from timm.data import create_transform, resolve_data_config

    from niwaki.models import preprocessing

    config = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    image = random_image(301, 257)
    torch.testing.assert_close(
        preprocessing(f"timm:{name}")(image), create_transform(**config)(image)
    )


def test_without_resize_only_other_sizes_are_resized():
    image = random_image(8, 8)
    expected = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255
    torch.testing.assert_close(PLAIN(image), expected)
    assert PLAIN(random_image(20, 9)).shape == (3, 8, 8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("preprocessing", [PLAIN, GREY])
def test_reads_every_mode(mode, preprocessing):
    if mode == "I;16":
        image = Image.fromarray(np.full((8, 8), 128 * 257, dtype=np.uint16))
    else:
        image = Image.new("L", (8, 8), 255).convert(mode)
    expected = 128 / 255 if mode == "I;16" else 1.0
    pixels = preprocessing(image)
    assert pixels.shape == (preprocessing.channels, 8, 8)
    torch.testing.assert_close(pixels, torch.full_like(pixels, expected))


def test_transparent_palette_is_read_without_a_warning():
    image = random_image(8, 8).convert("P")
    image.info["transparency"] = bytes(range(256))
    assert PLAIN(image).shape == (3, 8, 8)


def test_float_images_are_refused():
    with pytest.raises(DataError, match="no known range"):
        PLAIN(Image.new("F", (8, 8)))


@settings(max_examples=25, deadline=None)
@given(
    mean=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    std=st.lists(st.floats(0.05, 1), min_size=3, max_size=3),
    seed=st.integers(0, 99),
)
def test_denormalise_undoes_and_json_keeps(mean, std, seed):
    preprocessing = Preprocessing(8, mean=mean, std=std)
    image = random_image(8, 8, seed=seed)
    pixels = preprocessing.denormalise(preprocessing(image)[None])[0]
    torch.testing.assert_close(pixels, PLAIN(image), atol=1e-5, rtol=0)
    again = Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json())))
    assert again == preprocessing
    assert hash(again) == hash(preprocessing)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"channels": 4}, "channels=4"),
        ({"size": 0}, "size = 0"),
        ({"resize": 4}, "resize=4 is smaller"),
        ({"mean": (0.5,)}, "one value for each"),
        ({"std": (1, 0, 1)}, "above 0"),
        ({"interpolation": "cubic"}, "'cubic' is none of"),
        ({"colour": 1}, r"has no \['colour'\]"),
    ],
)
def test_wrong_values_are_named(wrong, message):
    with pytest.raises((DataError, RangeError), match=message):
        Preprocessing.from_json({**PLAIN.to_json(), **wrong})


def test_missing_values_are_named():
    with pytest.raises(DataError, match=r"lacks \['mean', 'std'\]"):
        Preprocessing.from_json({"size": 8})
