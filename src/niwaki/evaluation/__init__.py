"""How good is a network, and what does it cost?"""

from niwaki.evaluation._accuracy import accuracy
from niwaki.evaluation._cost import Cost, cost, latency

__all__ = ["Cost", "accuracy", "cost", "latency"]
