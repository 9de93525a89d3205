"""The options that commands share, and how they become a model and images."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import nn

from niwaki import models, pruning
from niwaki.data import Images, Preprocessing, open_data
from niwaki.errors import DataError, ModelError, NiwakiError

__all__ = ["Loaded", "Machine", "console", "load_images", "load_model"]

ModelSpec = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="torchvision:NAME, timm:NAME, package.module:callable, path/to/file.py:callable, or "
        "the folder of a pruned network.",
    ),
]
DataSpec = Annotated[
    str,
    typer.Argument(
        metavar="DATA", help="A folder with one folder per class, torchvision:NAME, or digits."
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="A safetensors file or a checkpoint; 'random'; or a name of torchvision's. "
        "Default: the pretrained ones where there are any.",
        show_default=False,
    ),
]
Classes = Annotated[
    int | None,
    typer.Option(help="Number of classes to build the network with.", show_default=False),
]
Outputs = Annotated[
    str | None,
    typer.Option(
        help="The network's output for each class folder in order, such as 0,217,482, where they "
        "are not 0, 1, 2, ...",
        show_default=False,
    ),
]
Size = Annotated[
    int | None,
    typer.Option(help="Side of the network's input in pixels.", show_default=False),
]
Resize = Annotated[
    int | None,
    typer.Option(help="Shorter side before the centre is cropped.", show_default=False),
]
Mean = Annotated[
    str | None,
    typer.Option(help="Mean per channel, such as 0.5,0.5,0.5.", show_default=False),
]
Std = Annotated[
    str | None,
    typer.Option(help="Standard deviation per channel.", show_default=False),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn at random.")]
BatchSize = Annotated[int, typer.Option(help="Samples in a batch.", min=1)]
Threads = Annotated[
    int | None,
    typer.Option(help="CPU threads. Default: torch's own choice.", min=1, show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines, nothing else.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")]


def console(as_json: bool = False) -> Console:
    """Where tables and remarks go: the terminal, or nowhere beside JSON."""
    return Console(quiet=as_json, highlight=False)


@dataclass(frozen=True)
class Machine:
    """Where and how a command computes."""

    device: torch.device

    @classmethod
    def prepare(cls, device: str, threads: int | None) -> Machine:
        """Check the device and set the number of threads.

        Raises
        ------
        NiwakiError
            For a device that is not there.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            found = torch.device(device)
            torch.empty(1, device=found)
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise NiwakiError(f"device {device!r} cannot be used: {reason}") from error
        return cls(found)


@dataclass(frozen=True)
class Loaded:
    """A model and what is known of it.

    Attributes
    ----------
    model : nn.Module
        In evaluation mode, on its device.
    preprocessing : Preprocessing or None
        How an image becomes an input; None for a data set that has its own.
    class_names : list of str or None
        One per output.
    about : dict
        What rebuilds it: goes into the folder of a pruned network.
    plan : pruning.Plan
        What has been removed already.
    """

    model: nn.Module
    preprocessing: Preprocessing | None
    class_names: list[str] | None
    about: dict[str, Any]
    plan: pruning.Plan = field(default_factory=pruning.Plan)
    architecture: dict[str, list[int]] | None = None

    def class_name(self, output: int) -> str:
        """Name of an output, or its number."""
        known = self.class_names
        return known[output] if known is not None and output < len(known) else str(output)


def load_model(
    spec: str,
    machine: Machine,
    *,
    weights: str | None = None,
    classes: int | None = None,
    size: int | None = None,
    resize: int | None = None,
    mean: str | None = None,
    std: str | None = None,
) -> Loaded:
    """Build the model that a spec names, with its preprocessing (flags overrule)."""
    if models.is_saved(spec):
        loaded = _load_saved(Path(spec), weights, classes)
    else:
        model = models.build(spec, weights=weights, classes=classes)
        loaded = Loaded(
            model,
            models.preprocessing(spec, weights),
            models.class_names(spec, weights),
            {"model": spec, "classes": classes},
        )
    models.check(loaded.model)
    preprocessing = _preprocessing(loaded.preprocessing, size, resize, mean, std)
    about = {
        **loaded.about,
        "preprocessing": preprocessing.to_json() if preprocessing else None,
        "class_names": loaded.class_names,
    }
    return Loaded(
        loaded.model.to(machine.device),
        preprocessing,
        loaded.class_names,
        about,
        loaded.plan,
        loaded.architecture,
    )


def _load_saved(folder: Path, weights: str | None, classes: int | None) -> Loaded:
    if weights is not None or classes is not None:
        raise ModelError(f"{folder} is a pruned network with its own weights and classes")
    try:
        about = json.loads((folder / "niwaki.json").read_text(encoding="utf-8"))
        plan = pruning.Plan.from_json(json.loads((folder / "plan.json").read_text("utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder} is no folder of a pruned network: {error}") from error
    if not about.get("model"):
        raise ModelError(
            f"{folder} does not say which architecture it was pruned from; load it in Python with "
            "niwaki.load(folder, model=fresh_architecture)"
        )
    fresh = models.build(about["model"], weights="random", classes=about.get("classes"))
    known = about.get("preprocessing")
    return Loaded(
        pruning.load(folder, fresh),
        Preprocessing.from_json(known) if known else None,
        about.get("class_names"),
        {"model": about["model"], "classes": about.get("classes")},
        plan,
        about["architecture"],
    )


def _preprocessing(
    known: Preprocessing | None,
    size: int | None,
    resize: int | None,
    mean: str | None,
    std: str | None,
) -> Preprocessing | None:
    if size is None and resize is None and mean is None and std is None:
        return known
    if known is None and (size is None or mean is None or std is None):
        raise DataError(
            "nothing is known of the network's inputs: give --size, --mean and --std together"
        )
    means = _numbers("--mean", mean) if mean else known.mean if known else ()
    return Preprocessing(
        size or (known.size if known else 0),
        resize if resize is not None else (known.resize if known and not size else None),
        mean=means,
        std=_numbers("--std", std) if std else known.std if known else (),
        channels=len(means),
    )


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise DataError(f"{option} {text!r}: expected numbers separated by commas") from None


def load_images(
    spec: str, loaded: Loaded, *, split: str = "test", outputs: str | None = None
) -> Images:
    """Open the data set that a spec names, prepared for the model."""
    if loaded.preprocessing is None and spec != "digits":
        raise DataError(
            "nothing is known of the network's inputs: give --size, --mean and --std "
            "(for ImageNet's: --size 224 --resize 256 --mean 0.485,0.456,0.406 "
            "--std 0.229,0.224,0.225)"
        )
    chosen = None if outputs is None else [int(o) for o in _numbers("--outputs", outputs)]
    return open_data(spec, loaded.preprocessing, split=split, outputs=chosen)
