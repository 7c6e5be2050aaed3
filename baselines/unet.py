"""Planar U-Net for panoramas (Jiang et al., ICLR 2019, who compare UGSCNN with it; Table 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from baselines.inputs import checked
from baselines.rooms import CHANNELS, LABELS


class UNet(nn.Module):
    """U-Net on the equirectangular image, which it takes for a plane.

    Four encoders (two 3x3 convolutions with batch norm and ReLU, 2x2 maximum), a centre and four
    decoders; their inputs stand beside the encoders' outputs, resized bilinearly, and so is the
    result to the size of the input. 1,944,431 parameters with 16 features.

    From level 5 on convolutions have no padding, as published. Of smaller images nothing would be
    left: there they are padded with zeros.

    Shapes: (batch, 4, 2 H^2), H = 8 * 2^level -> (batch, 15, 2 H^2).

    Raises:
        ValueError: if `level` is below 1, or an input is not (batch, 4, 2 H^2).
    """

    def __init__(self, level: int = 5, features: int = 16) -> None:
        super().__init__()
        if level < 1:
            raise ValueError(
                f"UNet halves its input four times: level must be at least 1, not {level}"
            )
        self.rows = 8 * 2**level
        f, padding = features, 0 if level >= 5 else 1
        self.encoders = nn.ModuleList(
            nn.Sequential(*_convolutions(a, b, padding), nn.Dropout(drop), nn.MaxPool2d(2))
            for a, b, drop in (
                (CHANNELS, f, 0),
                (f, 2 * f, 0),
                (2 * f, 4 * f, 0),
                (4 * f, 8 * f, 0.5),
            )
        )
        self.decoders = nn.ModuleList(
            nn.Sequential(*_convolutions(a, b, padding), nn.ConvTranspose2d(b, c, 2, stride=2))
            for a, b, c in (
                (8 * f, 16 * f, 8 * f),
                (16 * f, 8 * f, 4 * f),
                (8 * f, 4 * f, 2 * f),
                (4 * f, 2 * f, f),
            )
        )
        self.last = nn.Sequential(*_convolutions(2 * f, f, padding), nn.Conv2d(f, LABELS, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = checked(x, CHANNELS, 2 * self.rows**2, "UNet").unflatten(2, (self.rows, -1))
        skips = []
        for encoder in self.encoders:
            x = encoder(x)
            skips.append(x)
        for decoder, skip in zip(self.decoders, reversed(skips), strict=True):
            x = decoder(x)
            x = torch.cat([x, _resized(skip, x)], dim=1)
        x = functional.interpolate(self.last(x), (self.rows, 2 * self.rows), mode="bilinear")
        return x.flatten(2)


def _convolutions(a: int, b: int, padding: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for channels in (a, b):
        layers += [
            nn.Conv2d(channels, b, 3, padding=padding),
            nn.BatchNorm2d(b),
            nn.ReLU(inplace=True),
        ]
    return layers


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return functional.interpolate(x, like.shape[2:], mode="bilinear")
