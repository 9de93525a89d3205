"""What a person gets: the page, the numbers, and the command."""

import json
import re

import pytest
import torch
from audit_networks import Coloured
from PIL import Image
from typer.testing import CliRunner

from niwaki.auditing import audit, before_and_after
from niwaki.cli import app
from niwaki.cli._audit_demo import run_demo
from niwaki.datasets import plant
from niwaki.report import write_audit


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def found(tiles):
    marked = plant(tiles.pixels, tiles.labels, "square", on=1, share=0.6, seed=1)
    images = tiles.images(pixels=marked.pixels)
    return audit(Coloured(), images, method="lrp.epsilon", tissue=True)


def test_the_page_says_what_was_found_and_is_self_contained(found, tmp_path):
    page = write_audit(tmp_path, found, heading="A <test>", remarks=["All 200 images."])
    text = page.read_text()
    assert "A &lt;test&gt;" in text
    for finding in found.flagged:
        assert finding.sentence.split(",")[0].replace("'", "&#39;") in text.replace("\n", " ")
        assert finding.advice.split(":")[0] in text
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    assert text.count("<img") == text.count("data:image/png;base64,") >= 4
    data = json.loads((tmp_path / "audit.json").read_text())
    assert data["audits"]["audit"]["flagged"] == [finding.key for finding in found.flagged]
    pictures = {file.name for file in tmp_path.glob("*.png")}
    assert {"finding-1.png", "maps.png", "stains.png"} <= pictures
    assert "strategies-tumour-place.png" in pictures


def test_a_page_of_two_audits_has_their_table(found, tiles, tmp_path):
    clean = audit(Coloured(), tiles.images(), method="lrp.epsilon")
    audits = {"Before": found, "After": clean}
    write_audit(tmp_path, audits, table=before_and_after(audits))
    text = (tmp_path / "audit.html").read_text()
    assert "Before and after" in text
    assert (tmp_path / "before-finding-1.png").exists()
    assert clean.caution  # it looks for a colour that these images do not have
    assert "No answer here can be relied on" in text
    assert "None of the questions" not in text


def test_the_command_audits_a_network_and_writes_for_virelay(tmp_path):
    out = tmp_path / "out"
    arguments = ["audit", "niwaki.models.zoo:tissue_net", "tissue", "--weights", "random"]
    options = ["--limit", 60, "--heatmaps", "--questions", "position,colour", "--threads", 1]
    done = run(*arguments, *options, "--out", out, "--json")
    said = json.loads(done.stdout)
    assert said["images"] == 60
    assert said["classes"] == ["normal", "tumour"]
    assert said["stains"]
    assert {f["key"].split("/")[0] for f in said["findings"]} == {"position", "colour"}
    assert (out / "audit.html").exists()
    assert (out / "virelay" / "project.yaml").exists()
    assert (out / "virelay" / "analysis.h5").exists()
    with pytest.raises(ValueError, match="--force"):
        run(*arguments, "--out", out)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["audit"], "--demo"),
        (["audit", "niwaki.models.zoo:tissue_net", "tissue", "--demo"], "leave"),
    ],
)
def test_the_command_refuses(arguments, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        run(*arguments, "--out", tmp_path / "out")


@pytest.mark.slow
def test_the_demo_finds_what_was_planted_and_repairs_it(tmp_path):
    said = run_demo(tmp_path / "demo", torch.device("cpu"), 0, False, True, tiles=400, epochs=4)
    assert "colour/tumour/foreign" in said["flagged"]
    before, *after = said["table"]
    assert before["auc attacked"] < 0.6
    assert max(row["auc attacked"] for row in after) > 0.85
    assert max(row["auc clean"] for row in after) > 0.85
    again = after[0]
    assert again["colour/tumour/foreign: seen"] < before["colour/tumour/foreign: seen"]
    assert (tmp_path / "demo" / "audit.html").exists()


def test_the_command_knows_slides_and_regions(tiles, tmp_path):
    marked = plant(tiles.pixels, tiles.labels, "square", on=1, share=0.6, seed=1)
    for index, (pixels, label) in enumerate(zip(marked.pixels, tiles.labels, strict=True)):
        for place, image in (("images", pixels), ("marks", marked.mask[index])):
            file = tmp_path / place / ("normal", "tumour")[label] / f"s{index // 10}_x{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    arguments = ["audit", "audit_networks:Coloured", tmp_path / "images", "--weights", "random"]
    arguments += ["--size", 64, "--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2", "--threads", 1]
    options = ["--slides", "^(s.+)_x", "--region", f"mark={tmp_path / 'marks'}", "--json"]
    options += ["--training", tmp_path / "images"]
    done = run(*arguments, *options, "--method", "gradient", "--out", tmp_path / "out")
    said = json.loads(done.stdout)
    assert said["groups"] == 20
    assert "from 20 slides" in (tmp_path / "out" / "audit.html").read_text()
    keys = {finding["key"] for finding in said["findings"]}
    assert {"region/tumour/mark", "region/normal/mark"} <= keys
    assert {"training/tumour/unlike", "training/normal/unlike"} <= keys
    assert not any(key.startswith("training/") for key in said["flagged"])
    with pytest.raises(ValueError, match="NAME=FOLDER"):
        run(*arguments, "--region", "mark", "--out", tmp_path / "other")
    assert not (tmp_path / "other").exists()
