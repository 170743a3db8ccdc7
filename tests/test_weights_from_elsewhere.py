"""Weights as scripts elsewhere leave them: wrapped, prefixed, halved, beside other things, of other networks."""

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from distilkit.errors import UserError
from distilkit.learners.pretrained import fit, read_weights
from distilkit.models import registry

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(2)
    return registry.create("resnet8", 10)


def _prefixed(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def _averaged(state: State) -> State:
    return {"n_averaged": torch.tensor(7), **_prefixed("module.", state)}


WRONG: State = {"conv1.weight": torch.zeros(1)}
AROUND: dict[str, tuple[Callable[[State], object], str | None]] = {
    "bare": (lambda state: state, None),
    "state_dict": (lambda state: {"state_dict": state, "epoch": 3}, "those under 'state_dict'"),
    "model": (lambda state: {"model": state, "optimizer": {"state": {}}}, "those under 'model'"),
    "model_state_dict": (lambda state: {"model_state_dict": state}, "those under 'model_state_dict'"),
    "net": (lambda state: {"net": state, "acc": 93.1}, "those under 'net'"),
    "timm's average": (lambda state: {"state_dict": WRONG, "state_dict_ema": state}, "those under 'state_dict_ema'"),
    "torchvision's average": (
        lambda state: {"model": WRONG, "model_ema": _averaged(state)},
        "those under 'model_ema', 'module.' taken away from their names",
    ),
    "an AveragedModel": (_averaged, "'module.' taken away from their names"),
    "wrapped twice": (lambda state: {"model": {"state_dict": state}}, "those under 'model.state_dict'"),
    "DataParallel": (lambda state: _prefixed("module.", state), "'module.' taken away from their names"),
    "compiled": (lambda state: _prefixed("_orig_mod.", state), "'_orig_mod.' taken away from their names"),
    "Lightning": (
        lambda state: {"state_dict": _prefixed("model.", state)},
        "those under 'state_dict', 'model.' taken away from their names",
    ),
    "compiled in DataParallel": (
        lambda state: _prefixed("module._orig_mod.", state),
        "'module._orig_mod.' taken away from their names",
    ),
    "a backbone in a model": (
        lambda state: _prefixed("model.backbone.", state),
        "'model.backbone.' taken away from their names",
    ),
    "a student beside its teacher": (
        lambda state: _prefixed("student.", state) | _prefixed("teacher.", WRONG),
        "'student.' taken away from their names, teacher.conv1.weight left out",
    ),
    "without batches counted": (
        lambda state: {name: value for name, value in state.items() if "num_batches" not in name},
        None,
    ),
}


@pytest.mark.parametrize("form", AROUND)
def test_weights_are_found_in_what_is_around_them_and_which_is_said(
    form: str, network: nn.Module, tmp_path: Path
) -> None:
    around, said = AROUND[form]
    state, file = network.state_dict(), tmp_path / "net.pth"
    torch.save(around(state), file)
    notes: list[str] = []
    found = fit(read_weights(file), state, say=notes.append)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert notes == ([f"weights of {file}: {said}"] if said else [])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
def test_other_number_formats_become_the_networks(
    dtype: torch.dtype, name: str, network: nn.Module, tmp_path: Path
) -> None:
    state, file = network.state_dict(), tmp_path / name
    other = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
    (save_file if file.suffix == ".safetensors" else torch.save)(other, file)
    found = fit(read_weights(file), state)
    for key, tensor in state.items():
        assert found[key].dtype == tensor.dtype
        assert torch.equal(found[key], other[key].to(tensor.dtype))


class Own(nn.Module):
    """A network whose own names begin as wrappers' do."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.backbone = nn.Linear(2, 3)


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_a_prefix_that_is_the_networks_own_stays(prefix: str, tmp_path: Path) -> None:
    state = Own().state_dict()
    torch.save(_prefixed(prefix, state), tmp_path / "own.pth")
    found = fit(read_weights(tmp_path / "own.pth"), state)
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_what_does_not_fit_is_listed_from_both_sides(network: nn.Module, tmp_path: Path) -> None:
    state = dict(network.state_dict())
    for number, name in enumerate([name for name in state if "bn" in name][:8]):
        state[f"norm{number}"] = state.pop(name)
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(UserError) as caught:
        fit(read_weights(tmp_path / "net.pth"), network.state_dict())
    assert "missing bn1.weight; " in caught.value.problem
    assert "more missing" in caught.value.problem
    assert "unexpected norm0; " in caught.value.problem
    assert "and 3 more unexpected" in caught.value.problem


HELP: dict[str, tuple[Callable[[State], State], str]] = {
    "a prefix too many": (lambda state: _prefixed("encoder.", state), "the names fit without their 'encoder.'"),
    "a prefix too few": (lambda state: state, "the names fit with 'trunk.' before them"),
}


@pytest.mark.parametrize("case", HELP)
def test_the_prefix_that_would_help_is_named(case: str, network: nn.Module, tmp_path: Path) -> None:
    make, hint = HELP[case]
    torch.save(make(network.state_dict()), tmp_path / "net.pth")
    own = network.state_dict() if case == "a prefix too many" else _prefixed("trunk.", network.state_dict())
    with pytest.raises(UserError) as caught:
        fit(read_weights(tmp_path / "net.pth"), own)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(hint)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_architecture_that_the_file_is_of_is_named(prefix: str, network: nn.Module, tmp_path: Path) -> None:
    torch.save(_prefixed(prefix, registry.create("resnet20", 100).state_dict()), tmp_path / "net.pth")
    with pytest.raises(UserError) as caught:
        fit(read_weights(tmp_path / "net.pth"), network.state_dict())
    assert caught.value.hint == "the file has the weights of resnet20: name that architecture"


BESIDE: dict[str, tuple[Callable[[nn.Module], object], str, str]] = {
    "arguments": (
        lambda net: {"state_dict": net.state_dict(), "args": argparse.Namespace(lr=0.1)},
        "argparse.Namespace",
        'whole["state_dict"]',
    ),
    "a NumPy scalar": (
        lambda net: {"state_dict": net.state_dict(), "best": np.float64(93.1)},
        "numpy._core.multiarray.scalar",
        'whole["state_dict"]',
    ),
    "a whole module": (lambda net: nn.Sequential(net), "torch.nn.modules.container.Sequential", "whole.state_dict()"),
}


@pytest.mark.parametrize("form", ["zip", "before PyTorch 1.6"])
@pytest.mark.parametrize("case", BESIDE)
def test_what_is_no_tensor_is_named_with_the_lines_that_save_the_tensors_alone(
    case: str, form: str, network: nn.Module, tmp_path: Path
) -> None:
    make, kind, saved = BESIDE[case]
    file = tmp_path / "net.pth"
    with warnings.catch_warnings(action="error"):
        torch.save(make(network), file, _use_new_zipfile_serialization=form == "zip")
        with pytest.raises(UserError) as caught:
            read_weights(file)
    assert kind in caught.value.problem
    told = f"{caught.value.problem} {caught.value.hint}"
    assert "\x1b" not in told
    assert "will likely succeed" not in told
    # The lines do what they say.
    lines = [line.strip() for line in str(caught.value.hint).splitlines()[1:]]
    assert len(lines) == 2
    assert saved in lines[1]
    exec("\n".join(lines), {"torch": torch})
    state = nn.Sequential(network).state_dict() if case == "a whole module" else network.state_dict()
    found = read_weights(tmp_path / "net_weights.pth").tensors
    assert found.keys() == state.keys()


@pytest.mark.parametrize("content", [b"garbage", b"PK\x03\x04", b"\x80\x02", b""])
def test_a_damaged_file_is_said_to_be_one_in_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.pth").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_weights(tmp_path / "net.pth")
    assert "\n" not in caught.value.problem
    assert "weights_only" not in caught.value.problem


def test_what_does_not_fit_is_listed_without_the_prefix_that_does_not_matter(
    network: nn.Module, tmp_path: Path
) -> None:
    state = dict(network.state_dict())
    state["surplus"] = state.pop("fc.bias")
    torch.save(_prefixed("module.", state), tmp_path / "net.pth")
    with pytest.raises(UserError) as caught:
        fit(read_weights(tmp_path / "net.pth"), network.state_dict())
    assert caught.value.problem.endswith("the architecture: missing fc.bias; unexpected surplus")
