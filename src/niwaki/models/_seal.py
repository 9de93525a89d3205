"""Seals: by which a person's niwaki knows again what it wrote itself."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

__all__ = ["is_sealed", "seal"]

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
