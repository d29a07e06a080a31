"""Requests and responses of the service; its OpenAPI description is built from these."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_HISTORIES = 64
MOST_ITEMS = 1_000
MOST_FILTERED = 10_000
LONGEST_LIST = 200
LONGEST_ID = 500

ItemId = Annotated[str, Field(min_length=1, max_length=LONGEST_ID, examples=["i3"])] | int
History = Annotated[list[ItemId], Field(max_length=MOST_ITEMS, examples=[["i3", "i4"]])]
Times = Annotated[
    list[Annotated[float, Field(ge=-1e11, le=1e11)]],
    Field(max_length=MOST_ITEMS, description="Seconds since 1970.", examples=[[1.7e9, 1.7e9]]),
]
Events = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=LONGEST_ID)]],
    Field(max_length=MOST_ITEMS, description="Names, one for each item."),
]
_Name = Annotated[str, Field(min_length=1, max_length=LONGEST_ID)]
Profile = Annotated[
    dict[_Name, Annotated[str, Field(max_length=LONGEST_ID)] | bool | int | float | None],
    Field(max_length=100, description="What is known of the user: values by fields."),
]
TopK = Annotated[int, Field(ge=1, le=LONGEST_LIST)]


class _Request(BaseModel):
    """Unknown fields are errors: they are probably misspelt."""

    model_config = ConfigDict(extra="forbid", strict=True)


class RecommendRequest(_Request):
    """Histories, oldest item first, and what may be recommended for them.

    `times`, one for each item of a history, are for models with memories: to these, items of one
    minute (a basket) have no order, and the newest item tells what was popular then. Without times
    the newest item is of now. `events` are for models whose data has them, such as views and
    purchases; without, each item is of the first that is predicted. `profiles` are for models that
    read fields of users; values that training has not seen tell nothing.
    """

    histories: Annotated[list[History], Field(min_length=1, max_length=MOST_HISTORIES)]
    times: Annotated[list[Times | None], Field(max_length=MOST_HISTORIES)] | None = None
    events: Annotated[list[Events | None], Field(max_length=MOST_HISTORIES)] | None = None
    profiles: Annotated[list[Profile | None], Field(max_length=MOST_HISTORIES)] | None = None
    top_k: TopK = 10
    keep_seen: bool | None = None
    only: Annotated[list[ItemId], Field(min_length=1, max_length=MOST_FILTERED)] | None = None
    never: Annotated[list[ItemId], Field(max_length=MOST_FILTERED)] = []
    stream: Literal["fused", "id", "content"] = "fused"


class SimilarRequest(_Request):
    """An item, and the vectors that other items are compared by."""

    item: ItemId
    top_k: TopK = 10
    space: Literal["scores", "id", "content"] = "scores"
    only: Annotated[list[ItemId], Field(min_length=1, max_length=MOST_FILTERED)] | None = None


class ExplainRequest(_Request):
    """A history, oldest item first."""

    history: Annotated[list[ItemId], Field(min_length=1, max_length=MOST_ITEMS)]
    events: Events | None = None
    profile: Profile | None = None


class BecauseRequest(_Request):
    """A history, oldest item first, and items that memories may speak for."""

    history: Annotated[list[ItemId], Field(min_length=1, max_length=MOST_ITEMS)]
    items: Annotated[list[ItemId], Field(min_length=1, max_length=LONGEST_LIST)]
    times: Times | None = None


class Item(BaseModel):
    """An item; `image` is where its picture should be, null without one.

    `text` is the beginning of its text after the title.
    """

    item: str
    title: str
    text: str
    image: str | None


class Scored(Item):
    """An item of a list. A higher score is better."""

    score: float


class StreamWeights(BaseModel):
    """How much each stream weighs; they sum to 1."""

    id: float
    content: float


class ListOfItems(BaseModel):
    """What a history gets; see docs/guides/recommending.md."""

    items: list[Scored]
    stream_weights: StreamWeights | None
    unknown: list[str]
    popular: bool


class RecommendResponse(BaseModel):
    """One list for each history, in their order."""

    results: list[ListOfItems]


class ItemsResponse(BaseModel):
    """Some items."""

    items: list[Item]


class SimilarResponse(BaseModel):
    """The items that are most alike, and how much: cosines."""

    items: list[Scored]


class Looked(Item):
    """An item of a history, and the weight of the id stream at its position."""

    id_weight: float | None


class ExplainResponse(BaseModel):
    """What the model looks at; `attention` is by stream, layer and position of the newest item."""

    items: list[Looked]
    layers: list[str]
    attention: dict[str, list[list[float]]]
    unknown: list[str]


class Reason(Item):
    """An item of a history that a memory speaks by, and what it adds to a score."""

    memory: str
    score: float


class BecauseResponse(BaseModel):
    """The reasons of each item, in the order of the request's, strongest first."""

    results: list[list[Reason]]


class ExampleResponse(BaseModel):
    """What a user of the data took, oldest first, and took next, which training has not read."""

    number: int
    history: list[Item]
    times: list[float] = Field(description="Seconds since 1970, one for each item.")
    events: list[str] | None = Field(description="One for each item; null if none are read.")
    profile: dict[str, str] = Field(description="What is known of the user, by fields.")
    answer: Item


class About(BaseModel):
    """What is served.

    `events` are those that the model reads, the usual one where none is told; `fields` are those of
    users that it reads, with the values that it knows.
    """

    name: str
    items: int
    streams: list[str]
    events: list[str]
    usual_event: str
    fields: dict[str, list[str]]
    apart: list[str] = Field(description="Streams that can be asked for by themselves.")
    index: bool = Field(description="Whether lists are found by an index, nearly exactly.")
    max_length: int
    most_at_once: int
    examples: bool = Field(description="Whether GET /example shows histories of the data.")


class Problem(BaseModel):
    """Why a request was not answered."""

    detail: str
