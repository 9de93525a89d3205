"""How images and labels come in.

`open_data` turns the name of a data set into `Images`, `Preprocessing` says how an image
becomes a network's input, `batches` is the one loop over data, and `references` draws the
class-balanced samples that criteria are computed on. Nothing here knows about models.
"""

from niwaki.data._batches import Data, batches, check_labels, count
from niwaki.data._digits import DIGITS
from niwaki.data._images import Images
from niwaki.data._in_memory import in_memory
from niwaki.data._open import open_data
from niwaki.data._preprocessing import Preprocessing
from niwaki.data._references import references
from niwaki.data._registry import names, register

__all__ = [
    "DIGITS",
    "Data",
    "Images",
    "Preprocessing",
    "batches",
    "check_labels",
    "count",
    "in_memory",
    "names",
    "open_data",
    "references",
    "register",
]
