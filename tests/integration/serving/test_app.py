"""The service's answers: those of the recommender; and its refusals."""

import asyncio
import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from tssr_jax.serving.app import PAGE, create_app
from tssr_jax.serving.batching import Batcher
from tssr_jax.serving.limits import Timeout
from tssr_jax.serving.service import Limits
from tssr_jax.serving.title_search import TitleSearch

HISTORIES = [["i3", "i4", "i5"], [], ["nothing", "i9"]]


@pytest.fixture(name="client", scope="module")
def fixture_client(recommender):
    with TestClient(create_app(recommender, "runs/mine")) as client:
        yield client


@pytest.mark.parametrize("stream", ["fused", "id", "content"])
def test_lists_are_the_recommender_s(client, recommender, stream):
    asked = {"histories": HISTORIES, "top_k": 4, "stream": stream}
    answer = client.post("/recommend", json=asked)
    assert answer.status_code == 200
    expected = recommender.recommend(HISTORIES, top_k=4, stream=stream)
    for told, own in zip(answer.json()["results"], expected, strict=True):
        assert [x["item"] for x in told["items"]] == [x.item for x in own.items]
        assert [x["title"] for x in told["items"]] == [x.title for x in own.items]
        assert [x["score"] for x in told["items"]] == pytest.approx([x.score for x in own.items])
        assert told["popular"] == own.popular and told["unknown"] == list(own.unknown)
        assert (told["stream_weights"] is None) == own.popular


def test_filters_and_seen_items(client, recommender):
    asked = {"histories": [["i3", "i4"]], "top_k": 20, "only": ["i3", "i7", "i8"], "never": ["i8"]}
    (told,) = client.post("/recommend", json=asked).json()["results"]
    assert [x["item"] for x in told["items"]] == ["i7"]
    (told,) = client.post("/recommend", json=asked | {"keep_seen": True}).json()["results"]
    assert {x["item"] for x in told["items"]} == {"i3", "i7"}
    # More than the catalogue has is all that it has.
    (told,) = client.post("/recommend", json={"histories": [["i3"]], "top_k": 200}).json()[
        "results"
    ]
    assert len(told["items"]) == 19
    refused = client.post("/recommend", json=asked | {"only": ["nothing"]})
    assert refused.status_code == 400 and "names no item" in refused.json()["detail"]


def test_similar_items_and_explanations(client, recommender):
    told = client.post("/similar", json={"item": "i6", "top_k": 3, "space": "content"}).json()
    expected = recommender.similar_items("i6", 3, "content")
    assert [x["item"] for x in told["items"]] == [x.item for x in expected]
    asked = {"item": "i6", "space": "id", "only": ["i3", "i9", "i6"]}
    told = client.post("/similar", json=asked).json()
    expected = [x for x in recommender.similar_items("i6", 20, "id") if x.item in ("i3", "i9")]
    assert [x["item"] for x in told["items"]] == [x.item for x in expected]
    assert [x["score"] for x in told["items"]] == pytest.approx([x.score for x in expected])
    missing = client.post("/similar", json={"item": "nothing"})
    assert missing.status_code == 404 and missing.json()["detail"] == "There is no item 'nothing'."
    told = client.post("/explain", json={"history": ["i3", "nothing", "i4"]}).json()
    own = recommender.explain(["i3", "nothing", "i4"])
    assert [x["id_weight"] for x in told["items"]] == pytest.approx(own.id_weight.tolist())
    assert told["layers"] == list(own.layers) and told["unknown"] == ["nothing"]
    assert told["attention"]["id"][0] == pytest.approx(own.attention["id"][0].tolist())
    assert client.post("/explain", json={"history": ["nothing"]}).status_code == 400


def test_titles_are_searched(client, recommender):
    found = client.get("/search", params={"q": "RED car", "limit": 50}).json()["items"]
    titles = recommender.items.titles
    expected = {
        i for i, t in zip(recommender.items.ids, titles, strict=True) if "red" in t and "car" in t
    }
    assert {x["item"] for x in found} == expected
    counts = [recommender.items.counts[recommender.items.class_of(x["item"])] for x in found]
    assert counts == sorted(counts, reverse=True)
    assert len(client.get("/search", params={"q": "e", "limit": 3}).json()["items"]) == 3
    assert client.get("/search", params={"q": "(a+"}).json()["items"] == []  # no pattern
    assert client.get("/search").status_code == 422
    assert TitleSearch(recommender.items)("  ", 5) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"histories": []},
        {"histories": [[]] * 65},
        {"histories": [["i1"] * 1001]},
        {"histories": [[""]]},
        {"histories": [[3.5]]},
        {"histories": [[True]]},
        {"histories": [["i1"]], "top_k": 0},
        {"histories": [["i1"]], "top_k": "5"},
        {"histories": [["i1"]], "topk": 5},
        {"histories": [["i1"]], "stream": "image"},
    ],
)
def test_what_makes_no_sense_is_refused(client, wrong):
    assert client.post("/recommend", json=wrong).status_code == 422


def test_ids_may_be_whole_numbers_and_wrong_names_are_told_in_short(client):
    answer = client.post("/recommend", json={"histories": [[3, " i1 "]]}).json()
    assert answer["results"][0]["unknown"] == ["3"] and not answer["results"][0]["popular"]
    answer = client.post("/recommend", json={"histories": [["i1"]], "x" * 5000: 1})
    assert answer.status_code == 422 and len(answer.text) < 500


def test_a_body_that_is_no_json(client):
    for body in (b"{", b"\xff", b"[" * 2000, b'{"histories": [["\\ud800"]]}', b'{"\\ud800": 1}'):
        headers = {"Content-Type": "application/json"}
        answer = client.post("/recommend", content=body, headers=headers)
        assert answer.status_code in {400, 422} and answer.json()["detail"]
    many = {"histories": [[1.5] * 1000] * 64}
    assert len(client.post("/recommend", json=many).json()["detail"]) == 20


def test_a_long_body_is_refused_before_it_is_read(recommender):
    with TestClient(create_app(recommender, "run", Limits(most_bytes=1000))) as client:
        body = b'{"histories": [["' + b"x" * 2000 + b'"]]}'
        for content in (body, (body[i : i + 100] for i in range(0, len(body), 100))):
            refused = client.post("/recommend", content=content)
            assert refused.status_code == 413
            assert refused.json()["detail"] == "A request's body may have 1,000 bytes."


def test_examples_are_what_users_took_and_took_next(recommender):
    folder = Path(recommender.run.config.data.raw_dir)
    rows = [line.split(",") for line in (folder / "interactions.csv").read_text().split()[1:]]
    taken = {}
    for user, item, time in sorted(rows, key=lambda row: int(row[2])):
        taken.setdefault(user, []).append((item, int(time) // 60 * 60))
    titles = dict(zip(recommender.items.ids, recommender.items.titles, strict=True))
    with TestClient(create_app(recommender, "run", examples=True)) as client:
        assert client.get("/about").json()["examples"]
        found = [client.get(f"/example?number={number}").json() for number in range(40)]
        drawn = [client.get("/example").json() for _ in range(8)]
        assert client.get("/example?number=47").json() == found[7]
        for header in ("X-Forwarded-For", "Forwarded", "Via"):  # by proxies
            assert client.get("/example", headers={header: "x"}).status_code == 404
            assert not client.get("/about", headers={header: "x"}).json()["examples"]
    for one in found:
        assert all(x["title"] == titles[x["item"]] for x in (*one["history"], one["answer"]))
    # Each user's newest item is the answer, after all that they took before.
    told = [
        [(x["item"], time) for x, time in zip(one["history"], one["times"], strict=True)]
        for one in found
    ]
    answers = [one["answer"]["item"] for one in found]
    expected = sorted((own[:-1], own[-1][0]) for own in taken.values())
    assert sorted(zip(told, answers, strict=True)) == expected
    assert all(one == found[one["number"]] for one in drawn)
    assert len({one["number"] for one in drawn}) > 1


def test_no_examples_unless_they_are_asked_for(client, recommender, monkeypatch):
    assert not client.get("/about").json()["examples"]
    refused = client.get("/example")
    assert refused.status_code == 404 and "no histories" in refused.json()["detail"]
    # A run that was carried without its users has none to show, and looks for no raw files.
    alone = dataclasses.replace(recommender.run, has_users=lambda: False, users=None)
    monkeypatch.setattr(recommender, "run", alone)
    with TestClient(create_app(recommender, "run", examples=True)) as without:
        assert not without.get("/about").json()["examples"]
        assert without.get("/example").status_code == 404


def test_items_by_their_ids_and_their_texts(recommender, monkeypatch):
    texts = [f"{title}. About it." for title in recommender.items.titles]
    texts[3] = f"{recommender.items.titles[3]}. {'long ' * 100}"
    texts[4] = recommender.items.titles[4]
    monkeypatch.setitem(recommender.run.data.__dict__, "texts", texts)
    ids = recommender.items.ids
    with TestClient(create_app(recommender, "run")) as client:
        asked = {"id": [ids[4], "nothing", ids[3], ids[2], ids[4]]}
        told = client.get("/items", params=asked).json()["items"]
    assert [x["item"] for x in told] == [ids[4], ids[3], ids[2], ids[4]]
    long = "long " * 31 + "long ..."
    assert [x["text"] for x in told] == ["", long, "About it.", ""]


def test_health_numbers_description_page(client):
    assert client.get("/healthz").json() == {"status": "ok"}
    about = client.get("/about").json()
    assert about["items"] == 20
    assert about["streams"] == about["apart"] == ["id", "content"]
    client.get("/nowhere")
    numbers = client.get("/metrics").text
    assert 'tssr_requests_total{path="/healthz",status="200"}' in numbers
    assert 'tssr_requests_total{path="other",status="404"}' in numbers
    assert "/nowhere" not in numbers
    page = client.get("/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for name in ("page.js", "page.css"):
        assert f"page/{name}" in page.text
    for path in PAGE.iterdir():
        assert client.get(f"/page/{path.name}").status_code == 200
    assert "//" not in client.get("/docs").text.replace("</", "").replace("/*", "")
    assert client.get("/openapi.json").json()["paths"].keys() >= {"/recommend", "/similar"}


def test_pictures_come_from_the_data_s_folder_only(recommender, monkeypatch, tmp_path):
    (tmp_path / "data").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "data" / "one.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "outside.png")
    data, config = recommender.run.data, recommender.run.config
    (tmp_path / "data" / "interactions.csv").write_text("user,item,timestamp\n")
    images = ["one.png", "../outside.png", "missing.png", "https://example.org/x.png", ""]
    images.append("interactions.csv")
    monkeypatch.setitem(data.__dict__, "images", images + [""] * 14)
    monkeypatch.setitem(config.data, "raw_dir", str(tmp_path / "data"))
    with TestClient(create_app(recommender, "run")) as client:
        statuses = [client.get(f"/image/{place}").status_code for place in range(7)]
        assert statuses == [404, 200, 404, 404, 404, 404, 404]
        (told,) = client.post("/recommend", json={"histories": [[]], "top_k": 20}).json()["results"]
        named = [x["image"] for x in told["items"] if x["image"]]
        # Whether a picture is there is found out when it is asked for.
        assert sorted(named) == ["/image/1", "/image/2", "/image/3", "/image/6"]
        assert client.get("/image/1").headers["content-type"] == "image/png"


class Slow:
    """A recommender whose rankings wait for a sign."""

    def __init__(self, recommender):
        self.recommender = recommender
        self.items, self.model = recommender.items, recommender.model
        self.run, self.batch_size = recommender.run, recommender.batch_size
        self.go = threading.Event()
        self.calls = []

    def recommend(self, histories, top_k, **options):
        self.go.wait(20)
        self.calls.append(len(histories))
        return self.recommender.recommend(histories, top_k, **options)


def test_more_at_once_than_announced_get_503_and_the_others_their_lists(recommender):
    slow = Slow(recommender)
    app = create_app(slow, "run", Limits(most_at_once=5))
    asked = {"histories": [["i3"]], "top_k": 2}

    async def run():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            first = []
            for number in (1, 4):
                for _ in range(number):
                    first.append(asyncio.create_task(client.post("/recommend", json=asked)))
                await asyncio.sleep(0.3)
            refused = [await client.post("/recommend", json=asked) for _ in range(3)]
            healthy = await client.get("/healthz")
            slow.go.set()
            answered = [await task for task in first]
            after = await client.post("/recommend", json=asked)
        return answered, refused, healthy, after

    answered, refused, healthy, after = asyncio.run(run())
    assert [x.status_code for x in answered] == [200] * 5 and healthy.status_code == 200
    assert [x.status_code for x in refused] == [503] * 3
    assert refused[0].headers["retry-after"] == "1"
    assert after.json() == answered[0].json()
    assert slow.calls == [1, 4, 1]  # those that came during the first ranking make up the second


def test_an_answer_that_takes_too_long(recommender):
    slow = Slow(recommender)
    asked = {"histories": [["i3"]], "top_k": 2}
    recommender.recommend(asked["histories"], 2)  # compiled
    with TestClient(create_app(slow, "run", Limits(seconds=3))) as client:
        late = client.post("/recommend", json=asked)
        assert late.status_code == 504 and "3 seconds" in late.json()["detail"]
        slow.go.set()
        assert client.post("/recommend", json=asked).status_code == 200


def test_a_batch_has_no_more_histories_than_are_ranked_at_a_time(recommender):
    slow = Slow(recommender)
    slow.go.set()

    async def run():
        batcher = Batcher(slow, ThreadPoolExecutor(1))
        asked = [[["i3"]] * number for number in (3, 4, 3, 9, 1)]
        lists = await asyncio.gather(
            *(batcher.recommend(x, 2, keep_seen=False, stream="fused") for x in asked)
        )
        return [len(own) for own in lists]

    assert asyncio.run(run()) == [3, 4, 3, 9, 1]
    assert slow.calls == [7, 3, 9, 1]  # of 8; a larger request is a batch of its own


def test_no_kind_of_request_waits_for_all_of_another(recommender):
    slow, order = Slow(recommender), []

    async def run():
        batcher = Batcher(slow, ThreadPoolExecutor(1))

        async def ask(name, stream):
            await batcher.recommend([["i3"]] * 8, 2, keep_seen=False, stream=stream)
            order.append(name)

        tasks = [asyncio.create_task(ask(f"both {i}", "fused")) for i in range(4)]
        tasks.append(asyncio.create_task(ask("alone", "id")))
        await asyncio.sleep(0.1)
        slow.go.set()
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert order == ["both 0", "alone", "both 1", "both 2", "both 3"]


def test_each_caller_gets_the_lists_that_it_asked_for(recommender):
    """Of histories, lengths, filters and streams that differ, and come at the same time."""
    asked = [
        ([["i3", "i4"], ["i9"]], 3, {"keep_seen": False, "stream": "fused"}),
        ([["i15", "i16", "i17"]], 5, {"keep_seen": False, "stream": "fused"}),
        ([["i15", "i16", "i17"]], 5, {"keep_seen": True, "stream": "fused"}),
        ([["i7"]], 2, {"keep_seen": False, "stream": "content"}),
        ([["i12"]], 2, {"keep_seen": False, "stream": "fused"}),
    ]
    slow = Slow(recommender)

    async def run():
        batcher = Batcher(slow, ThreadPoolExecutor(1))
        tasks = [
            asyncio.create_task(batcher.recommend(histories, top_k, **options))
            for histories, top_k, options in asked
        ]
        await asyncio.sleep(0.1)
        slow.go.set()
        return await asyncio.gather(*tasks)

    answers = asyncio.run(run())
    assert slow.calls == [4, 1, 1]  # those with the same options together
    for (histories, top_k, options), lists in zip(asked, answers, strict=True):
        alone = recommender.recommend(histories, top_k, **options)
        assert [[x.item for x in own.items] for own in lists] == [
            [x.item for x in own.items] for own in alone
        ]
        assert all(len(own.items) == top_k for own in lists)
    firsts = {lists[0].items[0].item for lists in answers}
    assert len(firsts) > 1  # lists that were exchanged would show


def test_a_slow_reader_gets_all_of_a_long_answer(recommender):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(3):
            await asyncio.sleep(0.2)
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def run():
        transport = httpx.ASGITransport(Timeout(app, 0.3))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return (await client.get("/")).text

    assert asyncio.run(run()) == "xxx"


def test_a_batch_that_fails_fails_for_all_who_wait_and_for_nobody_else(recommender):
    class Broken:
        batch_size, items = 8, recommender.items

        def recommend(self, histories, top_k, **_):
            if top_k == 9:
                raise ValueError("broken")
            return recommender.recommend(histories, top_k)

    async def run():
        batcher = Batcher(Broken(), ThreadPoolExecutor(1))

        def ask(k):
            return batcher.recommend([["i3"]], k, keep_seen=False, stream="fused")

        both = await asyncio.gather(ask(9), ask(2), return_exceptions=True)
        (own,) = await ask(3)
        return both, own

    both, own = asyncio.run(run())
    assert all(isinstance(x, ValueError) for x in both) and len(own.items) == 3
