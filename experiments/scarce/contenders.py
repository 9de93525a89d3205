"""Who takes part: criteria, repairs, and other ways to prune, as the three tables need them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import choices
import repairs
import torch_pruning as tp
from recipes import Choose, Recipe, Repair, ranked
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki.data import Data, in_memory
from niwaki.evaluation import cost
from niwaki.pruning import CUSTOMIZED_PRUNERS, Choice, Contender, Schedule, recalibrate

__all__ = ["ALONE", "OURS", "SPLIT", "STEPS", "TABLES", "contenders", "repairing"]

STEPS = 7
PLAIN = {"schedule": Schedule(STEPS, per_cost=0.0)}
PER_COST = {"schedule": Schedule(STEPS, per_cost=0.6)}
SMALL_STEPS = {
    "schedule": Schedule(28, per_cost=0.6)
}  # torch-pruning's recipes look anew in each of 45
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


#: Between the choice and the repair in a label.
SPLIT = " + "
OURS = f"lrp.rebuilt{SPLIT}rebuild jointly"
ALONE = f"lrp.rebuilt{SPLIT}rebuild"
TABLES = ("repairs", "choices", "own")
#: What can be done after the removal, in the order in which it is run.
REPAIRS: Mapping[str, Repair] = {
    "GRAIL": repairs.grail,
    "OSSCAR's update": repairs.osscar,
    "least squares (He et al.)": repairs.least_squares,
    "neuron merging": repairs.merged,
    "model folding": repairs.folded,
    "interpolative decomposition": repairs.interpolated,
    "symmetric least squares": repairs.symmetric,
    "OSSCAR's update, recalibrated": repairs.osscar_recalibrated,
}
BUILT_IN = ("rebuild", "recalibrate", "compensate")
#: Those that choose within layers.
ORDERS: Mapping[str, choices.Order] = {
    "AsymInChange": choices.asymmetric,
    "LASSO (He et al.)": choices.lasso,
    "OSSCAR": choices.osscar,
    "pivoted QR": choices.pivoted,
}
#: How else than by a criterion of niwaki units can be chosen.
CHOICES: Mapping[str, Choose] = {
    "OSSCAR's saliency per cost": choices.osscar_ranked,
    **{f"{n}, widths by lrp": choices.Within(order, True) for n, order in ORDERS.items()},
    **{f"{n}, equal shares": choices.Within(order, False) for n, order in ORDERS.items()},
    "k-means (folding), equal shares": choices.cluster,
}
SCORED: Mapping[str, tuple[str, float]] = {
    "taylor_gates per cost": ("taylor_gates", 0.6),
    "random": ("random", 0.0),
    "lrp.z_plus_sums per cost": ("lrp.z_plus_sums", 0.6),
    "activation per cost": ("activation", 0.6),
    "weight per cost": ("weight", 0.6),
    "taylor per cost": ("taylor", 0.6),
    "lrp, score alone": ("lrp", 0.0),
    "lrp.z_plus_sums (Yeom et al.)": ("lrp.z_plus_sums", 0.0),
    "taylor_gates": ("taylor_gates", 0.0),
    "taylor": ("taylor", 0.0),
    "lamp": ("lamp", 0.0),
    "fpgm": ("fpgm", 0.0),
    "fpgm per cost": ("fpgm", 0.6),
    "lamp per cost": ("lamp", 0.6),
    "random per cost": ("random", 0.6),
}
#: The choices that come nearest to ours, with our repair.
JOINT: Mapping[str, Recipe] = {
    name: Recipe(choose, repairs.rebuilt_jointly)
    for name, choose in {
        "lrp": ranked,
        "taylor_gates per cost": partial(ranked, criterion="taylor_gates"),
        "OSSCAR, widths by lrp": CHOICES["OSSCAR, widths by lrp"],
        "AsymInChange, widths by lrp": CHOICES["AsymInChange, widths by lrp"],
        "random": partial(ranked, criterion="random", per_cost=0.0),
    }.items()
}
#: Each with its own choice and its own repair.
OWN = {
    "AsymInChange": ("AsymInChange, equal shares", "least squares (He et al.)"),
    "channel pruning (He et al.)": ("LASSO (He et al.), equal shares", "least squares (He et al.)"),
    "OSSCAR": ("OSSCAR, equal shares", "OSSCAR's update, recalibrated"),
    "AsymInChange, widths by lrp": ("AsymInChange, widths by lrp", "least squares (He et al.)"),
    "model folding": ("k-means (folding), equal shares", "model folding"),
    "interpolative decomposition": ("pivoted QR, equal shares", "interpolative decomposition"),
}


def repairing(model: nn.Module, tables: tuple[str, ...] = TABLES) -> list[Contender]:
    """List the contenders of the tables in which choices and repairs meet, `OURS` first.

    `repairs`: filters chosen by `lrp`, and each repair. `choices`: rebuilt, and each choice. `own`:
    each method with its own choice and its own repair, no repair and torch-pruning among them.
    """
    norms = any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    rows = [
        Contender(OURS, "lrp.rebuilt", prune_options={"repair": "rebuild_jointly"}),
        Contender(ALONE, "lrp.rebuilt", prune_options={"repair": "rebuild"}),
        _built_in("lrp", "lrp", 0.6, "rebuild"),
    ]
    if "repairs" in tables:
        rows += [_built_in("lrp", "lrp", 0.6, repair) for repair in (None, *BUILT_IN[1:])]
        rows += [
            Contender(f"lrp{SPLIT}{name}", Recipe(ranked, repair))
            for name, repair in REPAIRS.items()
        ]
    if "choices" in tables:
        rows += [_built_in(name, *scored, "rebuild") for name, scored in SCORED.items()]
        rows += [
            Contender(f"{name}{SPLIT}rebuild", Recipe(choose, repairs.rebuilt))
            for name, choose in CHOICES.items()
        ]
        rows += [
            Contender(f"{name}{SPLIT}rebuild jointly", recipe) for name, recipe in JOINT.items()
        ]
    if "own" in tables:
        rows += [
            Contender(f"{name}{SPLIT}its own", Recipe(CHOICES[choice], REPAIRS[repair]))
            for name, (choice, repair) in OWN.items()
        ]
        rows += _torch_pruning(norms, repaired=norms, ending=f"{SPLIT}its own")
    if not norms:
        rows = [row for row in rows if "recalibrate" not in row.label]
    return rows


def _built_in(label: str, criterion: str, per_cost: float, repair: str | None) -> Contender:
    options = {"schedule": Schedule(STEPS, per_cost=per_cost), "repair": repair}
    return Contender(f"{label}{SPLIT}{repair or 'none'}", criterion, prune_options=options)


def contenders(
    model: nn.Module, *, repaired: bool = False, rules: Path | None = None
) -> list[Contender]:
    """List criteria without repair; if `repaired`, torch-pruning's networks are recalibrated."""
    norms = any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    rows = [
        Contender("lrp", "lrp", prune_options=PER_COST),
        Contender("lrp.z_plus_output", "lrp.z_plus_output", prune_options=PER_COST),
        Contender("lrp, score alone", "lrp", prune_options=PLAIN),
        Contender("lrp.z_plus_sums (Yeom et al.)", "lrp.z_plus_sums", prune_options=PLAIN),
        *(Contender(name, name, prune_options=PLAIN) for name in CRITERIA),
        *([Contender("bn_scale", "bn_scale", prune_options=PLAIN)] if norms else []),
        Contender("random", "random", prune_options=PLAIN),
        *(Contender(f"{name} per cost", name, prune_options=PER_COST) for name in COSTLY),
        Contender("lrp, small steps", "lrp", prune_options=SMALL_STEPS),
        Contender("taylor_gates, small steps per cost", "taylor_gates", prune_options=SMALL_STEPS),
    ]
    if rules is not None:
        rows = [*_chosen(rules), *rows]
    return rows + _torch_pruning(norms, repaired)


def _torch_pruning(norms: bool, repaired: bool, ending: str = "") -> list[Contender]:
    """List torch-pruning's own pruner with its importances."""
    importances: Mapping[str, tuple[Callable[[], Any], bool]] = {
        "magnitude": (lambda: tp.importance.GroupMagnitudeImportance(p=2), False),
        "lamp": (lambda: tp.importance.LAMPImportance(p=2), False),
        "taylor": (tp.importance.GroupTaylorImportance, True),
        "hessian": (tp.importance.GroupHessianImportance, True),
        **({"bn_scale": (tp.importance.BNScaleImportance, False)} if norms else {}),
    }
    return [
        Contender(
            f"torch-pruning {name}{ending}",
            _pruner(make, looks=looks, repaired=repaired),
            needs_data=looks or repaired,
        )
        for name, (make, looks) in importances.items()
    ]


def _chosen(folder: Path) -> list[Contender]:
    """What rules.py has found best on images kept aside: rules of LRP, exponents of the others."""
    choice = Choice.load(folder)
    options = {"schedule": Schedule(STEPS, per_cost=choice.per_cost)}
    rows = [Contender("lrp, chosen rules", choice.criterion, prune_options=options)]
    for name, areas in json.loads((folder / "exponents.json").read_text("utf-8")).items():
        best = float(max(areas, key=areas.__getitem__))
        label = f"{name}, chosen per cost"
        rows.append(
            Contender(label, name, prune_options={"schedule": Schedule(STEPS, per_cost=best)})
        )
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
