"""The two-stream model in PyTorch, from the same description: the baseline of our speed.

It is the reference mode (tests/golden/README.md states its arithmetic) as one would write it down:
scores of every position over the whole catalogue, cross entropy that ignores padding, Adam. The
names of its parameters are those of the golden cases, whose weights `load` takes.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

MASKED_SCORE = -1e9


class Sizes(NamedTuple):
    """Sizes of a model; `streams` is ("id", "content") or ("id",)."""

    num_items: int
    max_length: int
    feature_dim: int = 384
    d_model: int = 128
    num_heads: int = 4
    d_ffn: int = 256
    num_unimodal_layers: int = 1
    num_cross_layers: int = 4
    dropout: float = 0.1
    streams: tuple[str, ...] = ("id", "content")


class Attention(nn.Module):
    """Multi-head attention with separate projections."""

    def __init__(self, d_model: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(d_model, d_model)
        self.key = nn.Linear(d_model, d_model)
        self.value = nn.Linear(d_model, d_model)
        self.out = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, other: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """[batch, length, d_model] to the same; mask bool [batch, 1, length, length]."""
        q, k, v = (
            layer(states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer, states in ((self.query, x), (self.key, other), (self.value, other))
        )
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        weights = self.dropout(scores.masked_fill(~mask, MASKED_SCORE).softmax(dim=-1))
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two layers with the exact GELU between."""

    def __init__(self, d_model: int, d_ffn: int, dropout: float):
        super().__init__()
        self.up = nn.Linear(d_model, d_ffn)
        self.down = nn.Linear(d_ffn, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., d_model] to the same."""
        return self.dropout(self.down(functional.gelu(self.up(x))))


class Block(nn.Module):
    """Post-norm block with learnt residual scalars."""

    def __init__(self, d_model: int, num_heads: int, d_ffn: int, dropout: float):
        super().__init__()
        self.attention = Attention(d_model, num_heads, dropout)
        self.ffn = FeedForward(d_model, d_ffn, dropout)
        self.attention_norm = nn.LayerNorm(d_model, eps=1e-5)
        self.ffn_norm = nn.LayerNorm(d_model, eps=1e-5)
        self.attention_residual_scale = nn.Parameter(torch.tensor(1e-8))
        self.ffn_residual_scale = nn.Parameter(torch.tensor(1e-8))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, other: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """[batch, length, d_model] to the same."""
        update = self.dropout(self.attention(x, other, mask))
        x = self.attention_norm(x + self.attention_residual_scale * update)
        return self.ffn_norm(x + self.ffn_residual_scale * self.dropout(self.ffn(x)))


class Outputs(NamedTuple):
    """States of both streams, each [batch, length, d_model]; None where there is no content."""

    id_embedding: torch.Tensor
    id_encoded: torch.Tensor
    content_embedding: torch.Tensor | None
    content_encoded: torch.Tensor | None
    fused: torch.Tensor


class Twin(nn.Module):
    """Embeddings, unimodal stacks, cross stacks, gate and head."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        d = sizes.d_model
        block = (d, sizes.num_heads, sizes.d_ffn, sizes.dropout)

        def stack(depth: int) -> nn.ModuleList:
            return nn.ModuleList(Block(*block) for _ in range(depth))

        self.token_embedding = nn.Embedding(sizes.num_items + 1, d)
        self.position_embedding = nn.Embedding(sizes.max_length, d)
        self.id_encoder = stack(sizes.num_unimodal_layers)
        self.output = nn.Linear(d, sizes.num_items + 1)
        self.both = len(sizes.streams) == 2
        if self.both:
            self.content_projection = nn.Linear(sizes.feature_dim, d)
            self.content_encoder = stack(sizes.num_unimodal_layers)
            self.id_cross = stack(sizes.num_cross_layers)
            self.content_cross = stack(sizes.num_cross_layers)
            self.gate = nn.Linear(2 * d, d)
        for name, parameter in self.named_parameters():
            if name.endswith("_embedding.weight"):
                bound = (sizes.num_items + 1) ** -0.5
                nn.init.uniform_(parameter, -bound, bound)

    def forward(self, sequence: torch.Tensor, features: torch.Tensor | None) -> Outputs:
        """States of histories int64 [batch, length], with a feature table [items + 1, width]."""
        length = sequence.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=sequence.device).tril()
        mask = (causal & (sequence > 0)[:, None, :])[:, None]
        embedding = self.token_embedding(sequence)
        encoded = embedding + self.position_embedding.weight
        for block in self.id_encoder:
            encoded = block(encoded, encoded, mask)
        if features is None:
            return Outputs(embedding, encoded, None, None, encoded)
        content_embedding = self.content_projection(features[sequence])
        content = content_embedding + self.position_embedding.weight
        for block in self.content_encoder:
            content = block(content, content, mask)
        crossed, content_crossed = encoded, content
        for block, content_block in zip(self.id_cross, self.content_cross, strict=True):
            crossed = block(crossed, content, mask)
            content_crossed = content_block(content_crossed, encoded, mask)
        gate = torch.sigmoid(self.gate(torch.cat([crossed, content_crossed], dim=-1)))
        fused = gate * crossed + (1 - gate) * content_crossed
        return Outputs(embedding, encoded, content_embedding, content, fused)

    def load(self, params: Mapping[str, np.ndarray]) -> None:
        """Takes weights by the names of a golden case ("id_encoder/layer_0/ffn/up/kernel")."""
        state = {}
        for name, value in params.items():
            parts = name.replace("layer_", "").split("/")
            kernel = parts[-1] == "kernel"
            if parts[-1] in ("kernel", "scale", "embedding"):
                parts[-1] = "weight"
            array = torch.from_numpy(np.asarray(value))
            state[".".join(parts)] = array.T.contiguous() if kernel else array
        self.load_state_dict(state)


def losses(
    model: Twin,
    outputs: Outputs,
    sequence: torch.Tensor,
    labels: torch.Tensor,
    *,
    temperature: float = 0.2,
    labelled_only: bool = False,
) -> dict[str, torch.Tensor]:
    """The five terms (without content only "prediction"), in the reference's arithmetic.

    Args:
      model: whose head is applied here.
      outputs: the model's.
      sequence: int64 [batch, length].
      labels: int64 [batch, length], 0 is ignored.
      temperature: of the user-grained cosine.
      labelled_only: apply the head to positions with a label only.
    """
    fused, targets = outputs.fused.flatten(0, 1), labels.flatten()
    if labelled_only:
        chosen = targets.nonzero()[:, 0]
        fused, targets = fused[chosen], targets[chosen]
    terms = {"prediction": functional.cross_entropy(model.output(fused), targets, ignore_index=0)}
    if outputs.content_encoded is None or outputs.content_embedding is None:
        return terms
    pooled, other = outputs.id_encoded.mean(1), outputs.content_encoded.mean(1)
    cosines = (
        functional.normalize(other, dim=-1) @ functional.normalize(pooled, dim=-1).T / temperature
    )
    own = torch.arange(len(sequence), device=sequence.device)
    terms["user_text2id"] = functional.cross_entropy(cosines, own)
    terms["user_id2text"] = functional.cross_entropy(cosines.T, own)
    valid = (sequence[:, 1:] > 0).T
    for name, states, embedding in (
        ("item_text2id", outputs.content_encoded, outputs.id_embedding),
        ("item_id2text", outputs.id_encoded, outputs.content_embedding),
    ):
        scores = states[:, :-1].transpose(0, 1) @ embedding[:, 1:].permute(1, 2, 0)
        scores = scores.masked_fill(~(valid[:, :, None] & valid[:, None, :]), MASKED_SCORE)
        everyone = own.expand(len(valid), -1)
        terms[name] = functional.cross_entropy(scores[valid], everyone[valid])
    return terms
