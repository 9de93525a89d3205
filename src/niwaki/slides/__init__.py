"""What a network says of a whole slide, and where.

`open_slide` reads a slide, or an image, at any resolution; `find_tissue` says where on it there is
something to see. `explain_slide` looks at it tile by tile and joins probability and relevance to
maps, which lie on disk, however large the slide is.
"""

from niwaki.slides._explain import SlideMaps, explain_slide
from niwaki.slides._grid import Grid, Tile
from niwaki.slides._layers import Layer
from niwaki.slides._slide import MPP, Slide, open_slide
from niwaki.slides._store import Store
from niwaki.slides._tissue import Tissue, find_tissue

__all__ = [
    "MPP",
    "Grid",
    "Layer",
    "Slide",
    "SlideMaps",
    "Store",
    "Tile",
    "Tissue",
    "explain_slide",
    "find_tissue",
    "open_slide",
]
