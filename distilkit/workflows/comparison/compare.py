"""`distilkit compare`: what distillation bought, run beside run and recipe beside recipe."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from distilkit.analysis.metrics import interval95
from distilkit.errors import UserError, did_you_mean
from distilkit.runs.run import Run, finished_runs
from distilkit.workflows.comparison.group_statistics import difference, error_spreads
from distilkit.workflows.comparison.recipe_groups import (
    RecipeGroup,
    grouped,
    is_finished,
    name_without_seed,
    named_runs,
)
from distilkit.workflows.comparison.remarks import overall, within

SortKey = Literal["name", "method", "error", "seed", "parameters", "flops", "train-flops", "bytes"]

_MOST_NAMES = 12  # of recipes in a message
_NO_INTERVAL = {
    "one training": "one seed: nothing can be concluded",
    "no spread": "no spread over seeds: nothing can be concluded",
}


def compare(
    paths: list[Path], runs: Path, *, baseline: str | None = None, sort: SortKey | None = None
) -> dict[str, Any]:
    """Final figures of several finished runs, all below `runs` unless some are named.

    `rows`: one per run and deployable classifier: the leader, and the method's own ensemble where there is one. Errors
    in percent with Wilson's 95 % interval over test images; costs of one image in the papers' convention. `uncounted`:
    operators that are missing from them.

    `groups`: the same for the runs of one recipe apart from its seed (`grouping.grouped`), with mean and sample
    deviation over seeds. `differences`: of the leaders' top-1 errors, for every pair of groups, or of all others minus
    the group that `baseline` names (by its label, or by a recipe's name), with Welch's 95 % interval; `reason` says
    why there is none. `remarks`: in what runs differ that is not the question (see `remarks`), of everything, of each
    group and of each difference.

    Raises `UserError` for a run that is not finished, and for a baseline that is not there.
    """
    found = named_runs(paths, runs) or finished_runs(runs)
    for run in found:
        if not is_finished(run):
            raise UserError(f"{run.path} is not finished", f"continue it: distilkit train --resume {run.path}")
    groups = grouped(found)
    label_of = {run.path: group.label for group in groups for run in group.runs}
    rows = [row for run in found for row in _rows(run, label_of[run.path])]
    summaries = [summary for group in groups for summary in _summaries(group)]
    if sort is not None:
        rows.sort(key=lambda row: _sort_value(row, sort))
        summaries.sort(key=lambda summary: _sort_value(summary, sort))
        # An ensemble is no leader's rank.
        order = {each["group"]: place for place, each in enumerate(summaries) if each["leader"]}
        groups.sort(key=lambda group: order[group.label])
    if baseline is None:
        pairs = [(theirs, ours) for theirs, ours in itertools.combinations(groups, 2)]
    else:
        reference = _named(baseline, groups)
        pairs = [(reference, group) for group in groups if group is not reference]
    return {
        "rows": rows,
        "groups": summaries,
        "baseline": None if baseline is None else reference.label,
        "differences": [_difference(ours, theirs) for theirs, ours in pairs],
        "remarks": [asdict(remark) for remark in overall(groups, [(ours, theirs) for theirs, ours in pairs])],
    }


def _rows(run: Run, label: str) -> list[dict[str, Any]]:
    record, data = run.record, run.data
    images = data.images["test"]
    rows = []
    for name in _deployed(run):
        figures = record["final"]["errors"][name]
        rows.append(
            {
                "run": str(run.path),
                "name": run.recipe.name,
                "group": label,
                "dataset": data.dataset,
                "architecture": _architecture(run, name),
                "method": record["method"],
                "deployed": name,
                "seed": record["seed"],
                "epochs": record["final"]["epochs"],
                "test_images": images,
                "top1_error": figures["top1"],
                "top5_error": figures["top5"],
                "interval95": list(interval95(figures["top1"], images)),
                **_costs(run, name),
                "uncounted": record.get("uncounted", {}),
            }
        )
    return rows


def _summaries(group: RecipeGroup) -> list[dict[str, Any]]:
    """One per classifier that can be deployed; costs are the recipe's, and so the same for every seed."""
    trainings = group.trainings
    first = trainings[0]
    chosen = {run.path for run in trainings}
    errors = error_spreads(group)
    remarks = [asdict(remark) for remark in within(group)]
    return [
        {
            "group": group.label,
            "name": name_without_seed(first),
            "dataset": first.data.dataset,
            "architecture": _architecture(first, name),
            "method": first.record["method"],
            "deployed": name,
            "leader": name == first.record["leader"],
            "seeds": list(group.seeds),
            "runs": [str(run.path) for run in trainings],
            "repeated": [str(run.path) for run in group.runs if run.path not in chosen],
            "epochs": first.record["final"]["epochs"],
            "test_images": first.data.images["test"],
            "top1_error": asdict(errors[name]["top1"]),
            "top5_error": asdict(errors[name]["top5"]),
            **_costs(first, name),
            "remarks": remarks,
        }
        for name in _deployed(first)
    ]


def _deployed(run: Run) -> list[str]:
    return [name for name in (run.record["leader"], run.record["ensemble"]) if name is not None]


def _architecture(run: Run, name: str) -> str:
    return run.recipe.networks if name == run.record["ensemble"] else str(run.record["architecture"])


def _costs(run: Run, name: str) -> dict[str, Any]:
    record, whole = run.record, "ensemble" if name == run.record["ensemble"] else "deploy"
    return {
        "parameters": record["parameters"][whole],
        "flops": record["flops"][whole],
        "train_flops": record["flops"]["train"],
        # A run of an earlier version knows neither.
        "activations": record.get("activations", {}).get(whole),
        "bytes": record.get("bytes", {}).get(whole),
    }


def _difference(ours: RecipeGroup, theirs: RecipeGroup) -> dict[str, Any]:
    """The leaders' top-1 error of one group minus the other's, in points."""
    document: dict[str, Any] = {
        "group": ours.label,
        "baseline": theirs.label,
        "difference": None,
        "interval95": None,
        "seeds": [len(ours.seeds), len(theirs.seeds)],
        "conclusive": False,
    }
    compared = difference(ours, theirs)
    document["remarks"] = [asdict(remark) for remark in compared.remarks]
    found = compared.found
    if found is None:
        return {**document, "comparable": False, "reason": compared.incomparable}
    return {
        **document,
        "difference": found.difference,
        "interval95": None if found.unknown else [found.low, found.high],
        "conclusive": found.conclusive,
        "comparable": True,
        "reason": _NO_INTERVAL[found.unknown] if found.unknown else None,
    }


def _named(baseline: str, groups: Sequence[RecipeGroup]) -> RecipeGroup:
    """The group of that label, or the only one of that recipe."""
    by_label = {group.label: group for group in groups}
    if baseline in by_label:
        return by_label[baseline]
    same = [
        group for group in groups if any(baseline in (run.recipe.name, name_without_seed(run)) for run in group.runs)
    ]
    if len(same) == 1:
        return same[0]
    if same:
        labels = "; ".join(repr(group.label) for group in same)
        hint = f"--baseline '{same[0].label}'"
        if len({group.runs[0].recipe.train.precision for group in same}) > 1:
            hint += "; trainings of one recipe share a precision with --set train.precision=fp32, or bf16"
        raise UserError(f"--baseline {baseline} could be any of {labels}", hint)
    labels = "; ".join(list(by_label)[:_MOST_NAMES]) + ("; ..." if len(by_label) > _MOST_NAMES else "")
    raise UserError(
        f"--baseline {baseline} names no recipe of these runs; there are: {labels}",
        did_you_mean(baseline, by_label) or f"--baseline '{groups[0].label}'",
    )


def _sort_value(row: dict[str, Any], key: SortKey) -> tuple[bool, Any]:
    """Unknown figures go last. Of a group: its mean error, its first seed."""
    value: Any
    if key == "error":
        value = row["top1_error"]["mean"] if isinstance(row["top1_error"], dict) else row["top1_error"]
    elif key == "seed":
        value = row["seed"] if "seed" in row else row["seeds"][0]
    elif key == "name":
        value = row["group"]
    else:
        value = row[key.replace("-", "_")]
    return value is None, value
