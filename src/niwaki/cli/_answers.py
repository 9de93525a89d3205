"""What two networks answer: the images on which they differ, for a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from niwaki import models
from niwaki.data import Data, batches
from niwaki.files import write_json
from niwaki.report import Pictures, photograph
from niwaki.stages import stage

if TYPE_CHECKING:
    from niwaki.cli._loading import Loaded
    from niwaki.data import Images

__all__ = ["answers", "write_changed"]

_SHOWN = 24


@stage("measuring accuracy")
def answers(model: nn.Module, data: Data, batch_size: int) -> Tensor:
    """Return the probabilities of all classes for all images, shape (N, classes)."""
    found = [
        torch.softmax(models.class_outputs(model, inputs, "a comparison of answers"), 1).cpu()
        for inputs, _ in batches(data, batch_size, models.home(model))
    ]
    return torch.cat(found)


def write_changed(
    folder: Path, loaded: Loaded, images: Images, before: Tensor, after: Tensor, pictures: Pictures
) -> None:
    """Write ``changed.json``: how many answers differ, and some of the images.

    Those are shown whose probability for the true class fell most.
    """
    true = torch.tensor(images.targets)
    said, now = before.argmax(1), after.argmax(1)
    rows = torch.arange(len(true))
    fell = before[rows, true] - after[rows, true]
    different = (said != now).nonzero().flatten()
    order = different[fell[different].argsort(descending=True, stable=True)].tolist()[:_SHOWN]

    def told(place: int, number: int) -> dict[str, Any]:
        image = images.preprocessing.denormalise(images[place][0])
        return {
            "name": images.paths[place].name if images.paths else f"image {place}",
            "class": loaded.class_name(int(true[place])),
            "before": loaded.class_name(int(said[place])),
            "after": loaded.class_name(int(now[place])),
            "before_sure": round(float(before[place].max()), 4),
            "after_sure": round(float(after[place].max()), 4),
            "photo": pictures.add(f"changed/{number:03}.webp", photograph(image)),
        }

    write_json(
        folder / "changed.json",
        {
            "images": len(true),
            "changed": len(different),
            "lost": int(((said == true) & (now != true)).sum()),
            "won": int(((said != true) & (now == true)).sum()),
            "side": images.preprocessing.size,
            "shown": [told(place, number) for number, place in enumerate(order)],
        },
    )
