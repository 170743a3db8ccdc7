"""Whether this machine and torch add up in the order in which another did; only then are recorded bits compared."""

import hashlib

import torch
import torch.nn.functional as F
from torch import nn


def digest() -> str:
    """The digest of a few plain steps, one thread: convolutions, batch norm, a linear layer, SGD with momentum."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(64, 1, 8, 8, generator=generator).contiguous(memory_format=torch.channels_last)
        labels = torch.randint(10, (64,), generator=generator)
        layers = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1)]
        network = nn.Sequential(*layers, nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        network.append(nn.Linear(32, 10))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(torch.rand(parameter.shape, generator=generator) - 0.5)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
        for _ in range(20):
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()
        found = hashlib.sha256()
        for tensor in network.state_dict().values():
            found.update(tensor.contiguous().numpy().tobytes())
        return found.hexdigest()
    finally:
        torch.set_num_threads(before)
