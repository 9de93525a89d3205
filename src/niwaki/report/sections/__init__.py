"""The sections of a page, in the order in which they stand on it; each file registers its own."""

# The order is that of the page, not of the alphabet.
from niwaki.report.sections import _pruning  # isort: skip
from niwaki.report.sections import _steps  # isort: skip
from niwaki.report.sections import _comparison  # isort: skip
from niwaki.report.sections import _methods  # isort: skip
from niwaki.report.sections import _heatmaps  # isort: skip
from niwaki.report.sections import _car  # isort: skip
from niwaki.report.sections import _audit  # isort: skip
from niwaki.report.sections import _watch  # isort: skip
from niwaki.report.sections import _filters  # isort: skip
from niwaki.report.sections import _slide  # isort: skip

__all__ = [
    "_audit",
    "_car",
    "_comparison",
    "_filters",
    "_heatmaps",
    "_methods",
    "_pruning",
    "_slide",
    "_steps",
    "_watch",
]
