"""How fast distilkit is, against scripts as most are written (`plain.py`), on the machine that runs this.

    python benchmarks/bench.py                        all of them, about half an hour on two cores
    python benchmarks/bench.py train_step evaluate    some
    python benchmarks/bench.py --quick                all of them, small, under two minutes: does it work at all?

Every benchmark lets its contestants take turns (see `racing.py`), prints what each did in every round, then the ratios:
the median over rounds with the lowest and the highest. It writes them with the machine and all versions to
docs/results/performance/<name>.json; `--quick` writes nothing unless told where. The plain loop is taken at its fastest
number of DataLoader workers, which is tried first. A machine that does other work as well gives ratios, not times.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from racing import RESULTS, Contestant, Times, machine, race, ratio, write

WORKERS = (0, 2, 4, 8)


@dataclass(frozen=True)
class Size:
    """How much is measured: rounds, steps of a training in a round, test images, images of a plain diversity."""

    rounds: int
    steps: int
    images: int
    pairs: int
    methods: tuple[str, ...]
    workers: tuple[int, ...]


FULL = Size(5, 12, 5_000, 400, ("baseline", "one", "okddip", "okddip_networks"), WORKERS)
QUICK = Size(1, 2, 500, 50, ("baseline", "one"), (0, 2))


def tell(line: str) -> None:
    """A line on stderr."""
    sys.stderr.write(f"{line}\n")


def fastest(of: Callable[[int], Contestant], size: Size) -> Contestant:
    """The plain contestant at its fastest number of workers, two rounds of each."""
    field = {workers: of(workers) for workers in size.workers}
    times = race(list(field.values()), min(2, size.rounds), tell)
    best = min(field.values(), key=lambda each: times[each.name].median / times[each.name].things)
    tell(f"fastest: {best.name}")
    return best


def figures(times: Mapping[str, Times], pairs: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """Every contestant's figures, and the ratios by name: (ours, theirs)."""
    ratios = {name: ratio(times, ours, theirs) for name, (ours, theirs) in pairs.items()}
    for name, found in ratios.items():
        tell(f"{name}: {found['median']:.2f} x ({found['low']:.2f} to {found['high']:.2f})")
    return {"contestants": {name: each.document() for name, each in times.items()}, "ratios": ratios}


def train_step(size: Size) -> dict[str, Any]:
    """Training steps, metrics included: every method against the plain loop, in fp32 and bf16, and its cost."""
    contestants, pairs = [], {}
    plains = {}
    for method in size.methods:

        def of(workers: int, method: str = method) -> Contestant:
            arguments = {"method": method, "workers": workers}
            return Contestant(
                f"plain {method}, {workers} workers", "contestants:plain_training", arguments, {}, size.steps
            )

        plains[method] = fastest(of, size)
        contestants.append(plains[method])
        for precision in ("fp32", "bf16"):
            name = f"{method} {precision}"
            arguments = {"method": method, "precision": precision}
            contestants.append(Contestant(name, "contestants:our_training", arguments, {}, size.steps))
            pairs[f"{name} / plain"] = (name, plains[method].name)
            if method != "baseline":
                pairs[f"cost of {name} / network"] = (f"baseline {precision}", name)
    return figures(race(contestants, size.rounds, tell), pairs)


def input_pipeline(size: Size) -> dict[str, Any]:
    """Training batches alone."""

    def of(workers: int) -> Contestant:
        return Contestant(
            f"plain, {workers} workers", "contestants:plain_input", {"workers": workers}, {}, 4 * size.steps
        )

    best = fastest(of, size)
    ours = Contestant("ours", "contestants:our_input", {}, {}, 40 * size.steps)
    return figures(race([best, ours], size.rounds, tell), {"ours / plain": ("ours", best.name)})


def evaluate(size: Size) -> dict[str, Any]:
    """All members, the ensemble and diversity of ONE on test images; diversity alone."""

    def of(workers: int) -> Contestant:
        arguments = {"method": "one", "workers": workers, "count": size.images}
        return Contestant(f"plain, {workers} workers", "contestants:plain_evaluation", arguments)

    best = fastest(of, size)
    contestants, pairs = [best], {}
    for precision in ("fp32", "bf16"):
        arguments = {"method": "one", "precision": precision, "count": size.images}
        contestants.append(Contestant(precision, "contestants:our_evaluation", arguments))
        pairs[f"{precision} / plain"] = (precision, best.name)
    arguments = {"students": 3, "count": size.pairs}
    contestants.append(Contestant("diversity, plain", "contestants:plain_diversity", arguments))
    contestants.append(Contestant("diversity", "contestants:our_diversity", {**arguments, "count": 50 * size.pairs}))
    pairs["diversity / plain"] = ("diversity", "diversity, plain")
    return figures(race(contestants, size.rounds, tell), pairs)


def perturbation(size: Size) -> dict[str, Any]:
    """Points of a perturbation curve."""
    images = size.images // 2

    def of(workers: int) -> Contestant:
        arguments = {"count": images, "workers": workers}
        return Contestant(f"plain, {workers} workers", "contestants:plain_perturbation", arguments, {}, 2)

    best = fastest(of, size)
    contestants, pairs = [best], {}
    for precision in ("fp32", "bf16"):
        arguments = {"count": images, "precision": precision}
        contestants.append(Contestant(precision, "contestants:our_perturbation", arguments, {}, 2))
        pairs[f"{precision} / plain"] = (precision, best.name)
    return figures(race(contestants, size.rounds, tell), pairs)


def export_latency(size: Size) -> dict[str, Any]:
    """Answers of the exported ResNet-32: PyTorch as it stands, ONNX Runtime, and with 8-bit integers."""
    contestants, pairs = [], {}
    for batch in (1, 128):
        count = 4 * size.steps if batch == 1 else max(1, size.steps // 3)
        forms: dict[str, dict[str, Any]] = {
            "eager": {"runtime": "eager"},
            "onnx": {"runtime": "onnxruntime"},
            "int8": {"runtime": "onnxruntime", "quantized": True},
        }
        for form, arguments in forms.items():
            name = f"{form}, batch {batch}"
            contestants.append(Contestant(name, "contestants:exported", {"batch": batch, **arguments}, {}, count))
        pairs[f"onnx / eager, batch {batch}"] = (f"onnx, batch {batch}", f"eager, batch {batch}")
        pairs[f"int8 / onnx, batch {batch}"] = (f"int8, batch {batch}", f"onnx, batch {batch}")
    return figures(race(contestants, size.rounds, tell), pairs)


def startup(size: Size) -> dict[str, Any]:
    """Whole commands: `--help`, `predict --help`, and a training on digits until its first epoch's line."""
    run = "import sys; from distilkit.cli import main; sys.argv = ['distilkit', *sys.argv[1:]]; main()"
    quickstart = ["train", "quickstart", "--set", "train.epochs=1", "--set", "method.rampup_epochs=0"]
    commands: dict[str, tuple[list[str], str | None]] = {
        "python alone": (["-c", "pass"], None),
        "--help": (["-c", run, "--help"], None),
        "--version": (["-c", run, "--version"], None),
        "train to its first step": (["-c", run, *quickstart], "images, 1 epochs"),
    }
    contestants = [
        Contestant(name, "contestants:command", {"arguments": arguments, "until": until})
        for name, (arguments, until) in commands.items()
    ]
    times = race(contestants, size.rounds, tell)
    for name, each in times.items():
        tell(f"{name}: {each.median:.2f} s ({min(each.seconds):.2f} to {max(each.seconds):.2f})")
    return figures(times, {})


def growth(size: Size) -> dict[str, Any]:
    """How cost grows: with students, with batch size, with the number of threads."""
    contestants, pairs = [], {}
    students = (1, 2, 4, 8) if size is FULL else (1, 2)
    for count in students:
        for kind, method in (("branches", "one"), ("networks", "okddip_networks")):
            if kind == "networks" and count < 4:
                continue
            arguments = {"method": method, "precision": "fp32", "overrides": [f"group.students={count}"]}
            name = f"{count} {kind}"
            contestants.append(Contestant(name, "contestants:our_training", arguments, {}, max(1, size.steps // 4)))
            pairs[f"cost of {name} / one network"] = ("1 branches", name)
    for batch in (32, 128, 512) if size is FULL else (32,):
        arguments = {"method": "one", "precision": "fp32", "overrides": [f"train.batch_size={batch}"]}
        steps = max(1, size.steps * 32 // batch)
        contestants.append(Contestant(f"batch {batch}", "contestants:our_training", arguments, {}, steps))
    for threads in (1, 2):
        arguments = {"method": "one", "precision": "fp32", "threads": threads}
        contestants.append(
            Contestant(f"{threads} threads", "contestants:our_training", arguments, {}, max(1, size.steps // 4))
        )
    pairs["2 threads / 1"] = ("2 threads", "1 threads")
    return figures(race(contestants, size.rounds, tell), pairs)


BENCHMARKS: dict[str, Callable[[Size], dict[str, Any]]] = {
    each.__name__: each
    for each in (train_step, input_pipeline, evaluate, perturbation, export_latency, startup, growth)
}


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmarks", nargs="*", metavar="BENCHMARK", help=f"some of {', '.join(BENCHMARKS)}")
    parser.add_argument("--quick", action="store_true", help="small; proves that it works, not how fast it is")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="where the JSON goes")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.benchmarks if name not in BENCHMARKS]:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    folder = options.results or (None if options.quick else RESULTS)
    size = QUICK if options.quick else FULL
    command = shlex.join(["python", "benchmarks/bench.py", *(sys.argv[1:] if arguments is None else arguments)])
    for name in options.benchmarks or BENCHMARKS:
        tell(f"== {name}: {(BENCHMARKS[name].__doc__ or '').splitlines()[0]}")
        around = machine()
        found = BENCHMARKS[name](size)
        if folder is not None:
            tell(f"written: {write(name, command, found, around, folder)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
