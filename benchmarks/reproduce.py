"""Run a table, methods x seeds, in slices that survive interruption, and write down what was really run.

    python benchmarks/reproduce.py small --data images --minutes 60 --jobs 2
    python benchmarks/reproduce.py small --tables-only

A table is a TOML file in benchmarks/tables/: rows (a recipe and what is changed in it), seeds, and what is changed in
all rows. Every (row, seed) is one training with its own folder below --runs; it is started, or resumed where a former
slice left it, until the minutes are over; then SIGTERM has it save. Seeds go first, so that all rows have seed 0 before
any has seed 1. What is finished goes into docs/results/<table>.json, from which the Markdown table beside it is made;
what was not run is not there.
"""

import argparse
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import stats

ROOT = Path(__file__).parents[1]
TABLES = ROOT / "benchmarks" / "tables"
RESULTS = ROOT / "docs" / "results"
INTERRUPTED = (130, 143, -signal.SIGTERM)
"""Exit statuses of a training that was asked to stop; the last, if it had not got as far as to save."""


@dataclass(frozen=True)
class Cell:
    """One training of a table: a row with one seed."""

    row: str
    seed: int
    recipe: str
    overrides: tuple[str, ...]
    needs: str | None

    @property
    def folder(self) -> str:
        """What its runs are kept below."""
        return f"{self.row}/seed{self.seed}"


def read_table(name: str) -> dict[str, Any]:
    """The table's file. Exits with a message that names those there are."""
    file = TABLES / f"{name}.toml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in TABLES.glob("*.toml")))
        sys.exit(f"there is no table {name!r}; there are: {known}")
    return tomllib.loads(file.read_text(encoding="utf-8"))


def cells(table: dict[str, Any], extra: tuple[str, ...]) -> list[Cell]:
    """All trainings of a table, in the order in which they are run: seed by seed, teachers before their students."""
    common = (*table.get("overrides", ()), *extra)
    return [
        Cell(row["name"], seed, row["recipe"], (*common, *row.get("overrides", ())), row.get("needs"))
        for seed in table["seeds"]
        for row in table["rows"]
        if seed in row.get("seeds", table["seeds"])
    ]


def state(folder: Path) -> tuple[str, Path | None]:
    """("done" | "unfinished" | "new", the run's folder) of what is kept below `folder`."""
    records = sorted(folder.glob("*/run.json"))
    for record in records:
        if json.loads(record.read_text(encoding="utf-8"))["state"] == "done":
            return "done", record.parent
    return ("unfinished", records[-1].parent) if records else ("new", None)


def command(cell: Cell, runs: Path) -> list[str] | None:
    """What trains a cell, or continues it; None if it is done, or if its teacher is not there yet."""
    folder = runs / cell.folder
    what, run = state(folder)
    train = [sys.executable, "-m", "distilkit", "train"]
    if what == "done":
        return None
    if run is not None:
        return [*train, "--resume", str(run), "--json"]
    overrides = [*cell.overrides, f"train.seed={cell.seed}"]
    if cell.needs is not None:
        ready, teacher = state(runs / cell.needs / f"seed{cell.seed}")
        if ready != "done":
            return None
        overrides.append(f"teacher.run={teacher}")
    changed = [part for override in overrides for part in ("--set", override)]
    return [*train, cell.recipe, *changed, "--runs", str(folder), "--json"]


def run_slice(table: dict[str, Any], runs: Path, minutes: float, jobs: int, extra: tuple[str, ...]) -> list[str]:
    """Train until everything is done or the minutes are over; returns what failed, as lines."""
    end = time.monotonic() + 60 * minutes
    # Several trainings share the cores; each with all of them would wait for the others at every operator.
    environment = os.environ | ({"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} if jobs > 1 else {})
    running: dict[str, tuple[Cell, subprocess.Popen[str]]] = {}
    failed: list[str] = []
    tried: set[str] = set()
    todo = cells(table, extra)
    while time.monotonic() < end:
        for cell in todo:
            if len(running) >= jobs or cell.folder in running or cell.folder in tried:
                continue
            line = command(cell, runs)
            if line is None:
                continue
            print(f"{time.strftime('%H:%M:%S')} {cell.folder}: {shlex.join(line[3:])}", file=sys.stderr)  # noqa: T201
            (runs / cell.folder).mkdir(parents=True, exist_ok=True)
            with (runs / cell.folder / "log.txt").open("a", encoding="utf-8") as log:
                process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=log, text=True, env=environment)
            running[cell.folder] = (cell, process)
            tried.add(cell.folder)
        if not running:
            break
        time.sleep(0.2)
        failed += _reap(running)
    for _, process in running.values():
        process.send_signal(signal.SIGTERM)
    for _, process in running.values():
        process.wait()
    return failed + _reap(running)


def _reap(running: dict[str, tuple[Cell, subprocess.Popen[str]]]) -> list[str]:
    failed = []
    for folder, (cell, process) in list(running.items()):
        status = process.poll()
        if status is None:
            continue
        del running[folder]
        if status not in (0, *INTERRUPTED):
            failed.append(f"{cell.folder}: exit status {status}; see its log.txt")
    return failed


def collect(name: str, table: dict[str, Any], runs: Path, typed: str) -> dict[str, Any]:
    """What has been run of a table, from the runs' own records; nothing else."""
    rows: dict[str, Any] = {}
    for cell in cells(table, ()):
        what, run = state(runs / cell.folder)
        if what == "done" and run is not None:
            rows.setdefault(cell.row, {})[str(cell.seed)] = _figures(run)
    first = next((figures for seeds in rows.values() for figures in seeds.values()), None)
    return {
        "table": name,
        "title": table["title"],
        "protocol": table["protocol"],
        "command": typed,
        "versions": first["versions"] if first else {},
        "rows": {row["name"]: rows[row["name"]] for row in table["rows"] if row["name"] in rows},
        "published": {row["name"]: row["published"] for row in table["rows"] if "published" in row},
    }


def _figures(run: Path) -> dict[str, Any]:
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    final, leader, ensemble = record["final"], record["leader"], record["ensemble"]
    errors = final["errors"]
    return {
        "leader": errors[leader]["top1"],
        "members": {member: errors[member]["top1"] for member in record["members"]},
        "ensemble": errors[ensemble]["top1"] if ensemble else None,
        "best_on_test": final["best_on_test"]["errors"][leader]["top1"],
        "diversity": lines[-1]["test"].get("diversity"),
        "epochs": final["epochs"],
        "images": record["data"]["images"],
        "images_per_second": round(final["images_per_second"]),
        "precision": record["precision"]["used"],
        "device": record["device"],
        "versions": {key: record["versions"][key] for key in ("python", "torch")} | {"distilkit": record["distilkit"]},
        "recipe": record.get("recipe_digest"),
    }


def markdown(results: dict[str, Any]) -> str:
    """The table in words and figures, made of the JSON alone."""
    published = results["published"]
    columns = ["row", "seeds", "leader", "members' mean", "ensemble", "diversity", "images/s"]
    columns += ["published"] if published else []
    lines = [f"# {results['title']}", "", results["protocol"], ""]
    lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row, seeds in results["rows"].items():
        runs = list(seeds.values())
        cells_ = [
            row,
            str(len(runs)),
            _mean([run["leader"] for run in runs]),
            _mean([statistics.fmean(run["members"].values()) for run in runs]),
            _mean([run["ensemble"] for run in runs if run["ensemble"] is not None]),
            _mean([run["diversity"] for run in runs if run["diversity"] is not None], digits=4),
            f"{statistics.median(run['images_per_second'] for run in runs):.0f}",
        ]
        lines.append("| " + " | ".join([*cells_, *([str(published.get(row, ""))] if published else [])]) + " |")
    lines += ["", "Top-1 test errors in percent, mean +- sample deviation over seeds; the last epoch.", ""]
    differences = welch(results)
    if differences:
        lines += ["Leader's error minus the baseline's, with Welch's 95 % interval over seeds:", ""]
        lines += ["| row | difference | 95 % | seeds |", "|---|---|---|---|"]
        for row, found in differences.items():
            interval = f"{found['low']:+.2f} to {found['high']:+.2f}"
            ours, baselines = found["seeds"]
            lines.append(f"| {row} | {found['difference']:+.2f} | {interval} | {ours}, {baselines} |")
        lines.append("")
    runs = [run for seeds in results["rows"].values() for run in seeds.values()]
    if runs:
        epochs = sorted({run["epochs"] for run in runs})
        lines.append(
            f"{len(runs)} trainings of {', '.join(map(str, epochs))} epochs on {runs[0]['images']['train']:,} training "
            f"and {runs[0]['images']['test']:,} test images; {', '.join(sorted({run['device'] for run in runs}))}, "
            f"{', '.join(sorted({run['precision'] for run in runs}))}; torch {runs[0]['versions']['torch']}."
        )
    else:
        lines.append("Nothing has been run yet.")
    lines += ["", f"Made by `{results['command']}`.", ""]
    return "\n".join(lines)


def welch(results: dict[str, Any], baseline: str = "baseline") -> dict[str, dict[str, Any]]:
    """Difference of the leader's error to the baseline's, for every row with two seeds or more, in points."""
    rows = {row: [run["leader"] for run in seeds.values()] for row, seeds in results["rows"].items()}
    if len(rows.get(baseline, [])) < 2:
        return {}
    differences = {}
    for row, errors in rows.items():
        if row != baseline and len(errors) >= 2:
            interval = stats.ttest_ind(errors, rows[baseline], equal_var=False).confidence_interval(0.95)
            differences[row] = {
                "difference": statistics.fmean(errors) - statistics.fmean(rows[baseline]),
                "low": float(interval.low),
                "high": float(interval.high),
                "seeds": (len(errors), len(rows[baseline])),
            }
    return differences


def _mean(values: list[float], digits: int = 2) -> str:
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def write(results: dict[str, Any]) -> list[Path]:
    """docs/results/<table>.json and .md."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    file = RESULTS / f"{results['table']}.json"
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    page = file.with_suffix(".md")
    page.write_text(markdown(results), encoding="utf-8")
    return [file, page]


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, also when the slice ended before the table was complete; 1 when a training failed."""
    parser = argparse.ArgumentParser(description="Run a table in slices and write down what was run.")
    parser.add_argument("table", help="a file's name in benchmarks/tables/, without .toml")
    parser.add_argument("--minutes", type=float, default=60.0, help="how long this slice may take")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once")
    parser.add_argument("--runs", type=Path, help="where runs are kept (runs/reproduce/<table>)")
    parser.add_argument("--data", help="sets data.root of every recipe")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes every recipe")
    parser.add_argument("--tables-only", action="store_true", help="make the Markdown again from the committed JSON")
    options = parser.parse_args(arguments)
    table = read_table(options.table)
    if options.tables_only:
        results = json.loads((RESULTS / f"{options.table}.json").read_text(encoding="utf-8"))
        (RESULTS / f"{options.table}.md").write_text(markdown(results), encoding="utf-8")
        return 0
    runs = options.runs or Path("runs") / "reproduce" / options.table
    extra = (*([f"data.root={options.data}"] if options.data else []), *options.set)
    failed = run_slice(table, runs, options.minutes, options.jobs, extra)
    typed = f"python benchmarks/reproduce.py {options.table}" + "".join(f" --set {shlex.quote(s)}" for s in options.set)
    for file in write(collect(options.table, table, runs, typed)):
        print(file)  # noqa: T201
    for line in failed:
        print(line, file=sys.stderr)  # noqa: T201
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
