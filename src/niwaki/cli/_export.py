"""``niwaki export``: a network as a file that runs without us."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from niwaki import ranges as r
from niwaki.cli import _options as o
from niwaki.cli._fits import check_fits
from niwaki.cli._json import say
from niwaki.cli._outputs import check_output
from niwaki.cli._spread import Listed, numbers
from niwaki.errors import NiwakiError

if TYPE_CHECKING:
    from niwaki.models import Format

__all__ = ["export"]

_FORMATS: dict[str, Format] = {".onnx": "onnx", ".pt2": "program"}

_SHAPE = Listed(r.SIDE, most=5)


@o.spread
def export(
    model: o.ModelSpec,
    out: Annotated[
        Path,
        o.Written(),
        typer.Option(help="File to write: .onnx, or .pt2 for a program of torch.export."),
    ],
    input_shape: Annotated[
        str | None,
        _SHAPE,
        typer.Option(
            help="Shape of one sample, such as 3,224,224. Default: the shape that is known for "
            "the model.",
            show_default=False,
        ),
    ] = None,
    weights: o.Weights = None,
    classes: o.Classes = None,
    architecture: o.Architecture = None,
    trust: o.Trust = False,
    threads: o.Threads = None,
    force: o.Force = False,
    as_json: o.AsJson = False,
) -> None:
    """Write a network as ONNX or as a program of torch, checked against the network.

    MODEL may be the folder of a pruned network. The file takes any number of samples; it is run
    and compared with the network before it appears.
    """
    from niwaki import models

    format_ = _FORMATS.get(out.suffix)
    if format_ is None:
        raise NiwakiError(f"--out {out}: the name must end in {' or '.join(_FORMATS)}")
    if out.is_dir():
        raise NiwakiError(f"--out {out} is a folder; give the path of a file")
    check_output(out, force=force, model=model, files=[weights])
    loaded = o.Common(
        weights=weights, classes=classes, architecture=architecture, trust=trust, threads=threads
    ).load(model)
    shape = _given(input_shape) if input_shape else o.input_shape(model, loaded)
    check_fits(loaded.model, shape, 1)
    models.export(loaded.model, out, shape, format=format_)
    if as_json:
        about = {"file": str(out), "format": format_, "input_shape": list(shape)}
        say({**about, "bytes": out.stat().st_size})
        return
    size = out.stat().st_size / 2**20
    o.console().print(f"wrote {out}, {size:.1f} MiB, inputs (N, {', '.join(map(str, shape))})")


def _given(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in numbers("--input-shape", text, _SHAPE))
