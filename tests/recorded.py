"""What every command prints with --json, its exit status and the files that it writes, on a small fixed set of runs.

    python tests/recorded.py

writes tests/data/recorded.json anew; its diff shows what a change means for those who read the documents. Durations,
dates, versions and what else differs from machine to machine stand there as the kind of value that they are.
"""

import contextlib
import io
import json
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"
FILE = DATA / "recorded.json"

# By key: differ from machine to machine, or from one time to the next.
_PASSING = re.compile(
    r"seconds|images_per_second|versions?|created|age|started|modified|cores|memory|cpu|free|python|torch|device"
    r"|platform|disk|packages|median|p9\d|low|high|speedup|runtime|graph_sha256|sha256|probe|size|bytes|installed"
    r"|checks|threads|digest|latency|ratio|faster|load|onnxruntime|used|reason"
)
_NEVER = re.compile(r"model_bytes|batch_size|image_size|sizes")


def commands(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """(name, arguments) of every command, in an order in which each finds what it needs; runs are prepared first."""
    old, whole = "runs/old", "runs/whole"
    yield "train-resume", ["train", "--resume", whole, "--device", "cpu"]
    yield "train-resume-finished", ["train", "--resume", whole, "--device", "cpu"]
    yield "train", ["train", "tiny.toml", "--device", "cpu", "--runs", "fresh"]
    yield "train-seeds", ["train", "tiny.toml", "--seeds", "0,1", "--device", "cpu", "--runs", "seeds"]
    yield "train-dry-run", ["train", "one_resnet32", "--dry-run"]
    yield "train-dry-run-teacher", ["train", "digits_one_kd.toml", "--dry-run"]
    yield "train-wrong-recipe", ["train", "wrong.toml", "--device", "cpu"]
    yield "train-no-recipe", ["train", "one_resnet23"]
    yield "evaluate", ["evaluate", old, "--device", "cpu"]
    yield "evaluate-member", ["evaluate", whole, "--member", "student_1", "--device", "cpu"]
    yield "evaluate-nothing", ["evaluate", "runs/none"]
    yield "ensemble-eval", ["ensemble-eval", whole, "--device", "cpu"]
    yield "ensemble-eval-runs", ["ensemble-eval", whole, old, "--device", "cpu"]
    yield "prune-branches", ["prune-branches", whole]
    yield "evaluate-pruned", ["evaluate", f"{whole}/pruned", "--device", "cpu"]
    short = ["--steps", "2", "--directions", "2", "--images", "100", "--device", "cpu"]
    yield "robustness", ["robustness", whole, *short]
    yield "robustness-inputs", ["robustness", old, *short, "--inputs", "noise"]
    gate = ["--max-increase", "0", "--at", "5", "--max-distance", "5"]
    yield "robustness-check", ["robustness", old, *short, *gate]
    yield "export", ["export", whole, "--mode", "single", "--format", "onnx"]
    yield "export-ensemble", ["export", whole, "--mode", "ensemble", "--format", "onnx"]
    yield "export-wrong-format", ["export", whole, "--format", "exe"]
    yield "predict", ["predict", f"{whole}/exports/single.onnx", "digit.png"]
    yield "benchmark", ["benchmark", f"{whole}/exports/single.onnx", "--batch", "1", "--repetitions", "3"]
    yield "compare", ["compare", old, whole]
    yield "compare-all", ["compare"]
    yield "compare-seeds", ["compare", "--runs", "seeds"]
    yield "report", ["report", old, whole, "--output", "report/page.html", "--device", "cpu"]
    yield "runs", ["runs"]
    yield "runs-show", ["runs", "show", whole]
    yield "runs-prune", ["runs", "prune", "--older-than", "1d", "--keep", "1", "--runs", "seeds", "--yes"]
    yield "push", ["push", whole, "--to", "published"]
    yield "pull", ["pull", "published"]
    yield "init", ["init", "images", "--output", "images.toml", "--yes"]
    yield "models", ["models", "--filter", "resnet8"]
    yield "models-one", ["models", "resnet8"]
    yield "recipes", ["recipes", "--dataset", "digits"]
    yield "recipes-show", ["recipes", "show", "quickstart_one"]
    yield "recipes-copy", ["recipes", "copy", "quickstart_one", "copied.toml"]
    yield "doctor", ["doctor", "--quick"]


def prepare(folder: Path) -> None:
    """Runs, recipes and images below `folder`."""
    import numpy as np
    from PIL import Image

    shutil.copytree(DATA / "run_format_1" / "run", folder / "runs" / "old")
    shutil.copytree(DATA / "run_format_1" / "run", folder / "teacher")
    shutil.copytree(DATA / "old_run_distilled" / "run", folder / "runs" / "whole")
    readme = (DATA / "old_run_distilled" / "README.md").read_text(encoding="utf-8")
    (folder / "digits_one_kd.toml").write_text(readme.partition("```toml\n")[2].partition("```")[0], encoding="utf-8")
    tiny = '[data]\ndataset = "digits"\n[model]\narchitecture = "resnet8"\n[method]\nname = "okddip"\n'
    settings = '[train]\nepochs = 1\nbatch_size = 256\nprecision = "fp32"\n'
    (folder / "tiny.toml").write_text(f'name = "tiny"\n{tiny}{settings}', encoding="utf-8")
    wrong = tiny.replace("digits", "digitz").replace("okddip", "one") + 'temperatur = 3\n[train]\nepochs = "many"\n'
    (folder / "wrong.toml").write_text(f'name = "wrong"\n{wrong}', encoding="utf-8")
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for index, name in enumerate(("blue", "red")):
            (folder / "images" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 100, (16, 16, 3)).astype(np.uint8) + np.uint8(100 * index)
                Image.fromarray(pixels).save(folder / "images" / split / name / f"{number}.png")
    Image.fromarray(generator.integers(0, 255, (8, 8)).astype(np.uint8)).save(folder / "digit.png")


def record(folder: Path) -> dict[str, Any]:
    """Run every command in this process, one thread, with `folder` as working folder; what each said and wrote."""
    import torch

    torch.set_num_threads(1)
    prepare(folder)
    found = {}
    for name, arguments in commands(folder):
        before = _files(folder)
        status, document = _run([*arguments, "--json"])
        changed = sorted(_plain(path, folder) for path, stamp in _files(folder).items() if before.get(path) != stamp)
        written = sorted({re.sub(r"step_\d+|epoch_\d+", "step_N", path) for path in changed})
        shown = {key: f"<{type(value).__name__}>" for key, value in document.items()} if name == "doctor" else document
        found[name] = {"arguments": arguments, "status": status, "json": _without(shown, folder), "written": written}
    return found


def _run(arguments: list[str]) -> tuple[int, Any]:
    from distilkit import cli

    out, err = io.StringIO(), io.StringIO()
    status = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(arguments)
        except SystemExit as leaving:
            status = int(leaving.code or 0)
    try:
        return status, json.loads(out.getvalue())
    except ValueError:
        raise AssertionError(f"{arguments} printed no JSON document:\n{out.getvalue()}\n{err.getvalue()}") from None


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size) for path in files}


def _plain(text: str, folder: Path) -> str:
    text = (
        text.replace(str(folder), "FOLDER")
        .replace(str(Path(__file__).parents[1]), "CHECKOUT")
        .replace(str(Path.home()), "HOME")
    )
    text = re.sub(r"\d{8}T\d{6}Z(-\d+)?", "TIME", text)
    text = re.sub(r"events\.out\.tfevents\S*", "EVENTS", text)
    return re.sub(r"\d+(\.\d+)? (s|ms|minutes|MiB|GiB|KiB|kB|MB|GB)\b", r"N \2", text)


def _without(value: Any, folder: Path, key: str = "") -> Any:
    """The document without what passes: of such a key, the kind of its value."""
    if key in ("confusions", "per_class", "averages"):  # of which an image on the other side changes many
        return f"<{type(value).__name__}>"
    if isinstance(value, dict):
        if key in ("versions", "packages"):
            return "<versions>"
        return {_plain(name, folder): _without(entry, folder, name) for name, entry in value.items()}
    if isinstance(value, list):
        # Beside a run of another PyTorch, which a test has made long ago, this machine's may be the same or not.
        return [_without(entry, folder, key) for entry in value if not _on_torch(entry)]
    if _PASSING.fullmatch(key) or (_PASSING.search(key) and not _NEVER.search(key) and not isinstance(value, str)):
        return f"<{type(value).__name__}>"
    return _plain(value, folder) if isinstance(value, str) else value


def _on_torch(entry: Any) -> bool:
    if isinstance(entry, dict):
        return entry.get("kind") == "torch"
    return isinstance(entry, str) and "version of PyTorch differs" in entry


def differences(found: Any, expected: Any, place: str = "") -> list[str]:
    """Where two recordings differ, a line for each place; floats agree within what another order of sums changes."""
    if isinstance(expected, dict) and isinstance(found, dict):
        lines = [f"{place}/{key}: is missing" for key in expected.keys() - found.keys()]
        lines += [f"{place}/{key}: is new: {found[key]!r:.200}" for key in found.keys() - expected.keys()]
        for key in expected.keys() & found.keys():
            lines += differences(found[key], expected[key], f"{place}/{key}")
        return sorted(lines)
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        return [
            line
            for index, (ours, theirs) in enumerate(zip(found, expected, strict=True))
            for line in differences(ours, theirs, f"{place}/{index}")
        ]
    if isinstance(expected, float | int) and isinstance(found, float | int) and not isinstance(expected, bool):
        # Errors in percent of a few hundred images: one or two of them may fall on the other side.
        percent = any(
            part in place
            for part in ("error", "top1", "top5", "interval", "curves", "points", "mean", "std", "difference")
        )
        if math.isclose(found, expected, rel_tol=2e-2, abs_tol=2.5 if percent else 1e-2):
            return []
    return [] if found == expected else [f"{place}: {expected!r:.200} became {found!r:.200}"]


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        found = record(Path(name).resolve())
    FILE.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
