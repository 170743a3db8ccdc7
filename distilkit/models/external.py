"""Other libraries' image classifiers by name: "torchvision:resnet50", "timm:resnet18d".

Built as their libraries build them, with fresh weights, for the data's classes and channels; nothing is ever fetched.
torchvision (BSD 3-clause) comes with distilkit, timm (Apache 2.0; Wightman 2019) is the extra `timm`. Both are imported
when they are first asked for.
"""

import difflib
import functools
import importlib.util
from typing import Any

from torch import nn

from distilkit.errors import SettingError

LIBRARIES = ("torchvision", "timm")
FORMS = "torchvision:NAME, timm:NAME"
_SLIP = 0.85  # "torchvison" and "tim" are slips of the pen, "time" is a module

# Training alone computes these, and what one tensor of logits means would change with the mode.
_WITHOUT_AUXILIARY_HEADS = {"aux_logits": False, "init_weights": True}
_TORCHVISION_OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": _WITHOUT_AUXILIARY_HEADS,
    "inception_v3": _WITHOUT_AUXILIARY_HEADS,
}
_USUAL_SIZE = 224
_TORCHVISION_SIZES = {"inception_v3": 299}


def is_external(name: str) -> bool:
    """Tell whether an architecture's name is of a library's, or means to be ("torchvison:resnet18")."""
    library, colon, _ = name.partition(":")
    return bool(colon) and bool(difflib.get_close_matches(library, LIBRARIES, n=1, cutoff=_SLIP))


def names(library: str) -> tuple[str, ...]:
    """Every image classifier of "torchvision" or "timm", by its whole name: "torchvision:alexnet" and so on.

    Raises `SettingError` on "architecture" if there is no such library, or it is not installed.
    """
    return tuple(f"{library}:{name}" for name in _listed(library))


def check(name: str) -> None:
    """Raise `SettingError` on "architecture", naming the nearest ones, if `name` is in no library's list."""
    library, _, own = name.partition(":")
    known = _listed(library)
    if own in known:
        return
    near = difflib.get_close_matches(own, known, n=3)
    hint = f"did you mean {' or '.join(repr(f'{library}:{match}') for match in near)}?" if near else None
    raise SettingError(
        "architecture",
        f"{library} has no image classifier {own!r}; `distilkit models --library {library}` lists the {len(known)} "
        "that it has",
        hint,
    )


def create(name: str, num_classes: int, channels: int = 3) -> nn.Module:
    """Build `name` with fresh weights drawn from torch's global stream.

    Returns a network from images [B, channels, H, W] to logits [B, num_classes]. torchvision's networks are made for
    three channels: with another number the first convolution is replaced by one whose weights are normally distributed
    with the deviation that keeps its output's. Auxiliary heads are left out (GoogLeNet, Inception).

    Raises `SettingError` on "architecture" if there is no such network, or its library cannot build it so.
    """
    check(name)
    library, _, own = name.partition(":")
    try:
        if library == "timm":
            import timm

            # Not said where it is the usual number: there are networks that do not know the word.
            stem = {} if channels == 3 else {"in_chans": channels}
            network: nn.Module = timm.create_model(own, pretrained=False, num_classes=num_classes, **stem)
            return network
        from torchvision import models

        options = _TORCHVISION_OPTIONS.get(own, {})
        network = models.get_model(own, weights=None, num_classes=num_classes, **options)
    except Exception as error:
        # Any kind of exception: the library's own code runs here, for classes and channels that it may not know.
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise SettingError(
            "architecture",
            f"{name} cannot be built for {num_classes} classes and {channels} channels: {reason}",
            "choose another architecture",
        ) from error
    if channels != 3:
        _replace_stem(network, name, channels)
    return network


def usual_size(name: str) -> int:
    """Height and width of the images that a network was made for, in pixels. Raises `SettingError` like `check`."""
    check(name)
    library, _, own = name.partition(":")
    if library == "torchvision":
        return _TORCHVISION_SIZES.get(own, _USUAL_SIZE)
    import timm

    config = timm.get_pretrained_cfg(own)
    return int(config.input_size[-1]) if config and config.input_size else _USUAL_SIZE


def constants(name: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation per channel with which the library's own weights were trained; None where it states none."""
    check(name)
    library, _, own = name.partition(":")
    if library == "timm":
        import timm

        config = timm.get_pretrained_cfg(own)
        return (tuple(config.mean), tuple(config.std)) if config and config.mean and config.std else None
    from torchvision import models

    preset = models.get_model_weights(own).DEFAULT.transforms()
    return (tuple(preset.mean), tuple(preset.std)) if hasattr(preset, "mean") and hasattr(preset, "std") else None


@functools.cache
def _listed(library: str) -> tuple[str, ...]:
    if library not in LIBRARIES:
        near = difflib.get_close_matches(library, LIBRARIES, n=1)
        raise SettingError(
            "architecture",
            f"there is no library {library!r} of architectures; there are {FORMS}",
            f"did you mean {near[0]!r}?" if near else None,
        )
    if library == "torchvision":
        from torchvision import models

        # Of that package alone: detection, segmentation and video have packages of their own below it.
        return tuple(models.list_models(module=models))
    if importlib.util.find_spec("timm") is None:
        raise SettingError(
            "architecture",
            "timm's architectures need timm, which is not installed",
            'install it with the extra: pip install "distilkit[timm]"',
        )
    import timm

    return tuple(timm.list_models())


def _replace_stem(network: nn.Module, name: str, channels: int) -> None:
    found = next(((path, module) for path, module in network.named_modules() if isinstance(module, nn.Conv2d)), None)
    if found is None or found[1].in_channels != 3 or found[1].groups != 1:
        raise SettingError(
            "architecture",
            f"{name} takes images of 3 channels, and its first convolution cannot be replaced for {channels}",
            "choose another architecture, or colour images",
        )
    path, old = found
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        old.dilation,  # type: ignore[arg-type]
        bias=old.bias is not None,
        padding_mode=old.padding_mode,
        device=old.weight.device,
    )
    if not old.weight.is_meta:
        nn.init.normal_(new.weight, std=float(old.weight.detach().std()) * (3 / channels) ** 0.5)
    if old.bias is not None and new.bias is not None:
        new.bias = old.bias
    owner, _, attribute = path.rpartition(".")
    setattr(network.get_submodule(owner), attribute, new)
