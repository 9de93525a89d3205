"""``python -m niwaki``: the command line."""

import sys
from pathlib import Path

# Python itself looks in the working directory first. That may be a folder from somebody else, and
# nothing in it shall be imported in place of an installed package.
if sys.path and Path(sys.path[0] or ".").resolve() == Path.cwd():
    del sys.path[0]

from niwaki.cli import main

if __name__ == "__main__":
    main()
