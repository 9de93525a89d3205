"""What a MAC costs in each layer, beside others: seconds, say, or energy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

from niwaki.propagation import Layer

__all__ = ["relative_prices"]


def relative_prices(prices: Mapping[str, float], layers: Sequence[Layer]) -> dict[str, float]:
    """Scale prices so that the layers that are named cost as many MACs as they have.

    Then a network costs about its number of MACs, and a layer without a price has the mean one.

    Parameters
    ----------
    prices : mapping of str to float
        Layer name to the price of a MAC, in any unit.
    layers : sequence of Layer
        Those of the network as it is before anything goes.

    Raises
    ------
    ValueError
        For layers that do not exist, and for prices that are not positive.
    """
    macs = {layer.name: layer.macs for layer in layers}
    strangers = [name for name in prices if name not in macs]
    if strangers:
        raise ValueError(
            f"prices: there is no layer {strangers[0]!r}; layers: {', '.join(list(macs)[:20])}"
        )
    wrong = [name for name, price in prices.items() if not (isfinite(price) and price > 0)]
    if wrong:
        raise ValueError(f"prices: that of {wrong[0]!r} is {prices[wrong[0]]}, not positive")
    plain = sum(macs[name] for name in prices)
    priced = sum(macs[name] * price for name, price in prices.items())
    return {name: price * plain / priced for name, price in prices.items()}
