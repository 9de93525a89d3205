"""What is stitched from tiles is what one computation on the whole image gives."""

import numpy as np
import pytest
import torch
from synthetic import PLAIN, Purple, Whole, convolutional, picture, write_slide
from torch import nn

import niwaki
from niwaki.slides import Layer, Tiling, explain_slide, open_slide
from niwaki.slides._grid import reach_of

pytest.importorskip("openslide", reason="the extra slides is not installed")


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    rng = np.random.default_rng(1)
    pixels = picture(520, 700, (300, 200, 360, 240))
    pixels[100:400, 100:600] = rng.integers(40, 220, (300, 500, 3))
    return open_slide(write_slide(tmp_path_factory.mktemp("slide") / "a.tif", pixels, levels=2))


def whole(store):
    height, width = store.shape
    return store.read(0, 0, width, height)


def direct(slide, mpp):
    width, height = slide.canvas(mpp)
    pixels = slide.read(0, 0, width, height, mpp)
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


METHODS = [
    "gradient",
    "input_t_gradient",
    "lrp.epsilon_plus",
    "lrp.alpha_2_beta_1",
    "guided_backprop",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "mpp", [0.5, *(pytest.param(mpp, marks=pytest.mark.long) for mpp in (0.25, 0.37))]
)
def test_relevance_of_a_map_is_that_of_one_large_image(slide, mpp):
    model = convolutional()
    with explain_slide(
        model,
        slide,
        PLAIN,
        classes={0: "a", 1: "b"},
        methods=METHODS,
        tiling=Tiling(mpp, whole=True),
    ) as found:
        margin = found.grid.margin
        assert margin > 0
        assert found.grid.core < min(found.grid.canvas) / 2  # several tiles
        large = direct(slide, mpp)
        inner = (slice(margin, -margin),) * 2
        for method in METHODS:
            for number, name in enumerate("ab"):
                expected = niwaki.explain(model, large, number, method).sum(1)[0].numpy()
                got = whole(found.maps[Layer("relevance", name, method)])
                assert np.abs(expected).max() > 1e-2
                difference = np.abs(got - expected)[inner].max()
                assert difference < 1e-5 * max(1, np.abs(expected).max()), (method, difference)
        chances = torch.softmax(model(large), 1)[0, 1].detach().numpy()
        got = whole(found.maps[Layer("probability", "b")])
        height, width = (side // 4 * 4 for side in got.shape)
        steps = got[:height:4, :width:4]
        assert np.abs(steps - chances[: len(steps), : steps.shape[1]])[8:-8, 8:-8].max() < 1e-5


def test_tiles_that_are_too_small_would_not_do(slide):
    """Cut without the margin, the same network leaves seams: the test above can fail."""
    model, large = convolutional(), direct(slide, 0.25)
    expected = niwaki.explain(model, large, 1, "gradient").sum(1)[0]
    tile = niwaki.explain(model, large[..., 128:192, 128:192], 1, "gradient").sum(1)[0]
    assert float((tile - expected[128:192, 128:192]).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("model", "field", "stride"),
    [
        (nn.Conv2d(3, 2, 1), 1, 1),
        (nn.Conv2d(3, 2, 5, padding=2), 5, 1),
        (nn.Conv2d(3, 2, 5), 5, 1),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3, stride=2)), 5, 2),
        (convolutional(), 15, 4),  # 3 + 2 + 2 + 8
    ],
)
def test_the_reach_is_that_of_arithmetic(model, field, stride):
    found = reach_of(model.eval(), 3, 48)
    assert (found.field, found.stride) == (field, stride)


def test_a_network_that_looks_everywhere_has_no_reach():
    class Everywhere(nn.Module):
        def forward(self, x):
            return x[:, :2] - x.mean((1, 2, 3), keepdim=True)

    assert reach_of(Everywhere(), 3, 32) is None


def test_a_classifier_is_blended_by_its_window(slide):
    """Written out: each tile's heatmap times the window, divided by the windows' sum."""
    model = Whole(convolutional()).eval()
    large = direct(slide, 0.5)
    with explain_slide(
        model,
        slide,
        PLAIN,
        classes={1: "b"},
        methods=["gradient"],
        tiling=Tiling(0.5, whole=True),
    ) as found:
        assert found.grid.margin == 0
        got = whole(found.maps[Layer("relevance", "b", "gradient")])
        chance = whole(found.maps[Layer("probability", "b")])
        tiles = found.grid.tiles
        rows = found.rows
    line = np.sin(np.pi * (np.arange(64) + 0.5) / 64) ** 2
    window = np.outer(line, line)
    sums, weights, said = np.zeros(got.shape), np.zeros(got.shape), np.zeros(got.shape)
    for tile, row in zip(tiles, rows, strict=True):
        part = (slice(tile.y, tile.y + 64), slice(tile.x, tile.x + 64))
        inputs = large[..., part[0], part[1]]
        heat = niwaki.explain(model, inputs, 1, "gradient").sum(1)[0].numpy()
        sums[part] += window * heat
        weights[part] += window
        probability = float(torch.softmax(model(inputs), 1)[0, 1].detach())
        said[part] += window * probability
        assert row["probability of b"] == pytest.approx(probability, abs=1e-5)
        assert row["relevance for b by gradient"] == pytest.approx(heat.sum(), abs=1e-4)
    assert {tile.x for tile in tiles} == {0, 48, 96, 144, 192, 240, 286}
    np.testing.assert_allclose(got, sums / weights, atol=1e-6)
    np.testing.assert_allclose(chance, said / weights, atol=1e-5)


def test_batches_and_processes_change_nothing(slide):
    def maps(**options):
        with explain_slide(
            Purple(3).eval(), slide, PLAIN, classes={1: "b"}, methods=["gradient"],
            tiling=Tiling(0.5), **options,
        ) as found:  # fmt: skip
            return [whole(store) for store in found.maps.values()], found.rows

    one, two = maps(batch_size=3), maps(batch_size=3, workers=2)
    assert one[1] == two[1]
    for a, b in zip(one[0], two[0], strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_is_finished_is_not_looked_at_again(slide, tmp_path, monkeypatch):
    from niwaki.errors import DataError
    from niwaki.slides._network import Network

    asked = []
    look = Network.look

    def counted(self, pixels, grid):
        asked.append(len(pixels))
        if len(asked) == 4 and not (tmp_path / "again").exists():
            raise KeyboardInterrupt
        return look(self, pixels, grid)

    monkeypatch.setattr(Network, "look", counted)
    options = {"classes": {1: "b"}, "methods": ["gradient"]}
    options["tiling"] = Tiling(0.5, whole=True)
    model = Whole(convolutional()).eval()

    def run(**others):
        with explain_slide(
            model, slide, PLAIN, folder=tmp_path / "run", scratch=tmp_path, **{**options, **others}
        ) as found:
            return found.rows

    with pytest.raises(KeyboardInterrupt):
        run()
    assert asked == [8] * 4
    (tmp_path / "again").touch()
    asked.clear()
    rows = run()
    assert sum(asked) == len(rows) - 3 * 8
    asked.clear()
    assert run() == rows
    assert asked == []
    with pytest.raises(DataError, match="another setting"):
        run(tiling=Tiling(0.25, whole=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "run"]


def test_a_slide_that_differs_in_its_finest_level_alone_is_another(tmp_path):
    from niwaki.errors import DataError

    rng = np.random.default_rng(2)
    pixels = rng.integers(40, 220, (512, 512, 3)).astype(np.uint8)
    other = pixels.reshape(256, 2, 256, 2, 3)[:, ::-1, :, ::-1].reshape(pixels.shape)
    model = Whole(convolutional()).eval()

    def rows(pixels, folder):
        slide = open_slide(write_slide(tmp_path / "a.tif", pixels, mpp=1.0, levels=2))
        tiling = Tiling(1.0, whole=True)
        options = {"classes": {1: "b"}, "methods": ["gradient"], "tiling": tiling}
        with explain_slide(model, slide, PLAIN, folder=folder, **options) as found:
            return slide.overview(8.0), found.rows

    coarse, first = rows(pixels, tmp_path / "run")
    with pytest.raises(DataError, match="another data"):
        rows(other, tmp_path / "run")
    same, fresh = rows(other, None)
    np.testing.assert_array_equal(same, coarse)
    assert fresh != first
