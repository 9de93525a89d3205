"""The options that commands share, and how they become a model and images."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from niwaki import ranges as r
from niwaki.cli._fits import check_fits
from niwaki.cli._outputs import check_output
from niwaki.cli._spread import Listed, Written, numbers, spread
from niwaki.errors import DataError, ModelError, NiwakiError
from niwaki.terminal import Terminal

if TYPE_CHECKING:
    import torch
    from torch import nn

    from niwaki.data import Images, Preprocessing
    from niwaki.pruning import Plan
    from niwaki.runs import Workplace

__all__ = [
    "Common",
    "Loaded",
    "Machine",
    "console",
    "count_outputs",
    "load_images",
    "load_model",
    "spread",
]

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
_OUTPUTS = Listed(r.INDEX)
_MEAN = Listed(r.FINITE.but(low=-1e6, high=1e6), most=3)
_STD = Listed(r.POSITIVE.but(high=1e6, why="pixels are divided by it"), most=3)
Folder = Annotated[Path, Written(), typer.Option(help="Folder to write.")]
Resumed = Annotated[
    Path, Written(), typer.Option(help="Folder to write; an unfinished one goes on.")
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
    r.CLASSES,
    typer.Option(help="Number of classes to build the network with.", show_default=False),
]
Outputs = Annotated[
    str | None,
    _OUTPUTS,
    typer.Option(
        help="The network's output for each class folder in order, such as 0,217,482. Default: by "
        "name, where the names of the outputs are known.",
        show_default=False,
    ),
]
Size = Annotated[
    int | None,
    r.SIDE,
    typer.Option(help="Side of the network's input in pixels.", show_default=False),
]
Resize = Annotated[
    int | None,
    r.SIDE,
    typer.Option(help="Shorter side before the centre is cropped.", show_default=False),
]
Mean = Annotated[
    str | None,
    _MEAN,
    typer.Option(help="Mean per channel, such as 0.5,0.5,0.5.", show_default=False),
]
Std = Annotated[
    str | None,
    _STD,
    typer.Option(help="Standard deviation per channel.", show_default=False),
]
ImageSpec = Annotated[
    str,
    typer.Argument(
        metavar="IMAGES",
        help="An image, a folder of images, a folder per class, torchvision:NAME, or digits.",
    ),
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        help="Method to explain by, with options as in smoothgrad:samples=8; may be given several "
        "times. See `niwaki methods`.",
        show_default=False,
    ),
]
Target = Annotated[
    int | None,
    r.INDEX,
    typer.Option(help="The output to explain. Default: each image's largest.", show_default=False),
]
Limit = Annotated[int, r.SOME, typer.Option(help="How many images at the most.")]
Overlay = Annotated[bool, typer.Option("--overlay", help="Lay the heatmaps over the images.")]
Colours = Annotated[
    str,
    typer.Option(
        help="A colour map of matplotlib: bwr, seismic, RdBu_r (signed), Reds, hot, inferno (only "
        "what speaks for the class)."
    ),
]
Percentile = Annotated[
    float,
    r.PERCENT,
    typer.Option(help="Percentile of the absolute values that gets the full colour."),
]
Shared = Annotated[
    bool, typer.Option("--shared-scale", help="One colour scale for all images of a method.")
]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, mps.")]
Seed = Annotated[
    int, r.SEED, typer.Option(help="Everything that is drawn at random follows from it.")
]
BatchSize = Annotated[int, r.BATCH, typer.Option(help="Samples in a batch.")]
Threads = Annotated[
    int | None,
    r.THREADS,
    typer.Option(help="CPU threads. Default: torch's own choice.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines, nothing else.")]
Architecture = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="What a pruned network was pruned from, where its folder does not say or the code "
        "lies elsewhere.",
        show_default=False,
    ),
]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Run the code that the folder of a pruned network names."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")]


def console(as_json: bool = False) -> Terminal:
    """Where tables and remarks go: the terminal, or nowhere beside JSON."""
    width = None if sys.stdout.isatty() else _WIDE
    return Terminal(quiet=as_json, width=width)


_WIDE = 120  # columns where there is no terminal, so that tables in files are not folded


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
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        try:
            found = torch.device(device)
            float(torch.ones(1, device=found))  # some devices, such as meta, hold no numbers
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise NiwakiError(
                f"--device {device}: cannot be used: {reason}; cpu is there always"
            ) from error
        return cls(found)


@dataclass(frozen=True)
class Common:
    """The options that say what network and images are meant, and where and how to compute.

    A command takes them as one parameter ``common`` and is decorated with `spread`, which closes
    what it has opened.
    """

    _: KW_ONLY
    weights: Weights = None
    classes: Classes = None
    architecture: Architecture = None
    trust: Trust = False
    outputs: Outputs = None
    size: Size = None
    resize: Resize = None
    mean: Mean = None
    std: Std = None
    batch_size: BatchSize = 8
    device: Device = "cpu"
    threads: Threads = None
    seed: Seed = 0
    force: Force = False
    as_json: AsJson = False
    opened: ExitStack = field(default_factory=ExitStack, init=False, repr=False)

    def load(self, model: str) -> Loaded:
        """Prepare the machine and build the model, in evaluation mode."""
        return load_model(
            model,
            Machine.prepare(self.device, self.threads),
            weights=self.weights,
            classes=self.classes,
            architecture=self.architecture,
            trust=self.trust,
            size=self.size,
            resize=self.resize,
            mean=self.mean,
            std=self.std,
            seed=self.seed,
        )

    def check_output(
        self,
        out: Path,
        model: str | None,
        *data: str | None,
        files: Iterable[Path | str] = (),
        goes_on: bool = False,
    ) -> None:
        """Refuse an output that cannot be written, before the work is done rather than after it."""
        check_output(
            out,
            force=self.force,
            model=model,
            data=data,
            files=[*files, self.weights],
            goes_on=goes_on,
        )

    def workplace(self, out: Path) -> Workplace:
        """Begin to work on an output, alone, until the command ends."""
        from niwaki.runs import workplace

        return self.opened.enter_context(workplace(out, overwrite=self.force))

    def images(self, spec: str, loaded: Loaded, split: str = "test") -> Images:
        """Open the images that a spec names, prepared for the model."""
        found = load_images(spec, loaded, split=split, outputs=self.outputs)
        made = found.preprocessing
        shape = made.channels, made.size, made.size
        known = check_fits(loaded.model, shape, min(self.batch_size, max(1, len(found))))
        if self.outputs is not None and known is not None and max(found.targets) >= max(known, 2):
            raise NiwakiError(
                f"--outputs {self.outputs}: the network has {known} outputs, numbered from 0"
            )
        return found


def _nothing_removed() -> Plan:
    from niwaki.pruning import Plan

    return Plan()


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
    plan : Plan
        What has been removed already.
    """

    model: nn.Module
    preprocessing: Preprocessing | None
    class_names: list[str] | None
    about: dict[str, Any]
    plan: Plan = field(default_factory=_nothing_removed)
    architecture: dict[str, list[int]] | None = None

    def named_by(self, images: Images) -> Loaded:
        """Return the same with a name for each output: the network's own, or else the images'."""
        count = count_outputs(self.model, images)
        if self.class_names is not None and len(self.class_names) == count:
            return self
        if not images.labelled or count is None:
            return replace(self, class_names=None, about={**self.about, "class_names": None})
        names = [images.class_name(output) for output in range(count)]
        return replace(self, class_names=names, about={**self.about, "class_names": names})

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
    architecture: str | None = None,
    trust: bool = False,
    size: int | None = None,
    resize: int | None = None,
    mean: str | None = None,
    std: str | None = None,
    seed: int = 0,
) -> Loaded:
    """Build the model that a spec names, with its preprocessing (flags overrule).

    Weights that are drawn at random follow from the seed.
    """
    import torch

    from niwaki import models

    if models.is_saved(spec):
        loaded = _load_saved(Path(spec), weights, classes, architecture, trust)
    elif architecture is not None:
        raise ModelError(f"--architecture goes with the folder of a pruned network, not {spec!r}")
    else:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = models.build(spec, weights=weights, classes=classes)
        loaded = Loaded(
            model,
            models.preprocessing(spec, weights),
            models.class_names(spec, weights),
            models.Origin.of(spec, classes, random=weights == "random").to_json(),
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


def _load_saved(
    folder: Path,
    weights: str | None,
    classes: int | None,
    architecture: str | None,
    trust: bool,
) -> Loaded:
    from niwaki import models, pruning

    if weights is not None or (classes is not None and architecture is None):
        raise ModelError(f"{folder} is a pruned network with its own weights and classes")
    saved = pruning.Saved.read(folder)
    origin, fresh = saved.origin, None
    if architecture is not None:
        known = classes if origin is None or classes is not None else origin.classes
        random = origin is not None and origin.random
        origin = models.Origin.of(architecture, known, random=random)
        if architecture.startswith("torchvision:"):
            fresh = origin.build(folder)  # it knows which of them rescale their inputs
        else:
            fresh = models.build(architecture, weights="random", classes=known)
    return Loaded(
        saved.rebuild(fresh, trust=trust),
        saved.preprocessing,
        saved.class_names,
        {} if origin is None else origin.to_json(),
        saved.plan,
        saved.architecture,
    )


def _preprocessing(
    known: Preprocessing | None,
    size: int | None,
    resize: int | None,
    mean: str | None,
    std: str | None,
) -> Preprocessing | None:
    from niwaki.data import Preprocessing

    if size is None and resize is None and mean is None and std is None:
        return known
    if known is None and (size is None or mean is None or std is None):
        raise DataError(
            "nothing is known of the network's inputs: give --size, --mean and --std together"
        )
    means = numbers("--mean", mean, _MEAN) if mean else known.mean if known else ()
    return Preprocessing(
        size or (known.size if known else 0),
        resize if resize is not None else (known.resize if known and not size else None),
        mean=tuple(means),
        std=tuple(numbers("--std", std, _STD)) if std else known.std if known else (),
        channels=len(means),
    )


def load_images(
    spec: str, loaded: Loaded, *, split: str = "test", outputs: str | None = None
) -> Images:
    """Open the data set that a spec names, prepared for the model and labelled by its outputs.

    The classes are matched by name with the network's outputs, where their names are known.
    """
    import torch

    from niwaki.data import check_labels, names, open_data

    if loaded.preprocessing is None and spec not in names():
        raise DataError(
            "nothing is known of the network's inputs: give --size, --mean and --std "
            "(for ImageNet's: --size 224 --resize 256 --mean 0.485,0.456,0.406 "
            "--std 0.229,0.224,0.225)"
        )
    chosen = None
    if outputs is not None:
        chosen = [int(output) for output in numbers("--outputs", outputs, _OUTPUTS)]
    images = open_data(spec, loaded.preprocessing, split=split, outputs=chosen)
    count = count_outputs(loaded.model, images)
    if count is None:
        return images
    if chosen is not None:
        check_labels(torch.tensor(images.targets), count)
        return images
    known = loaded.class_names
    if known is not None and len(known) == count:
        return images.matched(known)
    return images.numbered(count)


def count_outputs(model: nn.Module, images: Images) -> int | None:
    """Return how many classes a network tells apart, None if it does not return (N, classes).

    What goes wrong here goes wrong again where the images are used, with a message that fits.
    """
    import torch

    from niwaki.models import class_logits

    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad():
            said = class_logits(model(torch.zeros_like(images[0][0])[None].to(device)))
    except (RuntimeError, ValueError, TypeError):
        return None
    return said.shape[1] if said.ndim == 2 else None
