"""`distilkit doctor`."""

from typing import Annotated, Any

import typer

from distilkit.cli import options


def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Leave out how fast this machine trains.")] = False,
    runs: options.Runs = options.RUNS,
    json_output: options.Json = False,
) -> None:
    """What this machine has, what is missing or broken, how fast it trains, and what to do about it.

    Exit status 1 when something that distilkit needs is missing or broken.

    Examples:

      distilkit doctor

      distilkit doctor --quick --json
    """
    from distilkit.cli import console
    from distilkit.workflows.project.doctor import doctor as workflow

    quiet = json_output or not console.stderr.is_terminal
    document = workflow(
        runs,
        quick=quick,
        tell=(lambda message: None) if quiet else lambda message: console.tell(f"{message} ...", "dim"),
    )
    console.print_json(document) if json_output else _show(document)
    if not document["passed"]:
        raise typer.Exit(1)


def _show(document: dict[str, Any]) -> None:
    from distilkit.cli import console

    console.print_table(
        f"distilkit {document['distilkit']}",
        ["package", "version", "state", "to install"],
        [
            [
                f"{row['name']}{'' if row['needed'] else ' (optional)'}",
                row["version"] or "-",
                row["state"],
                row["install"] or "",
            ]
            for row in document["packages"]
        ],
    )
    cpu, threads, storage = document["cpu"], document["threads"], document["storage"]
    native = {True: "yes", False: "no", None: "not known"}[cpu["native_bf16"]]
    set_threads = ", ".join(
        f"{name}={threads[name]}" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if threads[name]
    )
    rows = [
        ["Python", f"{document['python']}, {document['executable']}"],
        ["system", document["system"]],
        ["CPU", cpu["model"]],
        ["cores", f"{cpu['usable_cores']} of {cpu['cores']} may be used"],
        ["bfloat16 in the CPU", f"{native}: {cpu['native_bf16_reason']}"],
        ["threads", f"torch {threads['torch'] or '-'}{', ' + set_threads if set_threads else ''}"],
        *_auto(document["auto"]),
        ["ONNX Runtime on", ", ".join(document["onnxruntime_providers"] or ["-"])],
    ]
    for device in document["devices"] or []:
        memory = device["memory_bytes"]
        free = "" if memory is None else f", {device['free_bytes'] / 1e9:.1f} of {memory / 1e9:.1f} GB free"
        rows.append([device["device"], f"{device['name']}{free}"])
    if not document["devices"]:
        rows.append(["accelerator", "none"])
    free = "-" if storage["free_bytes"] is None else f"{storage['free_bytes'] / 1e9:.1f} GB free"
    rows.append([f"runs in {storage['runs']}/", f"{free}, {'writable' if storage['writable'] else 'NOT writable'}"])
    if storage["shared_memory_bytes"] is not None:
        rows.append(["/dev/shm", f"{console.amount(storage['shared_memory_bytes'])} free"])
    console.print_table("this machine", ["", "value"], rows)
    if document["speed"]:
        console.print_table(
            "how fast it trains, images/s",
            ["recipe", "network", "method", "batch", "fp32", "bf16"],
            [
                [row["recipe"], row["network"], row["method"], str(row["batch_size"]), *_speeds(row)]
                for row in document["speed"]
            ],
            f"forward and backward passes on {document['speed'][0]['device']}, images in memory; other programs that "
            "run now make it slower",
        )
    for kind, colour in (("problems", "red"), ("warnings", "yellow")):
        for note in document[kind]:
            console.tell(f"{'error' if kind == 'problems' else 'warning'}: {note['problem']}", colour)
            if note["hint"]:
                console.tell(f"  hint: {note['hint']}", "yellow")
    if not document["problems"]:
        console.print_line("all that distilkit needs is there and works")


def _auto(auto: dict[str, dict[str, Any]] | None) -> list[list[str]]:
    """What "auto" means here, in words."""
    if auto is None:
        return []
    precision, threads = auto["precision"], auto["threads"]
    fewer = ", fewer for small networks" if threads["value"] > 1 and "core" in threads["reason"] else ""
    return [
        ['train.precision = "auto"', f"{precision['value']}: {precision['reason']}"],
        ['train.threads = "auto"', f"{threads['value']}{fewer}: {threads['reason']}"],
    ]


def _speeds(row: dict[str, Any]) -> list[str]:
    return [f"{row[precision]:,.0f}" for precision in ("fp32", "bf16")]
