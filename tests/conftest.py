"""What all tests share."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

# As the environment says; beside other processes one thread, as two each would wait for each other.
torch.set_num_threads(
    int(os.environ.get("OMP_NUM_THREADS", 1 if "PYTEST_XDIST_WORKER" in os.environ else 2))
)

# The same examples in every run: a change is judged by what it changes. New examples are looked
# for with `pytest --hypothesis-profile=explore`.
settings.register_profile("same", derandomize=True)
settings.register_profile("explore", derandomize=False)
settings.load_profile("same")


# Folders whose tests share something that takes long to make, such as a run of every command.
TOGETHER = ("tests/processes", "tests/report")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Let the tests of a file run in one process, so that what they share is made once."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return next((folder for folder in TOGETHER if file.startswith(folder)), file)

    return ByFile(config, log)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Let what PyTorch initialises by chance not depend on which tests ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def no_traces(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let the tests write nothing into anybody's home."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and weights, which are not ours to distribute."""
    default = Path(__file__).parents[2] / "shared"
    folder = Path(os.environ.get("NIWAKI_TEST_DATA", default))
    if not (folder / "data").is_dir():
        pytest.skip(f"no test data in {folder}; set NIWAKI_TEST_DATA")
    return folder


CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Start a browser; without one, the tests that look at pages are skipped.

    All tests of a process share it: Playwright starts once.
    """
    if not Path(CHROMIUM).exists():
        pytest.skip(f"there is no browser at {CHROMIUM}: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()
