"""Options of pruning given one by one, as parametrised tests have them."""

from dataclasses import replace

from niwaki.pruning import FineTune, Limits, Run, Schedule

SCHEDULE = {"steps", "per_step", "spacing", "floor", "recompute", "per_cost", "prices"}
LIMITS = {"ignore", "min_units", "round_to", "ceilings"}
RUN = {"folder", "batch_size", "callback"}
TRAINING = {"tune_each": "each", "training": "training"}


def bundled(function="prune", **options):
    """Put options into the bundles that a function takes."""
    kinds = {"run": (Run, RUN), "schedule": (Schedule, SCHEDULE), "limits": (Limits, LIMITS)}
    if function == "prune_weights":
        del kinds["schedule"], kinds["limits"]
    if function == "choose_rules":
        kinds["schedule"] = (Schedule, SCHEDULE - {"per_cost"})
    for bundle, (kind, names) in kinds.items():
        given = {name: options.pop(name) for name in names & options.keys()}
        if given:
            options[bundle] = kind(**given)
    changes = {TRAINING[name]: options.pop(name) for name in TRAINING.keys() & options.keys()}
    if changes:
        tune = options["tune"]
        tune = tune if isinstance(tune, FineTune) else FineTune(loop=tune)
        options["tune"] = replace(tune, **changes)
    return options
