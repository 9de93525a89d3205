"""Every criterion is known as soon as the package is imported, wherever it lives."""

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_criteria_of_other_rooms_are_known_without_importing_them() -> None:
    code = (
        "import torch, niwaki; m = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), "
        "torch.nn.Linear(4, 2)).eval(); d = (torch.randn(6, 3), torch.arange(6) % 2); "
        "assert 'car' in niwaki.criteria.names(); niwaki.score(m, d, 'car')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
