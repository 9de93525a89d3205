"""Pictures of filters: what is visualised, cropped and put on a page."""

import csv
import json
import re
from functools import partial

import pytest
import torch
from torch import nn

from niwaki import car, filters
from niwaki.attribution import create
from niwaki.errors import DataError
from niwaki.report import save_filters, write_report


def test_the_visualisation_of_a_first_layer_filter_looks_like_its_weights(model, pixels):
    visualised = filters.feature_visualisation(model, "0", pixels, steps=40)
    assert visualised.shape == (6, 3, 3, 3)
    assert visualised.min() >= 0
    assert visualised.max() <= 1
    # The steepest picture for a linear filter is the filter, in pixels.
    kernels = model[0].weight.detach() / torch.tensor(pixels.std)[:, None, None]
    for picture, kernel in zip(visualised, kernels, strict=True):
        pair = torch.stack([picture.flatten(), kernel.flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.6


def test_visualisations_are_seeded_and_independent_of_their_neighbours(model, pixels):
    both = filters.feature_visualisation(model, "3", pixels, steps=6, seed=3)
    torch.testing.assert_close(
        both, filters.feature_visualisation(model, "3", pixels, steps=6, seed=3, batch_size=2)
    )
    alone = filters.feature_visualisation(model, "3", pixels, filters=[4], steps=6, seed=3)
    torch.testing.assert_close(alone[0], both[4])
    other = filters.feature_visualisation(model, "3", pixels, filters=[4], steps=6, seed=4)
    assert not torch.allclose(alone, other)
    with pytest.raises(DataError, match="no filter 5"):
        filters.feature_visualisation(model, "3", pixels, filters=[5])


def test_visualisations_drive_their_filter_above_every_image(model, images, pixels):
    whole = torch.full((5, 3, 12, 12), 0.5)
    visualised = filters.feature_visualisation(model, "3", pixels, steps=40)
    height, width = visualised.shape[2:]
    whole[:, :, 2 : 2 + height, 2 : 2 + width] = visualised
    mean, std = (torch.tensor(v)[:, None, None] for v in (pixels.mean, pixels.std))
    with torch.no_grad():
        reached = model[:5]((whole - mean) / std).amax((2, 3)).diagonal()
        seen = model[:5](images[0]).amax((0, 2, 3))
    assert (reached > seen).all()


@pytest.mark.parametrize("method", ["lrp.epsilon_plus", "lrp.epsilon"])
def test_patches_are_what_the_filter_sees_and_heatmaps_its_own(model, images, pixels, method):
    inputs, _ = images
    layer = filters.profile(model, images, preprocessing=pixels, method=method)["3"]
    options = {"preprocessing": pixels, "count": 3, "steps": 0, "method": method}
    shown = list(filters.pictures(model, images, layer, **options))
    assert len(shown) == 5
    # The same, from the network that ends at the layer, with one output for each place.
    ending = create(method, nn.Sequential(*model[:5], nn.Flatten()).eval(), max_loss=None)
    around = [12] * 4
    padded = nn.functional.pad(pixels.denormalise(inputs), around, value=torch.nan)
    for unit, one in enumerate(shown):
        for patches, best in (
            (one.by_activation, layer.by_activation),
            (one.by_relevance, layer.by_relevance),
        ):
            assert torch.equal(patches.values, best.values[unit, : len(patches)])
            assert torch.equal(patches.images, best.images[unit, : len(patches)])
            for rank, number in enumerate(patches.images.tolist()):
                position = int(best.positions[unit, rank])
                row, column = divmod(position, 6)
                top, left = 12 + 2 * row - 3, 12 + 2 * column - 3
                box = (slice(top, top + 8), slice(left, left + 8))
                expected = padded[number][(slice(None), *box)]
                torch.testing.assert_close(patches.pixels[rank], expected, equal_nan=True)
                heat = ending.attribute(inputs[number : number + 1], unit * 36 + position).sum(1)
                heat = nn.functional.pad(heat, around, value=torch.nan)[0][box]
                torch.testing.assert_close(
                    patches.heatmaps[rank], heat, equal_nan=True, rtol=1e-4, atol=1e-5
                )


def test_large_patches_shrink_and_keep_their_margins(model, images, pixels):
    layer = filters.profile(model, images, preprocessing=pixels)["3"]
    options = {"preprocessing": pixels, "heatmaps": False, "steps": 0}
    whole, small = (
        next(iter(filters.pictures(model, images, layer, largest=side, **options))).by_activation
        for side in (64, 4)
    )
    assert whole.pixels.shape[2:] == (8, 8)
    assert small.pixels.shape[2:] == (4, 4)
    inside = ~whole.pixels.isnan().flatten(1).any(1)
    expected = torch.nn.functional.avg_pool2d(whole.pixels[inside], 2)
    torch.testing.assert_close(small.pixels[inside], expected)
    assert whole.heatmaps.isnan().all()


@pytest.fixture
def written(model, images, pixels, tmp_path):
    profile = filters.profile(
        model, images, preprocessing=pixels, index=car.index(model, images), patches=4
    )
    order = [("0", 1), ("3", 2)]
    first = {"": filters.enrichment(order, [("0", 1)], 11, 2)}
    told = {"names": {0: "cat & <dog>", 1: "bird", 2: "frog"}, "pruned_first": first}
    told["order"] = order
    told["after"] = {"3": profile["0"].diversity}
    show = partial(filters.pictures, model, images, preprocessing=pixels, count=3, steps=2)
    files = [f"class {number % 3}, photo-{number}.png" for number in range(14)]
    save_filters(tmp_path, profile, show, images=files, **told)
    write_report(tmp_path)
    return tmp_path, profile


def test_the_page_shows_every_filter_and_needs_nothing_beside_it(written):
    folder, profile = written
    page = (folder / "index.html").read_text("utf-8")
    assert page.count('<article class="filter-card"') == 11
    assert page.count('alt="weights of filter') == 6
    assert page.count('alt="what activates filter') == 11
    assert page.count('aria-label="enlarge: class ') > 11
    assert "photo-3.png; strength" in page
    assert not re.search(r'(src|href)="(?!data:image/|#)', page)
    assert page.index("serves most") < page.index("How to read this gallery")
    assert "cat &amp; &lt;dog&gt;" in page
    assert "<dog>" not in page
    assert "1 of the first 2 pruned" in page
    assert "measured on 14 images of 3 classes" in page
    assert "<code>lrp.epsilon_plus</code>" in page
    assert "After pruning: 6 filters" in page
    gone = ["", "1", "", "", "", "", "", "", "2", "", ""]
    assert re.findall(r'data-pruned="([^"]*)"', page) == gone
    assert page.count("as number 2 of 2") == 1
    for key in ("car", "class_selectivity", "colour", "active"):
        values = re.findall(rf'data-{key}="([^"]*)"', page)
        assert len(values) == 11
        assert all(value == "" or float(value) is not None for value in values)
    assert re.findall(r'data-car="([^"]*)"', page)[:6] == [
        str(float(v)) for v in profile["0"].served.total
    ]


def test_the_numbers_are_those_of_the_profile(written):
    folder, profile = written
    with (folder / "filters.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    told = json.loads((folder / "filters.json").read_text("utf-8"))
    assert [line["layer"] + line["filter"] for line in lines] == [
        f"{name}{unit}" for name, layer in profile.items() for unit in range(len(layer))
    ]
    for line, row in zip(lines, told["filters"], strict=True):
        unit, layer = int(line["filter"]), profile[line["layer"]]
        assert row["filter"] == unit
        assert (row["pruned"] == 2) == (line["layer"] + line["filter"] == "32")
        assert float(line["active"]) == pytest.approx(float(layer.active[unit]), abs=1e-6)
        assert float(line["car_bird"]) == pytest.approx(
            float(layer.served.change[unit, 1]), abs=1e-6
        )
        assert row["car_frog_low"] <= row["car_frog"] + 0.2
    assert told["images_per_class"] == [5, 5, 4]
    assert told["layers"][1]["diversity_after"]["filters"] == 6
