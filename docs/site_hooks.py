"""Hooks of the documentation site: pages made from other files, and the check that every public name is documented.

mkdocs calls the functions `on_*` (mkdocs.yml names this file). Warnings of the logger fail a strict build.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
log = logging.getLogger("mkdocs.hooks.supermask")

sys.path.insert(0, str(Path(__file__).parent))
from tutorial_cells import parse_cells  # noqa: E402

COPIED_PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Files of the repository's root that are pages of the site."""

OFFLINE_SEARCH = "https://unpkg.com/iframe-worker/shim"
"""Script that the theme's plugin `offline` loads from a network; docs/assets has a copy."""

SEARCH_DIALOG = 'data-md-component="search" role="dialog"'
"""The theme's search, which has no name for screen readers."""


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the tutorials with the outputs of their cells, and the copied pages."""
    for source, page in COPIED_PAGES.items():
        text = (ROOT / source).read_text("utf-8").replace("](docs/", "](")
        files.append(File.generated(config, page, content=text))
    paths = tutorials(config)
    for path, outputs in zip(paths, run_tutorials(paths), strict=True):
        for name, content in tutorial_files(path, outputs).items():
            files.append(File.generated(config, f"tutorials/{name}", content=content))
    return files


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    """Point links to files outside docs/ at their pages, and show the titles of pages instead of file names."""
    for source, page in COPIED_PAGES.items():
        markdown = markdown.replace(f"](../{source}", f"]({page}")
    titles = {page: title for section in config.nav for title, page in _pages(section)}
    markdown = re.sub(r"\[[\w/.]+\]\(\.\./examples/(\w+)\.py\)", lambda link: _example(link[1], titles), markdown)
    markdown = re.sub(r"(\[[^\]]+\])\(\.\./examples\)", r"\1(tutorials/lottery_tickets.md)", markdown)
    return re.sub(r"\[(\w+\.md)\]\(\1", lambda link: f"[{titles.get(link[1], link[1])}]({link[1]}", markdown)


def tutorials(config: Any) -> list[Path]:
    """Return the examples that the navigation shows as tutorials."""
    pages = [page for section in config.nav for _, page in _pages(section)]
    return [ROOT / "examples" / f"{Path(page).stem}.py" for page in pages if page.startswith("tutorials/")]


def _example(name: str, titles: dict[str, str]) -> str:
    """Return a link to a tutorial; an example that is no page is named."""
    page = f"tutorials/{name}.md"
    return f"[{titles[page]}]({page})" if page in titles else f"`examples/{name}.py`"


def _pages(item: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (title, page) of an entry of the navigation."""
    for title, value in item.items():
        if isinstance(value, str):
            yield title, value
        else:
            for entry in value:
                yield from _pages(entry)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Complete a page: see `_complete`."""
    return _complete(output, "../" * page.url.count("/"))


def on_post_template(output_content: str, **_: Any) -> str:
    """Complete a page of the theme, such as 404.html, which is served for any path."""
    return _complete(output_content, "/")


def _complete(html: str, root: str) -> str:
    """Load the script of the offline search from the site; label the search; let code blocks take the focus.

    Wide blocks scroll, which needs the focus where there is no mouse.
    """
    html = html.replace(OFFLINE_SEARCH, f"{root}assets/iframe-worker.js")
    html = html.replace(SEARCH_DIALOG, f'{SEARCH_DIALOG} aria-label="Search"')
    return re.sub(r"<pre\b", '<pre tabindex="0"', html)


def on_post_build(**_: Any) -> None:
    """Warn of public names that api.md does not name and of those without a docstring."""
    text = (ROOT / "docs" / "api.md").read_text("utf-8")
    shown = set(re.findall(r"^::: supermask\.(\S+)", text, flags=re.MULTILINE))
    for name in sorted(public_names() - shown):
        log.warning(f"docs/api.md has no entry for the public name supermask.{name}.")
    for name in undocumented_names():
        log.warning(f"The public name supermask.{name} has no docstring.")


def tutorial_files(path: Path, cell_outputs: list[dict[str, str]]) -> dict[str, str | bytes]:
    """Return the page and the images of a tutorial with the outputs of its code cells, by file name."""
    cells = parse_cells(path.read_text("utf-8"))
    outputs = iter(cell_outputs)
    parts, images = [f"*Every cell of this page ran when the page was built: `python examples/{path.name}`.*"], {}
    for kind, source in cells:
        if kind == "markdown":
            parts.append(source)
            continue
        output = next(outputs)
        parts.append(f"```python\n{source}\n```")
        if output["text"]:
            parts.append(f"```text\n{output['text']}\n```")
        if "png" in output:
            image = f"{path.stem}-{len(images) + 1}.png"
            images[image] = base64.b64decode(output["png"])
            alt = output["alt"].partition("\n")[0].replace("[", "(").replace("]", ")")
            parts.append(f"![{alt}]({image})")
    # The title stays first.
    parts[0], parts[1] = parts[1].partition("\n")[0], f"{parts[0]}\n{parts[1].partition(chr(10))[2]}"
    return {f"{path.stem}.md": "\n\n".join(parts), **images}


def run_tutorials(paths: list[Path]) -> list[list[dict[str, str]]]:
    """Run the cells of tutorials, with warnings as errors; return their outputs. Raises PluginError if one fails."""
    environment = {k: v for k, v in os.environ.items() if k not in ("SUPERMASK_STORE", "OMP_NUM_THREADS")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-W", "error", str(Path(__file__).parent / "tutorial_cells.py"), *map(str, paths)]
    with tempfile.TemporaryDirectory() as folder:
        ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise PluginError(f"a tutorial failed:\n{ended.stderr}")
    outputs: list[list[dict[str, str]]] = json.loads(ended.stdout)
    return outputs


def public_names() -> set[str]:
    """Return the names in `supermask.__all__`, and those in `supermask.api.__all__` as `api.NAME`."""
    import supermask

    return {*supermask.__all__, *(f"api.{name}" for name in supermask.api.__all__)}


def undocumented_names() -> list[str]:
    """Return the public names, and the public attributes and methods of public classes, without a docstring."""
    package = griffe.load("supermask", search_paths=[str(ROOT)])
    missing: list[str] = []

    def visit(item: Any, name: str) -> None:
        item = item.final_target if item.is_alias else item
        if not item.docstring:
            missing.append(name)
        if item.is_class:
            for member in item.members.values():
                if not member.name.startswith("_") and not member.is_alias:
                    visit(member, f"{name}.{member.name}")

    for name in sorted(public_names()):
        visit(package[name], name)
    return missing
