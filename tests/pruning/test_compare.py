"""Comparisons: curves, areas and agreement of rankings, run once and kept."""

import json

import numpy as np
import pytest
import torch
from bundles import bundled
from pruning_networks import SMALL, assert_same, chain, data_for, randomise, snapshot
from scipy.stats import spearmanr

import niwaki
from niwaki.errors import NiwakiError
from niwaki.pruning import (
    Comparison,
    Contender,
    Outcome,
    Step,
    Trajectory,
    accuracy_at,
    area,
    compare,
)


@pytest.fixture(scope="module")
def network():
    return randomise(chain(10))


@pytest.fixture(scope="module")
def data():
    return data_for(8, 30)


@pytest.fixture(scope="module")
def test():
    images, labels = data_for(8, 40)
    return images.flip(0), labels


@pytest.fixture(scope="module")
def found(network, data, test):
    entries = ["lrp", "weight", "random", "taylor"]
    return compare(
        network,
        data,
        entries,
        test=test,
        references=(1, 4),
        seeds=3,
        keep=0.4,
        repair=None,
        schedule=niwaki.pruning.Schedule(steps=4),
    )


def trajectory(*points):
    """Accuracy at shares of the MACs; the units shrink more slowly."""
    return Trajectory(
        tuple(
            Step(i, int(50 + 50 * kept), int(1e4 * kept), int(1e6 * kept), right, None, 1.0)
            for i, (kept, right) in enumerate(points)
        )
    )


def test_area_of_a_line_and_of_steps():
    line = trajectory((1.0, 0.9), (0.6, 0.5), (0.25, 0.15))  # accuracy = kept - 0.1
    assert area(line, "macs", (0.3, 1.0)) == pytest.approx(0.55)
    assert area(line, "macs", (0.5, 0.7)) == pytest.approx(0.5)
    assert accuracy_at(line, 0.4) == pytest.approx(0.3)
    bent = trajectory((1.0, 1.0), (0.65, 1.0), (0.3, 0.0))
    assert area(bent, "macs", (0.3, 1.0)) == pytest.approx(0.75)
    # At an equal share of the units it looks different: 0.65 of them is where 0.3 MACs are left.
    assert area(bent, "units", (0.65, 1.0)) == pytest.approx(0.75, abs=0.01)


def test_area_needs_a_curve_that_is_long_enough():
    unknown = trajectory((1.0, None), (0.8, 0.7), (0.5, 0.5))
    for asked in (lambda: area(unknown, "macs", (0.6, 1.0)), lambda: accuracy_at(unknown, 0.99)):
        with pytest.raises(ValueError, match="has its first accuracy at"):
            asked()
    with pytest.raises(ValueError, match=r"ends at 0\.5, above the share 0\.3"):
        area(trajectory((1.0, 1.0), (0.5, 0.5)), "macs", (0.3, 1.0))
    with pytest.raises(ValueError, match="lower one first"):
        area(trajectory((1.0, 1.0), (0.3, 0.5)), "macs", (1.0, 0.3))
    with pytest.raises(ValueError, match="no accuracies"):
        area(trajectory((1.0, None), (0.3, None)))


def test_fine_tuned_accuracy_counts_and_the_last_of_equal_costs():
    tuned = Trajectory(
        (
            Step(0, 9, 9, 100, 0.9, None, 0.0),
            Step(1, 9, 9, 50, 0.1, 0.7, 0.0),
            Step(2, 9, 9, 50, 0.2, 0.8, 0.0),
        )
    )
    assert accuracy_at(tuned, 0.5) == pytest.approx(0.8)


@pytest.mark.slow
def test_every_run_equals_pruning_by_hand(network, data, test, found):
    run = next(r for r in found.select("lrp", 4) if r.seed == 2)
    few = niwaki.data.references(data, 4, 2)
    alone = niwaki.prune(
        network,
        few,
        "lrp",
        keep=0.4,
        test=test,
        repair=None,
        schedule=niwaki.pruning.Schedule(steps=4),
    )
    plain = [(s.units, s.macs, s.accuracy) for s in run.trajectory]
    assert plain == [(s.units, s.macs, s.accuracy) for s in alone.trajectory]
    for name, lost in run.removed.items():
        before = network.get_submodule(name).weight.shape[0]
        assert lost == pytest.approx(1 - alone.model.get_submodule(name).weight.shape[0] / before)
    assert torch.equal(run.ranks.flat(), niwaki.score(network, few, "lrp").ranks())


def test_what_looks_at_no_data_runs_once(found):
    keys = {(run.label, run.references, run.seed) for run in found.runs}
    assert len(keys) == len(found.runs) == 2 * 3 * 2 + 1 + 3
    assert {key for key in keys if key[0] == "weight"} == {("weight", None, None)}
    assert {key for key in keys if key[0] == "random"} == {("random", None, s) for s in range(3)}
    assert found.select("weight", 1) == found.select("weight", 4)
    firsts = [run.ranks.flat() for run in found.select("random", 1)]
    assert not torch.equal(firsts[0], firsts[1])


def test_options_that_may_look_at_data_make_a_blind_criterion_look():
    assert not Contender("w", "weight").looks(bundled(keep=0.5, steps=3, repair=None))
    assert Contender("w", "weight").looks({"repair": "compensate"})
    assert Contender("w", "weight", prune_options={"repair": "compensate"}).looks({})
    assert not Contender("w", "weight", needs_data=False).looks({"repair": "compensate"})


def test_areas_are_means_over_the_seeds(found):
    assert found.labels == ["lrp", "weight", "random", "taylor"]
    for summary in found.areas(of="macs", between=(0.5, 0.9)):
        runs = found.select(summary.label, summary.references)
        values = [area(run.trajectory, "macs", (0.5, 0.9)) for run in runs]
        assert summary.mean == pytest.approx(np.mean(values))
        if len(values) > 1:
            assert summary.std == pytest.approx(np.std(values, ddof=1))
        else:
            assert summary.std is None
    nowhere = found.areas(between=(0.01, 1.0))
    assert all(summary.mean is None for summary in nowhere)
    default = found.areas()[0]
    assert default.values[0] == pytest.approx(area(found.runs[0].trajectory, "macs", (0.4, 1.0)))


def test_agreement_against_scipy_and_pairs_counted_by_hand(found):
    rows = {(r.first, r.second): r for r in found.agreement(3) if r.references == 4}
    assert ("weight", "weight") not in rows  # one run cannot differ from itself
    runs = found.select("taylor", 4)
    assert rows["taylor", "taylor"].pairs == 3
    ranks = [run.ranks.flat().numpy() for run in runs]
    pairs = [(ranks[i], ranks[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    expected = np.mean([spearmanr(a, b).statistic for a, b in pairs])
    assert rows["taylor", "taylor"].rank_correlation == pytest.approx(expected)
    low = [len(set(a.argsort(kind="stable")[:3]) & set(b.argsort(kind="stable")[:3])) / 3
           for a, b in pairs]  # fmt: skip
    assert rows["taylor", "taylor"].lowest == pytest.approx(np.mean(low))
    high = [len(set((-a).argsort(kind="stable")[:3]) & set((-b).argsort(kind="stable")[:3])) / 3
            for a, b in pairs]  # fmt: skip
    assert rows["taylor", "taylor"].highest == pytest.approx(np.mean(high))
    across = zip(found.select("lrp", 4), runs, strict=True)
    alike = [a.ranks.rank_correlation(b.ranks) for a, b in across]
    assert rows["lrp", "taylor"].pairs == 3
    assert rows["lrp", "taylor"].rank_correlation == pytest.approx(np.mean(alike))
    assert rows["lrp", "weight"].pairs == 3
    with pytest.raises(ValueError, match="count"):
        found.agreement(1000)


def test_plain_data_go_there_and_back(found):
    again = Comparison.from_json(json.loads(json.dumps(found.to_json())))
    assert again.to_json() == found.to_json()
    assert again.agreement() == found.agreement()
    assert str(again) == str(found)


def test_the_table_is_sorted_by_area_and_says_once_what_needs_no_data(found):
    rows = found.rows()
    assert [row["contender"] for row in rows].count("weight") == 1
    assert [row["contender"] for row in rows].count("lrp") == 2
    last = [row["area"] for row in rows if row["references"] == 4]
    assert last == sorted(last, reverse=True)
    assert "lrp" in str(found)
    assert "any" in str(found)


def test_an_interrupted_comparison_goes_on(network, data, test, tmp_path, monkeypatch):
    entries = {"lrp": "lrp", "a/b c": {"criterion": "lrp", "reduce": "signed"}, "weight": "weight"}
    options = {"test": test, "references": 2, "seeds": 2, "steps": 2, "folder": tmp_path}
    options["repair"] = None
    seen = []

    def stop(run):
        seen.append(run)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(network, data, entries, **bundled(callback=stop, **options, function="compare"))
    kept = {f.name: f.read_bytes() for f in tmp_path.glob("*--*")}
    assert len(kept) == 2
    whole = compare(network, data, entries, **bundled(**options, function="compare"))
    assert len(whole.runs) == 5
    assert all((tmp_path / name).read_bytes() == text for name, text in kept.items())
    monkeypatch.setattr("niwaki.pruning.comparison._compare.prune", None)  # nothing is run again
    again = compare(network, data, entries, **bundled(**options, function="compare"))
    assert again.to_json() == whole.to_json()
    assert compare(
        network, data, ["lrp"], **bundled(**{**options, "seeds": 1}, function="compare")
    ).labels == ["lrp"]


def test_a_torn_file_is_made_again(network, data, test, tmp_path):
    options = {"test": test, "references": 2, "seeds": 1, "steps": 2, "folder": tmp_path}
    first = compare(network, data, ["lrp"], **bundled(**options, function="compare"))
    [file] = tmp_path.glob("lrp--2--0*")
    file.write_bytes(file.read_bytes()[:200])
    second = compare(network, data, ["lrp"], **bundled(**options, function="compare"))
    assert second.runs[0].ranks.flat().tolist() == first.runs[0].ranks.flat().tolist()
    assert len(list(tmp_path.glob("lrp--2--0*"))) == 1


def test_a_folder_of_another_comparison_is_refused(network, data, test, tmp_path):
    options = {"test": test, "references": 2, "seeds": 1, "steps": 2, "folder": tmp_path}
    compare(network, data, {"x": "lrp"}, **bundled(**options, function="compare"))
    with pytest.raises(NiwakiError, match="steps: there 2, now 3"):
        compare(
            network, data, {"x": "lrp"}, **bundled(**{**options, "steps": 3}, function="compare")
        )
    with pytest.raises(NiwakiError, match="model: there"):
        compare(
            randomise(chain(10), seed=5),
            data,
            {"x": "lrp"},
            **bundled(**options, function="compare"),
        )
    with pytest.raises(NiwakiError, match="test: there"):
        compare(
            network, data, {"x": "lrp"}, **bundled(**{**options, "test": data}, function="compare")
        )
    with pytest.raises(NiwakiError, match="another contender 'x'"):
        compare(
            network,
            data,
            {"x": {"criterion": "lrp", "reduce": "signed"}},
            **bundled(**options, function="compare"),
        )


def test_a_function_is_measured_as_all_others_are(network, data, test):
    """A function that prunes as niwaki does, step by step, has niwaki's curve."""
    plan = niwaki.prune(
        network, data, "weight", keep=0.4, repair=None, schedule=niwaki.pruning.Schedule(steps=3)
    ).plan
    example = data[0][:2]

    def replay(model, references, seed):
        assert seed in (0, 1)
        assert len(references[0]) == 2 * 3
        assert model is not network
        for step in plan.steps:
            niwaki.pruning.units._surgery.operate(model, example, step)
            yield model

    entries = {"mine": replay, "weight": "weight"}
    before = snapshot(network)
    options = {"references": 2, "seeds": 2, "steps": 3, "keep": 0.4, "repair": None}
    found = compare(network, data, entries, **bundled(test=test, **options, function="compare"))
    assert_same(before, snapshot(network))
    mine, theirs = found.select("mine", 2), found.select("weight", 2)
    assert len(mine) == 2
    assert len(theirs) == 1
    points = [[(s.units, s.params, s.macs, s.accuracy) for s in r.trajectory] for r in found.runs]
    assert points[0] == points[1] == points[2]
    assert mine[0].removed == theirs[0].removed
    assert mine[0].ranks is None
    assert {(r.first, r.second) for r in found.agreement()} == set()


def test_torch_pruning_stands_on_the_same_curves(network, data, test):
    import torch_pruning as tp

    def magnitude(model, references, seed):
        pruner = tp.pruner.BasePruner(
            model,
            references[0][:1],
            tp.importance.MagnitudeImportance(p=2),
            pruning_ratio=0.5,
            iterative_steps=3,
            global_pruning=True,
            ignored_layers=[model[-1]],
        )
        for _ in range(3):
            pruner.step()
            yield model

    entry = Contender("torch-pruning", magnitude, needs_data=False)
    found = compare(network, data, [entry, "lrp"], test=test, references=2, seeds=2, keep=0.6)
    theirs = found.select("torch-pruning", 2)
    assert len(theirs) == 1
    kept = theirs[0].trajectory.kept("macs")
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] < 0.6
    assert theirs[0].trajectory[0].accuracy == found.select("lrp", 2)[0].trajectory[0].accuracy


def test_a_trajectory_is_taken_as_it_is(network, data, test):
    mine = trajectory((1.0, 1.0), (0.3, 0.5))
    found = compare(network, data, {"mine": lambda *_: mine}, test=test, references=1, seeds=1)
    assert found.runs == (Outcome("mine", 1, 0, mine, about=found.runs[0].about),)
    assert found.areas()[0].mean == pytest.approx(0.75)
    assert found.removed() == []


@pytest.mark.parametrize("name", ["residual", "depthwise", "concat"])
def test_coupled_networks(name):
    torch.manual_seed(0)
    model = randomise(SMALL[name]())
    found = compare(
        model,
        data_for(8, 12),
        ["lrp", "activation"],
        test=data_for(8, 12),
        references=1,
        seeds=2,
        keep=0.6,
        schedule=niwaki.pruning.Schedule(steps=2),
    )
    assert all(0 <= lost < 1 for _, _, layers in found.removed() for lost in layers.values())
    assert all(summary.mean is not None for summary in found.areas())


def test_mistakes_are_named_before_any_work(network, data, test):
    with pytest.raises(ValueError, match="no criterion 'lrb'; did you mean lrp"):
        compare(network, data, ["lrb"], test=test)
    with pytest.raises(ValueError, match="two contenders are called 'lrp'"):
        compare(network, data, ["lrp", "lrp"], test=test)
    with pytest.raises(ValueError, match="nothing to compare"):
        compare(network, data, [], test=test)
    with pytest.raises(TypeError, match="is no contender"):
        compare(network, data, [3], test=test)
    with pytest.raises(ValueError, match="seeds"):
        compare(network, data, ["lrp"], test=test, seeds=0)
    with pytest.raises(ValueError, match="references"):
        compare(network, data, ["lrp"], test=test, references=())
    with pytest.raises(NiwakiError, match=r"'lrp', 99 references per class, seed 0|class 0 has"):
        compare(network, data, ["lrp"], test=test, references=99)


def test_a_failing_run_is_named(network, data, test):
    with pytest.raises(NiwakiError, match="'lrp', 2 references per class, seed 0: keep"):
        compare(network, data, ["lrp"], test=test, references=2, keep=0.0001)
