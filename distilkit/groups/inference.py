"""The fast form of a network for inference: batch norm folded into the convolutions before it.

In evaluation mode batch norm is a fixed scale and shift of every channel, which the convolution before it can do
itself: W' = W gamma / sqrt(var + eps), b' = (b - mean) gamma / sqrt(var + eps) + beta.
"""

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from distilkit.errors import SettingError
from distilkit.groups.normalize import Classifier
from distilkit.groups.outputs import GroupOutput
from distilkit.groups.split.cut import Layers, Part, layers

Precision = Literal["fp32", "bf16"]
Output = TypeVar("Output")


class Inference:
    """A twin of `network` (a classifier, a group or any other module) that computes what it does in evaluation mode.

    It is `network` up to rounding in fp32. In bf16 everything but the last linear layers computes under autocast, and
    these in fp32: logits in bfloat16 tie by rounding, and ties count against a classifier. What it returns is fp32.
    `precision` None: whatever autocast there is around a call. Weights are taken over when it is made and at each
    `refresh`. Where nothing can be folded it is a plain copy.
    """

    def __init__(self, network: nn.Module, precision: Precision | None = "fp32") -> None:
        self._precision = precision
        self._source = network
        self._twin = copy.deepcopy(network).eval().requires_grad_(False)
        self._folds: list[tuple[nn.Conv2d, nn.modules.batchnorm._BatchNorm, nn.Conv2d]] = []
        shared = _shared(network)
        for prefix, found in _pieces(network):
            for convolution, norm in found.folds:
                conv_path, norm_path = prefix + convolution, prefix + norm
                source = network.get_submodule(conv_path)
                batch_norm = network.get_submodule(norm_path)
                if not _foldable(source, batch_norm) or source in shared or batch_norm in shared:
                    continue
                assert isinstance(source, nn.Conv2d)
                assert isinstance(batch_norm, nn.modules.batchnorm._BatchNorm)
                twin = self._twin.get_submodule(conv_path)
                assert isinstance(twin, nn.Conv2d)
                if twin.bias is None:
                    twin.bias = nn.Parameter(twin.weight.new_zeros(twin.out_channels), requires_grad=False)
                _replace(self._twin, norm_path, nn.Identity())
                self._folds.append((source, batch_norm, twin))
            if precision != "fp32" and found.head is not None:
                head = self._twin.get_submodule(prefix + found.head)
                assert isinstance(head, nn.Linear)
                _replace(self._twin, prefix + found.head, _WideLinear(head))
        self._folded = {id(twin) for *_, twin in self._folds}
        self._fold()

    @property
    def folded(self) -> int:
        """How many batch norms are folded."""
        return len(self._folds)

    def __call__(self, images: Tensor) -> Any:
        """Compute what the network does: logits [B, C] of a classifier, the `GroupOutput` of a group."""
        if self._precision is None:
            return _wide(self._twin(images))
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._precision == "bf16"):
            return _wide(self._twin(images))

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the network's weights and statistics as they now are."""
        theirs = {**dict(self._source.named_parameters()), **dict(self._source.named_buffers())}
        folded = {name for name, module in self._twin.named_modules() if id(module) in self._folded}
        for name, tensor in [*self._twin.named_parameters(), *self._twin.named_buffers()]:
            if name.rpartition(".")[0] not in folded:
                tensor.copy_(theirs[name])
        self._fold()

    @torch.no_grad()
    def _fold(self) -> None:
        for convolution, norm, twin in self._folds:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            weight, bias = fuse_conv_bn_weights(
                convolution.weight,
                convolution.bias,
                norm.running_mean,
                norm.running_var,
                norm.eps,
                norm.weight,
                norm.bias,
            )
            twin.weight.copy_(weight)
            assert twin.bias is not None
            twin.bias.copy_(bias)


class _WideLinear(nn.Module):
    """A linear layer that computes in fp32 under autocast as well."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(features.float(), self.weight, self.bias)


@torch.inference_mode()
def over_images(
    network: Callable[[Tensor], Output],
    batches: Iterable[tuple[Tensor, Tensor]],
    progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[Output, Tensor]]:
    """The one loop over images: what `network` computes of each batch, with the batch's labels, in order.

    Nothing is kept: memory is bounded by a batch and what the caller keeps of it. `progress`: called with the images
    done. Whoever adds up on the device does not wait for it.
    """
    done = 0
    for images, labels in batches:
        yield network(images), labels
        done += len(labels)
        if progress is not None:
            progress(done)


def _pieces(network: nn.Module) -> list[tuple[str, Layers]]:
    """The network's pieces, each with the prefix of its path."""
    found = []
    for path, module in network.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(module, Part):
            found.append((prefix, Layers(module.folds, module.head_path)))
        elif isinstance(module, Classifier):
            # A network that cannot be traced is computed as it stands.
            with contextlib.suppress(SettingError):
                found.append((f"{prefix}backbone.", layers(module.backbone)))
    return found


def _foldable(convolution: nn.Module, norm: nn.Module) -> bool:
    # Subclasses standardise weights, or activate inside.
    return (
        type(convolution) is nn.Conv2d
        and type(norm) in (nn.BatchNorm2d, nn.SyncBatchNorm)
        and norm.running_mean is not None
        and norm.running_var is not None
        and not (convolution._forward_hooks or convolution._forward_pre_hooks or norm._forward_hooks)
    )


def _shared(network: nn.Module) -> set[nn.Module]:
    """Modules that stand there under several names, or whose tensors do: folding one would change the other."""
    owners: dict[int, set[str]] = {}
    for path, module in network.named_modules(remove_duplicate=False):
        for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            owners.setdefault(id(tensor), set()).add(path)
    paths = {path for several in owners.values() if len(several) > 1 for path in several}
    return {network.get_submodule(path) for path in paths}


def _replace(network: nn.Module, path: str, module: nn.Module) -> None:
    owner, _, name = path.rpartition(".")
    setattr(network.get_submodule(owner), name, module)


def _wide(output: Any) -> Any:
    if not isinstance(output, GroupOutput):
        return _at_least_fp32(output)
    features = tuple(_at_least_fp32(each) for each in output.features)
    trunk = None if output.trunk is None else _at_least_fp32(output.trunk)
    return output._replace(logits_SBC=_at_least_fp32(output.logits_SBC), features=features, trunk=trunk)


def _at_least_fp32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
