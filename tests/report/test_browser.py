"""The pages in a real browser: they open from the disk, and what is on them works."""

import io
import re

import numpy as np
import pytest
from page_runs import PAGES
from PIL import Image

from barriers import barriers
from niwaki.report import write_report

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def joined(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("joined") / "all.html"
    return write_report([runs[name] for name in PAGES], out, heading="All <runs>")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.long)])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_and_anybody_can_use_it(runs, name, scheme, look):
    assert not barriers(look(runs[name] / "index.html", color_scheme=scheme))


@pytest.mark.long
def test_anybody_can_use_a_joined_report(joined, look):
    assert not barriers(look(joined))


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_a_phone(runs, name, look):
    page = look(runs[name] / "index.html", viewport={"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    small = page.evaluate(
        "[...document.querySelectorAll('main p, main td, main figcaption, main label')]"
        ".filter(e => e.offsetParent && parseFloat(getComputedStyle(e).fontSize) < 12).length"
    )
    assert small == 0
    assert not page.locator(".toc details").get_attribute("open")


def test_all_runs_on_one_page(joined, look):
    page = look(joined)
    assert page.title() == "All <runs>"
    links = page.locator(".toc a")
    assert links.count() > 20
    links.nth(5).click()
    assert re.search(r"#run-\d", page.url)


def test_a_chart_tells_its_values_to_pointers_and_keys(runs, look):
    page = look(runs["prune"] / "index.html")
    chart = page.locator(".chart").first
    tip = chart.locator(".tip")
    assert tip.is_hidden()
    chart.locator(".dot").nth(1).hover()
    assert tip.inner_text().startswith("step 1: ")
    page.mouse.move(0, 0)
    assert tip.is_hidden()
    chart.locator("svg").first.focus()
    seen = []
    for key in ("ArrowRight", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
        seen.append(tip.inner_text().partition(":")[0])
    assert seen == ["step 0", "step 1", "step 2"]  # the whole network is at the left
    page.keyboard.press("Escape")
    assert tip.is_hidden()


def test_the_axis_is_switched_and_lines_are_hidden(runs, look):
    page = look(runs["prune"] / "index.html")
    charts = page.locator(".switched .chart")
    assert [charts.nth(n).is_visible() for n in range(4)] == [True, False, False, False]
    page.get_by_role("button", name="milliseconds").click()
    assert [charts.nth(n).is_visible() for n in range(4)] == [False, False, False, True]
    page = look(runs["criteria"] / "index.html")
    first = page.locator(".chart").first
    first.get_by_role("button", name="random").click()
    lines = first.locator("g.line")
    assert [lines.nth(n).is_visible() for n in range(2)] == [True, False]


def test_the_slider_moves_the_network_and_its_heatmaps(runs, look):
    page = look(runs["prune"] / "index.html")
    slider = page.get_by_label("step of pruning")
    said, bar = page.locator(".by-step output"), page.locator(".network .kept").first
    film = page.locator(".film .heat").first
    place = "e => getComputedStyle(e).objectPosition"
    last = said.inner_text(), float(bar.get_attribute("height")), film.evaluate(place)
    assert last[0].startswith("step 3, ")
    assert last[2].startswith("100%")
    slider.focus()
    page.keyboard.press("Home")
    first = said.inner_text(), float(bar.get_attribute("height")), film.evaluate(place)
    assert first[0].startswith("step 0, ")
    assert first[1] > last[1]
    assert first[2].startswith("0%")
    page.keyboard.press("ArrowRight")
    assert said.inner_text().startswith("step 1, ")
    assert slider.get_attribute("aria-valuetext") == said.inner_text()
    shown = page.locator(".answers").first.locator("li:visible")
    assert shown.count() == 1


def test_colours_opacity_and_overlay(runs, look):
    page = look(runs["explain"] / "index.html")
    heat = page.locator("button.pair .heat").first
    filtered = "e => getComputedStyle(e).filter"
    assert "map-red-blue" in heat.evaluate(filtered)
    page.locator("select.colours").select_option("on-black")
    assert "map-on-black" in heat.evaluate(filtered)
    assert page.locator(".photo.under").count() == 0
    page.locator("input.over").check()
    assert "over-on-black" in heat.evaluate(filtered)
    assert page.locator(".photo.under").first.is_visible()
    page.locator("input.cover").evaluate(
        "e => { e.value = 0.4; e.dispatchEvent(new Event('input')) }"
    )
    assert heat.evaluate("e => getComputedStyle(e).opacity") == "0.4"


def test_a_colour_map_gives_grey_levels_their_colours(runs, look):
    page = look(runs["explain"] / "index.html")
    bar = page.locator(".ramp").first
    box = bar.bounding_box()
    picture = page.screenshot(clip={**box, "height": 2, "y": box["y"] + 4})
    line = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)[0]
    left, middle, right = line[2], line[len(line) // 2], line[-3]
    assert left[2] > left[0] + 40  # blue against
    assert right[0] > right[2] + 40  # red for
    assert middle.min() > 235  # white neither


def test_the_gallery_is_searched_filtered_and_sorted(runs, look):
    page = look(runs["filters"] / "index.html")
    cards = page.locator(".filter-card")
    count = cards.count()
    assert page.locator(".tools .count").inner_text() == f"{count} of {count} shown"
    page.get_by_label("Search").fill("svg 3")
    shown = page.locator(".filter-card:visible")
    assert 0 < shown.count() < count
    assert all("svg" in shown.nth(n).get_attribute("data-words") for n in range(shown.count()))
    page.get_by_label("Search").fill("")
    page.locator("select.sort").select_option("class_selectivity")
    group = page.locator(".cards").first.locator(".filter-card")
    values = [float(group.nth(n).get_attribute("data-class_selectivity") or -1)
              for n in range(group.count())]  # fmt: skip
    assert values == sorted(values, reverse=True)
    page.get_by_role("button", name="reverse").click()
    turned = [one.get_attribute("data-class_selectivity") for one in group.all()]
    known = [float(value) for value in turned if value]
    assert known == sorted(known)
    page.locator("select.only").select_option("twins")
    assert all(
        "twins" in one.get_attribute("data-kinds")
        for one in page.locator(".filter-card:visible").all()
    )


def test_a_patch_is_enlarged_with_its_class_and_file(runs, look):
    page = look(runs["filters"] / "index.html")
    patch = page.locator(".hits button").first
    said = patch.get_attribute("title")
    assert said.startswith("class ")
    assert ".png; strength" in said
    patch.focus()
    page.keyboard.press("Enter")
    dialog = page.locator("dialog.large")
    assert dialog.is_visible()
    assert dialog.locator(".words").inner_text().split() == said.split()
    assert dialog.locator("img").count() == 2
    page.keyboard.press("Escape")
    assert dialog.is_hidden()
    page = look(runs["explain"] / "index.html")
    page.locator("button.pair").first.click()
    assert page.locator("dialog.large img").count() == 2
    page.get_by_role("button", name="Close").click()
    assert page.locator("dialog.large").is_hidden()


def test_a_group_of_heatmaps_shows_its_images(runs, look):
    page = look(runs["audit"] / "index.html")
    part = page.locator(".clusters").first
    images = part.locator(".photos > li:visible")
    everything = images.count()
    button = part.locator(".switch button").nth(1)
    button.click()
    number = button.get_attribute("data-cluster")
    assert images.count() > 0
    assert {one.get_attribute("data-cluster") for one in images.all()} == {number}
    assert part.locator(".chosen").inner_text().startswith(f"group {number}")
    dim = part.locator("circle.dim").count()
    assert 0 < dim < part.locator("circle[data-words]").count()
    dot = part.locator("circle[data-words]").first
    dot.click()
    assert dot.get_attribute("data-words") in part.locator(".chosen").text_content()
    part.locator("figure.scatter svg").focus()
    page.keyboard.press("ArrowRight")
    assert part.locator("circle.at").count() == 1
    page.keyboard.press("Escape")
    assert part.locator("circle.dim").count() == 0
    assert images.count() == everything


def test_a_finding_is_reached_from_the_top_and_shows_its_examples(runs, look):
    page = look(runs["audit"] / "index.html")
    page.locator("#main .finding > a, #main .finding a").first.click()
    target = page.url.partition("#")[2]
    finding = page.locator(f"[id='{target}']")
    assert finding.locator(".example").count() > 4
    finding.locator(".example button").first.click()
    assert "image " in page.locator("dialog.large .words").inner_text()


def test_the_first_tab_skips_to_the_content(runs, look):
    page = look(runs["car"] / "index.html")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_a_page_prints_without_its_tools(runs, look):
    page = look(runs["filters"] / "index.html")
    page.emulate_media(media="print")
    assert page.locator(".toc").is_hidden()
    assert page.locator(".tools").first.is_hidden()
    assert page.locator(".filter-card").first.is_visible()
