"""What is removed, in which steps, and what is left?"""

from niwaki.pruning._agreement import Agreement
from niwaki.pruning._area import accuracy_at, area
from niwaki.pruning._choice import Choice, Trial
from niwaki.pruning._choose import choose_rules
from niwaki.pruning._compare import compare
from niwaki.pruning._comparison import Comparison, Summary
from niwaki.pruning._contender import Contender
from niwaki.pruning._coupling import Coupling, Group, Member, couple
from niwaki.pruning._limits import Limits
from niwaki.pruning._masks import mask_weights, select_weights
from niwaki.pruning._outcome import Outcome
from niwaki.pruning._plan import Plan, Removal
from niwaki.pruning._prune import prune, usual_criterion
from niwaki.pruning._pruned import Pruned
from niwaki.pruning._rebuild import Rebuilt, rebuild
from niwaki.pruning._repair import compensate, recalibrate
from niwaki.pruning._saved import Saved, load
from niwaki.pruning._sparse import PrunedWeights, WeightStep, WeightTrajectory, load_masks
from niwaki.pruning._states import restore, tensors_of
from niwaki.pruning._surgery import operate, replay
from niwaki.pruning._torch_pruning import CUSTOMIZED_PRUNERS
from niwaki.pruning._trajectory import Step, Trajectory
from niwaki.pruning._tune import FineTune, fine_tune
from niwaki.pruning._tuned import Epoch, Kept, Tuned
from niwaki.pruning._weights import prune_weights

__all__ = [
    "CUSTOMIZED_PRUNERS",
    "Agreement",
    "Choice",
    "Comparison",
    "Contender",
    "Coupling",
    "Epoch",
    "FineTune",
    "Group",
    "Kept",
    "Limits",
    "Member",
    "Outcome",
    "Plan",
    "Pruned",
    "PrunedWeights",
    "Removal",
    "Saved",
    "Step",
    "Summary",
    "Trajectory",
    "Trial",
    "Tuned",
    "WeightStep",
    "WeightTrajectory",
    "accuracy_at",
    "area",
    "choose_rules",
    "compare",
    "Rebuilt",
    "compensate",
    "rebuild",
    "couple",
    "fine_tune",
    "load",
    "load_masks",
    "mask_weights",
    "operate",
    "prune",
    "prune_weights",
    "recalibrate",
    "restore",
    "replay",
    "select_weights",
    "tensors_of",
    "usual_criterion",
]
