"""Saved networks: a folder is checked before any of it is used, and the network is rebuilt."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from niwaki import models
from niwaki.contexts import undisturbed
from niwaki.data import Preprocessing
from niwaki.errors import DataError, ModelError, WeightsError
from niwaki.models import Origin, plain_copy
from niwaki.pruning._plan import Plan
from niwaki.pruning.units._surgery import replay
from niwaki.schema import (
    Anything,
    Either,
    ListOf,
    MapOf,
    Nothing,
    Number,
    Record,
    Text,
    Whole,
    read_json,
)

__all__ = ["FORMAT", "Saved", "load", "probe", "shapes"]

FORMAT = 1
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}
_VALUES = 2**26  # of an input, at the most
_PROBED = 64  # outputs that are noted
_TOLERANCE = 0.02  # of the largest: kinds of arithmetic differ by less, other networks by more

_PREPROCESSING = Record(
    {
        "size": Whole(1, 2**14),
        "mean": ListOf(Number(-1e6, 1e6), 3),
        "std": ListOf(Number(1e-9, 1e6), 3),
    },
    {
        "resize": Either(Nothing(), Whole(1, 2**14)),
        "channels": Whole(1, 3),
        "interpolation": Text(longest=20),
    },
)
_ABOUT = Record(
    {
        "format": Whole(),
        "input_shape": ListOf(Whole(1, 2**14), 6, 1),
        "dtype": Text(tuple(_DTYPES)),
        "architecture": MapOf(ListOf(Whole(0, 2**31), 8)),
    },
    {
        **Origin.FORMS,
        "preprocessing": Either(Nothing(), _PREPROCESSING),
        "class_names": Either(Nothing(), ListOf(Text(longest=1000), 100_000)),
        "outputs": Either(Nothing(), ListOf(Number(), _PROBED)),
        "settings": Anything(),
    },
    open=True,
)


@dataclass(frozen=True)
class Saved:
    """The content of a saved network's folder.

    Attributes
    ----------
    folder : Path
        That `Pruned.save` has written.
    input_shape : tuple of int
        Shape of one sample.
    dtype : torch.dtype
        Type of the parameters.
    architecture : dict of str to list of int
        Shapes of the parameters before pruning.
    plan : Plan
        What was removed.
    origin : Origin or None
        What builds the unpruned network, where that is known.
    preprocessing : Preprocessing or None
        How images become inputs, where that is known.
    class_names : list of str or None
        One per output, where they are known.
    outputs : list of float or None
        Some of what the network answered when it was saved, see `probe`.
    """

    folder: Path
    input_shape: tuple[int, ...]
    dtype: torch.dtype
    architecture: dict[str, list[int]]
    plan: Plan
    origin: Origin | None
    preprocessing: Preprocessing | None
    class_names: list[str] | None
    outputs: list[float] | None

    @classmethod
    def read(cls, folder: str | Path) -> Saved:
        """Read a folder; nothing that it names is run.

        Raises
        ------
        ModelError
            If it is none of a saved network, or damaged.
        """
        folder = Path(folder).expanduser()
        no = f"{folder} is no folder of a pruned network, or damaged"
        about = read_json(folder / "niwaki.json", _ABOUT, no, ModelError)
        if about["format"] != FORMAT:
            raise ModelError(
                f"{folder} has the format {about['format']}; this version reads {FORMAT}"
            )
        steps = read_json(folder / "plan.json", Plan.FORM, no, ModelError)
        shape = tuple(about["input_shape"])
        if math.prod(shape) > _VALUES:
            raise ModelError(
                f"{folder} says that an input has the shape {shape}, which is too much"
            )
        known = about.get("preprocessing")
        try:
            preprocessing = Preprocessing.from_json(known) if known else None
        except DataError as error:
            raise ModelError(f"{folder / 'niwaki.json'} is damaged: {error}") from error
        return cls(
            folder,
            shape,
            _DTYPES[about["dtype"]],
            about["architecture"],
            Plan.from_json(steps),
            Origin.from_json(about),
            preprocessing,
            about.get("class_names"),
            about.get("outputs"),
        )

    def rebuild(self, model: nn.Module | None = None, *, trust: bool = False) -> nn.Module:
        """Build the network again, see `load`."""
        if model is None:
            if self.origin is None:
                raise ModelError(
                    f"{self.folder} does not say which architecture it was pruned from; name it: "
                    "--architecture MODEL (in Python: model=...)"
                )
            model = self.origin.build(self.folder, trust=trust)
        fresh = plain_copy(model).eval()
        self._check_architecture(shapes(fresh))
        fresh = fresh.to(self.dtype)
        device = next(fresh.parameters()).device
        example = torch.zeros(2, *self.input_shape, dtype=self.dtype, device=device)
        try:
            replay(fresh, example, self.plan)
        except Exception as error:
            raise ModelError(
                f"{self.folder} is damaged: its niwaki.json or plan.json does not fit the network "
                f"({type(error).__name__}: {error})"
            ) from error
        models.load_weights(fresh, self.folder / "weights.safetensors")
        self._check_outputs(fresh)
        return fresh

    def _check_architecture(self, given: Mapping[str, list[int]]) -> None:
        saved = self.architecture
        different = [n for n in {**saved, **given} if saved.get(n) != given.get(n)]
        if different:
            lines = [
                f"  {n}: saved {saved.get(n, 'nothing')}, given {given.get(n, 'nothing')}"
                for n in different[:5]
            ]
            raise WeightsError(
                f"{self.folder} was pruned from another architecture ({len(different)} parameters "
                "differ):\n" + "\n".join(lines)
            )

    def _check_outputs(self, model: nn.Module) -> None:
        """Notice a network with the same shapes that computes something else."""
        if self.outputs is None:
            return
        found = probe(model, self.input_shape)
        expected = torch.tensor(self.outputs, dtype=torch.float64)
        if found is not None and len(found) == len(expected):
            off = float((torch.tensor(found, dtype=torch.float64) - expected).abs().max())
            if off <= _TOLERANCE * max(float(expected.abs().max()), 1e-6):
                return
        changed = self.origin is not None and self.origin.changed()
        raise ModelError(
            f"{self.folder} gives other outputs than when it was saved: the architecture has the "
            "same parameters, and computes something else with them"
            + (f". {self.origin.file} has changed since" if changed and self.origin else "")
        )


@undisturbed
def load(folder: str | Path, model: nn.Module | None = None, *, trust: bool = False) -> nn.Module:
    """Rebuild a saved network.

    Parameters
    ----------
    folder : str or Path
        That `Pruned.save` has written.
    model : nn.Module, optional
        The unpruned architecture, with any weights; it stays as it is. Default: what the folder
        says, where torchvision, timm, the zoo or an installed package builds it, or code that you
        have pruned from yourself.
    trust : bool
        Whether any code that the folder names may run. Code in the folder itself never does.

    Returns
    -------
    nn.Module
        The pruned network in evaluation mode; its outputs are bit for bit those of the saved one.

    Raises
    ------
    ModelError
        If the folder is not one of ours, the code that it names is missing or not trusted, or the
        network computes something else than when it was saved.
    WeightsError
        If the weights cannot be read or do not fit, or the architecture is another.
    """
    return Saved.read(folder).rebuild(model, trust=trust)


def shapes(model: nn.Module) -> dict[str, list[int]]:
    """Return the shape of each parameter, by name."""
    return {name: list(p.shape) for name, p in model.named_parameters()}


def probe(model: nn.Module, input_shape: tuple[int, ...]) -> list[float] | None:
    """Return some outputs for a fixed input, by which a network is recognised.

    Returns
    -------
    list of float or None
        None for a network whose answer is no tensor, not finite, or another each time.
    """
    first = next(model.parameters())
    gpus = [first.device.index or 0] if first.device.type == "cuda" else []
    wave = torch.arange(2 * math.prod(input_shape), dtype=torch.float64).mul(0.1).sin()
    inputs = wave.view(2, *input_shape).to(first)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ours = models.deep_copy(model)  # it may note what it has seen
            with torch.no_grad(), torch.random.fork_rng(gpus):
                answers = [ours(inputs.clone()) for _ in range(2)]
        # The network is the user's: saving does not need it to take this input.
        except Exception:
            return None
    one, two = answers
    if not isinstance(one, Tensor) or not one.is_floating_point() or not torch.equal(one, two):
        return None
    found = one.detach().double().cpu().flatten()[:_PROBED]
    return [float(value) for value in found] if bool(found.isfinite().all()) else None
