"""The classification networks of torchvision, with their own weights or others."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torchvision.models
from torch import nn

from niwaki.data import Preprocessing
from niwaki.errors import ModelError, WeightsError
from niwaki.models._weights import fit, read_weights

__all__ = ["build", "class_names", "names", "preprocessing", "rebuild"]

# The second and third heads of GoogLeNet and Inception v3, which only training uses.
_AUXILIARY = ("AuxLogits", "aux1", "aux2")


def build(name: str, weights: str | Path | None, classes: int | None) -> nn.Module:
    """Build a network by torchvision's name for it, without auxiliary heads."""
    name = _known(name)
    if weights == "random":
        return _drop_auxiliary(_untrained(name, classes, published=False))
    if weights is not None and _is_file(weights):
        state = read_weights(weights)
        model = _drop_auxiliary(_untrained(name, classes, published=True))
        fit(model, {k: v for k, v in state.items() if not k.startswith(_AUXILIARY)}, weights)
        return model
    entry = _entry(name, weights)
    if classes not in (None, len(entry.meta["categories"])):
        raise ModelError(
            f"the weights {entry.name} of torchvision:{name} have "
            f"{len(entry.meta['categories'])} classes, not {classes}; pass weights='random' or a "
            "file of weights"
        )
    try:
        return _drop_auxiliary(torchvision.models.get_model(name, weights=entry))
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"the weights {entry.name} of torchvision:{name} could not be downloaded: {error}; "
            "pass weights='random', or the path of a file of weights"
        ) from error


def rebuild(name: str, classes: int | None, *, random: bool) -> nn.Module:
    """Build a network without weights, for some that were saved.

    Parameters
    ----------
    name
        Torchvision's.
    classes
        Number of outputs; None for its own.
    random
        Whether it was built with random weights: then it does not rescale its inputs.
    """
    return _drop_auxiliary(_untrained(_known(name), classes, published=not random))


def names(module: str) -> list[str]:
    """Return the names of the networks that a module of torchvision's builds."""
    known: list[str] = torchvision.models.list_models(module=torchvision.models)
    get = torchvision.models.get_model_builder
    return [name for name in known if get(name).__module__ == module]


def preprocessing(name: str, weights: str | Path | None) -> Preprocessing:
    """Return the transforms of the named weights, or of the default ones."""
    preset = _entry(_known(name), None if _is_file(weights) else weights).transforms()
    return Preprocessing(
        preset.crop_size[0],
        preset.resize_size[0],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
    )


def class_names(name: str, weights: str | Path | None) -> list[str]:
    """Return the categories of the named weights, or of the default ones."""
    entry = _entry(_known(name), None if _is_file(weights) else weights)
    return list(entry.meta["categories"])


def _known(name: str) -> str:
    # Only this module's own: torchvision also lists detectors, video and quantized networks.
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    if name.lower() in names:
        return name.lower()
    close = get_close_matches(name.lower(), names)
    hint = f"did you mean {', '.join(close)}?" if close else f"it has {', '.join(names)}"
    raise ModelError(f"torchvision has no classification network {name!r}; {hint}")


def _is_file(weights: str | Path | None) -> bool:
    return weights is not None and (isinstance(weights, Path) or Path(weights).is_file())


def _entry(name: str, weights: str | Path | None) -> Any:
    catalogue = torchvision.models.get_model_weights(name)
    if weights in (None, "random"):
        return catalogue.DEFAULT
    # "DEFAULT" is an alias and so not in the iteration.
    valid = {**{entry.name: entry for entry in catalogue}, "DEFAULT": catalogue.DEFAULT}
    if weights not in valid:
        raise WeightsError(
            f"torchvision:{name} has no weights {str(weights)!r}, and no such file exists; valid "
            f"are {', '.join(valid)}, 'random', or the path of a file of weights"
        )
    return valid[str(weights)]


def _untrained(name: str, classes: int | None, *, published: bool) -> nn.Module:
    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    if name in ("googlenet", "inception_v3"):
        # Their own initialisation takes half a minute and warns that it will go away. Their
        # published weights expect inputs rescaled, so a file of weights is taken to do so too.
        options |= {"init_weights": False, "transform_input": published}
    model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return model


def _drop_auxiliary(model: nn.Module) -> nn.Module:
    heads = [name for name in _AUXILIARY if hasattr(model, name)]
    for name in heads:
        setattr(model, name, None)
    if heads:
        model.aux_logits = False  # type: ignore[assignment]
    return model
