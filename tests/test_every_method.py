"""Every method, on every kind of group it allows: trains, resumes, prunes, exports; each by the same commands."""

import json
import math
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from conftest import Result, train_tiny
from safetensors.torch import load_file

from distilkit import methods
from distilkit.models import registry
from distilkit.observer import Observer
from distilkit.runs.run import Run
from distilkit.training.interrupt import Interrupted
from distilkit.workflows.train.train import resume, train

# name -> what to set, the leader, and what the method's ensemble is called
METHODS: dict[str, tuple[tuple[str, ...], str, str | None]] = {
    "baseline": (("method.name=baseline",), "student_0", None),
    "independent": (("method.name=independent",), "student_0", "mean_of_logits"),
    "independent-networks": (("method.name=independent", "group.kind=networks"), "student_0", "mean_of_logits"),
    "one": ((), "student_0", "gated"),
    "one-no-sharing": (("group.kind=networks",), "student_0", "gated"),
    "one-no-gate": (("method.gate=false",), "student_0", "mean_of_logits"),
    "one-no-distillation": (("method.distillation=false",), "student_0", "gated"),
    "dml": (("method.name=dml",), "student_0", "mean_of_logits"),
    "dml-branches": (("method.name=dml", "group.kind=branches"), "student_0", "mean_of_logits"),
    "cl-ilr": (("method.name=cl-ilr",), "student_0", "mean_of_logits"),
    "okddip": (("method.name=okddip",), "leader", "mean_of_peers"),
    "okddip-networks": (("method.name=okddip", "group.kind=networks"), "leader", "mean_of_peers"),
    "okddip-peers": (("method.name=okddip", "method.leader=false"), "peer_0", "mean_of_peers"),
    "okddip-random": (("method.name=okddip", "method.peer_targets=random"), "leader", "mean_of_peers"),
    "okddip-entropy": (("method.name=okddip", "method.peer_targets=entropy"), "leader", "mean_of_peers"),
}

# Whose files are written at every run of the tests: one of each way to form an ensemble and to choose the leader, and
# what no pair of test_export_matrix.py writes; the others are long.
EXPORTED = ("baseline", "one", "one-no-sharing", "one-no-gate", "okddip-peers")
exported_cases = pytest.mark.parametrize(
    "trained",
    [pytest.param(case, marks=() if case in EXPORTED else pytest.mark.long) for case in METHODS],
    indirect=True,
)


class _StopAt(Observer):
    def __init__(self, epoch: int, step: int) -> None:
        self.at = (epoch, step)

    def steps_finished(self, epoch: int, step_in_epoch: int, losses: Mapping[str, float]) -> None:
        if (epoch, step_in_epoch) == self.at:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture(scope="module", params=list(METHODS))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The case's name and a finished run of it."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, train_tiny(folder, *METHODS[request.param][0], "train.epochs=2")


def test_every_registered_method_is_here_but_kd_which_needs_a_teacher() -> None:
    named = {dict(s.split("=") for s in settings).get("method.name", "one") for settings, *_ in METHODS.values()}
    assert named == set(methods.names()) - {"kd"}


def test_the_run_names_leader_and_ensemble(trained: tuple[str, Path]) -> None:
    case, path = trained
    record = Run.open(path).record
    assert (record["leader"], record["ensemble"]) == METHODS[case][1:]
    assert set(record["final"]["errors"]) == {*record["members"], *([record["ensemble"]] if record["ensemble"] else [])}


def test_every_epoch_has_diversity_and_what_the_method_weighs(trained: tuple[str, Path]) -> None:
    case, path = trained
    run = Run.open(path)
    for line in run.metrics():
        if case == "baseline":
            assert "diversity" not in line["test"]
            continue
        for split in ("train", "test"):
            assert 0 < line[split]["diversity"] < 2**0.5
        weights = line["test"].get("weights", {})
        if case in ("one", "one-no-sharing", "one-no-distillation"):
            assert sum(weights["gate"]) == pytest.approx(1)
            assert len(weights["gate"]) == 3
        elif case in ("okddip", "okddip-networks", "okddip-peers"):
            assert [sum(row) for row in weights["attention"]] == pytest.approx([1.0] * len(weights["attention"]))
        else:
            assert weights == {}


def test_resume_in_mid_epoch_reproduces_the_run(trained: tuple[str, Path], tmp_path: Path) -> None:
    whole = Run.open(trained[1])
    with pytest.raises(Interrupted):
        train(whole.recipe, tmp_path, device="cpu", command="", observer=_StopAt(2, 2))
    (path,) = tmp_path.iterdir()
    resume(path, device="cpu", observer=Observer())
    for part in ("group", "method", "optimizer"):
        ours, theirs = (load_file(Run.open(p).checkpoint("last") / f"{part}.safetensors") for p in (trained[1], path))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert Run.open(path).metrics()[-1]["test"] == whole.metrics()[-1]["test"]


def test_prune_leaves_the_leader_bit_for_bit(
    trained: tuple[str, Path], distilkit: Callable[..., Result], tmp_path: Path
) -> None:
    case, path = trained
    document = distilkit("prune-branches", path, "--output", tmp_path / "small", "--json").json
    assert document["member"] == METHODS[case][1]
    assert document["max_abs_difference"] == 0
    stock = registry.create("resnet8", 10, 1)
    stock.load_state_dict(load_file(tmp_path / "small" / "model.safetensors"), strict=True)
    leader = Run.open(path).learner().group.member_state_dict(METHODS[case][1])
    assert all(torch.equal(value, leader[key]) for key, value in stock.state_dict().items())


@exported_cases
def test_single_export_and_robustness_take_the_leader(
    trained: tuple[str, Path], distilkit: Callable[..., Result], tmp_path: Path
) -> None:
    case, path = trained
    exported = distilkit("export", path, "--output", tmp_path / "single.onnx", "--json").json
    assert exported["passed"]
    assert exported["member"] == METHODS[case][1]
    settings = ("--images", 20, "--steps", 1, "--directions", 1, "--output", tmp_path / "robustness")
    assert distilkit("robustness", path, *settings, "--json").json["runs"][0]["member"] == METHODS[case][1]


@exported_cases
def test_ensemble_export_equals_the_method_s_own_ensemble(
    trained: tuple[str, Path], distilkit: Callable[..., Result], tmp_path: Path
) -> None:
    case, path = trained
    file = tmp_path / "ensemble.onnx"
    result = distilkit("export", path, "--mode", "ensemble", "--members", "--output", file, "--json")
    if METHODS[case][2] is None:
        assert result.status == 2
        return
    assert result.json["passed"]
    learner = Run.open(path).learner()
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        members, ensemble = learner.predict(images)
    names = ["logits", *(f"logits_{name}" for name in learner.group.members)]
    outputs = onnxruntime.InferenceSession(file).run(names, {"images": images.numpy()})
    assert ensemble is not None
    for expected, actual in zip([ensemble, *members], outputs, strict=True):
        assert torch.allclose(expected, torch.from_numpy(actual), atol=1e-4)


def test_the_ensemble_file_holds_the_leader_only_where_it_is_asked_for(
    distilkit: Callable[..., Result], tmp_path: Path
) -> None:
    path = train_tiny(tmp_path, "method.name=okddip", "train.epochs=1")
    sizes = []
    for options in ((), ("--members",)):
        file = tmp_path / f"{len(options)}.onnx"
        assert distilkit("export", path, "--mode", "ensemble", "--output", file, *options, "--json").json["passed"]
        sizes.append(sum(math.prod(tensor.dims) for tensor in onnx.load(file).graph.initializer))
    branch = sum(p.numel() for p in Run.open(path).learner().group.branches["leader"].parameters())  # type: ignore[attr-defined]
    # Batch norm is folded into the convolutions, which takes a few numbers away.
    assert sizes[1] - sizes[0] == pytest.approx(branch, rel=0.02)


def test_the_ensemble_costs_what_its_members_cost(trained: tuple[str, Path]) -> None:
    case, path = trained
    record = Run.open(path).record
    flops, parameters = record["flops"], record["parameters"]
    if METHODS[case][2] is None:
        assert flops["ensemble"] is None
    elif METHODS[case][1] == "leader":
        # Neither the leader nor the projections are in it.
        assert flops["ensemble"] < flops["train"]
        assert parameters["ensemble"] < parameters["train"]
    elif case != "okddip-peers":
        assert (flops["ensemble"], parameters["ensemble"]) == (flops["train"], parameters["train"])


def test_ensemble_eval_leaves_the_leader_out_of_ensembles(distilkit: Callable[..., Result], tmp_path: Path) -> None:
    path = train_tiny(tmp_path, "method.name=okddip", "train.epochs=2")
    document = distilkit("ensemble-eval", path, "--json").json
    assert document["peers"] == ["peer_0", "peer_1", "peer_2"]
    assert set(document["members"]) == {"peer_0", "peer_1", "peer_2", "leader"}
    assert document["ensembles"]["mean_of_peers"] == document["ensembles"]["mean_of_logits"]
    assert set(document["leave_one_out"]) == set(document["peers"])
    last = Run.open(path).metrics()[-1]["test"]
    assert document["diversity"] == pytest.approx(last["diversity"], rel=1e-5)
    assert document["flops"]["ensemble"] == Run.open(path).record["flops"]["ensemble"]


SNAPSHOTS = ("method.name=baseline", "schedule.name=snapshot", "schedule.cycles=3", "train.epochs=5")


def test_snapshots_are_kept_at_the_end_of_every_cycle_and_form_an_ensemble(
    distilkit: Callable[..., Result], tmp_path: Path
) -> None:
    path = train_tiny(tmp_path, *SNAPSHOTS)
    run = Run.open(path)
    ends = [line["step"] for line in run.metrics() if line["epoch"] in (1, 3, 5)]
    assert run.snapshots == ["cycle_1", "cycle_2", "cycle_3"]
    assert [run.checkpoint(name).name for name in run.snapshots] == [f"step_{step}" for step in ends]
    document = distilkit("ensemble-eval", path, "--json").json
    assert list(document["members"]) == run.snapshots
    assert set(document["ensembles"]) == {"mean_of_logits", "mean_of_probabilities"}
    assert document["flops"] == {"ensemble": 3 * run.record["flops"]["deploy"], "single": run.record["flops"]["deploy"]}
    for line, name in zip([line for line in run.metrics() if line["epoch"] in (1, 3, 5)], run.snapshots, strict=True):
        assert document["members"][name]["top1_error"] == pytest.approx(line["test"]["errors"]["student_0"]["top1"])


def test_the_rate_restarts_with_every_cycle(tmp_path: Path) -> None:
    rates = [line["lr"] for line in Run.open(train_tiny(tmp_path, *SNAPSHOTS)).metrics()]
    # Cycles of 1, 2 and 2 epochs: each line has the rate of its epoch's last step.
    assert rates[1] == pytest.approx(rates[3])
    assert rates[2] == pytest.approx(rates[4])
    assert rates[1] > rates[2]
    assert rates[0] < rates[1]


def test_snapshots_survive_an_interruption(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole = Run.open(train_tiny(tmp_path / "whole", *SNAPSHOTS))
    with pytest.raises(Interrupted):
        train(whole.recipe, tmp_path / "cut", device="cpu", command="", observer=_StopAt(4, 2))
    (path,) = (tmp_path / "cut").iterdir()
    (path / "checkpoints" / "cycle_2").unlink()  # As if killed between the checkpoint and its pointer.
    resume(path, device="cpu", observer=Observer())
    again = Run.open(path)
    assert again.snapshots == whole.snapshots
    for name in whole.snapshots:
        ours, theirs = (load_file(run.checkpoint(name) / "group.safetensors") for run in (whole, again))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_group_that_a_method_cannot_carry_is_refused_before_training(
    distilkit: Callable[..., Result], tmp_path: Path
) -> None:
    cases = {
        ("method.name=okddip", "group.students=2"): "group.students",
        ("method.name=cl-ilr", "group.kind=networks"): "group.kind",
        ("method.name=dml", "group.students=1"): "group.students",
        ("method.name=kd",): "method.name",
        ("method.rampup_epochs=99",): "method.rampup_epochs",
    }
    for settings, key in cases.items():
        overrides = [part for setting in settings for part in ("--set", setting)]
        result = distilkit("train", "quickstart", *overrides, "--runs", tmp_path / "runs", "--json")
        assert result.status == 2
        assert key in [fault["key"] for fault in json.loads(result.out)["error"]["faults"]]
    assert not (tmp_path / "runs").exists()
