"""``niwaki filters`` from the outside."""

import json

import pytest
from typer.testing import CliRunner

from niwaki.cli import app


@pytest.mark.slow
def test_the_command_writes_page_and_numbers(tmp_path):
    out = tmp_path / "seen"
    options = ["--weights", "random", "--limit", "20", "--steps", "2", "--patches", "2", "--json"]
    arguments = ["filters", "niwaki.models.zoo:vgg_digits", "digits", "--layer", "conv1_1"]
    result = CliRunner().invoke(app, [*arguments, *options, "--out", str(out)])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert [(row["layer"], row["filters"], row["field"]) for row in told["layers"]] == [
        ("conv1_1", 32, "3x3")
    ]
    names = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    assert names == {
        "index.html", "run.json", "filters.csv", "filters.json", "gallery.json", "pictures.zip",
    }  # fmt: skip
    page = (out / "index.html").read_text("utf-8")
    assert page.count('<article class="filter-card"') == 32
    assert "serves most" in page
    again = CliRunner().invoke(app, [*arguments, "--out", str(out)])
    assert "choose another with --out" in str(again.exception)
