"""Several processes map a slide as one does."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import shared_jobs as jobs
import torch
from PIL import Image

pytest.importorskip("openslide", reason="the extra slides is not installed")


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """A slide of one level, with another texture everywhere."""
    file = tmp_path_factory.mktemp("slide") / "slide.png"
    pixels = np.random.default_rng(0).integers(60, 256, (70, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    return str(file)


@pytest.fixture(scope="module")
def expected(slide):
    return jobs.slide_maps(slide)


def assert_same(found, expected):
    (rows, maps), *others = found
    assert rows == expected[0]
    assert maps.keys() == expected[1].keys()
    for name, values in expected[1].items():
        assert torch.equal(maps[name].nan_to_num(9.0), values.nan_to_num(9.0)), name
    # The maps are put together once, by the first.
    assert others == [(rows, {})] * len(others)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 4])
def test_maps_and_tables_are_those_of_one_process(crew, slide, expected, count):
    assert len(expected[0]) % 3 == 1  # the last batch is of one tile
    assert_same(crew(count, jobs.slide_maps, slide), expected)


@pytest.mark.slow
def test_more_processes_than_batches(crew, slide, expected):
    alone = jobs.slide_maps(slide, None, 30)
    assert_same(crew(3, jobs.slide_maps, slide, None, 30), alone)
    assert [row["prediction"] for row in alone[0]] == [row["prediction"] for row in expected[0]]


def test_what_is_finished_is_not_done_again_and_what_is_damaged_is(crew, slide, expected, tmp_path):
    folder = str(tmp_path / "run")
    assert_same([jobs.slide_maps(slide, folder)], expected)
    parts = sorted((tmp_path / "run").glob("*.safetensors"))
    for part in parts[1:4]:
        part.write_bytes(part.read_bytes()[:-9])
    parts[-1].unlink()
    assert_same(crew(2, jobs.slide_maps, slide, folder), expected)
    whole = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*.saf*")}
    assert len(whole) == len(parts)
    assert sum(path.name in whole for path in parts) == len(parts) - 4
    assert_same(crew(3, jobs.slide_maps, slide, folder), expected)
    shutil.rmtree(folder)
