"""A run's model card: README.md in its folder, from the run's own figures only."""

from pathlib import Path
from typing import Any

from distilkit.analysis.cost import named_uses
from distilkit.errors import UserError
from distilkit.run import Run


def write_card(run: Run) -> Path:
    """Write `README.md` of a finished run; returns its path. Raises `UserError` when it cannot be written."""
    record, final, data = run.record, run.record["final"], run.data
    rows = []
    for name, error in final["errors"].items():
        shown = f"{name} (leader, deployed)" if name == record["leader"] else name
        rows.append(f"| {shown} | {error['top1']:.2f} | {error['top5']:.2f} |")
    best = final["best_on_test"]
    text = f"""# {run.recipe.name}

`{record["architecture"]}` trained with `{record["method"]}` by distilkit {record["distilkit"]}.

| | |
|---|---|
| data | {data.dataset}, {len(data.classes)} classes, {data.size} x {data.size}, {_counts(data.images)} |
| members | {", ".join(record["members"])} |
| leader | {record["leader"]} |
| parameters | {_both(record["parameters"], ",")} |
| FLOPs of one image (2 per multiply-add, convolutions and linear layers) | {_both(record["flops"], ".4g")} |
| epochs | {final["epochs"]} |
| reported weights | {final["selected"]["rule"]} (epoch {final["selected"]["epoch"]}) |
| seed | {record["seed"]}: one training, so nothing is known of the spread over seeds |
| device, precision | {record["device"]}, {record["precision"]["used"]} |

## Errors on the test images, percent

| classifier | top-1 | top-5 |
|---|---|---|
{chr(10).join(rows)}

Selected on the test set by the leader (as the papers' code selects, not an honest estimate): epoch {best["epoch"]}, \
leader {best["errors"][record["leader"]]["top1"]:.2f}.

{_costs(record)}## Intended use

To be filled in by whoever deploys this model.

Made by `{record["command"]}`.
"""
    file = run.path / "README.md"
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror or error}") from error
    return file


def _costs(record: dict[str, Any]) -> str:
    """The costs of every part; nothing for a run that an earlier version began."""
    if "parts" not in record:
        return ""
    rows = [
        f"| `{name}` | {part['parameters']:,} | {part['flops']:.4g} | {part['activations']:,} | {part['bytes']:,} |"
        for name, part in record["parts"].items()
    ]
    uncounted = record["uncounted"]
    missing = f"Not counted, so the costs are too low: {named_uses(uncounted)}.\n\n" if uncounted else ""
    return f"""## Costs

| part | parameters | FLOPs | activations | bytes |
|---|---|---|---|---|
{chr(10).join(rows)}

FLOPs of one image: 2 per multiply-add, convolutions and linear layers only. Activations: the numbers that these put
out for it. Bytes: weights and buffers as safetensors; the deployed file has {record["bytes"]["deploy"]:,}, and a
checkpoint, with the optimizer's state, {record["bytes"]["checkpoint"]:,}.

{missing}"""


def _both(costs: dict[str, int | None], form: str) -> str:
    shown = f"{costs['train']:{form}} in training, {costs['deploy']:{form}} deployed"
    return shown if costs.get("ensemble") is None else f"{shown}, {costs['ensemble']:{form}} as an ensemble"


def _counts(images: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {split}" for split, count in images.items()) + " images"
