"""ResNet-50 against torchvision's numbers (tests/image_reference/make.py)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.support.resnet_weights import random_pixels, random_weights, resnet_shapes
from tssr_jax.content.resnet import ResNet, ResNetConfig, load_resnet
from tssr_jax.errors import UserError

REFERENCE = np.load(Path(__file__).parents[2] / "image_reference" / "reference.npz")


@pytest.fixture(scope="module", name="resnet50")
def fixture_resnet50(tmp_path_factory):
    path = tmp_path_factory.mktemp("resnet") / "resnet50.safetensors"
    save_file(random_weights(resnet_shapes()), path)
    return load_resnet(path)


def close(values, expected):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4 * min(scale, 1.0))


def test_resnet50_equals_torchvisions(resnet50):
    config, variables = resnet50
    assert config == ResNetConfig((3, 4, 6, 3), 64) and config.num_features == 2048
    vectors = jax.jit(ResNet(config).apply)(variables, random_pixels(2, 224))
    close(vectors, REFERENCE["features"])


def test_files_that_hold_no_such_resnet(tmp_path):
    weights = random_weights(resnet_shapes((1, 1), 8))
    path = tmp_path / "weights.safetensors"
    for change, message in (
        ({"layer2.0.bn2.bias": None}, "has no tensor 'layer2.0.bn2.bias'"),
        (
            {"layer1.0.conv2.weight": np.zeros((8, 8, 1, 1), np.float32)},
            r"has shape \(8, 8, 1, 1\)",
        ),
        ({"layer2.0.conv3.weight": None, "layer1.0.conv3.weight": None}, "no ResNet with bottle"),
        ({"layer1.0.conv3.weight": None}, "no ResNet with bottle"),
    ):
        changed = {n: w for n, w in (weights | change).items() if w is not None}
        save_file(changed, path)
        with pytest.raises(UserError, match=message):
            load_resnet(path)
    save_file(weights, path)
    config, variables = load_resnet(path)
    assert config == ResNetConfig((1, 1), 8)
    assert variables["params"]["stem"]["conv1"]["kernel"].shape == (7, 7, 3, 8)
    np.testing.assert_array_equal(
        variables["params"]["stage_1"]["block_0"]["downsample_conv"]["kernel"],
        jnp.transpose(weights["layer2.0.downsample.0.weight"], (2, 3, 1, 0)),
    )
