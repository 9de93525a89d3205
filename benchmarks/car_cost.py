"""What the classification accuracy reduction costs, against brute force.

Run it from a checkout, with the weights and images named on the command line::

    python benchmarks/car_cost.py --weights WEIGHTS_FOLDER --images IMAGES_FOLDER
    python benchmarks/car_cost.py ... --networks lenet --samples 200 --json car.json

*Index*: every unit of the network. *Greedy*: the first removals, all candidates of each. Both are
timed in turns with brute force, in one process: each unit physically removed, one forward pass
over all images after another (the time of the removals themselves is not counted against it). As
brute force takes hours, it is measured on a random subset of the units (``--units``; ``--each`` of
each step's candidates) and **extrapolated** to all of them; the output says so. The results of both
are compared for the units of the subset. Seconds are those of the processor, on one thread, so that
what else the machine does hardly matters; ``--parts`` runs less.

*Memory* (``--parts memory``, minutes): how much the process grows over an index of ResNet-20 on
5,000 images with ``max_memory="2GB"``, in some of its layers.

*Operation counts*: multiply-accumulates of brute force over those of passes that begin behind the
unit, with the next layer's change computed by linearity, for networks of torchvision. What skipped
images save comes on top.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import resource
import time
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from niwaki import car, criteria, evaluation, pruning
from niwaki.data import batches, open_data, references
from niwaki.models import load_weights, zoo

NETWORKS = {
    "vgglike": ("vgglike_cifar10", "cifar10"),
    "resnet20": ("resnet20_cifar10_jpeg", "cifar10"),
    "lenet": ("lenet_mnist", "mnist"),
}
GREEDY = {"lenet": ["conv1", "conv2"], "vgglike": ["conv3_1"]}
THEORY = ("alexnet", "vgg16", "resnet18", "resnet50")
SHARE = {"resnet20": 3}  # a third of the images, so that all takes less than ten minutes
NEAR = 1e-4


def load(name: str, args: argparse.Namespace) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a trained network and as many test images of each class."""
    build = getattr(zoo, name)
    weights, folder = NETWORKS[name]
    model = build().eval()
    load_weights(model, args.weights / f"{weights}.safetensors")
    data = open_data(args.images / folder, build.preprocessing, split="test")
    parts = list(batches(references(data, args.samples // 10 // SHARE.get(name, 1), seed=0), 100))
    return model, torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def outputs(model: nn.Module, images: Tensor, size: int) -> Tensor:
    """Run a network over all images."""
    with torch.no_grad():
        return torch.cat([model(part) for part in images.split(size)])


def without(model: nn.Module, images: Tensor, layer: str, unit: tuple[int, ...]) -> nn.Module:
    """Return the network from which a unit is physically gone."""
    smaller = copy.deepcopy(model)
    pruning.operate(smaller, images[:2], [pruning.Removal(layer, unit)])
    return smaller


def brute_force(
    model: nn.Module, images: Tensor, labels: Tensor, units: list[Any], size: int
) -> tuple[float, dict[Any, tuple[int, int]]]:
    """Return the seconds of the passes, and for each unit its right images and near ties."""
    seconds, found = 0.0, {}
    for layer, unit in units:
        smaller = without(model, images, layer, unit)
        since = time.process_time()
        logits = outputs(smaller, images, size)
        right = int((logits.argmax(1) == labels).sum())
        seconds += time.process_time() - since
        best = logits.topk(2).values
        found[layer, unit] = right, int((best[:, 0] - best[:, 1] < NEAR).sum())
    return seconds, found


def groups_of(model: nn.Module, images: Tensor, layers: list[str] | None) -> list[pruning.Group]:
    """List the groups of channels of some layers."""
    own = copy.deepcopy(model)
    hidden = [layer.name for layer in criteria.hidden_layers(own, images[:1])]
    groups = pruning.couple(own, images[:2], hidden)
    return [g for g in groups if layers is None or g.root in layers]


def units_of(model: nn.Module, images: Tensor, layers: list[str] | None) -> list[Any]:
    """List layer and channels of all units."""
    return [(g.root, unit) for g in groups_of(model, images, layers) for unit in g.units]


def compare_index(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Time the full index against brute force on a subset of the units."""
    model, images, labels = load(name, args)
    units = units_of(model, images, None)
    chosen = random.Random(0).sample(units, min(args.units, len(units)))
    outputs(model, images[: args.batch], args.batch)  # warm up
    half = len(chosen) // 2
    first, truth = brute_force(model, images, labels, chosen[:half], args.batch)
    since = time.process_time()
    index = car.index(model, (images, labels), batch_size=args.batch)
    ours = time.process_time() - since
    second, more = brute_force(model, images, labels, chosen[half:], args.batch)
    different = 0
    whole = sum(index.baseline.right)
    for (layer, unit), (right, near) in (truth | more).items():
        lost = int(index[layer].lost[index[layer].units.index(unit)])
        different += abs(whole - lost - right) > near + index.baseline.near_ties
    theirs = (first + second) * len(units) / len(chosen)
    return {
        "what": f"index of {name}",
        "units": len(units),
        "images": len(images),
        "seconds": ours,
        "brute_force_seconds": theirs,
        "brute_force_units_measured": len(chosen),
        "times_faster": theirs / ours,
        "units_that_differ": different,
    }


def compare_greedy(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Time the first removals against brute force on a subset of each step's candidates."""
    model, images, labels = load(name, args)
    layers = GREEDY[name]
    since = time.process_time()
    pruned = car.greedy(
        model,
        (images, labels),
        car.Stop(remove=args.removals),
        layers=layers,
        batch_size=args.batch,
    )
    ours = time.process_time() - since
    network, theirs, different = model, 0.0, 0
    for row in pruned.settings["removals"]:
        units = units_of(network, images, layers)
        chosen = random.Random(len(units)).sample(units, min(args.each, len(units)))
        winner = (row["layer"], tuple(row["channels"]))
        seconds, found = brute_force(network, images, labels, chosen, args.batch)
        theirs += seconds * len(units) / len(chosen)
        _, own = brute_force(network, images, labels, [winner], args.batch)
        best, near = own[winner]
        different += any(right > best + near + ties for right, ties in found.values())
        network = without(network, images, *winner)
    return {
        "what": f"greedy, {name} {'+'.join(layers)}",
        "units": args.removals,
        "images": len(images),
        "seconds": ours,
        "brute_force_seconds": theirs,
        "brute_force_units_measured": args.removals * args.each,
        "times_faster": theirs / ours,
        "units_that_differ": different,
        "avoided": 1 - pruned.settings["evaluated"],
        "accuracy": [step.validation for step in pruned.trajectory],
    }


def peak_memory(args: argparse.Namespace) -> dict[str, Any]:
    """Measure by how much an index makes the process grow at the most."""
    weights, folder = NETWORKS["resnet20"]
    model = zoo.resnet20().eval()
    load_weights(model, args.weights / f"{weights}.safetensors")
    images = open_data(args.images / folder, zoo.resnet20.preprocessing, split="train")
    parts = [pair for pair, _ in zip(batches(images, 100), range(50), strict=False)]
    data = torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
    del parts
    outputs(model, data[0][:100], 100)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    since = time.process_time()
    index = car.index(model, data, layers=args.memory_layers, max_memory="2GB")
    seconds = time.process_time() - since
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "images": len(data[1]),
        "layers": {name: len(index[name].units) for name in args.memory_layers},
        "grown_by_gigabytes": (after - before) * 1024 / 1e9,
        "whole_process_gigabytes": after * 1024 / 1e9,
        "seconds": seconds,
    }


def operations(name: str) -> dict[str, Any]:
    """Count the operations of brute force and of passes that begin behind the unit."""
    model = torchvision.models.get_model(name, weights=None).eval()
    image = torch.zeros(1, 3, 224, 224)
    whole = evaluation.cost(model, image).macs
    behind = car.operations_behind(model, image)
    units = sum(count for count, _ in behind.values())
    ours = sum(count * macs for count, macs in behind.values())
    return {
        "network": name,
        "units": units,
        "macs_per_pass": whole,
        "brute_force_macs_per_image": units * whole,
        "macs_per_image": ours,
        "times_fewer": units * whole / ours,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--samples", type=int, default=1000, help="images, all classes together")
    parser.add_argument("--units", type=int, default=20, help="units brute force is measured on")
    parser.add_argument("--each", type=int, default=2, help="candidates of a step, likewise")
    parser.add_argument("--parts", nargs="*", default=["index", "greedy"])
    parser.add_argument(
        "--memory-layers", nargs="*", default=["conv1", "layer1.2.conv1", "layer3.2.conv1"]
    )
    parser.add_argument("--removals", type=int, default=6, help="steps of the greedy search")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--theory", nargs="*", default=list(THEORY))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    counts = [operations(name) for name in args.theory]
    for row in counts:
        print(
            f"{row['network']:10} {row['units']:>6} units: {row['times_fewer']:.1f} times fewer "
            f"operations ({row['brute_force_macs_per_image']:.3g} -> {row['macs_per_image']:.3g} "
            "multiply-accumulates per image)",
            flush=True,
        )
    rows = []
    for name in args.networks:
        if "index" in args.parts:
            rows.append(compare_index(name, args))
            _show(rows[-1])
        if "greedy" in args.parts and name in GREEDY:
            rows.append(compare_greedy(name, args))
            _show(rows[-1])
    memory = peak_memory(args) if "memory" in args.parts else None
    if memory:
        print(
            f"memory: ResNet-20, {memory['images']} images, {memory['layers']} units, max_memory "
            f"2 GB: the process grew by {memory['grown_by_gigabytes']:.2f} GB to "
            f"{memory['whole_process_gigabytes']:.2f} GB, {memory['seconds']:.0f} s",
            flush=True,
        )
    if args.json:
        found = {"measured": rows, "operations": counts, "memory": memory}
        args.json.write_text(json.dumps(found, indent=2))


def _show(row: dict[str, Any]) -> None:
    avoided = f", {row['avoided']:.1%} of the pairs avoided" if "avoided" in row else ""
    theirs, measured = row["brute_force_seconds"], row["brute_force_units_measured"]
    print(
        f"{row['what']:28} {row['seconds']:7.1f} s, brute force {theirs:8.1f} s (extrapolated "
        f"from {measured} units): {row['times_faster']:.1f} times faster, "
        f"{row['units_that_differ']} differ{avoided}",
        flush=True,
    )


if __name__ == "__main__":
    main()
