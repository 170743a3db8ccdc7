"""The figures of the report's tables: of every run, of every recipe over its seeds, of every pair of recipes.

They are taken from run.json and rounded nowhere; whoever shows them rounds. Errors in percent, costs in the papers'
convention (FLOPs of one image, 2 per multiply-add).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distilkit.analysis.metrics import wilson95
from distilkit.analysis.statistics import Difference, spread, welch
from distilkit.report.measured import Latencies, exported
from distilkit.runs.run import Run

EVERY_PAIR = 16
"""Up to so many recipes on one data set each is compared with each; of more, each with the first."""

SINGLE, ENSEMBLE = "single", "ensemble"


def run_facts(run: Run, timed: Latencies | None) -> dict[str, Any]:
    """What the tables say of one run. Figures that are not known are None, and `missing` says why.

    `classifiers`: the leader, the method's own ensemble, and the other members, by name; `role` says which.
    """
    record, data = run.record, run.data
    final = record.get("final") if record["state"] == "done" else None
    missing: dict[str, str] = {}
    if final is None:
        missing["errors"] = f"this run is not finished (it is {record['state']})"
    names = [record["leader"], *filter(None, [record["ensemble"]])]
    names += [name for name in record["members"] if name not in names]
    images = data.images.get("test", 0)
    return {
        "run": str(run.path),
        "name": run.recipe.name,
        "state": record["state"],
        "method": record["method"],
        "networks": run.recipe.networks,
        "dataset": data.dataset,
        "test_images": images,
        "seed": record["seed"],
        "epochs": run.recipe.train.epochs,
        "selected": final["selected"] if final else None,
        "created": record.get("created"),
        "device": record.get("device"),
        "precision": record.get("precision", {}).get("used"),
        "train_flops": record["flops"]["train"],
        "train_parameters": record["parameters"]["train"],
        "uncounted": record.get("uncounted", {}),
        "classifiers": {name: _classifier(run, name, final, images, timed, missing) for name in names},
        "missing": missing,
    }


def _classifier(
    run: Run, name: str, final: Mapping[str, Any] | None, images: int, timed: Latencies | None, missing: dict[str, str]
) -> dict[str, Any]:
    record = run.record
    role = "leader" if name == record["leader"] else "ensemble" if name == record["ensemble"] else "member"
    known = {"leader": "deploy", "ensemble": "ensemble"}.get(role)
    errors = final["errors"].get(name) if final else None
    top1 = errors["top1"] if errors else None
    file = exported(run, {"leader": SINGLE, "ensemble": ENSEMBLE}.get(role, name))
    latency = timed.of(file.file) if timed and file else None
    if role != "member":
        mode = SINGLE if role == "leader" else ENSEMBLE
        if file is None:
            missing[f"onnx of {name}"] = f"not exported: distilkit export {run.path} --mode {mode}"
        if latency is None:
            missing[f"latency of {name}"] = (
                "not exported"
                if file is None
                else "not timed: distilkit benchmark RUN... --json > FILE, then report with --benchmark FILE"
            )
    return {
        "role": role,
        "top1_error": top1,
        "top5_error": errors["top5"] if errors else None,
        "interval95": list(wilson95(round(top1 * images / 100), images)) if top1 is not None and images else None,
        "parameters": record["parameters"][known] if known else None,
        "flops": record["flops"][known] if known else None,
        "bytes": record.get("bytes", {}).get(known) if known else None,
        "onnx_bytes": file.bytes if file else None,
        "latency_ms": latency,
    }


def group_facts(label: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the tables say of the trainings of one recipe; unfinished ones count in nothing.

    `top1_error`, `top5_error`: mean, sample deviation (None for one training) and number of trainings.
    """
    finished = [run for run in runs if run["selected"]]
    first = (finished or list(runs))[0]
    return {
        "label": label,
        "method": first["method"],
        "networks": first["networks"],
        "dataset": first["dataset"],
        "runs": [run["run"] for run in runs],
        "finished": len(finished),
        "seeds": [run["seed"] for run in finished],
        "train_flops": first["train_flops"],
        "train_parameters": first["train_parameters"],
        "classifiers": {
            name: {
                "role": classifier["role"],
                "top1_error": _spread(finished, name, "top1_error"),
                "top5_error": _spread(finished, name, "top5_error"),
                **{key: classifier[key] for key in ("parameters", "flops")},
            }
            for name, classifier in first["classifiers"].items()
        },
    }


def _spread(runs: Sequence[Mapping[str, Any]], name: str, key: str) -> dict[str, Any] | None:
    values = values_of(runs, name, key)
    return asdict(spread(values)) if values else None


def values_of(runs: Sequence[Mapping[str, Any]], name: str, key: str = "top1_error") -> list[float]:
    """One figure of one classifier, of every finished run."""
    return [run["classifiers"][name][key] for run in runs if run["classifiers"][name][key] is not None]


def differences(
    groups: Sequence[Mapping[str, Any]], runs: Sequence[Sequence[Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """For pairs of recipes on one data set: the difference of mean top-1 test errors, with Welch's 95 % interval.

    The leaders' of every pair, and the ensembles' where both have one. `ours` and `theirs` are places in `groups`.
    Negative: `ours` makes fewer errors. Of many recipes (`EVERY_PAIR`) only those with the first one.
    """
    found = []
    for first, second in _pairs(groups):
        for role in ("leader", "ensemble"):
            names = [_named(groups[place], role) for place in (first, second)]
            if None in names:
                continue
            values = [values_of(runs[place], str(name)) for place, name in zip((first, second), names, strict=True)]
            # The later one minus the earlier: what a method changed against the baseline before it.
            found.append(
                {
                    "ours": second,
                    "theirs": first,
                    "role": role,
                    "classifiers": [names[1], names[0]],
                    **_difference(welch(values[1], values[0])),
                }
            )
    return found


def _pairs(groups: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, int]]:
    by_data: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        if group["finished"]:
            by_data.setdefault(group["data_key"], []).append(place)
    for places in by_data.values():
        for index, first in enumerate(places if len(places) <= EVERY_PAIR else places[:1]):
            yield from ((first, second) for second in places[index + 1 :])


def _difference(found: Difference) -> dict[str, Any]:
    if min(found.counts) < 2:
        verdict = "nothing can be concluded: one training"
    elif found.low is None:
        verdict = "nothing can be concluded: no spread"
    elif not found.conclusive:
        verdict = "no difference shown"
    else:
        verdict = "fewer errors" if found.difference < 0 else "more errors"
    return {
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
        "counts": list(found.counts),
        "conclusive": found.conclusive,
        "verdict": verdict,
    }


def _named(group: Mapping[str, Any], role: str) -> str | None:
    return next((name for name, entry in group["classifiers"].items() if entry["role"] == role), None)


def data_key(run: Run) -> str:
    """Alike for runs whose test errors compare: the same test images, as far as is known."""
    data = run.data
    return f"{data.dataset}/{data.fingerprints.get('test', data.images.get('test'))}"


def recipe_differences(groups: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """The keys in which recipes differ, with each one's value in words; of the first run of every group."""
    recipes = [flat(run.recipe.model_dump(mode="json")) for run in groups]
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    rows = []
    for key in keys:
        values = [recipe.get(key) for recipe in recipes]
        if key not in ("name", "train.seed", "data.root") and any(value != values[0] for value in values):
            rows.append((key, [_written(value) for value in values]))
    return rows


def _written(value: object) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys: "method.temperature"."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def repeated_seeds(group: Mapping[str, Any]) -> list[int]:
    """The seeds that stand more than once among a recipe's trainings, which then are not independent."""
    seeds: list[int] = group["seeds"]
    return sorted({seed for seed in seeds if seeds.count(seed) > 1})


def short(path: str) -> str:
    """A run's name as people know it."""
    return Path(path).name
