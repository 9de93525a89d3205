"""``niwaki info``: what a network is made of, what may be removed, and what it confuses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from niwaki import ranges as r
from niwaki.cli import _options as o
from niwaki.cli._acts import Acts
from niwaki.cli._fits import check_fits
from niwaki.cli._json import say
from niwaki.errors import NiwakiError

if TYPE_CHECKING:
    from torch import Tensor

    from niwaki.report import NetworkInfo

__all__ = ["info"]

_PAIRS = 10  # confusions that are listed


@o.spread
def info(
    model: o.ModelSpec,
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA",
            help="Images to judge it on: a folder with one folder per class, webdataset:PATTERN "
            "(tar files), hf:NAME (Hugging Face), torchvision:NAME, or digits.",
            show_default=False,
        ),
    ] = None,
    composite: Annotated[
        str, typer.Option(help="The composite whose rules are shown: a preset, or a .json file.")
    ] = "epsilon_plus",
    limit: Annotated[
        int, r.SOME, Acts(beside=("data",)), typer.Option(help="Largest number of images.")
    ] = 1000,
    *,
    common: o.Common,
) -> None:
    """Show a network's layers, their cost, what can be pruned, and the rule of each operation.

    With DATA, its accuracy and the classes that it confuses are shown as well. Times are those of a
    single sample on this machine.
    """
    import torch

    from niwaki import evaluation
    from niwaki.cli._heatmaps import pick
    from niwaki.models import device_of
    from niwaki.propagation import composite_named
    from niwaki.report import network_info

    if common.outputs is not None and data is None:
        raise NiwakiError(f"--outputs {common.outputs} does nothing without DATA: give that, too")
    rules = composite_named(composite)
    loaded = common.load(model)
    images = None if data is None else common.images(data, loaded)
    if images is None:
        shape = o.input_shape(model, loaded)
        check_fits(loaded.model, shape, 1)
    else:
        loaded = loaded.named_by(images)
        seen = images.preprocessing
        shape = seen.channels, seen.size, seen.size
    drawn = torch.randn(1, *shape, generator=torch.Generator().manual_seed(common.seed))
    found = network_info(loaded.model, drawn.to(device_of(loaded.model)), rules)
    counts, about = None, {"input_shape": list(shape), **found.to_json()}
    if images is not None:
        picked = pick(images, limit, common.seed, data or model).subset
        counts = evaluation.confusion(loaded.model, picked, batch_size=common.batch_size)
        about |= {
            "images": len(picked),
            "accuracy": _accuracy(counts),
            "classes": [loaded.class_name(number) for number in range(len(counts))],
            "confusion": counts.tolist(),
        }
    if common.as_json:
        say(about)
        return
    _show(found, shape)
    if counts is not None:
        _show_confusions(counts, loaded)


def _accuracy(counts: Tensor) -> float:
    return float(counts.diagonal().sum() / counts.sum())


def _show(found: NetworkInfo, shape: tuple[int, ...]) -> None:
    console = o.console()
    table = Table(box=None, pad_edge=False)
    for title, side in (
        ("layer", "left"),
        ("weight", "left"),
        ("parameters", "right"),
        ("MACs", "right"),
        ("ms", "right"),
        ("can go", "right"),
        ("rule", "left"),
    ):
        table.add_column(title, justify="right" if side == "right" else "left", overflow="fold")
    for layer in found.layers:
        table.add_row(
            layer.name,
            " x ".join(map(str, layer.weight)),
            f"{layer.params:,}",
            f"{layer.macs:,}",
            "" if layer.milliseconds is None else f"{layer.milliseconds:.2f}",
            f"{layer.removable}" if layer.removable else layer.why_not or "none",
            layer.rule.partition("(")[0],
        )
    console.print(table)
    for name, rules in found.operations.items():
        console.print(f"{name}: {', '.join(rule.removesuffix('()') for rule in rules)}")
    console.print(
        f"{found.cost}; {found.size / 2**20:.1f} MiB; {found.milliseconds:.1f} ms for one input of "
        f"{' x '.join(map(str, shape))}"
    )
    for remark in found.remarks:
        console.print(remark)


def _show_confusions(counts: Tensor, loaded: o.Loaded) -> None:
    console = o.console()
    console.print(f"accuracy {_accuracy(counts):.1%} of {int(counts.sum())} images")
    wrong = counts.clone().fill_diagonal_(0)
    order = wrong.flatten().argsort(descending=True, stable=True)[:_PAIRS].tolist()
    rows: list[dict[str, Any]] = []
    for place in order:
        true, said = divmod(place, len(counts))
        if wrong[true, said]:
            share = int(wrong[true, said]) / int(counts[true].sum())
            rows.append(
                {
                    "true": loaded.class_name(true),
                    "predicted": loaded.class_name(said),
                    "images": int(wrong[true, said]),
                    "of the class": f"{share:.1%}",
                }
            )
    if rows:
        from niwaki.cli._heatmaps import table

        console.print(table(rows))
