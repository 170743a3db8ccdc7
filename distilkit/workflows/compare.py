"""`distilkit compare`: what distillation bought, run beside run."""

from pathlib import Path
from typing import Any

from distilkit.analysis.metrics import wilson95
from distilkit.errors import UserError
from distilkit.run import find_run, finished_runs


def compare(paths: list[Path], runs: Path) -> dict[str, Any]:
    """Final figures of several finished runs, all below `runs` unless some are named.

    One row per run and deployable classifier: the leader, and the method's own ensemble where there is one. Errors in
    percent with Wilson's 95 % interval over test images; costs of one image in the papers' convention. `uncounted`:
    operators that are missing from them.
    """
    found = [find_run(path, runs) for path in paths] or finished_runs(runs)
    rows: list[dict[str, Any]] = []
    for run in found:
        record = run.record
        if "final" not in record:
            raise UserError(f"{run.path} is not finished", f"continue it: distilkit train --resume {run.path}")
        images = run.data.images["test"]
        for name in (record["leader"], record["ensemble"]):
            if name is None:
                continue
            figures = record["final"]["errors"][name]
            whole = name == record["ensemble"]
            rows.append(
                {
                    "run": str(run.path),
                    "name": run.recipe.name,
                    "dataset": run.data.dataset,
                    "architecture": run.recipe.networks if whole else record["architecture"],
                    "method": record["method"],
                    "deployed": name,
                    "seed": record["seed"],
                    "epochs": record["final"]["epochs"],
                    "top1_error": figures["top1"],
                    "interval95": list(wilson95(round(figures["top1"] * images / 100), images)),
                    "parameters": record["parameters"]["ensemble" if whole else "deploy"],
                    "flops": record["flops"]["ensemble" if whole else "deploy"],
                    "train_flops": record["flops"]["train"],
                    # A run of an earlier version knows neither.
                    "activations": record.get("activations", {}).get("ensemble" if whole else "deploy"),
                    "bytes": record.get("bytes", {}).get("ensemble" if whole else "deploy"),
                    "uncounted": record.get("uncounted", {}),
                }
            )
    return {"rows": rows}
