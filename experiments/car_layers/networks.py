"""The networks, their layers and their images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from niwaki import models
from niwaki.data import Preprocessing

__all__ = ["NETWORKS", "Case"]

IMAGENETTE = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]
NORM = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True)
class Case:
    """A network to look at.

    Attributes
    ----------
    spec : str
        Of `niwaki.models.build`.
    preprocessing : Preprocessing
        Its images.
    layers : tuple of str
        Whose filters are ranked.
    one : str
        The layer that is pruned alone.
    per_class, test : int
        Images per class that criteria look at, and on which accuracy is measured.
    rows : tuple of int
        Outputs that are kept of the last layer; empty: all.
    """

    spec: str
    preprocessing: Preprocessing
    layers: tuple[str, ...]
    one: str
    per_class: int
    test: int
    rows: tuple[int, ...] = ()

    def build(self, weights: Path) -> nn.Module:
        """Load the network, with the head of its classes."""
        model = models.build(self.spec, weights=weights)
        if not self.rows:
            return model.eval()
        small = models.build(self.spec, weights="random", classes=len(self.rows))
        state = model.state_dict()
        for name in ("classifier.1.weight", "classifier.1.bias"):
            state[name] = state[name][list(self.rows)]
        small.load_state_dict(state)
        return small.eval()


NETWORKS = {
    "vgglike": Case(
        "niwaki.models.zoo:vgglike",
        Preprocessing(32, mean=(0.5,) * 3, std=(0.5,) * 3),
        (
            "conv1_1",
            "conv1_2",
            "conv1_3",
            "conv2_1",
            "conv2_2",
            "conv3_1",
            "conv3_2",
            "conv4_1",
            "conv4_2",
            "conv5_1",
        ),
        one="conv1_3",
        per_class=15,
        test=50,
    ),
    # Convolutions within the blocks: those at their ends share their channels over a whole stage.
    "resnet20": Case(
        "niwaki.models.zoo:resnet20",
        Preprocessing(32, **NORM),
        tuple(f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in (0, 1, 2)),
        one="layer2.0.conv1",
        per_class=20,
        test=50,
    ),
    # ImageNet's network, asked for Imagenette's ten classes alone.
    "squeezenet": Case(
        "torchvision:squeezenet1_1",
        Preprocessing(128, 144, **NORM),
        (
            "features.0",
            *(
                f"features.{fire}.{part}"
                for fire in (3, 4)
                for part in ("squeeze", "expand1x1", "expand3x3")
            ),
        ),
        one="features.0",
        per_class=5,
        test=15,
        rows=tuple(IMAGENETTE),
    ),
}
