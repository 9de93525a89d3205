"""``niwaki demo``: the main job on embedded data, in about a minute."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from niwaki.cli import _options as o
from niwaki.cli._json import say
from niwaki.cli._outputs import check_output
from niwaki.cli._provenance import provenance
from niwaki.errors import NiwakiError
from niwaki.progress import track
from niwaki.terminal import headed

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from niwaki.pruning import Pruned

    Pair = tuple[Tensor, Tensor]

__all__ = ["demo"]

SHOWN = [0.8, 0.6, 0.5, 0.4, 0.3, 0.2]

# Those of Yeom et al. (2021), the activation, and the default.
CRITERIA = ("activation", "gradient", "lrp", "lrp.rebuilt", "random", "taylor", "weight")

PER_STEP = 0.1  # of the MACs

_REMARK = (
    "A small network learned handwritten digits, was explained, and was pruned by several criteria "
    "from 10 reference digits per class, without fine-tuning."
)


@o.spread
def demo(
    context: typer.Context,
    out: o.Folder = Path("demo"),
    device: o.Device = "cpu",
    threads: o.Threads = None,
    seed: o.Seed = 0,
    batch_size: o.BatchSize = 64,
    as_json: o.AsJson = False,
) -> None:
    """Train a small network on digits, explain it, prune it by each criterion and compare them.

    Everything is embedded: no data is downloaded. The folder is replaced if it is a demo's.
    """
    import torch
    from torch.utils.data import TensorDataset

    from niwaki import criteria, evaluation, pruning
    from niwaki.data import references
    from niwaki.files import new_folder, write_json
    from niwaki.models import zoo
    from niwaki.report import write_report

    check_output(out, force=(out / "demo.json").exists())
    started = time.perf_counter()
    place = o.prepare(device, threads)
    show = o.console(as_json).print
    test, training = (_tensors(split, place) for split in ("test", "train"))
    model = _train(training, seed, batch_size)
    show(
        headed(
            "trained",
            f"a small VGG on {len(training[0])} digits of 8 x 8 pixels in "
            f"{time.perf_counter() - started:.0f} s: "
            f"{evaluation.accuracy(model, test):.1%} of {len(test[0])} test digits right",
        )
    )
    few = _pair(references(TensorDataset(*training), 10, seed))
    schedule, run = pruning.Schedule(per_step=PER_STEP), pruning.Run(batch_size=batch_size)
    runs = {}
    for name in track(CRITERIA, "pruning by each criterion"):
        options: dict[str, Any] = {"seed": seed} if name == "random" else {}
        made = criteria.create(name, **options)
        runs[name] = pruning.prune(
            model, few, made, keep=0.2, schedule=schedule, repair="rebuild", test=test, run=run
        )
    runs["lrp, not rebuilt"] = pruning.prune(
        model, few, "lrp", keep=0.2, schedule=schedule, repair=None, test=test, run=run
    )
    smaller = pruning.prune(model, few, keep=0.6, schedule=schedule, test=test, run=run)
    show(
        headed(
            "pruned",
            f"by {len(CRITERIA)} criteria from {len(few[0])} reference digits, rebuilt without "
            "fine-tuning; accuracy at the share of MACs kept:",
        )
    )
    table = _table(runs)
    show(_rich(table))
    with new_folder(out, overwrite=True) as folder:
        _draw(folder, model, smaller, runs, test)
        smaller.save(folder / "pruned", about=_about())
        write_json(folder / "table.json", table)
        (folder / "table.md").write_text(_markdown(table), encoding="utf-8")
        write_json(folder / "demo.json", {"seed": seed, "device": device})
        curves = {name: run.trajectory.to_json() for name, run in runs.items()}
        write_json(folder / "curves.json", curves)
        about = provenance(context, "niwaki demo", model, data="digits", remarks=[_REMARK])
        write_json(folder / "run.json", about)
        write_report(folder)
    again = pruning.load(out / "pruned", zoo.vgg_digits()).to(place)
    with torch.no_grad():
        same = torch.equal(again(test[0]), smaller.model(test[0]))
    if not same:
        raise NiwakiError("the outputs of the reloaded network differ from those of the saved one")
    if as_json:
        say({"folder": str(out), "accuracy": table})
    show(
        headed("wrote", f"{out}/: index.html, heatmaps.png, curves.png, and the network that keeps")
    )
    show(
        f"60 % of the MACs in {out}/pruned (reloaded: same outputs, bit for bit). "
        f"{time.perf_counter() - started:.0f} s in all. Try"
    )
    show(f"  niwaki explain {out}/pruned digits --method lrp.epsilon_plus --method gradient")
    show(f"open {out / 'index.html'}")


def _tensors(split: str, device: torch.device) -> Pair:
    from niwaki.data import open_data

    return _pair(open_data("digits", split=split), device)


def _pair(data: object, device: torch.device | None = None) -> Pair:
    import torch

    from niwaki.data import batches

    parts = list(batches(data, 512, device))  # type: ignore[arg-type]
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def _train(training: Pair, seed: int, batch_size: int, epochs: int = 12) -> nn.Module:
    """Train from scratch; the same seed gives the same network on the same machine."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    from niwaki.models import zoo

    with torch.random.fork_rng():  # the initial weights come from torch's global generator
        torch.manual_seed(seed)
        model = zoo.vgg_digits().to(training[0].device).train()
    loader = DataLoader(
        TensorDataset(*training),
        batch_size=batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(seed),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=3e-3, total_steps=epochs * len(loader)
    )
    for _ in track(range(epochs), "training"):
        for inputs, labels in loader:
            loss = nn.functional.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return model.eval()


def _draw(
    folder: Path, model: nn.Module, smaller: Pruned, runs: dict[str, Pruned], test: Pair
) -> None:
    import torch

    from niwaki.attribution import explain
    from niwaki.datasets import DIGITS
    from niwaki.report import contact_sheet, plot_trajectories, save_heatmaps

    first = [int((test[1] == digit).nonzero()[0]) for digit in range(10)]
    images, labels = test[0][first], test[1][first]
    rows, titles = {}, []
    for title, network in (("whole", model), ("60 % of the MACs", smaller.model)):
        for method in ("gradient", "lrp.epsilon_plus"):
            rows[f"{method}\n({title})"] = explain(network, images, labels, method)
    with torch.no_grad():
        before, after = (m(images).argmax(1).tolist() for m in (model, smaller.model))
    titles = [f"{b} / {a}" for b, a in zip(before, after, strict=True)]
    told = [
        {
            "image": f"predicted {b} by the whole network, {a} by the pruned one",
            "class": f"digit {d}",
        }
        for d, b, a in zip(labels.tolist(), before, after, strict=True)
    ]
    flat = {name.replace("\n", " "): maps for name, maps in rows.items()}
    pixels = DIGITS.denormalise(images.cpu())
    save_heatmaps(folder, pixels, flat, rows=told, target="the true class")
    contact_sheet(
        folder / "heatmaps.png",
        DIGITS.denormalise(images.cpu()),
        rows,
        titles=titles,
        heading="Digits, explained before and after pruning (above: the prediction of each "
        "network)",
    )
    plot_trajectories(
        folder / "curves.png",
        {name: run.trajectory for name, run in runs.items()},
        heading="Digits: accuracy without fine-tuning, 10 reference images per class",
        chance=0.1,
    )


def _about() -> dict[str, object]:
    from niwaki.datasets import DIGITS

    return {
        "model": "niwaki.models.zoo:vgg_digits",
        "preprocessing": DIGITS.to_json(),
        "class_names": [str(digit) for digit in range(10)],
    }


def _table(runs: dict[str, Pruned]) -> list[dict[str, str | float]]:
    """One row per criterion: accuracy where the MACs first fall to each shown share."""
    rows: list[dict[str, str | float]] = []
    for name, run in runs.items():
        found = {f"{share:.0%}": _accuracy_at(run, share) for share in (1.0, *SHOWN)}
        rows.append({"criterion": name, **found})
    return sorted(rows, key=lambda row: -sum(v for v in row.values() if isinstance(v, float)))


def _accuracy_at(run: Pruned, share: float) -> float:
    kept = run.trajectory.kept("macs")
    step = next(s for s, k in zip(run.trajectory, kept, strict=True) if k <= share + 1e-9)
    assert step.accuracy is not None
    return float(step.accuracy)


def _rich(rows: list[dict[str, str | float]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "criterion" else "right")
    for row in rows:
        table.add_row(*(v if isinstance(v, str) else f"{v:.1%}" for v in row.values()))
    return table


def _markdown(rows: list[dict[str, str | float]]) -> str:
    head = list(rows[0])
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        cells = [v if isinstance(v, str) else f"{v:.1%}" for v in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
