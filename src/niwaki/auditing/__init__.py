"""Does the network look at the right thing, over a whole data set?

`audit` asks the questions: where relevance lies, on which colours, in which clusters of heatmaps,
and whether that matters; and, given the training images, which kind of image they lack. `question`
registers one more. `collect` writes the heatmaps of a data set for ViRelAy. `cell_scores`,
`mass_accuracy` and `rank_accuracy` judge heatmaps against annotations. The remedies change what a
network learns from (`Shifted`, `Inpainted`, `Spread`, `Relabelled`, `balanced`) or the network
itself (`prune_artefact`, `project_out`, `right_reasons`), and `before_and_after` says what they
did. `watch` says which predictions on new images are made in an unusual way.
"""

from niwaki.auditing._annotations import (
    CellScores,
    cell_scores,
    discs,
    mass_accuracy,
    rank_accuracy,
    stains,
)
from niwaki.auditing._audit import audit, examine
from niwaki.auditing._candidates import STRIP, Candidate, read_confirmed, write_candidates
from niwaki.auditing._centre_table import Centres
from niwaki.auditing._centres import robustness_index
from niwaki.auditing._comparison import before_and_after, markdown, side_by_side
from niwaki.auditing._concepts import Concept, concept_of
from niwaki.auditing._finding import MATTERS, Finding
from niwaki.auditing._interventions import (
    Cause,
    ErrorRates,
    compare_changes,
    compare_regions,
    filled,
)
from niwaki.auditing._latent import Latent, latent_of, odd_filters
from niwaki.auditing._material import Material, gather
from niwaki.auditing._power import ANSWERS, POWER, Power
from niwaki.auditing._question import Evidence, Question, question
from niwaki.auditing._question import describe as describe_question
from niwaki.auditing._question import names as question_names
from niwaki.auditing._result import Audit
from niwaki.auditing._spray import Cluster, Strategies, find_strategies, spectral
from niwaki.auditing._statistics import (
    Interval,
    auc,
    bootstrap,
    group_test,
    holm,
    shift_test,
    sign_test,
)
from niwaki.auditing._training import Training, gather_training
from niwaki.auditing._virelay import Collection, collect, write_analysis, write_project
from niwaki.auditing._watch import Watched, watch
from niwaki.auditing.questions import foreign, zones
from niwaki.auditing.remedies._data_sets import Inpainted, Relabelled, Shifted, Spread, balanced
from niwaki.auditing.remedies._project_out import artefact_direction, project_out
from niwaki.auditing.remedies._prune_artefact import (
    PrunedArtefact,
    Trial,
    prune_artefact,
    specificity,
)
from niwaki.auditing.remedies._right_reasons import input_penalty, right_reasons

__all__ = [
    "ANSWERS",
    "MATTERS",
    "POWER",
    "STRIP",
    "Audit",
    "Candidate",
    "Cause",
    "CellScores",
    "Centres",
    "Cluster",
    "Collection",
    "Concept",
    "ErrorRates",
    "Evidence",
    "Finding",
    "Inpainted",
    "Interval",
    "Latent",
    "Material",
    "Power",
    "PrunedArtefact",
    "Question",
    "Relabelled",
    "Shifted",
    "Spread",
    "Strategies",
    "Training",
    "Trial",
    "Watched",
    "artefact_direction",
    "auc",
    "audit",
    "balanced",
    "before_and_after",
    "bootstrap",
    "cell_scores",
    "collect",
    "compare_changes",
    "compare_regions",
    "concept_of",
    "describe_question",
    "discs",
    "examine",
    "filled",
    "find_strategies",
    "foreign",
    "gather",
    "gather_training",
    "group_test",
    "holm",
    "latent_of",
    "markdown",
    "mass_accuracy",
    "odd_filters",
    "project_out",
    "prune_artefact",
    "question",
    "question_names",
    "rank_accuracy",
    "read_confirmed",
    "input_penalty",
    "right_reasons",
    "robustness_index",
    "shift_test",
    "side_by_side",
    "sign_test",
    "specificity",
    "spectral",
    "stains",
    "watch",
    "write_analysis",
    "write_candidates",
    "write_project",
    "zones",
]
