"""The studies by name: which changes of a configuration are compared, and why.

The first variant of a study is what the others are compared with.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections


@dataclasses.dataclass(frozen=True)
class Variant:
    """One configuration of a study.

    Attributes:
      name: for tables.
      changes: values of fields that define it, by dotted names.
      settings: values of fields that suit it; its own searches start there.
    """

    name: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def values(self) -> dict[str, Any]:
        """All that differs from the study's configuration."""
        return {**self.changes, **self.settings}


@dataclasses.dataclass(frozen=True)
class Study:
    """Variants that answer one question.

    Attributes:
      question: for the report.
      variants: the first is compared with all others.
      needs: fields that the study's configuration has to set.
      fewer_fields: also ask with fewer of the fields that make up a text (`data.text_fields`).
      by_group: whether the report tells metrics by length of history and popularity of the answer.
    """

    question: str
    variants: tuple[Variant, ...]
    needs: tuple[str, ...] = ()
    fewer_fields: bool = False
    by_group: bool = False

    def variants_of(self, config: ml_collections.ConfigDict) -> tuple[Variant, ...]:
        """The variants for a configuration."""
        fields = tuple(config.data.text_fields) if self.fewer_fields else ()
        return self.variants + tuple(
            Variant(f"text of {' and '.join(fields[:n])} only", {"data.text_fields": fields[:n]})
            for n in range(1, len(fields))
        )


IDS_ONLY = {"model.streams": ("id",)}
CONTENT_ONLY: Mapping[str, Any] = {"model.streams": ("content",), "model.id_neighbours": 0}
ONE_STREAM = {"model.streams": ("sum",)}
# A network alone: it reads nothing that was counted.
ALONE = {"model.memory": (), "model.id_neighbours": 0}
# It learns slowly: a search of 8 trials chose a larger step size, no second layer, no decay.
GRU4REC = {**IDS_ONLY, **ALONE, "model.encoder": "gru"}
GRU4REC_SETTINGS = {
    "model.num_unimodal_layers": 1,
    "optimizer.learning_rate": 3e-3,
    "optimizer.weight_decay": 0.0,
}
# The paper's model and losses; length, windows, averaged parameters and orders stay those of
# the other variants (configs/paper.py has our defaults, configs/reference.py the authors').
THE_PAPERS = {
    **ALONE,
    "model.head": "classes",
    "model.id_reads_content": False,
    "model.mixing": "gate",
    "model.content_hidden": 0,
    "model.num_unimodal_layers": 1,
    "model.num_cross_layers": 4,
    "loss.lambda_user": 1.0,
    "loss.lambda_item": 1.0,
}
# Dropout as in the paper; the paper's step size of 1e-4 needs more epochs than are run here.
PAPER_SETTINGS = {
    "model.dropout_rate": 0.1,
    "optimizer.learning_rate": 1e-3,
    "optimizer.weight_decay": 0.0,
}
HABITS = {
    "reference: last padding position counts": "valid_positions_only",
    "reference: padding is pooled": "pool_valid_positions",
    "reference: false negatives": "mask_false_negatives",
    "reference: padding class competes": "exclude_padding_class",
    "reference: only the window is left out of the ranking": "full_history_ranking",
}


# Two habits count padding positions, which packing leaves out: the losses are the same without.
UNPACKED = {"train.packing": False}


def _ablation() -> tuple[Variant, ...]:
    habits = {name: {f"corrections.{field}": False, **UNPACKED} for name, field in HABITS.items()}
    every = {f"corrections.{field}": False for field in HABITS.values()} | UNPACKED
    return (
        Variant("TSSR"),
        Variant("no user-grained contrast", {"loss.lambda_user": 0.0}),
        Variant("no item-grained contrast", {"loss.lambda_item": 0.0}),
        Variant("no contrast", {"loss.lambda_user": 0.0, "loss.lambda_item": 0.0}),
        Variant("ids only", IDS_ONLY),
        Variant("content only", CONTENT_ONLY),
        Variant("sum in place of the gate", {"model.mixing": "sum"}),
        Variant("concatenation in place of the gate", {"model.mixing": "concatenation"}),
        Variant("no cross-attention", {"model.num_cross_layers": 0}),
        Variant("no memories", {"model.memory": ()}),
        Variant("co-occurrence and words alone", {"model.memory": ("co_occurrence", "words")}),
        Variant("no shared id vectors", {"model.id_neighbours": 0}),
        Variant("one order of items of one time", {"model.tie_orders": 1}),
        *(Variant(name, changes) for name, changes in habits.items()),
        Variant("reference: all five", every),
    )


def _batch() -> tuple[Variant, ...]:
    values = {
        "train.batch_size": (32, 64, 256, 512, 1024),
        "loss.user_temperature": (0.05, 0.1, 0.5, 1.0),
        "loss.lambda_user": (0.1, 0.3, 3.0),
        "loss.lambda_item": (0.1, 0.3, 3.0),
    }
    return (
        Variant("as configured"),
        *(
            Variant(f"{field.partition('.')[2]} {value:g}", {field: value})
            for field, some in values.items()
            for value in some
        ),
    )


def _efficiency() -> tuple[Variant, ...]:
    streams = {"both streams": {}, "ids only": IDS_ONLY, "content only": CONTENT_ONLY}
    return tuple(
        Variant(
            f"{name}, length {length}",
            {
                **changes,
                "model.max_length": length,
                "train.window_stride": length,  # where windows are strided, none overlap
                "train.num_epochs": 2,
            },
        )
        for length in (10, 50, 200)
        for name, changes in streams.items()
    )


def _baselines() -> tuple[Variant, ...]:
    return (
        Variant("TSSR"),
        Variant("popularity", {"baseline.kind": "popularity"}),
        Variant("popularity of the month", {"baseline.kind": "month_popularity"}),
        Variant("nearest texts", {"baseline.kind": "nearest_texts"}),
        Variant("own items", {"baseline.kind": "own_items"}),
        Variant("item-kNN", {"baseline.kind": "item_knn"}),
        Variant("content added, with memories", ONE_STREAM),
        Variant("TSSR without memories", {"model.memory": ()}),
        Variant("SASRec (cross entropy)", {**IDS_ONLY, **ALONE}),
        Variant("GRU4Rec (cross entropy)", GRU4REC, GRU4REC_SETTINGS),
        Variant("SASRec, content added", {**ONE_STREAM, **ALONE}),
        Variant("content only", {**CONTENT_ONLY, **ALONE}),
        Variant("the paper's TSSR, trained alike", THE_PAPERS, PAPER_SETTINGS),
    )


def _text() -> tuple[Variant, ...]:
    kinds = {"text encoder": {}, "hashed n-grams": {"content.text.encoder": "ngrams"}}
    return tuple(
        Variant(f"{name}{', alone' if alone else ''}", {**kind, **(CONTENT_ONLY if alone else {})})
        for alone in (False, True)
        for name, kind in kinds.items()
    )


def _improvements() -> tuple[Variant, ...]:
    weak = {"loss.lambda_user": 0.1, "loss.lambda_item": 0.1}
    # With the paper's gate, which is set here for configurations that have experts.
    gate = {"model.mixing": "gate"}
    reads = {"model.head": "tied", "model.id_reads_content": True, **gate}
    by_experts = {
        "model.head": "tied",
        "model.mixing": "experts",
        "model.id_reads_content": False,
    }
    return (
        Variant("as configured"),
        Variant("head reads content", {"model.head": "content", **gate}),
        Variant("tied head", {"model.head": "tied"}),
        Variant("tied head, id stream reads content", reads),
        Variant("the same, dropout 0.4", {**reads, "model.dropout_rate": 0.4}),
        Variant("the same, weaker contrast", {**reads, **weak}),
        Variant("experts", by_experts),
        Variant("experts, weaker contrast", {**by_experts, **weak}),
        Variant("experts, one reads both", {**by_experts, "model.id_reads_content": True}),
        Variant("experts, hidden layer for content", {**by_experts, "model.content_hidden": 256}),
        Variant("hidden layer for content", {"model.content_hidden": 256}),
        Variant("weaker contrast", weak),
        Variant("tied head, weaker contrast", {"model.head": "tied", **weak}),
        Variant("dropout 0.3", {"model.dropout_rate": 0.3}),
        Variant(
            "smaller steps, weight decay",
            {"optimizer.learning_rate": 6e-4, "optimizer.weight_decay": 0.1},
        ),
        Variant("one cross-attention block", {"model.num_cross_layers": 1}),
        Variant("strided windows", {"train.windows": "strided"}),
    )


def _transfer() -> tuple[Variant, ...]:
    content = {**CONTENT_ONLY, "model.head": "tied"}
    return (
        Variant("from the start", {**content, "train.init_from": ""}),
        Variant("zero-shot", {**content, "train.num_epochs": 0}),
        *(
            Variant(f"after {epochs} epochs", {**content, "train.num_epochs": epochs})
            for epochs in (1, 3, 10)
        ),
        Variant("until it stops", content),
    )


STUDIES = {
    "ablation": Study("What does each part of the model contribute?", _ablation()),
    "batch": Study("How much do number of negatives, temperature and weights matter?", _batch()),
    "efficiency": Study("What do two streams cost?", _efficiency()),
    "baselines": Study("Is it better than what is simpler?", _baselines(), by_group=True),
    "improvements": Study("What makes it better than the paper's?", _improvements()),
    "text": Study("How much must the model know of a text?", _text(), fewer_fields=True),
    "transfer": Study(
        "What does content that was learnt on other data bring?",
        _transfer(),
        needs=("train.init_from",),
    ),
    "sparsity": Study(
        "Who gains: short or long histories, rare or popular items?",
        (Variant("TSSR"), Variant("ids only", IDS_ONLY), Variant("content only", CONTENT_ONLY)),
        by_group=True,
    ),
}
