"""Biases planted in tumour classification: what the test AUC, the audit and the remedies say.

    OMP_NUM_THREADS=1 python experiments/histopathology/run.py --out results
    OMP_NUM_THREADS=1 python experiments/histopathology/run.py --real crc_histology --out results

Each case is one network, trained from scratch; results are kept as they come, so that a run that
was cut off goes on. `tables.py` turns them into the tables of the README.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from niwaki.audit import Spread, auc, audit, excise, filled, foreign, project_away
from niwaki.data import (
    TISSUE,
    Images,
    Preprocessing,
    cut_patches,
    draw_tissue,
    plant,
)
from niwaki.files import write_json
from niwaki.models import zoo
from niwaki.pruning import FineTune, fine_tune

CRC = Preprocessing(64, mean=(0.82, 0.69, 0.85), std=(0.16, 0.21, 0.12))
ARTEFACTS = ("square", "pen", "blur", "jpeg", "stain")
LOCAL = ("square", "pen")


@dataclass
class Set:
    """Images of one source: to learn from, to test on, with unbiased labels or those of a bias."""

    pixels: np.ndarray
    labels: np.ndarray


class Source:
    """Synthetic tissue or real patches, drawn by seed."""

    def __init__(self, real, tiles, epochs):
        self.real, self.tiles, self.epochs = real, tiles, epochs
        self.preprocessing = CRC if real else TISSUE

    def draw(self, split, seed, centred=False):
        """Unbiased patches, or patches that are labelled by their centre."""
        if self.real:
            label = "centre" if centred else "content"
            per_image = 16 if split == "train" else 40
            cut = cut_patches(
                self.real / ("train" if split == "train" else "val"),
                per_image=per_image,
                label=label,
                seed=seed,
            )
            chosen = even(cut.labels, seed)
            return Set(cut.pixels[chosen], cut.labels[chosen])
        count = self.tiles if split == "train" else self.tiles // 2
        drawn = draw_tissue(
            count, seed=2 * seed + (split != "train") + 1000, centred=float(centred)
        )
        return Set(drawn.pixels, drawn.labels)

    def tensors(self, data):
        values = torch.from_numpy(data.pixels).permute(0, 3, 1, 2).float() / 255
        mean, std = (
            torch.tensor(v)[:, None, None]
            for v in (self.preprocessing.mean, self.preprocessing.std)
        )
        return (values - mean) / std, torch.from_numpy(data.labels)

    def images(self, data):
        """Return a data set that the audit reads."""
        return Images(
            lambda i: Image.fromarray(data.pixels[i]),
            data.labels.tolist(),
            ["normal", "tumour"],
            self.preprocessing,
        )

    def train(self, pair, seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = zoo.tissue_net().eval()
        settings = FineTune(
            epochs=self.epochs,
            optimizer="adamw",
            lr=3e-3,
            weight_decay=0.02,
            batch_size=32,
            seed=seed,
        )
        fine_tune(model, pair, settings)
        return model

    def auc(self, model, data):
        inputs, labels = self.tensors(data)
        with torch.no_grad():
            outputs = torch.cat([model(part) for part in torch.split(inputs, 128)])
        return auc(outputs.double().numpy(), labels.numpy())


def even(labels, seed):
    """As many of each class."""
    rng = np.random.default_rng(seed)
    fewest = min((labels == 0).sum(), (labels == 1).sum())
    chosen = [rng.permutation(np.flatnonzero(labels == k))[:fewest] for k in (0, 1)]
    return np.sort(np.concatenate(chosen))


def marked(data, artefact, share, seed, elsewhere=0.0):
    found = plant(
        data.pixels, data.labels, artefact, on=1, share=share, elsewhere=elsewhere, seed=seed
    )
    return Set(found.pixels, data.labels)


def asked(source, model, data, seed):
    found = audit(model, source.images(data), seed=seed, limit=400)
    return {
        "questions": len(found.findings),
        "flagged": [f.key for f in found.flagged],
        "effects": {f.key: f.effect for f in found.findings},
        "moved": {f.key: f.cause.drop - f.cause.control for f in found.findings if f.cause},
    }


def control(source, seed):
    """No bias: how often a question is answered by yes."""
    train, test = source.draw("train", seed), source.draw("test", seed)
    model = source.train(source.tensors(train), seed)
    return {"auc test": source.auc(model, test), "audit": asked(source, model, test, seed)}


def centre(source, seed):
    """Bias 1: the label is that of the centre; repaired by labels of the content."""
    train, biased = source.draw("train", seed, True), source.draw("test", seed, True)
    test = source.draw("test", seed)
    model = source.train(source.tensors(train), seed)
    again = source.train(source.tensors(source.draw("train", seed)), seed)
    return {
        "auc test": source.auc(model, biased),
        "auc clean": source.auc(model, test),
        "audit": asked(source, model, biased, seed),
        "repaired": {
            "trained on content labels": {
                "auc clean": source.auc(again, test),
                "audit": asked(source, again, biased, seed),
            }
        },
    }


def artefact(source, seed, kind, share, repair):
    """Bias 2: an artefact on a share of the tumour images."""
    train, test = source.draw("train", seed), source.draw("test", seed)
    learned = marked(train, kind, share, seed)
    biased = marked(test, kind, share, seed + 50)
    attacked = marked(test, kind, 0.0, seed + 60, elsewhere=1.0)
    pair = source.tensors(learned)
    model = source.train(pair, seed)
    row = {
        "auc test": source.auc(model, biased),
        "auc clean": source.auc(model, test),
        "auc attacked": source.auc(model, attacked),
        "audit": asked(source, model, biased, seed),
    }
    if repair and kind in LOCAL:
        row["repaired"] = {}
        for name, network in remedies(source, model, learned, pair, seed).items():
            row["repaired"][name] = {
                "auc clean": source.auc(network, test),
                "auc attacked": source.auc(network, attacked),
                "audit": asked(source, network, biased, seed),
            }
    return row


def remedies(source, model, learned, pair, seed):
    """Repair by what an audit can see: the pixels of foreign colours."""
    inputs, labels = pair
    pixels = torch.from_numpy(learned.pixels).permute(0, 3, 1, 2).float() / 255
    masks = np.zeros(learned.pixels.shape[:3], bool)
    masks[learned.labels == 1] = foreign(pixels, learned.labels, 1)
    masks[masks.mean((1, 2)) < 0.003] = False
    has = masks.any((1, 2))
    if has.sum() < 5:
        return {}
    chosen = torch.as_tensor(has)
    repaired = filled(inputs, masks)
    donors, where = inputs[chosen][:128], masks[has][:128]
    spread = Spread(TensorDataset(repaired, labels), donors, where, 0.5, seed)
    augmented = torch.stack([spread[i][0] for i in range(len(spread))])
    clean = repaired[:300], labels[:300]
    pruned = excise(model, (donors, labels[chosen][:128], where), repaired[chosen][:128], clean)
    return {
        "inpainted, trained again": source.train((repaired, labels), seed),
        "spread, trained again": source.train((augmented, labels), seed),
        "filters pruned": pruned.model,
        "P-ClArC at relu2": project_away(model, "relu2", (donors, where), repaired[:300]),
        "P-ClArC at relu4": project_away(model, "relu4", (donors, where), repaired[:300]),
    }


def necrosis(source, seed):
    """Bias 3: no necrosis in training; synthetic tissue only."""
    without = draw_tissue(source.tiles, seed=2 * seed + 1000, necrosis=0)
    with_it = source.draw("train", seed)
    dead = draw_tissue(source.tiles // 2, seed=2 * seed + 5001, necrosis=1.0)
    test = Set(dead.pixels, dead.labels)
    none = draw_tissue(source.tiles // 2, seed=2 * seed + 7001, necrosis=0)
    row = {}
    for name, data in (
        ("without necrosis", Set(without.pixels, without.labels)),
        ("with necrosis", with_it),
    ):
        model = source.train(source.tensors(data), seed)
        row[name] = {
            "auc without": source.auc(model, Set(none.pixels, none.labels)),
            "auc necrotic": source.auc(model, test),
        }
    return row


def cases(source, seeds, shares):
    for seed in range(seeds):
        yield f"control/{seed}", lambda s=seed: control(source, s)
        yield f"centre/{seed}", lambda s=seed: centre(source, s)
        yield f"square/0.5/{seed}", lambda s=seed: artefact(source, s, "square", 0.5, True)
    for seed, kind, share in itertools.product(range(seeds), ARTEFACTS, shares):
        name = f"{kind}/{share}/{seed}"
        yield name, lambda s=seed, k=kind, r=share: artefact(source, s, k, r, r == 0.5)
    if not source.real:
        for seed in range(seeds):
            yield f"necrosis/{seed}", lambda s=seed: necrosis(source, s)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--real", type=Path, help="folder with train and val, of NAME.png and NAME.csv"
    )
    parser.add_argument("--out", type=Path, default=Path("histopathology"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.1, 1.0])
    parser.add_argument("--tiles", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    source = Source(options.real, options.tiles, options.epochs)
    file = options.out / ("real.json" if options.real else "tissue.json")
    done = json.loads(file.read_text()) if file.exists() else {}
    for name, run in cases(source, options.seeds, options.shares):
        if name in done:
            continue
        started = time.process_time()
        done[name] = {**run(), "seconds": round(time.process_time() - started, 1)}
        write_json(file, done)
        print(
            name, done[name].get("auc test"), done[name].get("audit", {}).get("flagged"), flush=True
        )


if __name__ == "__main__":
    main()
