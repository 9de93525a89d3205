"""PyTorch takes seconds to import: it is imported where something is computed, not before."""

import subprocess
import sys

import pytest
from typer.main import get_command

import niwaki
from niwaki.cli import app

COMMANDS = sorted(get_command(app).commands)
HEAVY = ("torch", "torchvision", "numpy", "scipy", "sklearn", "matplotlib", "PIL")


def loaded_by(code):
    """Run code in a fresh interpreter and return which heavy packages it has loaded."""
    told = f"{code}\nimport sys\nprint('|', *(m for m in {HEAVY} if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", told], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.rpartition("|")[2].split()


@pytest.mark.slow
def test_the_package_is_light_and_has_all_that_it_names():
    assert loaded_by("import niwaki; niwaki.errors.NiwakiError; dir(niwaki)") == []
    assert "torch" in loaded_by("import niwaki; niwaki.explain")  # so the check can fail
    for name in niwaki.__all__:
        assert getattr(niwaki, name) is not None
        assert name in dir(niwaki)
    for room in niwaki.__doc__.split("are `")[1].split(". A room")[0].split("`"):
        if room.strip(" ,\n") not in ("", "and"):
            assert hasattr(niwaki, room.removeprefix("niwaki.")), room
    with pytest.raises(AttributeError, match="no attribute 'explian'"):
        niwaki.explian  # noqa: B018


def test_help_and_version_of_every_command_are_light():
    asked = [["--version"], ["--help"], *([command, "--help"] for command in COMMANDS)]
    code = (
        "from typer.testing import CliRunner\n"
        "from niwaki.cli import app\n"
        f"for asked in {asked}:\n"
        "    done = CliRunner().invoke(app, asked)\n"
        "    assert done.exit_code == 0 and len(done.stdout) > 5, done.output\n"
    )
    assert loaded_by(code) == []
