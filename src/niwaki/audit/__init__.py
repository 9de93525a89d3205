"""Does the network look at the right thing, over a whole data set?

`audit` asks the questions: where relevance lies, on which colours, in which clusters of heatmaps,
and whether that matters; and, given the training images, which kind of image they lack. `collect`
writes the heatmaps of a data set for ViRelAy. `cell_scores`, `mass_accuracy` and `rank_accuracy`
judge heatmaps against annotations. `Shifted`, `Inpainted`, `Spread`, `Relabelled` and `balanced`
change what a network learns from, `excise` and `project_away` change the network, and
`before_and_after` says what it did.
"""

from niwaki.audit._annotations import (
    CellScores,
    cell_scores,
    discs,
    mass_accuracy,
    rank_accuracy,
)
from niwaki.audit._audit import Audit, audit, examine
from niwaki.audit._before_after import before_and_after, markdown, side_by_side
from niwaki.audit._causal import Cause, compare_regions, filled
from niwaki.audit._chance import Interval, bootstrap, holm, shift_test
from niwaki.audit._clarc import concept_direction, project_away
from niwaki.audit._collect import Collection, collect
from niwaki.audit._colours import foreign, stains
from niwaki.audit._excise import Excised, Trial, excise, specificity
from niwaki.audit._finding import Finding
from niwaki.audit._material import Material, gather
from niwaki.audit._measures import auc
from niwaki.audit._project import write_analysis, write_project
from niwaki.audit._strategies import Cluster, Strategies, find_strategies, spectral
from niwaki.audit._training import Training, look_over
from niwaki.audit._where import zones
from niwaki.audit._wrappers import Inpainted, Relabelled, Shifted, Spread, balanced

__all__ = [
    "Audit",
    "Cause",
    "CellScores",
    "Cluster",
    "Collection",
    "Excised",
    "Finding",
    "Inpainted",
    "Interval",
    "Material",
    "Relabelled",
    "Shifted",
    "Spread",
    "Strategies",
    "Training",
    "Trial",
    "auc",
    "audit",
    "balanced",
    "before_and_after",
    "bootstrap",
    "cell_scores",
    "collect",
    "compare_regions",
    "concept_direction",
    "discs",
    "examine",
    "excise",
    "filled",
    "find_strategies",
    "foreign",
    "gather",
    "holm",
    "look_over",
    "markdown",
    "mass_accuracy",
    "project_away",
    "rank_accuracy",
    "shift_test",
    "side_by_side",
    "specificity",
    "spectral",
    "stains",
    "write_analysis",
    "write_project",
    "zones",
]
