"""What is measured: sizes of each case, and the arithmetic that its mathematics needs."""

import dataclasses
from typing import Any

FEATURE_DIM = 384
# Items that a step draws with the sampled loss: the default of the configuration.
NUM_NEGATIVES = 1_024
# Size of the matrix product that measures a machine's peak speed.
PEAK_SIZE = 2_048
PEAK_FLOPS = 2 * PEAK_SIZE**3


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
      name: in the table.
      kind: "train", steps; "epoch", steps on amazon_toys as it is; "rank", `users` users.
      length: length of windows, which are full in synthetic data.
      num_items: size of the catalogue.
      contenders: programs that run it, ours first.
      batch: users of a step, or ranked at a time.
      streams: streams of the model.
      d_model: width of the model.
      d_ffn: width of its feed-forward layers.
      num_heads: heads of its attention.
      num_unimodal: self-attention blocks of each stream.
      num_cross: cross-attention blocks of each stream.
      users: ranked in a repeat.
      steps: timed in a row, where steps are measured.
      next_item: the loss, `config.loss.next_item`.
      lazy_rows: `config.optimizer.lazy_rows`.
      keep_products: `config.model.keep_products`.
      last_label_only: a window has one label, its last.
      trained_text: the text encoder (all-MiniLM-L6-v2's layers) is trained with the model.
      folder: folder of real data; "" for synthetic data.
    """

    name: str
    kind: str
    length: int
    num_items: int
    contenders: tuple[str, ...]
    batch: int = 128
    streams: tuple[str, ...] = ("id", "content")
    d_model: int = 128
    d_ffn: int = 256
    num_heads: int = 4
    num_unimodal: int = 1
    num_cross: int = 4
    users: int = 0
    steps: int = 5
    next_item: str = "full"
    lazy_rows: bool = False
    keep_products: bool = True
    last_label_only: bool = False
    trained_text: bool = False
    folder: str = ""

    def fields(self) -> dict[str, Any]:
        """For the worker's command line."""
        return dataclasses.asdict(self)

    def flops(self) -> float:
        """Multiplications and additions of a step, or a ranking; 0 where windows vary.

        A position sees half of its window on average; each product has two of its size in the
        gradient; features have none.
        """
        if self.kind == "epoch":
            return 0.0
        d, both = self.d_model, len(self.streams) == 2
        rows = self.users or self.batch
        positions = rows * self.length
        keys = (self.length + 1) / 2
        block = 2 * (4 * d * d + 2 * d * self.d_ffn) + 4 * keys * d
        blocks = len(self.streams) * (self.num_unimodal + both * self.num_cross)
        per_position = blocks * block + both * 4 * d * d
        classes = self.num_items + 1 if self.next_item == "full" else NUM_NEGATIVES + 1
        head = 2 * d * classes
        labels = rows if self.last_label_only else positions
        features = both * 2 * FEATURE_DIM * d * min(positions, self.num_items + 1)
        if self.kind == "rank":
            return positions * per_position + rows * head + features
        contrast = both * 4 * rows * d
        return 3 * (positions * (per_position + contrast) + labels * head) + 2 * features


TWINS = ("ours", "twin", "twin, tuned")
RANKERS = ("ours", "twin, argsort", "twin, topk")
IDS_ONLY: dict[str, Any] = {"streams": ("id",), "num_unimodal": 2, "num_cross": 0}
DRAWN: dict[str, Any] = {"next_item": "sampled", "lazy_rows": True}
CASES = (
    Case("step, length 10, 10k items", "train", 10, 10_000, TWINS),
    Case("step, length 50, 3.7k items", "train", 50, 3_700, TWINS),
    Case("step, length 10, 105k items", "train", 10, 105_000, TWINS),
    Case("step, length 10, 105k items, 1,024 drawn", "train", 10, 105_000, ("ours",), **DRAWN),
    Case("step, length 10, 1M items, 1,024 drawn", "train", 10, 1_000_000, ("ours",), **DRAWN),
    Case(
        "ids only, length 50, 1M items, 1,024 drawn, batch 1,024, width 64", "train", 50, 1_000_000,
        ("ours",), batch=1_024, d_model=64, d_ffn=128, num_heads=2, steps=2, keep_products=False,
        **DRAWN, **IDS_ONLY,
    ),
    Case("toys, length 50, a step of an epoch", "epoch", 50, 0, TWINS),
    Case(
        "toys, length 50, text encoder trained, batch 32", "epoch", 50, 0, ("ours", "twin, tuned"),
        batch=32, trained_text=True, steps=2,
    ),
    Case("ids only, length 50, 3.7k items", "train", 50, 3_700, ("ours", "rectools"), **IDS_ONLY),
    Case(
        "ids only, one label a window", "train", 50, 3_700, ("ours", "recbole"),
        last_label_only=True, **IDS_ONLY,
    ),
    Case("rank 1,000 users, length 10, 10k items", "rank", 10, 10_000, RANKERS, users=1_000),
    Case("rank 1,000 users, length 10, 105k items", "rank", 10, 105_000, RANKERS, users=1_000),
    Case("rank 1,000 users, length 50, 10k items", "rank", 50, 10_000, RANKERS, users=1_000),
)  # fmt: skip
