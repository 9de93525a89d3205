"""Relevance as a criterion, of units and of weights: pruning by explaining (Yeom et al. 2021)."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from niwaki.accumulation import Totals
from niwaki.attribution import fit_patterns
from niwaki.criteria._catalogue import make, register, register_variant
from niwaki.criteria._composites import EPSILON, EPSILON_PLUS, told
from niwaki.criteria._criterion import (
    ByLayer,
    Criterion,
    UnitSums,
    other_dimensions,
    per_unit,
    per_unit_size,
    sums_of,
)
from niwaki.criteria._starts import Evidence, check_evidence
from niwaki.data import Data, batches
from niwaki.errors import AbsorbedWarning
from niwaki.models import device_of, home
from niwaki.propagation import (
    Assign,
    Composite,
    Layer,
    Operation,
    Ratio,
    ZPlus,
    composite_named,
    epsilon,
    pattern_attribution,
    propagate,
)
from niwaki.ranges import TOLERANCE, checked

Reduce = Literal["absolute", "signed", "absolute_of_sum"]
# Trained and random networks of ten families have .005 and more where relevance gets through, and
# .00003 and less where it does not.
_LEAST_SHARE = 1e-3


class _RelevanceSums(UnitSums):
    """Observer that sums the relevance that reaches each unit."""

    def __init__(self, reduce: Reduce) -> None:
        super().__init__()
        self.reduce = reduce

    def relevance(self, operation: Operation, relevance: Tensor) -> None:
        """Add what a layer receives."""
        if self.reduce == "absolute":
            self.add(operation, per_unit_size(operation, relevance))
        elif self.reduce == "signed":
            self.add(operation, per_unit(operation, relevance))
        else:  # summed over space in each sample, then the absolute values over samples
            others = other_dimensions(operation, relevance)
            space = [d for d in others if d != 0]
            size = (relevance.sum(space) if space else relevance).abs()
            self.add(operation, size.sum(0) if 0 in others else size)  # or it is a single sample


@checked(max_loss=TOLERANCE)
@register("lrp")
class Relevance(Criterion):
    """Relevance that reaches a unit, summed over space and samples (Yeom et al. 2021, eq. 3).

    The pass starts with 1 at the true class. Relevance is conserved from layer to layer, so that
    scores need no normalisation. By default it is propagated by the epsilon rule, with z-plus at
    residual sums (where epsilon lets relevances of both signs grow without bound), and a unit's
    score is |sum over space|, summed over samples, as in Hatefi et al. (2024): of all rules and
    sums that were measured (see ``experiments/scarce``) this comes closest to what removing a unit
    does. The paper's own choice, z-plus in convolutions, is `lrp.z_plus_sums`.

    A sample whose class has an output of exactly zero, as networks that end in a ReLU give, has no
    evidence to pass on and does not count; a `NoEvidenceWarning` says how many there are. If no
    sample has any, there is a `ModelError`.

    Parameters
    ----------
    composite : Composite or str
        Gives each operation its rule: one that is made already, a preset's name, such as
        ``"epsilon_plus"`` or ``"EpsilonGammaBox"`` (see `niwaki.propagation.PRESETS`), or the path
        of a ``.json`` file that `niwaki.propagation.save_composite` wrote. Default: epsilon, with
        z-plus at residual sums.
    reduce : {"absolute_of_sum", "absolute", "signed"}
        What is summed: the absolute value of each sample's sum over space, absolute relevances (as
        the paper's released code does for residual networks), or relevances.
    target : {"true", "predicted"}
        The class whose output is explained.
    normalise : str, optional
        See `Scores.normalised`; default ``"none"``.
    max_loss : float, optional
        Share of a sample's relevance that may be lost before it is an error; None: any. Much
        looser than for heatmaps, as a ranking tolerates more.
    """

    default_normalise: ClassVar[str] = "none"

    def __init__(
        self,
        *,
        composite: Composite | str = EPSILON,
        reduce: Reduce = "absolute_of_sum",
        target: Literal["true", "predicted"] = "true",
        normalise: str | None = None,
        max_loss: float | None = 0.9,
    ) -> None:
        super().__init__(normalise=normalise)
        self.composite = composite_named(composite) if isinstance(composite, str) else composite
        self.reduce: Reduce = reduce
        self.target = target
        self.max_loss = max_loss

    def batch(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        """See `Criterion.batch`."""
        start = Evidence(labels if self.target == "true" else None)
        sums = _RelevanceSums(self.reduce)
        propagate(
            model,
            inputs,
            self.composite,
            start,
            [sums],
            to_input=False,
            max_loss=self.max_loss,
        )
        return {**sums.sums, **start.sums}

    def fallbacks(self) -> list[Criterion]:
        """List them for the default alone, which was not chosen for this network.

        Where branches of both signs are added and no activation follows, as behind the linear
        bottlenecks of MobileNets, z-plus finds nothing above zero, or too little, at many places.
        Behind activations that let values below zero pass (hard swish), and between branches that
        nearly cancel, relevance by epsilon grows without bound; that by z-plus cannot. Where all
        contributions are tiny, only derivatives are left.
        """
        usual = type(self)()
        if self.name == "lrp" and repr(self) == repr(usual) and self.max_loss == usual.max_loss:
            return [make("lrp.ratio_sums"), make("lrp.z_plus_sums"), make("taylor")]
        return []

    def scores(self, totals: Totals, layers: Sequence[Layer], model: nn.Module) -> ByLayer:
        """See `Criterion.scores`."""
        check_evidence(totals, self.target)
        return {layer.name: sums_of(totals, layer) for layer in layers}

    def check_comparable(self, scores: Mapping[str, Tensor]) -> None:
        """Warn where a layer gets so little relevance that it would be removed first, as a whole.

        Shares of relevance that biases take are no loss, and pass every check of conservation.
        """
        if self.reduce != "signed":
            _check_shares(self.name, scores)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({told(self.composite)}, reduce={self.reduce!r}, "
            f"target={self.target!r}, normalise={self.normalise!r})"
        )


def _check_shares(criterion: str, scores: Mapping[str, Tensor]) -> None:
    """See `Relevance.check_comparable`."""
    sizes = {layer: float(values.sum()) for layer, values in scores.items()}
    sizes = {layer: size for layer, size in sizes.items() if size > 0}
    if not sizes:
        return
    least, most = (choose(sizes, key=sizes.__getitem__) for choose in (min, max))
    if sizes[least] < _LEAST_SHARE * sizes[most]:
        warnings.warn(
            f"{criterion}: layer {least!r} gets {sizes[least] / sizes[most]:.0e} of the relevance "
            f"of layer {most!r}, as biases on the way keep the rest. Ranked over all layers its "
            "units would go first, whatever they do. Take a criterion that hands more of it on, "
            "such as 'lrp' or 'lrp.ratio_sums', or compare within layers (normalise='sum')",
            AbsorbedWarning,
            stacklevel=5,
        )


def _variant(name: str, about: str, **options: Any) -> None:
    register_variant(f"lrp.{name}", "lrp", about, **options)


_variant(
    "epsilon_plus",
    "Sum of |relevance| by z-plus in convolutions, epsilon elsewhere (code of Yeom et al. 2021).",
    composite="epsilon_plus",
    reduce="absolute",
)
_variant(
    "z_plus_sums",
    "As `lrp.epsilon_plus`, with z-plus at residual sums too (Yeom et al. 2021).",
    composite=EPSILON_PLUS,
    reduce="absolute",
)
_variant(
    "ratio_sums",
    "As `lrp`; residual sums share by the sizes of their summands (for linear bottlenecks).",
    composite=replace(epsilon(sums=Ratio()), name="Epsilon with ratios at sums"),
)
_variant(
    "signed",
    "As `lrp.z_plus_sums`; relevances add up with their signs (Yeom et al. 2021, eq. 3).",
    composite=EPSILON_PLUS,
    reduce="signed",
)
_variant("absolute", "As `lrp`; all absolute relevances add up.", reduce="absolute")
_variant(
    "z_plus_output",
    "As `lrp`, with z-plus in the layer of the outputs, so that each sample counts the same.",
    # By epsilon, what a sample hands down grows beyond its 1 where its output is a small
    # difference of large contributions: such samples would dominate.
    composite=replace(
        epsilon(sums=ZPlus()).with_rows(
            Assign(ZPlus(), kind=("convolution", "linear"), place="last")
        ),
        name="Epsilon with z-plus at sums and outputs",
    ),
)
_variant("predicted", "As `lrp`; from the predicted class, without labels.", target="predicted")
_variant(
    "excitation_backprop",
    "Relevance by z-plus in all layers (ExcitationBackprop).",
    composite="excitation_backprop",
)
_variant(
    "epsilon_alpha2_beta1",
    "Relevance by alpha 2 beta 1 in convolutions, epsilon in linear layers.",
    composite="epsilon_alpha2_beta1",
    max_loss=None,  # of relevance that may double in each layer, a share of the start says nothing
)
_variant(
    "epsilon_gamma_box",
    "Relevance by gamma (0.25) in convolutions, epsilon in linear layers.",
    composite="epsilon_gamma_box",
)


@register("pattern_attribution")
class PatternRelevance(Relevance):
    """Relevance by PatternAttribution that reaches a unit (rule: Kindermans et al. 2018).

    As `Relevance`, with weights times patterns in place of the weights. The patterns, the direction
    in which each unit's signal lies, are fitted on the reference samples in a pass of their own
    before the scoring; a unit that none of them activates has no pattern and hands nothing on.
    Transposed convolutions have no patterns.

    Parameters
    ----------
    estimator : {"relu", "linear", "negative"}
        See `niwaki.attribution.fit_patterns`.
    reduce, target
        See `Relevance`.
    normalise : str, optional
        See `Scores.normalised`; default ``"none"``.
    """

    def __init__(
        self,
        *,
        estimator: Literal["relu", "linear", "negative"] = "relu",
        reduce: Reduce = "absolute",
        target: Literal["true", "predicted"] = "true",
        normalise: str | None = None,
    ) -> None:
        super().__init__(
            composite=pattern_attribution({}),  # the patterns come with the data
            reduce=reduce,
            target=target,
            normalise=normalise,
            max_loss=None,
        )
        self.estimator = estimator

    def check_comparable(self, scores: Mapping[str, Tensor]) -> None:
        """Say nothing: this relevance is not conserved from layer to layer."""

    def prepared(self, model: nn.Module, data: Data, batch_size: int) -> Criterion:
        """Return the criterion with patterns fitted on the reference samples."""
        device = device_of(model)
        example, _ = next(iter(batches(data, batch_size, home(model))))
        judged = self.network(model, example)
        patterns = fit_patterns(judged, data, estimator=self.estimator, batch_size=batch_size)
        ready = copy.copy(self)
        ready.composite = pattern_attribution(patterns.to(device))
        return ready

    def __repr__(self) -> str:
        return (
            f"PatternRelevance({self.estimator}, reduce={self.reduce!r}, target={self.target!r}, "
            f"normalise={self.normalise!r})"
        )
