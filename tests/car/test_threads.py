"""Threads: nothing that others share is changed while operations are listed."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from car_networks import SMALL, judged, noise, randomise
from torch import fx, nn

from niwaki.car import Stop, greedy, index
from niwaki.models.network import list_operations


class Waiting(nn.Module):
    """Waits in the middle of being listed until another thread has done its work."""

    started, done = threading.Event(), threading.Event()

    def __init__(self):
        super().__init__()
        self.a, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))

    def __deepcopy__(self, memo):
        copy = type(self)()
        copy.load_state_dict(self.state_dict())
        return copy.eval()

    def forward(self, x):
        x = self.a(x)
        if isinstance(x, fx.Proxy):
            self.started.set()
            assert self.done.wait(20)
        return self.fc(F.relu(x * self.scale).mean((2, 3)))


def test_others_compute_while_operations_are_listed():
    model = randomise(Waiting())
    other, images = randomise(SMALL["functional"]()), noise(4, 10)
    call, get = nn.Module.__call__, nn.Module.__getattr__
    with torch.no_grad():
        expected, own = other(images), model(images)
    Waiting.started.clear(), Waiting.done.clear()
    with ThreadPoolExecutor(1) as pool:
        listed = pool.submit(list_operations, model.__deepcopy__({}))
        assert Waiting.started.wait(20)
        assert nn.Module.__call__ is call
        assert nn.Module.__getattr__ is get
        with torch.no_grad():
            assert torch.equal(other(images), expected)
            assert torch.equal(model(images), own)  # the same class, another network
        nested = list_operations(randomise(SMALL["dense"]()))  # one listing within another
        Waiting.done.set()
        kinds = [node.op for node in listed.result(20).nodes]
    assert kinds.count("call_module") == 2
    assert kinds.count("get_attr") == 1
    assert sum(node.op == "call_module" for node in nested.nodes) > 5
    assert nn.Module.__call__ is call


@pytest.mark.parametrize("name", ["dense", "functional"])
def test_many_at_once(name):
    model = randomise(SMALL[name]())
    images, labels = judged(model, noise(12, 8))
    with torch.no_grad():
        expected = model(images)
    alone = index(model, (images, labels))
    first = greedy(model, (images, labels), Stop(remove=1)).plan
    stop, wrong = threading.Event(), []

    def serve():
        with torch.no_grad():
            while not stop.is_set():
                wrong.append(not torch.equal(model(images), expected))

    with ThreadPoolExecutor(5) as pool:
        server = pool.submit(serve)
        jobs = [pool.submit(index, model, (images, labels)) for _ in range(3)]
        search = pool.submit(greedy, model, (images, labels), Stop(remove=1))
        found = [job.result(60) for job in jobs]
        plan = search.result(60).plan
        stop.set()
        server.result(20)
    assert wrong
    assert not any(wrong)
    assert plan == first
    for other in found:
        for layer in alone:
            assert torch.equal(other[layer].broken, alone[layer].broken)
            assert torch.equal(other[layer].margin_change, alone[layer].margin_change)
    assert all("__call__" not in vars(type(m)) for m in model.modules())
    with torch.no_grad():
        assert torch.equal(model(images), expected)
