"""The page is used in a real browser, from the disk: no network, no error, the right pictures."""

import re
from urllib.parse import parse_qs, unquote

import numpy as np
import pytest
from PIL import Image
from synthetic import picture, write_slide
from typer.testing import CliRunner

from barriers import barriers
from niwaki.cli import app
from niwaki.report import write_report

pytestmark = pytest.mark.slow

pytest.importorskip("openslide", reason="the extra slides is not installed")

NEST = (700, 500, 940, 780)
NAME = "<script>alert(1)<\\script>\"'&\n.tif"
TUMOUR = "\"'><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def folder(slide_command, tmp_path_factory):
    home = tmp_path_factory.mktemp("viewed")
    slide = write_slide(home / NAME, picture(1280, 1536, NEST), mpp=0.5)
    words = ["--mpp", "0.5", "--method", "input_t_gradient", "--method", "gradient"]
    words += ["--names", f"<b>other</b>,{TUMOUR}"]
    done = CliRunner().invoke(app, slide_command(home, slide, "mapped", home / "out", *words))
    assert done.exit_code == 0, done.output
    return home / "out"


class Seen:
    """A page with all that it has complained of and asked for."""

    def __init__(self, chromium, folder, size=(1280, 800), hash="", scheme="light"):
        viewport = {"width": size[0], "height": size[1]}
        self.page = chromium.new_page(viewport=viewport, color_scheme=scheme)
        self.page.set_default_timeout(300_000)  # a busy machine is slow, not wrong
        self.complaints, self.asked = [], []
        self.page.on("console", lambda said: self.complaints.append(said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda said: (self.complaints.append(said.message), said.dismiss()))
        self.page.on("requestfailed", lambda request: self.complaints.append(request.url))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(f"{(folder / 'viewer.html').as_uri()}{hash}")
        self.wait("!!window.niwakiViewer && window.niwakiViewer.ready()")
        self.page.wait_for_timeout(700)

    def state(self):
        found = parse_qs(self.page.evaluate("location.hash").removeprefix("#"))
        return {name: values[0] for name, values in found.items()}

    def click(self, x, y):
        """Click what lies at a place of the slide, in its pixels."""
        where = self.page.evaluate(
            """([x, y]) => { const base = window.niwakiViewer.base;
            const point = base.viewport.viewportToViewerElementCoordinates(
              new OpenSeadragon.Point(x / 1536, y / 1536));
            const box = base.element.getBoundingClientRect();
            return [box.x + point.x, box.y + point.y]; }""",
            [x, y],
        )
        self.page.mouse.click(*where)
        self.page.wait_for_timeout(700)
        return where

    def shot(self, tmp_path):
        self.page.screenshot(path=tmp_path / "shot.png")
        return np.asarray(Image.open(tmp_path / "shot.png").convert("RGB")).astype(int)

    def choose(self, name, value):
        self.page.locator(f"#{name}").select_option(value)
        self.page.wait_for_timeout(700)

    def slide_to(self, name, value):
        self.page.locator(f"#{name}").fill(str(value))
        self.page.wait_for_timeout(300)

    def hold(self, key, until):
        """Hold a key as long as it takes: the viewer looks at keys once a frame."""
        self.page.keyboard.down(key)
        self.wait(until)
        self.page.keyboard.up(key)

    def wait(self, until):
        """Wait for a condition; the page's policy lets Playwright not do it by itself."""
        for _ in range(600):
            if self.page.evaluate(until):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(until)

    def close(self):
        self.page.close()
        assert self.complaints == []
        assert self.asked
        assert all(url.startswith(("file://", "data:")) for url in self.asked), self.asked


@pytest.mark.slow
def test_the_page_is_used(chromium, folder, tmp_path):
    seen = Seen(chromium, folder)
    page = seen.page
    assert page.title() == " ".join(NAME.split())
    assert page.locator("h1").text_content() == NAME
    assert page.locator("img, b").count() == 0
    assert page.locator("#layer option").count() == 4
    x, y = (int(side) for side in seen.click(820, 640))  # the middle of the nest
    assert TUMOUR in page.locator("#numbers").inner_text()
    assert page.locator("#tile-name").inner_text().startswith("Tile in row")
    assert page.locator("#small-slide canvas").count() == 1
    assert page.locator("#small-map canvas").count() == 1
    chosen = seen.state()["tile"]

    seen.choose("layer", "-1")
    plain = seen.shot(tmp_path)[y + 40, x + 40]
    assert np.abs(plain - (90, 40, 140)).max() < 25
    seen.choose("layer", "1")  # the relevance is at its strongest there, in red
    seen.slide_to("opacity", 100)
    red = seen.shot(tmp_path)[y + 40, x + 40]
    assert red[0] > 80
    assert red[0] > 2 * max(red[1], red[2])
    seen.choose("table", "orange and purple")
    orange = seen.shot(tmp_path)[y + 40, x + 40]
    assert np.abs(orange - red).max() > 20
    outside = seen.shot(tmp_path)[y + 40, x + 40 + 110]
    seen.slide_to("threshold", 50)  # around the nest there is none: the slide shows through
    through = seen.shot(tmp_path)
    assert np.abs(through[y + 40, x + 40 + 110] - outside).max() > 20
    assert np.abs(through[y + 40, x + 40] - orange).max() < 10

    seen.choose("region", "0")
    assert page.locator(".outline path").count() == 2
    box = page.locator(".outline").bounding_box()
    assert box["width"] / box["height"] == pytest.approx(240 / 280, rel=0.05)
    state = seen.state()
    assert (state["layer"], state["opacity"], state["threshold"]) == ("1", "100", "50")
    assert (state["region"], state["tile"]) == ("0", chosen)
    hash = page.evaluate("location.hash")
    seen.close()
    again = Seen(chromium, folder, hash=hash)
    found = again.state()
    for name in ("layer", "opacity", "threshold", "colours", "region", "tile"):
        assert found.get(name, state[name]) == state[name], name
    assert again.page.locator("#layer").input_value() == "1"
    assert again.page.locator("#table").input_value() == "orange and purple"
    before, after = (one.get("zoom", state["zoom"]) for one in (state, found))
    assert float(after) == pytest.approx(float(before), rel=0.01)
    again.close()


@pytest.mark.slow
def test_the_keyboard_is_enough(chromium, folder):
    seen = Seen(chromium, folder)
    page = seen.page
    zoom = "window.niwakiViewer.base.viewport.getZoom()"
    middle = "window.niwakiViewer.base.viewport.getCenter().x"
    page.locator("#slide .openseadragon-canvas").focus()
    before = page.evaluate(zoom)
    seen.hold("+", until=f"{zoom} > {before}")
    x = page.evaluate(middle)
    seen.hold("ArrowRight", until=f"{middle} > {x}")
    page.keyboard.press("Enter")
    page.locator("#tile-name").wait_for()
    page.locator("#home").focus()
    page.keyboard.press("Enter")
    page.wait_for_timeout(700)
    assert page.evaluate(zoom) == pytest.approx(before, rel=0.01)
    page.locator("#layer").focus()
    page.keyboard.press("ArrowDown")
    page.wait_for_timeout(500)
    assert page.locator("#layer").input_value() == "1"
    seen.close()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_anybody_can_use_the_page(chromium, folder, scheme):
    seen = Seen(chromium, folder, scheme=scheme)
    seen.choose("region", "0")
    seen.click(820, 640)
    assert not barriers(seen.page)
    seen.close()


def test_on_a_phone_all_is_there(chromium, folder):
    seen = Seen(chromium, folder, size=(390, 844))
    page = seen.page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for name in ("layer", "opacity", "threshold", "region"):
        box = page.locator(f"#{name}").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
    assert page.locator("#stage").bounding_box()["height"] > 400
    seen.close()


def test_a_report_elsewhere_leads_to_the_page(folder, tmp_path):
    page = write_report([folder], tmp_path / "joined.html")
    (link,) = set(re.findall('<a href="([^"#]+)"', page.read_text()))
    assert (tmp_path / unquote(link)).samefile(folder / "viewer.html")
