"""How good is a network, what does it cost, and how faithful is a heatmap?

`accuracy`, `cost` and `latency` judge networks; `seconds_per_mac` tells where the time goes.
`perturbation_curves` and `randomisation_test` judge heatmaps; `quantus_explain` opens Quantus's
metrics to every method of the catalogue.
"""

from niwaki.evaluation._curves import Estimate, PerturbationCurves
from niwaki.evaluation._explainers import quantus_explain
from niwaki.evaluation._networks import (
    Cost,
    accuracy,
    confusion,
    cost,
    latency,
    near_chance,
    seconds_per_image,
    seconds_per_mac,
    warn_near_chance,
)
from niwaki.evaluation._perturbation import Order, Perturbation, perturbation_curves
from niwaki.evaluation._randomisation import Randomisation, randomisation_test

__all__ = [
    "Cost",
    "Estimate",
    "Order",
    "Perturbation",
    "PerturbationCurves",
    "Randomisation",
    "accuracy",
    "confusion",
    "cost",
    "latency",
    "near_chance",
    "perturbation_curves",
    "quantus_explain",
    "randomisation_test",
    "seconds_per_image",
    "seconds_per_mac",
    "warn_near_chance",
]
