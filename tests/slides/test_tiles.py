"""Labelled tiles lie where the annotations say, and go on to training and the audit."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from synthetic import picture, write_slide

from niwaki.data import Masks, Preprocessing, groups_by_name, open_data
from niwaki.errors import DataError
from niwaki.slides import SlideObject, read_geojson, write_geojson
from niwaki.slides._regions import outlines

pytest.importorskip("openslide", reason="the extra slides is not installed")

NEST = (256, 256, 512, 512)
SQUARE = [[256, 256], [512, 256], [512, 512], [256, 512], [256, 256]]
AROUND = [[96, 96], [640, 96], [640, 704], [96, 704], [96, 96]]
INSIDE = {(x, y) for x in range(256, 512, 64) for y in range(256, 512, 64)}

# As QuPath 0.5 exports them, with a class that is derived from another, and an older form.
EXPORTED = {
    "type": "FeatureCollection",
    "features": [
        {
            "type": "Feature",
            "id": "0c7fc5c1-9f2c-4b2f-8a2e-2f2b7b0f7a11",
            "geometry": {"type": "Polygon", "coordinates": [AROUND]},
            "properties": {
                "objectType": "annotation",
                "classification": {"name": "Stroma", "color": [150, 200, 150]},
                "isLocked": False,
            },
        },
        {
            "type": "Feature",
            "id": "9b0f2f8e-6b3e-4b57-9a57-5c6e5a9f6a22",
            "geometry": {"type": "MultiPolygon", "coordinates": [[SQUARE]]},
            "properties": {
                "objectType": "annotation",
                "name": "nest",
                "color": [200, 0, 0],
                "classification": {"names": ["Tumor", "Positive"], "color": [200, 0, 0]},
                "measurements": [{"name": "Area", "value": 65536.0}],
            },
        },
        {
            "type": "Feature",
            "geometry": {"type": "LineString", "coordinates": [[0, 0], [9, 9]]},
            "properties": {"objectType": "annotation"},
        },
    ],
}


@pytest.fixture
def slide(tmp_path):
    return write_slide(tmp_path / "case_x7.tif", picture(800, 928, NEST), mpp=0.5, levels=2)


@pytest.fixture
def exported(tmp_path, slide):
    (tmp_path / "case_x7.geojson").write_text(json.dumps(EXPORTED))
    return slide


def places(folder):
    found = {}
    for file in sorted(Path(folder).glob("*/*.png")):
        _, x, y = file.stem.rsplit("_", 2)
        found.setdefault(file.parent.name, set()).add((int(x[1:]), int(y[1:])))
    return found


def test_tiles_of_annotated_areas(command, exported, tmp_path):
    words = ["--size", 32, "--mpp", 1.0, "--out", "cut", "--rest", "rest"]
    code, out, err = command("tiles", exported, *words)
    assert code == 0, err
    found = places("cut")
    assert set(found) == {"Stroma", "Tumor_Positive", "rest"}
    # Tiles of 32 pixels of 1 um are 64 pixels of the slide; the nest is 4 x 4 of them.
    assert found["Tumor_Positive"] == INSIDE
    assert len(found["Stroma"]) == 56
    assert not found["Stroma"] & found["Tumor_Positive"]
    assert "Tumor_Positive: " not in out
    assert "Tumor: Positive: 16 tiles" in out
    for file in (tmp_path / "cut" / "Tumor_Positive").iterdir():
        pixels = np.asarray(Image.open(file))
        assert pixels.shape == (32, 32, 3)
        assert (pixels == (90, 40, 140)).all()
    rows = (tmp_path / "cut" / "tiles.csv").read_text().splitlines()
    assert len(rows) == 1 + sum(map(len, found.values()))
    images = open_data(tmp_path / "cut", Preprocessing(32, mean=(0.5,) * 3, std=(0.5,) * 3))
    assert images.classes == ["Stroma", "Tumor_Positive", "rest"]
    assert set(groups_by_name(images, "^(.+)_x")) == {"case_x7"}


def test_limits_and_what_is_covered(command, exported, tmp_path):
    assert command("tiles", exported, "--size", 48, "--mpp", 1.0, "--out", "all")[0] == 0
    tumour = places("all")["Tumor_Positive"]
    # Tiles of 96 pixels whose share in 256..512 is at least three quarters.
    share = {k: max(0, min(512, k + 96) - max(256, k)) / 96 for k in range(0, 928, 96)}
    expected = {(x, y) for x, a in share.items() for y, b in share.items() if a * b >= 0.75}
    assert tumour == expected
    words = ["--size", 32, "--mpp", 1.0, "--most", 5, "--out"]
    assert command("tiles", exported, *words, "a")[0] == 0
    assert command("tiles", exported, *words, "b")[0] == 0
    assert command("tiles", exported, *words, "c", "--seed", 1)[0] == 0
    assert {len(some) for some in places("a").values()} == {5}
    assert places("a") == places("b") != places("c")


def test_masks_and_nuclei_serve_alike(command, slide, tmp_path):
    mask = np.zeros((200, 232), np.uint8)
    mask[64:128, 64:128] = 2
    mask[64:80, 140:200] = 1
    Image.fromarray(mask).save(tmp_path / "mask.png")
    words = ["--size", 32, "--mpp", 1.0, "--names", "stroma,tumour", "--out", "m"]
    code, _, err = command("tiles", slide, "--annotations", "mask.png", *words)
    assert code == 0, err
    assert places("m")["tumour"] == INSIDE
    (tmp_path / "cells.csv").write_text("x,y,type\n300,400,a\n333.4,500,b\n3,3,a\n")
    words = ["--size", 32, "--mpp", 0.5, "--out", "n"]
    code, _, err = command("tiles", slide, "--annotations", "cells.csv", *words)
    assert code == 0, err
    assert places("n") == {
        "a": {(284, 384)},
        "b": {(317, 484)},
    }  # the one at the border is left out


def test_a_value_of_a_mask_that_has_no_name_is_refused(command, slide, tmp_path):
    words = ["--annotations", "mask.png", "--size", 32, "--mpp", 1.0, "--out"]

    def masked(value):
        mask = np.zeros((200, 232), np.uint8)
        mask[64:128, 64:128] = value
        Image.fromarray(mask).save(tmp_path / "mask.png")

    for value, names in ((3, "other,tumour"), (2, "tumour"), (255, "other,tumour")):
        masked(value)
        code, _, err = command("tiles", slide, *words, "named", "--names", names)
        assert code == 2
        assert f"the value {value}, and there are names for" in " ".join(err.split())
        assert not (tmp_path / "named").exists()
    for names, name in ((["--names", "tumour"], "tumour"), ([], "255")):
        code, _, err = command("tiles", slide, *words, name, *names)
        assert code == 0, err
        assert places(name) == {name: INSIDE}


PEN = [(300.3, 280.2), (420.1, 300.4), (410.3, 430.6), (310.2, 420.4), (300.3, 280.2)]
HOLE = [(340.4, 330.4), (380.4, 330.4), (380.4, 370.4), (340.4, 370.4), (340.4, 330.4)]


def inside(ring, x, y):
    """Tell by the winding of the edges to the right of a point whether it lies in a polygon."""
    count = 0
    for (x0, y0), (x1, y1) in pairwise(ring):
        if (y0 <= y) != (y1 <= y):
            count += x < x0 + (y - y0) * (x1 - x0) / (y1 - y0)
    return count % 2 == 1


def test_what_is_marked_becomes_masks_for_the_audit(command, exported, tmp_path):
    features = [*EXPORTED["features"]]
    for geometry, name in (
        ({"type": "Polygon", "coordinates": [PEN, HOLE]}, "Pen"),
        ({"type": "Point", "coordinates": [600.0, 600.0]}, "Dust"),
    ):
        properties = {"objectType": "annotation", "classification": {"name": name}}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    told = json.dumps({"type": "FeatureCollection", "features": features})
    (tmp_path / "case_x7.geojson").write_text(told)
    words = ["--size", 32, "--mpp", 1.0, "--regions", "Pen, Dust", "--out", "cut"]
    code, out, err = command("tiles", exported, *words)
    assert code == 0, err
    assert "cut-masks" in out
    assert "Dust: marked on 1 tile\n" in out
    assert set(places("cut")) == {"Stroma", "Tumor_Positive"}  # as if nothing were marked
    assert places("cut")["Tumor_Positive"] == INSIDE
    preprocessing = Preprocessing(32, mean=(0.5,) * 3, std=(0.5,) * 3)
    images = open_data(tmp_path / "cut", preprocessing)
    pen = Masks(images, tmp_path / "cut-masks" / "Pen")
    for path, mask in zip(images.paths, pen, strict=True):
        _, x, y = path.stem.rsplit("_", 2)
        centres = [
            [(int(x[1:]) + 2 * column + 1, int(y[1:]) + 2 * row + 1) for column in range(32)]
            for row in range(32)
        ]
        expected = [[inside(PEN, *at) and not inside(HOLE, *at) for at in row] for row in centres]
        assert (mask == np.array(expected)).all()
    dust = Masks(images, tmp_path / "cut-masks" / "Dust")
    assert [path.stem for path, mask in zip(images.paths, dust, strict=True) if mask.any()] == [
        "case_x7_x576_y576"
    ]
    assert sum(int(mask.sum()) for mask in dust) == pytest.approx(np.pi * 4**2, rel=0.1)  # 4 um
    code, _, err = command("tiles", exported, *words[:-2], "--regions", "Fold", "--out", "other")
    assert code == 2
    assert "nothing on the slides is annotated as 'Fold'" in err
    away = {"objectType": "annotation", "classification": {"name": "Fold"}}
    corner = {"type": "Point", "coordinates": [5.0, 5.0]}
    features.append({"type": "Feature", "geometry": corner, "properties": away})
    told = json.dumps({"type": "FeatureCollection", "features": features})
    (tmp_path / "case_x7.geojson").write_text(told)
    code, _, err = command("tiles", exported, *words[:-2], "--regions", "Fold", "--out", "other")
    assert code == 2
    assert "'Fold' lies on none of the" in err
    assert not (tmp_path / "other").exists()
    assert not (tmp_path / "other-masks").exists()


def test_what_does_not_fit_is_told(command, exported, tmp_path):
    def refused(*words):
        code, _, err = command("tiles", *words, "--size", 32, "--mpp", 1.0, "--out", "cut")
        assert code == 2, err
        assert err.count("error: ") == 1
        assert not (tmp_path / "cut").exists()
        return err

    twin = tmp_path / "twin" / "case_x7.tif"
    twin.parent.mkdir()
    twin.write_bytes(exported.read_bytes())
    assert "same name" in refused(exported, twin)
    other = tmp_path / "other.tif"
    other.write_bytes(exported.read_bytes())
    assert "no annotations of other.tif" in refused(other)
    assert "one file for 2 slides" in refused(exported, other, "--annotations", "case_x7.geojson")
    bad = tmp_path / "bad.geojson"
    empty = '[{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[]]}}]'
    odd = '{"type": "FeatureCollection", "features": [1]}'
    for text in (empty, odd, "[", "{}", "[" * 100_000):
        bad.write_text(text)
        assert "bad.geojson" in refused(exported, "--annotations", bad)
    write_geojson(bad, [SlideObject("annotation", [[[(0, 0), (9, 0), (9, 9)]]])])
    assert "has a class" in refused(exported, "--annotations", bad)
    write_geojson(bad, [SlideObject("annotation", [[[(0, 0), (9, 0), (9, 9)]]], class_name="a")])
    assert "smaller tiles" in refused(exported, "--annotations", bad)


def test_geojson_is_read_as_it_was_written(tmp_path):
    ring = [(1.5, 2.0), (9.0, 2.0), (9.0, 8.25), (1.5, 2.0)]
    hole = [(5.0, 3.0), (6.0, 3.0), (6.0, 4.0), (5.0, 3.0)]
    objects = [
        SlideObject(
            "annotation", [[ring, hole]], class_name="a: b", name="n", measurements={"m": 2.0}
        ),
        SlideObject("tile", [[ring]], class_name="ü </script>"),
        SlideObject("detection", [[ring], [hole]]),
        SlideObject("cell", [[ring]], nucleus=[[hole]], class_name="c"),
        SlideObject("annotation", points=[(1.0, 2.0)], class_name="p"),
        SlideObject("annotation", points=[(1.0, 2.0), (3.0, 4.0)], class_name="p"),
    ]
    write_geojson(tmp_path / "a.geojson", objects)
    found = read_geojson(tmp_path / "a.geojson")
    for one, other in zip(found, objects, strict=True):
        for name in ("kind", "polygons", "points", "nucleus", "class_name", "name", "measurements"):
            assert getattr(one, name) == getattr(other, name)
    first = (tmp_path / "a.geojson").read_bytes()
    write_geojson(tmp_path / "a.geojson", objects)
    assert (tmp_path / "a.geojson").read_bytes() == first
    with pytest.raises(DataError, match="cannot be read as GeoJSON"):
        read_geojson(tmp_path / "missing.geojson")


def test_a_class_that_qupath_would_refuse_is_written_with_spaces(tmp_path):
    """QuPath opens no file in which the name of a class has a line break."""
    write_geojson(tmp_path / "a", [SlideObject("annotation", points=[(0, 0)], class_name="a\r\nb")])
    (feature,) = json.loads((tmp_path / "a").read_text())["features"]
    assert feature["properties"]["classification"]["name"] == "a b"


def test_what_qupath_could_not_measure_is_left_out(tmp_path):
    """It writes NaN, which is no JSON, for instance for a cell without a nucleus."""
    told = json.dumps(EXPORTED).replace("65536.0", "NaN")
    (tmp_path / "a").write_text(told)
    assert [one.measurements for one in read_geojson(tmp_path / "a")] == [{}, {}]
    newer = told.replace(
        '[{"name": "Area", "value": NaN}]', '{"Area": NaN, "b": -Infinity, "c": 2.0}'
    )
    (tmp_path / "a").write_text(newer)
    assert [one.measurements for one in read_geojson(tmp_path / "a")] == [{}, {"c": 2.0}]
    (tmp_path / "a").write_text(
        told.replace("[[0, 0], [9, 9]]", "[]").replace("[96, 96]", "[NaN, 96]")
    )
    with pytest.raises(DataError, match="feature 0 is odd"):
        read_geojson(tmp_path / "a")


@pytest.mark.parametrize("seed", range(20))
def test_outlines_are_those_of_the_pixels(seed):
    """Drawn again by counting crossings, pixel by pixel, each polygon gives its region."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    mask = (
        ndimage.binary_opening(rng.random((14, 17)) < 0.75)
        if seed % 2
        else rng.random((9, 9)) < 0.6
    )
    labels, count = ndimage.label(mask)
    for number in range(1, count + 1):
        region = labels == number
        rings = outlines(region)
        rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]] + 0.5
        crossings = np.zeros(mask.shape, int)
        for ring in rings:
            assert ring[0] == ring[-1]
            for (x0, y0), (x1, y1) in pairwise(ring):
                assert (x0 == x1) != (y0 == y1)
                if x0 == x1:
                    between = (rows > min(y0, y1)) & (rows < max(y0, y1))
                    crossings += between & (columns < x0)
        np.testing.assert_array_equal(crossings % 2 == 1, region)
