"""``niwaki audit --watch``: which predictions on new images are made in an unusual way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from niwaki.cli import _options as o
from niwaki.data import Described, groups_named
from niwaki.errors import NiwakiError

if TYPE_CHECKING:
    from niwaki.auditing import Watched


def run_watch(
    model: str,
    data: str,
    reference: str,
    out: Path,
    common: o.Common,
    *,
    limit: int,
    slides: str | None,
    made: Mapping[str, Any],
) -> Watched:
    """Compare new images with a reference, and write the page and the tables.

    Parameters
    ----------
    model, data : str
        The network, and new images, which need no labels.
    reference : str
        Images on which the network is known to work.
    out : Path
        Folder to write.
    common : Common
        What all commands know.
    limit : int
        Largest number of images of the reference.
    slides : str, optional
        How the reference's slides are named.
    made : mapping
        The command and the date, for the page.
    """
    from niwaki.auditing import watch
    from niwaki.report import write_watch

    work = common.workplace(out)
    loaded = common.load(model)
    known = common.images(reference, loaded)
    loaded = loaded.named_by(known)
    images = o.load_images(data, loaded, split="test")
    if len(images) == 0:
        raise NiwakiError(f"{data} has no images to watch")
    groups = groups_named(known, slides) if slides else None
    described = Described(known, class_names=loaded.class_names, groups=groups)
    with work.result() as folder:
        found = watch(
            loaded.model,
            described,
            images,
            limit=limit,
            batch_size=common.batch_size,
            seed=common.seed,
        )
        heading = f"{Path(model).name} on {data}, watched"
        remarks = [f"The reference is {reference}."]
        write_watch(folder, found, images, heading=heading, remarks=remarks, made=made)
    return found
