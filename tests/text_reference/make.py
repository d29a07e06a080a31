"""Makes reference.npz beside it with PyTorch and transformers, which no test needs.

    python -m venv DIR && DIR/bin/pip install torch==2.14.1 transformers==4.57.1
    DIR/bin/python -m tests.text_reference.make

A BERT of three layers with the weights of `random_weights`, on token ids with padding:

    token_ids, mask    [4, 9]
    states             last hidden states, [4, 9, 32]
    pooled             what the pooler makes of the first one, [4, 32]
"""

from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertModel

from tests.support.bert_weights import FIELDS, random_weights


@torch.no_grad()
def main():
    """Writes the file."""
    config = BertConfig(**FIELDS, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    bert = BertModel(config).eval()
    weights = random_weights({n: tuple(t.shape) for n, t in bert.state_dict().items()})
    bert.load_state_dict({n: torch.from_numpy(w) for n, w in weights.items()})
    rng = np.random.default_rng(1)
    token_ids = rng.integers(0, FIELDS["vocab_size"], (4, 9))
    mask = np.arange(9) < np.array([9, 5, 1, 7])[:, None]
    output = bert(torch.from_numpy(token_ids), attention_mask=torch.from_numpy(mask).long())
    np.savez_compressed(
        Path(__file__).parent / "reference.npz",
        token_ids=token_ids.astype(np.int32),
        mask=mask,
        states=output.last_hidden_state.numpy(),
        pooled=output.pooler_output.numpy(),
    )


if __name__ == "__main__":
    main()
