"""Relevance that gets lost in a tile is told, in the table, on the page and in the terminal."""

import csv
import json

import pytest
from synthetic import picture, write_slide

NETS = """
import torch
from torch import nn

class Lossy(nn.Module):
    # The second unit says minus the mean: nothing above zero contributes to it, as z-plus has it.
    def __init__(self, share):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 2, 1, bias=False), nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1))
            self.last.weight.copy_(torch.tensor([[1.0 - share, -share]] * 2))

    def forward(self, x):
        return self.last(self.first(x.relu()).mean((2, 3)))

def quarter(): return Lossy(0.25)
def none(): return Lossy(0.0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("network", "share"), [("quarter", 0.25), ("none", 0.0)])
def test_what_tiles_lose_is_told(command, tmp_path, network, share):
    (tmp_path / "nets.py").write_text(NETS)
    slide = write_slide(tmp_path / "a.tif", picture(768, 768, (300, 300, 400, 400)), mpp=0.5)
    words = ["--mpp", 0.5, "--method", "lrp.epsilon_plus", "--method", "gradient"]
    code, out, err = command.slide(slide, network, *words)
    assert code == 0, err
    made = tmp_path / "out"
    rows = list(csv.DictReader((made / "tiles.csv").read_text().splitlines()))
    shares = [float(row["share lost, lrp.epsilon_plus"]) for row in rows]
    assert shares == pytest.approx([share] * len(rows), abs=1e-4)
    lost = json.loads((made / "slide.json").read_text())["lost"]
    said = "tiles lost relevance on its way, 25.0% at the most"
    cautioned = f"Under lrp.epsilon_plus, {len(rows)} of {len(rows)} tiles lose relevance"
    if share:
        assert lost == {"lrp.epsilon_plus": [len(rows), pytest.approx(0.25, abs=1e-4)]}
        assert said in out
        assert cautioned in (made / "index.html").read_text()
    else:
        assert lost == {}
        assert "lost relevance" not in out
        assert "lose relevance" not in (made / "index.html").read_text()
