"""`distilkit.load`: a trained classifier as an object of the library."""

from pathlib import Path

import torch
from torch import Tensor

from distilkit.data import datasets
from distilkit.data.pixels import decode
from distilkit.groups.normalize import Classifier
from distilkit.models import own
from distilkit.runs.run import Model, open_model


class LoadedClassifier(Classifier):
    """A trained network that takes raw images, in eval mode on the CPU.

    Called with images [N, channels, size, size], uint8 in [0, 255] or floating point in [0, 1], it gives logits
    [N, classes]; softmax makes probabilities of them. It normalises the images itself: `backbone` behind `normalize`.

    `classes`: their names, in the order of the logits. `channels`: 1 (grey) or 3 (RGB). `size`: height and width of
    the images that it was trained with, in pixels. `backbone`: the network as its library builds it, with the weights.
    `architecture`, `method`, `dataset`: as a recipe spells them. `member`: which student of its group it was.
    `top1_error`: on the test images, in percent, as the training ended; None where that is not known.
    """

    def __init__(self, model: Model) -> None:
        super().__init__(model.classifier.normalize, model.classifier.backbone)
        self.classes = model.data.classes
        self.channels = model.data.channels
        self.size = model.data.size
        self.dataset = model.data.dataset
        self.architecture = model.architecture
        self.method = model.method
        self.member = model.member
        self.top1_error = model.error

    def read(self, *files: Path | str) -> Tensor:
        """Read image files of any size as the test images were read: uint8 [N, channels, size, size].

        Raises what Pillow raises for files that it cannot read.
        """
        framing = datasets.traits(self.dataset).framing(self.size, self.channels)
        images = [torch.from_numpy(decode(file, framing).copy()).permute(2, 0, 1) for file in files]
        return torch.stack(images) if images else torch.empty(0, self.channels, self.size, self.size, dtype=torch.uint8)


def load(path: Path | str, *, member: str | None, checkpoint: str | None, trust_code: bool) -> LoadedClassifier:
    """See `distilkit.load`."""
    folder = datasets.expanded(Path(path))
    with own.code_trusted(trust_code):
        try:
            # What is named in vain may be the folder of all runs: then the hint lists them.
            _, model = open_model(folder, folder, member=member, checkpoint=checkpoint)
        except own.UntrustedCodeError as error:
            error.hint = "read that code; if you trust it, pass trust_code=True"
            raise
    return LoadedClassifier(model).eval()
