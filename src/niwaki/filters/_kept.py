"""Pictures of filters that were made before an interruption, read again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from torch import Tensor

from niwaki.filters._pictures import FilterPictures, Patches
from niwaki.filters._profile import LayerProfile
from niwaki.runs import Run

__all__ = ["kept_pictures"]

_TOGETHER = 16  # filters in a part: few enough for the memory, many enough for the disk
_PATCHES = ("pixels", "heatmaps", "values", "images")


def kept_pictures(
    kept: Run, layer: LayerProfile, make: Callable[[LayerProfile], Iterable[FilterPictures]]
) -> Iterator[FilterPictures]:
    """Yield the pictures of a layer's filters: read where all are finished, else made and kept.

    Parameters
    ----------
    kept : Run
        Of the same network, data and options.
    layer : LayerProfile
        One of the profile's.
    make : callable
        Makes them, such as `pictures`.
    """
    parts = [f"{layer.name}/{start}" for start in range(0, len(layer), _TOGETHER)]
    if all(kept.read(part) is not None for part in parts):
        for part in parts:
            found = kept.read(part)
            assert found is not None
            yield from _read(found.tensors, found.about["filters"])
        return
    waiting: list[FilterPictures] = []
    for unit, shown in enumerate(make(layer)):
        waiting.append(shown)
        if len(waiting) == _TOGETHER or unit == len(layer) - 1:
            kept.write(parts[unit // _TOGETHER], _tensors(waiting), filters=len(waiting))
            waiting = []
        yield shown


def _tensors(filters: list[FilterPictures]) -> dict[str, Tensor]:
    found: dict[str, Tensor | None] = {}
    for place, shown in enumerate(filters):
        found |= {f"{place}/maximised": shown.maximised, f"{place}/weights": shown.weights}
        for kind in ("by_activation", "by_relevance"):
            patches = getattr(shown, kind)
            found |= {f"{place}/{kind}/{what}": getattr(patches, what) for what in _PATCHES}
    return {name: value for name, value in found.items() if value is not None}


def _read(tensors: dict[str, Tensor], count: int) -> Iterator[FilterPictures]:
    for place in range(count):
        by_activation, by_relevance = (
            Patches(*(tensors[f"{place}/{kind}/{what}"] for what in _PATCHES))
            for kind in ("by_activation", "by_relevance")
        )
        maximised, weights = (tensors.get(f"{place}/{what}") for what in ("maximised", "weights"))
        yield FilterPictures(by_activation, by_relevance, maximised, weights)
