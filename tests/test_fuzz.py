"""A little of `make fuzz` for every loader, and what it has found."""

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from fuzzing import VALUES, Ground, Target, attempt, inputs, onnx_files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import load_from_string

from distilkit.data import datasets
from distilkit.errors import UserError
from distilkit.runs import metrics as log
from distilkit.runs.run import Run
from distilkit.workflows.deploy import predict

LOADERS = (
    "recipe", "override", "run.json", "run.json, shown", "README.md", "metrics.jsonl", "state.json", "config.json",
    "safetensors", "pth", "onnx", "picture", "picture, cut", "npz", "robustness.json", "latency.json",
    "thresholds.toml", "trackers.json",
)  # fmt: skip
A_FEW = 25
SEED = 20261120


@pytest.fixture(scope="module")
def ground(baseline_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tmp_path_factory.mktemp("ground"), baseline_run)


@pytest.fixture(scope="module")
def targets(ground: Ground) -> dict[str, Target]:
    return ground.targets()


def test_every_loader_is_fuzzed_and_takes_what_is_whole(targets: dict[str, Target]) -> None:
    assert tuple(targets) == LOADERS
    for target in targets.values():
        target.read(target.seeds[-1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LOADERS)
def test_a_damaged_file_is_refused_or_answered(name: str, targets: dict[str, Target]) -> None:
    for data in islice(inputs(targets[name], SEED), A_FEW):
        attempt(targets[name], data)


@pytest.mark.filterwarnings("ignore")
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["recipe", "latency.json", "thresholds.toml", "trackers.json", "picture"]), st.binary())
def test_any_bytes_are_refused_or_answered(targets: dict[str, Target], name: str, data: bytes) -> None:
    attempt(targets[name], data)


def test_the_same_seed_gives_the_same_inputs(targets: dict[str, Target]) -> None:
    first, second = (list(islice(inputs(targets["npz"], 7), 20)) for _ in range(2))
    assert first == second
    assert len(set(first)) > 10


def test_a_fault_of_a_loader_is_a_failure() -> None:
    def reads(data: bytes) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        attempt(Target((b"",), lambda data, draws: data, reads), b"")


# What was found


@pytest.fixture
def changed(ground: Ground) -> Iterator[Callable[..., Run]]:
    """changed("run.json", bytes): the run with that file, which is put right again afterwards."""
    before: dict[Path, bytes] = {}

    def change(name: str, content: bytes) -> Run:
        file = ground.run / name
        before.setdefault(file, file.read_bytes())
        file.write_bytes(content)
        return Run.open(ground.run)

    yield change
    for file, content in before.items():
        file.write_bytes(content)


@pytest.mark.parametrize(
    "wrong", [b"\x80", b"[" * 5000, b'{"epoch": "x"}', b'{"epoch": true}', b"", b"\xff\xfe{}"], ids=repr
)
def test_metrics_that_are_no_text_or_no_epochs_are_damage(wrong: bytes, changed: Callable[..., Run]) -> None:
    run = changed("metrics.jsonl", b'{"epoch": 1}\n' + wrong + b"\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2 is damaged"):
        run.metrics()
    with pytest.raises(UserError, match="damaged"):
        log.keep_until(run.path / "metrics.jsonl", 5)


@pytest.mark.parametrize("counts", [{}, {"train": 5}, {"test": 5}, {"train": 5, "test": 0}, {"train": 5, "test": -1}])
def test_a_run_that_does_not_say_how_many_images_it_saw_is_damaged(
    counts: dict[str, int], changed: Callable[..., Run], ground: Ground
) -> None:
    record = json.loads((ground.run / "run.json").read_text())
    record["data"]["images"] = counts
    run = changed("run.json", json.dumps(record).encode())
    with pytest.raises(UserError, match="data section"):
        _ = run.data


@pytest.mark.parametrize("name", ["latency.json", "trackers.json", "robustness.json"])
def test_json_nested_without_end_is_refused(name: str, targets: dict[str, Target]) -> None:
    for text in (b'{"a":' * 5000, b"[" * 100_000):
        attempt(targets[name], text)


@pytest.mark.parametrize("text", [b"a = " + b"[" * 5000, b"a." * 3000 + b"b = 1", b"a = " + b"9" * 5000])
def test_thresholds_nested_without_end_are_refused(text: bytes, targets: dict[str, Target]) -> None:
    with pytest.raises(UserError):
        targets["thresholds.toml"].read(text)


def test_an_array_whose_head_is_no_python_is_refused(tmp_path: Path) -> None:
    import zipfile

    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1,\x00"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(tmp_path / "any.npz", "w") as archive:
        archive.writestr("x_train.npy", content)
    with pytest.raises(UserError, match=r"cannot be read as \.npz"):
        datasets.spec("npz", tmp_path / "any.npz")
    np.savez(tmp_path / "any.npz", x=np.zeros(3))
    with pytest.raises(UserError, match="it has x"):
        datasets.spec("npz", tmp_path / "any.npz")


def test_an_exported_file_for_billions_of_images_at_a_time_is_refused(tmp_path: Path) -> None:
    model = load_from_string(onnx_files()[0])
    for info in (*model.graph.input, *model.graph.output):
        info.type.tensor_type.shape.dim[0].dim_value = 2**31
    (tmp_path / "any.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="images at a time"):
        predict.open_file(tmp_path / "any.onnx")


def test_an_exported_file_for_pictures_of_a_gigabyte_is_refused(tmp_path: Path) -> None:
    model = load_from_string(onnx_files()[1])
    entry = next(entry for entry in model.metadata_props if entry.key == "preprocessing")
    entry.value = entry.value.replace(": 8", ": 50000")
    (tmp_path / "any.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="metadata"):
        predict.open_file(tmp_path / "any.onnx")


@pytest.mark.parametrize("name", [b"distilkit_version", b"probabilities", b"images", b"preprocessing"])
def test_an_exported_file_with_names_that_are_no_text_is_refused(
    name: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = onnx_files()[0]
    (tmp_path / "any.onnx").write_bytes(whole.replace(name, b"\xf6" + name[1:]))
    with pytest.raises(UserError):
        predict.open_file(tmp_path / "any.onnx")
    assert not capsys.readouterr().out


def test_the_values_that_are_tried_are_of_every_kind() -> None:
    assert {type(value) for value in VALUES} == {type(None), bool, int, float, str, list, dict}
