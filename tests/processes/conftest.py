"""A crew of processes, and a launcher, for all tests of a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from crews import Crew

from launching import Launcher


@pytest.fixture(scope="session")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    found = Crew(tmp_path_factory.mktemp("crew"))
    yield found
    found.stop()


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    found = Launcher(tmp_path_factory.mktemp("launched"))
    yield found
    found.stop()
