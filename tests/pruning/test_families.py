"""Networks of torchvision's families lose half of their MACs, run, and come back from a folder."""

import importlib.util
import os
import sys
import warnings
from pathlib import Path

import pytest

from niwaki.errors import KeptWarning

PATH = Path(__file__).parents[2] / "benchmarks" / "families.py"
QUICK = {
    "resnet18",
    "resnext50_32x4d",
    "squeezenet1_1",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "mnasnet0_5",
    "googlenet",
    "efficientnet_b0",
    "regnet_x_400mf",
    "regnet_y_400mf",
}


def _load():
    spec = importlib.util.spec_from_file_location("families", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["families"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


families = _load()


@pytest.mark.parametrize("family", families.FAMILIES, ids=lambda family: family.network)
def test_half_the_macs_of_a_family(family):
    if family.network not in QUICK and not os.environ.get("NIWAKI_ALL_FAMILIES"):
        pytest.skip("large; set NIWAKI_ALL_FAMILIES=1 to prune it too")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KeptWarning)
        result = families.measure(
            family
        )  # it runs, saves, loads and compares, and raises otherwise
    assert result.reason == ""
    assert 0.4 < result.kept <= 0.5
    assert 0 < result.params < 1
