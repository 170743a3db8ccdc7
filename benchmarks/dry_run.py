"""Does every line of the GPU queue run to its end, resume, and land in its table? On a CPU, with a few steps each.

    python benchmarks/dry_run.py                             # all tables of docs/gpu.md, in its order
    python benchmarks/dry_run.py cifar100_vgg16 svhn_one --minutes 20

For each table this writes a few images in its data set's published format (`made_data.py`), shortens its rows, and runs
`reproduce.main` over it, as the queue's line does, with runs and results of its own below --work. The first slice of a
table gets SIGTERM in the middle of a training; a second one continues. After that every row must be in the table's JSON
and in its page, every figure drawn. Nothing here is a result, and nothing is written to the tables in docs/results.

What was done already is not done again: call it until nothing is left. Exit status 0: all landed; 1: the rows that are
named did not; 3: the minutes were over first.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import made_data
import reproduce
import tomli_w
from reproduce import ROOT, Cell, cells, known, read_table, recorded, state, tell

from distilkit.errors import UserError
from distilkit.recipe import Recipe, SnapshotSection, StepSection, load

QUEUE = ROOT / "docs" / "gpu.md"
RECORD = ROOT / "docs" / "results" / "dry_run.json"
TRAIN_IMAGES, TEST_IMAGES = 8, 4
ALL_ROWS = ("train.epochs=1", "train.batch_size=2", "train.precision=fp32", "optimizer.lr=0.001")
"""The queue's command with these: four steps. On random images the papers' learning rate soon ends in no number."""
RAMP = ("method.rampup_epochs=0",)
MILESTONES = ("schedule.milestones=[0.5, 0.75]",)
SNAPSHOT = ("train.epochs=2", "schedule.cycles=2")
STREAMED = ("data.storage=stream", "data.workers=1")
"""As ImageNet is, which few memories hold."""
INTERRUPTED = ("train.checkpoint_steps=1",)
"""For the one row of a table whose training is interrupted: a checkpoint shows that it has begun."""
REDUCTION = {
    "images": "as many as each table says, random, in the published format and size (SVHN: half of those to train in "
    f"`extra`); all classes of CIFAR and SVHN, {len(made_data.WNIDS)} class folders of ImageNet",
    "seeds": "the table's first",
    "every row": list(ALL_ROWS),
    "a ramp longer than the run": list(RAMP),
    "milestones in epochs": list(MILESTONES),
    "snapshots": list(SNAPSHOT),
    "ImageNet": list(STREAMED),
    "the row of each table that is interrupted and resumed": list(INTERRUPTED),
    "rows equal to one of an earlier table": "its run is taken",
}
NOTE = "dry_run.json"
"""Beside a cell's runs: where its training was interrupted."""


def queue() -> list[str]:
    """The tables that docs/gpu.md names, in its order."""
    named = re.findall(r"benchmarks/reproduce\.py (\w+)", QUEUE.read_text(encoding="utf-8"))
    return [name for name in dict.fromkeys(named) if (reproduce.TABLES / f"{name}.toml").is_file()]


def reduced(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table with its first seed alone, and in each row what makes it fit into `ALL_ROWS`."""
    rows = [row | {"overrides": [*row.get("overrides", ()), *_to_fit(row, table)]} for row in table["rows"]]
    for row in rows:
        row.pop("seeds", None)
    return {**table, "seeds": table["seeds"][:1], "rows": rows}


def _to_fit(row: Mapping[str, Any], table: Mapping[str, Any]) -> list[str]:
    recipe = _loaded(row["recipe"], (*table.get("overrides", ()), *row.get("overrides", ())))
    fitting: list[str] = []
    if recipe is None:
        return fitting
    # A fraction of the run always fits.
    ramp = getattr(recipe.method, "rampup_epochs", 0)
    if isinstance(ramp, int) and ramp > 1:
        fitting += RAMP
    if isinstance(recipe.schedule, StepSection) and any(isinstance(at, int) for at in recipe.schedule.milestones):
        fitting += MILESTONES
    if isinstance(recipe.schedule, SnapshotSection):
        fitting += SNAPSHOT
    if recipe.data.dataset == "imagenet":
        fitting += STREAMED
    return fitting


def _loaded(recipe: str, overrides: tuple[str, ...]) -> Recipe | None:
    """None where it cannot be: its training will say why."""
    with contextlib.suppress(UserError):
        return load(recipe, overrides)
    return None


class DryTable:
    """One table below `work`: runs/<table>, results/<table>.*, data/<data set>, and its reduced file in tables/."""

    def __init__(self, name: str, original: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]], work: Path):
        """`original`: the table; `others`: those that come before it, reduced already."""
        self.name, self.work = name, work
        self.runs, self.results = work / "runs" / name, work / "results"
        self.table = reduced(original)
        theirs = {
            cell.digest: (other, cell)
            for other, table in reversed(list(others.items()))
            for cell in cells(table, ALL_ROWS)
            if cell.needs is None
        }
        # Weights are needed where a row teaches or its curves are measured: it is trained here.
        self.needed = {row.get("needs") for row in self.table["rows"]}
        self.needed |= set(self.table.get("robustness", {}).get("rows", []))
        self.shared = {
            cell.row: theirs[cell.digest]
            for cell in cells(self.table, ALL_ROWS)
            if cell.digest in theirs and cell.row not in self.needed
        }
        own = [row for row in self.table["rows"] if row["name"] not in self.shared]
        # The last: its teacher is there, where it has one.
        self.interrupted = own[-1]["name"] if own else None
        for row in own[-1:]:
            row["overrides"] = [*row["overrides"], *INTERRUPTED]
        self.todo = cells(self.table, ALL_ROWS)
        recipes = (_loaded(cell.recipe, cell.overrides) for cell in self.todo)
        self.data = work / "data" / next((recipe.data.dataset for recipe in recipes if recipe), "none")

    def run(self, end: float) -> None:
        """Go on until every row has landed, one could not be trained, or `end` (monotonic seconds) has come."""
        (self.work / "tables").mkdir(parents=True, exist_ok=True)
        (self.work / "tables" / f"{self.name}.toml").write_text(tomli_w.dumps(self.table), encoding="utf-8")
        if not self.data.exists():
            # Whole or not at all, should a signal come.
            partial = Path(tempfile.mkdtemp(dir=self.work))
            made_data.write(self.data.name, partial, TRAIN_IMAGES, TEST_IMAGES)
            self.data.parent.mkdir(exist_ok=True)
            partial.rename(self.data)
        for row, (other, cell) in self.shared.items():
            there, here = self.work / "runs" / other / cell.folder, self.runs / row / f"seed{cell.seed}"
            if state(there)[0] == "done" and not here.exists():
                here.parent.mkdir(parents=True, exist_ok=True)
                here.symlink_to(os.path.relpath(there, here.parent))
        while self._slice(end):
            pass

    def _slice(self, end: float) -> bool:
        """The queue's command; whether we ended it ourselves, and there is more to do."""
        arguments = [self.name, "--data", str(self.data), "--runs", str(self.runs), "--results", str(self.results)]
        arguments += ["--minutes", str(max(0.0, (end - time.monotonic()) / 60))]
        arguments += [part for setting in ALL_ROWS for part in ("--set", setting)]
        tables, program = reproduce.TABLES, reproduce.PROGRAM
        reproduce.TABLES = self.work / "tables"
        reproduce.PROGRAM = (sys.executable, made_data.__file__, str(self.data))
        own = {cell.row: self.runs / cell.folder for cell in self.todo}
        spare = [folder for row, folder in own.items() if row not in self.needed | self.shared.keys()]
        watch = _Watch(own.get(self.interrupted or ""), spare)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                reproduce.main(arguments)
        finally:
            reproduce.TABLES, reproduce.PROGRAM = tables, program
            watch.end()
        return watch.sent

    def look(self) -> dict[str, Any]:
        """What became of every row and figure, as the record has it."""
        results, page = recorded(self.name, self.results), self.results / f"{self.name}.md"
        lines = page.read_text(encoding="utf-8").splitlines() if page.is_file() else []
        rows = {cell.row: self._look_at(cell, results, lines) for cell in self.todo}
        curves = results.get("robustness", {})
        for row in self.table.get("robustness", {}).get("rows", []):
            rows[row]["landed"] = rows[row]["landed"] and row in curves
        figures = {
            name: all((self.results / f"{self.name}_{name}.{kind}").is_file() for kind in ("png", "svg"))
            and any(f"({self.name}_{name}.png)" in line for line in lines)
            for name in self.table.get("figures", [])
        }
        runs = [run for seeds in results.get("rows", {}).values() for run in seeds.values()]
        made = {key: _distinct([run[key] for run in runs]) for key in ("commit", "versions", "device", "images")}
        return made | {"rows": rows, "figures": figures}

    def _look_at(self, cell: Cell, results: Mapping[str, Any], lines: list[str]) -> dict[str, Any]:
        folder = self.runs / cell.folder
        what, run = state(folder)
        shared = folder.is_symlink()
        note = folder / NOTE
        interrupted = json.loads(note.read_text(encoding="utf-8")) if note.is_file() and not shared else None
        # One line among the errors, one among the runs.
        shown = [f"| {cell.row} | {second} |" for second in (1, cell.seed)]
        landed = known(results, cell) is not None and all(any(line.startswith(row) for line in lines) for row in shown)
        found: dict[str, Any] = {"trained": what == "done", "landed": landed}
        if shared:
            other, its = self.shared[cell.row]
            return found | {"run_of": f"{other}/{its.row}"}
        if what == "done" and run is not None:
            found["seconds"] = round(_seconds(folder, run) + (interrupted["seconds"] if interrupted else 0))
            if interrupted:
                # The interruption counts only where the run went on: one run, and more steps than were saved.
                epochs = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
                steps = json.loads(epochs[-1])["step"]
                went_on = len(list(folder.glob("*/run.json"))) == 1 and steps > interrupted["step"]
                found["resumed"] = f"after step {interrupted['step']} of {steps}" if went_on else "no"
            return found
        log = folder / "log.txt"
        written = log.read_text(encoding="utf-8") if log.is_file() else ""
        # The last message: what stands indented below its first line belongs to it.
        messages = re.split(r"\n(?=\S)(?!hint:)", written.strip())
        return found | {"said": " ".join(messages[-1].split()) or "not begun"}

    @property
    def stopped(self) -> bool:
        """Whether the slices ended before their end: somebody wants it, or the minutes are over.

        Only a row that failed, or whose teacher did, may be without a finished training otherwise.
        """
        states = {cell.row: state(self.runs / cell.folder) for cell in self.todo}
        for cell in self.todo:
            what, run = states[cell.row]
            ready = cell.needs is None or states[cell.needs][0] == "done"
            never_tried = what == "new" and ready and not (self.runs / cell.folder / "log.txt").exists()
            if never_tried or (what == "unfinished" and run is not None and _state_of(run) == "interrupted"):
                return True
        return False


class _Watch(threading.Thread):
    """Beside a slice. Ends it by SIGTERM, once the training in `folder` has saved a checkpoint in mid-epoch.

    A training that was interrupted before is left alone. `spare`: runs whose weights nobody needs once they are done;
    those of a whole table would fill many a disk.
    """

    def __init__(self, folder: Path | None, spare: list[Path]) -> None:
        super().__init__(daemon=True)
        self.folder, self.spare, self.over, self.sent = folder, spare, threading.Event(), False
        if folder is None or (folder / NOTE).exists() or state(folder)[0] == "done":
            self.folder = None
        elif saved := self._saved(folder):
            # Somebody else has interrupted it.
            self._note(folder, saved, 0)
            self.folder = None
        self.start()

    def end(self) -> None:
        """The slice has ended, and with it the training."""
        self.over.set()
        self.join()

    def run(self) -> None:
        cleared = time.monotonic()
        while not self.over.wait(0.02):
            if self.folder and (saved := self._saved(self.folder)):
                seconds = time.time() - (self.folder / reproduce.CODE).stat().st_mtime
                self.sent = True
                os.kill(os.getpid(), signal.SIGTERM)
                self.over.wait()
                self._note(self.folder, saved, seconds)
            if time.monotonic() > cleared + 2:
                self._clear()
                cleared = time.monotonic()

    def _clear(self) -> None:
        for folder in self.spare:
            what, run = state(folder)
            if what == "done" and run is not None:
                shutil.rmtree(run / "checkpoints", ignore_errors=True)

    def _saved(self, folder: Path) -> Path | None:
        return next(folder.glob("*/checkpoints/last"), None)

    def _note(self, folder: Path, saved: Path, seconds: float) -> None:
        step = int(saved.read_text(encoding="utf-8").removeprefix("step_"))
        (folder / NOTE).write_text(json.dumps({"step": step, "seconds": seconds}), encoding="utf-8")


def _distinct(values: list[Any]) -> list[Any]:
    return [value for place, value in enumerate(values) if value not in values[:place]]


def _state_of(run: Path) -> str:
    return str(json.loads((run / "run.json").read_text(encoding="utf-8"))["state"])


def _seconds(folder: Path, run: Path) -> float:
    """From a training's (last) start to its end."""
    return (run / "run.json").stat().st_mtime - (folder / reproduce.CODE).stat().st_mtime


def missing(found: Mapping[str, Any]) -> list[str]:
    """What of a table did not come out, by name."""
    lacking = [row for row, what in found["rows"].items() if not (what["trained"] and what["landed"])]
    lacking += [f"figure {name}" for name, drawn in found["figures"].items() if not drawn]
    own = [what for what in found["rows"].values() if "run_of" not in what]
    if own and not lacking and not any(what.get("resumed", "no") != "no" for what in own):
        lacking.append("a resumed training")
    return lacking


def report(name: str, found: Mapping[str, Any]) -> list[str]:
    """A line for each row."""
    lines = []
    for row, what in found["rows"].items():
        parts = ["trained" if what["trained"] else f"NOT TRAINED: {what['said']}"]
        parts = [f"the run of {what['run_of']}"] if "run_of" in what else parts
        parts += [f"resumed {what['resumed']}"] if "resumed" in what else []
        parts += ["landed"] if what["landed"] else ["NOT LANDED"]
        parts += [f"{what['seconds']} s"] if "seconds" in what else []
        lines.append(f"{name}/{row}: {', '.join(parts)}")
    lines += [f"{name}: figure {key} {'drawn' if drawn else 'NOT DRAWN'}" for key, drawn in found["figures"].items()]
    return lines


def write_record(file: Path, name: str, found: Mapping[str, Any]) -> None:
    """Put a table's part into the record, in the queue's order; what a log said is left out: it names folders."""
    before = json.loads(file.read_text(encoding="utf-8"))["tables"] if file.is_file() else {}
    date = time.strftime("%Y-%m-%d", time.gmtime())
    rows = {row: {key: value for key, value in what.items() if key != "said"} for row, what in found["rows"].items()}
    tables = before | {name: {"date": date, **found, "rows": rows}}
    order = {table: place for place, table in enumerate(queue())}
    record = {
        "format": 1,
        "what": "Dry run of docs/gpu.md on a CPU: whether its lines run, resume and land in their tables. No results: "
        "seconds are from a training's start to its end, on a machine that did other work as well.",
        "command": "python benchmarks/dry_run.py",
        "reduction": REDUCTION,
        "tables": {key: tables[key] for key in sorted(tables, key=lambda key: order.get(key, len(order)))},
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(reproduce.dump(record) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Exit status: see above."""
    parser = argparse.ArgumentParser(description="Run the GPU queue's tables on the CPU, a few steps of each row.")
    parser.add_argument("tables", nargs="*", help="tables (all of docs/gpu.md)")
    parser.add_argument("--minutes", type=float, default=600.0, help="how long this may take")
    parser.add_argument("--work", type=Path, default=Path("runs") / "dry_run", help="where all is kept (runs/dry_run)")
    parser.add_argument("--record", type=Path, default=RECORD, help="what is written (docs/results/dry_run.json)")
    options = parser.parse_args(arguments)
    end = time.monotonic() + 60 * options.minutes
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    asked = options.tables or queue()
    before: dict[str, dict[str, Any]] = {}
    lacking: dict[str, list[str]] = {}
    # In the queue's order, so that a row has the same run whichever tables are asked for.
    for name in dict.fromkeys([*queue(), *asked]):
        dry = DryTable(name, read_table(name), before, options.work)
        before[name] = dry.table
        if name not in asked:
            continue
        if time.monotonic() < end:
            dry.run(end)
        found = dry.look()
        print("\n".join(report(name, found)), flush=True)  # noqa: T201
        if dry.stopped:
            end = 0.0
        lacking[name] = missing(found)
        if any(row["trained"] for row in found["rows"].values()):
            write_record(options.record, name, found)
        if not lacking[name]:
            # Weights that nobody needs any more.
            for checkpoints in dry.runs.glob("*/*/*/checkpoints"):
                shutil.rmtree(checkpoints)
    for name, what in lacking.items():
        if what:
            tell(f"{name}: missing: {', '.join(what)}")
    late = time.monotonic() >= end
    return 0 if not any(lacking.values()) else 3 if late else 1


if __name__ == "__main__":
    sys.exit(main())
