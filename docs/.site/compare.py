"""The page that compares images in the browser becomes a file of the site, with the weights of the day."""

from __future__ import annotations

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from cpips.viz import compare_page


def on_files(files: Files, config: MkDocsConfig) -> Files:
    files.append(File.generated(config, "compare.html", content=compare_page()))
    return files
