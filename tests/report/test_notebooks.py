"""What a notebook shows of results: tables of their numbers, in which names are words."""

import re
from html import unescape

import torch
from torch import nn

import niwaki
from niwaki.display import html_table
from niwaki.pruning import Plan, Removal


def cells(html):
    rows = re.findall(r"<tr>(.*?)</tr>", html)
    return [[unescape(c) for c in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)] for row in rows]


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)
    return nn.Sequential(*layers).eval()


def test_a_table_escapes_what_it_shows():
    html = html_table([{"<b>": "<script>", "n": 1234567, "x": 0.123456, "y": None}], "a & b")
    assert "<script>" not in html
    assert "a &amp; b" in html
    assert cells(html) == [["<b>", "n", "x", "y"], ["<script>", "1,234,567", "0.1235", ""]]
    assert cells(html_table([], "empty")) == [[]]


def test_scores_plans_and_pruned_networks_are_tables():
    model, data = network(), (torch.randn(8, 1, 6, 6), torch.arange(8) % 3)
    scores = niwaki.score(model, data, "weight")
    head, row = cells(scores._repr_html_())
    assert head == ["layer", "scores", "lowest", "median", "highest"]
    assert row[:2] == ["0", "6"]
    assert float(row[2]) <= float(row[3]) <= float(row[4])
    pruned = niwaki.prune(model, data, "weight", keep=0.5, test=data, repair=None)
    table = cells(pruned._repr_html_())
    assert len(table) == 1 + len(pruned.trajectory)
    assert table[-1][2] == f"{pruned.trajectory.final.params:,}"
    said = repr(pruned)
    assert len(said.splitlines()) == 5
    assert said.startswith("Pruned(Sequential by Weight(")
    assert f"of {pruned.trajectory[0].macs:,} MACs" in said
    assert cells(pruned.plan._repr_html_())[1:] == [
        [layer, str(count)] for layer, count in pruned.plan.removed().items()
    ]
    assert cells(Plan(((Removal("<i>", (0, 1)),),))._repr_html_())[1] == ["<i>", "2"]


def test_comparisons_and_audits_are_tables():
    model, data = network(), (torch.randn(8, 1, 6, 6), torch.arange(8) % 3)
    found = niwaki.pruning.compare(
        model, data, ["weight", "random"], test=data, keep=0.7, references=1, seeds=1, repair=None
    )
    table = cells(found._repr_html_())
    assert {row[0] for row in table[1:]} == {"weight", "random"}
    assert table[0] == list(found.rows()[0])


def test_a_pruned_network_without_rows_prints():
    pruned = niwaki.pruning.Pruned(network(), Plan(), niwaki.pruning.Trajectory(), (1, 6, 6), {})
    assert repr(pruned) == "Pruned(Sequential by hand, 0 steps: not measured)"
    assert cells(pruned._repr_html_()) == [[]]
