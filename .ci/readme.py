"""Write README.md from nbs/index.ipynb with nbconvert (nbdev_readme would need Quarto).

    python .ci/readme.py          write it
    python .ci/readme.py --check  only say whether it is up to date (exit status 1 when it is not)

Hidden cells, directives and nbdev's own cells go; links to the notebooks are made to work from the
top level; tables
stay as HTML or Markdown. Pictures are refused: GitHub shows none that are embedded in a README.
"""

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "nbs" / "index.ipynb"
TARGET = ROOT / "README.md"
NOTICE = "<!-- Made from nbs/index.ipynb by 'make export': edit the notebook, not this file. -->"
DROPPED = {"hide", "default_exp", "export", "exporti", "include:false"}
PREFERRED = ("text/markdown", "text/html", "text/plain")
DIRECTIVE = re.compile(r"^#\s*\|\s*(.+?)\s*$", re.MULTILINE)
FENCE = re.compile(
    r"^(```.*)$", re.MULTILINE
)  # splits Markdown into text, fence, code, fence, text, ...
# nbconvert's own template, but for text outputs: fenced instead of indented, so that a list before
# them cannot swallow them.
TEMPLATE = """{% extends 'markdown/index.md.j2' %}
{% block stream %}
```
{{ output.text.rstrip() }}
```
{% endblock stream %}
{% block data_text scoped %}
```
{{ output.data['text/plain'].rstrip() }}
```
{% endblock data_text %}
"""


class ReadmeError(Exception):
    "The notebook holds what a README cannot show; the message says what and where."


def directives(
    source: str,
) -> set[str]:  # such as {'hide'} or {'echo:false'}; of `export name` only the first word
    "The directives of a cell."
    found = (directive.lower() for directive in DIRECTIVE.findall(source))
    return {
        re.sub(r"\s", "", directive) if ":" in directive else directive.split()[0]
        for directive in found
    }


def title_block(source: str) -> str:
    """The first cell, with its front matter (a raw cell's, or '- key: value' lines below the title)
    turned into heading and quote."""
    front = re.match(r"\s*---\s*\n(.*?)\n---\s*$", source, re.DOTALL)
    if not front:
        return re.sub(r"^- [\w-]+:.*\n?", "", source, flags=re.MULTILINE).strip()
    keys = dict(
        re.findall(
            r"""^(title|subtitle|description):\s*["']?(.*?)["']?\s*$""", front[1], re.MULTILINE
        )
    )
    quote = keys.get("subtitle") or keys.get("description")
    return f"# {keys.get('title', '')}" + (f"\n\n> {quote}" if quote else "")


def from_top_level(markdown: str, where: str) -> str:
    """Rewrite the relative links of a notebook in nbs/ so that they work from the top level; a link
    to nothing is an error."""

    def rewrite(match: re.Match) -> str:
        before, link, after = match.groups()
        path, mark, anchor = link.partition("#")
        if not path or re.match(r"[a-z][a-z0-9+.-]*:|/", path, re.IGNORECASE):
            return match[0]
        target = Path(os.path.normpath(NOTEBOOK.parent / path))
        if not target.is_relative_to(ROOT) or not target.exists():
            raise ReadmeError(
                f"{where} links to {link!r}, and there is no such file beside {NOTEBOOK.name}: "
                "correct the link"
            )
        return f"{before}{target.relative_to(ROOT).as_posix()}{mark}{anchor}{after}"

    parts = FENCE.split(markdown)
    parts[::4] = [re.sub(r"(\]\()([^)\s]+)(\))", rewrite, part) for part in parts[::4]]
    return "".join(parts)


def one_form(
    output, where: str
):  # the output with a single form, or None when it is not for a README
    "Choose the form that GitHub can show best, and refuse what it cannot show."
    if output.output_type == "error":
        raise ReadmeError(f"{where} ended in an error ({output.ename}): execute the notebook again")
    if output.output_type == "stream":
        return output if output.name == "stdout" else None
    if pictures := [mime for mime in output.data if mime.startswith("image/")]:
        raise ReadmeError(
            f"{where} has a picture ({pictures[0]}), which GitHub would not show: hide the cell, "
            "or move it to a chapter"
        )
    mime = next((mime for mime in PREFERRED if mime in output.data), None)
    if mime is None:
        return None
    data = output.data[mime]
    if (
        mime == "text/html"
    ):  # GitHub shows the content of <style> as text, and an empty line ends a block of HTML
        data = re.sub(r"<style\b.*?</style>", "", data, flags=re.DOTALL | re.IGNORECASE)
        data = "\n".join(line for line in data.splitlines() if line.strip())
    output.data = {mime: data}
    return output


def readme(path: Path = NOTEBOOK) -> str:
    "The text of README.md."
    notebook = nbformat.read(path, as_version=4)
    cells = []
    for number, cell in enumerate(notebook.cells):
        where = f"{path.name}, cell {number}"
        if cell.cell_type != "code":
            text = title_block(cell.source) if number == 0 else cell.source.strip()
            if cell.cell_type == "markdown" or number == 0:
                cells.append(nbformat.v4.new_markdown_cell(from_top_level(text, where)))
            continue
        flags = directives(cell.source)
        if flags & DROPPED or "nbdev_export(" in cell.source:
            continue
        outputs = (
            [] if "output:false" in flags else [one_form(output, where) for output in cell.outputs]
        )
        source = "\n".join(
            line for line in cell.source.splitlines() if not DIRECTIVE.match(line)
        ).strip()
        shown = "echo:false" not in flags and bool(source)
        cells.append(
            nbformat.v4.new_code_cell(
                source,
                outputs=[output for output in outputs if output],
                metadata={} if shown else {"transient": {"remove_source": True}},
            )
        )
    notebook.cells = cells
    notebook.metadata = {"language_info": {"name": "python"}}
    text, resources = MarkdownExporter(raw_template=TEMPLATE).from_notebook_node(notebook)
    parts = FENCE.split("\n".join(line.rstrip() for line in text.splitlines()))
    parts[::4] = [re.sub(r"\n{3,}", "\n\n", part) for part in parts[::4]]
    return f"{NOTICE}\n\n{''.join(parts).strip()}\n"


def main() -> (
    int
):  # exit status: 0, 1 when README.md is out of date, 2 when the notebook cannot be made into one
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="only compare")
    args = parser.parse_args()
    try:
        text = readme()
    except (ReadmeError, FileNotFoundError) as error:
        print(f"readme: {error}", file=sys.stderr)
        return 2
    if TARGET.is_file() and TARGET.read_text(encoding="utf-8") == text:
        return 0
    if args.check:
        print(
            "readme: README.md is not what nbs/index.ipynb gives: run 'make export'",
            file=sys.stderr,
        )
        return 1
    handle, part = tempfile.mkstemp(dir=ROOT, prefix=".README-")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(part, 0o644)
    os.replace(part, TARGET)
    return 0


if __name__ == "__main__":
    sys.exit(main())
