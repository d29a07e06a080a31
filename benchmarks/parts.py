"""The parts of the model, as operations of a compiled step name them."""

import re

# The first pattern that an operation's path contains gives its part. A path names modules and
# functions, the operation last. Forward, backward and recomputed operations count together.
PARTS = (
    ("Adam", r"/optimizer"),
    ("next-item loss", r"next_item"),
    ("contrast", r"contrast"),
    ("dropout", r"dropout"),
    ("layer norm", r"_norm"),
    ("attention: projections", r"attention/(query|key|value|out)/"),
    ("attention: softmax and products", r"attention"),
    ("feed-forward products", r"ffn/(up|down)/"),
    ("GELU", r"ffn"),
    ("item table: gather, scatter", r"token_embedding"),
    ("content projection, gate", r"content_projection|output_content|gate"),
    ("loop over the blocks, what it keeps", r"blocks"),
)


def part_of(path: str) -> str:
    """The part of the model that an operation belongs to."""
    return next((part for part, pattern in PARTS if re.search(pattern, path)), "the rest")
