"""Tiles that all tests of the audit share."""

import pytest

from niwaki.datasets import draw_tissue


@pytest.fixture(scope="session")
def tiles():
    return draw_tissue(200, seed=5)
