"""A real slide, end to end."""

import csv
import json

import numpy as np
import pytest

pytest.importorskip("openslide", reason="the extra slides is not installed")
tifffile = pytest.importorskip("tifffile", reason="the extra slides is not installed")


@pytest.mark.slow
@pytest.mark.parametrize("network", ["mapped", "whole"])
def test_a_real_slide_from_its_file_to_all_that_is_written(command, shared, tmp_path, network):
    file = shared / "data" / "slides" / "cmu-1-small-region.svs"
    words = ["--mpp", 1.0, "--method", "input_t_gradient"]
    code, out, err = command.slide(file, network, *words)
    assert code == 0, err
    made = tmp_path / "out"
    about = json.loads((made / "slide.json").read_text())
    assert about["size"] == [2220, 2967]
    assert about["slide_mpp"] == pytest.approx([0.499, 0.499])
    assert f"{about['tiles']} tiles of 1 um per pixel" in out
    rows = list(csv.DictReader((made / "tiles.csv").read_text().splitlines()))
    assert len(rows) == about["tiles"] > 80
    assert all(0 <= float(row["probability of tumour"]) <= 1 for row in rows)
    for name in about["maps"]:
        values = tifffile.imread(made / "maps" / name)
        # 2220 x 2967 pixels of 0.499 um are 1107.8 x 1480.5 of 1 um.
        assert values.shape[:2] == (1481, 1108)
        if values.dtype == np.float32:
            assert 0.3 < np.isfinite(values).mean() < 0.9
    assert (made / "viewer.html").stat().st_size < 2e6
    assert (made / "overview.png").exists()
