"""Names that strangers chose, through every command: nothing steers a terminal, begins a line, or is code elsewhere."""

import csv
import io
import json
import re
import shutil
import tomllib
import unicodedata
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
import yaml
from conftest import Result, train_tiny
from markdown_it import MarkdownIt
from PIL import Image
from rich.console import Console
from typer.main import get_command

from distilkit import cli, spelling
from distilkit.cli import console
from distilkit.errors import Fault, UserError
from distilkit.observer import Observer, TrainingPlan
from distilkit.report import checks as reports
from distilkit.report import figures
from distilkit.report.card import write_card
from distilkit.runs.run import Run
from distilkit.workflows.comparison import tables
from distilkit.workflows.deploy.export import export

UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
# A window title, a line of its own, a carriage return, a workflow command, ends of lines, right to left, nothing seen,
# a tab, red, and markup of Markdown, HTML, LaTeX and rich.
NASTY = (
    "\x1b]0;t\x07\nFORGED: 1\r\n::error::FORGED\u2028\u2029\x85\u202e\u200b\ufeff\t\x9b31m"
    "[b](http:\\x.y)<b>![i](x)|`#` **x** [red]$\\end{tabular}$ www.example.org"
)
FILE = NASTY[:-16].replace("/", "")
SPREADSHEET = ("=", "+", "-", "@", "\t=", "\uff1d")


def clean(text: str, *, lines: bool = True) -> str:
    """Fail on what a terminal would obey, nobody would see, or a line that a name has begun."""
    raw = {f"U+{ord(sign):04X}" for sign in text if sign != "\n" and unicodedata.category(sign) in UNSEEN}
    assert not raw, (raw, text)
    for line in text.split("\n") if lines else ():
        begun = line.strip(" |")
        assert not begun.startswith("FORGED"), text
        assert not re.match(r"::\w", begun), text
        assert "##[" not in line, text
    return text


# ---------------------------------------------------------------------------------------------------- the functions


def test_everything_that_is_unseen_is_spelled_out_and_nothing_else() -> None:
    for code in (*range(0x20000), *range(0xE0000, 0xE1000)):
        sign = chr(code)
        unseen = unicodedata.category(sign) in UNSEEN or code in (0xFFFE, 0xFFFF)
        assert (spelling.plain(sign) != sign) == unseen, hex(code)
    assert spelling.plain("a\x1b\n\r\t\u202e\udcff") == r"a\x1b\n\r\t\u202e\udcff"
    assert spelling.plain("a\n\x1bb", keep="\n") == "a\n\\x1bb"


@pytest.mark.parametrize(
    "name",
    [
        *(
            "student_0",
            "resnet32",
            "größe",
            "naïve café",
            "Ελληνικά",
            "你好",
            "日本語 ひらがな",
            "한국어",
            "עברית",
            "العربية",
        ),
        *("😀", "\U0001f469\u200d\U0001f52c", "\u2764\ufe0f\u200d\U0001f525", "\U0001f9d1\U0001f3fd\u200d\U0001f4bb"),
        *("\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u06a9\u062a\u0627\u0628\u200c\u0647\u0627"),  # books, Persian
        *("\u0d05\u0d35\u0d28\u0d4d\u200d", "\u0915\u094d\u200d\u0937"),  # Malayalam, Devanagari
        *(
            "C:\\images\\a.png",
            "std::vector::x",
            "aten::add, aten::mul",
            "a  b",
            "a\u00a0b",
            "torchvision:resnet18",
            "",
        ),
    ],
)
def test_names_in_ordinary_use_stay_as_they_are(name: str) -> None:
    assert spelling.plain(name) == name
    assert spelling.csv_cell(name) == name
    assert spelling.xml(name) == name
    assert spelling.github(name) == name
    assert UserError(name).args == (name,)


@pytest.mark.parametrize("name", ["a\u200db", "\u200d\U0001f469", "\U0001f469\u200d", "\u06a9\u200c\u200c", "a\u200c"])
def test_joiners_that_join_nothing_are_spelled_out(name: str) -> None:
    assert "\\u200" in spelling.plain(name)


@pytest.mark.parametrize("name", ["::error::x", " ::Warning file=a::x", "x ##[error]y", "::add-mask::x", "##[group]"])
def test_workflow_commands_are_none_any_more(name: str) -> None:
    spelled = spelling.plain(name)
    assert not re.match(r"\s*::", spelled)
    assert "##[" not in spelled
    assert spelled.replace(r"\x3a", ":").replace(r"\x23", "#") == name


@pytest.mark.parametrize("start", SPREADSHEET)
def test_no_cell_of_a_csv_is_a_formula(start: str) -> None:
    text = tables.spreadsheet_text(
        [{"name": f"{start}1+1", "figure": -1.5, "seeds": [1, 2]}], ("name", "figure", "seeds")
    )
    (_, row) = csv.reader(io.StringIO(text))
    assert not re.match(r"\s*[=+\-@\uff1d]", row[0])
    assert row[1:] == ["-1.5", "1 2"]
    clean(text)


def test_tables_for_programs_keep_their_rows() -> None:
    table = tables.Table(NASTY, (NASTY, NASTY), ((NASTY, "1.0"), ("a", NASTY)), NASTY)
    for text in (tables.markdown([table]), tables.latex([table])):
        clean(text)
    html = MarkdownIt("commonmark").enable("table").render(tables.markdown([table]))
    assert html.count("<tr>") == 3
    assert not re.search("<(a|b|img|h1)[ >]", html)
    assert "://" not in tables.markdown([tables.Table("t", ("a",), (("https://x.y",),))])


def test_errors_are_one_line_in_a_traceback_too() -> None:
    error = UserError(NASTY, NASTY, [Fault(NASTY, NASTY, NASTY, NASTY)])
    assert len(clean(str(error)).split("\n")) == 3
    assert error.problem == NASTY, "JSON has it as it is"


def test_checks_for_machines_hold_any_name() -> None:
    check = {"run": f"runs/{FILE}", "name": NASTY, "message": f"{NASTY}\udcff\ufffe\x00", "passed": False}
    root = ElementTree.fromstring(reports.junit([check, check | {"passed": True}], 1.0))
    for text in [*(value for each in root.iter() for value in each.attrib.values()), *root.itertext()]:
        clean(text.replace("\t", ""), lines=False)
    for line in reports.annotations([check, check | {"passed": True}]):
        clean(re.sub("^::(error|notice) title=", "", line))
        assert re.fullmatch(r"::(error|notice) title=[^:,\n]*::[^\r\n]*", line)


@pytest.mark.parametrize(
    "name", [NASTY, "`", "``a`", "a|b", " ", "_x_", "a *b*", "https://x.y", "x@y.example", ":smile:"]
)
def test_a_cards_names_are_text_or_code(name: str) -> None:
    reader = MarkdownIt("commonmark").enable("table")
    for shown in (spelling.markdown(name), spelling.markdown_code(name)):
        tokens = [
            each
            for token in reader.parse(f"# {shown}\n\n| a | b |\n|---|---|\n| {shown} | 1 |\n")
            for each in [token, *(token.children or ())]
        ]
        kinds = [token.type for token in tokens]
        assert kinds.count("tr_open") == 2, shown
        assert kinds.count("td_open") == 2, shown
        assert not {"link_open", "html_inline", "image", "em_open", "strong_open", "html_block"} & set(kinds), shown
        assert not any(re.search("://|@|www", token.content) for token in tokens if token.type == "text"), shown


@pytest.mark.parametrize(
    "name", ["student_0", "NVIDIA H200 (cuda:0)", "2.14.1+cu130", "größe 你好", "a.b:c", "mean_of_logits"]
)
def test_a_cards_ordinary_names_stay_as_they_are(name: str) -> None:
    assert spelling.markdown(name) == name
    assert spelling.markdown_code(name) == f"`{name}`"


def test_figures_hold_any_name() -> None:
    clean(figures.drawable(NASTY + "\ufffe\udcff"))


def test_links_in_a_card_lead_to_files_beside_it() -> None:
    assert spelling.markdown_target("exports/größe-1_a.card.md") == "exports/größe-1_a.card.md"
    (inline,) = (token for token in MarkdownIt().parse(f"[card]({spelling.markdown_target(FILE)})") if token.children)
    assert [token.type for token in inline.children or ()] == ["link_open", "text", "link_close"]


# ------------------------------------------------------------------------------------------------------- the terminal


def test_bars_tables_and_notes_in_a_terminal_obey_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=300, highlight=False)
    monkeypatch.setattr(console, "stderr", terminal)
    monkeypatch.setattr(console, "stdout", terminal)
    observer = console.TerminalObserver()
    errors = {NASTY: {"top1": 1.0, "top5": 0.0}}
    observer.training_started(TrainingPlan(NASTY, NASTY, NASTY, [NASTY], NASTY, NASTY, 1, 2, 1, 8, NASTY, NASTY))
    observer.steps_finished(1, 1, {"total": 1.0, NASTY: 1.0})
    observer.epoch_finished(
        {"epoch": 1, "lr": 0.1, "ramp": 1.0, "images_per_second": 1.0, "loss": {"total": 1.0}}
        | {split: {"errors": errors} for split in ("train", "validation", "test")}
    )
    observer.note(NASTY)
    observer.training_finished()
    observer.progress(NASTY, 1, 2)
    observer.progress(NASTY, 2, 2)
    console.print_table(NASTY, [NASTY, NASTY], [[NASTY, NASTY], [[NASTY, NASTY], NASTY]], [NASTY, NASTY])
    console.print_bars(NASTY, [NASTY], [([NASTY], 1.0)], NASTY)
    console.print_line(NASTY)
    console.print_code(NASTY.replace("\n", " "), "toml")
    console.report_usage_error(NASTY, "usage: x", NASTY, False)
    # What is drawn with, and nothing else.
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", screen.getvalue())
    assert not {sign for sign in shown if sign != "\n" and unicodedata.category(sign) in UNSEEN}
    assert shown.count("[red]") >= 10


# ----------------------------------------------------------------------------------------------------- every command


class Strange:
    """A training on images of hostile names, its run under a hostile name, and a run whose record is hostile."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.classes = sorted(start + FILE for start in ("=", "::error::"))
        self.photos = folder / f"photos{FILE}"
        self.file = folder / f"::error::{FILE}.onnx"
        draw = np.random.default_rng(0)
        for part in ("train", "val"):
            for name in self.classes:
                (self.photos / part / name).mkdir(parents=True)
                for place in range(4):
                    pixels = draw.integers(0, 255, (8, 8, 3)).astype(np.uint8)
                    file = self.photos / part / name / f"::notice::{place}{FILE[:40]}.png"
                    Image.fromarray(pixels).save(file, format="PNG")
        settings = ["data.dataset=image-folder", f"data.root={json.dumps(str(self.photos))}", "data.image_size=8"]
        settings += ["train.epochs=1", "train.batch_size=4", "tracking.name=none", "data.augment=none"]
        trained = train_tiny(folder, *settings)
        self.run = folder / "runs" / f"::error::{FILE}"
        trained.rename(self.run)
        self.change(
            self.run,
            device=NASTY,
            distilkit=NASTY,
            command=f"distilkit train {NASTY!r}",
            precision={"used": NASTY},
            uncounted={NASTY: 2},
            created=NASTY,
        )

    def exported(self) -> Path:
        """An exported file that holds the classes' names."""
        if not self.file.exists():
            # fmt: off
            export(
                self.run, self.run.parent, mode="single", format="onnx", member=None, members=False, checkpoint=None,
                output=self.file, data_root=None, opset=None, observer=Observer(),
            )
            # fmt: on
        return self.file

    @staticmethod
    def change(run: Path, **changed: Any) -> None:
        record = json.loads((run / "run.json").read_text())
        record["final"]["selected"]["rule"] = NASTY
        (run / "run.json").write_text(json.dumps(record | changed))


def renamed(value: Any, names: dict[str, str]) -> Any:
    """JSON in which these texts and keys have other names."""
    if isinstance(value, dict):
        return {names.get(key, key): renamed(inner, names) for key, inner in value.items()}
    if isinstance(value, list):
        return [renamed(inner, names) for inner in value]
    return names.get(value, value) if isinstance(value, str) else value


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Strange:
    return Strange(tmp_path_factory.mktemp("strange"))


@pytest.fixture
def hostile(strange: Strange, tmp_path: Path) -> Strange:
    """A copy of the run that may be changed, alone in a runs folder."""
    copy = Strange.__new__(Strange)
    copy.folder, copy.classes, copy.photos, copy.file = tmp_path, strange.classes, strange.photos, strange.file
    copy.run = Path(shutil.copytree(strange.run, tmp_path / "runs" / strange.run.name))
    return copy


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """Run a command and check both streams; all that is written to them, by libraries in C too."""
    for stream in ("stdout", "stderr"):  # where nothing is folded
        monkeypatch.setattr(console, stream, Console(stderr=stream == "stderr", highlight=False, width=4000))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, status: int | None = 0, tidy: bool = True) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert status is None or left.value.code == status, (arguments, out, err)
        if tidy:
            clean(out)
        clean(err)
        return Result(int(left.value.code or 0), out, err)

    return run


Said = Callable[..., Result]


def _init(strange: Strange, said: Said) -> None:
    said("init", strange.photos, "--yes", "--size", 8, "--epochs", 1, "--output", strange.folder / "r.toml")
    comments, values = (strange.folder / "r.toml").read_text("utf-8").split("\nname = ", 1)
    assert all(line.startswith("#") for line in clean(comments).split("\n"))
    assert "FORGED" in comments
    assert tomllib.loads(f"name = {values}")["data"]["root"].endswith(FILE)
    said("init", strange.folder / FILE, "--yes", status=2)


def _train(strange: Strange, said: Said) -> None:
    recipe = strange.folder / f"{FILE}.toml"
    shutil.copy(strange.run / "recipe.toml", recipe)
    said("train", recipe, "--dry-run", "--set", 'name="tiny"')
    said("train", "--resume", strange.run)
    for setting in ("model.architecture", "name", "tracking.name", "tracking.project", "data.dataset", "method.name"):
        said("train", recipe, "--dry-run", "--set", f"{setting}={json.dumps(NASTY)}", status=None)
    said("train", recipe, "--dry-run", "--set", f"{NASTY}=1", status=2)
    said("train", recipe, "--dry-run", "--set", f"data.root={json.dumps(NASTY)}", status=None)
    said("train", recipe, "--dry-run", "--set", f"teacher.run={json.dumps(NASTY)}", status=None)
    recipe.write_text(f"[{json.dumps(NASTY)}]\n{json.dumps(NASTY)} = 1\n")
    said("train", recipe, status=2)
    said("train", NASTY, status=2)


def _evaluate(strange: Strange, said: Said) -> None:
    result = said("evaluate", strange.run)
    assert "FORGED" in result.out
    exact = json.loads(said("evaluate", strange.run, "--json").out)
    assert sorted(exact["per_class_error"]) == strange.classes
    assert exact["run"] == str(strange.run)
    said("evaluate", strange.run, "--member", NASTY, status=2)
    said("evaluate", strange.run, "--checkpoint", NASTY, status=2)
    said("evaluate", strange.run, "--data", NASTY, status=2)
    said("evaluate", strange.folder / FILE, status=2)


def _ensemble_eval(strange: Strange, said: Said) -> None:
    said("ensemble-eval", strange.run)


def _prune_branches(strange: Strange, said: Said) -> None:
    said("prune-branches", strange.run, "--output", strange.folder / FILE)
    said("evaluate", strange.folder / FILE)


def _robustness(strange: Strange, said: Said) -> None:
    quick = ("--steps", 1, "--directions", 1, "--images", 4, "--max-increase", 100, "--at", 5)
    output, junit = strange.folder / FILE, strange.folder / "junit.xml"
    result = said("robustness", strange.run, *quick, "--junit", junit, "--output", output, "--inputs", "noise")
    assert "FORGED" in result.err
    for text in ElementTree.parse(junit).getroot().itertext():
        clean(text)
    for file in output.glob("*.svg"):
        ElementTree.parse(file)
        clean(file.read_text("utf-8"), lines=False)
    said("robustness", strange.run, "--thresholds", strange.folder / NASTY, status=2)


def _export(strange: Strange, said: Said) -> None:
    said("export", strange.run, "--mode", f"member:{NASTY}", status=2)
    said("export", strange.run, "--output", strange.run / "exports" / f"{FILE}.onnx")
    card(strange.run / "exports" / f"{FILE}.card.md")
    card(strange.run / "README.md")


def _predict(strange: Strange, said: Said) -> None:
    file = strange.exported()
    result = said("predict", file, strange.photos / "val")
    assert len(result.out.split("\n")) == 8 + 1
    exact = json.loads(said("predict", file, strange.photos / "val", "--json").out)
    assert {each["class"] for prediction in exact["predictions"] for each in prediction["top"]} == set(strange.classes)
    assert all(Path(each["image"]).is_file() for each in exact["predictions"])
    picture = Path(exact["predictions"][0]["image"]).name
    shutil.copy(exact["predictions"][0]["image"], picture)
    said("predict", file, picture, f"::error::{FILE}.png", "\udcff.png", status=2)
    said("predict", strange.folder / NASTY, picture, status=2)


def _push(strange: Strange, said: Said) -> None:
    file = strange.exported()
    said("push", file, "--to", strange.folder / "p", status=2)
    # Control characters are refused. A name without them is markup, and hidden.
    model = onnx.load(file)
    shown = "".join(sign for sign in NASTY if ord(sign) >= 32 and not 127 <= ord(sign) < 160)
    for entry in model.metadata_props:
        if entry.key == "classes":
            entry.value = json.dumps([shown, f"={shown}"])
        elif entry.key in ("member", "architecture"):
            entry.value = shown
    onnx.save(model, file.with_name(f"2{FILE}"))
    said("push", file.with_name(f"2{FILE}"), "--to", strange.folder / FILE)
    assert "FORGED" in card(strange.folder / FILE / "README.md")
    said("push", file, "--to", strange.folder / FILE, status=2)
    said("push", file, "--repo", NASTY, status=2)


def _pull(strange: Strange, said: Said) -> None:
    said("prune-branches", strange.run, "--output", strange.folder / FILE)
    said("pull", strange.folder / FILE, status=None)
    said("pull", strange.folder / FILE, "--to", strange.folder / f"2{FILE}", status=None)
    said("pull", NASTY, status=2)


def _compare(strange: Strange, said: Said) -> None:
    folder = papers(strange)
    said("compare", "--runs", folder)
    said("compare", "--runs", folder, "--baseline", NASTY, status=2)
    result = said("compare", "--runs", folder, "--format", "csv")
    rows = list(csv.reader(io.StringIO(result.out)))
    assert len(rows) == 1 + 4
    assert not [cell for row in rows[1:] for cell in row if re.match(r"\s*[=+@]|-\D", cell)]
    result = said("compare", "--runs", folder, "--format", "markdown")
    html = MarkdownIt("commonmark").enable("table").render(result.out)
    assert html.count("<tr>") == 1 + 4
    assert not re.search("<(a|b|img)[ >]", html)
    said("compare", "--runs", folder, "--format", "latex")
    said("compare", "--runs", folder, "--output", strange.folder / FILE)
    clean((strange.folder / FILE).read_text("utf-8"))


def _report(strange: Strange, said: Said) -> None:
    page = strange.folder / f"{FILE}.html"
    papers(strange)
    said("report", "--runs", strange.run.parent, "--output", page, "--device", "cpu", "--no-figures")
    text = page.read_text("utf-8")
    clean(text.replace("\t", " "), lines=False)
    tags: list[str] = []
    reader = HTMLParser()
    reader.handle_starttag = lambda tag, attributes: tags.append(tag)  # type: ignore[method-assign]
    reader.feed(text)
    assert not {"b", "i"} & set(tags)


def _runs(strange: Strange, said: Said) -> None:
    broken = strange.run.parent / f"2{FILE}"
    broken.mkdir()
    (broken / "run.json").write_text(json.dumps({NASTY: NASTY, "format": NASTY}))
    said("runs", "--runs", strange.run.parent)
    exact = json.loads(said("runs", "--runs", strange.run.parent, "--json").out)
    assert {each["run"] for each in exact["runs"]} == {str(strange.run), str(broken)}
    said("runs", "--runs", strange.folder / NASTY, status=None)
    said("runs", "--runs", strange.run.parent, "--method", NASTY, status=None)
    said("runs", "show", strange.run)
    (strange.run / f"::error::{FILE}").write_text("")
    said("runs", "show", strange.run)
    said("runs", "show", broken, status=2)
    said("runs", "prune", "--runs", strange.run.parent, "--dry-run", "--name", "*")
    said("runs", "prune", "--runs", strange.run.parent, "--yes", "--keep", 1)


def _recipes(strange: Strange, said: Said) -> None:
    recipe = strange.folder / f"{FILE}.toml"
    shutil.copy(strange.run / "recipe.toml", recipe)
    said("recipes", "copy", recipe, strange.folder / f"2{FILE}.toml")
    said("recipes", "copy", recipe, strange.folder / f"2{FILE}.toml", status=2)
    # A file's text is printed as it is where it may become a file again.
    assert said("recipes", "show", recipe, tidy=False).out == recipe.read_text("utf-8")
    said("recipes", "show", NASTY, status=2)
    said("recipes", "list", "--name", NASTY, status=None)


def _benchmark(strange: Strange, said: Said) -> None:
    said("benchmark", strange.exported(), "--batch", 1, "--repetitions", 1)
    said("benchmark", strange.folder / NASTY, status=2)


def _models(strange: Strange, said: Said) -> None:
    said("models", NASTY, status=2)
    said("models", f"torchvision:{NASTY}", status=2)
    said("models", f"{NASTY}:{NASTY}", status=2)
    said("models", "--filter", NASTY, status=None)


def _doctor(strange: Strange, said: Said) -> None:
    said("doctor", "--quick", "--runs", strange.folder / FILE, status=None)


def papers(strange: Strange) -> Path:
    """A runs folder of the run and another, without weights, whose ensemble has a hostile name; members are refused."""
    other = strange.run.parent / f"=3{FILE}"
    other.mkdir()
    shutil.copy(strange.run / "metrics.jsonl", other)
    recipe = (strange.run / "recipe.toml").read_text("utf-8")
    (other / "recipe.toml").write_text(recipe.replace("lr = 0.05", "lr = 0.06"), "utf-8")
    record = json.loads((strange.run / "run.json").read_text())
    (other / "run.json").write_text(json.dumps(renamed(record, {record["ensemble"]: f"={NASTY}"})))
    return strange.run.parent


def card(file: Path) -> str:
    """Fail where a name has become structure of a card: in its header, a heading, a row, a link, HTML; its text."""
    text = file.read_text("utf-8")
    clean(text)
    _, header, body = text.split("---\n", 2)
    known = {"library_name", "pipeline_tag", "tags", "datasets", "metrics", "model-index"}
    assert set(yaml.safe_load(header)) <= known
    reader = MarkdownIt("commonmark").enable("table")
    tokens = [each for token in reader.parse(body) for each in [token, *(token.children or ())]]
    kinds = [token.type for token in tokens]
    assert not {"html_inline", "image", "em_open", "strong_open"} & set(kinds), text
    assert all(
        token.content.startswith(("<!-- Written by distilkit", "<!-- end of"))
        for token in tokens
        if token.type == "html_block"
    )
    links = [str(token.attrs["href"]) for token in tokens if token.type == "link_open"]
    assert all(re.fullmatch(r"exports/[\w.%-]+\.card\.md", link) for link in links)
    headings = [tokens[place + 1].content for place, kind in enumerate(kinds) if kind == "heading_open"]
    assert set(headings[1:]) <= {
        *(
            "Errors on the test images, percent",
            "Spread over seeds, percent",
            "Costs",
            "Robustness",
            "Exports",
            "Errors",
        ),
        *("The 8-bit file", "Intended use"),
    }
    assert not any(re.search("://|www|@", token.content) for token in tokens if token.type == "text")
    return text


WALK: dict[str, Callable[[Strange, Said], None]] = {
    "init": _init,
    "train": _train,
    "evaluate": _evaluate,
    "ensemble-eval": _ensemble_eval,
    "prune-branches": _prune_branches,
    "robustness": _robustness,
    "export": _export,
    "predict": _predict,
    "push": _push,
    "pull": _pull,
    "compare": _compare,
    "report": _report,
    "runs": _runs,
    "recipes": _recipes,
    "benchmark": _benchmark,
    "models": _models,
    "doctor": _doctor,
}


def test_every_command_is_walked() -> None:
    assert set(get_command(cli.app).commands) == set(WALK)  # type: ignore[attr-defined]


SLOW = ("export", "predict", "push", "benchmark", "doctor")


@pytest.mark.parametrize("command", [pytest.param(name, marks=[pytest.mark.long] * (name in SLOW)) for name in WALK])
def test_no_name_is_obeyed_by_what_reads_a_commands_output(command: str, hostile: Strange, said: Said) -> None:
    WALK[command](hostile, said)


def test_a_runs_card_holds_names_and_no_structure(hostile: Strange) -> None:
    (hostile.run / "exports").mkdir()
    for ending in (".onnx", ".card.md"):
        (hostile.run / "exports" / f"{FILE}{ending}").write_text("")
    papers(hostile)
    texts = {run: card(write_card(Run.open(run))) for run in hostile.run.parent.iterdir()}
    assert "FORGED" in texts[hostile.run].partition("## Exports")[2]
