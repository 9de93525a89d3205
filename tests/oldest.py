"""Print the oldest versions that pyproject.toml allows, as constraints for pip.

`make test-oldest` installs them and runs the quick tests, so that the lower bounds are true.
"""

import re
from pathlib import Path

try:
    import tomllib
except ImportError:  # Python 3.10; pip brings the same reader
    from pip._vendor import tomli as tomllib  # type: ignore[no-redef]

ROOT = Path(__file__).parents[1]


def constraints() -> list[str]:
    """Return ``name==version`` for each dependency of the package and of its tests."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["test"]]
    found = {}
    for one in wanted:
        match = re.fullmatch(r"([\w.-]+)(?:>=|==)([\w.]+)(?:,<[\w.]+)?", one)
        if match is None:
            raise ValueError(f"{one!r} has no lower bound that this script can read")
        found[match[1]] = match[2]
    return [f"{name}=={version}" for name, version in sorted(found.items())]


if __name__ == "__main__":
    print("\n".join(constraints()))
