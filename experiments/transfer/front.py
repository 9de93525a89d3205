"""One photograph, explained by a network that tells cats from dogs, before and after pruning.

    python experiments/transfer/front.py --data CATS_DOGS --weights squeezenet1_1.safetensors

DATA is a folder with train/ and test/ (or val/), each with a folder per class, cats first.
SqueezeNet is adapted as in run.py, then pruned by the defaults of `niwaki.prune` from a few images
per class and never trained again. The photograph is scikit-image's cat (Stefan van der Walt, CC0).
Writes OUT/front.png and OUT/front.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from run import MEAN, STD, adapted, centre, drawn, opened, read
from skimage.data import chelsea
from torch import Tensor, nn
from torchvision.transforms import v2

import niwaki
from niwaki.files import write_text
from niwaki.report import overlay

CAT = 0
PASSES = 60


def main() -> None:
    """Adapt, prune, explain, measure."""
    asked = arguments()
    torch.set_num_threads(asked.threads)
    larger = round(asked.size * 1.125)
    training, test = (read(asked.data, split, larger) for split in ("train", "test"))
    test = centre(test[0], asked.size), test[1]
    results = opened(asked.out / "results.json", asked)
    material = drawn(training, test, asked, 0)
    model = adapted(material, asked, 0, asked.out, results)
    pruned = niwaki.prune(model, material.references, keep=asked.keep, test=test)
    photo = photograph(asked.size)
    networks = {"whole network": model, "pruned, not trained again": pruned.model}
    times = milliseconds(networks, photo)
    rows = (pruned.trajectory[0], pruned.trajectory[-1])
    lines = ["| | accuracy | MACs | file | one photograph |", "| --- | ---: | ---: | ---: | ---: |"]
    for (name, network), row in zip(networks.items(), rows, strict=True):
        size = 4 * sum(p.numel() for p in network.parameters()) / 1e6
        lines.append(
            f"| {name} | {row.accuracy:.1%} | {row.macs / 1e6:,.0f} million | {size:.1f} MB | "
            f"{times[name]:.1f} ms |"
        )
    text = "\n".join(lines) + "\n"
    write_text(asked.out / "front.md", text)
    draw(asked.out / "front.png", photo, networks)
    print(text)


def photograph(size: int) -> Tensor:
    """The cat's face, as the network gets it."""
    whole = torch.from_numpy(chelsea()).permute(2, 0, 1)
    face = whole[:, :, 70:370]
    resized = v2.functional.resize(face, [size, size], antialias=True) / 255
    return v2.functional.normalize(resized, list(MEAN), list(STD))[None]


def milliseconds(networks: dict[str, nn.Module], photo: Tensor) -> dict[str, float]:
    """Median time of a pass, the networks in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    with torch.no_grad():
        for number in range(PASSES + 10):
            for name, network in networks.items():
                started = time.perf_counter()
                network(photo)
                if number >= 10:
                    seconds[name].append(time.perf_counter() - started)
    return {name: 1e3 * statistics.median(found) for name, found in seconds.items()}


def draw(path: Path, photo: Tensor, networks: dict[str, nn.Module]) -> None:
    """Put the photograph beside its heatmaps."""
    shown = (photo[0] * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]).clamp(
        0, 1
    )
    pictures = {"photograph": shown.permute(1, 2, 0).numpy()}
    for name, network in networks.items():
        heatmap = niwaki.explain(network, photo, CAT, method="lrp.epsilon_plus_flat")
        pictures[f"why a cat: {name}"] = overlay(shown, heatmap[0], 0.7)
    figure = Figure(figsize=(9, 3.3))
    for place, (title, picture) in enumerate(pictures.items(), start=1):
        axes = figure.add_subplot(1, len(pictures), place)
        axes.imshow(picture)
        axes.set_title(title, fontsize=10)
        axes.axis("off")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    ask = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ask.add_argument("--data", required=True, type=Path, help="folder with train and test")
    ask.add_argument("--weights", required=True, type=Path, help="SqueezeNet 1.1 on ImageNet")
    ask.add_argument("--size", type=int, default=160, help="height and width of inputs")
    ask.add_argument("--keep", type=float, default=0.4, help="share of the MACs")
    ask.add_argument("--references", type=int, default=20, help="images per class to prune by")
    ask.add_argument("--train-share", type=float, default=0.5, help="of the training images")
    ask.add_argument("--adapt-epochs", type=int, default=6)
    ask.add_argument("--adapt-lr", type=float, default=0.001)
    ask.add_argument("--device", default="cpu")
    ask.add_argument("--threads", type=int, default=1)
    ask.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "front")
    return ask.parse_args()


if __name__ == "__main__":
    main()
