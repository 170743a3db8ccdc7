"""Every family and every method as ONNX files: the same as PyTorch, clean, and the trunk computed once."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from onnx_graphs import multiply_adds, operators, unclean
from tiny_families import CHANNELS, METHODS, SIZE, SPLITS, images, learner, member, registered
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distilkit import methods
from distilkit.analysis.learner_cost import learner_cost
from distilkit.export.onnx import EnsembleForExport, SingleForExport, export_onnx
from distilkit.export.parity import check_file
from distilkit.groups.group import BranchGroup
from distilkit.learners.learner import Learner
from distilkit.models import registry
from distilkit.workflows.deploy.export import PARITY_BATCH_SIZES, _OwnEnsemble

FAMILIES = [build.__name__.removeprefix("tiny_") for build in SPLITS]

# Every family once and every method once; all others of the product are long.
QUICK = {
    ("resnet_cifar", "okddip"),
    ("vgg_cifar", "baseline"),
    ("densenet_cifar", "one"),
    ("wrn_cifar", "okddip-networks"),
    ("resnext_cifar", "cl-ilr"),
    ("resnet_imagenet", "kd"),
    ("seresnet_imagenet", "one-no-distillation"),
    ("mobilenet", "dml"),
    ("vit", "independent"),
}
PAIRS = [
    pytest.param(family, method, marks=() if (family, method) in QUICK else pytest.mark.long)
    for family in FAMILIES
    for method in METHODS
]


@pytest.fixture(scope="module", autouse=True)
def _families() -> Iterator[None]:
    with registered():
        yield


def test_every_family_and_every_method_is_here() -> None:
    own = {each.build.__module__.rpartition(".")[2] for each in registry._architectures.values()} - {"tiny_families"}
    assert own <= set(FAMILIES)
    assert {name for name, *_ in METHODS.values()} == set(methods.names())
    assert {family for family, _ in QUICK} == set(FAMILIES) - {"swin"}
    assert {method for _, method in QUICK} == set(METHODS)


class _Uses(TorchDispatchMode):
    """Sees what convolutions and matrix products make, how often that is read, and what batch norms take."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[object] = []  # so that no other tensor gets the id of one that is gone
        self.reads: Counter[int] = Counter()
        self.linear: set[int] = set()
        self.normed: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        taken = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        self.reads.update(id(each) for each in taken)
        made = func(*args, **(kwargs or {}))
        self.held += [taken, made]
        # The exporter folds into matrix products as well: ONE's gate has one before its norm.
        if func.name() in ("aten::convolution", "aten::addmm", "aten::linear", "aten::mm"):
            self.linear.add(id(made))
        elif "batch_norm" in func.name():
            self.normed.append(id(args[0]))
        return made


def kept_norms(module: nn.Module) -> int:
    """How many batch norms cannot be folded: what they take is not what a convolution makes for them alone."""
    with torch.no_grad(), _Uses() as uses:
        module(images(2))
    return sum(each not in uses.linear or uses.reads[each] > 1 for each in uses.normed)


@pytest.mark.parametrize(("family", "method"), PAIRS)
def test_files_agree_with_pytorch_and_are_clean(family: str, method: str, tmp_path: Path) -> None:
    whole = learner(family, method)
    pixels, size = images(), (CHANNELS, SIZE, SIZE)

    single = SingleForExport(member(whole.group, whole.leader)).eval()
    kept = kept_norms(single)
    assert (kept > 0) == (family in ("densenet_cifar", "wrn_cifar"))
    file = tmp_path / "single.onnx"
    export_onnx(single, file, size=size, output_names=single.output_names, metadata={})
    parity = check_file(file, single, pixels, single.output_names, PARITY_BATCH_SIZES)
    assert parity.passed, parity.reason
    assert parity.batch_sizes == (1, 7, 32)
    assert unclean(file, norms=kept) == []
    with torch.no_grad():
        logits = single(pixels)[0]
    # Images are told apart by far more than the tolerance, else agreement would say little.
    assert (logits.amax(0) - logits.amin(0)).max() > 10 * parity.tolerance

    assert (whole.method.ensemble_name is None) == (METHODS[method][3] == 1)
    if whole.method.ensemble_name is None:
        return
    names = whole.group.members
    deployed = Learner(whole.group.only(names), whole.method).eval()
    ensemble = EnsembleForExport(_OwnEnsemble(deployed), names, members=True).eval()
    file = tmp_path / "ensemble.onnx"
    export_onnx(ensemble, file, size=size, output_names=ensemble.output_names, metadata={})
    parity = check_file(file, ensemble, pixels, ensemble.output_names, PARITY_BATCH_SIZES)
    assert parity.passed, parity.reason
    assert unclean(file, norms=kept_norms(ensemble)) == []

    # Every member's logits are those of the member alone.
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found = session.run([f"logits_{name}" for name in names], {"images": (pixels[:8].float() / 255).numpy()})
    for name, logits in zip(names, found, strict=True):
        with torch.no_grad():
            alone = member(whole.group, name)(pixels[:8])
        torch.testing.assert_close(torch.from_numpy(logits), alone, rtol=1e-4, atol=1e-4)

    # The trunk is there once, every student's own part once for each.
    counted = operators(onnx.load(file))["Conv"]
    if isinstance(whole.group, BranchGroup):
        trunk, branch = (
            convolutions(part) for part in (whole.group.trunk, whole.group.branches[whole.group.members[0]])
        )
        assert trunk + branch == convolutions(member(whole.group, names[0]))
        assert counted == trunk + len(names) * branch
    else:
        assert counted == len(names) * convolutions(member(whole.group, names[0]))


def convolutions(module: nn.Module) -> int:
    return sum(isinstance(each, nn.Conv2d) for each in module.modules())


def test_the_graph_of_peers_costs_what_is_counted_for_them(tmp_path: Path) -> None:
    whole = learner("resnet_cifar", "okddip")
    names = whole.method.peers(whole.group.members)
    assert whole.leader not in names
    deployed = Learner(whole.group.only(names), whole.method).eval()
    ensemble = EnsembleForExport(_OwnEnsemble(deployed), names, members=False).eval()
    size = (CHANNELS, SIZE, SIZE)
    export_onnx(ensemble, tmp_path / "e.onnx", size=size, output_names=ensemble.output_names, metadata={})
    costs = learner_cost(whole, CHANNELS, SIZE)
    assert costs.ensemble is not None
    counted = 2 * multiply_adds(onnx.load(tmp_path / "e.onnx"))
    # The mean of a few logits may be a product of matrices in one and a sum in the other.
    assert counted == pytest.approx(costs.ensemble.flops, rel=1e-3)
    assert counted < 0.9 * len(names) * costs.deploy.flops
