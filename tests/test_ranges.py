"""Every number that a public function takes has a range, which is checked before anything else."""

import inspect
import re
from dataclasses import is_dataclass
from importlib import import_module

import numpy as np
import pytest
import torch

import niwaki
from niwaki import attribution, criteria
from niwaki.errors import RangeError
from niwaki.machine import parse_bytes, physical, shown
from niwaki.ranges import INSIDE, SEED, SHARE, STEPS, Range, checked

ROOMS = [name for name in niwaki.__all__ if inspect.ismodule(getattr(niwaki, name))]
# Positions, lengths and counts that are checked against what they index, or that others hand in.
ELSEWHERE = {
    ("Collection", "read"),
    ("Field", "at"),
    ("Field", "inside"),
    ("Cause", "evidence"),
    ("ErrorRates", "evidence"),
    ("Finding", "outline"),
    ("Images", "image"),
    ("Images", "stored"),
    ("Images", "class_name"),
    ("Images", "mapped"),
    ("Images", "numbered"),
    ("Material", "members"),
    ("PrunedWeights", "masks"),
    ("Profile", "rows"),
    ("Tissue", "select"),
    ("Criterion", "prepared"),
    ("Combination", "prepared"),
    ("RebuiltError", "prepared"),
    ("Contender", "create"),
    ("Comparison", "select"),
    ("Scores", "overlap"),
    ("Strongest", "empty"),
    ("Strongest", "of"),
    ("Strongest", "first"),
    ("Propagating", "attribute"),
    ("Slide", "scale"),
    ("Slide", "canvas"),
    ("Slide", "check"),
    ("Slide", "read"),
    ("Slide", "overview"),
    ("Tissue", "shares"),
    ("Store", "block"),
    ("Store", "has"),
    ("Store", "read"),
    ("Store", "put"),
    ("Store", "add"),
    ("Store", "put_block"),
}
UNCHECKED = {
    "check_labels", "open_data", "served", "removal_order", "save_filters", "write_report",
    "before_and_after", "load_masks", "per_class", "Images", "Estimate", "Origin.of", "Part",
    "number_classes", "warn_near_chance", "Relabelled", "Importance", "Combination", "Car",
    "Slide", "Store", "is_mine", "Car.prepared", "Images.subset",
}  # fmt: skip
# Parameters whose numbers are many, names beside numbers, or another thing altogether.
OTHER = {"labels", "groups", "target", "order", "marked", "conditions", "parts", "references",
         "max_memory", "started", "outputs", "names", "units", "classes", "copied"}  # fmt: skip


def functions():
    """Public functions, methods of public classes, and what the catalogues make."""
    for room in ROOMS:
        module = import_module(f"niwaki.{room}")
        for name in getattr(module, "__all__", ()):
            found = getattr(module, name)
            if inspect.isfunction(found):
                yield name, found
            elif isinstance(found, type) and not issubclass(found, BaseException):
                yield name, found
                for method, made in vars(found).items():
                    made = getattr(made, "__func__", made)
                    public = inspect.isfunction(made) and not method.startswith("_")
                    if public and (name, method) not in ELSEWHERE:
                        yield f"{name}.{method}", made


FUNCTIONS = dict(functions())


def numeric(function):
    for parameter in inspect.signature(function).parameters.values():
        kind = str(parameter.annotation)
        numbers = re.search(r"\b(int|float)\b", kind)
        if numbers and parameter.name not in OTHER and "Callable" not in kind:
            yield parameter.name


def ranges_of(function):
    made = function.__init__ if isinstance(function, type) else function
    return getattr(made, "__niwaki_ranges__", {})


def is_a_result(found):
    """Whether a class only carries what was computed: it is no one's to give."""
    options = {"FineTune", "Preprocessing", "Sampling", "Stop"}
    rules = isinstance(found, type) and found.__module__.startswith("niwaki.propagation")
    return is_dataclass(found) and found.__name__ not in options and not rules


def test_every_number_of_every_public_function_has_a_range():
    lacking = [
        f"{name}({parameter})"
        for name, function in FUNCTIONS.items()
        if name not in UNCHECKED and not is_a_result(function)
        for parameter in numeric(function)
        if parameter not in ranges_of(function)
    ]
    allowed = {"Operation", "Layer", "Patterns"}
    presets = set(niwaki.propagation.__all__)  # they hand their numbers to rules, which check them
    assert [one for one in lacking if one.partition("(")[0] not in allowed | presets] == []


def test_methods_and_criteria_check_their_numbers_when_they_are_made():
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3)).eval()
    makers = (
        (attribution, lambda name, **options: attribution.create(name, model, **options)),
        (criteria, criteria.create),
    )
    accepted, tried = [], 0
    for room, made in makers:
        for name in room.names():
            known = import_module(f"{room.__name__}._catalogue")._CATALOGUE
            entry = known.get("unit", known)[name]
            for parameter in numeric(getattr(entry, "factory", entry)):
                for wrong in (float("nan"), float("inf"), -1e308, 1e308, "x"):
                    tried += 1
                    try:
                        made(name, **{parameter: wrong})
                        accepted.append((name, parameter, wrong))
                    except ValueError:
                        continue
    assert accepted == []
    assert tried > 100


def outside(found):
    yield float("nan")
    yield float("inf")
    yield True
    yield [] if not found.whole else 1.5
    if found.low > float("-inf"):
        yield found.low if found.open_low else found.low - 1
    if found.high < float("inf"):
        yield found.high if found.open_high else found.high + 1


@pytest.mark.parametrize(
    ("name", "parameter"),
    [(name, parameter) for name, one in FUNCTIONS.items() for parameter in ranges_of(one)],
)
def test_a_number_outside_is_refused_before_anything_is_looked_at(name, parameter):
    function = FUNCTIONS[name]
    found = ranges_of(function)[parameter]
    for wrong in outside(found):
        if wrong == []:
            continue
        untouched = {
            p.name: object()
            for p in inspect.signature(function).parameters.values()
            if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
            and p.name not in ranges_of(function)
        }  # fmt: skip
        call = inspect.signature(function).bind_partial(**{**untouched, parameter: wrong})
        with pytest.raises(RangeError, match=re.escape(f"{parameter} = {wrong}")) as told:
            function(*call.args, **call.kwargs)
        assert str(found) in str(told.value)


def test_ranges_say_and_hold_what_they_should():
    assert str(INSIDE) == "a number between 0 and 1, both excluded"
    assert str(SHARE) == "a number above 0 and up to 1"
    assert str(STEPS) == "a whole number from 1 to 10,000"
    assert str(Range(low=0)) == "a finite number from 0 on"
    assert str(Range()) == "a finite number"
    for value in (0.5, np.float32(0.5), torch.tensor(0.5), np.float64(1e-9)):
        assert value in INSIDE
    for value in (0, 1, float("nan"), float("inf"), "0.5", None, True, 0.5j, torch.tensor(1.0)):
        assert value not in INSIDE
    for value in (1, np.int64(3), torch.tensor(7), 10_000):
        assert value in STEPS
    for value in (1.0, 0, 10_001, True, "3", torch.tensor(1.0)):
        assert value not in STEPS
    assert 2**32 - 1 in SEED
    assert 2**32 not in SEED


def test_checked_looks_at_values_at_sequences_and_at_choices():
    from typing import Literal

    @checked(share=INSIDE, steps=STEPS, layers=STEPS)
    def function(
        share: "float | tuple[float, float] | dict[str, float]" = 0.5,
        *,
        steps: "int | None" = None,
        layers: "int | list[str]" = 3,
        of: Literal["units", "macs"] | None = None,
    ) -> str:
        return f"{share} {steps} {layers} {of}"

    assert function((0.1, 0.2), steps=2, layers=["a"], of="macs") == "(0.1, 0.2) 2 ['a'] macs"
    assert function({"a": 0.1}, of=None) == "{'a': 0.1} None 3 None"
    for wrong in ({"share": (0.5, 2)}, {"share": {"a": 0}}, {"share": "0.5"}, {"share": None},
                  {"steps": "2"}, {"layers": [0]}, {"layers": True}):  # fmt: skip
        with pytest.raises(RangeError):
            function(**wrong)
    with pytest.raises(RangeError, match="of = 'mac' is neither 'units' nor 'macs'; did you mean"):
        function(of="mac")
    with pytest.raises(TypeError, match="has no option 'stps'"):
        function(stps=3)
    with pytest.raises(TypeError, match="no parameters"):
        checked(nothing=STEPS)(lambda: None)


def test_sizes_in_bytes():
    assert parse_bytes("2GB") == 2**31
    assert parse_bytes("1.5 MiB") == 3 * 2**19
    assert parse_bytes(2**20) == 2**20
    for wrong in ("1B", "0", "", "nan", "1e9GB", "-1GB", 0, -5, True, "900KB", "9" * 30):
        with pytest.raises(ValueError, match="max_memory"):
            parse_bytes(wrong)
    assert 2**28 < physical() < 2**50
    assert shown(3 * 2**30) == "3 GB"
