"""Cuts any backbone into trunk and branch; all that this program knows of torch.fx."""

from distilkit.groups.split.cut import Layers, Part, cut, cut_points, layers, whole
from distilkit.groups.split.default_point import CutPoint, channels, default_point, measured_points

__all__ = [
    "CutPoint",
    "Layers",
    "Part",
    "channels",
    "cut",
    "cut_points",
    "default_point",
    "layers",
    "measured_points",
    "whole",
]
