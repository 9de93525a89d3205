"""How a command's options become a model and images."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from niwaki import ranges as r
from niwaki.cli._fits import check_memory
from niwaki.cli._spread import Listed, numbers
from niwaki.errors import DataError, ModelError, NiwakiError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from niwaki.attribution import ClassChoice
    from niwaki.data import Images, Preprocessing
    from niwaki.pruning import Plan

OUTPUTS = Listed(r.INDEX)
MEAN = Listed(r.FINITE.but(low=-1e6, high=1e6), most=3)
STD = Listed(r.POSITIVE.but(high=1e6, why="pixels are divided by it"), most=3)


def _nothing_removed() -> Plan:
    from niwaki.pruning import Plan

    return Plan()


@dataclass(frozen=True)
class Loaded:
    """A model and what is known of it.

    Attributes
    ----------
    model : nn.Module
        In evaluation mode, on its device.
    preprocessing : Preprocessing or None
        How an image becomes an input; None for a data set that has its own.
    class_names : list of str or None
        One per output.
    about : dict
        What rebuilds it: goes into the folder of a pruned network.
    plan : Plan
        What has been removed already.
    """

    model: nn.Module
    preprocessing: Preprocessing | None
    class_names: list[str] | None
    about: dict[str, Any]
    plan: Plan = field(default_factory=_nothing_removed)
    architecture: dict[str, list[int]] | None = None

    def named_by(self, images: Images) -> Loaded:
        """Return the same with a name for each output: the network's own, or else the images'."""
        count = count_outputs(self.model, images)
        if self.class_names is not None and len(self.class_names) == count:
            return self
        if not images.labelled or count is None:
            return replace(self, class_names=None, about={**self.about, "class_names": None})
        names = [images.class_name(output) for output in range(count)]
        return replace(self, class_names=names, about={**self.about, "class_names": names})

    def class_name(self, output: int) -> str:
        """Name of an output, or its number."""
        known = self.class_names
        return known[output] if known is not None and output < len(known) else str(output)

    def choice(self, target: str, images: Images) -> ClassChoice:
        """Read ``--target``: predicted, true, the name of a class, or the number of an output.

        A number may be written as ``#3``, for outputs whose names are other numbers.

        Raises
        ------
        NiwakiError
            For a name that no output has, a number that is also the name of another output, and
            for "true" where the images have no labels.
        """
        from niwaki.data import match_classes

        if target == "true" and not images.labelled:
            raise NiwakiError("--target true: these images have no labels; they come in no folders")
        if target in ("predicted", "true"):
            return "predicted" if target == "predicted" else "true"
        digits = target.removeprefix("#")
        number = int(digits) if digits.isdecimal() else None
        if number is not None and target != digits:
            return number
        names = self.class_names or []
        if number is None:
            if not names:
                raise NiwakiError(
                    f"--target {target!r}: the outputs have no names; give predicted, true or the "
                    "number of an output"
                )
            try:
                return match_classes([target], names)[0]
            except DataError:
                raise NiwakiError(
                    f"--target {target!r} is not the name of one output; the outputs are "
                    f"{', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"
                ) from None
        if target in names and names.index(target) != number:
            raise NiwakiError(
                f"--target {target} is the name of output {names.index(target)} and the number of "
                f"another, {self.class_name(number)!r}: write #{names.index(target)} or #{number}"
            )
        return number

    def choice_name(self, target: ClassChoice) -> str:
        """Say in words what is explained."""
        return self.class_name(target) if isinstance(target, int) else f"the {target} class"


def load_model(
    spec: str,
    device: torch.device,
    *,
    weights: str | None = None,
    classes: int | None = None,
    architecture: str | None = None,
    trust: bool = False,
    size: int | None = None,
    resize: int | None = None,
    mean: str | None = None,
    std: str | None = None,
    seed: int = 0,
) -> Loaded:
    """Build the model that a spec names, with its preprocessing (flags overrule).

    Weights that are drawn at random follow from the seed.
    """
    import torch

    from niwaki import models

    if models.is_saved(spec):
        loaded = _load_saved(Path(spec), weights, classes, architecture, trust)
    elif architecture is not None:
        raise ModelError(f"--architecture goes with the folder of a pruned network, not {spec!r}")
    else:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = models.build(spec, weights=weights, classes=classes)
        loaded = Loaded(
            model,
            models.preprocessing(spec, weights),
            models.class_names(spec, weights),
            models.Origin.of(spec, classes, random=weights == "random").to_json(),
        )
    models.check(loaded.model)
    preprocessing = _preprocessing(loaded.preprocessing, size, resize, mean, std)
    about = {
        **loaded.about,
        "preprocessing": preprocessing.to_json() if preprocessing else None,
        "class_names": loaded.class_names,
    }
    return Loaded(
        loaded.model.to(device),
        preprocessing,
        loaded.class_names,
        about,
        loaded.plan,
        loaded.architecture,
    )


def _load_saved(
    folder: Path,
    weights: str | None,
    classes: int | None,
    architecture: str | None,
    trust: bool,
) -> Loaded:
    from niwaki import models, pruning

    if weights is not None or (classes is not None and architecture is None):
        raise ModelError(f"{folder} is a pruned network with its own weights and classes")
    saved = pruning.Saved.read(folder)
    origin, fresh = saved.origin, None
    if architecture is not None:
        known = classes if origin is None or classes is not None else origin.classes
        random = origin is not None and origin.random
        origin = models.Origin.of(architecture, known, random=random)
        if architecture.startswith("torchvision:"):
            fresh = origin.build(folder)  # it knows which of them rescale their inputs
        else:
            fresh = models.build(architecture, weights="random", classes=known)
    return Loaded(
        saved.rebuild(fresh, trust=trust),
        saved.preprocessing,
        saved.class_names,
        {} if origin is None else origin.to_json(),
        saved.plan,
        saved.architecture,
    )


def _preprocessing(
    known: Preprocessing | None,
    size: int | None,
    resize: int | None,
    mean: str | None,
    std: str | None,
) -> Preprocessing | None:
    from niwaki.data import Preprocessing

    if size is None and resize is None and mean is None and std is None:
        return known
    if known is None and (size is None or mean is None or std is None):
        raise DataError(
            "nothing is known of the network's inputs: give --size, --mean and --std together"
        )
    means = numbers("--mean", mean, MEAN) if mean else known.mean if known else ()
    return Preprocessing(
        size or (known.size if known else 0),
        resize if resize is not None else (known.resize if known and not size else None),
        mean=tuple(means),
        std=tuple(numbers("--std", std, STD)) if std else known.std if known else (),
        channels=len(means),
    )


def load_images(
    spec: str,
    loaded: Loaded,
    *,
    split: str = "test",
    outputs: str | None = None,
    batch_size: int = 1,
) -> Images:
    """Open the data set that a spec names, prepared for the model and labelled by its outputs.

    The classes are matched by name with the network's outputs, where their names are known. A
    batch that does not fit into the memory is refused before an image is read.
    """
    from niwaki.data import names, open_data

    if loaded.preprocessing is None and spec not in names():
        raise DataError(
            "nothing is known of the network's inputs: give --size, --mean and --std "
            "(for ImageNet's: --size 224 --resize 256 --mean 0.485,0.456,0.406 "
            "--std 0.229,0.224,0.225)"
        )
    chosen = None
    if outputs is not None:
        chosen = [int(output) for output in numbers("--outputs", outputs, OUTPUTS)]
    images = open_data(spec, loaded.preprocessing, split=split, outputs=chosen)
    check_memory(loaded.model, _shape(images), min(batch_size, max(1, len(images))))
    count = count_outputs(loaded.model, images)
    if count is None:
        return images
    if chosen is not None:
        if max(chosen) >= count:
            raise DataError(f"--outputs {outputs}: the network has {count} outputs, from 0 on")
        return images
    known = loaded.class_names
    if known is not None and len(known) == count:
        return images.matched(known)
    return images.numbered(count)


def check_labelled(images: Images, spec: str, purpose: str) -> None:
    """Refuse images without labels, which the purpose needs."""
    if not images.labelled:
        raise NiwakiError(f"{spec} has no labels: {purpose} needs a folder for each class")


def count_outputs(model: nn.Module, images: Images) -> int | None:
    """Return how many classes a network tells apart, None if it does not return (N, classes).

    What goes wrong here goes wrong again where the images are used, with a message that fits.
    """
    import torch

    from niwaki.models import class_logits, device_of

    device = device_of(model)
    try:
        with torch.no_grad():
            said = class_logits(model(torch.zeros(1, *_shape(images), device=device)))
    except (RuntimeError, ValueError, TypeError):
        return None
    return said.shape[1] if said.ndim == 2 else None


def _shape(images: Images) -> tuple[int, int, int]:
    made = images.preprocessing
    return made.channels, made.size, made.size


def input_shape(model: str, loaded: Loaded) -> tuple[int, ...]:
    """Shape of an input, from the folder of a pruned network or the model's preprocessing."""
    from niwaki import models, pruning

    if models.is_saved(model):
        return pruning.Saved.read(model).input_shape
    known = loaded.preprocessing
    if known is None:
        raise DataError(
            "nothing is known of the network's inputs: give their shape (--input-shape, or --size, "
            "--mean and --std)"
        )
    return known.channels, known.size, known.size
