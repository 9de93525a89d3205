"""Networks of torchvision's families lose half of their MACs, run, and come back from a folder."""

import importlib.util
import sys
import warnings
from pathlib import Path

import pytest

from niwaki.errors import KeptWarning

PATH = Path(__file__).parents[2] / "benchmarks" / "families.py"
QUICK = {
    "resnet18",
    "squeezenet1_1",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "mnasnet0_5",
    "googlenet",
    "regnet_y_400mf",
}


def _load():
    spec = importlib.util.spec_from_file_location("families", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["families"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


families = _load()


FAMILIES = [
    pytest.param(
        family,
        id=family.network,
        marks=() if family.network in QUICK else pytest.mark.long,
    )
    for family in families.FAMILIES
]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_half_the_macs_of_a_family(family):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KeptWarning)
        result = families.measure(
            family
        )  # it runs, saves, loads and compares, and raises otherwise
    assert result.reason == ""
    assert 0.4 < result.kept <= 0.5
    assert 0 < result.params < 1
