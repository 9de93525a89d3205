"""How a model is named, built and filled with weights.

`build` turns a name into a plain module in eval mode, `load_weights` fills one from a file,
`preprocessing` and `class_names` tell what is known of a name's inputs and outputs, `check`
refuses a model that cannot be judged as it is, `respond` runs one on a batch and says plainly where
the two do not fit, and `fingerprint` tells two apart. `Part` is one of a network's several outputs.
`plain_copy` makes permanent what weight norm and the like compute. `export` writes a network as
ONNX or as a program of torch. `zoo` holds small networks of the literature.
"""

from niwaki.models import zoo
from niwaki.models._build import build, class_names, is_saved, preprocessing
from niwaki.models._export import Format, export
from niwaki.models._identity import (
    check_same_network,
    fingerprint,
    own_attributes,
    recognise,
)
from niwaki.models._origin import Origin
from niwaki.models._outputs import (
    Part,
    attended,
    check,
    class_logits,
    class_outputs,
    device_of,
    fitted,
    home,
    one_tensor,
    respond,
)
from niwaki.models._plain_copy import computes_weights, deep_copy, plain_copy
from niwaki.models._steady import check_steady
from niwaki.models._weights import load_weights

__all__ = [
    "Format",
    "Origin",
    "Part",
    "attended",
    "build",
    "check",
    "class_logits",
    "class_names",
    "class_outputs",
    "computes_weights",
    "deep_copy",
    "device_of",
    "export",
    "check_same_network",
    "check_steady",
    "fingerprint",
    "fitted",
    "home",
    "is_saved",
    "load_weights",
    "one_tensor",
    "own_attributes",
    "plain_copy",
    "preprocessing",
    "recognise",
    "respond",
    "zoo",
]
