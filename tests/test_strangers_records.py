"""Locks, records, cards and weights of strangers: a link is not followed, and what is wrong ends in one message."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Result
from filelock import FileLock

from distilkit.errors import UserError
from distilkit.learners.pretrained import read_weights
from distilkit.observer import Observer
from distilkit.report.card import CardKeptError, write_card
from distilkit.report.measured import robustness_of
from distilkit.runs import checkpoint as checkpoints
from distilkit.runs.atomic import lock
from distilkit.runs.run import Run, load_weights, load_weights_and_digest, written_by_us_alone
from distilkit.workflows.project.runs import Filter, list_runs, locked, plan_pruning, prune
from distilkit.workflows.share.cards import refresh

Command = Callable[..., Result]


@pytest.fixture
def run(one_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, which may be changed."""
    return Path(shutil.copytree(one_run, tmp_path / "runs" / "one"))


def change(run: Path, file: str, text: Callable[[str], str]) -> None:
    (run / file).write_text(text((run / file).read_text()))


def record(run: Path, **changes: Any) -> None:
    document = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(document | changes))


# Locks


def linked(kind: str, run: Path, theirs: Path) -> None:
    (run / ".lock").unlink(missing_ok=True)
    theirs.write_text("precious")
    if kind == "hard":
        (run / ".lock").hardlink_to(theirs)
    elif kind == "folder":
        (run / ".lock").mkdir()
    else:
        (run / ".lock").symlink_to(theirs if kind == "symbolic" else theirs.with_name("nowhere"))


@pytest.mark.parametrize("kind", ["symbolic", "dangling", "hard", "folder"])
def test_a_lock_that_is_a_link_is_not_opened(
    kind: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = tmp_path / "theirs.txt"
    record(run, state="interrupted")
    linked(kind, run, theirs)

    def opened(*_: object, **__: object) -> None:
        pytest.fail("the lock is opened")

    # Whatever version of filelock is there, and whatever it follows.
    monkeypatch.setattr(FileLock, "acquire", opened)
    with pytest.raises(OSError, match="its lock is a link or no plain file"):
        lock(run)
    assert not locked(run)
    [row] = list_runs(run.parent)["runs"]
    assert row["state"] == "interrupted"
    with (
        pytest.raises(UserError, match=r"its lock is a link or no plain file|links that lead out"),
        written_by_us_alone(Run.open(run)),
    ):
        pytest.fail("the run is written to")
    done = prune(plan_pruning(run.parent, Filter(states=("interrupted",))))
    assert done["deleted"] == []
    assert "its lock is a link" in done["spared"][0]["reason"]
    assert theirs.read_text() == "precious"
    assert not theirs.with_name("nowhere").exists()


def test_a_lock_that_was_copied_by_links_is_a_lock(run: Path, tmp_path: Path) -> None:
    (run / ".lock").write_bytes(b"")
    (tmp_path / "copied").hardlink_to(run / ".lock")
    with lock(run):
        assert locked(run)
    assert not locked(run)


# Records


def test_a_leader_that_is_renamed_throughout_the_record_is_damage(run: Path, distilkit: Command) -> None:
    change(run, "run.json", lambda text: text.replace("student_0", "somebody"))
    for command in (("runs", "show"), ("report", "--no-evaluate"), ("compare",), ("prune-branches",)):
        refused = distilkit(*command, run)
        assert refused.status == 2, command
        assert "its members are not those of its recipe" in " ".join(refused.err.split())


def test_an_ensemble_that_is_renamed_throughout_the_record_is_damage(run: Path) -> None:
    change(run, "run.json", lambda text: text.replace('"gated"', '"other"'))
    with pytest.raises(UserError, match="its ensemble is 'other', and that of its recipe 'gated'"):
        Run.open(run).learner()


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("final", "best_on_test", "errors", "student_0", "top1"), "7"),
        (("final", "best_on_test"), {"note": "x"}),
        (("final", "selected"), {"epoch": 1}),
        (("final", "epochs"), "3"),
        (("final", "images_per_second"), "fast"),
        (("parameters", "deploy"), "12"),
        (("parameters", "train"), None),
        (("flops", "deploy"), 2**300),
        (("bytes",), {"deploy": 1}),
        (("parts", "trunk", "flops"), "x"),
        (("parts", "trunk"), {}),
        (("precision",), {"used": {}}),
        (("threads",), {"used": "two"}),
        (("uncounted",), {"aten::x": "y"}),
        (("pretrained",), {"sha256": 3}),
        (("seed",), "0"),
    ],
    ids=str,
)
def test_a_record_with_a_value_of_another_kind_is_damage(path: tuple[str, ...], wrong: object, run: Path) -> None:
    document = json.loads((run / "run.json").read_text())
    table = document
    for key in path[:-1]:
        table = table[key]
    table[path[-1]] = wrong
    (run / "run.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"run\.json is damaged: "):
        Run.open(run)


def test_a_dangling_link_among_the_robustness_figures_is_told(run: Path) -> None:
    (run / "robustness").mkdir()
    (run / "robustness" / "dangling.json").symlink_to("/nowhere/at/all")
    (run / "robustness" / "loop.json").symlink_to("loop.json")
    found, damaged = robustness_of([Run.open(run)])
    assert found == {}
    assert damaged[run].endswith("is damaged")


@pytest.mark.parametrize("what", ["an empty folder", "a file", "a run.json alone", "a pruned model's config alone"])
def test_a_teacher_that_is_a_path_and_no_run_is_told(what: str, tmp_path: Path, distilkit: Command) -> None:
    path = tmp_path / "teacher"
    if what == "a file":
        path.write_text("x")
    else:
        path.mkdir()
    if what.endswith("alone"):
        (path / ("run.json" if "run.json" in what else "config.json")).write_text("{}")
    words = ("train", "quickstart_kd", "--set", f"teacher.run={path}", "--runs", tmp_path / "runs")
    planned = distilkit(*words, "--dry-run", "--json")
    assert planned.status == 0
    assert "cannot be opened" in planned.json["teacher_missing"]
    refused = distilkit(*words, "--device", "cpu")
    assert refused.status == 2
    assert f"the teacher {path} cannot be opened" in " ".join(refused.err.split())
    assert not (tmp_path / "runs").exists()


# Cards


@pytest.mark.parametrize(
    "line",
    [
        'x: !!python/object/apply:os.mkdir ["made"]',
        "x: !!python/name:os.system",
        "x: 2026-13-99",
        "x: 2026-01-01T99:00:00Z",
        "x: 2026-01-01T00:00:00+99:99",
        "x: !!timestamp soon",
        "x: !!int many",
        "x: " + "9" * 5000,
        "x: 1" + ":59" * 3000,
        "x: " + "[" * 3000 + "]" * 3000,
        "x: " + "{a: " * 3000 + "1" + "}" * 3000,
        'x: "\\U00110000"',
        "? {a: b}\n: c",
    ],
    ids=lambda line: line[:30],
)
def test_a_card_whose_header_cannot_be_read_is_left_as_it_is(
    line: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    change(run, "README.md", lambda text: text.replace("---\n", f"---\n{line}\n", 1))
    before = (run / "README.md").read_bytes()
    with pytest.raises(CardKeptError, match="is no YAML"):
        write_card(Run.open(run))
    heard: list[str] = []

    class Hears(Observer):
        def note(self, message: str) -> None:
            heard.append(message)

    refresh(run, Hears())
    assert "is no YAML" in heard[0]
    assert (run / "README.md").read_bytes() == before
    assert not (tmp_path / "made").exists()


def test_a_card_that_is_no_text_is_not_published(run: Path, tmp_path: Path, distilkit: Command) -> None:
    (run / "README.md").write_bytes(bytes(range(256)))
    refused = distilkit("push", run, "--to", tmp_path / "published")
    assert refused.status == 2
    assert "is not UTF-8 text" in " ".join(refused.err.split())
    assert not (tmp_path / "published").exists()


def test_dates_and_lists_of_the_user_in_a_cards_header_stay(run: Path) -> None:
    lines = "license: mit\ndate: 2026-11-30\nlanguages: [en, de]\n"
    change(run, "README.md", lambda text: text.replace("---\n", f"---\n{lines}", 1))
    write_card(Run.open(run))
    header = yaml.safe_load((run / "README.md").read_text().split("---\n")[1])
    assert {key: header[key] for key in ("license", "languages")} == {"license": "mit", "languages": ["en", "de"]}
    assert str(header["date"]) == "2026-11-30"


# Weights


def sparse(file: Path, size: int = 40 * 2**30) -> Path:
    """A file of zeros that takes no room."""
    with file.open("ab") as stream:
        stream.truncate(size)
    return file


def unread(*_: object, **__: object) -> None:
    pytest.fail("the file is read")


@pytest.mark.parametrize("kept", [True, False], ids=["after whole weights", "alone"])
def test_a_huge_file_of_zeros_is_refused_before_it_is_read(
    kept: bool, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a machine whose memory it would fit.
    for module in ("distilkit.models.weights", "distilkit.learners.pretrained"):
        monkeypatch.setattr(f"{module}.free_memory", lambda: 2**50)
    checkpoint = Run.open(run).checkpoint()
    file = tmp_path / "model.safetensors"
    if kept:
        shutil.copy(checkpoint / "group.safetensors", file)
    sparse(file)
    monkeypatch.setattr(Path, "read_bytes", unread)
    monkeypatch.setattr("hashlib.file_digest", unread)
    for reader in (load_weights, load_weights_and_digest, read_weights):
        with pytest.raises(UserError, match="cannot be read"):
            reader(file)
    sparse(checkpoint / "group.safetensors")
    with pytest.raises(UserError, match="is damaged"):
        checkpoints.load_part(checkpoint, "group")


def test_weights_beyond_the_free_memory_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("distilkit.models.weights", "distilkit.learners.pretrained"):
        monkeypatch.setattr(f"{module}.free_memory", lambda: 10**9)
    monkeypatch.setattr(Path, "read_bytes", unread)
    monkeypatch.setattr("torch.load", unread)
    for name in ("model.safetensors", "model.pth"):
        with pytest.raises(UserError, match="1,000,000,000 are the most"):
            read_weights(sparse(tmp_path / name))
