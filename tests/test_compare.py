"""`distilkit compare`: groups of seeds, differences with their intervals, and the same table for other programs."""

import csv
import io
import itertools
import json
import re
import shutil
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Result
from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import made
from rich.console import Console
from scipy import stats

from distilkit.cli import compare as command
from distilkit.cli import console
from distilkit.runs.run import Run
from distilkit.workflows.comparison import tables
from distilkit.workflows.comparison.recipe_groups import grouped, incomparable

Command = Callable[..., Result]
ONE = {"student_0": [6.2, 7.4, 5.0], "gated": [5.8, 6.6, 5.4]}
OTHER = [9.0, 7.8, 10.4]


@pytest.fixture
def six(one_run: Path, tmp_path: Path) -> Path:
    """A runs folder: ONE and ONE without its distillation term, three seeds of each."""
    runs = tmp_path / "runs"
    for seed in range(3):
        errors = {name: values[seed] for name, values in ONE.items()}
        root = {"data.root": f"/images/{seed}"}
        made(one_run, runs / f"one-{seed}", name=f"one-seed{seed}", seed=seed, errors=errors, settings=root)
        made(
            one_run,
            runs / f"other-{seed}",
            name="other",
            seed=seed,
            errors={"student_0": OTHER[seed]},
            settings={"method.distillation": False},
        )
    return runs


# Groups


def test_seeds_of_a_recipe_are_one_group_with_mean_and_deviation(six: Path, distilkit: Command) -> None:
    document = distilkit("compare", "--runs", six, "--json").json
    groups = {(group["group"], group["deployed"]): group for group in document["groups"]}
    assert set(groups) == {(label, name) for label in ("one", "other") for name in ("student_0", "gated")}
    for name, values in ONE.items():
        group = groups["one", name]
        assert group["seeds"] == [0, 1, 2]
        assert group["runs"] == [str(six / f"one-{seed}") for seed in range(3)]
        assert group["top1_error"]["mean"] == pytest.approx(statistics.fmean(values))
        assert group["top1_error"]["deviation"] == pytest.approx(statistics.stdev(values))
        assert group["top1_error"]["count"] == 3
        assert group["leader"] == (name == "student_0")
    assert len(document["rows"]) == 12
    assert document["remarks"] == []
    shown = distilkit("compare", "--runs", six).out
    assert re.search(r"^ one +6\.20 +1\.20 +3 ", shown, flags=re.MULTILINE)
    assert re.search(r"^ one: gated +5\.93 +0\.61 +3 ", shown, flags=re.MULTILINE)


def test_the_difference_and_its_interval_are_scipys(six: Path, distilkit: Command) -> None:
    document = distilkit("compare", "--runs", six, "--baseline", "other", "--json").json
    (pair,) = document["differences"]
    interval = stats.ttest_ind(ONE["student_0"], OTHER, equal_var=False).confidence_interval(0.95)
    assert (pair["group"], pair["baseline"], pair["seeds"]) == ("one", "other", [3, 3])
    assert pair["difference"] == pytest.approx(statistics.fmean(ONE["student_0"]) - statistics.fmean(OTHER))
    assert pair["interval95"] == pytest.approx([interval.low, interval.high])
    assert pair["conclusive"] == (not interval.low <= 0 <= interval.high)
    shown = distilkit("compare", "--runs", six, "--baseline", "other").out
    assert re.search(rf"^ one +-2\.87 +{interval.low:.2f} to {interval.high:.2f} +3, 3", shown, flags=re.MULTILINE)


def test_without_a_baseline_every_pair_is_there(
    six: Path, one_run: Path, baseline_run: Path, distilkit: Command
) -> None:
    made(baseline_run, six / "third", name="third")
    document = distilkit("compare", "--runs", six, "--json").json
    pairs = {frozenset((pair["group"], pair["baseline"])) for pair in document["differences"]}
    assert pairs == {frozenset(pair) for pair in itertools.combinations(("one", "other", "third"), 2)}
    lonely = [pair for pair in document["differences"] if "third" in (pair["group"], pair["baseline"])]
    for pair in lonely:
        assert pair["interval95"] is None
        assert pair["difference"] is not None
        assert "one seed: nothing can be concluded" in pair["reason"]
        assert not pair["conclusive"]
    assert "one seed: nothing can be concluded" in distilkit("compare", "--runs", six).out


def test_one_seed_of_each_is_shown_run_by_run_and_nothing_is_concluded(
    one_run: Path, baseline_run: Path, distilkit: Command
) -> None:
    shown = distilkit("compare", one_run, baseline_run).out
    assert "95 %" in shown
    assert "one seed of each recipe: nothing can be concluded" in shown
    assert "dev." not in shown
    alone = distilkit("compare", one_run).out
    assert "nothing can be concluded" not in alone


def test_each_run_has_its_row_where_that_is_asked_for(six: Path, distilkit: Command) -> None:
    shown = distilkit("compare", "--runs", six, "--each").out
    for value in (*ONE["student_0"], *ONE["gated"], *OTHER):
        assert f" {value:.2f} " in shown
    assert "dev." not in shown


def test_equal_figures_of_all_seeds_give_no_interval(one_run: Path, tmp_path: Path, distilkit: Command) -> None:
    for seed, name in itertools.product(range(2), "ab"):
        made(
            one_run,
            tmp_path / f"{name}{seed}",
            name=name,
            seed=seed,
            errors={"student_0": 5.0},
            settings={"method.temperature": 2.0 if name == "a" else 4.0},
        )
    (pair,) = distilkit("compare", "--runs", tmp_path, "--json").json["differences"]
    assert pair["interval95"] is None
    assert "no spread over seeds" in pair["reason"]


def test_a_seed_that_was_trained_twice_counts_once_and_is_said(six: Path, one_run: Path, distilkit: Command) -> None:
    made(one_run, six / "again", name="one", seed=1, errors={"student_0": 20.0}, created="2036-01-01T00:00:00+00:00")
    document = distilkit("compare", "--runs", six, "--json").json
    group = next(group for group in document["groups"] if group["group"] == "one" and group["leader"])
    assert group["seeds"] == [0, 1, 2]
    assert group["top1_error"]["mean"] == pytest.approx(statistics.fmean([6.2, 20.0, 5.0]))
    assert group["repeated"] == [str(six / "one-1")]
    assert any("seed 1 was trained more than once" in remark["text"] for remark in document["remarks"])


def test_other_test_images_are_neither_averaged_nor_subtracted(six: Path, one_run: Path, distilkit: Command) -> None:
    made(one_run, six / "elsewhere", name="one", seed=3, fingerprints={"test": "f" * 64})
    document = distilkit("compare", "--runs", six, "--json").json
    labels = {group["group"]: group["seeds"] for group in document["groups"]}
    (odd,) = (label for label, seeds in labels.items() if seeds == [3])
    assert odd == "one (test data=ffffffff)"
    assert labels["other"] == [0, 1, 2]
    for pair in document["differences"]:
        if odd in (pair["group"], pair["baseline"]):
            assert (pair["comparable"], pair["difference"], pair["interval95"]) == (False, None, None)
            assert pair["reason"] == "other test images"
    (remark,) = (remark for remark in document["remarks"] if remark["kind"] == "test-images")
    assert "not tested on the same images" in remark["text"]
    assert odd in remark["groups"]
    assert "not tested on the same images" in distilkit("compare", "--runs", six).out


def test_other_training_images_are_said(six: Path, one_run: Path, distilkit: Command) -> None:
    made(one_run, six / "elsewhere", name="one", seed=3, fingerprints={"train": "e" * 64})
    document = distilkit("compare", "--runs", six, "--json").json
    assert all(pair["comparable"] for pair in document["differences"])
    (remark,) = document["remarks"]
    assert remark["kind"] == "data"
    assert any("eeeeeeee" in label for label in remark["groups"])


def test_held_out_images_follow_the_seed_and_split_no_group(
    baseline_run: Path, tmp_path: Path, distilkit: Command
) -> None:
    for seed in range(2):
        prints = {"train": f"{seed}" * 64, "validation": f"{seed}" * 64}
        made(baseline_run, tmp_path / f"{seed}", seed=seed, fingerprints=prints)
    (group,) = distilkit("compare", "--runs", tmp_path, "--json").json["groups"]
    assert group["seeds"] == [0, 1]


def test_every_seed_may_have_its_own_teacher(one_run: Path, tmp_path: Path) -> None:
    teachers = [made(one_run, tmp_path / f"teacher-{seed}", seed=seed) for seed in range(2)]
    other = made(one_run, tmp_path / "teacher-other", settings={"train.epochs": 3})
    taught = [
        made(one_run, tmp_path / f"{index}", name="taught", seed=index, settings={"teacher.run": str(path)})
        for index, path in enumerate([*teachers, other])
    ]
    groups = grouped([Run.open(path) for path in taught])
    assert [group.seeds for group in groups] == [(0, 1), (2,)]
    for teacher in (*teachers, other):
        shutil.rmtree(teacher)
    gone = "runs/teach-20260101T000000Z", "runs/teach-20260202T000000Z"
    named = [
        made(one_run, tmp_path / f"gone{seed}", seed=seed, settings={"teacher.run": folder})
        for seed, folder in enumerate(gone)
    ]
    assert len(grouped([Run.open(path) for path in named])) == 1


def test_a_recipe_changed_in_its_middle_is_another(one_run: Path, tmp_path: Path) -> None:
    paths = [
        made(one_run, tmp_path / "a"),
        made(one_run, tmp_path / "b", seed=1, recipe_changes=[{"after": "step_3", "changes": ["train.epochs ..."]}]),
    ]
    assert len(grouped([Run.open(path) for path in paths])) == 2


def test_labels_name_what_tells_recipes_apart_and_no_more(one_run: Path, tmp_path: Path) -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"method.temperature": 4.0},
        {"optimizer.lr": 0.2, "optimizer.momentum": 0.8},
        {"method.temperature": 4.0, "optimizer.lr": 0.2, "optimizer.momentum": 0.8},
    ]
    runs = [Run.open(made(one_run, tmp_path / f"{index}", settings=changes)) for index, changes in enumerate(variants)]
    labels = [group.label for group in grouped(runs)]
    assert labels == [
        "tiny (temperature=3.0, lr=0.05)",
        "tiny (temperature=4.0, lr=0.05)",
        "tiny (temperature=3.0, lr=0.2)",
        "tiny (temperature=4.0, lr=0.2)",
    ]
    # Most of three share it: it is not said of them.
    assert [group.label for group in grouped(runs[:2] + runs[:1])] == [
        "tiny (temperature=3.0)",
        "tiny (temperature=4.0)",
    ]
    third = Run.open(made(one_run, tmp_path / "third", settings={"train.epochs": 9}))
    assert [group.label for group in grouped([*runs[:2], third])] == [
        "tiny",
        "tiny (temperature=4.0)",
        "tiny (epochs=9)",
    ]


_CHANGES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 3),
        "temperature": st.sampled_from([1.0, 3.0]),
        "lr": st.sampled_from([0.05, 0.1]),
        "root": st.sampled_from(["data", "/elsewhere"]),
        "name": st.sampled_from(["tiny", "other"]),
        "print": st.sampled_from("ab"),
    }
)


@settings(max_examples=40, deadline=None)
@given(chosen=st.lists(_CHANGES, min_size=1, max_size=12), order=st.randoms(use_true_random=False))
def test_groups_part_the_runs_under_unique_labels(one_run: Path, chosen: list[dict[str, Any]], order: Any) -> None:
    known = Run.open(one_run)
    runs = []
    for index, changes in enumerate(chosen):
        recipe = known.recipe.model_copy(
            update={
                "name": changes["name"],
                "train": known.recipe.train.model_copy(update={"seed": changes["seed"]}),
                "data": known.recipe.data.model_copy(update={"root": changes["root"]}),
                "method": known.recipe.method.model_copy(update={"temperature": changes["temperature"]}),
                "optimizer": known.recipe.optimizer.model_copy(update={"lr": changes["lr"]}),
            }
        )
        data = known.record["data"] | {"fingerprints": {"train": "t", "test": changes["print"] * 64}}
        runs.append(Run(Path(str(index)), recipe, known.record | {"seed": changes["seed"], "data": data}))
    groups = grouped(runs)
    assert sorted(run.path for group in groups for run in group.runs) == sorted(run.path for run in runs)
    assert len({group.label for group in groups}) == len(groups)
    by_path = {
        run.path: (changes["temperature"], changes["lr"], changes["print"])
        for run, changes in zip(runs, chosen, strict=True)
    }
    parts = [{by_path[run.path] for run in group.runs} for group in groups]
    assert all(len(part) == 1 for part in parts)
    assert len(set(map(frozenset, parts))) == len(groups)
    shuffled = list(runs)
    order.shuffle(shuffled)
    assert {frozenset(run.path for run in group.runs) for group in grouped(shuffled)} == {
        frozenset(run.path for run in group.runs) for group in groups
    }
    for group in groups:
        assert len(set(group.seeds)) == len(group.trainings)
    for ours, theirs in itertools.product(groups, repeat=2):
        assert (incomparable(ours.runs[0], theirs.runs[0]) is None) == (
            by_path[ours.runs[0].path][2] == by_path[theirs.runs[0].path][2]
        )


# What is typed


def test_a_baseline_is_named_by_its_label_or_its_recipe(six: Path, one_run: Path, distilkit: Command) -> None:
    for named in ("other", "one", "one-seed1"):
        document = distilkit("compare", "--runs", six, "--baseline", named, "--json").json
        assert document["baseline"] == named.removesuffix("-seed1")
    missing = distilkit("compare", "--runs", six, "--baseline", "othr", "--json")
    assert missing.status == 2
    assert "there are: one; other" in missing.json["error"]["message"]
    assert "'other'" in missing.json["error"]["hint"]
    made(one_run, six / "twin", name="other", seed=0, settings={"method.temperature": 9.0})
    either = distilkit("compare", "--runs", six, "--baseline", "other")
    assert either.status == 2
    assert "could be any of" in either.err
    assert "temperature=9.0" in either.err
    label = re.findall(r"--baseline '(.*)'", either.err)[0]
    assert distilkit("compare", "--runs", six, "--baseline", label).status == 0


def test_seeds_that_were_trained_in_two_precisions_are_said_to_be(
    one_run: Path, tmp_path: Path, distilkit: Command
) -> None:
    for seed, precision in enumerate(("fp32", "bf16")):
        made(one_run, tmp_path / "runs" / f"a{seed}", name="a", seed=seed, settings={"train.precision": precision})
    either = distilkit("compare", "--runs", tmp_path / "runs", "--baseline", "a", "--json")
    assert either.status == 2
    assert "precision=bf16" in either.json["error"]["message"]
    assert "--set train.precision=fp32" in either.json["error"]["hint"]


def test_rows_are_sorted_by_what_is_asked(six: Path, distilkit: Command) -> None:
    for key, figure in (("error", "top1_error"), ("parameters", "parameters"), ("train-flops", "train_flops")):
        document = distilkit("compare", "--runs", six, "--sort", key, "--json").json
        values = [row[figure] for row in document["rows"]]
        assert values == sorted(values)
        means = [group[figure] for group in document["groups"]]
        means = [mean["mean"] if isinstance(mean, dict) else mean for mean in means]
        assert means == sorted(means)
    pairs = distilkit("compare", "--runs", six, "--sort", "error", "--json").json["differences"]
    assert [(pair["group"], pair["baseline"]) for pair in pairs] == [("other", "one")], "the lower error goes first"
    assert distilkit("compare", "--runs", six, "--sort", "luck").status == 2


def test_two_formats_at_once_are_refused_and_json_is_one_of_them(six: Path, distilkit: Command) -> None:
    both = distilkit("compare", "--runs", six, "--json", "--format", "csv")
    assert both.status == 2
    assert "--format csv" in both.err
    assert (
        distilkit("compare", "--runs", six, "--format", "json").json
        == distilkit("compare", "--runs", six, "--json").json
    )
    for arguments in (("--format", "json"), ("--format=json",)):
        failed = distilkit("compare", "--runs", six / "nowhere", *arguments)
        assert failed.status == 2
        assert failed.json["error"]["hint"]


@pytest.mark.parametrize("format", ["table", "markdown", "csv", "latex", "json"])
def test_output_holds_what_would_be_printed(format: str, six: Path, tmp_path: Path, distilkit: Command) -> None:
    printed = distilkit("compare", "--runs", six, "--format", format)
    file = tmp_path / "written"
    written = distilkit("compare", "--runs", six, "--format", format, "--output", file)
    assert (printed.status, written.status) == (0, 0)
    assert written.out == ""
    assert str(file) in written.err
    assert file.read_text() == printed.out
    refused = distilkit("compare", "--runs", six, "--format", format, "--output", tmp_path / "no" / "where")
    assert refused.status == 2
    assert "cannot be written" in refused.err


# The table for other programs


def test_the_figures_of_the_csv_are_those_of_the_runs(six: Path, distilkit: Command) -> None:
    rows = list(csv.DictReader(io.StringIO(distilkit("compare", "--runs", six, "--each", "--format", "csv").out)))
    assert len(rows) == 12
    for row in rows:
        record = json.loads((Path(row["run"]) / "run.json").read_text())
        errors = record["final"]["errors"][row["deployed"]]
        assert float(row["top1_error"]) == pytest.approx(errors["top1"], abs=1e-6)
        assert float(row["top5_error"]) == pytest.approx(errors["top5"], abs=1e-6)
        what = "ensemble" if row["deployed"] == "gated" else "deploy"
        for figure in ("parameters", "flops", "activations", "bytes"):
            assert int(row[figure]) == record[figure][what]
        assert int(row["train_flops"]) == record["flops"]["train"]
        assert (int(row["seed"]), row["architecture"]) == (record["seed"], "resnet8")
        assert float(row["interval95_low"]) < errors["top1"] < float(row["interval95_high"])
    grouped_rows = list(
        csv.DictReader(io.StringIO(distilkit("compare", "--runs", six, "--baseline", "other", "--format", "csv").out))
    )
    first = grouped_rows[0]
    assert (first["group"], first["deployed"], first["seeds"]) == ("one", "student_0", "0 1 2")
    assert float(first["top1_error_deviation"]) == pytest.approx(statistics.stdev(ONE["student_0"]), abs=1e-6)
    interval = stats.ttest_ind(ONE["student_0"], OTHER, equal_var=False).confidence_interval(0.95)
    assert float(first["difference_low"]) == pytest.approx(interval.low, abs=1e-6)
    assert [row["difference"] != "" for row in grouped_rows] == [True, False, False, False]


def test_csv_says_where_the_pairs_are(six: Path, distilkit: Command) -> None:
    assert "--baseline" in distilkit("compare", "--runs", six, "--format", "csv").err


def test_markdown_has_both_tables_with_their_figures(six: Path, distilkit: Command) -> None:
    text = distilkit("compare", "--runs", six, "--format", "markdown").out
    blocks = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 2
    for block in blocks:
        assert len({line.count(" | ") for line in block.splitlines()}) == 1
    assert "| one | student\\_0 | 6.20 | 1.20 | 3 |" in blocks[0]
    assert "| other minus one | +2.87 |" in blocks[1]


def _latex_cells(text: str) -> list[list[str]]:
    """The rows of every table, as LaTeX reads them; fails on what it would choke on."""
    assert text.startswith("%")
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    environments = re.findall(r"\\(begin|end)\{(\w+)\}", body)
    open_: list[str] = []
    for kind, name in environments:
        if kind == "begin":
            open_.append(name)
        else:
            assert open_.pop() == name
    assert open_ == []
    depth = 0
    for token in re.findall(r"\\.|[{}]", body):
        depth += {"{": 1, "}": -1}.get(token, 0)
        assert depth >= 0
    assert depth == 0
    assert len(re.findall(r"(?<!\\)\$", body)) % 2 == 0
    # Nothing that is not escaped, apart from what stands between cells.
    assert not re.search(r"(?<!\\)[#%~^_]", body)
    known = {
        *(
            "begin",
            "end",
            "centering",
            "caption",
            "toprule",
            "midrule",
            "bottomrule",
            "par",
            "smallskip",
            "footnotesize",
        ),
        *("textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar", "textquotedbl"),
        "textasciigrave",
    }
    assert set(re.findall(r"\\([A-Za-z]+)", body)) <= known
    rows = []
    for form, inside in re.findall(r"\\begin\{tabular\}\{(\w+)\}\n(.*?)\\end\{tabular\}", body, flags=re.DOTALL):
        for line in inside.splitlines():
            if line in (r"\toprule", r"\midrule", r"\bottomrule"):
                continue
            assert line.endswith(r" \\")
            cells = re.split(r" (?<!\\)& ", line.removesuffix(r" \\"))
            assert len(cells) == len(form)
            rows.append(cells)
    return rows


def test_latex_is_whole_and_has_the_figures(six: Path, distilkit: Command) -> None:
    rows = _latex_cells(distilkit("compare", "--runs", six, "--format", "latex").out)
    assert ["one", "student\\_0", "6.20", "1.20", "3"] in [row[:5] for row in rows]
    assert ["other minus one", "+2.87"] in [row[:2] for row in rows]
    against = _latex_cells(distilkit("compare", "--runs", six, "--format", "latex", "--baseline", "other").out)
    assert [row[5] for row in against if row[:2] == ["one", "student\\_0"]] == ["$-$2.87"]


_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=30) | st.text(
    "\\{}$&%#_~^<>|\"'`[]*-, ab1\n", max_size=20
)


def _plain(text: str) -> str:
    return " ".join(text.split())


def _read_latex(text: str) -> str:
    """What LaTeX sets for what `escape_latex` writes: a strict reader of that little language."""
    words = {
        "textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textless": "<", "textgreater": ">",
        "textbar": "|", "textquotedbl": '"', "textasciigrave": "`",
    }  # fmt: skip
    read, place = "", 0
    while place < len(text):
        if found := re.match(r"\\([a-z]+)\{\}", text[place:]):
            read += words[found[1]]
        elif (found := re.match(r"\\([{}$&%#_])", text[place:])) or (found := re.match(r"\{([\[\]*])\}", text[place:])):
            read += found[1]
        elif found := re.match(r"\{\}", text[place:]):
            pass
        else:
            found = re.match(r"[^\\{}$&%#_~^<>|\"`\[\]*]", text[place:])
            assert found is not None, text[place:]
            # Two of these in a row would be one sign.
            assert not (found[0] in "-'," and text[place + 1 : place + 2] == found[0])
            read += found[0]
        place += len(found[0])
    return read


@settings(max_examples=300, deadline=None)
@given(_TEXT)
def test_latex_sets_every_text_as_it_stands(text: str) -> None:
    assert _read_latex(tables.escape_latex(text)) == _plain(text)


@settings(max_examples=300, deadline=None)
@given(_TEXT)
def test_markdown_shows_every_text_as_it_stands(text: str) -> None:
    escaped = tables.escape_markdown(text)
    assert not re.search(r"(?<!\\)(?:\\\\)*\|", escaped)
    assert "\n" not in escaped
    assert re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", escaped) == _plain(text)


@settings(max_examples=200, deadline=None)
@given(st.lists(_TEXT, min_size=2, max_size=4))
def test_csv_gives_back_what_it_was_given(cells: list[str]) -> None:
    columns = [str(place) for place in range(len(cells))]
    text = tables.csv_text([dict(zip(columns, cells, strict=True))], columns)
    assert list(csv.reader(io.StringIO(text, newline=""))) == [columns, cells]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex here")
def test_latex_compiles(six: Path, tmp_path: Path, distilkit: Command) -> None:
    packages = r"\usepackage[T1]{fontenc}\usepackage{textcomp}\usepackage{booktabs}"
    table = distilkit("compare", "--runs", six, "--format", "latex").out
    (tmp_path / "a.tex").write_text(rf"\documentclass{{article}}{packages}\begin{{document}}{table}\end{{document}}")
    done = subprocess.run(["pdflatex", "-halt-on-error", "a.tex"], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


# In a terminal


@pytest.mark.parametrize("arguments", [(), ("--each",), ("--baseline", "other")], ids=str)
def test_the_tables_fit_eighty_columns(
    arguments: tuple[str, ...], six: Path, monkeypatch: pytest.MonkeyPatch, distilkit: Command
) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, width=80, force_terminal=True, color_system=None, highlight=False)
    monkeypatch.setattr(console, "stdout", terminal)
    assert distilkit("compare", "--runs", six, *arguments).status == 0
    lines = screen.getvalue().splitlines()
    heads = [line for line in lines if "top-1" in line and "MB" in line]
    assert heads
    assert all(len(line) <= 80 for line in lines if line.startswith(" "))
    assert not any("…" in line for line in lines)
    for mean in ("6.20",) if not arguments or arguments[0] == "--baseline" else ("7.40", "10.40"):
        assert any(mean in line for line in lines)


def test_many_pairs_are_not_poured_into_a_terminal(
    six: Path, one_run: Path, monkeypatch: pytest.MonkeyPatch, distilkit: Command
) -> None:
    monkeypatch.setattr(command, "MOST_PAIRS", 0)
    screen = io.StringIO()
    terminal = Console(file=screen, width=80, force_terminal=True, color_system=None, highlight=False)
    monkeypatch.setattr(console, "stdout", terminal)
    distilkit("compare", "--runs", six)
    assert "1 pairs of recipes: choose one" in screen.getvalue()
    assert "other minus one" not in screen.getvalue()
