"""What a person types; every command is one file."""

from niwaki.cli._app import app, main

__all__ = ["app", "main"]
