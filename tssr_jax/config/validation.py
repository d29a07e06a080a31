"""Checks the values of a configuration, alone and in combination."""

import datetime
import math

import ml_collections

from tssr_jax.config.by_data import filled
from tssr_jax.config.choices import (
    CHOICES,
    MEMORIES,
    MODALITIES,
    STREAM_SETS,
    TRACKERS,
    ranks_by_content,
    reads_content,
    trained_fields,
    trains_encoder,
)
from tssr_jax.config.default import get_config as default_config
from tssr_jax.config.fields import flattened
from tssr_jax.errors import UserError, shown

_AT_LEAST = {
    "seed": 0,
    "num_devices": 0,
    "model_devices": 1,
    "model.d_model": 1,
    "model.num_heads": 1,
    "model.d_ffn": 1,
    "model.num_unimodal_layers": 0,
    "model.num_cross_layers": 0,
    "model.max_length": 1,
    "model.content_hidden": 0,
    "model.id_neighbours": 0,
    "model.tie_orders": 1,
    "loss.lambda_user": 0,
    "loss.lambda_item": 0,
    "loss.num_negatives": 1,
    "optimizer.warmup_steps": 0,
    "optimizer.weight_decay": 0,
    "optimizer.clip_norm": 0,
    "data.text_field_length": 0,
    "data.max_bad_lines": 0,
    "data.tie_seed": 0,
    "data.in_memory_gib": 0,
    "content.text.trained_layers": -1,
    "content.text.lora_rank": 0,
    "content.text.ngram_width": 1,
    "content.text.micro_batch": 1,
    "content.image.trained_stages": -1,
    "content.image.micro_batch": 1,
    "train.batch_size": 1,
    "train.window_stride": 1,
    "train.num_epochs": 0,
    "train.epochs_per_evaluation": 1,
    "train.early_stopping_patience": 0,
    "train.log_every_steps": 0,
    "train.checkpoint_every_steps": 0,
    "evaluate.batch_size": 1,
    "evaluate.list_length": 0,
    "memory.neighbours": 1,
    "memory.fading": 0,
    "memory.shrinkage": 0,
    "memory.decay": 0,
    "memory.words": 0,
}


def validate_config(config: ml_collections.ConfigDict) -> None:
    """Raises UserError if a value, or a combination of values, is invalid."""
    config = filled(config)  # fields that depend on the data are checked as for short histories
    fields = flattened(config)
    for name, least in _AT_LEAST.items():
        if fields[name] < least:
            raise UserError(f"--config.{name} is {fields[name]}; it must be at least {least}.")
    for name in ("loss.user_temperature", "optimizer.learning_rate"):
        if not fields[name] > 0:
            raise UserError(f"--config.{name} is {fields[name]}; it must be positive.")
    for name, known in CHOICES.items():
        if fields[name] not in known:
            names = ", ".join(value or "''" for value in known)
            raise UserError(f"--config.{name} is {fields[name]!r}; known: {names}.")
    for name in (
        "model.dropout_rate",
        "model.id_dropout",
        "optimizer.ema_decay",
        "train.held_out_items",
    ):
        if not 0 <= fields[name] < 1:
            raise UserError(f"--config.{name} is {fields[name]}; it must be in [0, 1).")
    _validate_split(config.evaluate)
    _validate_held_out(config)
    _validate_start(config)
    if set(config.train.trackers) - {*TRACKERS}:
        raise UserError(
            f"--config.train.trackers is {tuple(config.train.trackers)}; known: "
            f"{', '.join(TRACKERS)}."
        )
    if config.model.id_neighbours > config.memory.neighbours:
        raise UserError(
            f"--config.model.id_neighbours is {config.model.id_neighbours}, but only "
            f"--config.memory.neighbours={config.memory.neighbours} of an item are kept."
        )
    if not 0 <= config.memory.power <= 1:
        raise UserError(f"--config.memory.power is {config.memory.power}; it must be in [0, 1].")
    if config.baseline.kind and config.model_devices > 1:
        raise UserError(
            f"--config.baseline.kind={config.baseline.kind} needs the whole catalogue on "
            f"each device; --config.model_devices is {config.model_devices}: set it to 1."
        )
    _validate_model(config.model)
    _validate_windows(config)
    _validate_content(config)
    _validate_large_catalogue(config)


def _validate_start(config: ml_collections.ConfigDict) -> None:
    if config.train.init_from and config.train.warm_start:
        raise UserError(
            "--config.train.init_from begins from a run on other data, --config.train.warm_start "
            "from one on earlier data: set one of them."
        )
    if config.train.warm_start and trains_encoder(config):
        raise UserError(
            "--config.train.warm_start goes with frozen encoders of content only: set "
            f"--config.content.{next(iter(trained_fields(config.content)))}=0."
        )


def _validate_held_out(config: ml_collections.ConfigDict) -> None:
    held_out, patience = tuple(config.evaluate.held_out), config.train.early_stopping_patience
    known = (("validation", "test"), ("test",), ())
    if held_out not in known:
        raise UserError(
            f"--config.evaluate.held_out is {held_out}; it must be one of "
            f"{', '.join(map(str, known))}."
        )
    if config.baseline.kind:
        if not held_out:
            raise UserError(
                "--config.evaluate.held_out=() leaves nothing to measure a baseline by."
            )
    elif "validation" not in held_out and patience:
        raise UserError(
            f"--config.evaluate.held_out={held_out} leaves nothing to validate. Set "
            "--config.train.early_stopping_patience=0 and the number of epochs; `tssr refit` takes "
            "it from a run."
        )


def _validate_split(evaluate: ml_collections.ConfigDict) -> None:
    cuts, usual = tuple(evaluate.cuts), default_config().evaluate
    if evaluate.split != "global_time":
        for name in ("cuts", "targets"):
            if evaluate[name] != usual[name]:
                raise UserError(
                    f"--config.evaluate.{name} is {evaluate[name]}, which only "
                    "--config.evaluate.split=global_time reads: set that, too."
                )
    for date in (cut for cut in cuts if isinstance(cut, str)):
        try:
            datetime.date.fromisoformat(date)
        except ValueError as error:
            raise UserError(
                f"--config.evaluate.cuts names {shown(date)!r}, which is no date like 2024-12-31."
            ) from error
    shares = [cut for cut in cuts if isinstance(cut, float)]
    if (
        len(cuts) not in {1, 2}
        or not all(isinstance(cut, float | str) for cut in cuts)
        or not all(0 < share < 1 for share in shares)
    ):
        raise UserError(
            f"--config.evaluate.cuts is {cuts}; it must be two shares between 0 and 1, or dates, "
            "e.g. (0.8, 0.9) or ('2024-05-01', '2024-06-01'); or one, (0.9,)."
        )


def _validate_content(config: ml_collections.ConfigDict) -> None:
    content = config.content
    modalities = tuple(content.modalities)
    if not modalities or len(set(modalities)) < len(modalities) or set(modalities) - {*MODALITIES}:
        raise UserError(
            f"--config.content.modalities is {modalities}; it must be some of 'text', 'image', "
            "'vectors' and 'categories', e.g. ('text',) or ('text', 'image')."
        )
    fields = tuple(content.category_fields)
    if ("categories" in modalities) != bool(fields) or len(set(fields)) < len(fields):
        raise UserError(
            f"--config.content.category_fields is {fields} and --config.content.modalities is "
            f"{modalities}. category_fields must name columns, each once, if modalities has "
            "'categories', and be () if not."
        )
    if bad := [name for name in fields if "=" in name]:
        raise UserError(
            f"--config.content.category_fields: {shown(repr(bad[0]))} has a '=' in its name: "
            "rename that column."
        )
    if content.fusion == "gate" and len(modalities) > 2:
        raise UserError(
            f"--config.content.fusion=gate lies between two modalities; "
            f"--config.content.modalities is {modalities}: set --config.content.fusion=sum."
        )
    text = content.text
    if text.trained_layers and text.encoder == "ngrams":
        raise UserError(
            f"--config.content.text.trained_layers is {text.trained_layers}, but hashed n-grams "
            "have nothing to train: set it to 0, or --config.content.text.encoder=bert."
        )
    if content.text.lora_rank and not content.text.trained_layers:
        raise UserError(
            f"--config.content.text.lora_rank is {content.text.lora_rank}, but no layer is to be "
            "adapted: set --config.content.text.trained_layers=-1, or the number of layers."
        )
    by_content = ranks_by_content(config.model.head, config.model.streams)
    if config.model.id_dropout and not by_content:
        raise UserError(
            f"--config.model.id_dropout is {config.model.id_dropout}; without "
            "--config.model.head=content an item has nothing but its id to be ranked by."
        )
    if config.model.head == "content" or by_content:
        _validate_content_head(config)
    for field, value in trained_fields(content).items():
        if tuple(config.model.memory):
            raise UserError(
                f"--config.content.{field} is {value}: memories go with frozen encoders only; set "
                "it to 0, or --config.model.memory=()."
            )
        if config.model_devices > 1:
            raise UserError(
                f"--config.content.{field} is {value}: an encoder that is trained needs the whole "
                "catalogue on each device; set --config.model_devices=1."
            )


def _validate_large_catalogue(config: ml_collections.ConfigDict) -> None:
    kind, cut = config.loss.next_item, config.model_devices > 1
    if kind == "sampled" and not config.corrections.exclude_padding_class:
        raise UserError(
            "--config.loss.next_item=sampled never draws the padding class. Set "
            "--config.corrections.exclude_padding_class=True."
        )
    if not config.optimizer.lazy_rows:
        return
    if near := config.model.id_neighbours:
        raise UserError(
            f"--config.model.id_neighbours is {near}: an item reads the id vectors of others, "
            "which --config.optimizer.lazy_rows leaves out: set one of them to 0 or False."
        )
    if cut:
        raise UserError(
            f"--config.optimizer.lazy_rows needs whole tables on each device; "
            f"--config.model_devices is {config.model_devices}: set it to 1."
        )
    if config.model.head != "classes" and kind != "sampled":
        raise UserError(
            f"--config.model.head={config.model.head} with --config.loss.next_item={kind} needs "
            "the vectors of all items, but --config.optimizer.lazy_rows updates only a few. Set "
            "--config.loss.next_item=sampled, or lazy_rows to False."
        )
    for field in trained_fields(config.content):
        raise UserError(
            f"--config.optimizer.lazy_rows goes with frozen features only: set "
            f"--config.content.{field}=0."
        )


def _validate_content_head(config: ml_collections.ConfigDict) -> None:
    if not reads_content(config.model.streams):
        raise UserError(
            "--config.model.head=content ranks items by their content; it needs the content stream "
            f"(--config.model.streams is {tuple(config.model.streams)})."
        )
    for field in trained_fields(config.content):
        raise UserError(
            f"--config.model.head={config.model.head} needs the whole catalogue's vectors at every "
            "step, which an encoder that is trained does not give: set "
            f"--config.content.{field}=0, or take --config=paper:NAME."
        )


def _validate_model(model: ml_collections.ConfigDict) -> None:
    if model.d_model % model.num_heads:
        raise UserError(
            f"--config.model.d_model is {model.d_model}, which {model.num_heads} heads "
            "(--config.model.num_heads) do not divide."
        )
    streams = tuple(model.streams)
    if sorted(streams) not in map(sorted, STREAM_SETS):
        known = " or ".join(map(str, STREAM_SETS))
        raise UserError(f"--config.model.streams is {streams}; it must be {known}.")
    if model.mixing == "experts" and len(streams) == 2:
        _validate_experts(model)
    if model.id_neighbours and streams == ("content",):
        raise UserError(
            f"--config.model.id_neighbours is {model.id_neighbours}, but a model of the content "
            "stream alone has no id vectors: set it to 0."
        )
    memory = tuple(model.memory)
    if set(memory) - {*MEMORIES} or len(set(memory)) < len(memory):
        raise UserError(
            f"--config.model.memory is {memory}; allowed, each at most once: "
            f"{', '.join(map(repr, MEMORIES))}."
        )
    if model.encoder == "gru" and (len(streams) > 1 or not model.num_unimodal_layers):
        raise UserError(
            "--config.model.encoder=gru encodes a single stream by at least one layer: set "
            "--config.model.streams=\"('id',)\" and --config.model.num_unimodal_layers=1."
        )


def _validate_experts(model: ml_collections.ConfigDict) -> None:
    if model.head != "tied":
        raise UserError(
            f"--config.model.mixing=experts scores items by the vectors that the streams read; "
            f"--config.model.head is {model.head!r}: set it to tied."
        )


def _validate_windows(config: ml_collections.ConfigDict) -> None:
    train, corrections = config.train, config.corrections
    if any(not 0 <= scale < math.inf for scale in train.time_noise):
        raise UserError(
            f"--config.train.time_noise is {tuple(train.time_noise)}; it must be a list of days, "
            "each 0 or more."
        )
    if train.windows == "strided" and train.window_stride > config.model.max_length:
        raise UserError(
            f"--config.train.window_stride is {train.window_stride}, but a window has "
            f"{config.model.max_length} items (--config.model.max_length), so some items would be "
            f"in no window. Set it to at most {config.model.max_length}."
        )
    if train.packing and not (
        corrections.valid_positions_only and corrections.pool_valid_positions
    ):
        raise UserError(
            "--config.train.packing leaves padding positions out, and the losses of the reference "
            "need them: it goes with --config.corrections.valid_positions_only and "
            "pool_valid_positions only."
        )
