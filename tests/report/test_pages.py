"""The pages of runs without a browser: what is on them, and that names are words."""

import csv
import html
import json
import re
from html.parser import HTMLParser

import pytest
from page_runs import COMMANDS, PAGES
from typer.testing import CliRunner

import niwaki
from niwaki.cli import app
from niwaki.errors import DataError
from niwaki.report import write_report


class Tags(HTMLParser):
    """The tags of a page, and the words between them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.ids = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_data(self, data):
        self.words.append(data)


def page_of(folder):
    return Tags((folder / "index.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", PAGES)
def test_names_are_words_on_every_page(runs, name):
    found = page_of(runs[name])
    assert sum(tag == "script" for tag, _ in found.tags) == 1
    for tag, attributes in found.tags:
        assert not [key for key in attributes if key.startswith("on") or key == "style"], tag
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "#").startswith("#")
    assert len(found.ids) == len(set(found.ids))
    links = {a["href"][1:] for tag, a in found.tags if tag == "a" and "href" in a}
    assert links <= set(found.ids)
    text = (runs[name] / "index.html").read_text(encoding="utf-8")
    without_classes = ("evaluate", "criteria", "greedy")
    assert "&lt;script&gt;alert(1)" in text or name in without_classes
    assert "<script>alert" not in text
    assert "49" not in re.findall(r"two\nlines &amp; (.{2})", text)


@pytest.mark.parametrize("name", PAGES)
def test_every_page_says_how_it_was_made_and_what_to_distrust(runs, name):
    text = (runs[name] / "index.html").read_text(encoding="utf-8")
    made = json.loads((runs[name] / "run.json").read_text(encoding="utf-8"))
    assert "What to distrust" in text
    assert "How this was made" in text
    if name in COMMANDS:
        assert made["command"] == COMMANDS[name].split()[0]
        assert made["machine"] in text
        assert made["date"] in text
        assert f"niwaki {niwaki.__version__}" in text
    if name != "watch":  # whose provenance the command adds
        assert str(made["fingerprint"])[:8] in text or isinstance(made["fingerprint"], dict)


def test_a_page_shows_the_numbers_of_its_run(runs):
    text = (runs["prune"] / "index.html").read_text(encoding="utf-8")
    rows = json.loads((runs["prune"] / "trajectory.json").read_text())
    for row in rows:
        assert f"{row['macs']:,}" in text
        assert f"step {row['step']}: {row['accuracy']:.2%}" in text
    for name in ("MACs", "parameters", "units", "milliseconds"):
        assert f'data-name="{name}"' in text
    steps = json.loads((runs["prune"] / "steps.json").read_text())
    assert len(steps["photos"]) == 4
    widths = [list(row["units"].values()) for row in steps["steps"]]
    assert f'data-units="{" ".join(str(row[0]) for row in widths)}"' in text


def test_the_answers_that_changed_are_counted(runs):
    found = json.loads((runs["prune"] / "changed.json").read_text())
    rows = json.loads((runs["prune"] / "trajectory.json").read_text())
    gained = round(found["images"] * (rows[-1]["accuracy"] - rows[0]["accuracy"]))
    assert found["won"] - found["lost"] == gained
    assert len(found["shown"]) == min(24, found["changed"])
    assert all(image["before"] != image["after"] for image in found["shown"])


def test_the_table_by_class_adds_up(runs):
    with (runs["car"] / "car.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    told = json.loads((runs["car"] / "index.json").read_text())
    assert len(rows) == len(told["units"])
    for row in rows:
        by_class = [float(value) for key, value in row.items() if key.startswith("class ")]
        assert len(by_class) == 3
        assert float(row["car"]) == pytest.approx(sum(by_class) / 3)  # as many images of each


def test_several_runs_are_joined(runs, tmp_path):
    out = tmp_path / "all.html"
    folders = [str(runs[name]) for name in PAGES]
    done = CliRunner().invoke(app, ["report", *folders, "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["bytes"] == out.stat().st_size
    found = Tags(out.read_text(encoding="utf-8"))
    chapters = [a for tag, a in found.tags if tag == "article" and a.get("class") == "chapter"]
    assert len(chapters) == len(PAGES)
    assert len(found.ids) == len(set(found.ids))
    again = CliRunner().invoke(app, ["report", str(runs["car"]), "--out", str(out)])
    assert "--force" in str(again.exception)
    again = CliRunner().invoke(app, ["report", str(runs["car"]), "--out", str(out), "--force"])
    assert again.exit_code == 0


def test_a_page_can_be_made_again(copied):
    folder = copied("car")
    before = (folder / "index.html").read_bytes()
    (folder / "index.html").unlink()
    assert write_report(folder) == folder / "index.html"
    assert (folder / "index.html").read_bytes() == before


@pytest.mark.parametrize("name", ["run.json", "trajectory.json", "steps.json", "pictures.zip"])
def test_a_damaged_file_is_named_and_the_page_stays(copied, name):
    folder = copied("prune")
    before = (folder / "index.html").read_bytes()
    (folder / name).write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=name):
        write_report(folder)
    assert (folder / "index.html").read_bytes() == before


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="no folder of a run"):
        write_report(tmp_path / "missing")
    with pytest.raises(DataError, match="nothing that a report could show"):
        write_report(tmp_path)
    with pytest.raises(DataError, match="say where it goes"):
        write_report([tmp_path, tmp_path])
    with pytest.raises(DataError, match="needs the folder"):
        write_report([])


def test_a_section_is_there_if_its_data_are(copied):
    folder = copied("prune")
    (folder / "steps.json").unlink()
    text = write_report(folder).read_text(encoding="utf-8")
    assert "Step by step" not in text
    assert "Accuracy and cost" in text
    assert 'data-name="milliseconds"' not in text


def test_without_photographs_the_network_is_still_drawn(copied):
    folder = copied("prune")
    steps = json.loads((folder / "steps.json").read_text(encoding="utf-8"))
    (folder / "steps.json").write_text(json.dumps({**steps, "photos": []}), encoding="utf-8")
    text = write_report(folder).read_text(encoding="utf-8")
    assert "What is left of each layer" in text
    assert "What the network looks at" not in text


def test_a_greedy_search_is_told_step_by_step(runs):
    text = (runs["greedy"] / "index.html").read_text(encoding="utf-8")
    about = json.loads((runs["greedy"] / "niwaki.json").read_text(encoding="utf-8"))
    steps = json.loads((runs["greedy"] / "trajectory.json").read_text(encoding="utf-8"))
    section = text.partition("in the order of their removal</h2>")[2].partition("</section>")[0]
    rows = re.findall(r"<tr><th.*?>(\d+)</th><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td>", section)
    assert len(rows) == 2
    for row, gone, step in zip(rows, about["settings"]["removals"], steps[1:], strict=True):
        assert row[0] == str(step["step"])
        assert html.unescape(row[1]) == f"{gone['layer']} {gone['unit']}"
        assert row[2:] == (f"{step['validation']:.2%}", f"{step['accuracy']:.2%}")
