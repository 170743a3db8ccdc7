"""What every command promises of its results, judged by what the test itself computes from the weights on disk."""

import hashlib
import io
import json
import math
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import Result, train_tiny
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import distilkit as package
from distilkit import cli
from distilkit.export.onnx import export_onnx
from distilkit.models import registry
from distilkit.recipe import load
from distilkit.runs.run import Run

Command = Callable[..., Result]
MEMBERS = ("student_0", "student_1", "student_2")
BATCH_SIZES = (1, 7, 32)


def command(*arguments: object) -> Result:
    """The command line for fixtures that several tests share; `distilkit` serves a single test."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as exit_:
        cli.main([str(argument) for argument in arguments])
    return Result(int(exit_.value.code or 0), out.getvalue(), err.getvalue())


# What the test computes for itself


class Images(NamedTuple):
    pixels: Tensor
    labels: Tensor


def images_of(run: Path, split: str) -> Images:
    """The images [N, C, H, W] in [0, 1] of a run's split."""
    chosen = Run.open(run).data.load((split,)).splits[split]
    return Images(chosen.images.float() / 255, chosen.labels)


def network_of(pruned: Path) -> nn.Module:
    """The stock architecture with a pruned model's weights, built from what its folder says and nothing else."""
    config = json.loads((pruned / "config.json").read_text())
    network = registry.create(config["architecture"], config["num_classes"], config["data"]["channels"])
    network.load_state_dict(load_file(pruned / "model.safetensors"), strict=True)
    return network.eval()


def normalised(pruned: Path, pixels: Tensor) -> Tensor:
    data = json.loads((pruned / "config.json").read_text())["data"]
    mean, std = (torch.tensor(data[key])[:, None, None] for key in ("mean", "std"))
    return (pixels - mean) / std


@torch.no_grad()
def logits_of(pruned: Path, pixels: Tensor) -> Tensor:
    return network_of(pruned)(normalised(pruned, pixels))


def top_error(logits: Tensor, labels: Tensor, k: int) -> float:
    hit = (logits.topk(k, dim=1).indices == labels[:, None]).any(1)
    return 100 * (1 - hit.double().mean().item())


def wilson(error: float, images: int) -> list[float]:
    """Wilson's score interval (Wilson 1927) of an error in percent; 1.96 as in the tables."""
    p, z = error / 100, 1.959963984540054
    centre, spread = p + z**2 / (2 * images), z * math.sqrt(p * (1 - p) / images + z**2 / (4 * images**2))
    return [100 * (centre - spread) / (1 + z**2 / images), 100 * (centre + spread) / (1 + z**2 / images)]


def assert_figures(figures: dict[str, Any], logits: Tensor, labels: Tensor) -> None:
    assert figures["top1_error"] == pytest.approx(top_error(logits, labels, 1), abs=1e-6)
    assert figures["top5_error"] == pytest.approx(top_error(logits, labels, 5), abs=1e-6)
    assert figures["cross_entropy"] == pytest.approx(F.cross_entropy(logits.double(), labels).item(), rel=1e-4)
    assert figures["interval95"] == pytest.approx(wilson(figures["top1_error"], len(labels)), abs=1e-6)


@pytest.fixture(scope="module")
def pruned(one_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every member of the run of ONE, pruned; to be read, not changed."""
    folder = tmp_path_factory.mktemp("pruned")
    for member in MEMBERS:
        assert command("prune-branches", one_run, "--member", member, "--output", folder / member).status == 0
    return {member: folder / member for member in MEMBERS}


@pytest.fixture(scope="module")
def test_images(one_run: Path) -> Images:
    return images_of(one_run, "test")


@pytest.fixture(scope="module")
def member_logits(pruned: dict[str, Path], test_images: Images) -> dict[str, Tensor]:
    return {member: logits_of(path, test_images.pixels) for member, path in pruned.items()}


@pytest.fixture(scope="module")
def gated(one_run: Path, pruned: dict[str, Path], test_images: Images, member_logits: dict[str, Tensor]) -> Tensor:
    """Logits of ONE-E (Lan et al. 2018, Eq. 3), from the weights on disk: what enters layer3 enters the gate."""
    step = (one_run / "checkpoints" / "last").read_text().strip()
    gate = load_file(one_run / "checkpoints" / step / "method.safetensors")
    network, trunk = network_of(pruned["student_0"]), []
    network.layer3.register_forward_pre_hook(lambda module, inputs: trunk.append(inputs[0]))
    with torch.no_grad():
        network(normalised(pruned["student_0"], test_images.pixels))
    scores = F.linear(trunk[0].mean((2, 3)), gate["gate.fc.weight"], gate["gate.fc.bias"])
    scores = (scores - gate["gate.bn.running_mean"]) / (gate["gate.bn.running_var"] + 1e-5).sqrt()
    scores = scores * gate["gate.bn.weight"] + gate["gate.bn.bias"]
    weights = scores.relu().softmax(1)
    return sum(weights[:, i, None] * member_logits[member] for i, member in enumerate(MEMBERS))


@pytest.fixture(scope="module")
def independent_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two whole networks, each for itself."""
    return train_tiny(
        tmp_path_factory.mktemp("independent"),
        "method.name=independent",
        "group.kind=networks",
        "group.students=2",
        "train.epochs=1",
    )


# train


def test_train_leaves_a_run_and_prints_its_figures(tmp_path: Path, tiny: Callable[..., Any], distilkit: Command):
    tiny()
    result = distilkit("train", tmp_path / "tiny.toml", "--runs", tmp_path / "runs", "--set", "train.epochs=1")
    assert result.status == 0
    (run,) = (tmp_path / "runs").iterdir()
    record = json.loads((run / "run.json").read_text())
    assert record["state"] == "done"
    assert "--set train.epochs=1" not in result.out
    for name, errors in record["final"]["errors"].items():
        assert name in result.out
        assert f"{errors['top1']:.2f}" in result.out
    assert run.name in result.out
    assert "epoch 1/1" in result.err
    assert "epoch 1/1" not in result.out


def test_train_json_has_the_promised_keys(tmp_path: Path, tiny: Callable[..., Any], distilkit: Command):
    tiny()
    arguments = ("--set", "train.epochs=1", "--set", "data.validation=100", "--json")
    document = distilkit("train", tmp_path / "tiny.toml", "--runs", tmp_path / "runs", *arguments).json
    assert document["schema"] == 1
    assert set(document) >= {"run", "state", "epochs", "images_per_second", "errors"}
    assert (document["state"], document["epochs"]) == ("done", 1)
    assert document["images_per_second"] > 0
    assert set(document["errors"]) == {*MEMBERS, "gated"}
    for errors in document["errors"].values():
        assert 0 <= errors["top5"] <= errors["top1"] <= 100
    assert Path(document["run"]).parent == tmp_path / "runs"
    assert json.loads((Path(document["run"]) / "run.json").read_text())["data"]["images"]["validation"] == 100


def test_seeds_train_sibling_runs_and_give_mean_and_deviation(
    tmp_path: Path, tiny: Callable[..., Any], distilkit: Command
):
    tiny()
    arguments = (
        "--runs",
        tmp_path / "runs",
        "--set",
        "train.epochs=1",
        "--set",
        "method.name=baseline",
        "--seeds",
        "3,1",
    )
    document = distilkit("train", tmp_path / "tiny.toml", *arguments, "--json").json
    assert document["schema"] == 1
    assert document["seeds"] == [3, 1]
    paths = [Path(run["run"]) for run in document["runs"]]
    assert sorted(paths) == sorted((tmp_path / "runs").iterdir())
    assert [load(path / "recipe.toml").train.seed for path in paths] == [3, 1]
    errors = [run["errors"]["student_0"]["top1"] for run in document["runs"]]
    assert document["errors"]["student_0"] == {
        "mean_top1": pytest.approx(np.mean(errors)),
        "std_top1": pytest.approx(np.std(errors, ddof=1)),
    }
    first, second = (load_file(next(path.glob("checkpoints/*/group.safetensors"))) for path in paths)
    assert not torch.equal(first["networks.student_0.conv1.weight"], second["networks.student_0.conv1.weight"])


def test_a_dry_run_prints_costs_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., Any], distilkit: Command
):
    tiny()
    monkeypatch.chdir(tmp_path)
    document = distilkit("train", "tiny.toml", "--dry-run", "--json").json
    people = distilkit("train", "tiny.toml", "--dry-run")
    assert document["schema"] == 1
    assert tuple(document["members"]) == MEMBERS
    parameters, flops = document["parameters"], document["flops"]
    stock = sum(parameter.numel() for parameter in registry.create("resnet8", 10, 1).parameters())
    branch = sum(
        p.numel()
        for n, p in registry.create("resnet8", 10, 1).named_parameters()
        if n[:6] in ("layer3", "fc.wei", "fc.bia")
    )
    gate = 32 * 3 + 3 + 3 + 3
    whole = stock + 2 * branch + gate
    assert parameters == {"train": whole, "deploy": stock, "ensemble": whole}
    assert flops["deploy"] < flops["train"] < 3 * flops["deploy"]
    assert people.status == 0
    assert f"{parameters['train']:,}" in people.out
    assert f"{parameters['deploy']:,}" in people.out
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.toml"]


def test_a_dry_run_knows_the_papers_costs_without_their_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distilkit: Command
):
    monkeypatch.chdir(tmp_path)
    document = distilkit("train", "one_resnet32", "--dry-run", "--json").json
    assert document["flops"]["train"] == pytest.approx(2.285e8, rel=5e-3)
    assert document["flops"]["deploy"] == pytest.approx(1.383e8, rel=5e-3)
    assert document["parameters"]["deploy"] == 472_756
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flags", [(), ("--json",)], ids=["people", "json"])
def test_resume_of_a_finished_run_says_so_and_changes_nothing(
    flags: tuple[str, ...], one_run: Path, distilkit: Command
):
    before = {path: path.read_bytes() for path in one_run.rglob("*") if path.is_file()}
    result = distilkit("train", "--resume", one_run, *flags)
    assert result.status == 0
    assert "finished" in result.err
    assert {path: path.read_bytes() for path in one_run.rglob("*") if path.is_file()} == before
    if flags:
        assert result.json["state"] == "done"
        assert result.json["errors"] == json.loads((one_run / "run.json").read_text())["final"]["errors"]


# evaluate


def test_evaluate_gives_the_figures_that_the_test_computes(
    one_run: Path, test_images: Images, member_logits: dict[str, Tensor], distilkit: Command
):
    for member, logits in member_logits.items():
        document = distilkit("evaluate", one_run, "--member", member, "--json").json
        assert document["schema"] == 1
        assert (document["run"], document["member"], document["split"]) == (str(one_run), member, "test")
        assert document["images"] == 500
        assert_figures(document, logits, test_images.labels)


def test_evaluate_of_the_leader_is_what_the_training_ended_with(one_run: Path, baseline_run: Path, distilkit: Command):
    for run in (one_run, baseline_run):
        final = json.loads((run / "run.json").read_text())["final"]["errors"]["student_0"]
        document = distilkit("evaluate", run, "--json").json
        assert document["member"] == "student_0"
        assert document["top1_error"] == pytest.approx(final["top1"], abs=1e-9)
        assert document["top5_error"] == pytest.approx(final["top5"], abs=1e-9)


def test_evaluate_of_each_split_and_checkpoint_is_what_its_epoch_saw(baseline_run: Path, distilkit: Command):
    lines = [json.loads(line) for line in (baseline_run / "metrics.jsonl").read_text().splitlines()]
    by_step = {f"step_{line['step']}": line for line in lines}
    kept = [path.name for path in (baseline_run / "checkpoints").iterdir() if path.is_dir()]
    assert kept
    for name in kept:
        for split, images in (("validation", 259), ("test", 500)):
            document = distilkit("evaluate", baseline_run, "--checkpoint", name, "--split", split, "--json").json
            expected = by_step[name][split]["errors"]["student_0"]["top1"]
            assert document["images"] == images
            assert document["top1_error"] == pytest.approx(expected, abs=1e-9)
    assert distilkit("evaluate", baseline_run, "--split", "train", "--json").json["images"] == 1297 - 259
    best = (baseline_run / "checkpoints" / "best").read_text().strip()
    documents = [
        distilkit("evaluate", baseline_run, *chosen, "--json").json
        for chosen in ((), ("--checkpoint", "best"), ("--checkpoint", best))
    ]
    assert documents[0] == documents[1] == documents[2]


def test_evaluate_of_the_pruned_model_is_that_of_the_run(one_run: Path, pruned: dict[str, Path], distilkit: Command):
    for member, path in pruned.items():
        of_run = distilkit("evaluate", one_run, "--member", member, "--json").json
        of_pruned = distilkit("evaluate", path, "--json").json
        assert of_pruned.pop("run") == str(path)
        assert of_run.pop("run") == str(one_run)
        assert of_pruned == of_run


def test_evaluate_shows_its_figures_to_people(one_run: Path, distilkit: Command):
    document = distilkit("evaluate", one_run, "--json").json
    result = distilkit("evaluate", one_run)
    assert result.status == 0
    low, high = document["interval95"]
    for figure in (document["top1_error"], document["top5_error"], low, high):
        assert f"{figure:.2f}" in result.out
    assert one_run.name in result.out
    assert "student_0" in result.out


# ensemble-eval


def distance(first: Tensor, second: Tensor) -> float:
    return (first.softmax(1) - second.softmax(1)).norm(dim=1).mean().item()


def test_ensemble_eval_gives_every_student_and_every_ensemble(
    one_run: Path, test_images: Images, member_logits: dict[str, Tensor], gated: Tensor, distilkit: Command
):
    document = distilkit("ensemble-eval", one_run, "--json").json
    labels, logits = test_images.labels, torch.stack(list(member_logits.values()))
    assert document["schema"] == 1
    assert (document["run"], document["images"]) == (str(one_run), 500)
    assert tuple(document["members"]) == MEMBERS
    for member in MEMBERS:
        assert_figures(document["members"][member], member_logits[member], labels)
    errors = [top_error(own, labels, 1) for own in logits]
    assert document["mean"] == pytest.approx(np.mean(errors), abs=1e-6)
    assert document["std"] == pytest.approx(np.std(errors, ddof=1), abs=1e-6)
    assert set(document["ensembles"]) == {"gated", "mean_of_logits", "mean_of_probabilities"}
    assert_figures(document["ensembles"]["gated"], gated, labels)
    assert_figures(document["ensembles"]["mean_of_logits"], logits.mean(0), labels)
    assert_figures(document["ensembles"]["mean_of_probabilities"], logits.softmax(2).mean(0).log(), labels)
    expected = np.mean([distance(first, second) for first, second in combinations(logits, 2)])
    assert document["diversity"] == pytest.approx(expected, rel=1e-4)


def test_ensemble_eval_agrees_with_what_the_training_ended_with(one_run: Path, distilkit: Command):
    document = distilkit("ensemble-eval", one_run, "--json").json
    for name, errors in json.loads((one_run / "run.json").read_text())["final"]["errors"].items():
        figures = (document["members"] | document["ensembles"])[name]
        assert figures["top1_error"] == pytest.approx(errors["top1"], abs=1e-9)
        assert figures["top5_error"] == pytest.approx(errors["top5"], abs=1e-9)


def test_several_runs_are_one_ensemble_of_their_leaders(
    one_run: Path,
    baseline_run: Path,
    tmp_path: Path,
    test_images: Images,
    member_logits: dict[str, Tensor],
    distilkit: Command,
):
    names = ("quickstart-20260101T000000Z", "quickstart-20260101T000001Z")
    runs = [shutil.copytree(run, tmp_path / name) for run, name in zip((one_run, baseline_run), names, strict=True)]
    distilkit("prune-branches", baseline_run, "--output", tmp_path / "pruned")
    logits = torch.stack([member_logits["student_0"], logits_of(tmp_path / "pruned", test_images.pixels)])
    document = distilkit("ensemble-eval", *runs, "--json").json
    assert document["run"] == [str(run) for run in runs]
    assert len(document["members"]) == 2
    for own, figures in zip(logits, document["members"].values(), strict=True):
        assert_figures(figures, own, test_images.labels)
    assert "gated" not in document["ensembles"]
    assert_figures(document["ensembles"]["mean_of_logits"], logits.mean(0), test_images.labels)
    assert document["diversity"] == pytest.approx(distance(*logits), rel=1e-4)
    people = distilkit("ensemble-eval", *runs)
    assert people.status == 0
    for figures in [*document["members"].values(), document["ensembles"]["mean_of_logits"]]:
        low, high = figures["interval95"]
        assert f"{figures['top1_error']:.2f}" in people.out
        assert f"{low:.2f}-{high:.2f}" in people.out  # In one piece, though these names are long and the page narrow.


def test_ensemble_eval_shows_its_figures_to_people(one_run: Path, distilkit: Command):
    document = distilkit("ensemble-eval", one_run, "--json").json
    result = distilkit("ensemble-eval", one_run)
    assert result.status == 0
    for name, figures in (document["members"] | document["ensembles"]).items():
        line = next(line for line in result.out.splitlines() if line.strip().startswith(name))
        assert f"{figures['top1_error']:.2f}" in line


# prune-branches


def test_pruning_leaves_the_stock_architecture_and_the_same_logits_bit_for_bit(
    one_run: Path, tmp_path: Path, test_images: Images, distilkit: Command
):
    """Against the learner that is rebuilt from the checkpoint, both computing in the layout that they are left in."""
    run = shutil.copytree(one_run, tmp_path / "run")
    document = distilkit("prune-branches", run, "--json").json
    assert document["schema"] == 1
    assert document["output"] == str(run / "pruned")
    assert document["member"] == "student_0"
    assert document["max_abs_difference"] == 0
    dry = distilkit("train", run / "recipe.toml", "--dry-run", "--json").json
    for what in ("parameters", "flops"):
        assert document[what] == {"before": dry[what]["train"], "after": dry[what]["deploy"]}
    assert sorted(path.name for path in (run / "pruned").iterdir()) == ["config.json", "model.safetensors"]

    weights = load_file(run / "pruned" / "model.safetensors")
    stock = registry.create("resnet8", 10, channels=1)
    assert {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in stock.state_dict().items()}
    stock.load_state_dict(weights, strict=True)
    learner = Run.open(run).learner()
    with torch.no_grad():
        in_group, _ = learner.predict(test_images.pixels)
        alone = stock.eval()(normalised(run / "pruned", test_images.pixels))
    assert torch.equal(alone, in_group[0])


def test_the_config_of_a_pruned_model_says_what_it_is(one_run: Path, pruned: dict[str, Path]):
    record = json.loads((one_run / "run.json").read_text())
    for member, path in pruned.items():
        config = json.loads((path / "config.json").read_text())
        assert (config["architecture"], config["method"], config["member"]) == ("resnet8", "one", member)
        assert config["sha256"] == hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
        assert config["recipe_digest"] == load(one_run / "recipe.toml").digest()
        assert config["top1_error"] == record["final"]["errors"][member]["top1"]
        assert config["data"]["classes"] == record["data"]["classes"]


def test_pruning_one_of_several_networks(independent_run: Path, tmp_path: Path, distilkit: Command):
    arguments = ("--member", "student_1", "--output", tmp_path / "small")
    document = distilkit("prune-branches", independent_run, *arguments, "--json").json
    assert document["parameters"]["before"] == 2 * document["parameters"]["after"]
    assert document["flops"]["before"] == 2 * document["flops"]["after"]
    assert document["max_abs_difference"] == 0
    final = json.loads((independent_run / "run.json").read_text())["final"]["errors"]
    assert distilkit("evaluate", tmp_path / "small", "--json").json["top1_error"] == pytest.approx(
        final["student_1"]["top1"]
    )


def test_prune_branches_shows_its_figures_to_people(one_run: Path, tmp_path: Path, distilkit: Command):
    result = distilkit("prune-branches", one_run, "--output", tmp_path / "small")
    assert result.status == 0
    assert "77,754" in result.out
    assert "194,615" in result.out
    assert str(tmp_path / "small") in result.out


# export


@pytest.fixture(scope="module")
def exports(one_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The documents of two exports of one run: a student in its usual place, the ensemble in one of our choice."""
    run = shutil.copytree(one_run, tmp_path_factory.mktemp("exports") / "run")
    documents = {
        "single": command("export", run, "--mode", "single", "--format", "onnx", "--json"),
        "ensemble": command(
            "export", run, "--mode", "ensemble", "--members", "--output", run / "here" / "one_e.onnx", "--json"
        ),
    }
    return {mode: {"status": result.status, **result.json} for mode, result in documents.items()}


def outputs_of(file: str, pixels: Tensor, batch_size: int) -> dict[str, Tensor]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    parts = [session.run(names, {"images": batch.numpy()}) for batch in pixels.split(batch_size)]
    return {name: torch.from_numpy(np.concatenate(values)) for name, *values in zip(names, *parts, strict=True)}


def assert_probabilities(outputs: dict[str, Tensor]) -> None:
    torch.testing.assert_close(outputs["probabilities"], outputs["logits"].softmax(1), rtol=1e-4, atol=1e-6)


def test_export_documents_have_the_promised_keys(exports: dict[str, dict[str, Any]]):
    for mode, document in exports.items():
        assert document["status"] == 0
        assert document["schema"] == 1
        assert document["format"] == "onnx"
        assert document["mode"] == mode
        assert document["bytes"] == Path(document["file"]).stat().st_size
        assert document["passed"] is True
        assert 0 <= document["max_abs_difference"] < 1e-3
        assert document["top1_agreement"] == 100
    folder = Path(exports["single"]["file"]).parent
    assert folder.name == "exports"
    assert sorted(path.name for path in folder.iterdir()) == ["single.card.md", "single.onnx"]
    assert sorted(path.name for path in (folder.parent / "here").iterdir()) == ["one_e.card.md", "one_e.onnx"]


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_the_exported_student_computes_the_pruned_models_logits(
    batch_size: int, exports: dict[str, dict[str, Any]], test_images: Images, member_logits: dict[str, Tensor]
):
    outputs = outputs_of(exports["single"]["file"], test_images.pixels[:64], batch_size)
    assert set(outputs) == {"logits", "probabilities"}
    torch.testing.assert_close(outputs["logits"], member_logits["student_0"][:64], rtol=1e-4, atol=1e-4)
    assert_probabilities(outputs)


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_the_exported_ensemble_computes_the_gated_logits_and_each_members(
    batch_size: int,
    exports: dict[str, dict[str, Any]],
    test_images: Images,
    member_logits: dict[str, Tensor],
    gated: Tensor,
):
    outputs = outputs_of(exports["ensemble"]["file"], test_images.pixels[:64], batch_size)
    assert set(outputs) == {"logits", "probabilities", *(f"logits_{member}" for member in MEMBERS)}
    torch.testing.assert_close(outputs["logits"], gated[:64], rtol=1e-4, atol=1e-4)
    for member in MEMBERS:
        torch.testing.assert_close(outputs[f"logits_{member}"], member_logits[member][:64], rtol=1e-4, atol=1e-4)
    assert_probabilities(outputs)


def test_exported_files_make_the_errors_that_the_training_ended_with(
    one_run: Path, exports: dict[str, dict[str, Any]], test_images: Images
):
    final = json.loads((one_run / "run.json").read_text())["final"]["errors"]
    for name, member in (("single", "student_0"), ("ensemble", "gated")):
        logits = outputs_of(exports[name]["file"], test_images.pixels, 100)["logits"]
        assert top_error(logits, test_images.labels, 1) == pytest.approx(final[member]["top1"], abs=0.2)


def metadata_of(file: str) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(file).metadata_props}


def test_exported_files_say_what_they_are(one_run: Path, exports: dict[str, dict[str, Any]]):
    final = json.loads((one_run / "run.json").read_text())["final"]["errors"]
    for name, member in (("single", "student_0"), ("ensemble", "gated")):
        metadata = metadata_of(exports[name]["file"])
        assert json.loads(metadata["classes"]) == [str(digit) for digit in range(10)]
        assert metadata["dataset"] == "digits"
        assert metadata["method"] == "one"
        assert member in metadata["member"]
        assert float(metadata["top1_error_percent"]) == pytest.approx(final[member]["top1"], abs=1e-3)
        assert metadata["recipe_digest"] == load(one_run / "recipe.toml").digest()
        assert metadata["distilkit_version"] == package.__version__


def test_the_file_of_another_checkpoint_claims_no_error_of_the_finished_training(
    one_run: Path, tmp_path: Path, distilkit: Command
):
    arguments = ("--checkpoint", "step_30", "--output", tmp_path / "early.onnx")
    document = distilkit("export", one_run, *arguments, "--json").json
    claimed = metadata_of(document["file"])["top1_error_percent"]
    line = json.loads((one_run / "metrics.jsonl").read_text().splitlines()[4])
    assert claimed == "" or float(claimed) == pytest.approx(line["test"]["errors"]["student_0"]["top1"], abs=1e-3)


def test_a_pruned_model_exports_as_its_run_does(
    pruned: dict[str, Path],
    tmp_path: Path,
    exports: dict[str, dict[str, Any]],
    test_images: Images,
    member_logits: dict[str, Tensor],
    distilkit: Command,
):
    folder = shutil.copytree(pruned["student_1"], tmp_path / "small")
    document = distilkit("export", folder, "--json").json
    assert document["passed"] is True
    assert Path(document["file"]) == folder / "exports" / "single.onnx"
    outputs = outputs_of(document["file"], test_images.pixels[:64], 32)
    torch.testing.assert_close(outputs["logits"], member_logits["student_1"][:64], rtol=1e-4, atol=1e-4)
    metadata, of_run = metadata_of(document["file"]), metadata_of(exports["single"]["file"])
    assert set(metadata) == set(of_run)
    assert metadata["member"] == "student_1"
    assert metadata["recipe_digest"] == of_run["recipe_digest"]


def test_an_ensemble_of_networks_exports_the_mean_of_their_logits(
    independent_run: Path, tmp_path: Path, test_images: Images, distilkit: Command
):
    logits = []
    for member in MEMBERS[:2]:
        distilkit("prune-branches", independent_run, "--member", member, "--output", tmp_path / member)
        logits.append(logits_of(tmp_path / member, test_images.pixels[:32]))
    document = distilkit("export", independent_run, "--mode", "ensemble", "--json").json
    assert document["passed"] is True
    assert Path(document["file"]) == independent_run / "exports" / "ensemble.onnx"
    outputs = outputs_of(document["file"], test_images.pixels[:32], 7)
    assert set(outputs) == {"logits", "probabilities"}
    torch.testing.assert_close(outputs["logits"], torch.stack(logits).mean(0), rtol=1e-4, atol=1e-4)


def test_another_student_is_exported_in_the_form_that_was_asked_for(
    one_run: Path, tmp_path: Path, test_images: Images, member_logits: dict[str, Tensor], distilkit: Command
):
    run = shutil.copytree(one_run, tmp_path / "run")
    form = ("--input", "uint8", "--layout", "nhwc", "--batch", 16)
    document = distilkit("export", run, "--mode", "member:student_1", *form, "--json").json
    assert (document["passed"], document["batch_sizes"]) == (True, [16])
    assert (document["mode"], document["member"]) == ("member:student_1", "student_1")
    assert [document[key] for key in ("input", "layout", "batch", "precision")] == ["uint8", "nhwc", 16, "float32"]
    assert Path(document["file"]) == run / "exports" / "student_1-uint8-nhwc-batch16.onnx"
    pixels = test_images.pixels[:32].mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    outputs = outputs_of(document["file"], pixels, 16)
    torch.testing.assert_close(outputs["logits"], member_logits["student_1"][:32], rtol=1e-4, atol=1e-4)
    metadata = metadata_of(document["file"])
    assert metadata["input"] == "uint8 [16, 8, 8, 1], pixels 0 to 255, not normalised"
    assert metadata["precision"] == "float32"


@pytest.fixture
def damaging_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter writes one weight of the first convolution wrong."""

    def export(module: nn.Module, file: Path, **options: Any) -> None:
        export_onnx(module, file, **options)
        model = onnx.load(file)
        initializer = next(i for i in model.graph.initializer if len(i.dims) == 4)
        values = onnx.numpy_helper.to_array(initializer).copy()
        values.flat[0] += 0.5
        initializer.CopyFrom(onnx.numpy_helper.from_array(values, initializer.name))
        onnx.save(model, file)

    monkeypatch.setattr("distilkit.workflows.deploy.export.export_onnx", export)


@pytest.mark.usefixtures("damaging_exporter")
@pytest.mark.parametrize("mode", ["single", "ensemble"])
def test_a_wrong_graph_fails_with_status_1_and_is_kept_under_a_name_that_says_so(
    mode: str, one_run: Path, tmp_path: Path, distilkit: Command
):
    run = shutil.copytree(one_run, tmp_path / "run")
    result = distilkit("export", run, "--mode", mode, "--json")
    assert result.status == 1
    document = result.json
    assert document["passed"] is False
    assert document["max_abs_difference"] > 1e-3
    (file,) = (run / "exports").iterdir()
    assert str(file) == document["file"]
    assert "failed" in file.name
    assert file.name != f"{mode}.onnx"
    assert "failed" in result.err.lower() or "wrong" in result.err


@pytest.mark.usefixtures("damaging_exporter")
def test_a_wrong_graph_is_no_success_for_people_either(one_run: Path, tmp_path: Path, distilkit: Command):
    result = distilkit("export", one_run, "--output", tmp_path / "model.onnx")
    assert result.status == 1
    assert "passed" not in result.out
    assert "failed" in (result.out + result.err).lower()
    (file,) = tmp_path.iterdir()
    assert "failed" in file.name
    assert str(file) in result.out + result.err


def test_export_shows_its_figures_to_people(one_run: Path, tmp_path: Path, distilkit: Command):
    result = distilkit("export", one_run, "--output", tmp_path / "model.onnx", "--opset", 18)
    assert result.status == 0
    assert str(tmp_path / "model.onnx") in result.out
    assert "passed" in result.out
    assert f"{(tmp_path / 'model.onnx').stat().st_size:,}" in result.out
    assert [entry.version for entry in onnx.load(tmp_path / "model.onnx").opset_import] == [18]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.card.md", "model.onnx"]


# robustness


SHORT = ("--steps", 2, "--max-distance", 4, "--directions", 2, "--images", 60)


def curves_of(document: dict[str, Any]) -> list[Any]:
    return [(run["magnitudes"], run["curves"], run["cross_entropy"]) for run in document["runs"]]


def test_robustness_at_distance_0_is_evaluate_on_the_same_images(one_run: Path, tmp_path: Path, distilkit: Command):
    arguments = ("--steps", 1, "--directions", 2, "--images", 5000, "--output", tmp_path)
    (run,) = distilkit("robustness", one_run, *arguments, "--json").json["runs"]
    for split in ("train", "test"):
        evaluated = distilkit("evaluate", one_run, "--split", split, "--json").json
        assert run["images"][split] == evaluated["images"]
        for direction in range(2):
            assert run["curves"][split][direction][0] == pytest.approx(evaluated["top1_error"], abs=1e-9)
            assert run["cross_entropy"][split][direction][0] == pytest.approx(evaluated["cross_entropy"], rel=1e-5)


def test_robustness_writes_its_curves_and_their_plots(one_run: Path, tmp_path: Path, distilkit: Command):
    run = shutil.copytree(one_run, tmp_path / "run")
    document = distilkit("robustness", run, *SHORT, "--json").json
    assert document["schema"] == 1
    (curves,) = document["runs"]
    assert curves["run"] == str(run)
    assert curves["magnitudes"] == [0, 2, 4]
    for split in ("train", "test"):
        assert np.array(curves["curves"][split]).shape == (2, 3)
        assert np.array(curves["cross_entropy"][split]).shape == (2, 3)
    assert document["checks"] == []
    assert document["passed"] is True
    assert sorted(path.name for path in (run / "robustness").iterdir()) == [
        "robustness.json",
        "robustness.png",
        "robustness.svg",
    ]
    assert sorted(document["files"]) == sorted(str(path) for path in (run / "robustness").iterdir())
    assert curves_of(json.loads((run / "robustness" / "robustness.json").read_text())) == curves_of(document)
    with Image.open(run / "robustness" / "robustness.png") as plot:
        assert min(plot.size) > 200
    assert "<svg" in (run / "robustness" / "robustness.svg").read_text()


def test_the_seed_alone_decides_the_curves(one_run: Path, tmp_path: Path, distilkit: Command):
    def curves(*arguments: object) -> list[Any]:
        torch.manual_seed(torch.seed() % 1000)
        return curves_of(distilkit("robustness", one_run, *SHORT, *arguments, "--output", tmp_path, "--json").json)

    first = curves("--seed", 5)
    assert curves("--seed", 5) == first
    assert curves("--seed", 6) != first
    ((_, _, entropies),) = first
    assert entropies["test"][0] != entropies["test"][1]
    assert curves("--seed", 5, "--statistics", "recomputed") != first


def test_robustness_changes_nothing_in_the_run_but_its_own_folder(one_run: Path, tmp_path: Path, distilkit: Command):
    before = {path: path.read_bytes() for path in one_run.rglob("*") if path.is_file()}
    assert distilkit("robustness", one_run, *SHORT, "--output", tmp_path / "out").status == 0
    assert {path: path.read_bytes() for path in one_run.rglob("*") if path.is_file()} == before


def test_a_threshold_is_a_check_with_an_exit_status(one_run: Path, tmp_path: Path, distilkit: Command):
    def check(*arguments: object) -> Result:
        return distilkit("robustness", one_run, *SHORT, "--output", tmp_path, *arguments)

    passed = check("--max-increase", 100, "--at", 3, "--json")
    assert passed.status == 0
    assert passed.json["passed"] is True
    assert passed.json["runs"][0]["magnitudes"] == [0, 2, 3, 4]
    (verdict,) = passed.json["checks"]
    assert verdict["passed"] is True
    errors = np.array(passed.json["runs"][0]["curves"]["test"])
    assert verdict["increase"] == pytest.approx(errors[:, 2].mean() - errors[:, 0].mean())

    failed = check("--max-increase", 0, "--at", 50, "--json")
    assert failed.status == 1
    assert failed.json["passed"] is False
    assert failed.json["runs"][0]["magnitudes"] == [0, 2, 4, 50]
    assert failed.json["checks"][0]["passed"] is False
    people = check("--max-increase", 0, "--at", 50)
    assert people.status == 1
    assert f"{failed.json['checks'][0]['increase']:.2f}" in people.err
    assert "fail" in people.err.lower()


def test_an_increase_of_exactly_what_is_allowed_passes(one_run: Path, tmp_path: Path, distilkit: Command):
    arguments = ("robustness", one_run, *SHORT, "--output", tmp_path, "--at", 4, "--json")
    increase = distilkit(*arguments, "--max-increase", 100).json["checks"][0]["increase"]
    assert distilkit(*arguments, "--max-increase", increase).status == 0
    assert distilkit(*arguments, "--max-increase", increase - 0.01).status == 1


def test_what_is_not_finite_is_null_and_fails_a_check(one_run: Path, tmp_path: Path, distilkit: Command):
    arguments = ("--steps", 1, "--directions", 1, "--images", 20, "--max-distance", 1e38, "--output", tmp_path)
    without = distilkit("robustness", one_run, *arguments, "--json")
    assert without.status == 0
    assert "NaN" not in without.out
    assert "Infinity" not in without.out
    assert without.json["runs"][0]["cross_entropy"]["test"][0][1] is None
    assert distilkit("robustness", one_run, *arguments).status == 0
    checked = distilkit("robustness", one_run, *arguments, "--max-increase", 100, "--at", 1e38, "--json")
    assert checked.json["checks"][0]["at"] == 1e38


def test_several_runs_share_one_plot(
    one_run: Path, baseline_run: Path, pruned: dict[str, Path], tmp_path: Path, distilkit: Command
):
    paths = [one_run, baseline_run, pruned["student_1"]]
    arguments = (*paths, *SHORT, "--output", tmp_path / "out", "--max-increase", 100, "--at", 4)
    document = distilkit("robustness", *arguments, "--json").json
    assert [run["run"] for run in document["runs"]] == [str(path) for path in paths]
    assert [check["run"] for check in document["checks"]] == [str(path) for path in paths]
    alone = distilkit("robustness", baseline_run, *SHORT, "--output", tmp_path / "alone", "--json").json
    assert curves_of(document)[1] == curves_of(alone)[0]
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == [
        "robustness.json",
        "robustness.png",
        "robustness.svg",
    ]
    people = distilkit("robustness", *arguments)
    assert people.status == 0
    assert all(path.name in people.out for path in paths)


def test_a_pruned_model_is_as_robust_as_its_member(
    one_run: Path, pruned: dict[str, Path], tmp_path: Path, distilkit: Command
):
    of_run = distilkit("robustness", one_run, "--member", "student_2", *SHORT, "--output", tmp_path, "--json").json
    of_pruned = distilkit("robustness", pruned["student_2"], *SHORT, "--output", tmp_path, "--json").json
    assert curves_of(of_pruned) == curves_of(of_run)


def sharpened(pruned: Path, to: Path, scale: float = 0.1) -> Path:
    """The same function with smaller weights: batch norm, told of the scale, undoes it.

    (s w x - s mean) / sqrt(s^2 (var + eps) - eps + eps) = (w x - mean) / sqrt(var + eps).
    """
    shutil.copytree(pruned, to)
    weights = load_file(to / "model.safetensors")
    for kernel in [name for name, tensor in weights.items() if tensor.ndim == 4]:
        stem = kernel.removesuffix(".weight")
        norm = stem.removesuffix("0") + "1" if stem.endswith("downsample.0") else stem.replace("conv", "bn")
        weights[kernel] *= scale
        weights[f"{norm}.running_mean"] *= scale
        variance = scale**2 * (weights[f"{norm}.running_var"].double() + 1e-5) - 1e-5
        assert variance.min() > 0
        weights[f"{norm}.running_var"] = variance.float()
    save_file(weights, to / "model.safetensors")
    config = json.loads((to / "config.json").read_text())
    config["sha256"] = hashlib.sha256((to / "model.safetensors").read_bytes()).hexdigest()
    (to / "config.json").write_text(json.dumps(config))
    return to


def test_a_sharpened_model_fails_a_threshold_unless_directions_are_normalised_by_filter(
    pruned: dict[str, Path], tmp_path: Path, test_images: Images, member_logits: dict[str, Tensor], distilkit: Command
):
    flat, sharp = pruned["student_0"], sharpened(pruned["student_0"], tmp_path / "sharp")
    logits = logits_of(sharp, test_images.pixels)
    torch.testing.assert_close(logits, member_logits["student_0"], rtol=1e-3, atol=1e-3)

    def check(model: Path, *arguments: object) -> Result:
        settings = ("--steps", 2, "--max-distance", 2, "--directions", 2, "--images", 500, "--output", tmp_path / "out")
        return distilkit("robustness", model, *settings, "--max-increase", 5, "--at", 2, *arguments, "--json")

    assert check(flat).status == 0
    assert check(sharp).status == 1
    normalised_flat, normalised_sharp = (
        check(
            model, "--directions-kind", "filter-normalised", "--max-distance", 0.5, "--at", 0.5, "--max-increase", 100
        )
        for model in (flat, sharp)
    )
    (of_flat,), (of_sharp,) = normalised_flat.json["runs"], normalised_sharp.json["runs"]
    for split in ("train", "test"):
        assert np.ptp(of_flat["curves"][split]) > 2  # The curves do move.
        np.testing.assert_allclose(of_sharp["curves"][split], of_flat["curves"][split], atol=0.5)
        np.testing.assert_allclose(of_sharp["cross_entropy"][split], of_flat["cross_entropy"][split], rtol=1e-2)


# compare


def test_compare_puts_runs_beside_each_other(one_run: Path, baseline_run: Path, distilkit: Command):
    document = distilkit("compare", baseline_run, one_run, "--json").json
    assert document["schema"] == 1
    rows = {(row["run"], row["deployed"]): row for row in document["rows"]}
    assert set(rows) == {(str(baseline_run), "student_0"), (str(one_run), "student_0"), (str(one_run), "gated")}
    for (run, deployed), row in rows.items():
        record = json.loads((Path(run) / "run.json").read_text())
        error = record["final"]["errors"][deployed]["top1"]
        assert row["top1_error"] == error
        assert row["interval95"] == pytest.approx(wilson(error, 500), abs=1e-6)
        assert row["train_flops"] == record["flops"]["train"]
        what = "train" if deployed == "gated" else "deploy"
        assert (row["parameters"], row["flops"]) == (record["parameters"][what], record["flops"][what])
    people = distilkit("compare", baseline_run, one_run)
    assert people.status == 0
    for row in rows.values():
        assert f"{row['top1_error']:.2f}" in people.out
        assert f"{row['parameters']:,}" in people.out


# Other networks and ensembles


def test_what_the_recipe_changes_of_the_architecture_goes_all_the_way_to_the_file(tmp_path: Path, distilkit: Command):
    """Without batch norm, without a gate: the pruned folder must say so for the others to rebuild it."""
    run = train_tiny(tmp_path, "model.norm=none", "method.gate=false", "train.epochs=1", "optimizer.lr=0.01")
    final = json.loads((run / "run.json").read_text())["final"]["errors"]
    assert set(final) == {*MEMBERS, "mean_of_logits"}
    ensembles = distilkit("ensemble-eval", run, "--json").json["ensembles"]
    assert set(ensembles) == {"mean_of_logits", "mean_of_probabilities"}
    assert ensembles["mean_of_logits"]["top1_error"] == pytest.approx(final["mean_of_logits"]["top1"])
    assert distilkit("prune-branches", run, "--json").json["max_abs_difference"] == 0
    pruned = run / "pruned"
    assert not any("bn" in name for name in load_file(pruned / "model.safetensors"))
    assert distilkit("evaluate", pruned, "--json").json["top1_error"] == pytest.approx(final["student_0"]["top1"])
    assert distilkit("export", pruned, "--json").json["passed"] is True
    assert distilkit("robustness", pruned, *SHORT, "--directions-kind", "filter-normalised").status == 0


# A data set of the user's own


@pytest.fixture(scope="module")
def folder_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run on a folder of images, and that folder: what is bright on the left, and what is on the right."""
    folder = tmp_path_factory.mktemp("folder")
    draws = np.random.default_rng(0)
    for part, count in (("train", 24), ("test", 10)):
        for name in ("left", "right"):
            (folder / "images" / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = draws.integers(0, 100, (16, 16, 3), dtype=np.uint8)
                pixels[:, slice(0, 8) if name == "left" else slice(8, 16)] += 120
                Image.fromarray(pixels).save(folder / "images" / part / name / f"{number}.png")
    data = ("data.dataset=image-folder", f"data.root={folder / 'images'}", "data.image_size=16")
    run = train_tiny(folder, *data, "data.augment=crop", "train.batch_size=16", "train.epochs=2")
    return run, folder / "images"


def test_a_folder_of_images_goes_all_the_way_to_a_checked_file(folder_run: tuple[Path, Path], distilkit: Command):
    run, _ = folder_run
    document = distilkit("evaluate", run, "--json").json
    assert document["images"] == 20
    exported = distilkit("export", run, "--json").json
    assert exported["passed"] is True
    assert json.loads(metadata_of(exported["file"])["classes"]) == ["left", "right"]
    pixels, labels = images_of(run, "test")
    logits = outputs_of(exported["file"], pixels, 7)["logits"]
    assert logits.shape == (20, 2)
    assert top_error(logits, labels, 1) == pytest.approx(document["top1_error"])


def test_a_folder_for_images_that_come_from_none_is_refused(one_run: Path, tmp_path: Path, distilkit: Command):
    for command in ("evaluate", "ensemble-eval", "robustness", "prune-branches"):
        refused = distilkit(command, one_run, "--data", tmp_path, "--json")
        assert refused.status == 2
        assert f"--data {tmp_path} has no meaning here" in refused.json["error"]["message"]


def test_images_that_have_moved_are_found_by_data(folder_run: tuple[Path, Path], tmp_path: Path, distilkit: Command):
    run, images = folder_run
    here = distilkit("evaluate", run, "--json").json
    moved = tmp_path / "moved"
    shutil.copytree(images, moved)
    away = images.with_name("away")
    images.rename(away)
    try:
        gone = distilkit("evaluate", run, "--json")
        assert gone.status == 2
        assert str(images) in gone.json["error"]["message"] + (gone.json["error"]["hint"] or "")
        assert "--data" in gone.json["error"]["message"] + (gone.json["error"]["hint"] or "")
        assert distilkit("evaluate", run, "--data", moved, "--json").json == here
        assert distilkit("ensemble-eval", run, "--data", moved).status == 0
        assert distilkit("export", run, "--data", moved, "--output", tmp_path / "model.onnx").status == 0
        quick = ("--steps", 1, "--directions", 1, "--output", tmp_path / "out")
        assert distilkit("robustness", run, "--data", moved, *quick).status == 0
        pruning = distilkit("prune-branches", run, "--output", tmp_path / "small")
        assert pruning.status == 2
        assert "hint" in pruning.err
    finally:
        away.rename(images)


def test_images_of_other_classes_are_refused(folder_run: tuple[Path, Path], tmp_path: Path, distilkit: Command):
    run, images = folder_run
    shutil.copytree(images, tmp_path / "other")
    for part in ("train", "test"):
        (tmp_path / "other" / part / "right").rename(tmp_path / "other" / part / "up")
    result = distilkit("evaluate", run, "--data", tmp_path / "other")
    assert result.status == 2
    assert "up" in result.err
    assert "hint:" in result.err


def test_other_images_of_the_same_classes_are_evaluated_with_a_word_of_warning(
    folder_run: tuple[Path, Path], tmp_path: Path, distilkit: Command
):
    run, images = folder_run
    shutil.copytree(images, tmp_path / "other")
    (tmp_path / "other" / "test" / "left" / "0.png").unlink()
    result = distilkit("evaluate", run, "--data", tmp_path / "other", "--json")
    assert result.status == 0
    assert result.json["images"] == 19
    assert "not the ones" in result.err
