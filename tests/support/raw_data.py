"""Small raw dumps in their owners' layouts, made up for the tests."""

import json
from collections.abc import Sequence
from pathlib import Path

import ml_collections
import numpy as np
from PIL import Image
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from configs import paper
from tests.support.bert_weights import bert_shapes
from tests.support.bert_weights import random_weights as random_bert
from tests.support.resnet_weights import random_weights, resnet_shapes
from tssr_jax.content.bert import BertConfig

WORDS = ("red", "blue", "green", "car", "boat", "plane", "game", "puzzle", "big", "small")


def write_csv(folder: Path, num_users: int = 40, num_items: int = 20, seed: int = 0) -> Path:
    """interactions.csv and items.csv; users walk along the items, so that there is a pattern."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(num_users):
        start, length = rng.integers(num_items), rng.integers(6, 14)
        for time in range(length):
            rows.append(f"u{user},i{(start + time) % num_items},{1000 + 10 * time}")
    rng.shuffle(rows)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "interactions.csv").write_text("user,item,timestamp\n" + "\n".join(rows) + "\n")
    titles = [f"{WORDS[i % 10]} {WORDS[(3 * i + 1) % 10]}" for i in range(num_items)]
    items = "\n".join(f"i{i},{title}" for i, title in enumerate(titles))
    (folder / "items.csv").write_text(f"item,title\n{items}\n")
    return folder


def write_text_model(folder: Path, hidden_size: int = 16) -> Path:
    """A tiny BERT with random weights: config.json, model.safetensors, tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        type_vocab_size=2,
        layer_norm_eps=1e-12,
    )
    fields = vars(config) | {"model_type": "bert", "hidden_act": "gelu"}
    (folder / "config.json").write_text(json.dumps(fields))
    save_file(random_bert(bert_shapes(vars(config))), folder / "model.safetensors")
    return folder


def tiny_config(folder: Path) -> ml_collections.ConfigDict:
    """A configuration that trains in seconds on `write_csv` data below `folder`."""
    config = paper.get_config(f"csv:{write_csv(folder / 'raw')}")
    config.data.cache_dir = str(folder / "cache")
    config.content.text.model_dir = str(write_text_model(folder / "text_model"))
    config.content.text.max_tokens = 8
    config.model.update(
        d_model=16, d_ffn=16, num_heads=2, num_cross_layers=1, max_length=8, dropout_rate=0.1
    )
    config.num_devices = 1
    config.optimizer.learning_rate = 1e-2
    config.optimizer.ema_decay = 0.0
    config.train.update(batch_size=16, num_epochs=3, time_noise=())
    # Without the metrics of whole lists, which compile for two seconds in every run.
    config.evaluate.update(batch_size=32, list_length=0)
    return config


def write_images(folder: Path, names: Sequence[str], seed: int = 0) -> None:
    """Pictures of noise, none of them square."""
    rng = np.random.default_rng(seed)
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (30 + i, 44, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)


def write_image_model(path: Path) -> Path:
    """A tiny ResNet of two stages with random weights."""
    save_file(random_weights(resnet_shapes((1, 1), 4)), path)
    return path


def two_configs(folder: Path) -> list[ml_collections.ConfigDict]:
    """Two of `tiny_config`, on data of their own below folder/first and folder/second."""
    configs = []
    for name in ("first", "second"):
        (folder / name).mkdir()
        config = tiny_config(folder / name)
        config.optimizer.ema_decay = 0.9  # what ranks is then the average
        config.train.num_epochs = 2
        configs.append(config)
    return configs


def take_again(config):
    """Half of the users walk along the items, the others go round three of them."""
    rows = [
        f"u{user},i{(user + (step % 3 if user % 2 else step)) % 9},{60 * step}"
        for user in range(40)
        for step in range(7 if user % 3 else 8)
    ]
    path = Path(config.data.raw_dir) / "interactions.csv"
    path.write_text("\n".join(["user,item,timestamp", *rows]) + "\n")
    config.data.min_item_interactions = 1
    config.evaluate.keep_seen = True
    return config
