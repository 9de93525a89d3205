"""Saving, interruption, memory, the criterion, the sampled search, what is refused."""

import resource

import pytest
import torch
from car_networks import SMALL, judged, noise, randomise, real

import niwaki
from niwaki.car import CarIndex, Sampling, Stop, _index, greedy, index
from niwaki.errors import DataError, NiwakiError


def small(name="dense", samples=48, **options):
    model = randomise(SMALL[name](), **options)
    return model, *judged(model, noise(samples, 10))


def assert_same(a, b):
    for count in ("samples", "right", "near_ties"):
        assert getattr(a.baseline, count) == getattr(b.baseline, count)
    assert a.baseline.margin == pytest.approx(b.baseline.margin, abs=1e-5)
    assert a.fingerprint == b.fingerprint
    assert list(a) == list(b)
    for name in a:
        assert (a[name].units, a[name].layers) == (b[name].units, b[name].layers)
        for kind in ("broken", "mended", "near_ties"):
            assert torch.equal(getattr(a[name], kind), getattr(b[name], kind)), (name, kind)
        close = {"rtol": 0, "atol": 1e-5}  # batches of another size round otherwise
        torch.testing.assert_close(a[name].margin_change, b[name].margin_change, **close)


def test_batches_and_memory_do_not_matter():
    model, images, labels = small()
    whole = index(model, (images, labels))
    assert_same(whole, index(model, (images, labels), batch_size=7))
    assert_same(whole, index(model, (images, labels), max_memory="1MB"))


def test_saved_and_loaded(tmp_path):
    model, images, labels = small()
    found = index(model, (images, labels))
    found.save(tmp_path / "index.safetensors")
    assert_same(found, CarIndex.load(tmp_path / "index.safetensors"))
    (tmp_path / "other").write_text("no")
    with pytest.raises(DataError, match="holds no index"):
        CarIndex.load(tmp_path / "other")


def test_the_model_stays_as_it_is():
    model, images, labels = small("functional")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    versions = [p._version for p in model.parameters()]
    index(model, (images, labels))
    greedy(model, (images, labels), Stop(remove=1))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert versions == [p._version for p in model.parameters()]
    assert all(p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_an_interrupted_index_goes_on(tmp_path, monkeypatch):
    model, images, labels = small()
    whole = index(model, (images, labels))
    measure, calls = _index.measure, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(*args)

    monkeypatch.setattr(_index, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        index(model, (images, labels), batch_size=10, folder=tmp_path)
    resumed = index(model, (images, labels), batch_size=16, folder=tmp_path)
    assert len(calls) in (3 + 2, 3 + 3)  # 20 or 10 of 48 images were there
    assert_same(whole, resumed)
    with pytest.raises(DataError, match="another data"):
        index(model, (images.flip(0), labels), folder=tmp_path)
    with pytest.raises(DataError, match="layers: there"):
        index(model, (images, labels), folder=tmp_path, layers=["stem"])


def test_an_interrupted_search_goes_on(tmp_path):
    model, images, labels = small()
    whole = greedy(model, (images, labels), Stop(remove=4))
    greedy(model, (images, labels), Stop(remove=2), folder=tmp_path / "search")
    resumed = greedy(model, (images, labels), Stop(remove=4), folder=tmp_path / "search")
    assert resumed.plan == whole.plan
    units = [[r["unit"] for r in p.settings["removals"]] for p in (whole, resumed)]
    assert units[0] == units[1]
    read = greedy(model, (images, labels), Stop(remove=4), folder=tmp_path / "search")
    assert torch.equal(read.model(images), whole.model(images))
    with pytest.raises(NiwakiError, match="layers: there"):
        greedy(model, (images, labels), Stop(remove=4), folder=tmp_path / "search", layers=["stem"])


def test_where_the_search_stops():
    model, images, labels = small()
    found = greedy(model, (images, labels), Stop(keep=0.8, of="macs"))
    kept = found.trajectory.kept("macs")
    assert kept[-1] <= 0.8 < kept[-2]
    floor = greedy(model, (images, labels), Stop(floor=0.7), layers=["layers"])
    assert floor.trajectory[-1].validation >= 0.7
    further = greedy(model, (images, labels), Stop(remove=len(floor.trajectory)), layers=["layers"])
    assert further.trajectory[-1].validation < 0.7
    everything = greedy(model, (images[:12], labels[:12]), Stop(floor=0.0), layers=["stem"])
    assert everything.model.stem.out_channels == 1


def test_fine_tuning_between_steps():
    model, images, labels = small()
    seen = []

    def tune(network, step):
        seen.append(network.stem.out_channels)
        with torch.no_grad():
            network.fc.bias += 0.1

    found = greedy(
        model, (images, labels), Stop(remove=2), layers=["stem"], tune=tune, test=(images, labels)
    )
    assert seen == [5, 4]
    assert [step.accuracy_tuned is None for step in found.trajectory] == [True, False, False]


@pytest.mark.parametrize("name", ["dense", "functional"])
def test_the_criterion_removes_what_the_index_ranks_first(name):
    model, images, labels = small(name)
    found = index(model, (images, labels))
    scores = niwaki.score(model, (images, labels), "car", batch_size=20)
    order = [(layer, found[layer].units[unit]) for layer, unit in found.ranking()]
    flat = sorted(
        (float(scores[layer][units[0]]), i, layer, units)
        for i, (layer, units) in enumerate((n, u) for n in found for u in found[n].units)
    )
    assert [(layer, units) for *_, layer, units in flat] == order
    pruned = niwaki.prune(
        model,
        (images, labels),
        "car",
        keep=0.8,
        of="units",
        schedule=niwaki.pruning.Schedule(steps=1),
    )
    count = sum(pruned.plan.removed().values())
    assert count >= 1
    first = [(name, units) for name, units in order[:count]]
    assert {(r.layer, c) for r in pruned.plan.steps[0] for c in r.channels} == {
        (name, channel) for name, units in first for channel in units
    }


def test_ties_go_by_margin_then_order():
    model, images, labels = small()
    found = index(model, (images, labels))
    keys = [
        (int(found[n].lost[u]), -round(float(found[n].margin_change[u]) / 1e-4))
        for n, u in found.ranking()
    ]
    assert keys == sorted(keys)


def test_sampled_search():
    model, images, labels = small("functional", 2000)
    found = greedy(
        model,
        (images, labels),
        Stop(remove=1),
        sampling=Sampling(0.9, 0.25, seed=1),
        batch_size=200,
    )
    gone = found.settings["removals"][0]
    assert gone["certainty"] == 0.9
    assert gone["evaluated"] < gone["pairs"] / 2
    whole = index(model, (images, labels), batch_size=500)
    best = min(float(layer.car.min()) for layer in whole.values())
    mine = float(whole[gone["layer"]].car[gone["unit"]])
    assert mine <= best + 0.25
    exact = greedy(model, (images, labels), Stop(remove=1), sampling=Sampling(0.9), batch_size=1000)
    assert exact.settings["removals"][0]["unit"] == whole.ranking()[0][1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (lambda: {"stop": Stop()}, "say when to stop"),
        (lambda: {"stop": Stop(remove=1000)}, "only 14 units"),
        (lambda: {"stop": Stop(keep=1.5)}, "between 0 and 1"),
        (lambda: {"stop": Stop(remove=1), "layers": ["nowhere"]}, "'nowhere' has no unit"),
        (lambda: {"stop": Stop(remove=1), "max_memory": "lots"}, "max_memory"),
        (lambda: {"stop": Stop(remove=1), "sampling": Sampling(2.0)}, "confidence"),
    ],
)
def test_what_is_refused(options, message):
    model, images, labels = small(samples=12)
    with pytest.raises(ValueError, match=message):
        greedy(model, (images, labels), **options())


@pytest.mark.slow
def test_memory(shared):
    """Far more is computed than may be kept: 32 units on 40 images of ResNet-20."""
    model, images, labels = real(shared, "resnet20", 4)
    index(model, (images[:4], labels[:4]), layers=["layer3"])  # kernels are loaded
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    index(model, (images, labels), layers=["layer1.1"], max_memory="100MB")
    risen = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert risen < 100 * 2**20
