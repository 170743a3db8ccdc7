"""The papers' tables whose cells are trainings, as printed, and the recipe of each cell.

Top-1 errors in percent. ONE: Lan et al. 2018; OKDDip: Chen et al. 2020.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple


class Cell(NamedTuple):
    """One figure of a table, as a recipe's header writes it: "25.63 +- 0.14"."""

    paper: str
    table: int
    row: str
    column: str
    figure: str
    recipe: str


ONE, OKDDIP = "ONE (Lan et al. 2018)", "OKDDip (Chen et al. 2020)"
# The rows' names in the recipes' names. ResNet-110 is another network in either paper.
NETWORKS = {
    "DenseNet-40-12": "densenet40_12",
    "ResNet-32": "resnet32",
    "VGG-16": "vgg16",
    "ResNet-110": "resnet110_bottleneck12",
    "WRN-20-8": "wrn20_8",
}
ONES_NETWORKS = {
    "ResNet-32": "resnet32",
    "ResNet-110": "resnet110",
    "ResNeXt-29(8x64d)": "resnext29_8x64d",
    "DenseNet-BC(L=190, k=40)": "densenet190_40",
}
IMAGENET_NETWORKS = {"ResNet-18": "resnet18", "ResNeXt-50": "resnext50_32x4d", "SeNet-ResNet-18": "se_resnet18"}
# The columns' names in the recipes' names.
STUDENTS = {
    "Baseline": "baseline",
    "Ind": "independent",
    "DML": "dml",
    "CL-ILR": "clilr",
    "ONE": "one4",
    "OKDDip, left": "okddip_networks",
    "OKDDip, right": "okddip",
}
# Ensembles are of the same trainings, but for OKDDip's, whose four students are all peers there.
BRANCHED_ENSEMBLES = {"CL-ILR": "clilr", "ONE": "one4", "OKDDip": "okddip_peers", "Ind": "independent"}
NETWORK_ENSEMBLES = {"Baseline": "baseline", "DML": "dml", "OKDDip": "okddip_peers_networks"}

ONE_1 = """
    baseline  6.93        31.18        2.11
    one       5.99+-0.05  26.61+-0.06  1.83+-0.05
    baseline  5.56        25.33        2.00
    one       5.17+-0.07  21.62+-0.26  1.76+-0.07
    baseline  3.69        17.77        1.83
    one       3.45+-0.04  16.07+-0.08  1.70+-0.03
    baseline  3.32        17.53        1.73
    one       3.13+-0.07  16.35+-0.05  1.63+-0.05
"""
ONE_2 = """
    baseline  30.48
    one       29.45+-0.23
    baseline  22.62
    one       21.85+-0.07
    baseline  29.85
    one       29.02+-0.17
"""
OKDDIP_1 = """
    DenseNet-40-12  6.87+-0.02  6.97+-0.03  6.50+-0.02  7.02+-0.08  6.85+-0.15  5.94+-0.05  6.48+-0.12
    ResNet-32       6.34+-0.03  5.99+-0.15  6.18+-0.05  6.06+-0.07  5.94+-0.06  5.62+-0.07  5.58+-0.08
    VGG-16          6.12+-0.15  6.03+-0.01  5.94+-0.04  6.22+-0.10  6.16+-0.08  5.88+-0.04  5.87+-0.03
    ResNet-110      5.46+-0.02  4.95+-0.02  5.68+-0.03  4.88+-0.12  5.02+-0.04  4.54+-0.07  4.56+-0.11
    WRN-20-8        5.27+-0.06  5.35+-0.02  5.04+-0.08  5.12+-0.16  5.29+-0.02  4.84+-0.07  5.06+-0.04
"""
OKDDIP_2 = """
    DenseNet-40-12  28.97+-0.23  29.20+-0.09  26.64+-0.17  28.61+-0.12  28.76+-0.18  26.10+-0.03  28.34+-0.02
    ResNet-32       28.76+-0.08  27.84+-0.05  26.47+-0.26  27.44+-0.05  26.50+-0.13  25.40+-0.08  25.63+-0.14
    VGG-16          26.19+-0.12  25.81+-0.18  25.33+-0.03  25.62+-0.11  25.63+-0.03  24.88+-0.06  25.15+-0.19
    ResNet-110      24.12+-0.20  23.54+-0.15  22.50+-0.11  21.56+-0.09  21.67+-0.12  21.09+-0.17  21.14+-0.14
    WRN-20-8        22.50+-0.44  21.85+-0.12  20.21+-0.11  20.44+-0.13  21.19+-0.12  19.63+-0.07  20.06+-0.05
"""
OKDDIP_3 = """
    ResNet-34  26.76  26.03  26.06  25.92  25.42  25.60
"""
OKDDIP_4 = """
    VGG-16      25.56  25.54  24.95  25.62
    ResNet-32   27.01  24.90  23.45  23.74
    ResNet-110  20.19  20.14  19.54  20.18
"""
OKDDIP_7 = """
    DenseNet-40-12  5.54+-0.02  5.83+-0.01  5.30+-0.07
    ResNet-32       5.15+-0.08  6.41+-0.11  4.94+-0.05
    VGG-16          5.14+-0.09  4.99+-0.03  4.92+-0.02
    ResNet-110      4.39+-0.06  4.82+-0.05  3.99+-0.02
    WRN-20-8        4.76+-0.02  5.00+-0.05  4.67+-0.03
"""
OKDDIP_8 = """
    DenseNet-40-12  24.67+-0.13  25.70+-0.01  23.74+-0.12
    ResNet-32       28.69+-0.15  26.47+-0.26  22.77+-0.01
    VGG-16          23.31+-0.02  21.62+-0.16  22.33+-0.02
    ResNet-110      20.57+-0.09  20.81+-0.15  19.55+-0.01
    WRN-20-8        20.47+-0.15  19.29+-0.06  19.63+-0.07
"""
OKDDIP_9 = """
    DenseNet-40-12  7.15+-0.11  6.99+-0.05  6.65+-0.14  7.15+-0.15
    ResNet-32       5.9+-0.05   5.75+-0.16  5.32+-0.07  5.42+-0.25
    VGG-16          6.23+-0.10  6.15+-0.08  5.91+-0.03  6.04+-0.01
    ResNet-110      4.73+-0.09  4.83+-0.08  4.33+-0.04  4.30+-0.04
    WRN-20-8        5.33+-0.12  5.27+-0.03  5.18+-0.11  5.21+-0.01
"""


def cells() -> Iterator[Cell]:
    """Every cell of ONE's Tables 1 and 2, and of OKDDip's Tables 1, 2, 3, 4, 7, 8 and 9."""
    yield from _ones(1, ONE_1, ONES_NETWORKS, {"CIFAR10": "_cifar10", "CIFAR100": "", "SVHN": "_svhn"})
    yield from _ones(2, ONE_2, IMAGENET_NETWORKS, {"Top-1": "_imagenet"})
    yield from _okddips(1, OKDDIP_1, STUDENTS, "_cifar10")
    yield from _okddips(2, OKDDIP_2, STUDENTS, "")
    without_ind = {column: prefix for column, prefix in STUDENTS.items() if column != "Ind"}
    yield from _okddips(3, OKDDIP_3, without_ind, "_imagenet")
    yield from _okddips(4, OKDDIP_4, BRANCHED_ENSEMBLES, "")
    yield from _okddips(7, OKDDIP_7, NETWORK_ENSEMBLES, "_cifar10")
    yield from _okddips(8, OKDDIP_8, NETWORK_ENSEMBLES, "")
    yield from _okddips(9, OKDDIP_9, BRANCHED_ENSEMBLES, "_cifar10")


def _rows(table: str) -> list[list[str]]:
    return [line.split() for line in table.splitlines() if line.strip()]


def _ones(table: int, printed: str, networks: Mapping[str, str], columns: Mapping[str, str]) -> Iterator[Cell]:
    for index, (prefix, *figures) in enumerate(_rows(printed)):
        row, network = list(networks.items())[index // 2]
        for (column, suffix), figure in zip(columns.items(), figures, strict=True):
            yield Cell(ONE, table, row, column, _spaced(figure), f"{prefix}_{network}{suffix}")


def _okddips(table: int, printed: str, columns: Mapping[str, str], suffix: str) -> Iterator[Cell]:
    for row, *figures in _rows(printed):
        network = NETWORKS.get(row, "resnet34")
        for (column, prefix), figure in zip(columns.items(), figures, strict=True):
            yield Cell(OKDDIP, table, row, column, _spaced(figure), f"{prefix}_{network}{suffix}")


def _spaced(figure: str) -> str:
    return figure.replace("+-", " +- ")


def of(recipe: str, among: Sequence[Cell]) -> list[Cell]:
    """The cells that a recipe stands for."""
    return [cell for cell in among if cell.recipe == recipe]
