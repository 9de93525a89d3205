"""Data sets that need no download: handwritten digits, drawn shapes, drawn tissue, artefacts.

Each registers its name, so that `niwaki.data.open_data` opens it. The drawn sets come with what is
unknown for real data: what is in an image, where it is, and what the label depends on.
"""

from niwaki.datasets._artefacts import ARTEFACTS, Planted, plant
from niwaki.datasets._digits import DIGITS
from niwaki.datasets._shapes import SHAPES
from niwaki.datasets._tissue import NUCLEI, TISSUE, Tissue, draw_tissue

__all__ = [
    "ARTEFACTS",
    "DIGITS",
    "NUCLEI",
    "SHAPES",
    "TISSUE",
    "Planted",
    "Tissue",
    "draw_tissue",
    "plant",
]
