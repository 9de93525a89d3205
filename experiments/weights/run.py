"""Single weights set to zero by several criteria, without fine-tuning, from few references.

The VGG-like network loses 10 to 95 % of all its weights at once, ranked over the whole network by
each criterion on class-balanced reference images; the accuracy is that on test images which no
criterion has seen. Run it from a checkout, with CIFAR-10 as folders (`train` and `test` with a
folder per class) or `torchvision:CIFAR10`::

    python experiments/weights/run.py --data cifar10 --weights vgglike_cifar10.safetensors

Results are added to `results.json` as they come; the same command goes on where it stopped. The
table and the plot are made of what is there.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from niwaki import criteria, data, evaluation, files, models, pruning
from niwaki.models import zoo
from niwaki.progress import track
from niwaki.propagation import (
    Assign,
    Composite,
    Gamma,
    epsilon,
    epsilon_alpha2_beta1,
    epsilon_plus,
)

HERE = Path(__file__).parent
SPARSITIES = (0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
# At and below this a network of 10 classes guesses; after two such points a curve is not followed
# further and counts as guessing.
GUESSING = 0.12
CHANCE = 0.1


def gamma(strength: float) -> Composite:
    """Gamma in convolutions, epsilon in linear layers."""
    row = Assign(Gamma(strength), kind="convolution")
    return Composite("Gamma", (row, *epsilon().rows))


COMPOSITES: dict[str, Callable[[], Composite]] = {
    "epsilon": epsilon,
    "epsilon 0.1": lambda: epsilon(0.1),
    "z-plus": epsilon_plus,
    "alpha2beta1": epsilon_alpha2_beta1,
    "gamma 0.25": lambda: gamma(0.25),
}
SUMS = {"absolute": "Σ|R|", "absolute_of_sum": "|ΣR|"}


@dataclass(frozen=True)
class Variant:
    """A criterion with its options, and its row in the table."""

    criterion: str
    reduce: str = ""
    rule: str = ""
    normalise: str = "none"

    @property
    def name(self) -> str:
        """Its row in the table."""
        what = "R" if self.criterion == "lrp" else "wg" if self.criterion == "taylor" else "g"
        parts = [self.criterion, self.rule]
        if self.reduce:
            parts.append(SUMS[self.reduce].replace("R", what))
        if self.normalise != "none":
            parts.append(f"/ {self.normalise}")
        return " ".join(part for part in parts if part)

    def make(self, seed: int) -> criteria.Criterion:
        """Make the criterion."""
        options: dict[str, Any] = {"normalise": self.normalise}
        if self.reduce:
            options["reduce"] = self.reduce
        if self.rule:
            options["composite"] = COMPOSITES[self.rule]()
        if self.criterion == "random":
            options["seed"] = seed
        return criteria.create(self.criterion, "weight", **options)


VARIANTS = [
    Variant("magnitude"),
    Variant("magnitude", normalise="l2"),
    Variant("lamp"),
    Variant("lrp", "absolute", "epsilon"),
    Variant("lrp", "absolute", "epsilon", "l2"),
    Variant("lrp", "absolute", "epsilon 0.1"),
    Variant("lrp", "absolute", "epsilon 0.1", "l2"),
    Variant("lrp", "absolute_of_sum", "epsilon"),
    Variant("lrp", "absolute_of_sum", "epsilon", "l2"),
    Variant("lrp", "absolute", "z-plus"),
    Variant("lrp", "absolute", "z-plus", "l2"),
    Variant("lrp", "absolute_of_sum", "z-plus"),
    Variant("lrp", "absolute", "alpha2beta1"),
    Variant("lrp", "absolute", "alpha2beta1", "l2"),
    Variant("lrp", "absolute_of_sum", "alpha2beta1"),
    Variant("lrp", "absolute", "gamma 0.25", "l2"),
    Variant("taylor", "absolute"),
    Variant("taylor", "absolute", normalise="l2"),
    Variant("taylor", "absolute_of_sum"),
    Variant("gradient", "absolute"),
    Variant("gradient", "absolute", normalise="l2"),
    Variant("random"),
]


def curve(model: nn.Module, scores: criteria.Scores, test: tuple[Tensor, Tensor]) -> list[float]:
    """Accuracy at each sparsity."""
    found: list[float] = []
    for sparsity in SPARSITIES:
        if len(found) > 1 and max(found[-2:]) <= GUESSING:
            found.append(CHANCE)
            continue
        masks = pruning.select_weights(scores, 1 - sparsity)
        smaller = pruning.mask_weights(model, masks)
        found.append(evaluation.accuracy(smaller, test, batch_size=50))
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run what is not in the results yet, seed by seed."""
    model = zoo.vgglike().eval()
    models.load_weights(model, options.weights)
    # This order of the channels in memory is twice as fast for narrow layers on a processor.
    model = model.to(memory_format=torch.channels_last)
    training, whole = (
        data.open_data(options.data, zoo.vgglike.preprocessing, split=split)  # type: ignore[attr-defined]
        for split in ("train", "test")
    )
    images, labels = data.in_memory(data.references(whole, options.test // 10, 0))
    test = images.to(memory_format=torch.channels_last), labels
    path = options.out / "results.json"
    about = {
        "references": options.references,
        "test": len(labels),
        "sparsities": list(SPARSITIES),
        "unpruned": evaluation.accuracy(model, test, batch_size=50),
    }
    results: dict[str, Any] = {"about": about, "curves": {}}
    if path.exists():
        results = json.loads(path.read_text(encoding="utf-8"))
        if results["about"] != about:
            raise ValueError(f"{path} was measured with {results['about']}, not {about}: move it")
    for seed in range(options.seeds):
        few = data.in_memory(data.references(training, options.references, seed))
        raw: dict[Variant, criteria.Scores] = {}
        for variant in track(VARIANTS, f"seed {seed}"):
            curves = results["curves"].setdefault(variant.name, {})
            fixed = variant.criterion in ("magnitude", "lamp")
            if str(seed) in curves or (fixed and curves):
                continue
            plain = replace(variant, normalise="none")
            if plain not in raw:
                raw[plain] = criteria.score_weights(model, few, plain.make(seed))
            scores = raw[plain].normalised(variant.normalise)
            curves[str(seed)] = curve(model, scores, test)
            files.write_json(path, results)
    return results


def area(values: Sequence[float]) -> float:
    """Mean accuracy over the range of sparsities, by trapezia."""
    steps = zip(SPARSITIES, SPARSITIES[1:], values, values[1:], strict=False)
    total = sum((b - a) * (x + y) / 2 for a, b, x, y in steps)
    return total / (SPARSITIES[-1] - SPARSITIES[0])


def table(results: dict[str, Any]) -> str:
    """Markdown: a row per variant, the largest area first."""
    head = ["criterion", *(f"{s:.0%}" for s in SPARSITIES), "area", "seeds"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" + " ---: |" * (len(head) - 1)]
    rows = []
    for name, curves in results["curves"].items():
        runs = list(curves.values())
        areas = [area(run) for run in runs]
        cells = [_shown([run[i] for run in runs]) for i in range(len(SPARSITIES))]
        rows.append((statistics.mean(areas), [name, *cells, _shown(areas), str(len(runs))]))
    for _, row in sorted(rows, key=lambda row: -row[0]):
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    return "\n".join(lines)


def _shown(values: Sequence[float]) -> str:
    mean = 100 * statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.1f}"
    return f"{mean:.1f} ± {100 * statistics.stdev(values):.1f}"


def plot(path: Path, results: dict[str, Any]) -> None:
    """Draw the curve of the best variant of each criterion."""
    best: dict[str, tuple[float, str, list[float]]] = {}
    for name, curves in results["curves"].items():
        mean = [statistics.mean(values) for values in zip(*curves.values(), strict=True)]
        criterion = name.split()[0]
        best[criterion] = max(best.get(criterion, (-1.0, "", [])), (area(mean), name, mean))
    figure = Figure(figsize=(6.4, 4.4), layout="constrained", dpi=130)
    axis = figure.subplots()
    for _, name, mean in sorted(best.values(), reverse=True):
        width = 2.4 if name.startswith("lrp") else 1.2
        axis.plot(
            [100 * s for s in SPARSITIES], [100 * a for a in mean], "o-", lw=width, label=name
        )
    axis.axhline(100 * results["about"]["unpruned"], color="grey", lw=0.8, ls="--")
    axis.axhline(100 * CHANCE, color="grey", lw=0.8, ls=":")
    axis.set_xlabel("weights set to zero, %")
    axis.set_ylabel("accuracy, %")
    axis.legend(frameon=False)
    files.write_atomically(path, figure.savefig)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with train and test")
    parser.add_argument("--weights", required=True, type=Path, help="of the VGG-like network")
    parser.add_argument("--references", type=int, default=10, help="reference images per class")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--test", type=int, default=1000, help="number of test images")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE)
    return parser.parse_args()


def main() -> None:
    """Measure, and write the results, the table and the plot."""
    options = arguments()
    torch.set_num_threads(options.threads)
    results = measure(options)
    about = results["about"]
    text = (
        f"{about['references']} references per class, {about['test']} test images, unpruned "
        f"{about['unpruned']:.1%}, torch {torch.__version__}, Python {platform.python_version()}"
    )
    print(text, table(results), sep="\n\n")
    files.write_text(options.out / "table.md", f"{text}\n\n{table(results)}\n")
    plot(options.out / "curves.png", results)


if __name__ == "__main__":
    main()
