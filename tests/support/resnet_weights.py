"""Random weights of a ResNet in torchvision's layout, the same wherever they are made."""

import zlib

import numpy as np


def resnet_shapes(stage_sizes=(3, 4, 6, 3), width=64):
    """Names and shapes of the tensors, as torchvision names them; without the classifier."""
    shapes = {"conv1.weight": (width, 3, 7, 7)} | _norm("bn1", width)
    channels = width
    for stage, size in enumerate(stage_sizes):
        inner = width * 2**stage
        for block in range(size):
            name = f"layer{stage + 1}.{block}"
            shapes[f"{name}.conv1.weight"] = (inner, channels, 1, 1)
            shapes[f"{name}.conv2.weight"] = (inner, inner, 3, 3)
            shapes[f"{name}.conv3.weight"] = (4 * inner, inner, 1, 1)
            for i, n in enumerate((inner, inner, 4 * inner)):
                shapes |= _norm(f"{name}.bn{i + 1}", n)
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * inner, channels, 1, 1)
                shapes |= _norm(f"{name}.downsample.1", 4 * inner)
            channels = 4 * inner
    return shapes


def random_weights(shapes):
    """float32 arrays by name; each depends on its name and shape only."""
    return {name: _draw(name, shape) for name, shape in shapes.items()}


def random_pixels(images, size, seed=0):
    """uint8 [images, size, size, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (images, size, size, 3), np.uint8)


def _norm(name, channels):
    leaves = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{leaf}": (channels,) for leaf in leaves}


def _draw(name, shape):
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if len(shape) == 4:
        values = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
    elif name.endswith(("running_var", "weight")):
        values = rng.uniform(0.5, 1.5, shape)
        if ".bn3." in name and name.endswith("weight"):
            values *= 0.15  # so that states do not grow from block to block
    else:
        values = 0.1 * rng.normal(size=shape)
    return values.astype(np.float32)
