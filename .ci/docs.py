"""Render the site into _docs, with Quarto where it is on the PATH and else with smalldocs, from the
same _quarto.yml.

The notebooks are not run: the site shows their saved outputs. It is built aside, its internal links
are checked,
and only a complete site without a broken link replaces the one before.

    python .ci/docs.py              build the site
    python .ci/docs.py --check DIR  only check the links of a finished site
"""

import argparse
import ast
import contextlib
import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from native import without_native_messages
from nbdev import doclinks, processors, quarto, serve
from nbdev.config import get_config

ROOT = Path(__file__).resolve().parent.parent


class DocsError(Exception):
    "The site cannot be built, or is not whole; the message says why."


# ---------------------------------------------------------------- checking a finished site


class _Page(HTMLParser):
    "What a page offers to links (its ids) and what it links to."

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.ids, self.links = {"", "top"}, []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.update(attrs[key] for key in ("id", "name") if attrs.get(key))
        for key in ("href", "src", "poster"):
            if attrs.get(key):
                self.links.append(attrs[key])


def check_links(
    site: Path,  # the folder of a finished site
) -> list[str]:  # one sentence for each broken link, none for a whole site
    """Follow every internal link of every page: the file must be there, and the fragment must be an
    id in it."""
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    if not pages:
        raise DocsError(
            f"{site} holds no pages: expected at least index.html; run 'make docs' without --check"
        )
    links = [(path, link) for path, page in pages.items() for link in page.links]
    index = site / "search.json"
    if index.is_file():
        links += [(index, entry["href"]) for entry in json.loads(index.read_text(encoding="utf-8"))]
    found = (_problem(site, pages, path, link) for path, link in dict.fromkeys(links))
    return [problem for problem in found if problem]


def _problem(site: Path, pages: dict, path: Path, link: str) -> str:
    "What is wrong with one link; nothing for a link to another host."
    url = urlsplit(link.strip())
    if url.scheme or url.netloc:
        return ""
    where = path.relative_to(site).as_posix()
    target = path
    if url.path:
        if url.path.startswith("/"):
            return (
                f"{where}: the link {link!r} starts at the host's root, so it misses the "
                "site's own folder; make it relative"
            )
        target = Path(os.path.normpath(path.parent / unquote(url.path)))
        if not target.is_relative_to(site):
            return f"{where}: the link {link!r} leads out of the site"
        if target.is_dir():
            target /= "index.html"
        if not target.is_file():
            return f"{where}: the link {link!r} leads to a file that is not there"
    if target.suffix == ".html" and not {url.fragment, unquote(url.fragment)} & pages[target].ids:
        page = target.relative_to(site).as_posix()
        return f"{where}: the link {link!r} leads to an anchor that {page} does not have"
    return ""


# ---------------------------------------------------------------- rendering


def find_renderer() -> str:  # 'quarto' or 'smalldocs'
    "The program that renders; `DocsError` when there is none."
    if shutil.which("quarto"):
        return "quarto"
    if find_spec("smalldocs"):
        return "smalldocs"
    version = ".".join(map(str, sys.version_info[:2]))
    reason = (
        "smalldocs needs Python 3.11 or newer"
        if sys.version_info < (3, 11)
        else "smalldocs is missing from this environment"
    )
    raise DocsError(
        f"no renderer was found: quarto is not on the PATH, and {reason} (this is {version}); "
        "install Quarto from quarto.org, or build with Python 3.11 to 3.13: make VENV=.venv-docs "
        "PYTHON=python3.12 docs"
    )


class ShowDocs(processors.exec_show_docs):
    """Runs what `show_doc` needs, the exported cells and the cells that only import, and no cell
    that also does something else."""

    def __call__(self, cell):
        trees = (cell.parsed_() if cell.cell_type == "code" else None) or []
        does_more = not all(isinstance(tree, (ast.Import, ast.ImportFrom)) for tree in trees)
        needed = processors._show_docs(trees) or cell.directives_.keys() & {
            "export",
            "exports",
            "exporti",
            "exec_doc",
        }
        if needed or not does_more:
            super().__call__(cell)


class Filter(processors.FilterDefaults):
    "nbdev's processing of a notebook for the docs, with `ShowDocs`."

    def base_procs(self):
        return [
            ShowDocs if proc is processors.exec_show_docs else proc for proc in super().base_procs()
        ]


def process_notebooks() -> Path:  # the folder _proc, ready to be rendered
    """What nbdev_docs does before the rendering: settings, index of names, sidebar, and the
    notebooks with their API entries."""
    with contextlib.redirect_stdout(io.StringIO()):  # it says each time that _quarto.yml is ours
        quarto.refresh_quarto_yml()
    doclinks._build_modidx()
    quarto.nbdev_sidebar.__wrapped__()
    serve.FilterDefaults = Filter
    try:
        # A relative path: nbdev passes over every file that has a folder with a leading dot
        # anywhere in its path.
        with without_native_messages():
            folder = Path(serve.proc_nbs("nbs", force=True, n_workers=0))
    except Exception as error:
        raise DocsError(f"nbdev could not make the API entries of a notebook: {error}") from error
    for path in folder.rglob("*.ipynb"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for output in (output for cell in notebook["cells"] for output in cell.get("outputs", [])):
            if "text/markdown" in output.get("data", {}):
                output["data"]["text/markdown"] = unlink_code(
                    "".join(output["data"]["text/markdown"])
                )
        path.write_text(json.dumps(notebook), encoding="utf-8")
    return folder


def unlink_code(markdown: str) -> str:  # the same, with plain names between code fences
    """Take back the Markdown links that nbdev puts on names in the comments of a signature, where
    they would show as text."""
    parts = re.split(
        r"^(```.*)$", markdown, flags=re.MULTILINE
    )  # text, fence, code, fence, text, ...
    for number in range(2, len(parts), 4):
        parts[number] = re.sub(r"\[(`[^`\n]+`)\]\(https?://[^)\s]+\)", r"\1", parts[number])
    return "".join(parts)


def render_quarto(folder: Path) -> None:
    "Render with Quarto."
    done = subprocess.run(["quarto", "render", "--no-cache", "--to", "html"], cwd=folder)
    if done.returncode:
        raise DocsError(f"quarto ended with status {done.returncode}; its messages stand above")


# smalldocs warns of what is seen to elsewhere here, and of settings that only Quarto needs.
KNOWN = (
    "output-file is not read|broken link|html-math-method|grid|tbl-colwidths|html-table-processing"
)


def render_smalldocs(folder: Path) -> None:
    """Render with smalldocs; nbdev's `output-file` (00_data.ipynb becomes data.html) is taught to
    it here."""
    from smalldocs.config import BuildError, ConfigError, load
    from smalldocs.site import Site

    class NumberlessSite(Site):
        def read(self, src: PurePosixPath):
            page = super().read(src)
            name = page.front.get("output-file")
            if name:
                page.out = src.with_name(str(name))
            return page

    try:
        site = NumberlessSite(load(folder), quiet=True)
        site.build()
    except (BuildError, ConfigError) as error:
        raise DocsError(f"smalldocs cannot render the site: {error}") from error
    for warning in site.warnings:
        if not re.search(KNOWN, warning):
            print(f"docs: warning: {warning}", file=sys.stderr)


FORMULA = re.compile(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', re.DOTALL)
KATEX = re.compile(r"<link[^>]*\bkatex[^>]*>|<script[^>]*\bkatex[^>]*></script>")


def write_formulas(page: str) -> str:  # the same page, with MathML, which browsers draw themselves
    """Turn LaTeX into MathML: smalldocs leaves it to a script from another host, and without that a
    reader sees raw LaTeX."""
    from latex2mathml.converter import convert

    def mathml(match: re.Match) -> str:
        try:
            return convert(
                html.unescape(match[2]), display="block" if match[1] == "display" else "inline"
            )
        except Exception as error:
            raise DocsError(
                f"the formula {match[2]!r} is not LaTeX that latex2mathml reads ({error!r}); "
                "write it differently"
            ) from error

    return KATEX.sub("", FORMULA.sub(mathml, page))


# Quarto adds these to each page with an output in HTML, for widgets; no page here has one.
WIDGETS = re.compile(
    r"""<script\b[^>]*\bsrc=["']https?://[^"']*/(?:jquery|require)[\w.-]*\.js["'][^>]*>\s*</script>"""
    r"""|<script\b[^>]*>\s*define\('jquery'[^<]*</script>"""
)
FONTS = re.compile(r"""@import\s*(url\()?["']?https://fonts\.googleapis\.com/[^)"']*["']?\)?;?""")
ICON = re.compile(r"""(<i\b[^>]*?)\s*\brole=["']img["']([^>]*>)""")
# What scrolls sideways can be reached with the keyboard; what does not is no stop on the way.
SCROLLING = """<script>addEventListener("load",function(){
var what="main :is(pre,pre>code,math,table,.cell-output-display,.sd-table)";
function mark(){document.querySelectorAll(what).forEach(function(e){
var s=e.scrollWidth>e.clientWidth+1&&/auto|scroll/.test(getComputedStyle(e).overflowX);
if(s){e.tabIndex=0}else{e.removeAttribute("tabindex")}})}
mark();addEventListener("resize",mark)})</script>"""


EMPTY_HEADER = re.compile(r"<th\b([^>]*)>(?:\s|&nbsp;)*</th>")
TOGGLE = re.compile(r"""(<a\b[^>]*)\brole=["']navigation["']""")
UNNAMED_NAV = re.compile(r"""<nav\b(?![^>]*\baria-label)""")


def make_accessible(page: str) -> str:  # the same page
    """Mend what axe, a checker for accessibility, finds in the pages of both renderers.

    An icon beside a text is for the eye alone, an empty corner heads nothing, a link that opens a
    section is a button, the top bar has a name, and what scrolls can be reached with the keyboard.
    """
    page = ICON.sub(r'\1 aria-hidden="true"\2', page)
    page = EMPTY_HEADER.sub(r"<td\1></td>", page)
    page = UNNAMED_NAV.sub('<nav aria-label="Site"', TOGGLE.sub(r'\1role="button"', page))
    before, end, after = page.rpartition("</body>")
    return f"{before}{SCROLLING}{end}{after}" if end and SCROLLING not in page else page


def rewrite(path: Path, change) -> None:
    "Write a file anew when `change` makes another text of it."
    text = path.read_text(encoding="utf-8")
    if (new := change(text)) != text:
        path.write_text(new, encoding="utf-8")


def make_self_contained(site: Path, address: str) -> None:
    """Links to the published site become relative, formulas MathML; nothing is asked of another
    host."""
    own = re.compile(rf'(<a\b[^>]*?\bhref="){re.escape(html.escape(address))}(?:/([^"]*))?"')
    for path in site.rglob("*.html"):
        up = "../" * len(path.parent.relative_to(site).parts)

        def change(page: str, up: str = up) -> str:
            page = own.sub(lambda m: f'{m[1]}{up}{m[2] or "index.html"}"', page)
            return make_accessible(write_formulas(WIDGETS.sub("", page)))

        rewrite(path, change)
    for path in site.rglob("*.css"):
        rewrite(path, lambda text: FONTS.sub("", text))


class _Asked(HTMLParser):
    "What a browser fetches from another host to show a page."

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.found = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        address = attrs.get("src") or (attrs.get("href") if tag == "link" else None) or ""
        shown = tag != "link" or attrs.get("rel") not in ("canonical", "next", "prev")
        if shown and re.match(r"(https?:)?//", address):
            self.found.append(f"<{tag}> of {address}")


def check_hosts(
    site: Path,  # the folder of a finished site
) -> list[str]:  # one sentence for each thing that comes from elsewhere
    "A page must need nothing from another host: scripts, styles, pictures, fonts."
    return [
        f"{path.relative_to(site).as_posix()} asks another host for a {found}; make it part of "
        "the site"
        for path in sorted(site.rglob("*.html"))
        for found in _Asked(path.read_text(encoding="utf-8")).found
    ]


def build() -> tuple[Path, str, int]:  # the site's folder, the renderer, the number of pages
    "Build the site aside, check it, move it into place."
    renderer = find_renderer()
    config = get_config()
    folder = process_notebooks()
    {"quarto": render_quarto, "smalldocs": render_smalldocs}[renderer](folder)
    site, target = folder / config.doc_path.name, ROOT / config.doc_path.name
    make_self_contained(site, config.doc_host + config.doc_baseurl)
    problems = check_links(site) + check_hosts(site)
    if problems:
        listing = "".join(f"\n  {problem}" for problem in problems)
        raise DocsError(
            f"{len(problems)} fault(s), so {target.name} was left as it was; the new site lies in "
            f"{site.relative_to(ROOT)}:{listing}"
        )
    if target.exists():
        target.rename(folder / "before")
    site.rename(target)
    shutil.rmtree(folder / "before", ignore_errors=True)
    return target, renderer, len(list(target.rglob("*.html")))


def main() -> int:  # exit status: 0, or 2 with a sentence on stderr
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--check",
        metavar="DIR",
        type=Path,
        help="only check the internal links of the finished site in DIR",
    )
    args = parser.parse_args()
    try:
        if args.check:
            problems = check_links(args.check.resolve())
            print(*problems, f"{len(problems)} broken link(s) in {args.check}", sep="\n")
            return 2 if problems else 0
        os.chdir(ROOT)
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        site, renderer, pages = build()
    except DocsError as error:
        print(f"docs: {error}", file=sys.stderr)
        return 2
    print(
        f"docs: {pages} pages, rendered by {renderer}, no broken links; see them with: python3 -m "
        f"http.server --directory {site.relative_to(ROOT)}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
