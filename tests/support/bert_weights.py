"""Random weights of a BERT, the same wherever they are made."""

import zlib

import numpy as np

FIELDS = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
}


def bert_shapes(fields):
    """Names and shapes of the tensors, as the original checkpoints name them; no pooler."""
    d, inner = fields["hidden_size"], fields["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (fields["vocab_size"], d),
        "embeddings.position_embeddings.weight": (fields["max_position_embeddings"], d),
        "embeddings.token_type_embeddings.weight": (fields["type_vocab_size"], d),
        "embeddings.LayerNorm.weight": (d,),
        "embeddings.LayerNorm.bias": (d,),
    }
    dense = {
        "attention.self.query": (d, d),
        "attention.self.key": (d, d),
        "attention.self.value": (d, d),
        "attention.output.dense": (d, d),
        "intermediate.dense": (inner, d),
        "output.dense": (d, inner),
    }
    for i in range(fields["num_hidden_layers"]):
        for name, shape in dense.items():
            shapes[f"encoder.layer.{i}.{name}.weight"] = shape
            shapes[f"encoder.layer.{i}.{name}.bias"] = shape[:1]
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes[f"encoder.layer.{i}.{name}.weight"] = (d,)
            shapes[f"encoder.layer.{i}.{name}.bias"] = (d,)
    return shapes


def random_weights(shapes):
    """float32 arrays by name; each depends on its name and shape only."""
    weights = {}
    for name, shape in shapes.items():
        values = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)
        weights[name] = (0.2 * values + name.endswith("LayerNorm.weight")).astype(np.float32)
    return weights
