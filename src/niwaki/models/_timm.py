"""The networks of timm, an optional dependency."""

import math
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import nn

from niwaki.data import Preprocessing, distinct, imagenet_names
from niwaki.errors import ModelError, WeightsError
from niwaki.models._weights import load_weights

__all__ = ["build", "class_names", "preprocessing"]


def build(name: str, weights: str | Path | None, classes: int | None) -> nn.Module:
    """Build a network by timm's name for it, which may end in a tag that names its weights."""
    timm = _timm()
    own = _config(timm, name).num_classes
    options = {} if classes is None else {"num_classes": classes}
    if weights is not None:
        model: nn.Module = timm.create_model(name, pretrained=False, **options)
        if weights != "random":
            load_weights(model, weights)
        return model
    if classes not in (None, own):
        # timm would give it a last layer that nobody has trained.
        raise ModelError(
            f"the weights of timm:{name} have {own} classes, not {classes}; pass weights='random' "
            "or a file of weights"
        )
    try:
        pretrained: nn.Module = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"the weights of timm:{name} could not be downloaded: {error}; pass weights='random', "
            "or the path of a file of weights"
        ) from error
    return pretrained


def preprocessing(name: str) -> Preprocessing:
    """Return the evaluation transforms that timm states for the network's own weights."""
    timm = _timm()
    config = timm.data.resolve_data_config(pretrained_cfg=_config(timm, name).to_dict())
    channels, size, _ = config["input_size"]
    squash = config["crop_mode"] == "squash"
    return Preprocessing(
        size,
        None if squash else math.floor(size / config["crop_pct"]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        channels=channels,
        interpolation=config["interpolation"],
    )


def class_names(name: str) -> list[str] | None:
    """Return ImageNet's words for the outputs of the network's own weights.

    A word that stands for several classes is followed by the WordNet id. None for weights of
    another data set.
    """
    timm = _timm()
    config = _config(timm, name).to_dict()
    subset = timm.data.infer_imagenet_subset(config)
    if subset is None or any(other in str(config.get("tag")) for other in _NOT_IMAGENET):
        return None
    if subset == "imagenet-1k":
        return imagenet_names()
    info = timm.data.ImageNetInfo(subset)
    words = info.label_descriptions(as_dict=True)
    return distinct({key: str(words[key]).split(", ")[0] for key in info.label_names()})


# Tags of weights whose outputs are other classes, though they may be as many as ImageNet's.
_NOT_IMAGENET = ("inat", "places", "openimages", "cifar")


def _timm() -> Any:
    try:
        import timm
        import timm.data
    except ImportError as error:
        raise ModelError(
            f"timm cannot be imported ({error}); install it: pip install 'niwaki[timm]'"
        ) from error
    return timm


def _config(timm: Any, name: str) -> Any:
    if not timm.is_model(name):
        close = get_close_matches(name, timm.list_models())
        hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists them"
        raise ModelError(f"timm has no network {name!r}; {hint}")
    try:
        return timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        raise WeightsError(f"timm:{name}: {error}; timm.list_pretrained() lists them") from error
