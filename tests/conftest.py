"""What all tests share."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and weights, which are not ours to distribute."""
    default = Path(__file__).parents[2] / "shared"
    folder = Path(os.environ.get("NIWAKI_TEST_DATA", default))
    if not (folder / "data").is_dir():
        pytest.skip(f"no test data in {folder}; set NIWAKI_TEST_DATA")
    return folder
