"""The documentation site: what is generated is the present, it builds strictly, and nothing comes from outside."""

import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from browser import WatchedPage

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TOOLS = DOCS / "tools"
NEEDS = ("zensical", "mkdocstrings", "latex2mathml")


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Any:
    """docs/tools/ as a place to import from."""
    monkeypatch.syspath_prepend(str(TOOLS))
    return lambda name: runpy.run_path(str(TOOLS / f"{name}.py"))


def test_what_pages_take_from_the_program_is_the_present_one(tools: Any) -> None:
    stale = [str(file.relative_to(ROOT)) for file in tools("renew")["stale"]()]
    assert stale == [], "renew these with: python docs/tools/renew.py"


def test_a_stale_page_would_be_seen(tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from distilkit.cli import train

    monkeypatch.setattr(train.train, "__doc__", "Something else.")
    monkeypatch.setattr("typer.models.CommandInfo.help", None, raising=False)
    (text,) = tools("commands")["drawn"]().values()
    assert "Something else." in text
    assert text != (DOCS / "commands.md").read_text(encoding="utf-8")


def test_every_command_and_option_is_on_the_page_of_commands() -> None:
    import typer

    from distilkit.cli import app

    page = (DOCS / "commands.md").read_text(encoding="utf-8")
    root: Any = typer.main.get_command(app)

    def missing(command: Any, name: str) -> list[str]:
        part = re.split(r"^#+ ", page, flags=re.MULTILINE)
        own = next((text for text in part if text.startswith(f"{name}\n")), "")
        names = [each for parameter in command.params for each in parameter.opts if each.startswith("-")]
        lost = [f"{name} {option}" for option in names if f"`{option}`" not in own and option not in ("--help", "-h")]
        return lost + [
            each
            for word, inner in getattr(command, "commands", {}).items()
            for each in missing(inner, f"{name} {word}")
        ]

    assert [each for word, command in root.commands.items() for each in missing(command, word)] == []


def test_every_method_has_its_picture_and_is_in_the_navigation(tools: Any) -> None:
    from distilkit import methods

    pictures = {file.stem for file in (DOCS / "pictures" / "methods").glob("*.svg")}
    assert pictures == {*methods.names(), "snapshot"} == set(tools("draw_methods")["PICTURES"])
    navigation = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    assert all(f'"methods/{name}.md"' in navigation for name in pictures)


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page() -> None:
    def pages(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [page for inner in (entry.values() if isinstance(entry, dict) else entry) for page in pages(inner)]

    named = pages(tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"])
    assert sorted(named) == sorted(file.relative_to(DOCS).as_posix() for file in DOCS.rglob("*.md"))


class _Links(HTMLParser):
    """What a page links to, what it loads by itself, and the places in it that can be linked to."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.places: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value for key, value in attrs if value is not None}
        self.places |= {values[key] for key in ("id", "name") if key in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(values.get("href", ""))
        self.loads += [values[key] for key in ("src", "poster", "data") if key in values]
        self.loads += [part.split()[0] for part in values.get("srcset", "").split(",") if part.strip()]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it."""
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"the extra `docs` is not installed: {', '.join(missing)} missing")
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("docs", "distilkit", "recipes"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "zensical.toml", folder)
    nowhere = "http://127.0.0.1:9"
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--clean", "--strict"],
        cwd=folder,
        env={**os.environ, "HTTP_PROXY": nowhere, "HTTPS_PROXY": nowhere},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


def _parsed(file: Path) -> _Links:
    page = _Links()
    page.feed(file.read_text(encoding="utf-8"))
    return page


def test_the_site_has_every_page_and_none_of_its_scripts(site: Path) -> None:
    built = {file.relative_to(site).with_suffix(".md").as_posix() for file in site.rglob("*.html")}
    pages = {file.relative_to(DOCS).as_posix() for file in DOCS.rglob("*.md")}
    assert pages - built == {"web-demo/README.md"}
    assert built - pages == {"404.md", "web-demo/index.md"}
    assert "A model in your browser" in (site / "web-demo" / "index.html").read_text(encoding="utf-8")
    assert not (site / "tools").exists()
    assert not list(site.rglob("*.py"))


def test_no_page_loads_anything_from_outside_and_every_link_leads_somewhere(site: Path) -> None:
    pages = {file: _parsed(file) for file in site.rglob("*.html")}
    assert len(pages) > 30
    faults = []
    for file, page in pages.items():
        if file.name == "404.html":  # whose addresses begin at the server's root
            continue
        for address in [*page.loads, *page.links]:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                if address in page.loads and parts.scheme != "data":
                    faults.append(f"{file.relative_to(site)} loads {address}")
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            if target.is_dir():
                target /= "index.html"
            if not target.is_file():
                faults.append(f"{file.relative_to(site)}: {address} is not there")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].places:
                faults.append(f"{file.relative_to(site)}: {address} has no such place")
    for file in site.rglob("*.css"):
        text = file.read_text(encoding="utf-8")
        faults += [f"{file.name} loads {url}" for url in re.findall(r"url\(['\"]?(https?:[^)]*)", text)]
    assert faults == []


def test_equations_are_numbered_mathml_and_none_is_left_as_text(site: Path) -> None:
    for file in (site / "methods").glob("*.html"):
        text = file.read_text(encoding="utf-8")
        assert re.search(r'<div class="equation" id="eq-1"><math ', text), file.name
        words = re.sub(r"<(script|code)\b.*?</\1>|<[^>]*>", "", text, flags=re.DOTALL)
        assert "$" not in words, file.name
        assert "\\mathrm" not in words, file.name
        assert "MathML" not in words, file.name


def test_equations_stand_in_lines_too(site: Path) -> None:
    text = (site / "methods" / "okddip.html").read_text(encoding="utf-8")
    assert re.search(r'<math [^>]*display="inline"><mrow><msub><mi>h</mi><mi>a</mi></msub></mrow></math> is what', text)


def test_the_reference_of_the_api_shows_docstrings(site: Path) -> None:
    text = (site / "api.html").read_text(encoding="utf-8")
    assert 'id="distilkit.load"' in text
    assert "from raw images to logits" in text


def test_the_reference_of_the_api_has_everything_that_the_library_offers(site: Path) -> None:
    import distilkit

    places = _parsed(site / "api.html").places
    homes = {"load": "distilkit", "losses": "distilkit.methods"}
    homes |= {name: f"distilkit.{home}" for name, home in distilkit._HOMES.items()}
    assert [name for name in distilkit.__all__ if f"{homes[name]}.{name}" not in places] == []


def test_a_photograph_of_a_report_shows_whole_figures(tmp_path: Path, page: WatchedPage, tools: Any) -> None:
    from PIL import Image

    figure = '<figure style="margin: 0; float: left; width: 40%; height: {}px; background: black"></figure>'
    rows = "".join(map(figure.format, (100, 150, 30)))
    report = tmp_path / "report.html"
    report.write_text(
        f'<body style="margin: 0"><p style="margin: 0; height: 700px">top</p><div class="pictures">{figure.format(300)}'
        f'</div><p style="clear: both; margin: 0; height: 500px"></p><div class="pictures">{rows}</div></body>'
    )
    tools("photograph")["photograph"](page.page, report, tmp_path / "top.png", tmp_path / "curves.png")
    with Image.open(tmp_path / "top.png") as top, Image.open(tmp_path / "curves.png") as curves:
        assert top.size == (1280, 1016)
        column = curves.convert("L").crop((600, 0, 601, curves.height)).tobytes()
    dark = [y for y, level in enumerate(column) if level == 0]
    assert (dark[0], len(dark)) == (16, 150), "the tallest of the first row, from its upper edge to its lower"


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_pages_are_quiet_and_fit_in_a_browser(site: Path, page: WatchedPage, width: int, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    for name in ("index.html", "methods/okddip.html", "recipes.html", "tutorial.html"):
        page.goto((site / name).as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{name} is wider than {width}"
        assert page.evaluate("[...document.images].every(each => each.complete && each.naturalWidth > 0)"), name
    assert page.faults.foreign == []


def test_an_equation_that_cannot_be_read_is_named() -> None:
    if importlib.util.find_spec("latex2mathml") is None:
        pytest.skip("the extra `docs` is not installed: latex2mathml missing")
    displayed = runpy.run_path(str(TOOLS / "mathml.py"))["displayed"]
    assert '<span class="number">(2)</span>' in displayed(r"x^2 \tag{2}")
    with pytest.raises(ValueError, match=r"cannot be read: '\\\\frac\{'"):
        displayed(r"\frac{")
