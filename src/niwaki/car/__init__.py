"""Classification accuracy reduction: what the network loses with each filter, exactly and fast.

`index` computes it for every unit, `greedy` removes the unit that matters least, again and again.
"""

from niwaki.car._compute import index
from niwaki.car._criterion import Car
from niwaki.car._greedy import greedy
from niwaki.car._index import CarIndex, LayerCar, Whole
from niwaki.car._operations import operations_behind

__all__ = ["Car", "CarIndex", "LayerCar", "Whole", "greedy", "index", "operations_behind"]
