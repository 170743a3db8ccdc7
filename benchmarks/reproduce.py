"""Run a table, methods x seeds, in slices that survive interruption, and write down what was really run.

    python benchmarks/reproduce.py small --data images --minutes 60 --jobs 2
    python benchmarks/reproduce.py small --rows baseline,one --seeds 0
    python benchmarks/reproduce.py small --tables-only
    python benchmarks/reproduce.py cifar100_vgg16 --plan

A table is a TOML file in benchmarks/tables/: rows (a recipe and what is changed in it), seeds, and what is changed in
all rows. Every (row, seed) is one training with its own folder below --runs; it is started, or resumed where a former
slice left it, until the minutes are over or a signal comes; then SIGTERM has every training save. Seeds go first, so
that all rows have seed 0 before any has seed 1. What is finished goes into docs/results/<table>.json, from which alone
the Markdown table and the figures beside it are made; what was not run is not there. What that file holds already is
not trained again, so a machine that keeps nothing between slices needs nothing but the committed file.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reproduce_figures import draw
from reproduce_tables import markdown

ROOT = Path(__file__).parents[1]
TABLES = ROOT / "benchmarks" / "tables"
RESULTS = ROOT / "docs" / "results"
INTERRUPTED = (130, 143, -signal.SIGTERM)
"""Exit statuses of a training that was asked to stop; the last, if it had not got as far as to save."""

FORMAT = 2
RATE = 25_000 * 2.285e8
"""FLOPs a second that --plan takes for granted: ONE with three branches of ResNet-32 at 25,000 images/s, an estimate
for a data-centre GPU that has not been measured yet."""
PROGRAM: tuple[str, ...] = (sys.executable, "-P", "-m", "distilkit")
"""What trains; benchmarks/dry_run.py has its own."""
CODE = "commit.txt"
"""Beside a cell's runs: which code began and continued them, a line for each slice."""
MACHINE = "machine.txt"
"""Beside it: how many threads a training was given and the machine's load, its own threads included, each minute."""


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

    @property
    def digest(self) -> str:
        """What this training is, wherever its images lie: recorded results of another training are not taken for it."""
        settings = [setting for setting in self.overrides if not setting.startswith("data.root=")]
        return hashlib.sha256("\n".join([self.recipe, *settings, f"seed={self.seed}"]).encode()).hexdigest()[:16]


def read_table(name: str) -> dict[str, Any]:
    """The table's file. Exits with a message that names those there are."""
    file = TABLES / f"{name}.toml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in TABLES.glob("*.toml")))
        sys.exit(f"there is no table {name!r}; there are: {known}")
    return tomllib.loads(file.read_text(encoding="utf-8"))


def cells(table: Mapping[str, Any], extra: tuple[str, ...]) -> list[Cell]:
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
    train = [*PROGRAM, "train"]
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


def recorded(name: str, folder: Path | None = None) -> dict[str, Any]:
    """What <name>.json in the results' folder holds; nothing where there is no such file."""
    file = (folder or RESULTS) / f"{name}.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found if found.get("format") == FORMAT else {}


def known(results: Mapping[str, Any], cell: Cell) -> dict[str, Any] | None:
    """A cell's recorded figures, if they are of this very training."""
    figures: dict[str, Any] | None = results.get("rows", {}).get(cell.row, {}).get(str(cell.seed))
    return figures if figures and figures["cell"] == cell.digest else None


def still_to_do(todo: list[Cell], before: Mapping[str, Any], robust: list[str]) -> list[Cell]:
    """The cells that must be trained here: not recorded, or needed by one that is not and whose run is needed."""
    missing = [cell for cell in todo if known(before, cell) is None]
    needed = {(cell.needs, cell.seed) for cell in missing}
    curves = before.get("robustness", {})
    needed |= {(row, cell.seed) for cell in todo for row in robust if str(cell.seed) not in curves.get(row, {})}
    return [cell for cell in todo if cell in missing or (cell.row, cell.seed) in needed]


def run_slice(todo: list[Cell], runs: Path, minutes: float, jobs: int, threads: int | None = None) -> list[str]:
    """Train until everything is done or the minutes are over; returns what failed, as lines.

    `threads`: what each training computes with; None leaves that to the training, or shares the cores among jobs.
    However this ends, by a signal too, every training is first asked to save.
    """
    end = time.monotonic() + 60 * minutes
    environment = _threads(jobs, threads)
    looked = time.monotonic() - 60
    commit = _commit()
    running: dict[str, tuple[Cell, subprocess.Popen[str]]] = {}
    failed: list[str] = []
    tried: set[str] = set()
    try:
        while time.monotonic() < end:
            for cell in todo:
                if len(running) >= jobs or cell.folder in tried:
                    continue
                line = command(cell, runs)
                if line is None:
                    continue
                tell(f"{time.strftime('%H:%M:%S')} {cell.folder}: {shlex.join(line[len(PROGRAM) :])}")
                (runs / cell.folder).mkdir(parents=True, exist_ok=True)
                with (runs / cell.folder / CODE).open("a", encoding="utf-8") as code:
                    code.write(f"{commit}\n")
                with (runs / cell.folder / "log.txt").open("a", encoding="utf-8") as log:
                    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=log, text=True, env=environment)
                running[cell.folder] = (cell, process)
                tried.add(cell.folder)
            if not running:
                break
            if time.monotonic() - looked >= 60:
                looked = time.monotonic()
                for cell, _ in running.values():
                    with (runs / cell.folder / MACHINE).open("a", encoding="utf-8") as machine:
                        machine.write(f"{environment.get('OMP_NUM_THREADS', 'auto')} {os.getloadavg()[0]:.2f}\n")
            time.sleep(0.2)
            failed += _reap(running)
    except KeyboardInterrupt:
        tell("interrupted; the trainings save what they have")
    for _, process in running.values():
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
    for _, process in running.values():
        process.wait()
    return failed + _reap(running)


def _threads(jobs: int, threads: int | None = None) -> dict[str, str]:
    """The environment in which several processes share the cores; each with all would wait for the others' threads."""
    if threads is None and jobs > 1:
        threads = max(1, (os.cpu_count() or 1) // jobs)
    return os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})


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


def perturb(table: Mapping[str, Any], before: Mapping[str, Any], runs: Path, jobs: int = 1) -> dict[str, Any]:
    """Perturbation curves (ONE, section 4.5) of the rows that ask for them: row -> seed -> curves.

    One command for each finished run, with the same directions' seed for all; what is recorded is kept. After a signal
    the rest is left to the next slice.
    """
    curves = {row: dict(seeds) for row, seeds in before.get("robustness", {}).items()}
    for row in table.get("robustness", {}).get("rows", []):
        for seed in table["seeds"]:
            what, run = state(runs / row / f"seed{seed}")
            if what != "done" or run is None or str(seed) in curves.get(row, {}):
                continue
            line = [*PROGRAM, "robustness", str(run), "--json"]
            tell(f"{time.strftime('%H:%M:%S')} {row}/seed{seed}: {shlex.join(line[len(PROGRAM) :])}")
            try:
                done = subprocess.run(line, capture_output=True, text=True, check=False, env=_threads(jobs))
            except KeyboardInterrupt:
                tell("interrupted; what was measured before is kept")
                return curves
            if done.returncode:
                tell(f"{row}/seed{seed}: robustness failed: {done.stderr.strip()}")
                continue
            found = json.loads(done.stdout)["runs"][0]
            kept = ("magnitudes", "curves", "cross_entropy", "images", "parameter_norm", "member")
            curves.setdefault(row, {})[str(seed)] = {key: _rounded(found[key]) for key in kept}
    return curves


def collect(
    name: str,
    table: Mapping[str, Any],
    todo: list[Cell],
    before: Mapping[str, Any],
    runs: Path,
    typed: str,
    jobs: int = 1,
) -> dict[str, Any]:
    """What has been run of a table: what its file held already, and the runs' own records; nothing else."""
    rows: dict[str, Any] = {}
    for cell in todo:
        what, run = state(runs / cell.folder)
        figures = known(before, cell)
        if figures is None and what == "done" and run is not None:
            figures = {"cell": cell.digest, **_figures(run)}
        if figures is not None:
            rows.setdefault(cell.row, {})[str(cell.seed)] = figures
    results = {
        "format": FORMAT,
        "table": name,
        "title": table["title"],
        "protocol": table["protocol"],
        "command": typed,
        "cells": len(todo),
        "rows": {row["name"]: rows[row["name"]] for row in table["rows"] if row["name"] in rows},
        "published": {row["name"]: row["published"] for row in table["rows"] if "published" in row},
        "figures": table.get("figures", []),
    }
    curves = perturb(table, before, runs, jobs)
    return results | ({"robustness": curves} if curves else {})


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
        "method": record["method"],
        "epochs": final["epochs"],
        "images": record["data"]["images"],
        "fingerprints": record["data"]["fingerprints"],
        "images_per_second": round(final["images_per_second"]),
        "minutes": round(sum(line["seconds"] for line in lines) / 60, 1),
        "flops": record["flops"],
        "precision": record["precision"]["used"],
        "device": record["device"],
        "versions": {key: record["versions"][key] for key in ("python", "torch")} | {"distilkit": record["distilkit"]},
        "commit": ", ".join(dict.fromkeys((run.parent / CODE).read_text(encoding="utf-8").split())),
        **_machine(run.parent / MACHINE),
        "curves": _curves(lines, ensemble),
    }


def _machine(file: Path) -> dict[str, Any]:
    """A cell's threads, and the load average beside it of a look each minute; nothing where none was kept."""
    if not file.is_file():
        return {}
    looks = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
    loads = [float(load) for _, load in looks]
    return {
        "threads": ", ".join(dict.fromkeys(threads for threads, _ in looks)),
        "load": {"mean": round(sum(loads) / len(loads), 2), "most": max(loads)},
    }


def _curves(lines: list[dict[str, Any]], ensemble: str | None) -> dict[str, Any]:
    """metrics.jsonl as columns, as far as figures need it: top-1 errors in percent, distances between peers.

    `train`: of every epoch, measured while the weights change; `test`: of the epochs in `test_epochs`. `weights`: what
    the method weighs students with, mean over the test images, of those epochs: ONE's gate, OKDDip's attention.
    """
    evaluated = [line for line in lines if "test" in line]
    columns: dict[str, Any] = {"test_epochs": [line["epoch"] for line in evaluated]}
    for split, of in (("train", lines), ("test", evaluated)):
        names = of[-1][split]["errors"]
        columns[split] = {name: [_rounded(line[split]["errors"][name]["top1"]) for line in of] for name in names}
        if ensemble in columns[split]:
            columns[f"{split}_ensemble"] = columns[split].pop(ensemble)
        if "diversity" in of[-1][split]:
            columns[f"{split}_diversity"] = [_rounded(line[split]["diversity"]) for line in of]
    for name in evaluated[-1]["test"].get("weights", {}):
        columns.setdefault("weights", {})[name] = [_rounded(line["test"]["weights"][name]) for line in evaluated]
    return columns


def _rounded(value: Any) -> Any:
    """Six digits: more than any figure shows, and the file stays readable."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return {key: _rounded(item) for key, item in value.items()} if isinstance(value, dict) else value


def _commit() -> str:
    """The code that trains, as git names it; with a plus sign where it was changed since."""

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)

    head = git("rev-parse", "--short=12", "HEAD").stdout.strip()
    changed = git("diff", "--quiet", "HEAD", "--", "distilkit", "recipes", "benchmarks").returncode
    return f"{head}{'+' if changed else ''}" if head else "unknown"


def plan(todo: list[Cell], rate: float) -> list[str]:
    """What the trainings cost, one line for each row, then all: nothing is trained, and no images are needed.

    `rate`: FLOPs of forward passes that a device trains in a second, in the papers' convention. Counted are the images
    of all epochs; evaluation is not.
    """
    from distilkit.data import datasets
    from distilkit.recipe import load
    from distilkit.workflows.train.train import dry_run

    lines, minutes_of_all = [], 0.0
    for row in dict.fromkeys(cell.row for cell in todo):
        of_row = [cell for cell in todo if cell.row == row]
        recipe = load(of_row[0].recipe, of_row[0].overrides)
        data = recipe.data
        images = datasets.spec(data.dataset, Path(data.root), data.image_size, data.channels).train_images or 0
        flops = dry_run(recipe)["flops"]["train"]
        minutes = recipe.train.epochs * images * flops / rate / 60
        minutes_of_all += len(of_row) * minutes
        lines.append(
            f"{row}: {flops:.3e} FLOPs an image, {images:,} images, {recipe.train.epochs} epochs: "
            f"{minutes:.0f} min a seed"
        )
    return [
        *lines,
        f"all {len(todo)} trainings: {minutes_of_all:.0f} min at {rate:.2e} FLOPs/s, {minutes_of_all / 60:.1f} h",
    ]


def write(results: dict[str, Any], folder: Path | None = None) -> list[Path]:
    """<table>.json in the results' folder, and all that is made of it."""
    folder = folder or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{results['table']}.json"
    partial = file.with_suffix(".json.partial")
    partial.write_text(dump(results) + "\n", encoding="utf-8")
    partial.replace(file)
    return [file, *render(results, folder)]


def dump(results: Mapping[str, Any]) -> str:
    """JSON in which a list or an object of plain values takes one line, so that a diff can be read."""
    text = json.dumps(results, indent=1)
    text = re.sub(r"([\[{])\n\s+([^\[\]{}]*?)\n\s*([\]}])", lambda found: _one_line(*found.groups()), text)
    assert json.loads(text) == results
    return text


def _one_line(opening: str, inside: str, closing: str) -> str:
    return opening + re.sub(r"\n\s+", " ", inside) + closing


def render(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """The Markdown page and the figures, of the JSON alone."""
    figures = draw(results, folder)
    page = folder / f"{results['table']}.md"
    page.write_text(markdown(results, [file.name for file in figures if file.suffix == ".png"]), encoding="utf-8")
    return [page, *figures]


def tell(line: str) -> None:
    """Progress, for people."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201


@contextlib.contextmanager
def _sigterm_like_ctrl_c() -> Iterator[None]:
    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _chosen(todo: list[Cell], table: Mapping[str, Any], options: argparse.Namespace) -> list[Cell]:
    """The cells of the rows and seeds that were asked for, and the teachers of those."""
    rows = {row["name"]: row.get("needs") for row in table["rows"]}
    wanted = set(options.rows or rows)
    if unknown := wanted - rows.keys():
        sys.exit(f"there is no row {', '.join(sorted(unknown))}; there are: {', '.join(rows)}")
    wanted |= {needs for row in wanted if (needs := rows[row])}
    seeds = options.seeds or [str(seed) for seed in table["seeds"]]
    return [cell for cell in todo if cell.row in wanted and str(cell.seed) in seeds]


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, also when the slice ended before the table was complete; 1 when a training failed."""
    parser = argparse.ArgumentParser(description="Run a table in slices and write down what was run.")
    parser.add_argument("table", help="a file's name in benchmarks/tables/, without .toml")
    parser.add_argument("--minutes", type=float, default=60.0, help="how long this slice may take")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once")
    parser.add_argument("--runs", type=Path, help="where runs are kept (runs/reproduce/<table>)")
    parser.add_argument("--data", help="sets data.root of every recipe")
    parser.add_argument("--rows", type=_names, metavar="ROW,ROW", help="train these rows only")
    parser.add_argument("--seeds", type=_names, metavar="SEED,SEED", help="train with these of the seeds only")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes every recipe")
    parser.add_argument("--results", type=Path, help="where results are written (docs/results)")
    parser.add_argument("--plan", action="store_true", help="train nothing; say what the table costs")
    parser.add_argument("--rate", type=float, default=RATE, help=f"for --plan: FLOPs a second ({RATE:.2e})")
    parser.add_argument("--tables-only", action="store_true", help="make table and figures again from the JSON")
    options = parser.parse_args(arguments)
    table = read_table(options.table)
    if options.set and not options.results:
        parser.error("with --set this is another table than the committed one: name a folder with --results")
    results = options.results or RESULTS
    before = recorded(options.table, results)
    if options.tables_only:
        if not before:
            sys.exit(f"{results / options.table}.json is not there: nothing has been run")
        render(before, results)
        return 0
    changed = (*([f"data.root={options.data}"] if options.data else []), *options.set)
    if options.plan:
        print("\n".join(plan(_chosen(cells(table, changed), table, options), options.rate)))  # noqa: T201
        return 0
    runs = options.runs or Path("runs") / "reproduce" / options.table
    todo = cells(table, changed)
    chosen = _chosen(still_to_do(todo, before, table.get("robustness", {}).get("rows", [])), table, options)
    with _sigterm_like_ctrl_c():
        failed = run_slice(chosen, runs, options.minutes, options.jobs, table.get("threads"))
        # Where the images lie is this machine's own business.
        typed = f"python benchmarks/reproduce.py {options.table}" + (" --data DATA" if options.data else "")
        typed += "".join(f" --set {shlex.quote(setting)}" for setting in options.set)
        if "robustness" in table:
            # Curves take minutes: what was trained is written down before them, should the machine be taken away.
            trained = {**table, "robustness": {}}
            write(collect(options.table, trained, todo, before, runs, typed), results)
        for file in write(collect(options.table, table, todo, before, runs, typed, options.jobs), results):
            print(file)  # noqa: T201
    for line in failed:
        tell(line)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
