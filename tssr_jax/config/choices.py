"""Allowed values of configuration fields that take one of a few names."""

from collections.abc import Sequence

import ml_collections

# `model.streams`: all sets that make sense. ("id", "content") is TSSR.
STREAMS = ("id", "content", "sum")
STREAM_SETS = (("id", "content"), ("id",), ("content",), ("sum",))
# `content.modalities`: some of these.
MODALITIES = ("text", "image", "vectors", "categories")
# `model.memory`: any of these.
MEMORIES = ("co_occurrence", "words", "popularity", "repeats")
# The field that says how much of a modality's encoder is trained; one's own vectors and
# categories have none.
_TRAINED_FIELDS = {"text": "trained_layers", "image": "trained_stages"}

# `train.trackers`: any of these.
TRACKERS = ("wandb", "mlflow")

CHOICES: dict[str, tuple[str, ...]] = {
    "parallel": ("pmap", "shard_map"),
    "content.fusion": ("sum", "gate"),
    "content.text.encoder": ("bert", "ngrams"),
    "content.text.pooling": ("mean", "cls", "pooler"),
    "model.encoder": ("attention", "gru"),
    "model.mixing": ("gate", "experts", "sum", "concatenation"),
    "model.head": ("classes", "content", "tied"),
    "model.compute_dtype": ("float32", "bfloat16"),
    "loss.negatives": ("all_gather", "ring"),
    "loss.next_item": ("full", "sampled"),
    "train.windows": ("last", "strided"),
    "baseline.kind": (
        "",
        "popularity",
        "month_popularity",
        "nearest_texts",
        "own_items",
        "item_knn",
    ),
    "data.repeated_items": ("error", "first"),
    "evaluate.split": ("leave_one_out", "global_time"),
    "evaluate.targets": ("first", "last", "all"),
}


def reads_content(streams: Sequence[str]) -> bool:
    """Whether a model of these streams reads the content of items."""
    return bool({"content", "sum"} & set(streams))


def trained_fields(content: ml_collections.ConfigDict) -> dict[str, int]:
    """The fields by which encoders are trained, e.g. {"text.trained_layers": 2}.

    Args:
      content: section `content` of the config.
    """
    return {
        f"{name}.{field}": content[name][field]
        for name, field in _TRAINED_FIELDS.items()
        if name in content.modalities and content[name][field]
    }


def trains_encoder(config: ml_collections.ConfigDict) -> bool:
    """Whether an encoder of content is trained."""
    return reads_content(config.model.streams) and bool(trained_fields(config.content))


def ranks_by_content(head: str, streams: Sequence[str]) -> bool:
    """Whether items that were never trained are scored by their content."""
    return head == "content" or (head == "tied" and reads_content(streams))
