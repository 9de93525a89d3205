"""What is looked at after each step: kept with the steps, also over a stop, and handed on."""

import pytest
import torch
from torch import nn

import niwaki
from niwaki.errors import DataError
from niwaki.pruning import FineTune, Run, Schedule


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(32, 3)).eval()


DATA = torch.randn(12, 1, 6, 6, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 3
STEPS = Schedule(steps=3)


def widths(model):
    return {"width": torch.tensor(model[0].out_channels), "said": model(DATA[0]).argmax(1)}


def prune(**options):
    run = Run(observe=widths, **options)
    return niwaki.prune(network(), DATA, "weight", keep=0.4, schedule=STEPS, test=DATA, run=run)


def test_each_step_is_looked_at():
    pruned = prune()
    assert list(pruned.observed) == [0, 1, 2, 3]
    seen = [int(found["width"]) for found in pruned.observed.values()]
    assert seen[0] == 8
    assert seen[-1] == pruned.model[0].out_channels
    assert seen == sorted(seen, reverse=True)
    for row in pruned.trajectory:
        right = (pruned.observed[row.step]["said"] == DATA[1]).double().mean()
        assert float(right) == pytest.approx(row.accuracy)


def test_a_run_that_was_stopped_has_seen_all_steps(tmp_path):
    class Stopped(Exception):
        pass

    def stop(step):
        if step.step == 2:
            raise Stopped

    with pytest.raises(Stopped):
        prune(folder=tmp_path / "run", callback=stop)
    again = prune(folder=tmp_path / "run")
    straight = prune()
    assert list(again.observed) == list(straight.observed)
    for step, found in straight.observed.items():
        for name, values in found.items():
            assert torch.equal(again.observed[step][name], values)


def test_what_another_look_has_seen_is_not_handed_on(tmp_path):
    class Stopped(Exception):
        pass

    def look(folder, images, stop=None):
        def callback(step):
            if step.step == stop:
                raise Stopped

        run = Run(folder, callback=callback, observe=lambda model: {"said": model(images)})
        return niwaki.prune(network(), DATA, "weight", keep=0.4, schedule=STEPS, run=run)

    with pytest.raises(Stopped):
        look(tmp_path, DATA[0][:2], stop=2)
    with pytest.raises(DataError, match="observe: there"):
        look(tmp_path, DATA[0][2:4])
    assert list(look(tmp_path, DATA[0][:2]).observed) == [0, 1, 2, 3]


def test_a_network_tuned_in_the_end_is_looked_at_once_more():
    tune = FineTune(epochs=1, lr=0.1, each=False)
    run = Run(observe=lambda model: {"weight": model[0].weight.clone()})
    pruned = niwaki.prune(
        network(), DATA, "weight", keep=0.5, schedule=STEPS, tune=tune, test=DATA, run=run
    )
    assert list(pruned.observed) == [0, 1, 2, 3]
    assert torch.equal(pruned.observed[3]["weight"], pruned.model[0].weight)


def test_nothing_is_looked_at_unless_asked_for():
    assert niwaki.prune(network(), DATA, "weight", keep=0.5, repair=None).observed == {}
