"""The figures of the report's tables: of every run, of every recipe over its seeds, of every pair of recipes.

A run's are taken from its run.json; means and differences are handed in. None is rounded; whoever shows them rounds.
Errors in percent, costs in the papers' convention (FLOPs of one image, 2 per multiply-add).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distilkit.analysis.metrics import interval95
from distilkit.analysis.statistics import Difference, Spread
from distilkit.report.measured import Latencies, exported
from distilkit.runs.run import Run

SINGLE, ENSEMBLE = "single", "ensemble"


def run_facts(run: Run, timed: Latencies | None) -> dict[str, Any]:
    """What the tables say of one run. Figures that are not known are None, and `missing` says why.

    `classifiers`: the leader, the method's own ensemble, and the other members, by name; `role` says which.
    """
    record, data = run.record, run.data
    final = record.get("final")
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
        "best_on_test": final["best_on_test"] if final else None,
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
        "interval95": list(interval95(top1, images)) if top1 is not None and images else None,
        "parameters": record["parameters"][known] if known else None,
        "flops": record["flops"][known] if known else None,
        "bytes": record.get("bytes", {}).get(known) if known else None,
        "onnx_bytes": file.bytes if file else None,
        "latency_ms": latency,
    }


def group_facts(
    label: str,
    runs: Sequence[str],
    first: Mapping[str, Any],
    seeds: Sequence[int],
    errors: Mapping[str, Mapping[str, Spread]],
) -> dict[str, Any]:
    """What the tables say of the trainings of one recipe, of which those with these `seeds` count.

    `first`: `run_facts` of one that counts, if there is one; `errors`: by classifier and kind, over those that count.
    """
    return {
        "label": label,
        "method": first["method"],
        "networks": first["networks"],
        "dataset": first["dataset"],
        "runs": list(runs),
        "finished": len(seeds),
        "seeds": list(seeds),
        "train_flops": first["train_flops"],
        "train_parameters": first["train_parameters"],
        "classifiers": {
            name: {
                "role": classifier["role"],
                "top1_error": asdict(errors[name]["top1"]) if name in errors else None,
                "top5_error": asdict(errors[name]["top5"]) if name in errors else None,
                **{key: classifier[key] for key in ("parameters", "flops")},
            }
            for name, classifier in first["classifiers"].items()
        },
    }


def difference_facts(found: Difference) -> dict[str, Any]:
    """What the tables say of two recipes' difference. Negative: fewer errors."""
    if found.unknown:
        verdict = f"nothing can be concluded: {found.unknown}"
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


def recipe_differences(groups: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """The keys in which recipes differ, with each one's value in words; of the first run of every group."""
    recipes = [flat(run.recipe.model_dump(mode="json")) for run in groups]
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    rows = []
    for key in keys:
        values = [recipe.get(key) for recipe in recipes]
        if key not in ("name", "train.seed", "train.threads", "data.root") and any(
            value != values[0] for value in values
        ):
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


def short(path: str) -> str:
    """A run's name as people know it."""
    return Path(path).name
