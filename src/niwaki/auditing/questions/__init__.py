"""The questions of an audit, a file for each: to import it registers them."""

from niwaki.auditing.questions._centre import find_centres
from niwaki.auditing.questions._colour import find_colours, foreign
from niwaki.auditing.questions._confirmed import find_confirmed
from niwaki.auditing.questions._position import find_positions, zones
from niwaki.auditing.questions._quality import find_qualities
from niwaki.auditing.questions._region import find_regions
from niwaki.auditing.questions._strategy import find_shared_things
from niwaki.auditing.questions._training import find_missing

__all__ = [
    "find_centres",
    "find_colours",
    "find_confirmed",
    "find_missing",
    "find_positions",
    "find_qualities",
    "find_regions",
    "find_shared_things",
    "foreign",
    "zones",
]
