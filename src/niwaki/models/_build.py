"""The functions that read the name of a model."""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from niwaki.data import Preprocessing
from niwaki.errors import ModelError
from niwaki.models import _importing, _timm, _torchvision
from niwaki.models._weights import load_weights
from niwaki.ranges import CLASSES, checked

__all__ = ["build", "class_names", "is_saved", "preprocessing"]


@checked(classes=CLASSES)
def build(
    spec: str,
    *,
    weights: str | Path | None = None,
    classes: int | None = None,
    load_saved: Callable[[Path], nn.Module] | None = None,
) -> nn.Module:
    """Build a model by its name, in eval mode, on the CPU.

    Random weights come from torch's global generator: call `torch.manual_seed` before.

    Parameters
    ----------
    spec
        `torchvision:NAME`, `timm:NAME`, `package.module:callable`, `path/to/file.py:callable`,
        or the folder of a saved model. A callable is called without arguments, or with
        `num_classes=classes`, and what lies beside it can be imported.
    weights
        None: the default pretrained weights of torchvision and timm, downloaded once, and a
        callable's own. "random": none. Otherwise a file of weights (see `load_weights`), or one
        of torchvision's names such as "IMAGENET1K_V1".
    classes
        Number of outputs; None for what the architecture has.
    load_saved
        Reads the folder of a saved model.

    Returns
    -------
    nn.Module
        The plain module. GoogLeNet and Inception v3 come without auxiliary heads; with a file of
        weights they rescale their inputs, as their published weights need it.

    Raises
    ------
    ModelError
        A name that leads to no model, or options that it cannot follow.
    WeightsError
        Weights that cannot be had, read, or made to fit.
    """
    spec = str(spec)
    scheme, _, name = spec.partition(":")
    if is_saved(spec):
        model = _saved(spec, weights, classes, load_saved)
    elif scheme == "torchvision":
        model = _torchvision.build(name, weights, classes)
    elif scheme == "timm":
        model = _timm.build(name, weights, classes)
    else:
        model = _importing.call(spec, classes)
        if weights not in (None, "random"):
            load_weights(model, str(weights))
    return model.eval()


def preprocessing(spec: str, weights: str | Path | None = None) -> Preprocessing | None:
    """Return how images become inputs of a model, where its name tells.

    Parameters
    ----------
    spec, weights
        As for `build`; nothing is downloaded. Random weights and files of weights are taken to
        want what the default weights want.

    Returns
    -------
    Preprocessing or None
        From torchvision's or timm's weights, or a callable's attribute `preprocessing`.
    """
    scheme, _, name = str(spec).partition(":")
    if is_saved(spec):
        return None
    if scheme == "torchvision":
        return _torchvision.preprocessing(name, weights)
    if scheme == "timm":
        return _timm.preprocessing(name)
    return getattr(_importing.find(str(spec)), "preprocessing", None)


def class_names(spec: str, weights: str | Path | None = None) -> list[str] | None:
    """Return the names of a model's outputs, where its name tells.

    Parameters
    ----------
    spec, weights
        As for `preprocessing`. A network of another number of classes than the default weights
        have is not covered by their names: compare the lengths.

    Returns
    -------
    list of str or None
        From torchvision's or timm's weights, or a callable's attribute `class_names`.
    """
    scheme, _, name = str(spec).partition(":")
    if is_saved(spec):
        return None
    if scheme == "timm":
        return _timm.class_names(name)
    if scheme == "torchvision":
        return _torchvision.class_names(name, weights)
    found = getattr(_importing.find(str(spec)), "class_names", None)
    return None if found is None else list(found)


def is_saved(spec: str | Path) -> bool:
    """Return whether a name is the folder of a saved model."""
    return (Path(spec).expanduser() / "niwaki.json").is_file()


def _saved(
    spec: str,
    weights: str | Path | None,
    classes: int | None,
    load_saved: Callable[[Path], nn.Module] | None,
) -> nn.Module:
    if weights is not None or classes is not None:
        raise ModelError(
            f"{spec} is a saved model, which has its own weights and outputs; leave weights="
            f"{weights!r} and classes={classes!r} out"
        )
    if load_saved is None:
        raise ModelError(
            f"{spec} is a saved model, and build was not told how to read one; pass load_saved"
        )
    return load_saved(Path(spec).expanduser())
