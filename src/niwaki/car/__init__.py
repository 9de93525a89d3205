"""Classification accuracy reduction: what the network loses with each filter, exactly and fast.

`index` computes it for every unit, `greedy` removes the unit that matters least, again and again.
"""

from niwaki.car._car_index import Baseline, CarIndex, LayerCar
from niwaki.car._criterion import Car
from niwaki.car._greedy import Stop, greedy
from niwaki.car._index import index, operations_behind
from niwaki.car._search import Sampling

__all__ = [
    "Baseline",
    "Car",
    "CarIndex",
    "LayerCar",
    "Sampling",
    "Stop",
    "greedy",
    "index",
    "operations_behind",
]
