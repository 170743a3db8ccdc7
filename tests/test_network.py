"""No command opens a connection that the recipe does not ask for: whatever would is found at the socket."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY
from PIL import Image

REPOSITORY = Path(__file__).parents[1]

# Python runs this at the start of every process, the workers' too: no name is looked up, no address is connected to.
SITECUSTOMIZE = """
import os, socket, sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        address = arguments[1] if event in ("socket.connect", "socket.sendto") else arguments[0]
        if isinstance(address, (str, bytes)) and event == "socket.connect":
            return  # a file: processes of one machine that talk to each other
        with open(os.environ["CONNECTIONS"], "a") as file:
            file.write(f"{event} {address}\\n")
        raise OSError(f"no network here: {event} {address}")
sys.addaudithook(refuse)
"""

# One process for all, each command as the program runs it: imports are the slow part.
ALL = """
import sys
from distilkit import cli
for line in sys.stdin.read().splitlines():
    words = line.split("|")
    try:
        cli.main(words)
    except SystemExit as left:
        print("ENDED", words[0], left.code or 0, flush=True)
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITECUSTOMIZE)
    path = os.pathsep.join((str(tmp_path / "site"), str(REPOSITORY)))
    return {
        **os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CONNECTIONS": str(tmp_path / "connections"),
        "HOME": str(tmp_path),
    }  # fmt: skip


def test_no_command_opens_a_connection(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "tiny.toml").write_text(TINY.replace("epochs = 2", "epochs = 1"))
    Image.new("L", (8, 8)).save(tmp_path / "picture.png")
    commands = [
        "train|tiny.toml|--dry-run",
        "train|tiny.toml|--device|cpu",
        "evaluate",
        "ensemble-eval",
        "prune-branches",
        "export|--output|model.onnx",
        "predict|model.onnx|picture.png",
        "robustness|--steps|1|--directions|1|--images|10",
        "report|--no-figures",
        "compare",
        "runs",
        "models",
        "push|--to|published",
        "pull|published",
        "benchmark|model.onnx|--repetitions|1|--batch|1",
    ]
    done = subprocess.run(
        [sys.executable, "-c", ALL],
        input="\n".join(commands), cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    ended = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("ENDED ")]
    expected = [[words.partition("|")[0], "0"] for words in commands]
    assert ended == expected, (done.stdout[-3000:], done.stderr[-3000:])
    assert not (tmp_path / "connections").exists(), (tmp_path / "connections").read_text()


def test_what_would_connect_is_seen(tmp_path: Path, environment: dict[str, str]) -> None:
    """Where the recipe asks for it, it does: then the message names what could not be had."""
    (tmp_path / "tiny.toml").write_text(TINY.replace('"digits"', '"cifar10"\ndownload = true\nroot = "data"'))
    done = subprocess.run(
        [sys.executable, "-m", "distilkit", "train", "tiny.toml", "--device", "cpu", "--json"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "cifar-10" in json.loads(done.stdout)["error"]["message"]
    assert "getaddrinfo" in (tmp_path / "connections").read_text()
    assert not (tmp_path / "runs").exists()
