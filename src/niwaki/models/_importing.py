"""A user's own network: the callable that `package.module:name` or `file.py:name` stands for."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from niwaki.errors import ModelError

__all__ = ["call", "find"]

_FORMS = (
    "torchvision:NAME, timm:NAME, package.module:callable, path/to/file.py:callable, or the "
    "folder of a saved model"
)


def call(spec: str, classes: int | None, homes: Sequence[Path] | None = None) -> nn.Module:
    """Build the network: call it with `num_classes=classes`, or with nothing for None.

    What lies in the folders `homes` can be imported; None for the folder of the file, or the
    working directory.
    """
    function = find(spec, homes)
    arguments = {} if classes is None else {"num_classes": classes}
    try:
        with _importable(spec, homes), _guarded():
            model = function(**arguments)
    except KeyboardInterrupt:
        raise
    # The callable is the user's, so anything can go wrong in it.
    except BaseException as error:
        given = ", ".join(f"{name}={value}" for name, value in arguments.items())
        raise ModelError(f"{spec}({given}) failed: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"{spec} returned a {type(model).__name__}; name a callable that returns a "
            "torch.nn.Module"
        )
    return model


def find(spec: str, homes: Sequence[Path] | None = None) -> Callable[..., Any]:
    """Import the callable that a spec `module:name` or `file.py:name` names.

    Raises
    ------
    ModelError
        A module that does not import, with its own reason, or no such callable in it.
    """
    source, _, name = spec.rpartition(":")
    if not source or not name:
        raise ModelError(f"{spec!r} names no model; write {_FORMS}")
    try:
        with _importable(spec, homes), _guarded():
            module = _load_file(Path(source)) if _is_file(source) else _load_module(source)
    except KeyboardInterrupt:
        raise
    # The module is the user's, so importing it can raise anything.
    except BaseException as error:
        raise ModelError(
            f"cannot import {source!r} for the model {spec!r}: {type(error).__name__}: {error}; "
            f"a model is {_FORMS}"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ModelError(f"{source} has no callable {name!r}; {_offer(module)}")
    return function  # type: ignore[no-any-return]


def _is_file(source: str) -> bool:
    return source.endswith(".py")


def _home(spec: str) -> Path:
    source = spec.rpartition(":")[0]
    return Path(source).resolve().parent if _is_file(source) else Path.cwd()


@contextmanager
def _importable(spec: str, homes: Sequence[Path] | None) -> Iterator[None]:
    # As when Python itself runs a file or a module: what lies beside it can be imported.
    folders = [str(home) for home in ([_home(spec)] if homes is None else homes)]
    sys.path[:0] = folders
    try:
        yield
    finally:
        for folder in folders:
            if folder in sys.path:
                sys.path.remove(folder)


@contextmanager
def _guarded() -> Iterator[None]:
    """Keep what is printed out of our own output, and end a process that somebody else started."""
    process = os.getpid()
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if os.getpid() != process:  # a fork would do our work a second time
            print("niwaki: the model's code has forked; this process ends", file=sys.stderr)
            os._exit(1)


def _load_module(name: str) -> ModuleType:
    importlib.invalidate_caches()
    return importlib.import_module(name)


def _load_file(path: Path) -> ModuleType:
    path = path.expanduser().resolve()
    name = f"_niwaki_{path.stem}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    # Dataclasses look their own module up while it is still being imported.
    sys.modules[name] = module
    try:
        module_spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _offer(module: ModuleType) -> str:
    own = [
        name
        for name, value in vars(module).items()
        if callable(value)
        and not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
    ]
    return f"it has {', '.join(sorted(own))}" if own else "it defines none"
