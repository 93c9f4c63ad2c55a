"""MobileFaceNet in PyTorch, in the modules and by the names of the published weights."""

import torch
from torch import nn

# Expansion, channels, repeats, stride of the first: the paper's table 1.
TABLE = [(2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1)]


def _conv(inputs, outputs, size=1, stride=1, groups=1, padding=0, bias=False):
    return nn.Conv2d(inputs, outputs, size, stride, padding, groups=groups, bias=bias)


def _depthwise(channels, stride=1):
    return _conv(channels, channels, 3, stride, channels, padding=1)


def _table():
    inputs = 64
    for expansion, channels, repeats, first in TABLE:
        for number in range(repeats):
            yield inputs, inputs * expansion, channels, 1 if number else first
            inputs = channels


class _Block(nn.Module):
    def __init__(self, inputs, channels, stride, layers):
        super().__init__()
        self.residual = stride == 1 and inputs == channels
        self.conv = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.conv(x) if self.residual else self.conv(x)


class _Named(nn.Module):
    """Its parts one after the other, under the names they are given."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        for part in self.children():
            x = part(x)
        return x


class Ms1m(nn.Module):
    """RGB [B, 3, 112, 112] in [0, 1] -> [B, 128]."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Sequential(
            _conv(3, 64, 3, 2, padding=1), nn.BatchNorm2d(64), nn.ReLU6()
        )
        self.dw_conv = _Named(
            depthwise=_depthwise(64),
            bn1=nn.BatchNorm2d(64),
            relu1=nn.ReLU(),
            pointwise=_conv(64, 64),
            bn2=nn.BatchNorm2d(64),
            relu2=nn.ReLU(),
        )
        self.features = nn.Sequential(*[self._block(*row) for row in _table()])
        self.conv2 = nn.Sequential(_conv(128, 512), nn.BatchNorm2d(512), nn.ReLU6())
        self.gdconv = _Named(depthwise=_conv(512, 512, 7, groups=512), bn=nn.BatchNorm2d(512))
        self.conv3 = _conv(512, 128, bias=True)
        self.bn = nn.BatchNorm2d(128)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]), persistent=False)

    @staticmethod
    def _block(inputs, wide, channels, stride):
        expand = nn.Sequential(_conv(inputs, wide), nn.BatchNorm2d(wide), nn.ReLU6())
        middle = nn.Sequential(_depthwise(wide, stride), nn.BatchNorm2d(wide), nn.ReLU6())
        last = (_conv(wide, channels), nn.BatchNorm2d(channels))
        return _Block(inputs, channels, stride, (expand, middle, *last))

    def forward(self, images):
        x = (images - self.mean[:, None, None]) / self.std[:, None, None]
        x = self.features(self.dw_conv(self.conv1(x)))
        x = self.conv3(self.gdconv(self.conv2(x)))
        return self.bn(x).flatten(1)


class Casia(nn.Module):
    """RGB [B, 3, 112, 96] in [0, 1] -> [B, 128]."""

    def __init__(self):
        super().__init__()
        self.conv1 = self._part(_conv(3, 64, 3, 2, padding=1))
        self.dw_conv1 = self._part(_depthwise(64))
        self.blocks = nn.Sequential(*[self._block(*row) for row in _table()])
        self.conv2 = self._part(_conv(128, 512))
        self.linear7 = self._part(_conv(512, 512, (7, 6), groups=512), activation=False)
        self.linear1 = self._part(_conv(512, 128), activation=False)

    @staticmethod
    def _part(conv, activation=True):
        parts = {"conv": conv, "bn": nn.BatchNorm2d(conv.out_channels)}
        if activation:
            parts["prelu"] = nn.PReLU(conv.out_channels)
        return _Named(**parts)

    @staticmethod
    def _block(inputs, wide, channels, stride):
        layers = (_conv(inputs, wide), nn.BatchNorm2d(wide), nn.PReLU(wide))
        layers += (_depthwise(wide, stride), nn.BatchNorm2d(wide), nn.PReLU(wide))
        layers += (_conv(wide, channels), nn.BatchNorm2d(channels))
        return _Block(inputs, channels, stride, layers)

    def forward(self, images):
        x = (255 * images - 127.5) / 128
        x = self.blocks(self.dw_conv1(self.conv1(x)))
        return self.linear1(self.linear7(self.conv2(x))).flatten(1)


def build(variant, arrays):
    """The twin in evaluation mode, with the weights of an .npz file by name."""
    twin = {"ms1m": Ms1m, "casia": Casia}[variant]()
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    found = twin.load_state_dict(state, strict=False)
    missing = [name for name in found.missing_keys if not name.endswith("batches_tracked")]
    assert not missing, missing
    assert not found.unexpected_keys, found.unexpected_keys
    return twin.eval().requires_grad_(False)
