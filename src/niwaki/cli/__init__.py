"""What a person types: ``niwaki explain``, ``prune``, ``methods``, ``demo``."""

from niwaki.cli._app import app, main

__all__ = ["app", "main"]
