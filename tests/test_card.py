"""Model cards: valid metadata, the run's own figures, nothing of the machine, and the user's words stay."""

import json
import math
import re
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY, Result
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st

from distilkit.observer import Observer
from distilkit.report import card as cards
from distilkit.report.card import (
    HUB_DATASETS,
    TO_FILL_IN,
    intended_use,
    without_paths,
    write_card,
    write_export_card,
)
from distilkit.runs.run import PrunedModel, Run
from distilkit.workflows.share.cards import beside_export, finished_card, refresh, same_recipe

Command = Callable[..., Result]
DATA = Path(__file__).parent / "data"
QUICK = ("--steps", 1, "--directions", 2, "--images", 50)


class Notes(Observer):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def note(self, message: str) -> None:
        self.heard.append(message)


@pytest.fixture
def one(one_run: Path, tmp_path: Path) -> Path:
    """A finished run of ONE that may be changed, alone in its runs folder."""
    return Path(shutil.copytree(one_run, tmp_path / "runs" / one_run.name))


def sibling(run: Path, seed: int, top1: float) -> Path:
    """Another seed of a run, with another error of the leader."""
    other = Path(shutil.copytree(run, run.with_name(f"seed{seed}")))
    record = json.loads((other / "run.json").read_text()) | {"seed": seed}
    record["final"]["errors"][record["leader"]]["top1"] = top1
    (other / "run.json").write_text(json.dumps(record))
    recipe = (other / "recipe.toml").read_text()
    (other / "recipe.toml").write_text(recipe.replace("seed = 0", f"seed = {seed}"))
    return other


def text_of(run: Path) -> str:
    return (run / "README.md").read_text(encoding="utf-8")


def edit(run: Path, before: str, after: str) -> None:
    text = text_of(run)
    assert text.count(before) == 1
    (run / "README.md").write_text(text.replace(before, after), encoding="utf-8")


def wilson(errors: int, images: int) -> tuple[float, float]:
    z = 1.959963984540054
    share, extra = errors / images, z * z / images
    middle = (share + extra / 2) / (1 + extra)
    half = z * math.sqrt(share * (1 - share) / images + extra / (4 * images)) / (1 + extra)
    return 100 * (middle - half), 100 * (middle + half)


# Metadata


@pytest.mark.parametrize("which", ["one_run", "baseline_run"])
def test_the_hub_reads_the_metadata_and_its_results_are_the_runs(which: str, request: pytest.FixtureRequest) -> None:
    run = Run.open(request.getfixturevalue(which))
    data = ModelCard(text_of(run.path)).data
    assert (data.library_name, data.pipeline_tag, data.metrics) == ("distilkit", "image-classification", ["accuracy"])
    assert {run.record["method"], "resnet8", "image-classification"} <= set(data.tags)
    assert data.model_name == run.recipe.name
    errors = run.record["final"]["errors"][run.record["leader"]]
    found = {result.metric_name: result for result in data.eval_results}
    assert set(found) == {"top-1 accuracy", "top-5 accuracy"}
    for result, kind in zip(found.values(), ("top1", "top5"), strict=True):
        assert (result.task_type, result.dataset_name) == ("image-classification", "digits")
        assert (result.dataset_split, result.metric_type) == ("test", "accuracy")
        assert result.metric_value == pytest.approx(1 - errors[kind] / 100, abs=1e-12)


@pytest.mark.parametrize("dataset", [*HUB_DATASETS, "image-folder", "npz"])
def test_only_data_sets_of_the_hub_are_linked(dataset: str, one: Path) -> None:
    run = Run.open(one)
    run.record["data"] = run.record["data"] | {"dataset": dataset}
    data = ModelCard(write_card(run).read_text()).data
    assert data.datasets == ([HUB_DATASETS[dataset]] if dataset in HUB_DATASETS else None)
    assert data.eval_results[0].dataset_type == HUB_DATASETS.get(dataset, dataset)


def test_tags_hold_no_colon(one: Path) -> None:
    run = Run.open(one)
    model = run.recipe.model.model_copy(update={"architecture": "torchvision:mobilenet_v3_small"})
    run.recipe = run.recipe.model_copy(update={"model": model})
    assert "torchvision-mobilenet_v3_small" in ModelCard(write_card(run).read_text()).data.tags


# Figures


def test_every_classifier_has_its_errors_and_wilsons_interval(one_run: Path) -> None:
    text = text_of(one_run)
    for name, error in Run.open(one_run).record["final"]["errors"].items():
        low, high = wilson(round(error["top1"] * 5), 500)
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {name}")]
        cells = [cell.strip() for cell in line.strip("|").split("|")][1:]
        assert cells == [f"{error['top1']:.2f}", f"{low:.2f} to {high:.2f}", f"{error['top5']:.2f}"]


def test_one_training_says_nothing_of_the_spread(one: Path, baseline_run: Path) -> None:
    shutil.copytree(baseline_run, one.with_name("baseline"))
    finished_card(Run.open(one), Observer())
    assert "one training, so nothing is known of the spread over seeds" in text_of(one)
    assert "Spread over seeds" not in text_of(one)


def test_other_seeds_in_the_same_folder_are_counted(one: Path) -> None:
    others = [sibling(one, 1, 9.0), sibling(one, 2, 3.0)]
    shutil.copytree(one, one.with_name("again"))  # The same seed once more is no further one.
    (one.parent / "broken").mkdir()
    (one.parent / "broken" / "run.json").write_text("{")
    unfinished = sibling(one, 3, 50.0)
    record = json.loads((unfinished / "run.json").read_text()) | {"state": "running"}
    (unfinished / "run.json").write_text(json.dumps(record))
    run = Run.open(one)
    assert same_recipe(run).seeds == (0, 1, 2)
    finished_card(run, Observer())
    values = [Run.open(path).record["final"]["errors"]["student_0"]["top1"] for path in (one, *others)]
    text = text_of(one)
    assert "3 trainings of this recipe, seeds 0, 1, 2; this one is seed 0" in text
    assert f"| student_0 | {statistics.fmean(values):.2f} | {statistics.stdev(values):.2f} |" in text
    assert "nothing is known of the spread" not in text


def test_training_several_seeds_leaves_the_same_spread_in_every_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distilkit: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(TINY, encoding="utf-8")
    short = ("--set", "train.epochs=1", "--set", "method.name=baseline")
    document = distilkit("train", "tiny.toml", *short, "--seeds", "0,1", "--json").json
    mean, deviation = (document["errors"]["student_0"][key] for key in ("mean_top1", "std_top1"))
    for each in document["runs"]:
        assert f"| student_0 | {mean:.2f} | {deviation:.2f} |" in text_of(Path(each["run"]))


# What is the user's


WORDS = "For reading postcodes.\n\n### Not for\n\nCheques, § 7.\n\n## A second section\n\n```\n## Intended use\n```"


def test_later_commands_keep_what_the_user_wrote(one: Path, distilkit: Command) -> None:
    edit(one, TO_FILL_IN, WORDS)
    edit(one, "---\nlibrary_name", "---\nlicense: apache-2.0\nlanguage:\n- en\nlibrary_name")
    edit(one, "# tiny\n", "# changed by hand, where nothing is the user's\n")
    exported = {}
    for command in (
        ("robustness", one, *QUICK),
        ("prune-branches", one),
        ("export", one),
        ("export", one, "--mode", "ensemble"),
    ):
        result = distilkit(*command, "--json")
        assert result.status == 0
        if command[0] == "export":
            exported[result.json["mode"]] = result.json
        text = text_of(one)
        assert intended_use(text) == WORDS
        assert TO_FILL_IN not in text
        data = ModelCard(text).data
        assert (data.license, data.language) == ("apache-2.0", ["en"])
    assert "changed by hand" not in text
    assert "\n## Robustness\n" in text
    for file in ("single.onnx", "ensemble.onnx"):
        size = (one / "exports" / file).stat().st_size
        assert f"| `exports/{file}` | {size:,} | [card](exports/{Path(file).stem}.card.md) |" in text
    for mode, name in (("single", "student_0"), ("ensemble", "gated")):
        document, errors = exported[mode], Run.open(one).record["final"]["errors"][name]
        assert document["card"] == str(one / "exports" / f"{mode}.card.md")
        card = Path(document["card"]).read_text()
        result, *_ = ModelCard(card).data.eval_results
        assert result.metric_value == pytest.approx(1 - errors["top1"] / 100, abs=1e-12)
        assert f"`{mode}.onnx`, {document['bytes']:,} bytes" in card
        assert f"{document['max_abs_difference']:.2e}, same class {document['top1_agreement']:.2f} %" in card
        assert ("Robustness" in card) == (mode == "single"), "the leader's robustness is not the ensemble's"
    again = text
    finished_card(Run.open(one), Observer())
    assert text_of(one) == again, "writing it twice changes nothing"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_card_without_its_end_marker_keeps_the_rest_too(newline: str, one: Path) -> None:
    edit(one, TO_FILL_IN, WORDS)
    edit(one, "<!-- end of what is yours -->\n", "")
    (one / "README.md").write_bytes(text_of(one).replace("\n", newline).encode())
    finished_card(Run.open(one), Observer())
    assert intended_use(text_of(one)) == WORDS


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")) | st.just("\n"), max_size=200))
def test_whatever_the_user_writes_comes_back(tmp_path_factory: pytest.TempPathFactory, words: str) -> None:
    file = tmp_path_factory.mktemp("card") / "README.md"
    cards._write(file, {"library_name": "distilkit"}, "# a\n\n", "\nMade by `distilkit train a`.\n")
    file.write_text(file.read_text().replace(TO_FILL_IN, words), encoding="utf-8")
    for _ in range(2):
        cards._write(file, {"library_name": "distilkit"}, "# b\n\n", "\nMade by `distilkit train b`.\n")
        assert intended_use(file.read_text(encoding="utf-8")) == (words.strip() or TO_FILL_IN)
    assert "# b" in file.read_text(encoding="utf-8")


REFUSED = {
    "somebody else's": ("is no model card of distilkit", lambda text: "# My notes\n\nnothing of yours\n"),
    "without the heading": ("has lost its heading", lambda text: text.replace("## Intended use", "## Use")),
    "with a broken header": ("is no YAML (line 3)", lambda text: text.replace("---\n", "---\nlicense: [a\n", 1)),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_readme_that_would_lose_words_is_left_as_it_is(kind: str, one: Path, distilkit: Command) -> None:
    words, change = REFUSED[kind]
    (one / "README.md").write_text(change(text_of(one)), encoding="utf-8")
    before = text_of(one)
    result = distilkit("robustness", one, *QUICK)
    assert result.status == 0
    assert "warning" in result.err
    assert words in result.err
    assert text_of(one) == before
    notes = Notes()
    finished_card(Run.open(one), notes)  # As at a training's end: it must not fail the training.
    assert words in notes.heard[0]


def test_the_card_of_an_earlier_version_is_replaced_and_its_words_stay(tmp_path: Path) -> None:
    run = Path(shutil.copytree(DATA / "run_format_1" / "run", tmp_path / "runs" / "old"))
    old = text_of(run) if (run / "README.md").is_file() else _EARLIER
    assert "Intended use" in old
    (run / "README.md").write_text(old.replace(TO_FILL_IN, "Mine."))
    refresh(run, Observer())
    assert text_of(run).startswith("---\n")
    assert intended_use(text_of(run)) == "Mine."
    assert ModelCard(text_of(run)).data.eval_results


_EARLIER = (
    "# digits_resnet8\n\n`resnet8` trained with `baseline` by distilkit 0.1.0.\n\n## Intended use\n\n"
    "To be filled in by whoever deploys this model.\n\nMade by `distilkit train digits_resnet8`.\n"
)


def test_an_unfinished_run_has_no_card(one: Path) -> None:
    record = json.loads((one / "run.json").read_text()) | {"state": "interrupted"}
    (one / "run.json").write_text(json.dumps(record))
    (one / "README.md").unlink()
    refresh(one, Observer())
    assert not (one / "README.md").exists()


# Nothing of the machine


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("distilkit train one --set data.root=/mnt/images", "distilkit train one"),
        ("distilkit train one --set=data.root=images --seeds 0,1", "distilkit train one --seeds 0,1"),
        ("distilkit train /home/me/one.toml --runs /scratch/me", "distilkit train one.toml"),
        ("distilkit train ../me/one.toml --runs=/scratch", "distilkit train one.toml"),
        ("distilkit train recipes/one.toml", "distilkit train recipes/one.toml"),
        ("distilkit train one --set teacher.run=runs/big", "distilkit train one --set teacher.run=big"),
        ("distilkit train one --set=model.pretrained=/w/a.pth", "distilkit train one --set=model.pretrained=a.pth"),
        (
            """distilkit train one --set 'teacher.run=["/a/b", "/a/c d"]'""",
            """distilkit train one --set 'teacher.run=["b", "c d"]'""",
        ),
        ("distilkit train --resume /scratch/runs/one", "distilkit train"),
        (r"distilkit train C:\me\one.toml", "distilkit train one.toml"),
        ("distilkit train ~me/one.toml", "distilkit train one.toml"),
        ("distilkit train one --set train.epochs=3", "distilkit train one --set train.epochs=3"),
        ("distilkit train 'unclosed", "distilkit"),
        ("", ""),
    ],
)
def test_the_command_is_shown_without_folders(typed: str, shown: str) -> None:
    typed = typed.replace("\\", "\\\\")
    assert without_paths(typed) == shown


def test_no_card_names_a_folder_of_the_machine(
    image_folder: Path, tmp_path: Path, distilkit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(TINY, encoding="utf-8")
    arguments = ["train", str(recipe), "--runs", str(tmp_path / "runs"), "--set", "data.dataset=image-folder"]
    arguments += ["--set", f"data.root={image_folder}", "--set", "train.batch_size=8", "--set", "train.epochs=1"]
    monkeypatch.setattr("sys.argv", ["distilkit", *arguments])
    assert distilkit(*arguments, "--device", "cpu").status == 0
    (run,) = (tmp_path / "runs").iterdir()
    (tmp_path / "out").mkdir()
    write_export_card(Run.open(run), export_of(tmp_path / "out" / "a.onnx"))
    assert distilkit("robustness", run, "--steps", 1, "--directions", 1, "--images", 8).status == 0
    for text in (text_of(run), (tmp_path / "out" / "a.card.md").read_text()):
        assert str(tmp_path) not in text
        assert str(image_folder) not in text
        assert image_folder.parent.name not in text
    assert "Made by `distilkit train tiny.toml --set data.dataset=image-folder" in text_of(run)


# Exports


def export_of(file: Path, member: str = "student_0") -> dict[str, Any]:
    """What `distilkit export` says of a file."""
    return {
        "file": str(file),
        "format": "onnx",
        "member": member,
        "outputs": ["logits", "probabilities"],
        "bytes": 12_345,
        "images_compared": 500,
        "max_abs_difference": 1.5e-6,
        "top1_agreement": 99.8,
        "passed": True,
    }


ENSEMBLE = "ensemble (gated) of student_0, student_1, student_2"


@pytest.mark.parametrize(("member", "name"), [("student_0",) * 2, ("student_2",) * 2, (ENSEMBLE, "gated")])
def test_an_exports_card_has_the_figures_of_what_was_exported(member: str, name: str, one: Path) -> None:
    others = [sibling(one, 1, 9.0)]
    run, notes = Run.open(one), Notes()
    card = beside_export(run, export_of(one / "a.onnx", member), notes, inside=False, final=True)
    assert notes.heard == []
    assert card == str(one / "a.card.md")
    text = Path(str(card)).read_text()
    data, errors = ModelCard(text).data, run.record["final"]["errors"][name]
    assert (data.library_name, data.model_name) == ("onnx", "tiny")
    assert data.eval_results[0].metric_value == pytest.approx(1 - errors["top1"] / 100, abs=1e-12)
    assert f"top-1 {errors['top1']:.2f} (Wilson's" in text
    assert "`a.onnx`, 12,345 bytes" in text
    assert "largest difference of a logit 1.50e-06, same class 99.80 %" in text
    assert intended_use(text) == TO_FILL_IN
    values = [Run.open(path).record["final"]["errors"][name]["top1"] for path in (one, *others)]
    assert f"| {name} | {statistics.fmean(values):.2f} | {statistics.stdev(values):.2f} |" in text


def test_exporting_again_keeps_the_words_of_its_card(one: Path) -> None:
    run, export = Run.open(one), export_of(one / "a.onnx")
    card = write_export_card(run, export)
    card.write_text(card.read_text().replace(TO_FILL_IN, "Ours."))
    text = write_export_card(run, export | {"bytes": 99}).read_text()
    assert intended_use(text) == "Ours."
    assert "99 bytes" in text


def test_an_earlier_checkpoint_does_not_bear_the_last_ones_errors(one: Path, distilkit: Command) -> None:
    checkpoint = (one / "checkpoints" / "last").read_text().strip()
    text = Path(distilkit("export", one, "--checkpoint", checkpoint, "--json").json["card"]).read_text()
    assert "is not known" in text
    assert ModelCard(text).data.eval_results is None


def test_a_pruned_models_export_has_its_card_too(one: Path, tmp_path: Path, distilkit: Command) -> None:
    distilkit("prune-branches", one, "--output", tmp_path / "pruned")
    card = write_export_card(PrunedModel.open(tmp_path / "pruned"), export_of(tmp_path / "single.onnx"))
    error = Run.open(one).record["final"]["errors"]["student_0"]["top1"]
    assert ModelCard(card.read_text()).data.eval_results[0].metric_value == pytest.approx(1 - error / 100, abs=1e-12)
    assert "# tiny: single.onnx" in card.read_text()


def test_a_card_that_is_not_ours_stays_beside_the_export(one: Path, tmp_path: Path) -> None:
    (tmp_path / "model.card.md").write_text("mine")
    notes = Notes()
    found = beside_export(Run.open(one), export_of(tmp_path / "model.onnx"), notes, inside=False, final=True)
    assert found is None
    assert "no model card" in notes.heard[0]
    assert (tmp_path / "model.card.md").read_text() == "mine"


def test_a_wrong_export_has_no_card(one: Path, tmp_path: Path) -> None:
    wrong = export_of(tmp_path / "model.failed-parity.onnx") | {"passed": False}
    assert beside_export(Run.open(one), wrong, Notes(), inside=False, final=True) is None
    assert not list(tmp_path.glob("*.md"))


def test_the_robustness_that_was_measured_is_on_the_card(one: Path, distilkit: Command) -> None:
    document = distilkit("robustness", one, *QUICK, "--inputs", "noise", "--json").json
    (measured,) = document["runs"]
    text = text_of(one)
    ends = [statistics.fmean(curve[place] for curve in measured["curves"]["test"]) for place in (0, -1)]
    assert f"top-1 error {ends[0]:.2f} % at d = 0, {ends[1]:.2f} % on average" in text
    assert f"{measured['inputs']['clean']:.2f} % clean, {measured['inputs']['mean']:.2f} % over" in text
    distilkit("robustness", one, *QUICK, "--member", "student_1", "--checkpoint", "last")
    assert "parameters of student_1, checkpoint last moved" in text_of(one)
    exported = write_export_card(Run.open(one), export_of(one / "a.onnx")).read_text()
    assert "Robustness" not in exported, "it is another member's"


def test_metadata_is_plain_yaml(one_run: Path) -> None:
    header: dict[str, Any] = yaml.safe_load(text_of(one_run).split("---\n")[1])
    assert list(header)[:2] == ["library_name", "pipeline_tag"]
    assert not re.search(r"!!python|&id", text_of(one_run))
