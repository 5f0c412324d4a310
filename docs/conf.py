"""How Sphinx builds the site: ``make docs``."""

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ["OMP_WAIT_POLICY"] = "passive"

project = "optlayers"
author = "the optlayers authors"
html_show_copyright = False
release = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[1]
html_title = f"optlayers {release}"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # the site needs no other host
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["gallery/**/*.ipynb", "gallery/**/*.py", "gallery/**/*.zip"]
nitpicky = False
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4

templates_path = ["_templates"]
autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
napoleon_attr_annotations = False
napoleon_google_docstring = False
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_preprocess_types = False

sphinx_gallery_conf = {
    "examples_dirs": [str(ROOT / "examples" / "gallery")],
    "gallery_dirs": ["gallery"],
    "filename_pattern": r"/plot_",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "capture_repr": (),
    "within_subsection_order": "FileNameSortKey",
    "remove_config_comments": True,
    "min_reported_time": 3600,
    "show_memory": False,
    "write_computation_times": False,
    "show_signature": False,
    "matplotlib_animations": False,
}

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]


SECTION = re.compile(r"^-{3,}$")
ITEM = re.compile(r"^(\S.*?) : (.*)$")


def read_our_docstrings(app, what, name, obj, options, lines):
    """Our docstrings say ``name : description`` where napoleon reads ``name : type``; these become two lines.

    What a function returns is a text, or items like those of parameters. An attribute is described by a sentence, in
    which napoleon would take what stands before a colon for a type; an empty comment in front keeps it whole.
    """
    written, section = ["..", ""] if what in ("attribute", "property") else [], ""
    for index, line in enumerate(lines):
        if index + 1 < len(lines) and SECTION.match(lines[index + 1]):
            section = line
            items = [text for text in lines[index + 2 :] if text]
            if section == "Returns" and items and not ITEM.match(items[0]):
                section = "returned"
                continue
        if section == "returned":
            if SECTION.match(line):
                written += ["", "", ":Returns:"]  # two empty lines end the section before
            else:
                written += [f"    {line}" if line else ""]
            continue
        item = ITEM.match(line) if section in ("Parameters", "Returns", "Raises", "Attributes") else None
        written += [item[1], f"    {item[2]}"] if item else [line]
    lines[:] = written


BETWEEN_MODULES = {
    "AbstractFenchelYoungLoss.against",
    "AbstractFenchelYoungLoss.check",
    "AbstractFenchelYoungLoss.contrast",
    "AbstractFenchelYoungLoss.decoded",
    "AbstractLoss.against",
    "AbstractLoss.charge",
    "AbstractLoss.check",
    "AbstractLoss.check_structure",
    "AbstractLoss.completable",
    "AbstractLoss.contrast",
    "AbstractLoss.decoded",
    "AbstractLoss.losses",
    "AbstractLoss.reduced",
    "CompiledPolytope.bind_on_host",
    "CompiledPolytope.compile_relaxation",
    "CompiledPolytope.duals",
    "OptLayer.shares",
    "OptLayer.sizes_of",
    "Solution.failing",
    "ask_for_duals",
    "asked",
    "at_an_edge",
    "charge",
    "decoded",
    "extra_repr",
    "function",
    "knows_auxiliary_scores",
    "maximizers_in_turn",
    "name_of_scores",
    "predicts_means",
    "projectors_in_turn",
}
"""Members of public classes that only other modules of the library need."""


def leave_out_what_is_between_modules(app, what, name, obj, skip, options):
    """Nothing of the reference is for the library alone."""
    return True if {name, getattr(obj, "__qualname__", name)} & BETWEEN_MODULES else None


def mark_defaults_that_are_made(app, what, name, obj, options, signature, returns):
    """What Sphinx writes for a default that a function makes is no Python: the whole signature would stay raw text."""
    return signature and signature.replace("<factory>", "..."), returns


def setup(app):
    app.connect("autodoc-process-docstring", read_our_docstrings, priority=100)  # before napoleon
    app.connect("autodoc-skip-member", leave_out_what_is_between_modules)
    app.connect("autodoc-process-signature", mark_defaults_that_are_made)
