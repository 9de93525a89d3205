"""What a person gets: the page, the numbers, and the command."""

import json
import re

import pytest
import torch
from audit_networks import Coloured
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from niwaki.auditing import audit, before_and_after
from niwaki.cli import app
from niwaki.cli._audit_demo import run_demo
from niwaki.datasets import TISSUE, plant
from niwaki.report import write_audit


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def found(tiles):
    marked = plant(tiles.pixels, tiles.labels, "square", on=1, share=0.6, seed=1)
    images = tiles.images(pixels=marked.pixels)
    return audit(Coloured(), images, method="lrp.epsilon", tissue=True)


@pytest.mark.long
def test_the_page_says_what_was_found_and_is_self_contained(found, tmp_path):
    page = write_audit(tmp_path, found, heading="A <test>", remarks=["All 200 images."])
    text = page.read_text()
    assert "A &lt;test&gt;" in text
    for finding in found.flagged:
        assert finding.sentence.split(",")[0].replace("'", "&#39;") in text.replace("\n", " ")
        assert finding.advice.split(":")[0] in text
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    assert text.count("<img") == text.count('src="data:image/') >= 4
    data = json.loads((tmp_path / "audit.json").read_text())
    assert data["audits"]["audit"]["flagged"] == [finding.key for finding in found.flagged]
    pictures = {file.name for file in tmp_path.glob("*.png")}
    assert {"finding-1.png", "maps.png", "stains.png"} <= pictures
    assert "strategies-tumour-place.png" in pictures


@pytest.mark.long
def test_a_page_of_two_audits_has_their_table(found, tiles, tmp_path):
    clean = audit(Coloured(), tiles.images(), method="lrp.epsilon")
    audits = {"Before": found, "After": clean}
    write_audit(tmp_path, audits, table=before_and_after(audits))
    text = (tmp_path / "index.html").read_text()
    assert "Before and after" in text
    assert (tmp_path / "before-finding-1.png").exists()
    assert clean.caution  # it looks for a colour that these images do not have
    assert "No answer here can be relied on" in text
    assert "None of the questions" not in text


@pytest.mark.slow
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
    assert (out / "index.html").exists()
    assert (out / "virelay" / "project.yaml").exists()
    assert (out / "virelay" / "analysis.h5").exists()
    with pytest.raises(ValueError, match="--force"):
        run(*arguments, "--out", out)


@pytest.fixture(scope="module")
def folder(tiles, tmp_path_factory):
    """Marked tiles as files that are named after their slide and position."""
    marked = plant(tiles.pixels, tiles.labels, "square", on=1, share=0.6, seed=1)
    home = tmp_path_factory.mktemp("patches")
    for index, (pixels, label) in enumerate(zip(marked.pixels, tiles.labels, strict=True)):
        file = home / ("normal", "tumour")[label] / f"s{index // 10}_x{64 * index}_y{label}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    save_file(Coloured().state_dict(), home.parent / "coloured.safetensors")
    return home


def command(folder, out, *more):
    numbers = {"mean": TISSUE.mean, "std": TISSUE.std}
    prepared = [w for n, v in numbers.items() for w in (f"--{n}", ",".join(map(str, v)))]
    weights = folder.parent / "coloured.safetensors"
    arguments = ["audit", "audit_networks:Coloured", folder, "--weights", weights, "--size", 64]
    arguments += [*prepared, "--method", "lrp.epsilon", "--slides", "^(s.+)_x", "--threads", 1]
    arguments += ["--questions", "colour,position", "--out", out, *more]
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.mark.slow
def test_examples_are_named_and_the_page_says_how_it_was_made(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    done = command(folder, tmp_path / "out", "--json", "--seed", 3)
    assert done.exit_code == 0
    said = json.loads(done.stdout)
    assert said["verdict"] == "found"
    assert said["made"]["seed"] == 3
    finding = next(f for f in said["findings"] if f["key"] == "colour/tumour/foreign")
    assert finding["answer"] == "yes"
    assert 0 < finding["detectable"] < 0.5
    assert len(finding["example_images"]) == len(finding["examples"]) == 8
    page = (tmp_path / "out" / "index.html").read_text()
    for image in finding["example_images"]:
        assert (folder / image["name"]).exists()
        assert image["name"].split("/")[1].startswith(image["slide"] + "_x")
        assert image["class"] == image["prediction"] == "tumour"
        assert image["name"] in page
        assert f"slide {image['slide']}; image {image['index']} of the data set" in page
    shown = json.loads((tmp_path / "out" / "audit-shown.json").read_text())["audits"][0]
    assert [len(f["examples"]) for f in shown["findings"]] == [
        8 + min(8, len(said["findings"][n]["ordinary"])) for n in range(len(said["distinct"]))
    ]
    assert page.count('class="photo-card example') == sum(
        len(f["examples"]) for f in shown["findings"]
    )
    for told in (said["made"]["fingerprint"], "1970-01-02", f"niwaki {said['made']['niwaki']}"):
        assert told in page
    assert f"audit audit_networks:Coloured {folder} --method lrp.epsilon" in page
    assert "--questions colour,position" in page
    assert "--seed 3</code>" in page
    assert "--out" not in page
    for told in (said["limits"], *(f["could_show"] for f in said["findings"] if not f["echo_of"])):
        assert told.replace("'", "&#39;") in page
    written = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert written["made"]["date"] == "1970-01-02"
    assert written["audits"]["audit"]["findings"] == said["findings"]


@pytest.mark.long
def test_the_same_command_writes_the_same_page(folder, tmp_path):
    for name in ("once", "again"):
        command(folder, tmp_path / name)
    pages = [(tmp_path / name / "index.html").read_text() for name in ("once", "again")]
    assert pages[0] == pages[1]


@pytest.mark.long
def test_the_exit_code_says_on_request_that_something_was_found(folder, tmp_path):
    done = command(folder, tmp_path / "out", "--fail-on-finding", "--questions", "colour")
    assert done.exit_code == 1
    assert "1 answered with yes" in done.output
    assert (tmp_path / "out" / "index.html").exists()
    few = command(folder, tmp_path / "few", "--fail-on-finding", "--limit", 20)
    assert few.exit_code == 0
    assert "Too few images for 14 questions" in few.output
    page = (tmp_path / "few" / "index.html").read_text()
    assert '<div class="few">' in page
    assert '<div class="clean">' not in page
    assert '<div class="finding"' not in page
    assert "Too few images for an answer: 14" in page


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


@pytest.mark.long
def test_the_demo_finds_what_was_planted_and_repairs_it(tmp_path):
    said = run_demo(tmp_path / "demo", torch.device("cpu"), 0, False, True, tiles=400, epochs=4)
    assert "colour/tumour/foreign" in said["flagged"]
    before, *after = said["table"]
    assert before["auc attacked"] < 0.6
    assert max(row["auc attacked"] for row in after) > 0.85
    assert max(row["auc clean"] for row in after) > 0.85
    again = after[0]
    assert again["colour/tumour/foreign: seen"] < before["colour/tumour/foreign: seen"]
    assert (tmp_path / "demo" / "index.html").exists()


@pytest.mark.slow
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
    rows = [f"s{n // 10}_x{n},{n // 10 % 2 + 1}" for n in range(200)]
    (tmp_path / "slides.csv").write_text("\n".join(["file,scanner", *rows]))
    options += [
        "--training",
        tmp_path / "images",
        "--centres",
        f"{tmp_path / 'slides.csv'}:scanner",
    ]
    done = run(*arguments, *options, "--method", "gradient", "--out", tmp_path / "out")
    said = json.loads(done.stdout)
    assert said["groups"] == 20
    assert "from 20 slides" in (tmp_path / "out" / "index.html").read_text()
    keys = {finding["key"] for finding in said["findings"]}
    assert {"region/tumour/mark", "region/normal/mark"} <= keys
    assert {"training/tumour/unlike", "training/normal/unlike"} <= keys
    assert {"centre/tumour/look", "centre/normal/errors"} <= keys
    assert not any(key.startswith("centre/") for key in said["flagged"])
    assert sorted(said["centres"]["errors"]["tumour"]) == ["1", "2"]
    assert "Errors by class and centre" in (tmp_path / "out" / "index.html").read_text()
    assert not any(key.startswith("training/") for key in said["flagged"])
    with pytest.raises(ValueError, match="NAME=FOLDER"):
        run(*arguments, "--region", "mark", "--out", tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.long
def test_the_command_goes_on_with_what_a_person_accepts_and_watches(tiles, tmp_path):
    marked = plant(tiles.pixels, tiles.labels, "square", on=1, share=0.4, seed=1)
    for index, (pixels, label) in enumerate(zip(marked.pixels, tiles.labels, strict=True)):
        for file in (f"images/{('normal', 'tumour')[label]}/{index:03}.png", f"new/{index:03}.png"):
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / file)
    network = ["audit", "audit_networks:Coloured"]
    options = ["--weights", "random", "--size", 64, "--threads", 1, "--json"]
    mean, std = (",".join(map(str, values)) for values in (TISSUE.mean, TISSUE.std))
    options += ["--mean", mean, "--std", std, "--questions", "confirmed"]
    run(*network, tmp_path / "images", *options, "--out", tmp_path / "first")
    table = tmp_path / "first" / "candidates.csv"
    assert (
        "write yes beside them in candidates.csv" in (tmp_path / "first" / "index.html").read_text()
    )
    rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
    accepted = [
        f"{name},{image},yes"
        for name, image, _ in rows
        if name.startswith("tumour") and marked.chosen[int(image[-7:-4])]
    ]
    assert len(accepted) >= 10
    (tmp_path / "accepted.csv").write_text("\n".join(["candidate,image,accept", *accepted]))
    options += ["--confirm", tmp_path / "accepted.csv"]
    done = run(*network, tmp_path / "images", *options, "--out", tmp_path / "second")
    keys = {finding["key"] for finding in json.loads(done.stdout)["findings"]}
    assert keys
    assert all(key.startswith("confirmed/tumour/tumour") for key in keys)
    watching = [*options[:11], "--watch", tmp_path / "images", "--out", tmp_path / "watch"]
    said = json.loads(run(*network, tmp_path / "new", *watching).stdout)
    assert said["images"] == 200
    assert said["odd"] <= 0.15 * said["judged"]
    assert (tmp_path / "watch" / "index.html").exists()
