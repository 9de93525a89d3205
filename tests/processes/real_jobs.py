"""What the processes of a crew are asked to do with trained networks and real images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch as safetensors
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import niwaki
from niwaki.data import batches, open_data, references
from niwaki.models import load_weights, zoo

IMAGENETTE = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)


class _Images(TensorDataset):
    preprocessing: Any = None


def trained(name: str, shared: Path, each: int) -> tuple[nn.Module, _Images]:
    """Return a trained network, and some images of each class."""
    weights, images = shared / "data" / "weights", shared / "data"
    if name == "efficientnet_lite0":
        import timm

        model = timm.create_model(name, num_classes=10).eval()
        state = safetensors.load_file(weights / "efficientnet_lite0_imagenet.safetensors")
        for part in ("classifier.weight", "classifier.bias"):
            state[part] = state[part][list(IMAGENETTE)]
        model.load_state_dict(state)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-3
        look = niwaki.data.Preprocessing(112, 128, mean=(0.498,) * 3, std=(0.502,) * 3)
        data = open_data(images / "imagenette", look, split="train")
    else:
        stem = {"resnet20": "resnet20_cifar10_jpeg", "vgglike": "vgglike_cifar10"}[name]
        build = getattr(zoo, name)
        model, look = build().eval(), build.preprocessing
        load_weights(model, weights / f"{stem}.safetensors")
        data = open_data(images / "cifar10", look, split="test")
    found = _Images(*next(iter(batches(references(data, each, 0), 10_000))))
    found.preprocessing = look
    return model, found


def some_of(data: _Images, count: int) -> _Images:
    """Return evenly chosen images: as many as leave a last batch of one."""
    chosen = torch.linspace(0, len(data) - 1, count).round().long()
    found = _Images(*(tensor[chosen] for tensor in data.tensors))
    found.preprocessing = data.preprocessing
    return found


def scored_and_pruned(name: str, shared: Path) -> dict[str, Any]:
    model, data = trained(name, shared, 6)
    large = name.startswith("eff")
    data = some_of(data, 29 if large else 57)  # batches of 7, and a last one of one
    found = niwaki.prune(
        model,
        data,
        keep=0.7,
        schedule=niwaki.pruning.Schedule(steps=1 if large else 2),
        test=data,
        run=niwaki.pruning.Run(batch_size=7),
    )
    return {
        "scores": dict(niwaki.score(model, data, "lrp", batch_size=7)),
        "plan": found.plan.to_json(),
        "accuracies": [step.accuracy for step in found.trajectory],
        "weights": {**found.model.state_dict()},
    }


def counted(name: str, shared: Path) -> dict[str, Tensor]:
    model, data = trained(name, shared, 1)
    layers = ["conv_stem", "blocks.0", "blocks.1.0"] if name.startswith("eff") else None
    found = niwaki.car.index(model, data, layers=layers, batch_size=3)
    kinds = ("broken", "mended", "near_ties")
    return {f"{kind}/{n}": getattr(layer, kind) for n, layer in found.items() for kind in kinds}


def audited(name: str, shared: Path) -> list[tuple[str, float, float]]:
    model, data = trained(name, shared, 12)
    data = some_of(data, 115)  # seven batches of 19
    questions = ["position", "colour"] if name.startswith("eff") else None
    found = niwaki.audit(model, data, batch_size=19, questions=questions)
    return [(each.key, each.effect, each.p_seen) for each in found.findings]


def mapped(name: str, shared: Path) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Map a slide of 5 x 2 photographs, which is made for it."""
    import tempfile

    from PIL import Image

    model, data = trained(name, shared, 1)
    look = data.preprocessing
    photographs = look.denormalise(data.tensors[0]).clamp(0, 1)
    rows = [torch.cat(list(photographs[start : start + 5]), 2) for start in (0, 5)]
    pixels = (255 * torch.cat(rows, 1)).round().byte().permute(1, 2, 0)
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(pixels.numpy()).save(f"{folder}/slide.png")
        slide = niwaki.slides.open_slide(f"{folder}/slide.png", 0.5)
        with niwaki.slides.explain_slide(
            model, slide, look, classes={1: "one"}, methods=["lrp.epsilon_plus"],
            tiling=niwaki.slides.Tiling(whole=True), batch_size=4, workers=0,
        ) as found:  # fmt: skip
            maps = {
                layer.title: torch.from_numpy(store.read(0, 0, store.shape[1], store.shape[0]))
                for layer, store in found.maps.items()
            }
            return found.rows, maps


def same_everywhere(job: str, name: str, shared: str) -> Any:
    torch.manual_seed(0)
    return globals()[job](name, Path(shared))
