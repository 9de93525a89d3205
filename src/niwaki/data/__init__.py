"""How images and labels come in.

`open_data` turns the name of a data set into `Images`, `Preprocessing` says how an image
becomes a network's input, `batches` is the one loop over data, and `references` draws the
class-balanced samples that criteria are computed on; `Described` adds what is known of images
besides their labels. Nothing here knows about models. The data sets that
niwaki brings along are in `niwaki.datasets`.
"""

from niwaki.data._batches import (
    Data,
    Place,
    as_dataset,
    as_tensor,
    batches,
    check_labels,
    count,
    generators,
    in_memory,
)
from niwaki.data._beside import Described, Masks, groups_by_name
from niwaki.data._classes import (
    check_same_classes,
    distinct,
    imagenet_ids,
    imagenet_names,
    match_classes,
    number_classes,
)
from niwaki.data._decoded import OnDisk, Rows, decoded
from niwaki.data._groups import groups_from_table, groups_named
from niwaki.data._images import Images
from niwaki.data._known import known_of
from niwaki.data._open import names, open_data, read_places, register
from niwaki.data._patches import Patches, cut_patches, read_points
from niwaki.data._preprocessing import Preprocessing
from niwaki.data._read import in_mode, is_slide, read_image
from niwaki.data._references import labels_of, references

__all__ = [
    "Data",
    "Described",
    "Images",
    "Masks",
    "OnDisk",
    "Patches",
    "Place",
    "Preprocessing",
    "Rows",
    "as_dataset",
    "as_tensor",
    "batches",
    "check_labels",
    "check_same_classes",
    "count",
    "cut_patches",
    "decoded",
    "distinct",
    "generators",
    "groups_by_name",
    "groups_from_table",
    "groups_named",
    "imagenet_ids",
    "imagenet_names",
    "in_memory",
    "in_mode",
    "known_of",
    "is_slide",
    "labels_of",
    "match_classes",
    "names",
    "number_classes",
    "open_data",
    "read_image",
    "read_places",
    "read_points",
    "references",
    "register",
]
