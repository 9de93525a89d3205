"""What does each filter respond to, and for which classes?

`profile` goes over the data once and learns it for every filter, `pictures` shows the patches,
heatmaps and feature visualisations of a layer's filters, `enrichment` asks whether pruning prefers
a kind of filter.
"""

from niwaki.filters._classes_served import Served, served
from niwaki.filters._diversity import Diversity, diversity, layer_diversity, twins
from niwaki.filters._enrichment import Enrichment, combined, enrichment, removal_order
from niwaki.filters._feature_visualisation import feature_visualisation
from niwaki.filters._fields import Field, receptive_fields
from niwaki.filters._gather import profile
from niwaki.filters._pictures import (
    FilterPictures,
    Patches,
    draw_pictures,
    kept_pictures,
    parts_of,
    pictures,
)
from niwaki.filters._profile import LayerProfile, Profile
from niwaki.filters._selectivity import class_selectivity, orientation
from niwaki.filters._strongest import Strongest

__all__ = [
    "Diversity",
    "Enrichment",
    "Field",
    "FilterPictures",
    "LayerProfile",
    "Patches",
    "Profile",
    "Served",
    "Strongest",
    "class_selectivity",
    "combined",
    "diversity",
    "draw_pictures",
    "enrichment",
    "kept_pictures",
    "layer_diversity",
    "feature_visualisation",
    "orientation",
    "parts_of",
    "pictures",
    "profile",
    "receptive_fields",
    "removal_order",
    "served",
    "twins",
]
