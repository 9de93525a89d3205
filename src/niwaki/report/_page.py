"""Pages: filled-in templates, which show their own pictures and run their own script alone."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, PackageLoader
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from niwaki.files import write_atomically
from niwaki.report._colours import colour, picture


def write_page(path: str | Path, template: str, **values: Any) -> None:
    """Fill in a template of ``report/templates`` and write it, a piece at a time.

    All values are escaped: names of classes, files and layers are words, never markup. The
    template's `policy` is its content security policy.
    """
    environment = Environment(
        loader=PackageLoader("niwaki.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    assert environment.loader is not None
    source, _, _ = environment.loader.get_source(environment, template)
    page = environment.get_template(template).stream(policy=_policy(source), **values)
    write_atomically(path, lambda file: page.dump(str(file), encoding="utf-8"))


def data_uri(picture: bytes, kind: str = "png") -> str:
    """Return a picture of this kind as text that a page can embed."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def _policy(template: str) -> str:
    """Return a content security policy for the pages of a template.

    Pictures are embedded; of styles and scripts, only those in the template itself are allowed, by
    their hashes. Whatever a name of a class or file might bring along does nothing.
    """
    allowed = {
        kind: " ".join(_hash(text) for text in _inside(template, tag)) or "'none'"
        for kind, tag in (("style-src", "style"), ("script-src", "script"))
    }
    parts = {"default-src": "'none'", "img-src": "data:", **allowed}
    parts |= {"base-uri": "'none'", "form-action": "'none'"}
    return "; ".join(f"{kind} {sources}" for kind, sources in parts.items())


def _inside(template: str, tag: str) -> list[str]:
    return re.findall(rf"<{tag}>(.*?)</{tag}>", template, re.DOTALL)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


_SIDE = 88  # pixels; smaller patches are enlarged to about this, without smoothing
_GAP = 3
_SHARP = 16  # up to this side pictures are kept exactly, larger ones as a photograph is


def strip(patches: Tensor) -> str | None:
    """Lay patches of shape (N, C, H, W) in a row; NaN is transparent. None without patches."""
    if not len(patches):
        return None
    return _row([_with_holes(picture(p.nan_to_num(0)), p.isnan().any(0)) for p in patches])


def heat_strip(heatmaps: Tensor) -> str | None:
    """Lay heatmaps of shape (N, H, W) in a row, on one scale. None without any."""
    if not len(heatmaps) or bool(heatmaps.isnan().all()):
        return None
    limit = float(heatmaps.nan_to_num(0).abs().max()) or 1.0
    return _row([_with_holes(colour(h.nan_to_num(0), limit=limit), h.isnan()) for h in heatmaps])


def thumbnail(pixels: Tensor | None) -> str | None:
    """Show one picture of shape (C, H, W), from 0 to 1."""
    return None if pixels is None else strip(pixels[None])


def weights_thumbnail(weights: Tensor | None) -> str | None:
    """Show the weights of a filter that reads 1 or 3 channels; grey is 0."""
    if weights is None or len(weights) not in (1, 3):
        return None
    return thumbnail(0.5 + weights / (2 * float(weights.abs().max()) or 1.0))


def _with_holes(pixels: NDArray[np.float64], holes: Tensor) -> NDArray[np.uint8]:
    alpha = (~holes).to(torch.float64).cpu().numpy()[..., None]
    levels: NDArray[np.uint8] = (np.concatenate([pixels, alpha], 2) * 255).round().astype(np.uint8)
    return levels


def _row(parts: list[NDArray[np.uint8]]) -> str:
    side = max(parts[0].shape[:2])
    times = max(1, _SIDE // side)
    gap = np.full((parts[0].shape[0] * times, _GAP, 4), 255, np.uint8)
    large = [part.repeat(times, 0).repeat(times, 1) for part in parts]
    joined = np.concatenate([piece for part in large for piece in (part, gap)][:-1], 1)
    buffer = io.BytesIO()
    Image.fromarray(joined).save(buffer, "WEBP", quality=80, lossless=side <= _SHARP)
    return data_uri(buffer.getvalue(), "webp")
