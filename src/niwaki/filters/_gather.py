"""One pass over the data that learns what every filter responds to, and a look at grey images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from niwaki import models
from niwaki.accumulation import Totals
from niwaki.attribution import Propagating, create, told_apart
from niwaki.car import CarIndex
from niwaki.contexts import undisturbed
from niwaki.data import Data, Preprocessing, batches, check_labels
from niwaki.errors import ModelError
from niwaki.filters._classes_served import Served, served
from niwaki.filters._diversity import correlation
from niwaki.filters._fields import Field, receptive_fields
from niwaki.filters._partial_pass import Responses, chosen_layers, products, reach
from niwaki.filters._profile import LayerProfile, Profile
from niwaki.filters._selectivity import class_selectivity, grey, orientation
from niwaki.filters._strongest import Strongest, images_at, known_preprocessing, to_inputs
from niwaki.processes import agreed, gathered, is_mine, summed
from niwaki.progress import track
from niwaki.propagation import Layer, per_class, propagate
from niwaki.ranges import BATCH, PATCHES, checked
from niwaki.runs import Folder, described, digest, grow, identified, open_run
from niwaki.stages import stage


@undisturbed
@stage("profiling")
@checked(patches=PATCHES, batch_size=BATCH)
def profile(
    model: nn.Module,
    data: Data,
    *,
    layers: Sequence[str] | None = None,
    patches: int = 32,
    method: str | Propagating = "lrp.epsilon_plus",
    index: CarIndex | None = None,
    preprocessing: Preprocessing | None = None,
    folder: Folder = None,
    batch_size: int = 32,
    description: str | None = None,
) -> Profile:
    """Learn what every filter responds to, and for which classes, in one pass over the data.

    Processes that work together (see `niwaki.processes`) take turns with the batches.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, returning shape (N, classes). It stays as it is.
    data : DataLoader, Dataset or pair of tensors
        Images of shape (C, H, W) with their labels; images without labels count for the class that
        the network says. A loader must go through its data in order.
    layers : sequence of str, optional
        Names of layers, or of modules that stand for all convolutions in them; default: all hidden
        convolutions. Linear layers are looked at when they are named.
    patches : int
        Strongest patches to find for each filter, one per image, where the filter's field lies in
        the image (see `Field.inside`); colour selectivity is computed on them.
    method : str or Propagating
        A method of `niwaki.attribution.names` that propagates through layers. It says what
        relevance is.
    index : CarIndex, optional
        From `niwaki.car.index`: adds which classes each filter serves.
    preprocessing : Preprocessing, optional
        How pixels became inputs, for colour selectivity; default: what the data know of it.
    folder : str or Path, optional
        Keeps what has been learned so far; the same call resumes from there.
    batch_size : int
        Samples in a batch of a data set or tensors; a loader has its own.
    description : str, optional
        Title of progress bars; none if not given.

    Returns
    -------
    Profile
        Layer name to what its filters respond to.

    Raises
    ------
    ModelError, DataError, NothingToPruneError
        For a network or data that cannot be used, a layer that does not exist, or an index
        of another network.
    """
    models.check(model)
    fingerprint = models.fingerprint(model)
    if index is not None and index.fingerprint not in ("", fingerprint):
        raise ModelError("the index is that of another network, or of other weights")
    explainer = relevance_method(model, method)

    def identity() -> dict[str, Any]:
        return {
            "profiled": told_apart(method) if isinstance(method, str) else described(method),
            "model": identified(given),
            "data": digest(data, ordered=True),
            "layers": None if layers is None else list(layers),
            "patches": patches,
        }

    example, _ = next(iter(batches(data, _FEW, models.home(model))))
    given, model = model, per_class(model, example)
    scope = _Scope.of(model, example[:_FEW], layers, patches)

    def learn(inputs: Tensor, labels: Tensor, first: int) -> _Learned:
        return scope.learned(*_read(model, explainer, scope.names, inputs, labels), first)

    loop = {"batch_size": batch_size, "place": models.home(model), "description": description}
    with open_run(folder, identity) as kept:
        learned = grow(data, learn, _Learned(), kept, _STATE, **loop)
        kept.write(_STATE, learned.state_dict())
    pixels = preprocessing or known_preprocessing(data)
    colours = _colours(model, data, scope, learned, pixels, batch_size, description)
    found = {
        layer.name: _layer(scope, learned, layer, colours[layer.name], _served(model, index, layer))
        for layer in scope.layers
    }
    return Profile(
        found,
        tuple(int(n) for n in learned.totals.sums["classes"]),
        patches,
        method if isinstance(method, str) else method.composite.name,
        fingerprint,
    )


def relevance_method(model: nn.Module, method: str | Propagating) -> Propagating:
    """Make a method of its name, one that propagates through the layers.

    Raises
    ------
    ModelError
        If it does not.
    """
    made = create(method, model) if isinstance(method, str) else method
    if not isinstance(made, Propagating):
        raise ModelError(
            f"{method!r} does not propagate relevance through the layers; choose one that does, "
            "such as 'lrp.epsilon_plus'"
        )
    return made


_STATE = "what filters respond to"
_KINDS = ("activations", "relevances")
_FEW = 8  # images that say what the layers are


@dataclass(frozen=True)
class _Scope:
    """Which filters are looked at, and where."""

    layers: tuple[Layer, ...]
    fields: dict[str, Field]
    places: dict[str, Tensor]
    classes: int
    patches: int

    @classmethod
    def of(
        cls, model: nn.Module, inputs: Tensor, names: Sequence[str] | None, patches: int
    ) -> _Scope:
        layers = chosen_layers(model, inputs, names)
        output = models.class_outputs(model, inputs[:2], "a profile of filters")
        fields = receptive_fields(model, inputs.shape[1:], [layer.name for layer in layers])
        places = {name: seen.inside(*inputs.shape[2:]) for name, seen in fields.items()}
        return cls(tuple(layers), fields, places, output.shape[1], patches)

    @property
    def names(self) -> list[str]:
        return [layer.name for layer in self.layers]

    def learned(self, responses: Responses, labels: Tensor, first: int) -> _Learned:
        """Return what a batch says, whose first image has a number in the data."""
        member = torch.nn.functional.one_hot(labels, self.classes).double()  # (N, classes)
        sums: dict[str, Tensor] = {"classes": member.sum(0)}
        strongest = {}
        for name in self.names:
            maps = responses.activations[name], responses.relevances[name]
            for what, value in _sums(*maps, member).items():
                sums[f"{what}/{name}"] = value
            for kind, values in zip(_KINDS, maps, strict=True):
                best = Strongest.empty(values.shape[1], self.patches)
                strongest[f"{kind}/{name}"] = best.merge(
                    Strongest.of(values, first, self.places[name])
                )
        totals = Totals().update({k: v.cpu() for k, v in sums.items()}, len(labels))
        return _Learned(totals, strongest)


@dataclass(frozen=True)
class _Learned:
    """What has been learned of some images: sums, and where each filter is strongest."""

    totals: Totals = field(default_factory=Totals)
    strongest: dict[str, Strongest] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        return self.totals.samples

    def merge(self, other: _Learned) -> _Learned:
        """Return what is known of the images of both."""
        strongest = dict(self.strongest)
        for name, found in other.strongest.items():
            strongest[name] = strongest[name].merge(found) if name in strongest else found
        return _Learned(self.totals.merge(other.totals), strongest)

    def reduced(self) -> _Learned:
        """Return what is known of the images of all processes."""
        found = _Learned(self.totals.reduced())
        for strongest in gathered(self.strongest):
            found = found.merge(_Learned(strongest=strongest))
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """Return all of it as plain tensors."""
        best = {
            f"{_BEST}{what}/{name}": value
            for name, found in self.strongest.items()
            for what, value in found.tensors().items()
        }
        return {**self.totals.state_dict(), **best}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> _Learned:
        """Rebuild it from `state_dict`."""
        sums = {name: value for name, value in state.items() if not name.startswith(_BEST)}
        best: dict[str, dict[str, Tensor]] = {}
        for name, value in state.items():
            if name.startswith(_BEST):
                what, _, layer = name.removeprefix(_BEST).partition("/")
                best.setdefault(layer, {})[what] = value
        strongest = {name: Strongest(**found) for name, found in best.items()}
        return cls(Totals.from_state_dict(sums), strongest)


_BEST = "strongest: "


def _read(
    model: nn.Module, method: Propagating, names: list[str], inputs: Tensor, labels: Tensor
) -> tuple[Responses, Tensor]:
    """Run a batch forward and backward; missing labels become the predicted classes."""
    responses = Responses(names)
    truth = labels.clone()

    def start(output: Tensor) -> Tensor:
        truth.copy_(torch.where(labels < 0, output.argmax(1), labels))
        check_labels(truth, output.shape[1])
        return method.begin(output, truth)

    propagate(model, inputs, method.composite, start, [responses], to_input=False, max_loss=None)
    for name in names:
        # A layer that the output does not depend on has no relevance.
        responses.relevances.setdefault(name, torch.zeros_like(responses.activations[name]))
    return responses, truth


def _sums(activations: Tensor, relevances: Tensor, member: Tensor) -> dict[str, Tensor]:
    """Sum a layer's activations on a batch; they have the shape (N, units, positions)."""
    active = activations > 0
    return {
        **products(activations),
        "active": active.sum((0, 2)),
        "active_images": active.any(2).sum(0),
        "class_sum": activations.double().clamp_min(0).mean(2).T @ member,
        "class_relevance": relevances.double().sum(2).T @ member,
    }


def _served(model: nn.Module, index: CarIndex | None, layer: Layer) -> Served | None:
    """Read what its filters are worth; of what goes with them, name the layers but no norms."""
    found = None if index is None else served(index, layer.name, layer.units)
    if found is None:
        return None
    norms = nn.modules.batchnorm._BatchNorm
    others = [n for n in found.together if not isinstance(model.get_submodule(n), norms)]
    return replace(found, together=tuple(others))


def _layer(
    scope: _Scope, learned: _Learned, layer: Layer, colour: Tensor, worth: Served | None
) -> LayerProfile:
    sums, name = learned.totals.sums, layer.name
    positions, images = float(sums[f"positions/{name}"]), sums["classes"]
    means = sums[f"class_sum/{name}"] / images  # NaN for a class without images
    weights = angles = selectivity = None
    operation = layer.operation
    if operation.first and operation.weight is not None and operation.weight.dim() == 4:
        weights = operation.weight.detach().cpu().clone()
        selectivity, angles = orientation(weights)
    return LayerProfile(
        name,
        scope.fields[name],
        operation.first,
        weights,
        sums[f"active/{name}"] / positions,
        sums[f"active_images/{name}"] / learned.samples,
        means,
        sums[f"class_relevance/{name}"] / images,
        class_selectivity(means[:, images > 0]),
        colour,
        selectivity,
        angles,
        correlation(sums[f"products/{name}"], sums[f"sum/{name}"], positions),
        learned.strongest[f"activations/{name}"],
        learned.strongest[f"relevances/{name}"],
        worth,
    )


def _colours(
    model: nn.Module,
    data: Data,
    scope: _Scope,
    learned: _Learned,
    pixels: Preprocessing | None,
    batch_size: int,
    description: str | None,
) -> dict[str, Tensor]:
    """Colour selectivity: how much of the strongest activations is left on grey images."""
    strongest = {name: learned.strongest[f"activations/{name}"] for name in scope.names}
    left = {name: torch.zeros_like(best.values) for name, best in strongest.items()}
    if pixels is None or pixels.channels != 3:
        return {name: torch.full((len(v),), torch.nan) for name, v in left.items()}
    device = models.device_of(model)
    numbers = sorted({number for best in strongest.values() for number in best.numbers()})
    parts = [numbers[i : i + batch_size] for i in range(0, len(numbers), batch_size)]
    show = None if description else False
    with agreed():
        for number, part in enumerate(track(parts, f"{description}: in grey", show=show)):
            if not is_mine(number):
                continue
            inputs = to_inputs(grey(pixels.denormalise(images_at(data, part)[0])), pixels)
            responses = Responses(scope.names)
            reach(model, inputs.to(device).requires_grad_(), scope.names, [responses])
            for name, best in strongest.items():
                _look_up(left[name], best, part, responses.activations[name].cpu())
    found = summed(left)  # each place is that of one process, and 0 in the others
    return {
        name: 1 - found[name].to(best.values).clamp_min(0).sum(1) / best.values.sum(1)
        for name, best in strongest.items()
    }


def _look_up(left: Tensor, best: Strongest, part: list[int], activations: Tensor) -> None:
    """Write down the activations at the strongest places, as far as these images have them."""
    row = torch.full((max(part) + 2,), -1)  # the last for empty places, whose image is -1
    row[part] = torch.arange(len(part))
    known = row[best.images.clamp(max=max(part) + 1)]
    units, places = (known >= 0).nonzero(as_tuple=True)
    chosen = known[units, places]
    left[units, places] = activations[chosen, units, best.positions[units, places]].float()
