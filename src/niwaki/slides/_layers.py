"""What is shown of a slide: one layer for each network, class and method."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

__all__ = ["Layer", "safe_names"]

Kind = Literal["probability", "relevance"]


@dataclass(frozen=True)
class Layer:
    """A map of a slide.

    Attributes
    ----------
    kind : {"probability", "relevance"}
        What the layer shows of a class.
    class_name : str
        Which class.
    method : str
        The method that explained it; empty for probabilities.
    network : str
        Empty for the network itself, the name of the one beside it, or "difference".
    """

    kind: Kind
    class_name: str
    method: str = ""
    network: str = ""

    @property
    def title(self) -> str:
        """What it shows, in words."""
        words = f"{self.kind} of {self.class_name}"
        if self.kind == "relevance":
            words = f"relevance for {self.class_name} by {self.method}"
        return f"{words} ({self.network})" if self.network else words

    @property
    def signed(self) -> bool:
        """Whether its values lie on both sides of zero."""
        return self.kind == "relevance" or self.network == "difference"


def safe_names(names: Iterable[str]) -> dict[str, str]:
    """Return a name of a file or folder for each name: plain letters, none of them twice."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        if name in found:
            continue
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("._-")[:80]
        if not plain or plain.lower() in taken:
            digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
            plain = f"{plain}-{digest}" if plain else digest
        found[name] = plain
        taken.add(plain.lower())
    return found
