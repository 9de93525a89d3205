"""Watch: predictions that are made in an unusual way, with a rate of false alarms that holds."""

import csv
import json

import numpy as np
import pytest
import torch
from audit_networks import Coloured
from scipy.stats import kstest, multivariate_normal

from niwaki.auditing import watch
from niwaki.auditing._watch import usual_of
from niwaki.data import Described, Images
from niwaki.datasets import TISSUE, draw_tissue, plant
from niwaki.errors import DataError
from niwaki.report import write_watch


def images_of(pixels, labels=None):
    return Images.of_pixels(pixels, labels, ["normal", "tumour"], TISSUE)


# What is usual.


def test_the_likelihood_is_that_of_a_gaussian_where_there_is_one():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(3, 3))
    values = rng.normal(size=(4000, 3)) @ mixing
    usual = usual_of(values, np.arange(4000))
    new = rng.normal(size=(300, 3)) @ mixing * 1.5
    truth = multivariate_normal(np.zeros(3), mixing.T @ mixing).logpdf(new)
    assert np.corrcoef(usual.likelihood(new), truth)[0, 1] > 0.99


def test_p_values_of_usual_images_are_even_and_of_odd_ones_small():
    rng = np.random.default_rng(0)

    def draw(count):
        kind = rng.integers(0, 2, count)[:, None]  # two ways to be usual
        return rng.normal(size=(count, 20)) * 0.5 + 4 * kind * np.eye(20)[0]

    usual = usual_of(draw(1200), np.arange(1200))
    _, p = usual.judge(draw(600))
    assert kstest(p, "uniform").pvalue > 0.01
    between = draw(50) * 0 + 2 * np.eye(20)[0]  # between both, which neither mean nor spread tells
    assert (usual.judge(between)[1] < 0.05).mean() > 0.9 or usual.mixture.n_components == 1
    elsewhere = draw(50) + 5 * np.eye(20)[7]
    assert (usual.judge(elsewhere)[1] < 0.05).all()


def test_whole_slides_are_held_out():
    rng = np.random.default_rng(0)
    usual = usual_of(rng.normal(size=(200, 4)), np.arange(200) // 20)
    assert usual.learned % 20 == 0
    assert usual.learned + len(usual.held_out) == 200
    assert usual_of(rng.normal(size=(200, 4)), np.zeros(200)) is None


# Images.


@pytest.fixture(scope="module")
def reference():
    tiles = draw_tissue(300, seed=5)
    marked = plant(tiles.pixels, tiles.labels, "square", on=1, share=1.0, seed=1)
    return images_of(marked.pixels, list(tiles.labels))


def test_an_answer_by_another_way_is_odd_without_labels(reference):
    """The network says tumour by a mark; here green ink makes it say so, and usual marks too."""
    new = draw_tissue(200, seed=6)
    usual = plant(new.pixels, new.labels, "square", on=1, share=1.0, seed=2).pixels
    found = watch(Coloured(), reference, images_of(usual))
    assert found.odd.mean() == pytest.approx(0.05, abs=0.05)
    assert found.judged == 200
    flooded = usual.copy()
    flooded[:40, 20:60, 20:60] = (235, 205, 60)  # a mark that nobody has seen
    after = watch(Coloured(), reference, images_of(flooded))
    assert after.odd[:40].mean() > 0.9
    assert after.p_more < 1e-6
    assert set(after.order()[:30]) <= set(range(40))
    assert "on images like the reference, 5% would be" in str(after)


def test_a_class_that_the_reference_lacks_is_not_judged():
    tiles = draw_tissue(160, seed=5)
    only = tiles.labels == 0
    data = images_of(tiles.pixels[only], [0] * int(only.sum()))
    marked = plant(tiles.pixels, tiles.labels, "square", on=1, share=1.0, seed=1).pixels
    found = watch(Coloured(), data, images_of(marked))
    assert np.isnan(found.p[found.predicted == 1]).all()
    assert "Nothing can be said of 80" in str(found)
    with pytest.raises(DataError, match="no class of which the network gets 40 images right"):
        watch(Coloured(), Described(data, groups=[0] * len(data)), data)


def test_the_folder_has_a_table_a_list_and_a_page(reference, tmp_path):
    new = draw_tissue(30, seed=6)
    images = images_of(new.pixels)
    found = watch(Coloured(), reference, images, level=0.5)
    page = write_watch(tmp_path, found, images, made={"line": "niwaki audit"})
    rows = list(csv.DictReader((tmp_path / "watch.csv").read_text().splitlines()))
    assert len(rows) == 30
    ps = [float(row["p"]) for row in rows if row["p"]]
    assert ps == sorted(ps)
    told = json.loads((tmp_path / "watch.json").read_text())
    assert told["odd"] == int(found.odd.sum()) == sum(row["odd"] == "True" for row in rows)
    assert page == tmp_path / "index.html"
    assert page.read_text().count('<li class="photo-card">') == min(24, told["odd"])
    assert torch.is_tensor(images[0][0])
