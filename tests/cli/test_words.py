"""Names of files, classes and layers are words: on terminals, on pages, in tables and pictures."""

import base64
import csv
import hashlib
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.table import Table
from typer.testing import CliRunner

from niwaki.cli import app, main
from niwaki.cli._heatmaps import table
from niwaki.files import write_csv, write_json
from niwaki.pruning import Run
from niwaki.report._figures import save_figure
from niwaki.terminal import Terminal, clean, headed

NAMES = [
    "[/b]", "[small]", "[red]x[/red]", "\\[x", "a[b", "[link=http://x]y[/link]", ":smile:",
    "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x9b31m", "\u202eevil", "a\rb", "\x00", "\udcff",
    "ü", "日本", "$x^$", "$\\frac", "{{ 7 * 7 }}", "<script>alert(1)</script>", "=1+1",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_terminal_shows_names_as_they_are(name, capfd):
    terminal = Terminal(width=200)
    cells = Table(name)
    cells.add_row(name)
    for shown in (name, cells, headed("wrote", name), table([{name: name}])):
        terminal.print(shown)
        out = capfd.readouterr().out
        assert clean(name) in out
        assert not set(out) & {"\x1b", "\x9b", "\x07", "\r", "\0", "\u202e"}


def test_what_cannot_be_shown_is_written_out():
    assert clean("a\x1b[31m") == "a\\x1b[31m"
    assert clean("\u202ex\udcff\x00") == "\\u202ex\\udcff\\x00"
    assert clean("ä 日本\n\t[x]") == "ä 日本\n\t[x]"


SMALL = """
from torch import nn
def small():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Return a working directory with classes and files of hostile names, and a network."""
    monkeypatch.chdir(tmp_path)
    for name in ("[b]x[", "=cmd", "<img src=x onerror=alert(1)>", "$a^"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(6):
            file = tmp_path / "photos" / name / f"[small]{number}\x1b[31m.png"
            Image.effect_noise((8, 8), 90 + number).convert("RGB").save(file)
    (tmp_path / "nets.py").write_text(SMALL)
    return tmp_path


INPUTS = ["--size", "8", "--mean", "0,0,0", "--std", "1,1,1", "--threads", "1"]


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def test_commands_live_with_hostile_names(work):
    done = run(
        "explain", "nets.py:small", "photos", *INPUTS, "--method", "gradient", "--limit", "4"
    )
    assert done.exit_code == 0
    for shown in ("[small]", "\\x1b[31m", "[b]x[", "<img src=x onerror=alert(1)>"):
        assert shown in done.stdout
    assert "\x1b" not in done.stdout
    rows = json.loads((work / "heatmaps" / "images.json").read_text())
    assert "\x1b" in rows[0]["image"]  # data are data


def test_pages_run_nothing_but_their_own(work):
    arguments = ["filters", "nets.py:small", "photos", *INPUTS, "--steps", "0", "--no-heatmaps"]
    assert run(*arguments, "--limit", "12").exit_code == 0
    page = (work / "filters" / "index.html").read_text()
    check_page(page, scripts=1)
    assert "onerror" in page  # as text
    cells = list(csv.DictReader((work / "filters" / "filters.csv").read_text().splitlines()))
    assert not any(value.startswith(("=", "@")) for row in cells for value in row.values())
    assert all(float(row["filter"]) >= 0 for row in cells)


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.texts, self.inside = [], {"script": [], "style": []}, None

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.inside = tag if tag in self.texts else None

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside:
            self.texts[self.inside].append(data)


def check_page(page, scripts):
    """Check the policy against what is in the page, as a browser does."""
    tags = Tags()
    tags.feed(page)
    (rule,) = [a["content"] for t, a in tags.found if a.get("http-equiv")]
    allowed = dict(part.split(" ", 1) for part in rule.split("; "))
    assert allowed["default-src"] == allowed["base-uri"] == allowed["form-action"] == "'none'"
    assert "unsafe" not in rule
    assert allowed["img-src"] == "data:"
    assert len(tags.texts["script"]) == scripts
    for kind in ("script", "style"):
        for text in tags.texts[kind]:
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in allowed[f"{kind}-src"]
    for tag, attributes in tags.found:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        assert attributes.get("src", "data:").startswith("data:")


@pytest.mark.parametrize(
    ("value", "cell"),
    [("=1+1", "'=1+1"), ("+1", "'+1"), ("-1", "'-1"), ("@x", "'@x"), ("\tx", "'\tx"),
     (-1.5, "-1.5"), (-3, "-3"), ("a=b", "a=b"), ("lrp.epsilon", "lrp.epsilon"), (None, "")],
)  # fmt: skip
def test_a_table_runs_no_formula(value, cell, tmp_path):
    write_csv(tmp_path / "a.csv", [{"name": value}])
    with (tmp_path / "a.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["name"], [cell]]


@pytest.mark.parametrize("name", NAMES)
def test_pictures_and_json_take_every_name(name, tmp_path):
    figure = Figure(figsize=(1, 1))
    axis = figure.subplots()
    axis.set_title(name)
    axis.plot([0, 1], label=f"{name} ")
    axis.legend()
    save_figure(tmp_path / "a.png", figure)
    Image.open(tmp_path / "a.png").verify()
    write_json(tmp_path / "a.json", {name: [name]})
    assert json.loads((tmp_path / "a.json").read_text()) == {name: [name]}


def called(monkeypatch, capfd, *arguments):
    monkeypatch.setattr(sys, "argv", ["niwaki", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, *capfd.readouterr()


BODY = """
from torch import nn
{}
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        {}
        self.l = nn.Conv2d(3, 4, 8)
    def forward(self, x):
        {}
        return self.l(x).flatten(1)
"""


@pytest.mark.parametrize("place", ["module", "init", "forward"])
@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("import sys; sys.exit(0)", "SystemExit"),
        ("raise SystemExit", "SystemExit"),
        ("raise KeyError('here[/b]')", "here[/b]"),
        ("raise BaseException('odd')", "odd"),
        ("raise StopIteration", "StopIteration"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("raise OSError(5, 'disk')", "disk"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_code_that_fails_is_an_error(work, monkeypatch, capfd, place, statement, words):
    parts = [statement if place == each else "pass" for each in ("module", "init", "forward")]
    (work / "bad.py").write_text(BODY.format(*parts))
    options = [*INPUTS, "--method", "gradient", "--out", "x", "--limit", "1"]
    code, _, err = called(monkeypatch, capfd, "explain", "bad.py:Net", "photos", *options)
    assert code == 2
    assert re.search(r"error: ", err)
    assert words in err
    assert "Traceback" not in err
    assert not (work / "x").exists()


def test_what_a_model_prints_stays_out_of_json(work, monkeypatch, capfd):
    (work / "loud.py").write_text(BODY.format("print('hello')", "print('hello')", "pass"))
    options = [*INPUTS, "--method", "gradient", "--out", "x", "--limit", "1", "--json"]
    code, out, err = called(monkeypatch, capfd, "explain", "loud.py:Net", "photos", *options)
    assert code == 0
    json.loads(out)
    assert err.count("hello") >= 2


@pytest.mark.slow
def test_several_processes_are_refused(work, monkeypatch, capfd):
    import torch

    from niwaki.errors import NiwakiError
    from niwaki.models import build
    from niwaki.pruning import fine_tune, prune

    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "4")):
        with monkeypatch.context() as patched:
            patched.setenv(name, value)
            code, _, err = called(patched, capfd, "explain", "nets.py:small", "photos", *INPUTS)
            assert code == 2
            assert "without torchrun" in err or (name == "RANK" and not err)  # one tells of it
            model, data = build("nets.py:small"), (torch.rand(4, 3, 8, 8), torch.arange(4))
            with pytest.raises(NiwakiError, match="launcher"):
                fine_tune(model, data)
            with pytest.raises(NiwakiError, match="launcher"):
                prune(model, data, "weight", run=Run(folder=work / "run"))
            assert not (work / "run").exists()
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert called(monkeypatch, capfd, "methods")[0] == 0


def test_python_m_niwaki(work):
    (work / "typer.py").write_text("raise SystemExit('taken from the working directory')")
    done = subprocess.run(
        [sys.executable, "-m", "niwaki", "--version"], capture_output=True, text=True, cwd=work,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("niwaki 0")


@pytest.mark.slow
def test_a_fork_in_the_code_of_a_model_does_no_work_twice(work):
    (work / "forks.py").write_text(f"import os\nos.fork()\n{SMALL}\n")
    code = "from niwaki.models import build; build('forks.py:small'); print('once')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=work,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}, check=False,
    )  # fmt: skip
    assert done.stdout == "once\n"
    assert "has forked" in done.stderr
