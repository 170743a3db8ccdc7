"""Long nights: what a training keeps does not grow with its steps, neither in memory nor in objects."""

import gc
import json
import os
import pty
import subprocess
import sys
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Result, train_tiny

from distilkit.observer import Observer

REPOSITORY = Path(__file__).parents[1]
BATCH = 8
STEPS_PER_EPOCH = 161  # at least, of about 1,295 images

# The command line in a process of its own, which writes down in the end how much memory it had at most.
MEASURED = """
import resource, sys
from pathlib import Path
from distilkit import cli
try:
    cli.main(sys.argv[2:])
finally:
    Path(sys.argv[1]).write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
"""


def peak_memory(steps: int, folder: Path) -> int:
    """Kilobytes that a training of so many steps had at most, with TensorBoard, checkpoints and the live display."""
    folder.mkdir()
    (folder / "tiny.toml").write_text(TINY.replace("batch_size = 256", f"batch_size = {BATCH}"), encoding="utf-8")
    epochs = -(-steps // STEPS_PER_EPOCH)
    changes = ("method.name=baseline", f"train.epochs={epochs}", "train.checkpoint_epochs=10")
    words = [word for change in changes for word in ("--set", change)]
    master, slave = pty.openpty()
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "TERM": "xterm",
        "COLUMNS": "90",
    }
    command = [sys.executable, "-c", MEASURED, str(folder / "peak"), "train", "tiny.toml", "--device", "cpu", *words]
    with subprocess.Popen(command, cwd=folder, env=environment, stdin=slave, stdout=slave, stderr=slave) as process:
        os.close(slave)
        shown: list[int] = []

        def read() -> None:
            try:
                while part := os.read(master, 65536):
                    shown.append(len(part))
            except OSError:  # Linux says so where the other side is closed
                pass

        reader = threading.Thread(target=read)
        reader.start()
        assert process.wait(timeout=3600) == 0
        reader.join()
    os.close(master)
    assert sum(shown) > 100 * epochs, "the display was not on"
    (run,) = (folder / "runs").iterdir()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == epochs
    assert json.loads(lines[-1])["step"] >= steps
    assert list((run / "tensorboard").rglob("events*"))
    return int((folder / "peak").read_text())


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_training_of_20000_steps_has_the_memory_of_one_of_2000(tmp_path: Path) -> None:
    short, long = peak_memory(2_000, tmp_path / "short"), peak_memory(20_000, tmp_path / "long")
    print(f"\npeak memory: {short / 1024:.1f} MiB after 2,000 steps, {long / 1024:.1f} after 20,000")  # noqa: T201
    assert long <= 1.02 * short


class Held(Observer):
    """What the process holds after each epoch: tensors, bytes that Python has allocated, and at two of them objects."""

    def __init__(self, *looks: int) -> None:
        self.tensors: list[int] = []
        self.bytes: list[int] = []
        self.objects: dict[int, Counter[str]] = {epoch: Counter() for epoch in looks}

    def epoch_finished(self, line: Mapping[str, Any]) -> None:
        gc.collect()
        self.bytes.append(tracemalloc.get_traced_memory()[0])
        found = gc.get_objects()
        self.tensors.append(sum(isinstance(each, torch.Tensor) for each in found))
        if line["epoch"] in self.objects:
            self.objects[line["epoch"]].update(type(each).__name__ for each in found)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_a_training_holds_does_not_grow_from_epoch_to_epoch(tmp_path: Path) -> None:
    """With TensorBoard, a moving average, a validation split and checkpoints in mid-epoch."""
    held = Held(4, 8)
    tracemalloc.start()
    try:
        train_tiny(
            tmp_path, "group.students=2", "train.epochs=8", "train.ema=0.9", "data.validation=0.2",
            "train.checkpoint_steps=3", "train.clip_norm=1.0", observer=held,
        )  # fmt: skip
    finally:
        tracemalloc.stop()
    # The first epochs fill caches. After the fourth its objects were counted, which takes some memory itself.
    assert held.tensors[7] == held.tensors[3], held.tensors
    grown = held.objects[8] - held.objects[4]
    assert sum(grown.values()) < 4 * 40, {name: count for name, count in grown.items() if count > 4}
    assert held.bytes[7] - held.bytes[4] < 3 * 20_000, held.bytes


def test_the_report_opens_metrics_of_ten_thousand_epochs(
    baseline_run: Path, tmp_path: Path, distilkit: Callable[..., Result]
) -> None:
    import shutil

    run = Path(shutil.copytree(baseline_run, tmp_path / "runs" / "one"))
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    with (run / "metrics.jsonl").open("w") as file:
        for epoch in range(1, 10_001):
            file.write(json.dumps(line | {"epoch": epoch, "step": 6 * epoch}) + "\n")
    result = distilkit("report", run, "--no-figures", "--no-evaluate", "--json")
    assert result.status == 0, result.err
    assert (tmp_path / "runs" / "report.html").stat().st_size < 3_000_000
