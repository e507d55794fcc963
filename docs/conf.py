"""Sphinx builds the documentation from this: `tox -e docs`."""

from __future__ import annotations

from importlib.metadata import version as version_of

project = "zfabric"
author = "The zfabric authors"
copyright = "The zfabric authors"
release = version_of("zfabric")
version = release

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"zfabric {release}"
