"""Colours, overlays, sheets and files of heatmaps."""

import h5py
import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image

from niwaki.evaluation import Perturbation, perturbation_curves, randomisation_test
from niwaki.report import (
    colour,
    colour_range,
    contact_sheet,
    is_diverging,
    overlay,
    plot_perturbation,
    plot_randomisation,
    save_hdf5,
    save_npy,
)

HEATMAP = torch.tensor([[-2.0, 0.0], [1.0, 4.0]])


def test_diverging_colours_are_symmetric_around_zero():
    pixels = colour(HEATMAP, percentile=100)
    np.testing.assert_allclose(pixels[0, 1], [1, 1, 1], atol=0.01)  # zero is white
    np.testing.assert_allclose(pixels[1, 1], [1, 0, 0], atol=0.01)
    np.testing.assert_allclose(pixels[0, 0], [0.5, 0.5, 1], atol=0.01)
    np.testing.assert_allclose(pixels[1, 0], [1, 0.75, 0.75], atol=0.01)
    shared = colour(HEATMAP, limit=8.0)
    np.testing.assert_allclose(shared[1, 1], [1, 0.5, 0.5], atol=0.01)
    stacked = torch.stack([HEATMAP, torch.zeros(2, 2)])
    np.testing.assert_array_equal(colour(stacked), colour(HEATMAP))  # channels are summed


def test_a_colour_map_is_diverging_by_its_whole_name():
    assert is_diverging("RdBu_r")
    assert not is_diverging("Reds")
    for name in {"vanimo", "managua"} & set(colormaps):  # of newer versions of matplotlib
        assert is_diverging(name)


def test_sequential_colours_start_at_zero():
    pixels = colour(HEATMAP, percentile=100, colours="gray")
    np.testing.assert_allclose(pixels[..., 0], [[0, 0], [0.25, 1]], atol=0.01)
    absolute = colour(HEATMAP, percentile=100, colours="gray", absolute=True)
    np.testing.assert_allclose(absolute[..., 0], [[0.5, 0], [0.25, 1]], atol=0.01)


def test_outliers_are_clipped_and_scales_are_shared():
    heatmap = torch.ones(10, 10)
    heatmap[0, 0] = 1000
    assert colour(heatmap, percentile=98)[5, 5].tolist() == [1, 0, 0]
    assert colour(heatmap, percentile=100)[5, 5, 1] > 0.9
    both = torch.stack([HEATMAP, 2 * HEATMAP])[:, None]
    assert colour_range(both, percentile=100) == 8
    assert colour_range(torch.zeros(1, 1, 2, 2)) == 1
    np.testing.assert_allclose(colour(torch.zeros(2, 2)), 1, atol=0.01)


def test_overlays_show_the_image_where_nothing_is_relevant():
    image = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(0))
    grey = (image * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)
    mixed = overlay(image, HEATMAP, 1.0, percentile=100)
    np.testing.assert_allclose(mixed[0, 1], [float(grey[0, 1])] * 3, atol=1e-6)
    np.testing.assert_allclose(mixed[1, 1], [1, 0, 0], atol=0.01)
    expected = 0.5 * np.array([0, 0, 1]) + 0.5 * float(grey[0, 0])
    np.testing.assert_allclose(mixed[0, 0], expected, atol=0.01)
    none = overlay(image, HEATMAP, 0.0)
    np.testing.assert_allclose(none, np.repeat(grey.numpy()[..., None], 3, 2), atol=1e-6)
    sequential = overlay(image[:1], HEATMAP, 1.0, percentile=100, colours="inferno")
    np.testing.assert_allclose(sequential[0, 0], [float(image[0, 0, 0])] * 3, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: colour(torch.zeros(1, 1, 2, 2)), "shape"),
        (lambda: colour(torch.full((2, 2), torch.nan)), "NaN"),
        (lambda: colour(HEATMAP, colours="rainbows"), "no colour map 'rainbows'; try bwr"),
        (lambda: colour(HEATMAP, percentile=0), "percentile"),
        (lambda: colour(HEATMAP, limit=0), "limit"),
        (lambda: overlay(torch.rand(3, 2, 2), HEATMAP, 2), "opacity"),
        (lambda: overlay(torch.rand(3, 4, 4), HEATMAP), "differ in size"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("across", ["images", "methods"])
@pytest.mark.parametrize("options", [{}, {"opacity": 0.7, "shared": True, "colours": "Reds"}])
def test_sheets_have_a_cell_for_each_image_and_method(tmp_path, across, options):
    images = torch.rand(6, 3, 8, 8)
    rows = {"one": torch.randn(6, 3, 8, 8), "two": torch.randn(6, 3, 8, 8)}
    path = tmp_path / "sheet.png"
    titles = ["a 90%\ntrue: a", "b", "c", "d", "e", "f"]
    contact_sheet(path, images, rows, titles=titles, heading="h", across=across, **options)
    with Image.open(path) as sheet:
        width, height = sheet.size
    assert (width > height) == (across == "images")
    with pytest.raises(ValueError, match="2 titles for 6 images"):
        contact_sheet(path, images, rows, titles=["a", "b"])
    with pytest.raises(ValueError, match="one: 2 heatmaps for 6"):
        contact_sheet(path, images, {"one": torch.zeros(2, 3, 8, 8)})
    with pytest.raises(ValueError, match="shape"):
        contact_sheet(path, images[0], rows)


def test_arrays_come_back(tmp_path):
    heatmaps = {"lrp.epsilon": torch.randn(2, 3, 4, 4), "gradient": torch.randn(2, 3, 4, 4)}
    prediction, label = torch.randn(2, 5), torch.tensor([3, -1])
    save_npy(tmp_path, heatmaps)
    save_hdf5(tmp_path / "h.hdf5", heatmaps, prediction=prediction, label=label)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "gradient.npy",
        "h.hdf5",
        "lrp.epsilon.npy",
    ]
    with h5py.File(tmp_path / "h.hdf5") as file:
        for name, values in heatmaps.items():
            np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), values)
            np.testing.assert_array_equal(file[name]["attribution"], values)
            np.testing.assert_array_equal(file[name]["prediction"], prediction)
            assert file[name]["label"][:].tolist() == [3, -1]
        assert file["gradient/label"] == file["label"]  # linked, not copied
    with pytest.raises(ValueError, match="label has 1 entries for 2"):
        save_hdf5(tmp_path / "x.hdf5", heatmaps, prediction=prediction, label=label[:1])


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_curves_are_drawn(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(200, 3)
    ).eval()
    for count in (1, 3):  # a single image has no standard error
        data = torch.randn(count, 1, 12, 12), torch.zeros(count).long()
        names = ["gradient", "lrp.epsilon"]
        curves = perturbation_curves(model, data, names, Perturbation((4, 4), steps=3))
        plot_perturbation(tmp_path / "p.png", curves, heading="h")
        plot_randomisation(tmp_path / "r.png", randomisation_test(model, data, names))
        for name in ("p.png", "r.png"):
            with Image.open(tmp_path / name) as drawn:
                assert min(drawn.size) > 300
