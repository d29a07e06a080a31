"""Makes the files beside it with PyTorch and torchvision, which no test needs.

python -m venv DIR && DIR/bin/pip install torch==2.14.1 torchvision==0.29.1
DIR/bin/python -m tests.image_reference.make

picture.jpg            a picture of 300 x 401 pixels
reference.npz          see `main`
zip.pth, legacy.pth    one state dict in both layouts of torch.save
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms
from torchvision.models import resnet50

from tests.support.resnet_weights import random_pixels, random_weights, resnet_shapes

HERE = Path(__file__).parent
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture():
    """Waves of several lengths, so that resizing has something to get wrong."""
    y, x = np.mgrid[:401, :300]
    waves = [np.sin(x / 3 + y / 40), np.sin(y / 5 - x / 60), np.sin((x * y) / 900)]
    pixels = (127.5 + 127 * np.stack(waves, axis=-1)).astype(np.uint8)
    Image.fromarray(pixels).save(HERE / "picture.jpg", quality=92)


def cropped():
    """torchvision's preparation, before normalisation: uint8 [224, 224, 3]."""
    prepare = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    return np.asarray(prepare(Image.open(HERE / "picture.jpg").convert("RGB")))


def model():
    """ResNet-50 with the weights of tests/resnet_weights.py."""
    weights = {n: torch.from_numpy(w) for n, w in random_weights(resnet_shapes()).items()}
    net = resnet50(weights=None)
    left = net.load_state_dict(weights, strict=False)
    assert not left.unexpected_keys, left
    assert all(n.startswith("fc") or "num_batches" in n for n in left.missing_keys), left
    net.fc = torch.nn.Identity()
    return net


def tensors(pixels):
    """uint8 [images, height, width, 3] -> what the model takes."""
    x = (pixels / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
    return torch.from_numpy(x.transpose(0, 3, 1, 2).astype(np.float32))


def state_dicts():
    """Types, a view with strides of its own, two tensors in one storage, an empty one."""
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    values = {
        "float": base,
        "transposed": base.T,
        "part": base[1:, 2:],
        "half": base.half(),
        "bfloat16": base.bfloat16(),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(base[0].clone()),
    }
    torch.save(values, HERE / "zip.pth")
    torch.save(values, HERE / "legacy.pth", _use_new_zipfile_serialization=False)


@torch.no_grad()
def main():
    """Writes reference.npz.

    cropped    every 7th row and column of the prepared picture, uint8 [32, 32, 3]
    features   of two images of random_pixels(2, 224), kept statistics, [2, 2048]
    """
    torch.manual_seed(0)
    picture()
    state_dicts()
    net = model().eval()
    features = net(tensors(random_pixels(2, 224))).numpy()
    np.savez_compressed(
        HERE / "reference.npz",
        cropped=cropped()[::7, ::7],
        features=features,
    )
    print(features.std())


if __name__ == "__main__":
    main()
