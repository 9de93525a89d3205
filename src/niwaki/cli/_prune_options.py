"""The options of ``niwaki prune``, in bundles."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from niwaki import ranges as r
from niwaki.cli import _options as o
from niwaki.cli._acts import Acts
from niwaki.errors import NiwakiError, UnknownOptionError
from niwaki.options import split_options

if TYPE_CHECKING:
    from niwaki.data import Data
    from niwaki.pruning import FineTune, Limits, Schedule

__all__ = [
    "Common",
    "Limiting",
    "Repair",
    "Scheduling",
    "Tuning",
    "named_files",
    "parse_criterion",
    "repair_of",
]

Repair: TypeAlias = Annotated[
    Literal["rebuild", "rebuild_jointly", "recalibrate", "compensate", "none"],
    typer.Option(
        help="The repair after each step, which needs no training: fit the remaining layers to "
        "the outputs of the unpruned network, one by one (rebuild) or also together with the "
        "layers that feed them alone (rebuild_jointly: better, and about four times slower), "
        "measure batch norms again, add the mean of what is removed to biases, or do nothing."
    ),
]


def repair_of(
    name: Literal["rebuild", "rebuild_jointly", "recalibrate", "compensate", "none"],
) -> Literal["rebuild", "rebuild_jointly", "recalibrate", "compensate"] | None:
    """Return a repair as `pruning.prune` takes it."""
    return None if name == "none" else name


@dataclass(frozen=True)
class Common(o.Common):
    """The usual options, with larger batches: there is no heatmap to keep for each image."""

    _: KW_ONLY
    batch_size: o.BatchSize = 32


@dataclass(frozen=True)
class Scheduling:
    """How far, in which steps, and where to stop."""

    _: KW_ONLY
    keep: Annotated[float, r.INSIDE, typer.Option(help="Share to keep.")] = 0.5
    of: Annotated[
        Literal["units", "params", "macs", "seconds"],
        typer.Option(
            help="What --keep is a share of. Seconds are measured layer by layer, and then "
            "predicted."
        ),
    ] = "macs"
    steps: Annotated[
        int | None,
        r.STEPS,
        typer.Option(help="Number of steps; 1: all at once.", show_default=False),
    ] = None
    per_step: Annotated[
        float | None,
        r.PER_STEP,
        typer.Option(
            help="Share that is removed in each step. Default: 0.05; 0.1 where layers are "
            "rebuilt, nothing is trained and there is no floor.",
            show_default=False,
        ),
    ] = None
    schedule: Annotated[
        Literal["equal", "geometric"],
        typer.Option(
            help="Whether steps remove the same amount, or the same share of what is left."
        ),
    ] = "equal"
    floor: Annotated[
        float | None,
        r.SHARE,
        typer.Option(
            help="Stop before the accuracy on validation images falls below this.",
            show_default=False,
        ),
    ] = None
    recompute: Annotated[
        bool, typer.Option(help="Whether to score in each step, or once at the start.")
    ] = True
    per_cost: Annotated[
        float,
        r.EXPONENT,
        typer.Option(
            help="Scores are divided by a unit's cost to the power of this exponent; 0 ranks by "
            "the score alone.",
        ),
    ] = 0.6

    def bundle(self, prices: dict[str, float] | None) -> Schedule:
        """Return the schedule; where the share is of seconds, MACs have prices."""
        from niwaki.pruning import Schedule

        return Schedule(
            self.steps,
            self.per_step,
            self.schedule,
            self.floor,
            self.recompute,
            self.per_cost,
            prices,
        )


@dataclass(frozen=True)
class Limiting:
    """What may not be removed, and what repairs the rest."""

    _: KW_ONLY
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            help="Layer, module or pattern that keeps its units. May be given several times.",
            show_default=False,
        ),
    ] = None
    min_units: Annotated[
        int, r.UNITS, typer.Option(help="Smallest number of units that a layer may keep.")
    ] = 1
    round_to: Annotated[
        int, r.UNITS, typer.Option(help="Give each pruned layer a multiple of this many units.")
    ] = 1
    ceiling: Annotated[
        list[str] | None,
        typer.Option(
            help="Largest share of its units that a layer may lose: 0.5 for all, or LAYER=0.5. May "
            "be given several times.",
            show_default=False,
        ),
    ] = None
    repair: Repair = "rebuild_jointly"

    def bundle(self) -> Limits:
        """Return the limits on what is removed."""
        from niwaki.pruning import Limits

        ceilings = _ceilings(self.ceiling or [])
        return Limits(self.ignore or [], self.min_units, self.round_to, ceilings)


def _ceilings(given: list[str]) -> dict[str, float]:
    """Read 0.5 or LAYER=0.5, each layer once."""
    found: dict[str, float] = {}
    for text in given:
        layer, _, share = text.rpartition("=")
        try:
            value = float(share)
        except ValueError:
            raise NiwakiError(f"--ceiling {text!r}: expected 0.5 or LAYER=0.5") from None
        r.FRACTION.check("--ceiling", value)
        if (layer or "*") in found:
            raise NiwakiError(f"--ceiling {text!r}: there is one already for {layer or 'all'}")
        found[layer or "*"] = value
    return found


_TUNED = Acts(beside=("epochs",))


@dataclass(frozen=True)
class Tuning:
    """Fine-tuning."""

    _: KW_ONLY
    epochs: Annotated[
        int, r.EPOCHS.but(low=0), typer.Option(help="Number of epochs of fine-tuning.")
    ] = 0
    tune: Annotated[
        Literal["each", "end"],
        _TUNED,
        typer.Option(help="Whether to fine-tune after each step, or once at the end."),
    ] = "each"
    optimizer: Annotated[
        Literal["sgd", "adamw"], _TUNED, typer.Option(help="Optimizer of fine-tuning.")
    ] = "sgd"
    lr: Annotated[float, r.LEARNING_RATE, _TUNED, typer.Option(help="Learning rate.")] = 0.01
    momentum: Annotated[
        float, r.BELOW_ONE, _TUNED, Acts(("optimizer=sgd",)), typer.Option(help="Momentum of SGD.")
    ] = 0.9
    weight_decay: Annotated[
        float, r.DECAY, _TUNED, typer.Option(help="Weight decay of fine-tuning.")
    ] = 5e-4
    lr_schedule: Annotated[
        Literal["cosine", "step", "constant"],
        _TUNED,
        typer.Option(help="How the learning rate falls."),
    ] = "cosine"
    label_smoothing: Annotated[
        float, r.BELOW_ONE, _TUNED, typer.Option(help="Label smoothing of fine-tuning.")
    ] = 0.0
    distil: Annotated[
        float,
        r.FRACTION,
        _TUNED,
        typer.Option(help="Weight of the unpruned network's outputs as targets."),
    ] = 0.0
    temperature: Annotated[
        float, r.TEMPERATURE, Acts(("distil",)), typer.Option(help="Temperature of distillation.")
    ] = 4.0
    patience: Annotated[
        int | None,
        r.EPOCHS,
        _TUNED,
        typer.Option(
            help="Stop after this many epochs without a better validation accuracy.",
            show_default=False,
        ),
    ] = None
    precision: Annotated[
        Literal["auto", "no", "bf16", "fp16"],
        _TUNED,
        typer.Option(help="Precision of fine-tuning's forward pass."),
    ] = "auto"
    tune_batch: Annotated[
        int, r.BATCH, _TUNED, typer.Option(help="Samples in a batch of fine-tuning.")
    ] = 64

    def bundle(self, seed: int, training: Data | None = None) -> FineTune | None:
        """Return the settings of fine-tuning, or None where nothing is tuned."""
        from niwaki.pruning import FineTune

        if self.epochs == 0:
            return None
        return FineTune(
            self.epochs,
            self.optimizer,
            self.lr,
            self.momentum,
            self.weight_decay,
            self.lr_schedule,
            self.tune_batch,
            self.label_smoothing,
            self.distil,
            self.temperature,
            self.patience,
            self.precision,
            seed,
            training,
            self.tune == "each",
        )


def named_files(text: str) -> list[str]:
    """Return the values of the options, any of which may be the path of a file."""
    return [part.partition("=")[2].strip() for part in text.split(",") if part.partition("=")[2]]


def parse_criterion(text: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the options.

    Raises
    ------
    ValueError
        For a name or value that does not exist.
    NiwakiError
        For text of another form, or an option that the criterion does not have.
    """
    from niwaki.criteria import create

    name, options = split_options(text)
    try:
        create(name, **options)
    except UnknownOptionError as error:
        raise NiwakiError(f"--criterion {text!r}: {error}") from error
    return name, options
