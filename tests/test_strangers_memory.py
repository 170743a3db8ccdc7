"""Files of a stranger that are small on the disk and large in memory: each is refused before it takes any."""

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import TINY, Result, train_tiny
from safetensors.torch import save_file

from distilkit import memory, reading
from distilkit.data import datasets, npz
from distilkit.errors import SettingError, UserError
from distilkit.learners.build import build_learner
from distilkit.learners.pretrained import read_weights
from distilkit.models import outline, registry
from distilkit.observer import Observer
from distilkit.recipe import load
from distilkit.runs import metrics as log
from distilkit.runs.run import PrunedModel, Run
from distilkit.workflows.deploy.prune_branches import prune_branches

Command = Callable[..., Result]
GIGABYTE = 2**30
HUGE = 3 * 2**29
HUGE_NETWORK = "torchvision:regnet_y_128gf"  # 2.6 GB of weights

# A file that is refused is not read; one within the stated bounds may take what Python's objects do.
REFUSED, PARSED = GIGABYTE // 4, GIGABYTE

# What Python, and pydantic's parser, make the most of.
WITHIN = {
    "lists": b'{"x": [' + b"[]," * 499_000 + b"0]}",
    "nested lists": b'{"x": [' + (b"[" * 100 + b"]" * 100 + b",") * 9_800 + b"0]}",
    "numbers": b'{"x": [' + b"1," * 999_000 + b"0]}",
    "faults": b'{"settings": {}, "runs": [' + b"0," * 999_000 + b"0]}",
}

DRIVER = """
import contextlib, gc, io, json, pathlib, resource, sys
from distilkit import cli
from distilkit.errors import UserError

resource.setrlimit(resource.RLIMIT_DATA, (4 * 2**30, 4 * 2**30))  # the machine is not the test's

def kilobytes(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])

for name, words in json.load(sys.stdin):
    gc.collect()
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, status, out = kilobytes("VmRSS:"), None, io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            if words[0] == "-c":
                exec(words[1])
                status = 0
            else:
                cli.main(words)
        except SystemExit as end:
            status = end.code
        except UserError as error:
            status = 2
            print(error)
    grown = kilobytes("VmHWM:") - before
    sys.__stdout__.write(json.dumps([name, {"status": status, "said": out.getvalue(), "grown": 1024 * grown}]) + "\\n")
"""


PEAK = """
import atexit, pathlib, sys
from distilkit.__main__ import main

def peak():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    print(next(line for line in lines if line.startswith("VmHWM:")).split()[1], file=sys.stderr)

atexit.register(peak)
sys.argv = ["distilkit"]
main()
"""


class Answer(NamedTuple):
    """Exit status, all that was printed, and bytes by which the process grew meanwhile."""

    status: int
    said: str
    grown: int


def sparse(file: Path) -> Path:
    """A gigabyte and a half of zeros, which takes no room on the disk."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    os.truncate(file, HUGE)
    return file


def deflated(head: bytes, size: int) -> bytes:
    """A stream that unpacks to `head` and zeros, `size` bytes together, made without packing them all."""
    packer, step = zlib.compressobj(9, zlib.DEFLATED, -15), 2**24
    stream = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(step)) + packer.flush(zlib.Z_FULL_FLUSH)
    whole, rest = divmod(size - len(head), step)
    return stream + block * whole + packer.compress(bytes(rest)) + packer.flush()


def packed(file: Path, members: Mapping[str, bytes | tuple[bytes, int]]) -> Path:
    """A zip archive; a member is bytes, or a head and the size that it is to unpack to."""
    content, directory = b"", b""
    for name, member in members.items():
        stored = isinstance(member, bytes)
        data, size = (member, len(member)) if isinstance(member, bytes) else (deflated(*member), member[1])
        checksum = zlib.crc32(data) if stored else 0
        fields = struct.pack("<HHHHHIIIHH", 20, 0, 0 if stored else 8, 0, 33, checksum, len(data), size, len(name), 0)
        directory += b"PK\1\2" + struct.pack("<H", 20) + fields + struct.pack("<HHHII", 0, 0, 0, 0, len(content))
        directory += name.encode()
        content += b"PK\3\4" + fields + name.encode() + data
    end = struct.pack("<HHHHIIH", 0, 0, len(members), len(members), len(directory), len(content), 0)
    file.write_bytes(content + directory + b"PK\5\6" + end)
    return file


def weights_with_a_packed_record(file: Path) -> Path:
    """A state dict as torch.save writes it, but for one tensor, which is packed and much larger."""
    torch.save({"fc.bias": torch.zeros(10)}, file)
    with zipfile.ZipFile(file) as archive:
        members: dict[str, bytes | tuple[bytes, int]] = {name: archive.read(name) for name in archive.namelist()}
    record = next(name for name in members if name.endswith("/data/0"))
    return packed(file, members | {record: (b"", HUGE)})


class _Bytes:
    """Pickled as a gigabyte and a half of zeros in a line."""

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return bytearray, (HUGE,)


def weights_with_a_bytearray(file: Path) -> Path:
    torch.save({"fc.bias": _Bytes()}, file)
    return file


def arrays_with_a_long_head(file: Path) -> Path:
    """NumPy's second format has heads of up to four gigabytes."""
    head = b"\x93NUMPY\2\0" + struct.pack("<I", HUGE - 12)
    return packed(file, {"x_train.npy": (head, HUGE)})


def archive_with_a_long_directory(file: Path) -> Path:
    sparse(file)
    with file.open("ab") as stream:
        stream.write(b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, HUGE, 0, 0))
    return file


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("trained"), "train.epochs=1")


@pytest.fixture(scope="module")
def answers(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    """What every command answers to its file, all in one process, which has answered to an ordinary run before."""
    if sys.platform != "linux":
        pytest.skip("the peak of a process's memory begins anew on Linux alone")
    place = tmp_path_factory.mktemp("hostile")
    (place / "tiny.toml").write_text(TINY)
    asked: list[tuple[str, list[object]]] = []

    def run(name: str) -> Path:
        return Path(shutil.copytree(trained, place / name.replace("/", "-") / "one", symlinks=True))

    def report(path: Path, *more: object) -> list[object]:
        return ["report", path, "--no-evaluate", "--no-figures", "--output", path.parent / "report.html", *more]

    def train(*settings: str) -> list[object]:
        sets = [word for setting in settings for word in ("--set", setting)]
        return ["train", place / "tiny.toml", "--runs", place / "new", "--device", "cpu", *sets]

    def code(text: str, path: Path) -> list[object]:
        return ["-c", f"path = pathlib.Path({str(path)!r}); {text}"]

    ordinary = run("ordinary")
    asked += [("ordinary evaluate", ["evaluate", ordinary, "--device", "cpu"]), ("ordinary report", report(ordinary))]

    path = run("run.json")
    sparse(path / "run.json")
    asked += [("run.json", ["evaluate", path]), ("run.json among runs", ["runs", "--runs", path.parent])]
    path = run("recipe.toml")
    sparse(path / "recipe.toml")
    asked += [("recipe.toml", ["evaluate", path]), ("recipe.toml among runs", ["runs", "--runs", path.parent])]
    asked += [("recipe to show", ["recipes", "show", path / "recipe.toml"])]
    metrics = "from distilkit.runs.run import Run; Run.open(path).metrics()"
    path = run("metrics.jsonl")
    sparse(path / "metrics.jsonl")
    asked += [("metrics.jsonl", code(metrics, path)), ("metrics.jsonl in a report", report(path))]
    path = run("metrics within the bound")
    deep = b'{"epoch": 1, "x": [' + b",".join([b'{"a":' * 700 + b"0" + b"}" * 700] * 2) + b"]}\n"
    (path / "metrics.jsonl").write_bytes(deep * 2_000)
    asked += [("metrics within the bound", code(metrics, path))]
    card = "from distilkit.observer import Observer; from distilkit.workflows.share import cards; "
    card += "observer = Observer(); observer.note = print; cards.refresh(path, observer)"
    path = run("README.md")
    sparse(path / "README.md")
    asked += [("README.md", code(card, path))]
    path = run("state.json")
    sparse(next((path / "checkpoints").glob("step_*")) / "state.json")
    asked += [("state.json", ["evaluate", path])]
    curves = "from distilkit.report import measured; from distilkit.runs.run import Run; "
    curves += "print(measured.robustness_of([Run.open(path)])[1])"
    path = run("robustness.json")
    sparse(path / "robustness" / "robustness.json")
    asked += [("robustness.json", code(curves, path)), ("robustness.json in a report", report(path))]
    asked += [("robustness.json in a card", code(card, path))]
    for name, content in WITHIN.items():
        path = run(f"robustness of {name}")
        (path / "robustness").mkdir()
        (path / "robustness" / "robustness.json").write_bytes(content)
        asked += [(f"robustness of {name}", code(curves, path)), (f"card of {name}", code(card, path))]
    path = run("test.json")
    sparse(path / "report" / "test.json")
    kept = "from distilkit.workflows.evaluation import predictions_cache as cache; "
    kept += "print(cache._kept(path / 'report' / 'test.json'))"
    asked += [("test.json", code(kept, path))]
    path = run("trackers.json")
    sparse(path / "trackers.json")
    asked += [("trackers.json", code("from distilkit.training import tracking; tracking._identities(path)", path))]
    asked += [("latency.json", report(ordinary, "--benchmark", sparse(place / "latency.json")))]
    asked += [("thresholds", ["robustness", ordinary, "--thresholds", sparse(place / "checks.toml")])]

    pictures = "data.dataset=npz"
    file = arrays_with_a_long_head(place / "head.npz")
    asked += [("head.npz", [*train(pictures, f"data.root={file}"), "--dry-run"])]
    file = archive_with_a_long_directory(place / "directory.npz")
    asked += [("directory.npz", [*train(pictures, f"data.root={file}"), "--dry-run"])]
    for name, made in {"packed.pth": weights_with_a_packed_record, "bytes.pth": weights_with_a_bytearray}.items():
        asked += [(name, train(f"model.pretrained={made(place / name)}"))]
    file = archive_with_a_long_directory(place / "directory.pth")
    with file.open("r+b") as stream:
        stream.write(b"PK\3\4")
    asked += [("directory.pth", train(f"model.pretrained={file}"))]
    # The architecture's weights but for one, which is far too large.
    state = registry.create("resnet8", 10, 1).state_dict()
    state["conv1.weight"] = torch.zeros(HUGE // 4, device="meta")
    head, end = {}, 0
    for key, tensor in state.items():
        size = tensor.numel() * tensor.element_size()
        kind = "F32" if tensor.is_floating_point() else "I64"
        head[key] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    for name, text in {"large": json.dumps(head).encode(), "head": b"{" + b" " * (40 * 2**20)}.items():
        file = place / f"{name}.safetensors"
        text += b" " * (-len(text) % 8)
        file.write_bytes(struct.pack("<Q", len(text)) + text)
        os.truncate(file, 8 + len(text) + end)
        asked += [(file.name, train(f"model.pretrained={file}"))]

    path = run("config.json")
    prune_branches(path, place, member=None, checkpoint=None, output=None, data_root=None, observer=Observer())
    path /= "pruned"
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"architecture": HUGE_NETWORK}))
    asked += [("config.json", ["evaluate", path, "--device", "cpu"])]
    path = Path(shutil.copytree(path, place / "faults in config.json"))
    config["data"]["classes"] = [0] * 999_000
    (path / "config.json").write_text(json.dumps(config))
    asked += [("faults in config.json", ["evaluate", path, "--device", "cpu"])]
    path = run("recipe of a huge network")
    recipe = (path / "recipe.toml").read_text().replace('"resnet8"', f'"{HUGE_NETWORK}"')
    (path / "recipe.toml").write_text("\n".join(line for line in recipe.splitlines() if "split_at" not in line))
    asked += [("recipe of a huge network", ["evaluate", path, "--device", "cpu"])]

    words = [(name, [str(word) for word in command]) for name, command in asked]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DRIVER],
        input=json.dumps(words),
        capture_output=True,
        text=True,
        check=False,
        cwd=place,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "1000"},
    )
    assert done.returncode == 0, done.stderr
    found = {name: Answer(**answer) for name, answer in map(json.loads, done.stdout.splitlines())}
    for name, answer in found.items():
        if name.startswith("ordinary"):
            assert answer.status == 0, (name, answer)
    return found


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("run.json", "run.json cannot be read: it has 1,610,612,736 bytes, and 8,388,608 are the most"),
        ("recipe.toml", "recipe.toml is larger than 1,000,000 bytes"),
        ("recipe to show", "recipe.toml cannot be read as a recipe: it has 1,610,612,736 bytes"),
        ("metrics.jsonl", "metrics.jsonl cannot be read: it has 1,610,612,736 bytes"),
        ("state.json", "state.json is damaged: it has 1,610,612,736 bytes"),
        ("latency.json", "latency.json cannot be read: it has 1,610,612,736 bytes"),
        ("thresholds", "checks.toml cannot be read: it has 1,610,612,736 bytes"),
        ("head.npz", "head.npz cannot be read as .npz (array x_train)"),
        ("directory.npz", "directory.npz cannot be read as .npz: its directory has 1,610,612,736 bytes"),
        ("packed.pth", "packed.pth cannot be read: its records take 1,610,"),
        ("bytes.pth", "bytes.pth cannot be read: it holds a bytearray"),
        ("directory.pth", "directory.pth cannot be read: its directory has 1,610,"),
        ("large.safetensors", "conv1.weight is [402653184] instead of"),
        ("head.safetensors", "head.safetensors cannot be read: its head has 41,943,048 bytes"),
        ("config.json", "model.safetensors do not fit the model: "),
        ("recipe of a huge network", "group.safetensors do not fit the model: "),
    ],
)
def test_a_file_that_is_larger_than_it_may_be_is_refused_before_it_takes_memory(
    name: str, said: str, answers: dict[str, Answer]
) -> None:
    answer = answers[name]
    assert said in answer.said.replace("\n", " "), answer
    assert answer.status == 2, answer
    assert answer.said.count("error") <= 1
    assert answer.grown < REFUSED, answer


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("run.json among runs", "run.json is damaged"),
        ("recipe.toml among runs", "recipe.toml is missing or damaged"),
        ("README.md", "README.md cannot be read, and is left as it is: it has 1,610,612,736 bytes"),
        ("metrics.jsonl in a report", ""),
        ("robustness.json", "robustness.json is damaged"),
        ("robustness.json in a report", ""),
        ("robustness.json in a card", ""),
        ("test.json", "None"),
        ("trackers.json", ""),
    ],
)
def test_a_file_that_is_larger_than_it_may_be_does_not_stand_in_the_way_of_others(
    name: str, said: str, answers: dict[str, Answer]
) -> None:
    answer = answers[name]
    assert answer.status == 0, answer
    assert said in answer.said, answer
    assert answer.grown < REFUSED, answer


@pytest.mark.parametrize(
    "name",
    [
        "metrics within the bound",
        "faults in config.json",
        *(f"{what} of {kind}" for what in ("robustness", "card") for kind in WITHIN),
    ],
)
def test_what_takes_the_most_memory_within_the_bounds_takes_less_than_a_gigabyte(
    name: str, answers: dict[str, Answer]
) -> None:
    assert answers[name].status in (0, 2), answers[name]
    assert answers[name].grown < PARSED, answers[name]


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is counted in kilobytes on Linux alone")
@pytest.mark.parametrize("kind", ["sparse", "within the bound"])
def test_the_tab_key_reads_no_more_of_a_run_json_than_it_may_have(kind: str, tmp_path: Path) -> None:
    for name, file in {"whole": tmp_path / "runs" / "whole", "other": tmp_path / "runs" / "other"}.items():
        file.mkdir(parents=True)
        (file / "run.json").write_text(json.dumps({"state": "done", "method": name}))
    if kind == "sparse":
        sparse(tmp_path / "runs" / "other" / "run.json")
    else:
        (tmp_path / "runs" / "other" / "run.json").write_bytes(WITHIN["lists"])
    asking = {"_DISTILKIT_COMPLETE": "complete_bash", "COMP_WORDS": "distilkit\nevaluate\n", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-c", PEAK], capture_output=True, text=True, check=True, env=os.environ | asking, cwd=tmp_path
    )
    assert "runs/whole" in done.stdout
    assert 1024 * int(done.stderr) < REFUSED


# ---------------------------------------------------------------------------------------------------------- the reader


def test_metrics_of_ten_thousand_epochs_and_more_are_read(trained: Path, tmp_path: Path) -> None:
    line = json.loads((trained / "metrics.jsonl").read_text())
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps(line | {"epoch": epoch}) + "\n" for epoch in range(1, 12_001)))
    assert file.stat().st_size < reading.LARGEST_METRICS / 4
    assert [each["epoch"] for each in log.read(file)] == list(range(1, 12_001))
    log.keep_until(file, 11_000)
    assert len(log.read(file)) == 11_000


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff{}", "it is not UTF-8 text"),
        (b"{", "it is not JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "it is nested too deeply"),
        (b"9" * 5_000, "a number has too many digits"),
        (b"[" + b"[]," * 500_000 + b"0]", "it has 1,000,001 values, and 1,000,000 are the most"),
        (b" " * 8_388_609, "it has 8,388,609 bytes, and 8,388,608 are the most"),
    ],
)
def test_what_is_no_json_within_the_bounds_is_one_error(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(reading.UnreadableError) as caught:
        reading.read_json(tmp_path / "a.json")
    assert reason in caught.value.reason
    assert str(caught.value).startswith(f"{tmp_path / 'a.json'} cannot be read: ")
    assert len(caught.value.problem) < 300


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[" + "a." * 499_000 + "a]", "too many dots in a key"),
        ("x = " + "[" * 100_000, "it is nested too deeply"),
        ("x = " + "9" * 5_000, "a number has too many digits"),
        ("password: secret", "it is not TOML (at line 1, column 9)"),
        ("#" * 1_000_001, "it has 1,000,001 bytes, and 1,000,000 are the most"),
    ],
)
@pytest.mark.timeout(30)
def test_what_is_no_toml_within_the_bounds_is_one_error(content: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(content)
    with pytest.raises(reading.UnreadableError) as caught:
        reading.read_toml(tmp_path / "a.toml")
    assert caught.value.reason == reason


def test_a_file_that_says_no_size_is_read_no_further_than_its_bound(tmp_path: Path) -> None:
    """As files of /proc do."""
    growing = tmp_path / "growing"
    growing.write_bytes(b"x" * 11)

    class Grown(type(growing)):  # type: ignore[misc]
        def stat(self, **_: Any) -> os.stat_result:
            return os.stat_result((0o100644, *(0,) * 9))

    with pytest.raises(reading.UnreadableError):
        reading.read_bytes(Grown(growing), 10)


def test_a_pipe_is_not_waited_for_and_what_is_not_there_is_known(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(reading.UnreadableError, match="no plain file"):
        reading.read_text(tmp_path / "pipe")
    for file in (tmp_path / "missing", tmp_path / "zero\0byte"):
        with pytest.raises(reading.UnreadableError) as caught:
            reading.read_json(file)
        assert caught.value.absent


# -------------------------------------------------------------------------------------------------------------- memory


def test_files_kept_in_memory_count_as_free_within_a_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("4000\n")
    assert memory.free_memory() == 1000
    (tmp_path / "memory.stat").write_text("anon 900\ninactive_file 2000\nactive_file 500\n")
    assert memory.free_memory() == 3500
    (tmp_path / "memory.max").write_text("max\n")
    assert (memory.free_memory() or 10**9) > 5000


def test_class_names_that_unpack_to_more_than_the_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {name: np.zeros((8, 8, 8), np.uint8) for name in ("x_train", "x_test")}
    given |= {name: np.arange(8) % 2 for name in ("y_train", "y_test")}
    np.savez_compressed(tmp_path / "a.npz", **given, classes=np.array(["a" * 1_000_000, "b"]))
    monkeypatch.setattr(npz, "free_memory", lambda: 1_000_000)
    monkeypatch.setattr(npz, "_array", lambda *args: pytest.fail("it was unpacked"))
    with pytest.raises(UserError, match="unpacked"):
        datasets.spec("npz", tmp_path / "a.npz")


def test_weights_as_people_have_them_are_read(tmp_path: Path) -> None:
    state = registry.create("resnet8", 10).state_dict()
    torch.save(state, tmp_path / "zip.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "net.safetensors")
    for name in ("zip.pth", "old.pth", "net.safetensors"):
        read = read_weights(tmp_path / name).tensors
        assert all(torch.equal(read[key], tensor) for key, tensor in state.items())


def test_weights_beyond_the_free_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distilkit.learners import pretrained
    from distilkit.models import weights

    state = registry.create("resnet8", 10).state_dict()
    torch.save(state, tmp_path / "net.pth")
    save_file(state, tmp_path / "net.safetensors")
    for module in (weights, pretrained):
        monkeypatch.setattr(module, "free_memory", lambda: 100_000)
    for name in ("net.pth", "net.safetensors"):
        with pytest.raises(UserError, match="100,000 are the most"):
            read_weights(tmp_path / name)


# --------------------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_2", "torchvision:resnet18", "torchvision:regnet_y_400mf"])
def test_an_outline_is_the_network_without_its_memory_and_its_draws(name: str) -> None:
    if name not in registry.names() and ":" not in name:
        name = registry.names()[-1]
    torch.manual_seed(3)
    network = registry.create(name, 7, 1)
    after = torch.random.get_rng_state()
    torch.manual_seed(3)
    found = outline.outline(name, 7, 1)
    assert found is not None
    assert {key: (tensor.shape, tensor.dtype) for key, tensor in network.state_dict().items()} == {
        key: (tensor.shape, tensor.dtype) for key, tensor in found.state.items()
    }
    assert found.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert registry.create(name, 7, 1) is not None
    assert torch.equal(torch.random.get_rng_state(), after)  # the outline drew nothing
    assert sum(tensor.numel() for tensor in found.state.values() if not tensor.is_meta) < found.bytes / 40


@pytest.mark.long
def test_every_architecture_has_an_outline() -> None:
    from distilkit.models import external

    for name in (*registry.names(), *external.names("torchvision")):
        found = outline.outline(name, 10)
        assert found is not None
        assert found.parameters > 10_000, name


def test_what_is_built_by_a_users_code_or_not_at_all_has_no_outline() -> None:
    assert outline.outline("somewhere.networks:builder", 10) is None
    assert outline.outline("resnet7", 10) is None


def test_a_network_larger_than_the_free_memory_is_refused_with_its_parameters(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(outline, "free_memory", lambda: 1_000_000_000)
    found = outline.outline(HUGE_NETWORK, 1000)
    assert found is not None
    with pytest.raises(SettingError, match=r"has 644,812,894 parameters: 2\.6 GB, and 1\.0 GB of memory are free"):
        outline.require_room(HUGE_NETWORK, found, 1000)
    file = tmp_path / "huge.toml"
    file.write_text(TINY)
    recipe = load(file, [f"model.architecture={HUGE_NETWORK}"])
    with pytest.raises(UserError) as caught:
        build_learner(recipe, datasets.spec("digits", tmp_path))
    assert "parameters, 4 times: 10.2 GB" in str(caught.value)


def test_a_million_classes_are_refused_before_their_layer_takes_memory(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distilkit: Command
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "one"))
    assert distilkit("prune-branches", run).status == 0
    config = json.loads((run / "pruned" / "config.json").read_text())
    config["data"]["classes"] = list(map(str, range(500_000)))
    (run / "pruned" / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(registry, "create", refusing_memory(registry.create))
    with pytest.raises(UserError, match=r"fc\.bias is \[10\] instead of \[500000\]"):
        PrunedModel.open(run / "pruned").model()


def test_a_run_is_compared_with_its_architecture_before_its_group_is_built(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "one"))
    text = (run / "recipe.toml").read_text()
    (run / "recipe.toml").write_text(text.replace('"resnet8"', '"resnet20"'))
    monkeypatch.setattr(registry, "create", refusing_memory(registry.create))
    with pytest.raises(UserError, match=r"do not fit the model: .*missing layer1\.1\.bn1\.bias of student_0"):
        Run.open(run).learner()


def refusing_memory(create: Callable[..., torch.nn.Module]) -> Callable[..., torch.nn.Module]:
    def checked(*arguments: Any) -> torch.nn.Module:
        network = create(*arguments)
        assert all(parameter.is_meta for parameter in network.parameters()), "it took memory"
        return network

    return checked


def test_what_is_in_a_checkpoint_is_not_looked_at_before_it_is_known_to_fit(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digests are a stranger's, too."""
    run = Path(shutil.copytree(trained, tmp_path / "one"))
    folder = next((run / "checkpoints").glob("step_*"))
    state = json.loads((folder / "state.json").read_text())
    del state["digest"]
    size = 2**20
    head = json.dumps({"x": {"dtype": "F32", "shape": [size], "data_offsets": [0, 4 * size]}}).encode()
    content = struct.pack("<Q", len(head)) + head + bytes(4 * size)
    (folder / "group.safetensors").write_bytes(content)
    state["sha256"]["group.safetensors"] = hashlib.sha256(content).hexdigest()
    state["digest"] = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
    (folder / "state.json").write_text(json.dumps(state))
    monkeypatch.setattr(torch, "isfinite", lambda tensor: pytest.fail("it was looked at"))
    with pytest.raises(UserError, match=r"do not fit the model: missing bn1\.bias of student_0"):
        Run.open(run).learner()
