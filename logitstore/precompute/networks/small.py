"""Our own small networks: an MLP, a 5-layer plain CNN and the CIFAR ResNets.

The ResNets (He et al. 2015, arXiv:1512.03385, section 4.2, option-A shortcuts) name their
parameters as most published CIFAR checkpoints do, so that those load.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Sequential):
    """Flatten, Linear-ReLU for each hidden width, Linear: (N, C, H, W) -> (N, classes)."""

    def __init__(self, inputs: int, hidden: Sequence[int], classes: int, dropout: float = 0.0):
        layers: list[nn.Module] = [nn.Flatten()]
        for width in hidden:
            layers += [nn.Linear(inputs, width), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
            inputs = width
        super().__init__(*layers, nn.Linear(inputs, classes))


class PlainCNN(nn.Module):
    """Four 3x3 convolutions with BatchNorm and ReLU, halved twice, then one linear layer."""

    def __init__(self, channels: int, classes: int, width: int = 16) -> None:
        super().__init__()
        widths = [channels, width, width, 2 * width, 2 * width]
        layers: list[nn.Module] = []
        for number, (inputs, outputs) in enumerate(pairwise(widths)):
            layers += [
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
            if number in (1, 3):
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(2 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.features(images).mean((2, 3)))
        return logits


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.added = stride, outputs - inputs

    def forward(self, images: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(images)))))
        shortcut = images[:, :, :: self.stride, :: self.stride]
        if self.added:  # option A: the new channels start as zeros, on both sides
            half = self.added // 2
            shortcut = F.pad(shortcut, (0, 0, 0, 0, half, self.added - half))
        return F.relu(shortcut + branch)


class CifarResNet(nn.Module):
    """6n+2 layers with 16, 32 and 64 channels: (N, C, 32, 32) -> (N, classes)."""

    def __init__(self, depth: int, channels: int, classes: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, 1, blocks)
        self.layer2 = self._stage(16, 32, 2, blocks)
        self.layer3 = self._stage(32, 64, 2, blocks)
        self.linear = nn.Linear(64, classes)

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int, blocks: int) -> nn.Sequential:
        rest = [_Block(outputs, outputs, 1) for _ in range(blocks - 1)]
        return nn.Sequential(_Block(inputs, outputs, stride), *rest)

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(images)))
        hidden = self.layer3(self.layer2(self.layer1(hidden)))
        logits: Tensor = self.linear(torch.flatten(F.adaptive_avg_pool2d(hidden, 1), 1))
        return logits
