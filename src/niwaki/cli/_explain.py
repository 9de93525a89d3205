"""``niwaki explain``: heatmaps of images under one or several methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.table import Table
from torch import Tensor

from niwaki import attribution
from niwaki.cli import _options as o
from niwaki.data import batches, check_labels
from niwaki.errors import NiwakiError
from niwaki.files import new_folder
from niwaki.report import contact_sheet

__all__ = ["explain"]


def explain(
    model: o.ModelSpec,
    images: Annotated[
        str,
        typer.Argument(
            metavar="IMAGES",
            help="An image, a folder of images, a folder per class, torchvision:NAME, or digits.",
        ),
    ],
    method: Annotated[
        list[str] | None,
        typer.Option(help="May be given several times. See `niwaki methods`.", show_default=False),
    ] = None,
    target: Annotated[
        int | None,
        typer.Option(
            help="The output to explain. Default: each image's largest.", show_default=False
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("heatmaps"),
    limit: Annotated[int, typer.Option(help="How many images at the most.", min=1)] = 8,
    weights: o.Weights = None,
    classes: o.Classes = None,
    outputs: o.Outputs = None,
    size: o.Size = None,
    resize: o.Resize = None,
    mean: o.Mean = None,
    std: o.Std = None,
    batch_size: o.BatchSize = 8,
    device: o.Device = "cpu",
    threads: o.Threads = None,
    seed: o.Seed = 0,
    force: o.Force = False,
    as_json: o.AsJson = False,
) -> None:
    """Show which pixels speak for what the network says.

    Writes a contact sheet of all images and methods (sheet.png) and the heatmaps as arrays
    (METHOD.npy).
    """
    machine = o.Machine.prepare(device, threads)
    chosen = method or ["lrp.epsilon_plus"]
    loaded = o.load_model(
        model,
        machine,
        weights=weights,
        classes=classes,
        size=size,
        resize=resize,
        mean=mean,
        std=std,
    )
    made = {name: attribution.create(name, loaded.model) for name in chosen}
    data = o.load_images(images, loaded, outputs=outputs)
    # A few images of every class rather than the first class alone; the seed says which.
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    picked = sorted(order[:limit].tolist()) if len(data) > limit else list(range(len(data)))
    subset = torch.utils.data.Subset(data, picked)

    inputs, heatmaps, predictions = [], {name: list[Tensor]() for name in chosen}, []
    for batch, _ in batches(subset, batch_size, machine.device, "explaining"):
        with torch.no_grad():
            probabilities = torch.softmax(loaded.model(batch), 1)
        if target is not None:
            check_labels(torch.tensor([target]), probabilities.shape[1])
        inputs.append(batch.cpu())
        for name, explainer in made.items():
            heatmaps[name].append(explainer.attribute(batch, target).cpu())
        best = probabilities.max(1)
        predictions += list(zip(best.indices.tolist(), best.values.tolist(), strict=True))

    rows = [
        {
            "image": data.paths[i].name if data.paths else f"{images} {i}",
            "class": data.class_name(data.targets[i]) if data.labelled else None,
            "prediction": loaded.class_name(output),
            "probability": round(probability, 4),
        }
        for i, (output, probability) in zip(picked, predictions, strict=True)
    ]
    with new_folder(out, overwrite=force) as folder:
        stacked = {name: torch.cat(parts) for name, parts in heatmaps.items()}
        for name, values in stacked.items():
            np.save(folder / f"{name}.npy", values.numpy())
        contact_sheet(
            folder / "sheet.png",
            data.preprocessing.denormalise(torch.cat(inputs)),
            stacked,
            titles=[f"{row['prediction']} {row['probability']:.0%}"[:24] for row in rows],
            heading=f"{Path(model).name}: prediction and heatmaps"
            + (f" for output {loaded.class_name(target)}" if target is not None else ""),
        )
        (folder / "images.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")
    _report(rows, chosen, out, as_json)


def _report(rows: list[dict[str, object]], methods: list[str], out: Path, as_json: bool) -> None:
    if not rows:
        raise NiwakiError("there was nothing to explain")
    if as_json:
        typer.echo(json.dumps({"folder": str(out), "methods": methods, "images": rows}, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    o.console().print(table)
    o.console().print(f"wrote {out / 'sheet.png'}")
