"""The handful of errors and warnings of our own; everything else is a built-in type.

Each message says what happened, where, and what to do about it.
"""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

__all__ = [
    "AbsorbedWarning",
    "BatchDependenceWarning",
    "BypassedWarning",
    "ChoiceWarning",
    "CompletenessWarning",
    "DataError",
    "DisconnectedWarning",
    "FallbackWarning",
    "FewSamplesWarning",
    "KeptWarning",
    "LeftOutWarning",
    "LostProcessError",
    "LostRelevanceError",
    "ModelError",
    "NearChanceWarning",
    "NiwakiError",
    "NoEvidenceWarning",
    "NoRuleError",
    "NothingToPruneError",
    "PatternWarning",
    "PrecisionWarning",
    "PropagationError",
    "RangeError",
    "SoftmaxOutputError",
    "SoftmaxOutputWarning",
    "UnknownOptionError",
    "WeightsError",
    "suggested",
]


class NiwakiError(ValueError):
    """Base of every error that a wrong input can cause; the command line exits with code 2."""


class ModelError(NiwakiError):
    """A model that cannot be found, built, or used as it is (training mode, NaN weights)."""


class WeightsError(ModelError):
    """Weights that cannot be read safely or do not fit the network."""


class DataError(NiwakiError):
    """Images or labels that cannot be read or do not fit the network."""


class LostProcessError(NiwakiError):
    """Another process of the same work has ended, or cannot be reached any more."""


class PropagationError(NiwakiError):
    """An operation that carries the signal and has no rule, or cannot be watched."""


class NoRuleError(PropagationError):
    """An operation that carries the signal, and that the composite gives no rule."""


class LostRelevanceError(PropagationError):
    """Relevance that is lost on the way, more than a method or criterion may lose.

    Attributes
    ----------
    share : float
        What is lost of the relevance, of the sample that loses most.
    """

    def __init__(self, message: str, share: float = 1.0) -> None:
        super().__init__(message)
        self.share = share


class SoftmaxOutputError(PropagationError):
    """A network that ends in a softmax or sigmoid, whose relevance would be meaningless."""


class RangeError(NiwakiError):
    """A number outside its range."""


def suggested(name: str, known: Iterable[str]) -> str:
    """Return the question which of the known names is meant, with a space behind; or nothing."""
    close = get_close_matches(name, known, n=3, cutoff=0.4)
    return f"did you mean {' or '.join(close)}? " if close else ""


class UnknownOptionError(NiwakiError, TypeError):
    """An option that neither the function has that was called, nor what it hands options on to.

    Attributes
    ----------
    option : str
        Its name.
    takers : dict
        Who might have had it, the function that was called first, with the options of each.
    """

    def __init__(self, option: str, takers: Mapping[str, Sequence[str]]) -> None:
        self.option, self.takers = option, dict(takers)
        first, *others = takers
        text = f"{first} has no option {option!r}" + "".join(f", nor has {who}" for who in others)
        known = list(dict.fromkeys(name for names in takers.values() for name in names))
        close = get_close_matches(option, known, n=3)
        if close:
            hint = f"did you mean {' or '.join(map(repr, close))}?"
        else:
            told = [f"{who} has {', '.join(names)}" for who, names in takers.items() if names]
            hint = "; ".join(told) or "there are none"
        super().__init__(f"{text}; {hint}")

    def __reduce__(self) -> tuple[type, tuple[str, dict[str, Sequence[str]]]]:
        """Be copied and sent between processes whole."""
        return type(self), (self.option, self.takers)


class NothingToPruneError(NiwakiError):
    """A network without a unit that may be removed."""


class BatchDependenceWarning(UserWarning):
    """A network whose answer for an image depends on the other images of the batch."""


class BypassedWarning(UserWarning):
    """A layer whose map is to explain the output, and which part of the signal does not pass."""


class SoftmaxOutputWarning(UserWarning):
    """A derivative taken behind a softmax or sigmoid: it mixes the evidence of all classes."""


class PatternWarning(UserWarning):
    """Patterns that a whole layer lacks, or that were fitted on other weights."""


class LeftOutWarning(UserWarning):
    """What a reader would expect to be there and is not, such as images that are not read."""


class NearChanceWarning(UserWarning):
    """A network that is hardly better than guessing on the images it is to be judged by."""


class CompletenessWarning(UserWarning):
    """Heatmaps that should sum to a change of the output, and do not."""


class DisconnectedWarning(UserWarning):
    """A part of the signal that is cut off, as by ``detach()``, and gets no relevance."""


class FallbackWarning(UserWarning):
    """A default that does not serve a network, and what was done instead."""


class FewSamplesWarning(UserWarning):
    """Too few samples for what is to be learnt from them."""


class AbsorbedWarning(UserWarning):
    """Relevance that biases keep almost whole, so that layers cannot be ranked against others."""


class NoEvidenceWarning(UserWarning):
    """Samples whose class has an output of exactly zero, for which there is nothing to explain."""


class KeptWarning(UserWarning):
    """Layers that keep units because the network's structure does not let them go."""


class ChoiceWarning(UserWarning):
    """A network that may branch on what it computes, of which only one way is looked at."""


class PrecisionWarning(UserWarning):
    """A network that computes in half precision, whose rounding shows in what is found."""
