"""What a network predicts on a whole slide, and where.

`open_slide` reads a slide, or an image, at any resolution; `find_tissue` says where on it there is
something to see. `explain_slide` looks at it tile by tile and joins probability and relevance to
maps, which lie on disk, however large the slide is. `write_maps`, `write_objects` and
`write_nuclei` hand them on to QuPath, as pyramids and as objects. `labelled_places` finds the
tiles that annotations give a label, `cut` cuts them, and `region_masks` draws on them what else is
annotated, for the audit.
"""

from niwaki.slides._cut import Labelled, cut, labelled_places, read_mask, region_masks
from niwaki.slides._explain import SlideMaps, explain_slide
from niwaki.slides._geojson import SlideObject, read_geojson, write_geojson
from niwaki.slides._grid import Grid, Tile, Tiling
from niwaki.slides._maps import Layer, safe_names
from niwaki.slides._nuclei import measured_nuclei, read_nuclei
from niwaki.slides._pyramid import Pyramid, coloured, write_ome_tiff
from niwaki.slides._regions import Region, find_regions
from niwaki.slides._slide import MPP, Slide, open_slide
from niwaki.slides._store import Store
from niwaki.slides._tissue import Tissue, find_tissue
from niwaki.slides._write import (
    file_names,
    limits,
    pyramids,
    write_maps,
    write_nuclei,
    write_objects,
)

__all__ = [
    "MPP",
    "Grid",
    "Labelled",
    "Layer",
    "Pyramid",
    "Region",
    "Slide",
    "SlideMaps",
    "SlideObject",
    "Store",
    "Tile",
    "Tiling",
    "Tissue",
    "coloured",
    "cut",
    "explain_slide",
    "file_names",
    "find_regions",
    "find_tissue",
    "labelled_places",
    "limits",
    "measured_nuclei",
    "open_slide",
    "pyramids",
    "read_geojson",
    "read_mask",
    "read_nuclei",
    "region_masks",
    "safe_names",
    "write_geojson",
    "write_maps",
    "write_nuclei",
    "write_objects",
    "write_ome_tiff",
]
