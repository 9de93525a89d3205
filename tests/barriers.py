"""What keeps people from using a page, as axe finds it."""

import pytest


def barriers(page):
    """Return the violations that are more than minor on a page, with all its details open."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is missing")
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    return [
        (one["id"], one["nodes"][0]["html"][:200], one["nodes"][0]["failureSummary"])
        for one in axe.Axe().run(page).response["violations"]
        if one["impact"] != "minor"
    ]
