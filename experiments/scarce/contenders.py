"""Who takes part: criteria of niwaki, and torch-pruning's own pruner by its own recipes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki.data import Data, in_memory
from niwaki.evaluation import cost
from niwaki.pruning import CUSTOMIZED_PRUNERS, Choice, Contender, recalibrate

__all__ = ["contenders"]

PLAIN = {"per_cost": 0.0}
PER_COST = {"per_cost": 0.6}
SMALL_STEPS = {**PER_COST, "steps": 28}  # torch-pruning's recipes look anew in each of 45
#: Those of the paper and of practice, each after its source, ranked by the score alone.
CRITERIA = (
    "taylor",
    "taylor_gates",
    "gradient",
    "activation",
    "weight",
    "weight.l2",
    "lamp",
    "fpgm",
)
#: The best of them once more, with the score per cost that niwaki's LRP has by default.
COSTLY = ("taylor_gates", "activation", "weight")


def contenders(
    model: nn.Module, *, repaired: bool = False, rules: Path | None = None
) -> list[Contender]:
    """List them all; with repairs, batch norms are recalibrated after each step for everyone."""
    norms = any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    rows = [
        Contender("lrp", "lrp", prune_options=PER_COST),
        Contender("lrp.z_plus_output", "lrp.z_plus_output", prune_options=PER_COST),
        Contender("lrp, score alone", "lrp", prune_options=PLAIN),
        Contender("lrp.epsilon_plus (Yeom et al.)", "lrp.epsilon_plus", prune_options=PLAIN),
        *(Contender(name, name, prune_options=PLAIN) for name in CRITERIA),
        *([Contender("bn_scale", "bn_scale", prune_options=PLAIN)] if norms else []),
        Contender("random", "random", prune_options=PLAIN),
        *(Contender(f"{name} per cost", name, prune_options=PER_COST) for name in COSTLY),
        Contender("lrp, small steps", "lrp", prune_options=SMALL_STEPS),
        Contender("taylor_gates, small steps per cost", "taylor_gates", prune_options=SMALL_STEPS),
    ]
    if rules is not None:
        rows = [*_chosen(rules), *rows]
    importances: Mapping[str, tuple[Callable[[], Any], bool]] = {
        "magnitude": (lambda: tp.importance.GroupMagnitudeImportance(p=2), False),
        "lamp": (lambda: tp.importance.LAMPImportance(p=2), False),
        "taylor": (tp.importance.GroupTaylorImportance, True),
        "hessian": (tp.importance.GroupHessianImportance, True),
        **({"bn_scale": (tp.importance.BNScaleImportance, False)} if norms else {}),
    }
    rows += [
        Contender(
            f"torch-pruning {name}",
            _pruner(make, looks=looks, repaired=repaired),
            needs_data=looks or repaired,
        )
        for name, (make, looks) in importances.items()
    ]
    return rows


def _chosen(folder: Path) -> list[Contender]:
    """What rules.py has found best on images kept aside: rules of LRP, exponents of the others."""
    choice = Choice.load(folder)
    options = {"per_cost": choice.per_cost}
    rows = [Contender("lrp, chosen rules", choice.criterion, prune_options=options)]
    for name, areas in json.loads((folder / "exponents.json").read_text("utf-8")).items():
        best = float(max(areas, key=areas.__getitem__))
        label = f"{name}, chosen per cost"
        rows.append(Contender(label, name, prune_options={"per_cost": best}))
    return rows


def _pruner(
    make: Callable[[], Any], *, looks: bool, repaired: bool
) -> Callable[[nn.Module, Data, int], Iterator[nn.Module]]:
    """Torch-pruning's pruner: global ranking, many small steps, stopped at tenths of the MACs."""

    def run(model: nn.Module, references: Data, seed: int) -> Iterator[nn.Module]:
        images, labels = in_memory(references)
        importance = make()
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        pruner = tp.pruner.BasePruner(
            model,
            images[:1],
            importance=importance,
            global_pruning=True,
            pruning_ratio=0.9,
            iterative_steps=45,
            ignored_layers=_outputs(model),
            customized_pruners=CUSTOMIZED_PRUNERS,
            root_module_types=[nn.Conv2d, nn.Linear],
        )
        whole = cost(model, images[:1]).macs
        shares = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
        for _ in range(45):
            if looks:
                _gradients(model, importance, images, labels)
            pruner.step()
            model.zero_grad(set_to_none=True)
            left = cost(model, images[:1]).macs / whole
            if left <= shares[0]:
                if repaired:
                    recalibrate(model, references)
                yield model
                shares = [share for share in shares if share < left]
            if not shares:
                return

    return run


def _gradients(model: nn.Module, importance: Any, images: Tensor, labels: Tensor) -> None:
    """Fill in what the importance reads: gradients, or those of each sample for the Hessian."""
    model.zero_grad()
    if isinstance(importance, tp.importance.GroupHessianImportance):
        importance.zero_grad()
        for image, label in zip(images, labels, strict=True):
            model.zero_grad()
            F.cross_entropy(model(image[None]), label[None]).backward()
            importance.accumulate_grad(model)
    else:
        for some, classes in zip(images.split(50), labels.split(50), strict=True):
            (F.cross_entropy(model(some), classes, reduction="sum") / len(images)).backward()


def _outputs(model: nn.Module) -> list[nn.Module]:
    """Return the layer whose units are the classes: the last one."""
    return [[m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))][-1]]
