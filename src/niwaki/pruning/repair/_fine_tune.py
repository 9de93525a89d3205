"""Fine-tuning: an ordinary training loop, which shares nothing with others in the process."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from niwaki import models
from niwaki.contexts import seeded, undisturbed
from niwaki.data import Data, batches, check_labels, count, generators
from niwaki.errors import DataError, ModelError
from niwaki.evaluation import accuracy
from niwaki.machine import check_alone
from niwaki.processes import check_joined, gathered
from niwaki.progress import track
from niwaki.propagation import check_logit
from niwaki.pruning.repair._history import Epoch, Kept, Tuned
from niwaki.pruning.repair._together import average_buffers, average_gradients, share_of
from niwaki.ranges import (
    BATCH,
    BELOW_ONE,
    DECAY,
    EPOCHS,
    FRACTION,
    LEARNING_RATE,
    SEED,
    TEMPERATURE,
    checked,
)
from niwaki.stages import stage

__all__ = ["FineTune", "check_precision", "fine_tune", "precision_on", "run_loop"]


#: From a network in training and a batch of inputs to what is added to the loss.
Penalty = Callable[[nn.Module, Tensor], Tensor]


@checked(
    epochs=EPOCHS,
    lr=LEARNING_RATE,
    momentum=BELOW_ONE,
    weight_decay=DECAY,
    batch_size=BATCH,
    label_smoothing=BELOW_ONE,
    distil=FRACTION,
    temperature=TEMPERATURE,
    patience=EPOCHS,
    seed=SEED,
)
@dataclass(frozen=True)
class FineTune:
    """How a network is fine-tuned.

    Attributes
    ----------
    epochs : int
        Passes over the data.
    optimizer : {"sgd", "adamw"}
        SGD with momentum, or AdamW.
    lr, momentum, weight_decay : float
        Settings of the optimizer; AdamW has no momentum to set.
    schedule : {"cosine", "step", "constant"}
        The learning rate falls to 0 along a cosine, by ten after half and three quarters of the
        epochs, or not at all.
    batch_size : int
        For data sets and tensors, which are shuffled; a loader has its own.
    label_smoothing : float
        Share of the target that is spread over all classes.
    distil : float
        Weight of the teacher's softened outputs against the labels, from 0 to 1 (Hinton et al.
        2015).
    temperature : float
        The outputs of both networks are divided by it there.
    patience : int, optional
        Stop after so many epochs without a better accuracy on the validation data.
    precision : {"auto", "no", "bf16", "fp16"}
        Precision of the forward pass; "auto" takes bf16 or fp16 on a GPU that has it, and "no" on
        a CPU.
    seed : int
        Seed of shuffling, dropout, and augmentation by the generators of torch, NumPy and Python;
        the same seed gives the same weights on the same machine.
    training : DataLoader, Dataset or pair of tensors, optional
        What `niwaki.prune` lets a network learn from; default: the reference samples.
    each : bool
        Whether `niwaki.prune` fine-tunes after each step, or once at the end.
    loop : callable, optional
        A training loop of your own in place of all that is set above, called with the network (in
        evaluation mode, to be trained in place) and the number of the step, by which the generators
        of torch, NumPy and Python are seeded.
    """

    epochs: int = 10
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    batch_size: int = 64
    label_smoothing: float = 0.0
    distil: float = 0.0
    temperature: float = 4.0
    patience: int | None = None
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    seed: int = 0
    training: Data | None = field(default=None, repr=False, compare=False)
    each: bool = True
    loop: Callable[[nn.Module, int], object] | None = None

    def settings(self) -> Any:
        """Return as plain data how the network is trained: the loop's name, or all numbers."""
        if self.loop is not None:
            name = getattr(self.loop, "__qualname__", type(self.loop).__qualname__)
            return f"{getattr(self.loop, '__module__', '')}.{name}"
        return {n: v for n, v in vars(self).items() if n not in ("training", "each", "loop")}


@undisturbed
@stage("fine-tuning")
def fine_tune(
    model: nn.Module,
    data: Data,
    settings: FineTune | None = None,
    *,
    teacher: nn.Module | None = None,
    validation: Data | None = None,
    penalty: Penalty | None = None,
) -> Tuned:
    """Train a network in place.

    Processes that work together each take their share of every batch; gradients are those of whole
    batches. Batch norms see the share alone, and what they have seen is averaged after each epoch.

    It may run while other threads train other networks. Dropout draws from torch's one generator,
    so that the same seed gives the same weights only where no other thread draws from it.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, before and after. Frozen parameters stay as they are.
    data : DataLoader, Dataset or pair of tensors
        The training data; augmentation is left to the data set. Own generators of a loader and its
        samplers, if they have some, are seeded anew.
    settings : FineTune, optional
        Default: `FineTune`'s.
    teacher : nn.Module, optional
        Where ``settings.distil`` is above 0: the network whose outputs are learned, in evaluation
        mode; not changed.
    validation : DataLoader, Dataset or pair of tensors, optional
        The weights with the best accuracy on these are kept, those at the start among them;
        without, the last ones.
    penalty : callable, optional
        From the network and a batch of inputs to what is added to the loss of the batch.

    Returns
    -------
    Tuned
        The epochs, and which of them was kept.

    Raises
    ------
    ValueError
        For settings that contradict what is given.
    ModelError
        If all parameters are frozen, or training diverges.
    """
    check_joined("fine-tuning")
    settings = settings or FineTune()
    if settings.distil > 0 and teacher is None:
        raise ValueError(f"distil = {settings.distil} needs a teacher")
    if settings.patience is not None and validation is None:
        raise ValueError(f"patience = {settings.patience} needs validation data")
    models.check(model)
    device = models.device_of(model)
    gpus = [device.index or 0] if device.type == "cuda" else []
    with seeded(settings.seed, gpus), torch.enable_grad():
        loader = share_of(_loader(data, settings))
        return _train(model, loader, settings, teacher, validation, device, penalty)


def run_loop(loop: Callable[[nn.Module, int], object], model: nn.Module, step: int) -> None:
    """Call a training loop of the user's, with the common generators seeded by the step."""
    check_alone("a training loop of your own")
    flags = [(p, p.requires_grad) for p in model.parameters()]
    device = models.device_of(model)
    gpus = [device.index or 0] if device.type == "cuda" else []
    with seeded(step, gpus), torch.enable_grad():
        loop(model, step)
    model.eval()
    for parameter, wanted in flags:
        parameter.requires_grad_(wanted)
        parameter.grad = None
    models.check(model)


def _train(
    model: nn.Module,
    loader: DataLoader[Any],
    settings: FineTune,
    teacher: nn.Module | None,
    validation: Data | None,
    device: torch.device,
    penalty: Penalty | None = None,
) -> Tuned:
    history: list[Epoch] = []
    best = _Best(model, validation, settings.batch_size)
    with _training(model, settings) as optimizer:
        precision = _Precision(settings.precision, device)
        progress = _Progress(settings.epochs, loader)
        for epoch in track(range(1, settings.epochs + 1), "fine-tuning"):
            model.train()
            total = seen = 0.0
            for inputs, labels in batches(loader, place=models.home(model)):
                if progress.done == 0:
                    check_logit(model.eval(), inputs)
                    model.train()
                rate = settings.lr * _factor(settings.schedule, progress.share(epoch))
                for group in optimizer.param_groups:
                    group["lr"] = rate
                with precision.autocast():
                    output = model(inputs.clone())  # which it may overwrite
                loss = _loss(output, inputs, labels, settings, teacher, precision)
                if penalty is not None:
                    loss = loss + penalty(model, inputs)
                optimizer.zero_grad(set_to_none=True)
                precision.step(loss, optimizer, len(labels))
                total += float(loss.detach()) * len(labels)
                seen += len(labels)
                progress.batch()
            total, seen = map(sum, zip(*gathered((total, seen)), strict=True))
            average_buffers(model)
            if not math.isfinite(total):
                raise ModelError(
                    f"fine-tuning diverged in epoch {epoch}: the loss is not finite. Lower "
                    f"lr = {settings.lr}"
                )
            model.eval()
            history.append(Epoch(epoch, rate, total / seen, best.look(epoch)))
            if settings.patience is not None and epoch - best.epoch >= settings.patience:
                break
        optimizer.zero_grad(set_to_none=True)
    best.restore()
    return Tuned(tuple(history), best.told(len(history)))


class _Best:
    """The best weights so far, by accuracy on the validation data."""

    def __init__(self, model: nn.Module, validation: Data | None, batch_size: int) -> None:
        self.model, self.validation, self.batch_size = model, validation, batch_size
        self.epoch, self.accuracy = 0, -1.0
        self.state: dict[str, Tensor] = {}
        self.before = self.look(0)

    def look(self, epoch: int) -> float | None:
        """Measure the network as it is, and keep its weights if they are better."""
        if self.validation is None:
            return None
        found = accuracy(self.model, self.validation, batch_size=self.batch_size)
        if found > self.accuracy:
            self.epoch, self.accuracy = epoch, found
            self.state = copy.deepcopy(self.model.state_dict())
        return found

    def told(self, epochs: int) -> Kept | None:
        """Say which weights are kept after so many epochs."""
        if self.validation is None or self.before is None:
            return None
        return Kept(self.epoch, epochs, self.accuracy, self.before, count(self.validation))

    def restore(self) -> None:
        """Put the best weights into the network."""
        if self.validation is not None:
            self.model.load_state_dict(self.state)


class _Progress:
    """How far training is, where a loader may not know its length before its first epoch ended."""

    def __init__(self, epochs: int, loader: DataLoader[Any]) -> None:
        self.epochs, self.done, self.length = epochs, 0, 0
        with_length = getattr(loader.dataset, "__len__", None) is not None
        if with_length:
            self.length = len(loader)

    def batch(self) -> None:
        """Count a batch."""
        self.done += 1

    def share(self, epoch: int) -> float:
        """Return the share of the training that lies behind, from 0 to 1."""
        if not self.length:
            return (epoch - 1) / self.epochs
        return min(self.done / (self.length * self.epochs), 1.0)


def _factor(schedule: str, share: float) -> float:
    """Learning rate as a share of the first, when a share of the training is over."""
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * share))
    if schedule == "step":
        return float(0.1 ** ((share >= 0.5) + (share >= 0.75)))
    return 1.0


def _loss(
    output: Tensor,
    inputs: Tensor,
    labels: Tensor,
    settings: FineTune,
    teacher: nn.Module | None,
    precision: _Precision,
) -> Tensor:
    output = models.class_logits(output, "fine-tuning")
    check_labels(labels, output.shape[1])
    output = output.float() if output.dtype in (torch.bfloat16, torch.float16) else output
    loss = F.cross_entropy(output, labels, label_smoothing=settings.label_smoothing)
    if settings.distil == 0 or teacher is None:
        return loss
    with torch.no_grad(), precision.autocast():
        taught = models.class_logits(teacher(inputs.clone()).float(), "distillation")
    t = settings.temperature
    softened = F.kl_div(
        F.log_softmax(output / t, 1),
        F.log_softmax(taught / t, 1),
        reduction="batchmean",
        log_target=True,
    )
    # Times t squared: gradients of softened outputs shrink by it.
    return (1 - settings.distil) * loss + settings.distil * t * t * softened


def _loader(data: Data, settings: FineTune) -> DataLoader[Any]:
    """Shuffle data by a generator of our own; of a loader, only its generators are seeded."""
    if isinstance(data, DataLoader):
        for generator in generators(data):
            generator.manual_seed(settings.seed)
        return data
    dataset: Dataset[Any] = data if isinstance(data, Dataset) else TensorDataset(*data)
    samples = count(data)
    if samples == 0:
        raise DataError("there are no data to fine-tune on: the length is 0")
    size = settings.batch_size
    return DataLoader(
        dataset,
        batch_size=size,
        shuffle=samples is not None,  # an iterable data set has its own order
        # A last batch of one sample has no variance for batch norms.
        drop_last=samples is not None and samples > size and samples % size == 1,
        generator=torch.Generator().manual_seed(settings.seed),
    )


@contextmanager
def _training(model: nn.Module, settings: FineTune) -> Iterator[torch.optim.Optimizer]:
    """Make the optimizer; leave the network in evaluation mode, whatever happens."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ModelError("all parameters are frozen: there is nothing to fine-tune")
    try:
        yield _optimizer(trained, settings)
    finally:
        model.eval()


class _Precision:
    """The forward pass in fewer bits where a GPU has them; gradients of fp16 are scaled."""

    def __init__(self, wanted: str, device: torch.device) -> None:
        wanted = precision_on(device, wanted)
        check_precision(wanted, device)
        self._dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(wanted)
        self._device = device.type
        self._scaler = torch.amp.GradScaler(device.type, enabled=wanted == "fp16")

    def autocast(self) -> torch.autocast:
        """Compute in fewer bits within a `with` block."""
        return torch.autocast(self._device, self._dtype, enabled=self._dtype is not None)

    def step(self, loss: Tensor, optimizer: torch.optim.Optimizer, samples: int) -> None:
        """Take one step down a loss, which is the mean over so many samples."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        average_gradients([p for group in optimizer.param_groups for p in group["params"]], samples)
        self._scaler.step(optimizer)
        self._scaler.update()


def _optimizer(trained: list[nn.Parameter], settings: FineTune) -> torch.optim.Optimizer:
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(trained, settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        trained, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )


def precision_on(device: torch.device, wanted: str) -> str:
    """Return what "auto" means on a device, and any other precision as it is."""
    if wanted != "auto":
        return wanted
    if device.type != "cuda":
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def check_precision(wanted: str, device: torch.device | None) -> None:
    """Refuse a precision that the device does not have."""
    if wanted == "fp16" and (device is None or device.type == "cpu"):
        raise ValueError("precision = 'fp16' needs a GPU; on a CPU take 'bf16' or 'no'")
