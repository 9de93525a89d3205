"""What is written is where it belongs, and what others read: tifffile, OpenSlide, OME, QuPath."""

import csv
import json
import uuid

import numpy as np
import pytest
import torch
from ome_types import from_xml
from PIL import Image
from safetensors.torch import save_file
from synthetic import picture, write_slide

import niwaki
from niwaki.models.zoo import tissue_net

pytestmark = pytest.mark.slow

openslide = pytest.importorskip("openslide", reason="the extra slides is not installed")
tifffile = pytest.importorskip("tifffile", reason="the extra slides is not installed")

NEST = (700, 500, 940, 780)
METHOD = "input_t_gradient"


@pytest.fixture
def slide(tmp_path):
    pixels = picture(1280, 1536, NEST)
    return write_slide(tmp_path / "a slide.tif", pixels, mpp=0.25, levels=3)


def features(folder):
    return json.loads((folder / "objects.geojson").read_text())["features"]


def box(feature):
    ring = np.array(feature["geometry"]["coordinates"][0])
    return [*ring.min(0), *ring.max(0)]


@pytest.mark.slow
@pytest.mark.parametrize("network", ["mapped", "whole"])
@pytest.mark.parametrize("mpp", [0.25, 0.5, 1.0])
def test_a_nest_is_found_where_it_is(command, slide, tmp_path, mpp, network):
    code, _, err = command.slide(slide, network, "--mpp", mpp, "--method", METHOD, "--no-page")
    assert code == 0, err
    one = mpp / 0.25  # a pixel
    regions = [f for f in features(tmp_path / "out") if f["properties"]["name"].endswith("n 1")]
    assert len(regions) == 1
    np.testing.assert_allclose(box(regions[0]), NEST, atol=one)
    numbers = regions[0]["properties"]["measurements"]
    assert numbers["share of the positive relevance"] > 0.9
    assert numbers["area in um2"] == pytest.approx(60 * 70, rel=0.05)
    name = tmp_path / "out" / "maps" / "relevance-for-tumour-by-input-t-gradient.ome.tif"
    values = tifffile.imread(name)
    rows, columns = np.nonzero(np.nan_to_num(values) > 0.3 * np.nanmax(values))
    found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) * one
    np.testing.assert_allclose(found, NEST, atol=one)
    if network == "mapped":
        name = tmp_path / "out" / "maps" / "probability-of-tumour.ome.tif"
        rows, columns = np.nonzero(np.nan_to_num(tifffile.imread(name)) > 0.5)
        found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) * one
        np.testing.assert_allclose(found, NEST, atol=one)


@pytest.mark.slow
def test_pyramids_are_what_others_read(command, slide, tmp_path):
    assert command.slide(slide, "mapped", "--mpp", 0.3, "--no-page")[0] == 0
    files = sorted((tmp_path / "out" / "maps").iterdir())
    assert len(files) == 4
    width, height = 1280, 1067  # 1536 and 1280 pixels of 0.25 um, in pixels of 0.3 um
    for file in files:
        colours = file.name.endswith("-colours.ome.tif")
        with tifffile.TiffFile(file) as opened:
            assert opened.is_bigtiff
            assert opened.is_ome
            assert len(opened.pages) == 1  # the others are SubIFDs
            (series,) = opened.series
            shapes = [level.shape[:2] for level in series.levels]
            assert shapes == [(height, width), (534, 640), (267, 320)]
            for number, level in enumerate(series.levels):
                page = level.pages[0]
                assert (page.tilewidth, page.tilelength) == (512, 512)
                assert page.dtype == (np.uint8 if colours else np.float32)
                assert page.subfiletype == int(number > 0)
                known = page.tags["XResolution"].value
                assert 1e4 * known[1] / known[0] == pytest.approx(0.3 * 2**number, rel=1e-6)
                assert page.tags["ResolutionUnit"].value == 3
            about = from_xml(opened.ome_metadata, validate=True)
            finest = series.levels[0].asarray().astype(float)
            coarser = series.levels[1].asarray().astype(float)
        (image,) = about.images
        pixels = image.pixels
        assert (pixels.size_x, pixels.size_y) == (width, height)
        assert pixels.physical_size_x == pixels.physical_size_y == 0.3
        assert pixels.physical_size_x_unit.value == pixels.physical_size_y_unit.value == "µm"
        assert "tumour" in image.name
        if not colours:
            known = finest[:1066].reshape(533, 2, 640, 2)
            some = ~np.isnan(known)
            means = np.nansum(known, (1, 3)) / np.maximum(some.sum((1, 3)), 1)
            inside = some.any((1, 3))
            np.testing.assert_allclose(coarser[:533][inside], means[inside], rtol=1e-5, atol=1e-6)
            assert np.isnan(coarser[:533][~inside]).all()
        with openslide.OpenSlide(file) as opened:
            # OpenSlide does not look for SubIFDs: it reads the finest level of every OME-TIFF.
            assert opened.level_dimensions == ((width, height),)
            known = opened.properties
            assert float(known["openslide.mpp-x"]) == pytest.approx(0.3)
            assert float(known["openslide.mpp-y"]) == pytest.approx(0.3)
            assert known["openslide.level[0].tile-width"] == "512"
            assert known["openslide.level[0].tile-height"] == "512"
            if colours:
                part = np.asarray(opened.read_region((500, 400), 0, (300, 200)))[..., :3]
                np.testing.assert_array_equal(part, finest[400:600, 500:800])


# What QuPath 0.5 writes for an annotation, a tile and a detection, by hand from its exporter.
FEATURE = {"type", "id", "geometry", "properties"}
ANNOTATION = {"objectType", "name", "color", "classification", "isLocked", "measurements"}


def test_objects_have_the_fields_of_qupath(command, slide, tmp_path):
    (tmp_path / "nuclei.csv").write_text("x,y,type\n800,600,tumour\n300,300,stroma\n5,5,\n")
    words = ["--mpp", 0.5, "--method", METHOD, "--no-page", "--nuclei", "nuclei.csv"]
    code, _, err = command.slide(slide, "mapped", *words)
    assert code == 0, err
    out = tmp_path / "out"
    found = features(out)
    kinds = {f["properties"]["objectType"] for f in found}
    assert kinds == {"annotation", "tile"}
    nuclei = json.loads((out / "nuclei.geojson").read_text())
    assert nuclei["type"] == "FeatureCollection"
    for feature in [*found, *nuclei["features"]]:
        assert set(feature) == FEATURE
        assert feature["type"] == "Feature"
        assert str(uuid.UUID(feature["id"])) == feature["id"]
        about = feature["properties"]
        assert set(about) <= ANNOTATION
        assert len(about["color"]) == 3
        assert all(isinstance(c, int) and 0 <= c < 256 for c in about["color"])
        if "classification" in about:
            assert set(about["classification"]) == {"name", "color"}
        assert ("isLocked" in about) == (about["objectType"] == "annotation")
        assert all(isinstance(v, float | int) for v in about.get("measurements", {}).values())
        for ring in feature["geometry"]["coordinates"]:
            assert ring[0] == ring[-1]
    every = [f["id"] for f in [*found, *nuclei["features"]]]
    assert len(set(every)) == len(every)
    tumour, stroma, outside = nuclei["features"]
    assert {f["properties"]["objectType"] for f in nuclei["features"]} == {"detection"}
    assert tumour["properties"]["classification"]["name"] == "tumour"
    key = f"relevance for tumour by {METHOD}"
    numbers = tumour["properties"]["measurements"]
    assert numbers[f"{key}, mean"] > 1
    assert numbers["probability of tumour, mean"] > 0.9
    # A disc of 4 um has about 201 pixels of 0.5 um.
    assert numbers[f"{key}, sum"] == pytest.approx(201 * numbers[f"{key}, mean"], rel=0.08)
    assert stroma["properties"]["measurements"][f"{key}, mean"] == 0
    assert "measurements" not in outside["properties"]
    np.testing.assert_allclose(box(tumour), [784, 584, 816, 616], atol=0.1)
    rows = list(csv.DictReader((out / "nuclei.csv").read_text().splitlines()))
    assert [row["type"] for row in rows] == ["tumour", "stroma", ""]


def test_of_a_cell_its_nucleus_is_measured(command, slide, tmp_path):
    """The nucleus lies in the nest, most of the cell around it does not."""

    def square(low, high):
        return [[low, low], [high, low], [high, high], [low, high], [low, low]]

    feature = {
        "type": "Feature",
        "id": "0c7fc5c1-9f2c-4b2f-8a2e-2f2b7b0f7a11",
        "geometry": {"type": "Polygon", "coordinates": [square(600, 740)]},
        "nucleusGeometry": {"type": "Polygon", "coordinates": [square(704, 736)]},
        "properties": {"objectType": "cell", "measurements": {"Nucleus: Area": float("nan")}},
    }
    (tmp_path / "cells.geojson").write_text(json.dumps([feature]))
    words = ["--mpp", 0.5, "--method", METHOD, "--no-page", "--nuclei", "cells.geojson"]
    code, _, err = command.slide(slide, "mapped", *words)
    assert code == 0, err
    (found,) = json.loads((tmp_path / "out" / "nuclei.geojson").read_text())["features"]
    assert found["geometry"]["coordinates"][0] == square(600, 740)
    assert found["nucleusGeometry"]["coordinates"][0] == square(704, 736)
    assert found["properties"]["objectType"] == "cell"
    values = tifffile.imread(
        tmp_path / "out" / "maps" / "relevance-for-tumour-by-input-t-gradient.ome.tif"
    )
    inside = values[352:368, 352:368]
    numbers = found["properties"]["measurements"]
    key = f"relevance for tumour by {METHOD}"
    assert numbers[f"{key}, mean"] == pytest.approx(inside.mean(), rel=1e-4)
    assert numbers[f"{key}, sum"] == pytest.approx(inside.sum(), rel=1e-4)
    assert values[300:370, 300:370].mean() < 0.7 * inside.mean()


def test_tables_agree_with_maps(command, slide, tmp_path):
    assert command.slide(slide, "mapped", "--mpp", 0.5, "--method", METHOD, "--no-page")[0] == 0
    out = tmp_path / "out"
    values = tifffile.imread(out / "maps" / "relevance-for-tumour-by-input-t-gradient.ome.tif")
    rows = list(csv.DictReader((out / "tiles.csv").read_text().splitlines()))
    about = json.loads((out / "slide.json").read_text())
    assert about["tiles"] == len(rows) > 90
    assert sum(about["predictions"].values()) == len(rows)
    for row in rows[::7]:
        x, y, side = (round(float(row[name]) / 2) for name in ("x", "y", "width"))
        part = values[y : y + side, x : x + side]
        assert float(row[f"relevance for tumour by {METHOD}"]) == pytest.approx(
            np.nansum(part), rel=1e-3, abs=1e-3
        )
    with Image.open(out / "overview.png") as picture_of_all:
        assert picture_of_all.width > 500


@pytest.mark.slow
def test_what_a_run_writes_is_read_back_as_tiles(command, slide, tmp_path):
    assert command.slide(slide, "mapped", "--mpp", 0.5, "--method", METHOD, "--no-page")[0] == 0
    words = ["--annotations", "out/objects.geojson", "--size", 16, "--mpp", 0.5, "--out", "cut"]
    code, _, err = command("tiles", slide, *words)
    assert code == 0, err
    purple = sorted((tmp_path / "cut" / "tumour").glob("*.png"))
    assert len(purple) > 20
    for file in purple:
        if "_x" in file.name:
            _, x, y = file.stem.rsplit("_", 2)
            inside = 700 <= int(x[1:]) + 16 <= 940
            inside = inside and 500 <= int(y[1:]) + 16 <= 780
            assert inside or np.asarray(Image.open(file)).std() > 5
    assert (tmp_path / "cut" / "other").is_dir()


@pytest.mark.slow
def test_beside_another_network_there_is_the_difference(command, slide, tmp_path):
    words = ["--mpp", 1.0, "--method", "gradient", "--no-page", "--beside", "nets.py:strided"]
    code, _, err = command.slide(slide, "mapped", *words)
    assert code == 0, err
    out = tmp_path / "out"
    maps = {file.name: tifffile.imread(file) for file in (out / "maps").glob("*[!s].ome.tif")}
    assert len(maps) == 6
    one = maps["relevance-for-tumour-by-gradient.ome.tif"]
    other = maps["relevance-for-tumour-by-gradient-nets.py-strided.ome.tif"]
    difference = maps["relevance-for-tumour-by-gradient-difference.ome.tif"]
    known = ~np.isnan(one)
    assert known.any()
    np.testing.assert_allclose(difference[known], (other - one)[known], atol=1e-5)
    about = json.loads((out / "slide.json").read_text())
    assert any("difference" in name for name in about["layers"])


@pytest.mark.slow
def test_a_pruned_network_beside_has_its_own_weights(command, slide, tmp_path):
    model, spec = tissue_net(), "niwaki.models.zoo:tissue_net"
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    references = torch.rand(4, 3, 64, 64), torch.tensor([0, 1, 0, 1])
    pruned = niwaki.prune(model.eval(), references, "weight", keep=0.7, repair=None)
    pruned.save(tmp_path / "pruned", about={"model": spec})
    words = ["--weights", "weights.safetensors", "--beside", "pruned", "--mpp", 1.0, "--no-page"]
    words += ["--method", "gradient", "--threads", 1, "--workers", 0, "--out", "out"]
    code, _, err = command("slide", slide, spec, *words)
    assert code == 0, err
    about = json.loads((tmp_path / "out" / "slide.json").read_text())
    assert sum("pruned" in name for name in about["layers"]) == 2
