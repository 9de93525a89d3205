"""The 2-D study of Yeom et al. (2021): which third of the units can go, judged by few points?

Trains a 2-1000-1000-1000-C network on each of three sets, scores its 3000 hidden units by several
criteria on 1 to 200 reference points per class, and removes the 1000 lowest at once, without
fine-tuning. Writes results.json, table.md, and pictures.

    python experiments/toy/study.py                 # 50 seeds
    python experiments/toy/study.py --quick         # 5 seeds, 3 sizes
"""

from __future__ import annotations

import argparse
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pictures
import torch
from torch import Tensor, nn
from toy import BIAS, SETS, draw, train

import niwaki
from niwaki.files import write_json, write_text
from niwaki.pruning import Comparison, Outcome, Trajectory

HERE = Path(__file__).parent
CRITERIA = ["lrp", "lrp.excitation_backprop", "gradient", "taylor", "weight", "random"]
SIZES = [1, 2, 5, 10, 20, 50, 100, 200]
REMOVED, LOWEST = 1000, 125
TEST = 250  # fresh points per class, drawn anew for each seed
BLIND = ("weight", "random")  # they look at no data: one size stands for all


def shrink(model: nn.Sequential, scores: niwaki.Scores) -> nn.Sequential:
    """Remove the lowest units: what `niwaki.prune` does in one step, which `check` makes sure of.

    On a chain of linear layers that is indexing. `prune` also traces the network, finds coupled
    channels and checks its work, which takes longer than all else here and thousands of times.
    """
    flat = scores.flat()
    stays = torch.ones(len(flat), dtype=torch.bool)
    stays[flat.argsort(stable=True)[:REMOVED]] = False
    outputs = [*stays.split([len(value) for value in scores.values()]), None]
    layers: list[nn.Module] = []
    inputs = None
    for linear, kept in zip([m for m in model if isinstance(m, nn.Linear)], outputs, strict=True):
        weight, bias = linear.weight.detach(), linear.bias.detach()
        weight = weight if inputs is None else weight[:, inputs]
        weight, bias = (weight, bias) if kept is None else (weight[kept], bias[kept])
        small = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0])
        small.weight, small.bias = nn.Parameter(weight), nn.Parameter(bias)
        layers += [small, nn.ReLU()]
        inputs = kept
    return nn.Sequential(*layers[:-1]).eval()


def references(name: str, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw reference points from the training points."""
    return niwaki.data.in_memory(niwaki.data.references(draw(name, 1000, 0), size, seed))


def score(model: nn.Module, name: str, criterion: str, size: int, seed: int) -> niwaki.Scores:
    """Score all units; random scores are drawn by the seed."""
    options = {"seed": seed} if criterion == "random" else {}
    few = references(name, size, seed)
    return niwaki.score(model, few, criterion, batch_size=1000, **options)


def check(model: nn.Sequential, name: str, criterion: str) -> nn.Module:
    """Prune with `niwaki.prune`, and make sure that `shrink` gives the same network."""
    few = references(name, 5, 0)
    pruned = niwaki.prune(
        model,
        few,
        criterion,
        keep=2 / 3,
        of="units",
        repair=None,
        schedule=niwaki.pruning.Schedule(steps=1),
        run=niwaki.pruning.Run(batch_size=1000),
    ).model
    mine = shrink(model, score(model, name, criterion, 5, 0))
    for (key, ours), theirs in zip(
        mine.state_dict().items(), pruned.state_dict().values(), strict=True
    ):
        if not torch.equal(ours, theirs):
            raise AssertionError(f"{name}, {criterion}: {key} differs from that of niwaki.prune")
    return pruned


def measure(
    model: nn.Sequential, name: str, criterion: str, sizes: list[int], seeds: int
) -> dict[str, Any]:
    """Accuracy after pruning for all sizes and seeds, and the ranks of all units."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {"name": name, "criterion": criterion, "accuracy": {}, "ranks": {}}
    scoring = 0.0
    for size in sizes[:1] if criterion in BLIND else sizes:
        right, ranks, left = [], [], []
        for seed in range(1 if criterion == "weight" else seeds):
            started = time.perf_counter()
            scores = score(model, name, criterion, size, seed)
            scoring += time.perf_counter() - started
            small = shrink(model, scores)
            # A criterion that never varies is tested on as many points as all others.
            for test in range(seeds) if criterion == "weight" else [seed]:
                fresh = draw(name, TEST, 1000 + test)
                right.append(niwaki.evaluation.accuracy(small, fresh, batch_size=1000))
            ranks.append(scores.ranks().float())
            left.append([m.out_features for m in small if isinstance(m, nn.Linear)][:-1])
        found["accuracy"][size] = right
        found["ranks"][size] = torch.stack(ranks)
        found.setdefault("kept", {})[size] = [fmean(layer) for layer in zip(*left, strict=True)]
    found["scoring"] = scoring
    return found


def agreement(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Overlap and rank correlation over seeds, of each criterion of a set."""
    outcomes = []
    for part in parts:
        for size, ranks in part["ranks"].items():
            blind = part["criterion"] in BLIND
            for seed, values in enumerate(ranks):
                scores = niwaki.Scores({"all": values.double()})
                outcomes.append(
                    Outcome(
                        part["criterion"],
                        None if blind else size,
                        None if part["criterion"] == "weight" else seed,
                        Trajectory(),
                        ranks=scores,
                    )
                )
    return [vars(row) for row in Comparison(tuple(outcomes)).agreement(LOWEST)]


def study(sizes: list[int], seeds: int, jobs: int, bias: float | None, out: Path) -> dict[str, Any]:
    """Run everything and draw the pictures."""
    started = time.perf_counter()
    models, sets = {}, {}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for name, model in zip(SETS, pool.map(_train, SETS, [bias] * len(SETS)), strict=True):
            models[name] = model
        trained = time.perf_counter() - started
        tasks = [
            pool.submit(measure, models[name], name, criterion, sizes, seeds)
            for criterion in CRITERIA
            for name in SETS
        ]
        parts = [task.result() for task in tasks]
    for name, model in models.items():
        pruned = {criterion: check(model, name, criterion) for criterion in CRITERIA}
        own = [part for part in parts if part["name"] == name]
        fresh = [draw(name, TEST, 1000 + seed) for seed in range(seeds)]
        whole = [niwaki.evaluation.accuracy(model, points, batch_size=1000) for points in fresh]
        sets[name] = {
            "train": niwaki.evaluation.accuracy(model, draw(name, 1000, 0), batch_size=1000),
            "unpruned": fmean(whole),
            "accuracy": {p["criterion"]: _summaries(p["accuracy"]) for p in own},
            "kept": {p["criterion"]: p["kept"] for p in own},
            "scoring_seconds": {p["criterion"]: p["scoring"] for p in own},
            "agreement": agreement(own),
        }
        pictures.boundaries(out / f"{name}.png", name, model, pruned)
    pictures.curves(out / "accuracy.png", sets)
    return {
        "seeds": seeds,
        "sizes": sizes,
        "bias": bias,
        "lowest": LOWEST,
        "removed": REMOVED,
        "machine": f"{platform.machine()}, {jobs} processes, torch {torch.__version__}",
        "seconds": {"training": trained, "all": time.perf_counter() - started},
        "sets": sets,
    }


def table(results: dict[str, Any]) -> str:
    """Write the tables of the page."""
    lines = []
    sizes = [size for size in (1, 5, 10, 50) if size in results["sizes"]]
    for name, found in results["sets"].items():
        lines += [
            f"**{name}**: unpruned {found['unpruned']:.2%}",
            "",
            "| criterion | "
            + " | ".join(f"{n} per class" for n in sizes)
            + " | worst seed at 5 | overlap at 5 | at 10 | at 50 | kept per layer |",
            "|" + " --- |" * (len(sizes) + 6),
        ]
        overlaps = {
            (row["first"], row["references"]): row["lowest"]
            for row in found["agreement"]
            if row["first"] == row["second"]
        }
        for criterion, by_size in found["accuracy"].items():
            first = next(iter(by_size.values()))
            cells = [_percent(by_size.get(n, first)) for n in sizes]
            cells.append(f"{by_size.get(5, first)['min']:.2%}")
            cells += [
                f"{overlaps[criterion, n]:.2f}" if (criterion, n) in overlaps else "-"
                for n in (5, 10, 50)
            ]
            kept = found["kept"][criterion]
            cells.append(" / ".join(f"{n:.0f}" for n in kept.get(5, next(iter(kept.values())))))
            lines.append("| " + " | ".join([criterion, *cells]) + " |")
        lines.append("")
    return "\n".join(lines)


def _train(name: str, bias: float | None) -> nn.Sequential:
    torch.set_num_threads(1)
    return train(name, 0, bias)


def _summaries(by_size: dict[int, list[float]]) -> dict[int, dict[str, float]]:
    return {
        size: {"mean": fmean(right), "std": stdev(right), "min": min(right)}
        for size, right in by_size.items()
    }


def _percent(found: dict[str, float]) -> str:
    return f"{100 * found['mean']:.2f} ± {100 * found['std']:.2f}"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="5 seeds, 3 sizes")
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    parser.add_argument(
        "--plain", action="store_true", help="torch's own first biases, no weight decay"
    )
    parser.add_argument("--out", type=Path, default=HERE)
    given = parser.parse_args()
    seeds, sizes = (5, [1, 5, 50]) if given.quick else (given.seeds, SIZES)
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    bias = None if given.plain else BIAS
    results = study(sizes, seeds, given.jobs, bias, given.out)
    write_json(given.out / "results.json", results)
    write_text(given.out / "table.md", table(results))
    print(table(results))
    print(f"{results['seconds']['all']:.0f} s, wrote {given.out}")


if __name__ == "__main__":
    main()
