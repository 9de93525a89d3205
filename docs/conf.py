"""How the documentation is built; `make docs` builds it."""

import re
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).parent
SHORT, WORDS = 20, 48  # letters in the longest cell of a column of numbers, and of one of words
WIDE = 90  # letters in a line that a notebook prints as a sentence
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent / "src")]

# Of packages that are imported while documenting, not ours.
warnings.filterwarnings("ignore", category=DeprecationWarning)

import generate  # noqa: E402
from docutils import nodes  # noqa: E402

import niwaki  # noqa: E402

project = "niwaki"
author = "The niwaki authors"
project_copyright = author
version = release = niwaki.__version__

extensions = [
    "myst_nb",  # Markdown, by myst-parser, and the notebooks
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "_ext"]

html_theme = "furo"
html_title = "niwaki"
html_static_path = ["_static"]
html_css_files = ["niwaki.css"]
html_show_sourcelink = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# `name` in a docstring is a link where there is something of this name, and code elsewhere.
default_role = "py:obj"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autosummary_generate = False  # the pages are written by generate.py
maximum_signature_line_length = 80
numpydoc_show_class_members = False
numpydoc_xref_param_type = False
toc_object_entries_show_parents = "hide"

# A notebook runs when it has changed, or when it has not run yet.
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE / "_build" / "notebooks")
nb_execution_timeout = 600  # seconds; for slow machines
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_output_stderr = "remove"  # progress bars and warnings

generate.generate(HERE)


def _reports(app, name, content):
    """On the site, the experiments lie beside the pages and not above them."""
    content[0] = re.sub(r"\]\(\.\./experiments/", "](experiments/", content[0])


def _aliases(app, env):
    """Let `niwaki.prune` lead to where `niwaki.pruning.prune` is documented."""
    domain = env.get_domain("py")
    for name, place in generate.aliases().items():
        domain.objects[name] = domain.objects[place]._replace(aliased=True)


def _widths(app, doctree, docname):
    """Tell the style sheet which columns hold numbers or words, and which output is sentences."""
    for table in doctree.findall(nodes.tgroup):
        rows = [row.children for body in table.findall(nodes.tbody) for row in body.children]
        for column in zip(*rows, strict=False):
            longest = max(len(cell.astext()) for cell in column)
            kind = ["short"] if longest <= SHORT else ["words"] if longest > WORDS else []
            for cell in column:
                cell["classes"] += kind
    for block in doctree.findall(nodes.literal_block):
        if "output" in block["classes"] and max(map(len, block.astext().split("\n"))) > WIDE:
            block["classes"].append("sentences")


def setup(app):
    """Connect what the build needs beside its extensions."""
    app.connect("doctree-resolved", _widths)
    app.connect("source-read", _reports)
    app.connect("env-check-consistency", _aliases)
