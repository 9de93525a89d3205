"""Which families of torchvision's classification networks can be pruned: to half of their MACs.

Run it from a checkout::

    python benchmarks/families.py
    python benchmarks/families.py --families resnet densenet --out /tmp/architectures.md

One network of each family, with random weights, loses filters by the sum of their absolute weights
until half of its multiply-accumulates are left. It must then run, and come back from its folder
with bit for bit the same outputs. What cannot be pruned is listed with the reason that is given to
the user. Writes the page `docs/architectures.md`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import niwaki
from niwaki.errors import NiwakiError

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
KEEP = 0.5


@dataclass(frozen=True)
class Family:
    """A family, the network that stands for it, and the side of the images it is measured on."""

    name: str
    network: str
    size: int = 64


FAMILIES = (
    Family("AlexNet", "alexnet", 96),
    Family("VGG", "vgg11", 32),
    Family("VGG with batch norm", "vgg11_bn", 32),
    Family("ResNet", "resnet18"),
    Family("ResNet with bottlenecks", "resnet50"),
    Family("ResNeXt", "resnext50_32x4d"),
    Family("Wide ResNet", "wide_resnet50_2"),
    Family("DenseNet", "densenet121"),
    Family("SqueezeNet", "squeezenet1_1"),
    Family("MobileNet V2", "mobilenet_v2"),
    Family("MobileNet V3", "mobilenet_v3_small"),
    Family("ShuffleNet V2", "shufflenet_v2_x0_5"),
    Family("MnasNet", "mnasnet0_5"),
    Family("GoogLeNet", "googlenet"),
    Family("Inception V3", "inception_v3", 96),
    Family("EfficientNet", "efficientnet_b0"),
    Family("EfficientNet V2", "efficientnet_v2_s"),
    Family("RegNet X", "regnet_x_400mf"),
    Family("RegNet Y", "regnet_y_400mf"),
    Family("ConvNeXt", "convnext_tiny"),
)


@dataclass(frozen=True)
class Result:
    """What became of a network."""

    family: Family
    kept: float | None
    params: float | None
    seconds: float
    reason: str = ""

    def row(self) -> str:
        """One row of the page's table."""
        if self.kept is None:
            return f"| {self.family.name} | `{self.family.network}` | | | refused: {self.reason} |"
        return (
            f"| {self.family.name} | `{self.family.network}` | {self.kept:.1%} | {self.params:.1%} "
            "| pruned; reloaded bit for bit |"
        )


def fresh(family: Family) -> nn.Module:
    """Build the network with random weights."""
    torch.manual_seed(0)
    return niwaki.models.build(f"torchvision:{family.network}", weights="random", classes=10)


def measure(family: Family) -> Result:
    """Prune a family's network, run it, save it, load it."""
    began = time.perf_counter()
    model = fresh(family)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, family.size, family.size, generator=generator)
    try:
        pruned = niwaki.prune(
            model,
            (images, torch.tensor([0, 1])),
            "weight",
            keep=KEEP,
            of="macs",
            repair=None,
            schedule=niwaki.pruning.Schedule(steps=1),  # random weights are worth no repair
        )
    except NiwakiError as error:
        return Result(family, None, None, time.perf_counter() - began, _first_sentence(error))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        pruned.save(Path(folder) / "smaller")
        again = niwaki.load(Path(folder) / "smaller", fresh(family))
        if not torch.equal(again(images), pruned.model(images)):
            raise RuntimeError(f"{family.network}: the network that was loaded is another one")
    kept = pruned.trajectory.kept("macs")[-1]
    return Result(family, kept, pruned.trajectory.kept("params")[-1], time.perf_counter() - began)


def _first_sentence(error: NiwakiError) -> str:
    return str(error).partition(". ")[0].replace("|", "\\|").replace("\n", " ")


def page(results: list[Result]) -> str:
    """Write the page."""
    return "\n".join(
        [
            "# Architectures",
            "",
            "One network of each family of torchvision's classification networks, with random",
            "weights, was pruned to half of its multiply-accumulates in one step. The pruned",
            "network was run, saved and reloaded, and its outputs were the same bit for bit.",
            "Shares refer to the unpruned network. The table is written by "
            "`python benchmarks/families.py`, with torch "
            f"{torch.__version__.partition('+')[0]}.",
            "",
            "| family | network measured | MACs left | parameters left | result |",
            "| --- | --- | ---: | ---: | --- |",
            *(result.row() for result in results),
            "",
            "Layers whose units cannot be removed, because of the structure of the network,",
            "keep them, and a warning names these layers with the reason. All other layers are",
            "pruned. Layers that keep their units can still be explained, scored and pruned by",
            "single weights (`niwaki.pruning.prune_weights`), which leaves channels in place.",
            "",
            "Known to be refused, beside channel shuffles: a concatenation that is flattened with",
            "more than one position per channel (`torch.cat(...)`, then `flatten`, then a linear",
            "layer), as the offsets of its parts get lost; pool it to one position first, or list",
            "all layers that go into it in `ignore`.",
            "",
        ]
    )


def main() -> None:
    """Measure all families, or those that are named, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--families", nargs="+", help="parts of the names of the networks wanted")
    parser.add_argument("--out", type=Path, default=PAGE)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = []
    for family in FAMILIES:
        if options.families and not any(part in family.network for part in options.families):
            continue
        results.append(measure(family))
        print(f"{results[-1].seconds:6.1f} s  {results[-1].row()}", flush=True)
    niwaki.files.write_text(options.out, page(results))


if __name__ == "__main__":
    main()
