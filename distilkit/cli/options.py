"""Options that several commands share."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from distilkit.cli import completion

DeviceName = Literal["auto", "cpu", "cuda"]

Run = Annotated[
    Path | None,
    typer.Argument(
        metavar="[RUN]",
        help="A run's folder. Without it: the newest finished run.",
        autocompletion=completion.run_folders,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
Runs = Annotated[Path, typer.Option("--runs", metavar="FOLDER", help="Where runs are kept.")]
Device = Annotated[DeviceName, typer.Option("--device", help="Where to compute; auto: CUDA where there is one.")]
FileDevice = Annotated[
    Literal["cpu", "cuda"],
    typer.Option("--device", help="Where the file computes; cuda needs the package onnxruntime-gpu."),
]
Precision = Annotated[
    Literal["fp32", "bf16"],
    typer.Option("--precision", help="What the network computes in; bf16 is faster where there is hardware for it."),
]
Member = Annotated[
    str | None,
    typer.Option(
        "--member",
        metavar="NAME",
        help="A student other than the leader.",
        autocompletion=completion.member_names,
    ),
]
Checkpoint = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        metavar="NAME",
        help="last, best or step_N. Without it: best where there is one, else last.",
        autocompletion=completion.checkpoint_names,
    ),
]
DataRoot = Annotated[
    str | None, typer.Option("--data", metavar="FOLDER", help="Where the images are, if not where training had them.")
]
Output = Annotated[Path | None, typer.Option("--output", metavar="PATH", help="Where to write the results.")]
TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code",
        help="Allow this command to execute the module of a network of your own (package.module:builder).",
    ),
]

RUNS = Path("runs")
