"""How fast distilkit is, against scripts as most are written (`plain.py`), on the machine that runs this.

    python benchmarks/bench.py                        all of them, about half an hour on two cores
    python benchmarks/bench.py train_step evaluate    some
    python benchmarks/bench.py --quick                all of them, small, under two minutes: does it work at all?
    python benchmarks/bench.py --device cuda train_step evaluate     on a GPU, with the forms of a step that it has

Every benchmark lets its contestants take turns (see `racing.py`), prints what each did in every round, then the ratios:
the median over rounds with the lowest and the highest. It writes them with the machine and all versions to
docs/results/performance/<name>.json (of a GPU <name>_cuda.json); `--quick` writes nothing unless told where. The plain
loop is taken at its fastest number of DataLoader workers, which is tried first. A machine that does other work as well
gives ratios, not times.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from racing import RESULTS, Contestant, Times, machine, race, ratio, write

WORKERS = (0, 2, 4, 8)


@dataclass(frozen=True)
class Size:
    """How much is measured: rounds, steps of a training in a round, test images, images of a plain diversity.

    `forms`: of a training step, by name: precision and settings.
    """

    rounds: int
    steps: int
    images: int
    pairs: int
    methods: tuple[str, ...]
    workers: tuple[int, ...]
    device: str = "cpu"
    forms: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"fp32": ("fp32",), "bf16": ("bf16",)})


FULL = Size(9, 8, 5_000, 400, ("baseline", "one", "okddip", "okddip_networks"), WORKERS)
QUICK = Size(1, 2, 500, 50, ("baseline", "one"), (0, 2))
GRAPH, COMPILE = "train.cuda_graph=true", "train.compile=true"
FORMS = {
    "fp32": ("fp32",),
    "bf16": ("bf16",),
    "bf16 graph": ("bf16", GRAPH),
    "bf16 compiled": ("bf16", COMPILE),
    "bf16 compiled graph": ("bf16", COMPILE, GRAPH),
}


COMPILED = {
    "fp32": ("fp32",),
    "bf16": ("bf16",),
    "fp32 compiled": ("fp32", COMPILE),
    "bf16 compiled": ("bf16", COMPILE),
}


def on_cuda(size: Size) -> Size:
    """More steps, and the forms of a step that CUDA has."""
    return replace(size, device="cuda", steps=20 * size.steps, images=2 * size.images, forms=FORMS)


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
            arguments = {"method": method, "workers": workers, "device": size.device}
            # It is measured in as many seconds with a tenth of the steps.
            steps = size.steps if size.device == "cpu" else size.steps // 10
            return Contestant(f"plain {method}, {workers} workers", "contestants:plain_training", arguments, {}, steps)

        plains[method] = fastest(of, size)
        contestants.append(plains[method])
        for form, (precision, *overrides) in size.forms.items():
            name = f"{method} {form}"
            arguments = {"method": method, "precision": precision, "overrides": overrides, "device": size.device}
            contestants.append(Contestant(name, "contestants:our_training", arguments, {}, size.steps))
            pairs[f"{name} / plain"] = (name, plains[method].name)
            if method != "baseline" and "baseline" in size.methods:
                pairs[f"cost of {name} / network"] = (f"baseline {form}", name)
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
        arguments = {"method": "one", "workers": workers, "count": size.images, "device": size.device}
        return Contestant(f"plain, {workers} workers", "contestants:plain_evaluation", arguments)

    best = fastest(of, size)
    contestants, pairs = [best], {}
    for precision in ("fp32", "bf16"):
        arguments = {"method": "one", "precision": precision, "count": size.images, "device": size.device}
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
    """How cost grows: with students, batch size, images in the set; on CPUs with threads and processes too."""
    full, steps, found = size.rounds > 1, max(1, size.steps // 4), figures({}, {})
    precision, *settings = list(size.forms.values())[-1] if size.device == "cuda" else ("fp32",)

    def training(name: str, method: str, steps: int, *overrides: str, **arguments: Any) -> Contestant:
        always = {"method": method, "precision": precision, "overrides": [*settings, *overrides], "device": size.device}
        return Contestant(name, "contestants:our_training", {**always, **arguments}, {}, steps)

    def compare(*contestants: Contestant, as_cost: bool = False) -> None:
        """Against the first; each comparison by itself, for all that take part hold their memory at once."""
        first, *others = contestants
        pairs = {
            f"cost of {each.name} / {first.name}" if as_cost else f"{each.name} / {first.name}": (
                (first.name, each.name) if as_cost else (each.name, first.name)
            )
            for each in others
        }
        for part, value in figures(race(contestants, size.rounds, tell), pairs).items():
            found[part] |= value

    branches = range(1, 9) if full else (1, 2)
    compare(*(training(f"{n} branches", "one", steps, f"group.students={n}") for n in branches), as_cost=True)
    if full:
        networks = (training(f"{n} networks", "okddip_networks", steps, f"group.students={n}") for n in (4, 6, 8))
        compare(training("1 network", "baseline", steps), *networks, as_cost=True)
    batches = ((16, 32, 64, 128, 256, 512) if size.device == "cpu" else (128, 512, 2048, 8192)) if full else (32, 64)
    compare(*(training(f"batch {n}", "one", max(1, steps * 128 // n), f"train.batch_size={n}") for n in batches))
    sets = (1_000, 10_000, 50_000, 200_000) if full else (1_000, 2_000)
    compare(*(training(f"{n} images", "one", steps, count=n) for n in sets))
    if size.device == "cpu":
        compare(*(training(f"{n} threads", "one", steps, threads=n) for n in (1, 2)))
        less = {} if full else {"count": 64, "overrides": ["model.architecture=resnet8", "train.batch_size=16"]}
        compare(*(Contestant(f"{n} processes", "contestants:our_processes", {"processes": n, **less}) for n in (1, 2)))
    return found


BENCHMARKS: dict[str, Callable[[Size], dict[str, Any]]] = {
    each.__name__: each
    for each in (train_step, input_pipeline, evaluate, perturbation, export_latency, startup, growth)
}


ON_CUDA = ("train_step", "evaluate", "growth")


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmarks", nargs="*", metavar="BENCHMARK", help=f"some of {', '.join(BENCHMARKS)}")
    parser.add_argument("--quick", action="store_true", help="small; proves that it works, not how fast it is")
    parser.add_argument("--methods", help=f"of train_step, comma-separated: some of {', '.join(FULL.methods)}")
    parser.add_argument(
        "--compiled", action="store_true", help="train_step on a CPU also with train.compile: minutes more"
    )
    parser.add_argument("--forms", help="of train_step, comma-separated: some of those that it would have")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of train_step, evaluate and growth")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="where the JSON goes")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.benchmarks if name not in BENCHMARKS]:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    if options.device == "cuda" and (wrong := set(options.benchmarks or BENCHMARKS) - set(ON_CUDA)):
        parser.error(f"--device cuda is for {', '.join(ON_CUDA)}, not for {', '.join(sorted(wrong))}")
    folder = options.results or (None if options.quick else RESULTS)
    size = QUICK if options.quick else FULL
    if options.methods:
        size = replace(size, methods=tuple(options.methods.split(",")))
        if wrong := set(size.methods) - set(FULL.methods):
            parser.error(f"there is no method {', '.join(sorted(wrong))}; there are {', '.join(FULL.methods)}")
    if options.compiled:
        size = replace(size, forms=COMPILED)
    size = on_cuda(size) if options.device == "cuda" else size
    if options.forms:
        named = options.forms.split(",")
        if wrong := [form for form in named if form not in size.forms]:
            parser.error(f"there is no form {wrong[0]!r} here; there are {', '.join(size.forms)}")
        size = replace(size, forms={form: size.forms[form] for form in size.forms if form in named})
    command = shlex.join(["python", "benchmarks/bench.py", *(sys.argv[1:] if arguments is None else arguments)])
    for name in options.benchmarks or BENCHMARKS:
        tell(f"== {name}: {(BENCHMARKS[name].__doc__ or '').splitlines()[0]}")
        around = machine(options.device)
        found = BENCHMARKS[name](size)
        if folder is not None:
            named = name + ("_cuda" if options.device == "cuda" else "_compiled" if options.compiled else "")
            tell(f"written: {write(named, command, found, around, folder)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
