"""``niwaki audit --demo``: plant a bias, find it, repair it, and audit again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from niwaki.auditing import (
    Audit,
    Finding,
    Spread,
    auc,
    audit,
    before_and_after,
    filled,
    foreign,
    markdown,
    project_out,
    prune_artefact,
    side_by_side,
)
from niwaki.cli import _options as o
from niwaki.data import Images, batches
from niwaki.datasets import TISSUE, draw_tissue, plant
from niwaki.files import new_folder, write_text
from niwaki.models import zoo
from niwaki.pruning import FineTune, fine_tune
from niwaki.report import write_audit
from niwaki.terminal import headed

Pair = tuple[Tensor, Tensor]
_REMARKS = [
    "The tiles are synthetic, drawn to look like H&E; no patient is behind them. A network learned "
    "to tell tumour from normal tiles, and 80 % of the tumour tiles it learned from have a small "
    "yellow square in a corner, as a label on a slide might leave it. The audit is told nothing of "
    "that.",
    "AUC: on held-out tiles with the square on as many tumour tiles, which is all that a usual "
    "test shows; AUC clean: without any square; AUC attacked: with the square on all normal tiles.",
]


def run_demo(
    out: Path,
    device: torch.device,
    seed: int,
    overwrite: bool,
    quiet: bool,
    *,
    tiles: int = 800,
    epochs: int = 5,
    made: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Run the demo and return its table as plain data.

    Parameters
    ----------
    out : Path
        Folder to write.
    device : torch.device
        Where to compute.
    seed : int
        Seed of everything that is drawn.
    overwrite : bool
        Replace the folder.
    quiet : bool
        Print nothing.
    tiles, epochs : int
        Size of the training.
    made : dict, optional
        The command and the date, for the page.
    """
    started = time.perf_counter()
    show = o.console(quiet).print
    learned, held = draw_tissue(tiles, seed + 1), draw_tissue(tiles // 2, seed + 2)
    planted = plant(learned.pixels, learned.labels, "square", on=1, share=0.8, seed=seed)
    biased = plant(held.pixels, held.labels, "square", on=1, share=0.8, seed=seed + 1)
    attacked = plant(held.pixels, held.labels, "square", on=1, share=0, elsewhere=1, seed=seed + 2)
    training = _tensors(learned.images(pixels=planted.pixels), device)
    network = _train(training, seed, epochs)
    images = held.images(pixels=biased.pixels)
    before = audit(network, images, seed=seed, tissue=True)
    show(headed("before", f"({time.perf_counter() - started:.0f} s): {before}"))
    remedies = _repair(network, training, before, seed, epochs)
    after = audit(remedies["trained again"], images, seed=seed, tissue=True)
    show(headed("after", f"({time.perf_counter() - started:.0f} s): {after}"))
    audits = {"before": before, "after: trained again": after}
    for name in list(remedies)[1:]:
        audits[f"after: {name}"] = audit(remedies[name], images, seed=seed, tissue=True)
    networks = [network, *remedies.values()]
    more = {
        name: {
            "auc clean": _auc(model, held.images(), device),
            "auc attacked": _auc(model, held.images(pixels=attacked.pixels), device),
        }
        for name, model in zip(audits, networks, strict=True)
    }
    table = before_and_after(audits, more)
    with new_folder(out, overwrite=overwrite) as folder:
        write_audit(
            folder,
            {"Before": before, "After: trained again": after},
            heading="Audit of a network for tumour tissue, before and after its repair",
            remarks=_REMARKS,
            table=table,
            made=made,
        )
        shown = side_by_side(table, audits)
        write_text(folder / "table.md", markdown(shown))
    show(_printed(shown))
    show(
        f"open {out / 'index.html'} ({time.perf_counter() - started:.0f} s in all, "
        f"{time.process_time():.0f} s of one core)"
    )
    return {"folder": str(out), "table": table, "flagged": [f.key for f in before.flagged]}


def _printed(rows: list[dict[str, str]]) -> Table:
    """Lay the comparison out for a terminal."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in rows[0]:
        table.add_column("" if column == "measure" else column, justify="right")
    table.columns[0].justify, table.columns[0].min_width = "left", 27
    for row in rows:
        table.add_row(*row.values())
    return table


def _repair(
    network: nn.Module, training: Pair, before: Audit, seed: int, epochs: int
) -> dict[str, nn.Module]:
    """Repair by what the audit found; where it found nothing, the network stays."""
    if not before.flagged:
        return {"trained again": network}
    inputs, labels = training
    masks = _masks(inputs, labels.cpu().numpy(), before.flagged[0])
    # What the audit points at is painted over, and then put on both classes alike.
    repaired = filled(inputs.cpu(), masks)
    has = torch.as_tensor(masks.any((1, 2)))
    donors, where = inputs[has][:128], masks[has][:128]
    data = TensorDataset(repaired, labels.cpu())
    spread = _read(Spread(data, donors.cpu(), where, 0.5, seed), inputs.device)
    again = _train(spread, seed, epochs)
    clean = repaired[:256].to(inputs), labels[:256]
    marked = (donors, labels[has][:128], where)
    pruned = prune_artefact(network, marked, repaired[has][:128].to(inputs), clean)
    removed = sum(len(removal.channels) for removal in pruned.removals)
    return {
        "trained again": again,
        f"{removed} filters pruned, the rest rebuilt": pruned.model,
        "projected out (P-ClArC)": project_out(network, "relu2", (donors, where), clean[0]),
    }


def _masks(inputs: Tensor, labels: np.ndarray[Any, Any], finding: Finding) -> Any:
    """Find on other images what a finding is about."""
    masks = np.zeros((len(labels), *inputs.shape[-2:]), bool)
    if finding.region is not None:
        masks[labels == finding.label] = finding.region
    else:
        pixels = TISSUE.denormalise(inputs.cpu())
        masks[labels == finding.label] = foreign(pixels, labels, finding.label)
    return masks


def _train(training: Pair, seed: int, epochs: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = zoo.tissue_net().to(training[0].device).eval()
    settings = FineTune(
        epochs=epochs, optimizer="adamw", lr=3e-3, weight_decay=0.01, batch_size=32, seed=seed
    )
    fine_tune(model, training, settings)
    return model


def _tensors(images: Images, device: torch.device) -> Pair:
    return _read(images, device)


def _read(data: Any, device: torch.device) -> Pair:
    parts = list(batches(data, 64, device))
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def _auc(model: nn.Module, images: Images, device: torch.device) -> float:
    inputs, labels = _read(images, device)
    with torch.no_grad():
        outputs = torch.cat([model(part) for part in torch.split(inputs, 128)])
    return auc(outputs.double().cpu().numpy(), labels.cpu().numpy())
