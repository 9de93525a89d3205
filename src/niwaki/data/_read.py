"""An image file, read completely and upright; what is more than one picture is refused."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from niwaki.data._png import bits_of_png, clear_at_depth
from niwaki.errors import DataError

__all__ = ["SLIDES", "in_mode", "is_slide", "orientation", "read_image", "refuse_slide", "upright"]

SLIDES = (
    ".bif",
    ".czi",
    ".dcm",
    ".dicom",
    ".isyntax",
    ".mrxs",
    ".ndpi",
    ".ndpis",
    ".qptiff",
    ".scn",
    ".svs",
    ".svslide",
    ".vms",
    ".vmu",
    ".zvi",
)

_SCANNED = "is a whole-slide or medical image"
_WHITE = (255, 255, 255, 255)
_ORIENTATION = 0x0112  # the tag's number, in EXIF and in TIFF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pillow's decoders raise these for broken files, beside OSError.
_BROKEN = (
    *(OSError, SyntaxError, ValueError, TypeError, EOFError, OverflowError, MemoryError),
    RuntimeError,
)


def read_image(path: Path, stored: bytes | None = None) -> Image.Image:
    """Read an image file, turned as its camera says, with grey of more than 8 bits in "I;16".

    Only the first picture of an animation is read, with a warning.

    Parameters
    ----------
    path
        Where it is.
    stored
        Its content, if it lies in an archive; `path` is then its name.

    Raises
    ------
    DataError
        A file that cannot be decoded, a slide or another file of several pictures, too many
        pixels.
    """
    if is_slide(path) if stored is None else _is_medical(stored):
        raise _slide(path, _SCANNED)
    try:
        with Image.open(path if stored is None else BytesIO(stored)) as file:
            _refuse_pages(file, path)
            way, depth, inverted = orientation(file), _depth(file), _inverted(file)
            image: Image.Image = file.copy()  # which reads all of it
            turned = way != 1 and orientation(file) == 1  # Pillow turns TIFF by itself
            if file.format == "PNG":
                _complete_png(image, path, stored)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path} has too many pixels for one image ({error}); cut tiles out of it, or raise "
            "PIL.Image.MAX_IMAGE_PIXELS if you trust the file"
        ) from error
    except _BROKEN as error:
        raise DataError(
            f"cannot read the image {path}: {error}; repair it or take it out"
        ) from error
    image = _sixteen_bits(image, depth, inverted)
    return image if turned else upright(image, way)


def _complete_png(image: Image.Image, path: Path, stored: bytes | None) -> None:
    with path.open("rb") if stored is None else BytesIO(stored) as content:
        bits = bits_of_png(content)
    if (clear := image.info.get("transparency")) is not None:
        image.info["transparency"] = clear_at_depth(clear, bits, image.mode)


def orientation(image: Image.Image) -> int:
    """Return how the camera was held, 1 to 8, as EXIF numbers it: 1 is upright."""
    try:
        way = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a damaged note about the picture is no damaged picture
        return 1
    return way if way in _TURNS else 1


def upright(image: Image.Image, way: int) -> Image.Image:
    """Turn an image as people see it that the camera has stored in this orientation."""
    return image.transpose(_TURNS[way]) if way in _TURNS else image


def is_slide(path: Path) -> bool:
    """Return whether a slide scanner or a medical device writes such a file, by name or mark."""
    if path.suffix.lower() in SLIDES:
        return True
    try:
        with path.open("rb") as file:
            return _is_medical(file.read(132))
    except OSError:  # said where it is read
        return False


def _is_medical(beginning: bytes) -> bool:
    return beginning[128:132] == b"DICM"


def refuse_slide(path: Path) -> None:
    """Refuse a file that a slide scanner or a medical device writes.

    Raises
    ------
    DataError
        With the way out.
    """
    if is_slide(path):
        raise _slide(path, _SCANNED)


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Return an image as grey ("L") or colour ("RGB"), 8 bits, what is transparent laid on white.

    Raises
    ------
    DataError
        Numbers without a known range, or colours that Pillow cannot convert.
    """
    if image.mode in ("F", "I"):
        kind = "floats" if image.mode == "F" else "integers"
        raise DataError(
            f"an image of 32-bit {kind} has no known range: which number is white? Save it with 8 "
            "or 16 bits, scaled as the network was trained"
        )
    clear = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        # Pillow would clip 16-bit grey to its lowest 256 levels, which is a white image.
        levels = np.asarray(image, dtype=np.float64)
        if isinstance(clear, int):
            levels = np.where(levels == clear, 65535, levels)
        image = Image.fromarray((levels / 257).round().clip(0, 255).astype(np.uint8))
    elif clear is not None or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        # Premultiplied colours and grey have no way of their own to RGBA.
        straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)
        seen = image.convert(straight).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", seen.size, _WHITE), seen).convert("RGB")
    try:
        return image if image.mode == mode else image.convert(mode)
    except ValueError as error:
        raise DataError(
            f"colours of the kind {image.mode} cannot be turned into {mode} ({error}); save the "
            "image as RGB"
        ) from error


def _refuse_pages(file: Any, path: Path) -> None:
    """Refuse several resolutions or pages; warn of an animation."""
    frames = getattr(file, "n_frames", 1)
    if isinstance(file, TiffImagePlugin.TiffImageFile):
        tags = file.tag_v2
        if TiffImagePlugin.SUBIFD in tags:
            raise _slide(path, "holds the image in several resolutions")
        if frames == 1:
            return
        sizes = []
        for page in range(frames):
            file.seek(page)
            sizes.append(file.size)
        file.seek(0)
        if len(sizes) == 2 and max(sizes[1]) <= 256 and 8 * max(sizes[1]) <= max(sizes[0]):
            return  # a photograph with its thumbnail
        if len(set(sizes)) > 1:
            raise _slide(path, f"holds {frames} images of several sizes, as a slide does")
        raise DataError(f"{path} has {frames} pages; save the one that is meant as an image")
    if frames > 1 and getattr(file, "is_animated", True) and file.format != "MPO":
        warnings.warn(
            f"of an animation or a file of several pictures ({file.format}) the first is read",
            stacklevel=4,
        )


def _slide(path: Path, why: str) -> DataError:
    return DataError(
        f"{path} {why}, and would be squeezed into one input: explain it as a slide (niwaki "
        "slide), or cut it into tiles at the resolution that the network was trained at (niwaki "
        "tiles) and give the folder of tiles"
    )


def _depth(file: Image.Image) -> int | None:
    """Return the bits of a grey level where the file says more than its mode; None: unknown."""
    if not isinstance(file, TiffImagePlugin.TiffImageFile):
        return 16  # of PNG, PGM and JPEG 2000, Pillow scales up what has fewer
    formats = file.tag_v2.get(TiffImagePlugin.SAMPLEFORMAT, (1,))
    bits = file.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
    return int(bits[0]) if set(formats) <= {1, 4} and bits[0] <= 16 else None


def _inverted(file: Image.Image) -> bool:
    """Return whether 0 is white, which Pillow turns round for 8 bits only."""
    if not isinstance(file, TiffImagePlugin.TiffImageFile):
        return False
    return bool(file.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0)


def _sixteen_bits(image: Image.Image, depth: int | None, inverted: bool) -> Image.Image:
    """Return grey of 9 to 16 bits as "I;16" that uses the whole range; leave the rest."""
    if not image.mode.startswith("I") or depth is None:
        return image
    levels = np.asarray(image).astype(np.float64)
    if depth < 16:
        levels *= 65535 / (2**depth - 1)
    if inverted:
        levels = 65535 - levels
    clear = image.info.get("transparency")
    scaled = Image.fromarray(levels.round().clip(0, 65535).astype(np.uint16))
    if clear is not None:
        scaled.info["transparency"] = clear
    return scaled
