"""ResNet image encoder with bottleneck blocks, v1.5 (arXiv 1512.03385; torchvision's layout).

v1.5 is torchvision's: a block that shrinks the image does so in its 3x3 convolution, not in the
first 1x1. ResNet-50, -101 and -152 are the same code; the weights tell which it is.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from tssr_jax.content.weights import load_tensors
from tssr_jax.errors import UserError, shown

EXPANSION = 4
STATISTICS = "batch_stats"
# How ImageNet's pictures are prepared for these weights (torchvision's documentation).
RESIZE, CROP = 256, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Sizes of a ResNet.

    Attributes:
      stage_sizes: blocks of each stage; (3, 4, 6, 3) is ResNet-50.
      width: channels of the stem.
    """

    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64

    @property
    def num_features(self) -> int:
        """Width of an image's vector; 2,048 for ResNet-50."""
        return self.width * 2 ** (len(self.stage_sizes) - 1) * EXPANSION


class BatchNorm(nn.Module):
    """Batch normalisation by the pretrained statistics, which training leaves as they are."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises each channel of [images, height, width, channels]."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        mean = self.variable(STATISTICS, "mean", jnp.zeros, (channels,)).value
        var = self.variable(STATISTICS, "var", jnp.ones, (channels,)).value
        return (x - mean) * jax.lax.rsqrt(var + _EPSILON) * scale + bias


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions, with a shortcut."""

    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[images, height, width, channels] -> [..., height / stride, width / stride, 4 width]."""
        out = self.width * EXPANSION
        strides = (self.stride, self.stride)
        y = _conv(self.width, 1, name="conv1")(x)
        y = nn.relu(BatchNorm(name="bn1")(y))
        y = _conv(self.width, 3, strides, name="conv2")(y)
        y = nn.relu(BatchNorm(name="bn2")(y))
        y = BatchNorm(name="bn3")(_conv(out, 1, name="conv3")(y))
        if self.stride > 1 or x.shape[-1] != out:
            x = _conv(out, 1, strides, name="downsample_conv")(x)
            x = BatchNorm(name="downsample_bn")(x)
        return nn.relu(x + y)


class Stem(nn.Module):
    """The layers before the stages, which reduce pixels to a quarter of the height and width."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[images, height, width, 3] -> [images, height / 4, width / 4, width]."""
        x = _conv(self.width, 7, (2, 2), name="conv1")(x)
        x = nn.relu(BatchNorm(name="bn1")(x))
        return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


class Stage(nn.Module):
    """Blocks of one width; the first one shrinks the image."""

    size: int
    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Runs the blocks."""
        for i in range(self.size):
            stride = self.stride if i == 0 else 1
            x = Bottleneck(self.width, stride, name=f"block_{i}")(x)
        return x


class ResNet(nn.Module):
    """The encoder without its classifier; stages can be run a few at a time.

    Attributes:
      config: which ResNet.
    """

    config: ResNetConfig

    def setup(self) -> None:
        """Creates the stages; attribute names are parameter names."""
        self.stem = Stem(self.config.width)
        for i, size in enumerate(self.config.stage_sizes):
            stage = Stage(size, self.config.width * 2**i, 1 if i == 0 else 2)
            setattr(self, f"stage_{i}", stage)

    def run(self, x: jax.Array, first: int, last: int) -> jax.Array:
        """Stages first..last - 1; stage -1 is the stem, which takes normalised pixels."""
        for i in range(first, last):
            x = (self.stem if i < 0 else getattr(self, f"stage_{i}"))(x)
        return x

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Images uint8 [images, height, width, 3] -> vectors [images, num_features]."""
        return pool(self.run(normalise(pixels), -1, len(self.config.stage_sizes)))


def normalise(pixels: jax.Array) -> jax.Array:
    """uint8 RGB [..., 3] -> float32, by ImageNet's mean and deviation of each channel."""
    return (pixels.astype(jnp.float32) / 255.0 - jnp.array(MEAN)) / jnp.array(STD)


def pool(x: jax.Array) -> jax.Array:
    """Mean over the image: [images, height, width, channels] -> [images, channels]."""
    return x.mean(axis=(1, 2))


def load_resnet(path: Path) -> tuple[ResNetConfig, dict[str, Any]]:
    """The ResNet that a file of weights holds.

    Args:
      path: see `load_tensors`; names and shapes are torchvision's (the classifier is not read).

    Returns:
      Its configuration, and {"params": ..., "batch_stats": ...}.

    Raises:
      UserError: if the file is unreadable, or a tensor is missing or has another shape.
    """
    tensors = load_tensors(path)
    config = _config_of(tensors, path)
    pixels = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.uint8)
    shapes = jax.eval_shape(ResNet(config).init, jax.random.key(0), pixels)
    variables = {
        names: _tensor(tensors, names, struct.shape, path)
        for names, struct in traverse_util.flatten_dict(shapes).items()
    }
    return config, traverse_util.unflatten_dict(variables)


_LEAF = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_MODULE = {"downsample_conv": "downsample.0", "downsample_bn": "downsample.1"}


def _original_name(names: tuple[str, ...]) -> str:
    """("params", "stage_1", "block_0", "conv1", "kernel") -> "layer2.0.conv1.weight"."""
    _, stage, *rest, leaf = names
    place = [_MODULE.get(name, name.removeprefix("block_")) for name in rest]
    if stage != "stem":
        place = [f"layer{int(stage.removeprefix('stage_')) + 1}", *place]
    return ".".join([*place, _LEAF.get(leaf, leaf)])


def _tensor(
    tensors: Mapping[str, np.ndarray], names: tuple[str, ...], shape: tuple[int, ...], path: Path
) -> np.ndarray:
    name = _original_name(names)
    if name not in tensors:
        raise UserError(f"{path} has no tensor {name!r}; is it a ResNet as torchvision saves it?")
    tensor = tensors[name]
    if names[-1] == "kernel" and tensor.ndim == 4:  # [out, in, height, width] in PyTorch
        tensor = tensor.transpose(2, 3, 1, 0)
    if tensor.shape != shape:
        raise UserError(f"{path}: {name!r} has shape {tensors[name].shape}, {shape} is expected.")
    return tensor.astype(np.float32)


def _config_of(tensors: Mapping[str, np.ndarray], path: Path) -> ResNetConfig:
    blocks: dict[int, int] = {}
    for name in tensors:
        if found := re.fullmatch(r"layer(\d+)\.(\d+)\.conv3\.weight", name):
            stage, block = int(found[1]), int(found[2])
            blocks[stage] = max(blocks.get(stage, 0), block + 1)
    stages = list(range(1, len(blocks) + 1))
    if "conv1.weight" not in tensors or not stages or sorted(blocks) != stages:
        raise UserError(
            f"{path} holds no ResNet with bottleneck blocks in torchvision's layout (conv1.weight, "
            f"layer1.0.conv3.weight, ...); it begins with {shown(', '.join(list(tensors)[:3]))}."
        )
    sizes = tuple(blocks[i] for i in stages)
    return ResNetConfig(sizes, tensors["conv1.weight"].shape[0])


def _conv(features: int, size: int, strides: tuple[int, int] = (1, 1), *, name: str) -> nn.Conv:
    pad = (size // 2, size // 2)
    return nn.Conv(features, (size, size), strides, padding=(pad, pad), use_bias=False, name=name)
