"""The Markdown page of a table's results: what was run, and what the differences are worth."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distilkit.analysis.metrics import wilson95
from distilkit.analysis.statistics import Difference
from distilkit.analysis.statistics import welch as difference

Runs = Mapping[str, Mapping[str, Any]]
"""A row's figures by seed."""


def markdown(results: Mapping[str, Any], pictures: Sequence[str] = ()) -> str:
    """The page, made of the JSON alone. `pictures`: file names beside it."""
    lines = [f"# {results['title']}", "", results["protocol"], ""]
    if not results["rows"]:
        return "\n".join([*lines, "Nothing has been run yet.", "", f"To be made by `{results['command']}`.", ""])
    lines += _errors(results)
    lines += _differences(results)
    lines += _attention(results)
    lines += _every_run(results)
    for picture in pictures:
        lines += [f"![{picture}]({picture})", ""]
    lines += _made_how(results)
    return "\n".join(lines)


def leader(run: Mapping[str, Any]) -> float:
    """The deployed student's top-1 test error in percent."""
    return float(run["leader"])


def members_mean(run: Mapping[str, Any]) -> float:
    """The mean over the students, which the papers give for every method but OKDDip."""
    return statistics.fmean(run["members"].values())


def ensemble(run: Mapping[str, Any]) -> float | None:
    """The method's own ensemble's error in percent; None where there is none."""
    return None if run["ensemble"] is None else float(run["ensemble"])


def welch(
    results: Mapping[str, Any], of: Callable[[Mapping[str, Any]], float | None], baseline: str = "baseline"
) -> dict[str, Difference]:
    """Every row's difference to the baseline's leader with its 95 % interval (Welch), in points.

    Needs two seeds of each; rows of which `of` knows nothing are left out.
    """
    plain = [leader(run) for run in results["rows"].get(baseline, {}).values()]
    rows = {row: [of(run) for run in seeds.values()] for row, seeds in results["rows"].items() if row != baseline}
    known = {row: [error for error in errors if error is not None] for row, errors in rows.items()}
    return {row: difference(errors, plain) for row, errors in known.items() if min(len(errors), len(plain)) >= 2}


def wilson(error: float, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval of one run's error in percent, for the images that were drawn to test it."""
    return wilson95(round(error * images / 100), images)


def _errors(results: Mapping[str, Any]) -> list[str]:
    published = results["published"]
    columns = ["row", "seeds", "leader", "members' mean", "ensemble", "diversity", "images/s"]
    columns += ["published"] if published else []
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row, seeds in results["rows"].items():
        runs = list(seeds.values())
        line = [
            row,
            str(len(runs)),
            _mean([leader(run) for run in runs]),
            _mean([members_mean(run) for run in runs]) if len(runs[0]["members"]) > 1 else "",
            _mean([run["ensemble"] for run in runs if run["ensemble"] is not None]),
            _mean([run["diversity"] for run in runs if run["diversity"] is not None], digits=4),
            f"{statistics.median(run['images_per_second'] for run in runs):.0f}",
            *([str(published.get(row, ""))] if published else []),
        ]
        lines.append("| " + " | ".join(line) + " |")
    return [
        *lines,
        "",
        "Top-1 test errors in percent, mean +- sample deviation over seeds, of the last epoch. Diversity: mean "
        "Euclidean distance between two peers' predictions on the test images. images/s: of the training, median over "
        "seeds, on a machine that did other work as well.",
        "",
    ]


def _differences(results: Mapping[str, Any]) -> list[str]:
    by_leader, by_mean, by_ensemble = (welch(results, of) for of in (leader, members_mean, ensemble))
    if not by_leader:
        return ["With fewer than two seeds of the baseline nothing can be concluded about differences.", ""]
    lines = [
        "Difference to the baseline in points, with Welch's 95 % interval over seeds (no correction for there being "
        "several comparisons; below 0 is better):",
        "",
        "| row | leader | 95 % | members' mean | 95 % | ensemble | 95 % | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row, found in by_leader.items():
        several = len(next(iter(results["rows"][row].values()))["members"]) > 1
        mean = _difference(by_mean[row]) if several else ["", ""]
        together = _difference(by_ensemble[row]) if row in by_ensemble else ["", ""]
        ours, theirs = found.counts
        lines.append("| " + " | ".join([row, *_difference(found), *mean, *together, f"{ours}, {theirs}"]) + " |")
    return [*lines, ""]


def _difference(found: Difference) -> list[str]:
    known = found.low is not None and found.high is not None
    return [f"{found.difference:+.2f}", f"{found.low:+.2f} to {found.high:+.2f}" if known else "unknown"]


def _attention(results: Mapping[str, Any]) -> list[str]:
    """How much of its own prediction a peer's target is, for rows whose peers attend to one another."""
    lines = []
    for row, seeds in results["rows"].items():
        curves = [run["curves"] for run in seeds.values() if "attention" in run["curves"].get("weights", {})]
        if not curves:
            continue
        of_epochs = {
            epoch: [_own_share(curve["weights"]["attention"][curve["test_epochs"].index(epoch)]) for curve in curves]
            for epoch in _begin_middle_end(curves[0]["test_epochs"])
            if all(epoch in curve["test_epochs"] for curve in curves)
        }
        shown = ", ".join(f"{_mean(values, 3)} after {epoch}" for epoch, values in of_epochs.items())
        peers = len(curves[0]["weights"]["attention"][-1])
        lines.append(f"| {row} | {1 / peers:.3f} | {shown} epochs |")
    if not lines:
        return []
    return [
        "The share of a peer's own prediction in its target (OKDDip's attention alpha_aa, mean over peers and test "
        "images; mean over seeds):",
        "",
        "| row | even shares | share |",
        "|---|---|---|",
        *lines,
        "",
    ]


def _own_share(attention_AA: Sequence[Sequence[float]]) -> float:
    return statistics.fmean(attention_AA[a][a] for a in range(len(attention_AA)))


def _begin_middle_end(epochs: Sequence[int]) -> list[int]:
    return list(dict.fromkeys([epochs[0], epochs[len(epochs) // 2], epochs[-1]]))


def _every_run(results: Mapping[str, Any]) -> list[str]:
    machine = any("load" in run for seeds in results["rows"].values() for run in seeds.values())
    columns = ["row", "seed", "leader", "95 %", "ensemble", "best on test", "epochs", "precision"]
    columns += ["commit", "threads", "load (most)", "minutes"] if machine else []
    lines = [
        "Every run: the leader's error with Wilson's 95 % interval for the test images, and the lowest error of any "
        "evaluated epoch, chosen on the test set as the papers' code does and so no honest estimate"
        + (
            "; and the machine's load average, looked at each minute, with the training's own threads:"
            if machine
            else ":"
        ),
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
    ]
    for row, seeds in results["rows"].items():
        for seed, run in seeds.items():
            low, high = wilson(run["leader"], run["images"]["test"])
            ensemble = "" if run["ensemble"] is None else f"{run['ensemble']:.2f}"
            cells = [row, seed, f"{run['leader']:.2f}", f"{low:.2f} to {high:.2f}", ensemble]
            cells += [f"{run['best_on_test']:.2f}", str(run["epochs"]), run["precision"]]
            if machine:
                load = f"{run['load']['mean']:.1f} ({run['load']['most']:.1f})" if "load" in run else ""
                cells += [run["commit"], run.get("threads", ""), load, f"{run['minutes']:.0f}"]
            lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def _made_how(results: Mapping[str, Any]) -> list[str]:
    runs = [run for seeds in results["rows"].values() for run in seeds.values()]

    def all_of(values: Sequence[str]) -> str:
        return ", ".join(sorted(set(values)))

    images = all_of([f"{run['images']['train']:,} training and {run['images']['test']:,} test images" for run in runs])
    missing = results["cells"] - len(runs)
    return [
        f"{len(runs)} trainings{f' ({missing} of the table are still to be run)' if missing else ''}, "
        f"{sum(run['minutes'] for run in runs) / 60:.1f} hours of training in all, on {images}; "
        f"{all_of([run['device'] for run in runs])}; torch {all_of([run['versions']['torch'] for run in runs])}, "
        f"code {all_of([commit for run in runs for commit in run['commit'].split(', ')])}.",
        "",
        f"Made by `{results['command']}`; this page and its figures are made of the JSON file beside it by "
        f"`python benchmarks/reproduce.py {results['table']} --tables-only`.",
        "",
    ]


def _mean(values: Sequence[float], digits: int = 2) -> str:
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean
