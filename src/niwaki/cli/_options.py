"""The options that commands share."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from niwaki import ranges as r
from niwaki.cli._fits import check_fits
from niwaki.cli._heatmaps import some_of
from niwaki.cli._loading import (
    MEAN,
    OUTPUTS,
    STD,
    Loaded,
    check_labelled,
    count_outputs,
    input_shape,
    load_images,
    load_model,
)
from niwaki.cli._outputs import check_output
from niwaki.cli._spread import Written, spread
from niwaki.errors import NiwakiError
from niwaki.processes import is_first, local_rank
from niwaki.terminal import Terminal

if TYPE_CHECKING:
    import torch

    from niwaki.data import Images
    from niwaki.runs import Workplace

__all__ = [
    "Common",
    "Loaded",
    "check_labelled",
    "console",
    "count_outputs",
    "input_shape",
    "load_images",
    "prepare",
    "resumable",
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
        metavar="DATA",
        help="A folder with one folder per class, webdataset:PATTERN (tar files), hf:NAME "
        "(Hugging Face), torchvision:NAME, or digits.",
    ),
]
Folder = Annotated[Path, Written(), typer.Option(help="Folder to write.")]
Resumed = Annotated[
    Path, Written(), typer.Option(help="Folder to write. An unfinished run in it is resumed.")
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
    OUTPUTS,
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
    MEAN,
    typer.Option(help="Mean per channel, such as 0.5,0.5,0.5.", show_default=False),
]
Std = Annotated[
    str | None,
    STD,
    typer.Option(help="Standard deviation per channel.", show_default=False),
]
ImageSpec = Annotated[
    str,
    typer.Argument(
        metavar="IMAGES",
        help="An image, a folder of images, a folder per class, webdataset:PATTERN (tar files), "
        "hf:NAME (Hugging Face), torchvision:NAME, or digits.",
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
    str,
    typer.Option(
        help="The class to explain: predicted or true, a class's name, or the number of an output."
    ),
]
Limit = Annotated[int, r.SOME, typer.Option(help="Largest number of images.")]
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
    bool, typer.Option("--shared-scale", help="Use one colour scale for all images of a method.")
]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, mps.")]
Seed = Annotated[int, r.SEED, typer.Option(help="The seed of everything that is drawn at random.")]
BatchSize = Annotated[int, r.BATCH, typer.Option(help="Samples in a batch.")]
Threads = Annotated[
    int | None,
    r.THREADS,
    typer.Option(help="CPU threads. Default: torch's own choice.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines and nothing else.")]
Architecture = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="The architecture that a pruned network was pruned from, if its folder does not say"
        " or the code has moved.",
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


def prepare(device: str, threads: int | None) -> torch.device:
    """Set the number of threads, and return the device after a try.

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
        if device == "cuda" and (number := local_rank()) is not None:
            found = torch.device("cuda", number)  # each process of a launcher has its own
        float(torch.ones(1, device=found))  # some devices, such as meta, hold no numbers
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise NiwakiError(
            f"--device {device}: cannot be used: {reason}; cpu is there always"
        ) from error
    return found


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Let Ctrl-C end with a line that says how to resume, if there is something to resume."""
    try:
        yield
    except KeyboardInterrupt:
        if is_first() and any(folder.rglob("*.safetensors")):
            print(f"stopped; the same command resumes from {folder}", file=sys.stderr)
            raise typer.Exit(130) from None
        raise


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
            prepare(self.device, self.threads),
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

        work = self.opened.enter_context(workplace(out, overwrite=self.force))
        self.opened.enter_context(resumable(work.path))
        return work

    def images(self, spec: str, loaded: Loaded, split: str = "test") -> Images:
        """Open the images that a spec names, prepared for the model."""
        found = load_images(
            spec, loaded, split=split, outputs=self.outputs, batch_size=self.batch_size
        )
        found = some_of(found, f"{split} images", self.batch_size)
        made = found.preprocessing
        shape = made.channels, made.size, made.size
        check_fits(loaded.model, shape, min(self.batch_size, max(1, len(found))))
        return found

    def training(self, spec: str, loaded: Loaded) -> Images:
        """Open the training images of a data set, of which a command reads as many as it needs."""
        return load_images(
            spec, loaded, split="train", outputs=self.outputs, batch_size=self.batch_size
        )
