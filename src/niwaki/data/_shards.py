"""Tar files of images in WebDataset's format: which images there are, and where they lie.

A tar file is scanned once, from header to header, to learn where each image lies. Then images
are read from there, in any order and by any process.
"""

from __future__ import annotations

import tarfile
import warnings
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from niwaki.data._folder import kind_of
from niwaki.data._read import read_image
from niwaki.errors import DataError, LeftOutWarning

__all__ = ["Members", "list_members"]

_LONGEST = 1000  # bytes of the name of a class
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


@dataclass(frozen=True)
class _Shard:
    """A tar file, and what tells whether it is still the same."""

    path: Path
    size: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> _Shard:
        state = path.stat()
        return cls(path, state.st_size, state.st_mtime_ns)


@dataclass
class Members(Sequence[Path]):
    """The images in tar files, by number: their names, and where they lie.

    Some 50 bytes are kept for each image, and no file is open between two reads, so that processes
    that were forked do not move each other's place in it. As a sequence these are the names: the
    path of the tar file, and then the name of the member.
    """

    shards: list[_Shard] = field(default_factory=list)
    starts: array[int] = field(default_factory=lambda: array("q"))  # first image of each shard
    offsets: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    ends: array[int] = field(default_factory=lambda: array("q"))  # of the names
    names: bytearray = field(default_factory=bytearray)
    labels: array[int] = field(default_factory=lambda: array("q"))  # numbers of `classes`; -1: none
    classes: dict[str, int] = field(default_factory=dict)  # in the order in which they occur

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        name = self.names[self.ends[number - 1] if number else 0 : self.ends[number]]
        return self._shard(number).path / name.decode("utf-8", "surrogateescape")

    def _shard(self, number: int) -> _Shard:
        return self.shards[bisect_right(self.starts, number) - 1]

    def stored(self, number: int) -> bytes:
        """Return the file of an image as it lies in its tar file.

        Raises
        ------
        DataError
            If the tar file has changed since it was scanned.
        """
        shard = self._shard(number)
        try:
            same = _Shard.of(shard.path) == shard
            with shard.path.open("rb") as file:
                file.seek(self.offsets[number])
                found = file.read(self.sizes[number])
        except OSError as error:
            raise DataError(f"cannot read {self[number]}: {error}") from error
        if not same or len(found) != self.sizes[number]:
            raise DataError(
                f"{shard.path} has changed since it was opened, so that its images lie elsewhere; "
                "start again"
            )
        return found

    def read(self, number: int) -> Image.Image:
        """Read an image."""
        return read_image(self[number], self.stored(number))

    def add(self, name: str, offset: int, size: int, label: str | None) -> None:
        """Append an image of the last shard."""
        self.offsets.append(offset)
        self.sizes.append(size)
        self.names += name.encode("utf-8", "surrogateescape")
        self.ends.append(len(self.names))
        self.labels.append(
            -1 if label is None else self.classes.setdefault(label, len(self.classes))
        )


def list_members(shards: Sequence[Path]) -> Members:
    """Scan tar files and list their images.

    Raises
    ------
    DataError
        A file that is no tar file, is compressed or cut off; a sample with two images, with a
        class and no image, or that occurs twice; no image at all, or images with and without a
        class.
    """
    found = Members()
    left_out: dict[str, list[str]] = {}
    for path in shards:
        found.shards.append(_Shard.of(path))
        found.starts.append(len(found))
        _refuse_compressed(path)
        try:
            with tarfile.open(path, "r:") as tar:
                _list_shard(tar, path, found, left_out)
        except (tarfile.TarError, OSError, EOFError) as error:
            raise DataError(
                f"{path} cannot be read as a tar file: {error}; if it was cut off, copy it again"
            ) from error
    for kind, names in left_out.items():
        warnings.warn(
            f"{len(names)} {kind} in {len(shards)} shards left out, the first is {names[0]}",
            LeftOutWarning,
            stacklevel=2,
        )
    if not len(found):
        raise DataError(
            f"no image in {len(shards)} shards, the first of which is {shards[0]}; images are "
            "named KEY.jpg, KEY.png and so on, and their classes KEY.cls"
        )
    bare = next((n for n, label in enumerate(found.labels) if label < 0), None)
    if bare is not None and found.classes:
        raise DataError(
            f"{sum(label < 0 for label in found.labels)} of {len(found)} images have no class, the "
            f"first is {found[bare]}: a member named {found[bare].name.partition('.')[0]}.cls must "
            "stand beside it (files of one key follow each other: tar --sort=name)"
        )
    return found


def _list_shard(
    tar: tarfile.TarFile, path: Path, found: Members, left_out: dict[str, list[str]]
) -> None:
    keys: set[str] = set()
    for key, fields in _samples(tar, path, left_out):
        image = _image(key, fields, path, left_out)
        if image is None:
            continue
        if key in keys:
            raise DataError(
                f"{path} has two samples {key!r}; each needs a key of its own, and its files must "
                "follow each other (tar --sort=name)"
            )
        keys.add(key)
        label = _label(tar, fields["cls"], path) if "cls" in fields else None
        found.add(_plain(image.name), image.offset_data, image.size, label)
    _check_end(tar, path)


def _samples(
    tar: tarfile.TarFile, path: Path, left_out: dict[str, list[str]]
) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Yield the key of each sample with its members, by what follows the first dot."""
    last: str | None = None
    fields: dict[str, tarfile.TarInfo] = {}
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
        folder, slash, file = _plain(member.name).rpartition("/")
        base, dot, kind = file.partition(".")
        if member.isdir() or not dot:
            continue
        if not base:
            if kind_of(Path(file).suffix.lower()) is not None:
                left_out.setdefault("hidden image files", []).append(f"{path}/{member.name}")
            continue
        if (key := folder + slash + base) != last:
            if last is not None:
                yield last, fields
            last, fields = key, {}
        if kind.lower() in fields:
            raise DataError(f"{path} has two members {member.name!r}; take one of them out")
        fields[kind.lower()] = member
    if last is not None:
        yield last, fields


def _plain(name: str) -> str:
    return name.removeprefix("./")


def _image(
    key: str, fields: dict[str, tarfile.TarInfo], path: Path, left_out: dict[str, list[str]]
) -> tarfile.TarInfo | None:
    """Return the one image of a sample; None for a sample that is left out."""
    images = [member for kind, member in fields.items() if kind_of(f".{kind}") == ""]
    if len(images) > 1:
        raise DataError(
            f"the sample {key!r} in {path} has {len(images)} images, "
            f"{images[0].name} and {images[1].name}; keep the one that is meant"
        )
    if images:
        _check_member(images[0], path)
        return images[0]
    for member in fields.values():
        kind = kind_of(Path(member.name).suffix.lower())
        if kind == "":
            raise DataError(
                f"the sample {key!r} in {path} has no image of a plain kind, only {member.name!r}: "
                "what follows the first dot of a name is its kind; write other dots as _"
            )
        if kind is not None:
            left_out.setdefault(kind, []).append(f"{path}/{member.name}")
            return None
    if "cls" in fields:
        raise DataError(f"the sample {key!r} in {path} has a class and no image")
    return None


def _check_member(member: tarfile.TarInfo, path: Path) -> None:
    if not member.isreg() or member.issparse():
        raise DataError(f"{member.name!r} in {path} is a link or has holes; pack the file itself")
    if member.size == 0:
        raise DataError(f"the image {member.name!r} in {path} is empty (0 bytes)")


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> str:
    """Read the name, or number, of a class."""
    _check_member(member, path)
    file: BinaryIO = tar.fileobj  # type: ignore[assignment]
    file.seek(member.offset_data)
    try:
        text = file.read(min(member.size, _LONGEST + 1)).decode("utf-8").strip()
    except UnicodeDecodeError:
        text = ""
    if not text or len(text) > _LONGEST or "\n" in text:
        raise DataError(
            f"{member.name!r} in {path} holds no class: write its number or its name, as text"
        )
    return text


def _refuse_compressed(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(6)
    for mark, kind in _COMPRESSED.items():
        if head.startswith(mark):
            raise DataError(
                f"{path} is compressed ({kind}), and no single image of it can be read without all "
                "before it; unpack it once to a plain .tar (images hardly become smaller)"
            )


def _check_end(tar: tarfile.TarFile, path: Path) -> None:
    """Refuse a file that does not end where its members do; `tarfile` would only stop there."""
    file: BinaryIO = tar.fileobj  # type: ignore[assignment]
    file.seek(tar.offset)
    zeros = 0
    while block := file.read(2**16):
        if block.strip(b"\0"):
            raise DataError(
                f"{path} is damaged behind byte {tar.offset}, or another tar file was appended to "
                "it: pack it again"
            )
        zeros += len(block)
    if zeros < tarfile.BLOCKSIZE:
        raise DataError(f"{path} has no end: it was cut off; copy it again")
