"""What a saved network was built by, and whether that may be run again.

A folder from somebody else names the code that builds its network. What torchvision, timm, the zoo
and installed packages on top of PyTorch build is safe to run. Any other file runs only if its
path was sealed by this person's niwaki, or if it is trusted in so many words; and nothing that lies
in the folder itself is ever imported.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib.metadata
import importlib.util
import inspect
import json
import os
import re
import secrets
import site
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from niwaki.errors import ModelError
from niwaki.models import _importing, _timm, _torchvision, zoo
from niwaki.schema import Either, Form, Nothing, Record, Text, Truth, Whole

_BYTES = 32


def seal(content: str) -> str | None:
    """Return a code for a content that only this person's niwaki can make; None without a home."""
    key = _key()
    return None if key is None else hmac.new(key, content.encode(), hashlib.sha256).hexdigest()


def is_sealed(content: str, code: str | None) -> bool:
    """Return whether a code is the seal of a content."""
    expected = seal(content)
    return expected is not None and code is not None and hmac.compare_digest(expected, code)


def _key() -> bytes | None:
    """Read the secret key, made when it is first needed; it never leaves the home folder."""
    try:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        file = Path(state) / "niwaki" / "key"
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            pass
        else:
            with os.fdopen(handle, "wb") as new:
                new.write(secrets.token_bytes(_BYTES))
        key = file.read_bytes()
    except (OSError, RuntimeError):
        return None
    return key if len(key) == _BYTES else None


_ZOO = "niwaki.models.zoo"
_MAYBE = Either(Nothing(), Text(longest=5000))


@dataclass(frozen=True)
class Origin:
    """What builds an architecture.

    Attributes
    ----------
    model : str
        As for `niwaki.models.build`.
    classes : int or None
        Number of outputs it is built with; None for its own.
    random : bool
        Whether it was built with random weights, and not for published ones.
    file : str or None
        Where the code lies, where it is of no installed package.
    root : str or None
        The folder from which it is imported.
    source : str or None
        Digest of the file.
    seal : str or None
        Shows that this person's niwaki wrote it down.
    """

    model: str
    classes: int | None = None
    random: bool = False
    file: str | None = None
    root: str | None = None
    source: str | None = None
    seal: str | None = None

    FORMS: ClassVar[dict[str, Form]] = {
        "model": _MAYBE,
        "classes": Either(Nothing(), Whole(1, 100_000)),
        "random": Truth(),
        "builder": Either(
            Nothing(),
            Record(
                {"file": Text(longest=5000), "root": Text(longest=5000)},
                {"source": _MAYBE, "seal": _MAYBE},
            ),
        ),
    }

    @classmethod
    def of(cls, spec: str, classes: int | None = None, *, random: bool = False) -> Origin:
        """Note what a name stands for now, so that it can be found from anywhere."""
        source, _, _ = spec.rpartition(":")
        if spec.partition(":")[0] in ("torchvision", "timm") or source == _ZOO:
            return cls(spec, classes, random)
        place = _locate(spec)
        if place is None or (not source.endswith(".py") and _is_installed(source)):
            return cls(spec, classes, random)
        file, root = place
        code = seal(_content(spec, file))
        return cls(spec, classes, random, str(file), str(root), _digest(file), code)

    @classmethod
    def from_json(cls, about: Mapping[str, Any]) -> Origin | None:
        """Read what `to_json` wrote, checked against `FORMS`; None where nothing is known."""
        if not about.get("model"):
            return None
        random, builder = about.get("random", False), about.get("builder") or {}
        return cls(about["model"], about.get("classes"), random, **builder)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        about: dict[str, Any] = {"model": self.model, "classes": self.classes}
        if self.random:
            about["random"] = True
        if self.file is not None:
            builder = asdict(self)
            about["builder"] = {name: builder[name] for name in ("file", "root", "source", "seal")}
        return about

    def build(self, folder: Path, *, trust: bool = False) -> nn.Module:
        """Build the architecture, with random weights, for a network saved in a folder.

        Parameters
        ----------
        folder
            The folder that told of it.
        trust
            Whether code may run that is of no installed package and is not sealed.

        Raises
        ------
        ModelError
            Code that is missing, lies in the folder, or is not trusted; its path is named.
        """
        scheme, _, name = self.model.partition(":")
        with _out_of_the_way(folder):
            if scheme == "torchvision":
                model = _torchvision.rebuild(name, self.classes, random=self.random)
            elif scheme == "timm":
                model = _timm.build(name, "random", self.classes)
            else:
                model = self._call(folder, trust)
        return model.eval()

    def changed(self) -> bool:
        """Return whether the code is known to be another than when the network was saved."""
        file = None if self.file is None else Path(self.file)
        return file is not None and file.is_file() and self.source != _digest(file)

    def _call(self, folder: Path, trust: bool) -> nn.Module:
        source, _, name = self.model.rpartition(":")
        if source == _ZOO and name in zoo.__all__:
            return _importing.call(self.model, self.classes)
        if self.file is None and not source.endswith(".py") and _is_installed(source):
            _check_plain(self.model)
            return _importing.call(self.model, self.classes, homes=())
        place = (
            _locate(self.model) if self.file is None else (Path(self.file), Path(self.root or ""))
        )
        if place is None:
            raise ModelError(
                f"{folder} says that {self.model!r} builds its network, which is not here; {_WAY}"
            )
        file, root = (path.resolve() for path in place)
        self._check_allowed(folder, file, root, trust)
        if source.endswith(".py") or "." not in source:
            return _importing.call(f"{file}:{name}", self.classes)
        model = _importing.call(self.model, self.classes, homes=[root])
        found = getattr(sys.modules.get(source), "__file__", None)
        if found is None or Path(found).resolve() != file:
            raise ModelError(
                f"{folder} was built by {file}, and {source!r} is {found} here; {_WAY}"
            )
        return model

    def _check_allowed(self, folder: Path, file: Path, root: Path, trust: bool) -> None:
        home = folder.resolve()
        if file.is_relative_to(home) or root.is_relative_to(home):
            raise ModelError(
                f"{folder} says that {file} builds its network: code in a saved folder is never "
                f"run. Look at it; if it is good, copy it somewhere else, and {_WAY}"
            )
        if not file.is_file():
            raise ModelError(
                f"{folder} says that {file} builds its network, and there is no such file; {_WAY}"
            )
        ours = self.file is not None and is_sealed(_content(self.model, Path(self.file)), self.seal)
        if not (trust or ours):
            raise ModelError(
                f"{folder} says that {file} builds its network, which would run that file. If you "
                f"trust it, say so: --trust (in Python: trust=True). Or {_WAY}"
            )


_WAY = "name the architecture yourself: --architecture MODEL (in Python: model=...)"


def _content(spec: str, file: Path) -> str:
    return json.dumps([spec, str(file)])


def _digest(file: Path) -> str | None:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return None


def _locate(spec: str) -> tuple[Path, Path] | None:
    """Return the file that a name stands for, and from where it is imported; import nothing."""
    source, _, _ = spec.rpartition(":")
    if source.endswith(".py"):
        file = Path(source).expanduser().resolve()
        return file, file.parent
    if not re.fullmatch(r"\w+(\.\w+)*", source):
        return None
    known = sys.modules.get(source)
    found = getattr(known, "__file__", None) or _find(source)
    if not found:
        return None
    file = Path(found).resolve()
    depth = source.count(".") + (file.name == "__init__.py")
    return file, file.parents[depth]


def _find(name: str) -> str | None:
    """Find a module beside the working directory or where Python looks, without importing it."""
    parts = name.split(".")
    for place in (Path.cwd(), *map(Path, filter(None, sys.path))):
        for end in (f"{parts[-1]}.py", f"{parts[-1]}/__init__.py"):
            file = place.joinpath(*parts[:-1], end)
            if file.is_file():
                return str(file)
    return None


def _is_installed(name: str) -> bool:
    """Whether a module is of an installed package that builds on PyTorch."""
    top = name.partition(".")[0]
    if not re.fullmatch(r"\w+(\.\w+)*", name) or top in sys.stdlib_module_names:
        return False
    try:
        spec = importlib.util.find_spec(top)
    except (ValueError, ImportError):
        return False
    if spec is None or spec.origin is None:
        return False
    places = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    places |= {*site.getsitepackages(), site.getusersitepackages()}
    file = Path(spec.origin).resolve()
    return any(file.is_relative_to(Path(p).resolve()) for p in places) and _needs_torch(top)


def _needs_torch(top: str) -> bool:
    for distribution in importlib.metadata.packages_distributions().get(top, ()):
        for need in importlib.metadata.requires(distribution) or ():
            if re.match(r"torch(vision)?\b", need) and "extra ==" not in need:
                return True
    return False


def _check_plain(spec: str) -> None:
    """Refuse what a package only hands on, such as a function of the operating system."""
    found = _importing.find(spec, homes=())
    top = spec.partition(".")[0].partition(":")[0]
    own = (getattr(found, "__module__", None) or "").partition(".")[0] == top
    if not own or not (inspect.isfunction(found) or issubclass(_class(found), nn.Module)):
        raise ModelError(f"{spec!r} builds no network; {_WAY}")


def _class(found: Any) -> type[Any]:
    return found if isinstance(found, type) else type(found)


@contextmanager
def _out_of_the_way(folder: Path) -> Iterator[None]:
    """Let nothing be imported from a folder, even if it is the working directory."""
    home = folder.resolve()
    before = list(sys.path)
    # An empty entry stands for the working directory.
    sys.path[:] = [p for p in before if not Path(p or ".").resolve().is_relative_to(home)]
    try:
        yield
    finally:
        sys.path[:] = before
