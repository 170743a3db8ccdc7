"""Files that somebody else made: damaged with care, digests renewed, links laid, archives that unpack to gigabytes.

A command answers, or refuses with exit status 2 and names the file; what is not in its folders stays as it is, and
nothing that a file holds is executed. What simple damage does is in tests/test_cli.py, tests/test_npz.py,
tests/test_datasets.py and tests/test_external.py.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import Result, train_tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from PIL import Image
from safetensors.torch import load_file, save_file

from distilkit.data import datasets, npz
from distilkit.data.pixels import Framing
from distilkit.data.preparation import Preparation
from distilkit.errors import UserError
from distilkit.models import registry
from distilkit.report.curves import plot_curves
from distilkit.runs import checkpoint as checkpoints
from distilkit.runs.run import PrunedModel, Run
from distilkit.workflows.deploy import predict as prediction

Command = Callable[..., Result]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that says it was interrupted, though its last checkpoint is its end: resuming it is quick."""
    run = train_tiny(tmp_path_factory.mktemp("trained"), "train.epochs=2", "tracking.name=none")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"state": "interrupted"}))
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "runs" / "one", symlinks=True))


@pytest.fixture
def pruned(run: Path, distilkit: Command) -> Path:
    assert distilkit("prune-branches", run).status == 0
    return run / "pruned"


def last(run: Path) -> Path:
    return run / "checkpoints" / (run / "checkpoints" / "last").read_text().strip()


def restate(run: Path, **changed: Any) -> None:
    """Change a checkpoint's state.json, with digests as a stranger would make them."""
    file = last(run) / "state.json"
    state = json.loads(file.read_text()) | changed
    state = {key: value for key, value in state.items() if value != "GONE" and key != "digest"}
    state["sha256"] = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in last(run).glob("*.safetensors")
    }
    digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
    file.write_text(json.dumps(state | {"digest": digest}))


def retensor(run: Path, part: str, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = last(run) / f"{part}.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    restate(run)


def refused(result: Result, *words: object) -> None:
    assert result.status == 2, result
    for word in words:
        assert str(word) in result.err, (word, result.err)


# Run folders


WRONG = (None, 5, -1, "x", [], {}, [[]], {"a": {}}, 1e308)


def test_a_run_json_with_values_of_the_wrong_kind_gives_an_answer_or_is_refused(
    trained: Path, tmp_path: Path, distilkit: Command
) -> None:
    """Every key, every kind; by the commands that look at most of them and compute least."""
    run = Path(shutil.copytree(trained, tmp_path / "runs" / "one"))
    whole = json.loads((run / "run.json").read_text())
    tried, faults = 0, []
    for key in whole:
        for wrong in WRONG:
            (run / "run.json").write_text(json.dumps(whole | {key: wrong}))
            for command in ("compare", "ensemble-eval"):
                # What ensemble-eval computes is not wanted here: it ends with the split that is not there.
                more = ("--split", "validation") if command == "ensemble-eval" else ()
                result = distilkit(command, run, *more)
                tried += 1
                if result.status not in (0, 2):
                    faults.append((command, key, wrong, result.err))
    assert not faults, "\n".join(map(str, faults))
    assert tried > 300


@pytest.mark.parametrize(
    "change",
    [
        {"step": -1}, {"step": "7"}, {"step": 10**30}, {"step": True}, {"step": "GONE"}, {"steps_per_epoch": 0},
        {"steps_per_epoch": None}, {"sums": []}, {"sums": {"images": "many"}}, {"best": "x"}, {"best": {"top1": []}},
        {"scaler": 5}, {"sums": "GONE"},
    ],
    ids=str,
)  # fmt: skip
def test_a_state_that_says_nothing_of_the_training_is_damage(
    change: dict[str, Any], run: Path, distilkit: Command
) -> None:
    restate(run, **change)
    for folder in (run / "checkpoints").glob("step_*"):
        if folder != last(run):
            shutil.rmtree(folder)
    refused(distilkit("train", "--resume", run, "--device", "cpu"), "state.json", "damaged")


def test_a_state_nested_without_end_is_damage(run: Path, distilkit: Command) -> None:
    for folder in (run / "checkpoints").glob("step_*"):
        (folder / "state.json").write_text("[" * 100_000)
    refused(distilkit("evaluate", run, "--device", "cpu"), "state.json", "damaged")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.update(stranger=torch.zeros(3)), ["stranger"]),
        (lambda tensors: tensors.update({"group.nowhere.weight/momentum_buffer": torch.zeros(3)}), ["group.nowhere"]),
        (
            lambda tensors: tensors.update({key: torch.zeros(7) for key in list(tensors)[:1]}),
            ["fits no parameter", "momentum_buffer"],
        ),
    ],
)
def test_an_optimizers_state_that_fits_nothing_is_refused(
    change: Callable[[Any], object], words: list[str], run: Path, distilkit: Command
) -> None:
    retensor(run, "optimizer", change)
    refused(distilkit("train", "--resume", run, "--device", "cpu"), *words)


def test_extra_missing_misshapen_and_mistyped_weights_are_listed_together(run: Path, distilkit: Command) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        names = sorted(name for name, tensor in tensors.items() if tensor.dim() == 1 and tensor.is_floating_point())
        tensors["stranger"] = torch.zeros(1)
        del tensors[names[0]]
        tensors[names[1]] = torch.zeros(99)
        tensors[names[2]] = tensors[names[2]].double()

    retensor(run, "group", change)
    result = distilkit("evaluate", run, "--device", "cpu")
    refused(result, "unexpected stranger", "missing ", "is [99] instead of", "is float64 instead of float32")


def test_weights_that_are_not_finite_are_refused_by_name(run: Path, pruned: Path, distilkit: Command) -> None:
    tensors = load_file(pruned / "model.safetensors")
    tensors["conv1.weight"][0] = math.nan
    save_file(tensors, pruned / "model.safetensors")
    config = json.loads((pruned / "config.json").read_text())
    config["sha256"] = hashlib.sha256((pruned / "model.safetensors").read_bytes()).hexdigest()
    (pruned / "config.json").write_text(json.dumps(config))
    refused(distilkit("evaluate", pruned, "--device", "cpu"), "not all finite", "conv1.weight")
    retensor(
        run,
        "group",
        lambda tensors: next(each for each in tensors.values() if each.is_floating_point()).fill_(math.inf),
    )
    refused(distilkit("evaluate", run, "--device", "cpu"), "not all finite")


def test_a_config_json_with_values_of_the_wrong_kind_gives_a_model_or_is_refused(pruned: Path) -> None:
    whole = json.loads((pruned / "config.json").read_text())
    for key in whole:
        for wrong in (*WRONG, "../../etc/passwd", "no.module:thing", "torchvision:nothing"):
            (pruned / "config.json").write_text(json.dumps(whole | {key: wrong}))
            opens_or_is_refused(pruned)
    for key in whole["data"]:
        for wrong in (*WRONG, ["a"] * 3, 10**9):
            (pruned / "config.json").write_text(json.dumps(whole | {"data": whole["data"] | {key: wrong}}))
            opens_or_is_refused(pruned)


def opens_or_is_refused(pruned: Path) -> None:
    with contextlib.suppress(UserError):
        PrunedModel.open(pruned).model()


@pytest.mark.parametrize("what", ["format of run.json", "format of a checkpoint", "format of a pruned model"])
def test_what_a_newer_distilkit_wrote_says_so(what: str, run: Path, pruned: Path, distilkit: Command) -> None:
    if "run.json" in what:
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(record | {"format": 3}))
    elif "checkpoint" in what:
        restate(run, format=checkpoints.FORMAT + 1)
    else:
        config = json.loads((pruned / "config.json").read_text())
        (pruned / "config.json").write_text(json.dumps(config | {"format": 2}))
        run = pruned
    refused(distilkit("evaluate", run, "--device", "cpu"), "this distilkit reads", "update distilkit")


# Files that are none, and names that are no text


def of_the_run(run: Path) -> dict[str, Path]:
    named = {name: last(run) / name for name in ("state.json", "group.safetensors")}
    return {"run.json": run / "run.json", "recipe.toml": run / "recipe.toml"} | named


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["run.json", "recipe.toml", "state.json", "group.safetensors"])
def test_a_pipe_in_a_run_is_not_waited_for(name: str, run: Path, distilkit: Command) -> None:
    """An archive may hold one; nobody writes to it."""
    file = of_the_run(run)[name]
    file.unlink()
    os.mkfifo(file)
    for command in (("evaluate", run, "--device", "cpu"), ("runs", "--runs", run.parent), ("compare",)):
        more = ("--runs", run.parent) if command == ("compare",) else ()
        result = distilkit(*command, *more)
        assert result.status in (0, 2), result
    refused(distilkit("evaluate", run, "--device", "cpu"), name if name != "run.json" else "run.json")


@pytest.mark.timeout(120)
def test_a_pipe_in_a_pruned_model_is_not_waited_for(pruned: Path, distilkit: Command) -> None:
    (pruned / "model.safetensors").unlink()
    os.mkfifo(pruned / "model.safetensors")
    refused(distilkit("evaluate", pruned, "--device", "cpu"), "model.safetensors", "no plain file")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["run.json", "state.json", "group.safetensors"])
def test_a_terabyte_of_zeros_is_not_read(name: str, run: Path, distilkit: Command) -> None:
    os.truncate(of_the_run(run)[name], 2**40)
    refused(distilkit("evaluate", run, "--device", "cpu"), name, "bytes, and", "are the most")
    assert distilkit("runs", "--runs", run.parent).status == 0


def test_of_a_pointer_no_more_than_a_name_is_read(run: Path, distilkit: Command) -> None:
    os.truncate(run / "checkpoints" / "last", 2**40)
    refused(distilkit("evaluate", run, "--device", "cpu"), "has no checkpoint 'last'")


def test_a_checkpoints_name_with_digits_that_are_none(run: Path, distilkit: Command) -> None:
    (run / "checkpoints" / "step_\u00b2").mkdir()
    assert distilkit("evaluate", run, "--device", "cpu").status == 0


def test_a_folders_name_that_is_no_text_is_no_damage(run: Path, distilkit: Command) -> None:
    named = run.with_name(os.fsdecode(b"one\xff"))
    try:
        run.rename(named)
    except OSError:
        pytest.skip("this file system has names in UTF-8 alone")
    assert distilkit("evaluate", named, "--device", "cpu", "--json").status == 0
    report = named.parent / "report.html"
    words = ("report", named, "--no-evaluate", "--no-figures", "--output", report, "--json")
    record = json.loads((named / "run.json").read_text())
    (named / "run.json").write_text(json.dumps(record | {"state": "done"}))
    result = distilkit(*words)
    assert result.status == 0, result.err
    assert "one\\udcff" in report.read_text(encoding="utf-8")
    curve = {"run": str(named), "method": "one", "member": "student_0", "magnitudes": [0.0, 1.0]}
    curve |= {kind: {"train": [[1.0, 2.0]], "test": [[1.0, 2.0]]} for kind in ("curves", "cross_entropy")}
    for file in plot_curves([curve], named.parent / "curves", "frozen", "unit"):
        assert file.stat().st_size
    refused(distilkit("export", named, "--format", "pt2"), "not UTF-8")


# Paths


TRAPS = (
    "run.json",
    ".partial-run.json",
    "metrics.jsonl",
    ".partial-metrics.jsonl",
    "README.md",
    ".lock",
    "recipe.toml",
    "checkpoints/last",
    "checkpoints/.partial-last",
    "tensorboard",
)


@pytest.mark.parametrize("trap", TRAPS)
def test_a_training_does_not_write_through_a_link_that_leads_out(
    trap: str, run: Path, tmp_path: Path, distilkit: Command
) -> None:
    victim = tmp_path / "victim"
    there = run / trap
    if there.exists():
        shutil.move(there, victim)
    else:
        victim.write_text("mine")
    before = victim.read_bytes() if victim.is_file() else b""
    there.symlink_to(victim)
    refused(distilkit("train", "--resume", run, "--device", "cpu"), "links that lead out of it", trap)
    assert (victim.read_bytes() if victim.is_file() else b"") == before


@pytest.mark.parametrize(
    ("command", "trap"),
    [
        ("prune-branches", "pruned"),
        ("prune-branches", "pruned/.partial-model.safetensors"),
        ("prune-branches", "pruned/.partial-config.json"),
        ("export", "exports"),
    ],
)
def test_results_are_not_written_through_a_link_that_leads_out(
    command: str, trap: str, run: Path, tmp_path: Path, distilkit: Command
) -> None:
    victim = tmp_path / "victim"
    if "/" in trap:
        victim.write_text("mine")
        (run / trap).parent.mkdir()
    else:
        victim.mkdir()
    (run / trap).symlink_to(victim)
    refused(distilkit(command, run), "links that lead out of it", trap)
    assert victim.is_dir() or victim.read_text() == "mine"
    assert victim.is_file() or not list(victim.iterdir())


def test_links_within_the_run_and_a_cache_of_links_may_stay(run: Path, pruned: Path, tmp_path: Path) -> None:
    (run / "latest").symlink_to("checkpoints")
    Run.open(run)
    # As the Hugging Face hub keeps what it has downloaded.
    cache = tmp_path / "snapshot"
    cache.mkdir()
    for file in pruned.iterdir():
        (cache / file.name).symlink_to(file)
    assert PrunedModel.open(cache).model().member == "student_0"


@pytest.mark.parametrize("option", ["--member", "--checkpoint"])
@pytest.mark.parametrize("value", ["../../../etc/passwd", "/etc", "..", ".", "step_1/../step_1"])
def test_a_name_is_no_path(option: str, value: str, run: Path, distilkit: Command) -> None:
    for command in ("evaluate", "export"):
        refused(distilkit(command, run, option, value), "has")


# ONNX


def onnx_file(file: Path, model: onnx.ModelProto, preprocessing: str = "{}") -> Path:
    metadata = {"distilkit_version": "1", "classes": '["a", "b"]', "preprocessing": preprocessing}
    helper.set_model_props(model, metadata)
    file.write_bytes(model.SerializeToString())
    return file


def small_model(initializer: TensorProto | None = None, nodes: list[Any] | None = None) -> onnx.ModelProto:
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [None, 1, 8, 8])
    output = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, None)
    weights = [initializer] if initializer else []
    nodes = nodes or [helper.make_node("Add", ["images", "w"], ["probabilities"])]
    graph = helper.make_graph(nodes, "g", [images], [output], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "a/../../secret.bin", "link.bin"])
def test_an_onnx_file_reads_no_data_from_outside_of_its_folder(location: str, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(b"\0\0\x80?" * 64)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1, 1, 8, 8])
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    file = onnx_file(folder / "model.onnx", small_model(weight))
    with pytest.raises(UserError, match="cannot be opened by ONNX Runtime"):
        prediction.open_file(file)


def test_an_onnx_file_that_asks_for_a_petabyte_is_refused(tmp_path: Path) -> None:
    shape = helper.make_tensor("s", TensorProto.INT64, [1], [10**15])
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["huge"]),
        helper.make_node("ReduceSum", ["huge"], ["sum"], keepdims=0),
        helper.make_node("Add", ["images", "sum"], ["probabilities"]),
    ]
    with pytest.raises(UserError):
        prediction.open_file(onnx_file(tmp_path / "huge.onnx", small_model(shape, nodes)))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.integers(0, 10**6))
def test_bytes_that_are_no_onnx_file_are_refused(tmp_path: Path, junk: bytes, place: int) -> None:
    whole = small_model(helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])).SerializeToString()
    place %= len(whole)
    for content in (junk, whole[:place]):
        (tmp_path / "junk.onnx").write_bytes(content)
        with pytest.raises(UserError):
            prediction.open_file(tmp_path / "junk.onnx")


# Arrays and pictures


def arrays() -> dict[str, np.ndarray[Any, Any]]:
    return {
        "x_train": np.zeros((8, 8, 8), np.uint8),
        "y_train": np.arange(8) % 2,
        "x_test": np.zeros((4, 8, 8), np.uint8),
        "y_test": np.arange(4) % 2,
    }


def test_arrays_that_unpack_to_more_than_the_memory_are_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = arrays() | {"x_train": np.zeros((8, 1000, 1000), np.uint8)}
    np.savez_compressed(tmp_path / "bomb.npz", **(given | {"x_test": np.zeros((4, 1000, 1000), np.uint8)}))
    assert (tmp_path / "bomb.npz").stat().st_size < 100_000
    monkeypatch.setattr(npz, "free_memory", lambda: 10_000_000)
    monkeypatch.setattr(npz, "_array", lambda *args: pytest.fail("it was unpacked"))
    with pytest.raises(UserError, match="unpacked"):
        datasets.spec("npz", tmp_path / "bomb.npz")


def test_names_in_an_archive_of_arrays_become_no_files(tmp_path: Path) -> None:
    given = arrays() | {"../../escaped": np.zeros(3), "/tmp/escaped": np.zeros(3)}
    (tmp_path / "a" / "b").mkdir(parents=True)
    np.savez(tmp_path / "a" / "b" / "set.npz", **given)
    assert datasets.spec("npz", tmp_path / "a" / "b" / "set.npz").train_images == 8
    assert not list(tmp_path.rglob("*escaped*"))


def test_a_picture_that_unpacks_to_gigabytes_is_unanswered_and_so_is_a_pipe(tmp_path: Path, distilkit: Command) -> None:
    nodes = [helper.make_node("Flatten", ["images"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["score"])]
    nodes.append(helper.make_node("Softmax", ["score"], ["probabilities"]))
    model = small_model(helper.make_tensor("w", TensorProto.FLOAT, [64, 2], [0.0] * 128), nodes)
    shape = model.graph.output[0].type.tensor_type.shape
    shape.dim.add(dim_param="N")
    shape.dim.add(dim_value=2)
    onnx_file(tmp_path / "model.onnx", model, Preparation(Framing(8, 8, 1), "nchw", "float32").to_json())
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 200_000
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "good.png")
    os.mkfifo(tmp_path / "pipe.png")
    result = distilkit("predict", tmp_path / "model.onnx", tmp_path, "--json")
    document = result.json
    assert [each["image"] for each in document["predictions"]] == [str(tmp_path / "good.png")]
    reasons = {each["image"]: each["reason"] for each in document["unanswered"]}
    assert reasons.keys() == {str(tmp_path / "bomb.png"), str(tmp_path / "pipe.png")}
    assert "bomb" in reasons[str(tmp_path / "bomb.png")]
    assert "no plain file" in reasons[str(tmp_path / "pipe.png")]


# Teachers


class Trap:
    """Executes code where it is unpickled."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> Any:
        return Path.touch, (self.sprung,)


def test_a_teachers_pickle_is_refused_and_has_not_run(tmp_path: Path, distilkit: Command) -> None:
    torch.save({"conv1.weight": torch.zeros(1), "trap": Trap(tmp_path / "sprung")}, tmp_path / "teacher.pth")
    (tmp_path / "old.pth").write_bytes(__import__("pickle").dumps(Trap(tmp_path / "sprung")))
    for name in ("teacher.pth", "old.pth"):
        changes = (f"teacher.weights={tmp_path / name}", "teacher.architecture=resnet8")
        words = [word for change in changes for word in ("--set", change)]
        result = distilkit("train", "quickstart_one", *words, "--runs", tmp_path / "runs", "--device", "cpu")
        refused(result, name, "cannot be read")
    assert not (tmp_path / "sprung").exists()
    assert not (tmp_path / "runs").exists()


def test_weights_to_start_from_that_are_no_numbers_are_listed_together(tmp_path: Path, distilkit: Command) -> None:
    state = registry.create("resnet8", 10, 1).state_dict()
    first, second = [name for name, tensor in state.items() if tensor.dim() == 4][:2]
    state[first][0] = math.nan
    state[second] = state[second].long()
    torch.save(state, tmp_path / "start.pth")
    changes = (f"model.pretrained={tmp_path / 'start.pth'}", "model.architecture=resnet8")
    words = [word for change in changes for word in ("--set", change)]
    result = distilkit("train", "quickstart_one", *words, "--runs", tmp_path / "runs", "--device", "cpu")
    refused(result, "model.pretrained", f"{first} is not all finite numbers", f"{second} is int64")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("kind", ["top1", "top5"])
@pytest.mark.parametrize("value", [-3.0, 101.0, None, "12"])
def test_a_final_error_that_is_no_percentage_is_refused(
    one_run: Path, tmp_path: Path, value: float | str | None, kind: str
) -> None:
    run = shutil.copytree(one_run, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    record["final"]["errors"][record["leader"]][kind] = value
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="final"):
        Run.open(run)


def test_an_ensemble_without_a_name_has_no_final_error(one_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(one_run, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "ensemble": ""}))
    with pytest.raises(UserError, match="no final error"):
        Run.open(run)
