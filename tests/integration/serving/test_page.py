"""The page in a real browser: a history is built, lists change, what is empty or fails is told."""

import io
import os
import re
import shutil

import httpx
import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from tests.support.services import start

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
# Where a browser is asked for, its absence is a failure.
if not CHROMIUM and not os.environ.get("TSSR_NEEDS_BROWSER"):
    pytest.skip("there is no chromium (Debian: apt-get install chromium)", allow_module_level=True)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip


@pytest.fixture(name="service", scope="module")
def fixture_service(workdir):
    process, address = start(workdir)
    yield process, address
    process.terminate()
    process.communicate(timeout=60)


@pytest.fixture(name="browser", scope="module")
def fixture_browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(name="page")
def fixture_page(browser, service):
    """The page without a history; anything from elsewhere, and any error of its own, fails."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(error))  # noqa: PLW0108 - no builtins
    page.goto(service[1])
    # It opens with a user of the data; the first lists are compiled, on busy machines for long.
    expect(page.locator("#answer")).to_be_visible(timeout=60_000)
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_role("heading", name="Popular")).to_be_visible()
    expect(page.locator("#answer")).to_be_hidden()
    yield page
    assert not errors
    elsewhere = [x for x in requests if not x.startswith((service[1], "data:"))]
    assert not elsewhere
    page.close()


def titles(page, name):
    cards = page.get_by_role("list", name=name).get_by_role("listitem")
    return [card.locator(".title").inner_text() for card in cards.all()]


def add_by_search(page, words):
    page.get_by_label("Find items").fill(words)
    page.get_by_role("list", name="Found items").get_by_role("button").first.click()


def test_a_history_is_built_and_lists_change(page, recommender):
    expect(page.locator("#about")).to_contain_text("20 items, ids and content")
    expect(page.get_by_text("Nothing chosen yet")).to_be_visible()
    assert len(titles(page, "Popular")) == 10
    add_by_search(page, "red car")
    for name in ("Id stream alone", "Both streams, mixed", "Content stream alone"):
        expect(page.get_by_role("heading", name=name)).to_be_visible()
    expect(
        page.get_by_text(re.compile(r"id stream weighs \d+%, the content stream \d+%\."))
    ).to_be_visible()
    first = titles(page, "Both streams, mixed")
    both = page.get_by_role("list", name="Both streams")
    both.get_by_role("button", name="Add").first.click()
    chips = page.locator("#history").get_by_role("button")
    expect(chips).to_have_count(2)
    expect(page.locator("#status")).to_have_text("Ranked all 20 items.")
    # The focus stays in the list that it was in.
    expect(both.get_by_role("button").first).to_be_focused()
    second = titles(page, "Both streams, mixed")
    assert second != first and len(second) == 10
    chips.first.click()
    expect(chips).to_have_count(1)
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_role("heading", name="Popular")).to_be_visible()
    expect(page.get_by_text("stream weighs")).to_be_hidden()


def test_what_is_known_of_a_user_is_told_and_asked_with(page):
    """This run reads no fields of users: the answers and questions are changed on their way."""
    asked = []

    def with_profile(route):
        found = route.fetch()
        route.fulfill(response=found, json=found.json() | {"profile": {"side": "left"}})

    def without_profile(route):
        own = route.request.post_data_json
        asked.append(own.pop("profiles", None))
        route.continue_(post_data=own)

    page.route("**/example*", with_profile)
    page.route("**/recommend", without_profile)
    page.get_by_role("button", name=re.compile("random user", re.IGNORECASE)).click()
    expect(page.locator("#answer")).to_be_visible()
    expect(page.locator("#profile")).to_have_text("side left")
    assert asked == [[{"side": "left"}]] * 3
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_role("heading", name="Popular")).to_be_visible()
    expect(page.locator("#profile")).to_have_text("")
    assert asked[3:] == [None]


def test_lists_are_the_recommender_s(page, recommender):
    page.get_by_label("Find items").fill("i7")
    page.get_by_role("list", name="Found items").get_by_role("button").first.click()
    expect(page.get_by_role("heading", name="Content stream alone")).to_be_visible()
    for name, stream in (
        ("Id stream alone", "id"),
        ("Both", "fused"),
        ("Content stream alone", "content"),
    ):
        (own,) = recommender.recommend([["i7"]], top_k=10, stream=stream)
        assert titles(page, name) == [x.title for x in own.items]


def test_similar_items(page, recommender):
    add_by_search(page, "i6")
    item = recommender.recommend([["i6"]], top_k=10)[0].items[0]
    both = page.get_by_role("list", name="Both streams")
    both.get_by_role("button", name="Similar").first.click()
    expect(page.get_by_role("heading", name=f"Similar to {item.title}")).to_be_focused()
    expected = recommender.similar_items(item.item, 10)
    assert titles(page, "Similar to") == [x.title for x in expected]
    cosines = page.locator("#similar .note")
    assert cosines.all_inner_texts() == [f"cosine {x.score:.2f}" for x in expected]
    # The keyboard stays in the dialog, and Escape ends it.
    page.keyboard.press("Escape")
    expect(page.locator("#similar")).to_be_hidden()
    both.get_by_role("button", name="Similar").first.click()
    page.get_by_role("button", name="Close").click()
    expect(page.locator("#similar")).to_be_hidden()


def test_answers_that_come_late_are_dropped(page):
    slow = []
    page.route("**/similar", lambda route: slow.append(route))  # noqa: PLW0108 - no builtins
    similar = page.get_by_role("list", name="Popular").get_by_role("button", name="Similar")
    first, second = (similar.nth(i).get_attribute("aria-label") for i in (0, 1))
    similar.nth(0).click()
    similar.nth(1).click()
    page.wait_for_timeout(200)
    assert len(slow) == 2
    slow[1].continue_()
    expect(page.get_by_role("heading", name=second)).to_be_visible()
    slow[0].continue_()
    page.wait_for_timeout(500)
    expect(page.get_by_role("heading", name=second)).to_be_visible()
    assert first != second
    page.get_by_role("button", name="Close").click()
    # Enter takes nothing that was found for other words.
    page.get_by_label("Find items").fill("red")
    found = page.get_by_role("list", name="Found items").get_by_role("button")
    expect(found.first).to_be_visible()
    page.route("**/search*", lambda route: None)  # never answered
    page.get_by_label("Find items").fill("red blue")
    page.keyboard.press("Enter")
    page.wait_for_timeout(300)
    expect(page.locator("#history").get_by_role("button")).to_have_count(0)


def test_a_service_that_comes_back(browser, service):
    page = browser.new_page()
    page.route("**/about", lambda route: route.abort())
    page.goto(service[1])
    expect(page.get_by_role("alert")).to_contain_text("can't be reached")
    page.unroute("**/about")
    add_by_search(page, "red")
    expect(page.get_by_role("list", name="Both streams")).to_be_visible()
    expect(page.get_by_role("alert")).to_be_hidden()
    page.close()


def test_by_keyboard_alone(page):
    page.locator("h1").click()
    page.keyboard.press("/")
    expect(page.get_by_label("Find items")).to_be_focused()
    expect(page.get_by_label("Find items")).to_have_value("")
    page.keyboard.type("red")
    found = page.get_by_role("list", name="Found items").get_by_role("button")
    expect(found.first).to_be_visible()
    page.keyboard.press("ArrowDown")
    expect(found.first).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#history").get_by_role("button")).to_have_count(1)
    expect(page.get_by_label("Find items")).to_be_focused()
    page.keyboard.type("blue")
    expect(found.first).to_be_visible()
    page.keyboard.press("Escape")
    expect(found).to_have_count(0)
    page.keyboard.press("Control+a")
    page.keyboard.press("Delete")
    page.keyboard.press("Tab")
    expect(page.locator("#history").get_by_role("button")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_text("Nothing chosen yet")).to_be_visible()


def test_what_is_not_found_and_what_fails_is_told(page):
    page.get_by_label("Find items").fill("nothing has this title")
    expect(page.get_by_text("No title has all of these words.")).to_be_visible()
    page.route("**/recommend", lambda route: route.abort())
    add_by_search(page, "green")
    expect(page.get_by_role("alert")).to_have_text(
        "The service can't be reached. Is it still running?"
    )
    page.unroute("**/recommend")
    page.route("**/recommend", lambda route: route.fulfill(status=503, json={"detail": "Busy."}))
    add_by_search(page, "green")
    # It asks again some times first.
    expect(page.get_by_role("alert")).to_have_text("The service refused (503): Busy.", timeout=9000)
    expect(page.get_by_role("list", name="Both streams")).to_have_count(0)
    page.unroute("**/recommend")
    add_by_search(page, "green")
    expect(page.get_by_role("heading", name="Both streams, mixed")).to_be_visible()
    expect(page.get_by_role("alert")).to_be_hidden()


def test_streams_that_can_not_be_asked_for_apart(page, service):
    about = {
        "name": "run",
        "items": 20,
        "streams": ["id", "content"],
        "apart": [],
        "examples": False,
    }
    page.route("**/about", lambda route: route.fulfill(json=about))
    page.goto(service[1])
    expect(page.get_by_text("Nothing chosen yet")).to_be_visible()
    add_by_search(page, "red car")
    expect(page.get_by_role("heading", name="Recommended")).to_be_visible()
    expect(page.locator("#random")).to_be_hidden()
    expect(page.get_by_role("heading", name="alone")).to_have_count(0)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_pictures_and_what_stands_for_those_that_are_not_there(page):
    items = [
        {
            "item": f"x{place}",
            "title": title,
            "text": text,
            "score": 1.0,
            "image": f"/image/{place}",
        }
        for place, title, text in ((1, "with a picture", ""), (2, "lost picture", "Its text"))
    ]
    result = {"items": items, "stream_weights": None, "unknown": [], "popular": False}
    page.route("**/recommend", lambda route: route.fulfill(json={"results": [result]}))
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    png = {"body": file.getvalue(), "content_type": "image/png"}
    page.route("**/image/1", lambda route: route.fulfill(**png))
    page.route("**/image/2", lambda route: route.fulfill(status=404))
    add_by_search(page, "red")
    cards = page.get_by_role("list", name="Both streams").get_by_role("listitem")
    expect(cards).to_have_count(2)
    first, second = cards.all()
    expect(first.locator("img")).to_be_visible()
    assert first.locator("img").evaluate("image => image.naturalWidth") == 8
    expect(second.locator("span.cover")).to_have_text("LP")
    expect(second.locator("img")).to_have_count(0)
    expect(second.locator(".text")).to_have_text("Its text")


def test_a_user_of_the_data_and_what_they_took_next(page, service, recommender):
    example = httpx.get(f"{service[1]}/example?number=7").json()
    page.goto(f"{service[1]}/#example=7")
    answer = page.locator("#answer")
    expect(answer).to_contain_text(f"They took next: {example['answer']['title']}")
    chips = page.locator("#history").get_by_role("button")
    assert chips.all_inner_texts() == [f"{cover(x)}\n{x['title']}" for x in example["history"]]
    history, times = [x["item"] for x in example["history"]], example["times"]
    streams = {"fused": "both", "id": "ids", "content": "content"}
    lists = {
        name: [
            x.item
            for x in recommender.recommend(
                [history], top_k=100, times=[times], stream=stream, keep_seen=False
            )[0].items
        ]
        for stream, name in streams.items()
    }
    target = example["answer"]["item"]
    places = [f"{name} {lists[name].index(target) + 1}" for name in streams.values()]
    expect(answer.locator(".rank").first).to_be_visible()
    assert answer.locator(".rank").all_inner_texts() == places
    # In each list it is marked, if it is shown; and each card tells the places of the others.
    for stream, name in streams.items():
        marked = page.locator(f"#of-{stream} .took")
        expect(marked).to_have_count(int(target in lists[name][:10]))
        first = page.locator(f"#of-{stream} li").first
        others = [own for own in streams.values() if own != name]
        item = lists[name][0]
        assert first.locator(".rank").all_inner_texts() == [
            f"{own} {lists[own].index(item) + 1}" for own in others
        ]
    # Another item makes it another history.
    page.locator("#of-fused").get_by_role("button", name="Add").first.click()
    expect(answer).to_be_hidden()
    page.get_by_role("button", name="A random user").click()
    expect(answer).to_be_visible()


def cover(item):
    """Letters of a generated cover: the first of the title's first two words."""
    return "".join(word[0] for word in item["title"].split()[:2]).upper()


def test_an_address_that_is_shared(page, browser, service):
    add_by_search(page, "i3")
    add_by_search(page, "i7")
    expect(page.locator("#history").get_by_role("button")).to_have_count(2)
    assert page.url == f"{service[1]}/#items=i3,i7"
    expect(page.locator("#status")).to_have_text("Ranked all 20 items.")
    shown, lists = page.locator("#history").inner_text(), page.locator("#lists").inner_text()
    other = browser.new_page()
    other.goto(page.url)
    expect(other.locator("#status")).to_have_text("Ranked all 20 items.")
    assert other.locator("#history").inner_text() == shown
    assert other.locator("#lists").inner_text() == lists
    other.close()


def test_why_an_item_is_in_a_list(page, recommender):
    add_by_search(page, "i3")
    add_by_search(page, "i12")
    both = page.get_by_role("list", name="Both streams")
    (own,) = recommender.recommend([["i3", "i12"]], top_k=10)
    expect(both.get_by_role("listitem").first.locator(".title")).to_have_text(own.items[0].title)
    asking = both.get_by_role("button", name="Why").first
    asking.click()
    among = recommender.restricted(only=["i3", "i12"])
    told = []
    for space, how in (("id", "ids"), ("content", "content")):
        (near,) = among.similar_items(own.items[0].item, 1, space)
        told.append(f"by {how} most like {near.title} (cosine {near.score:.2f})")
    # The first such question compiles a program.
    expect(both.locator(".why").first.get_by_role("listitem")).to_have_text(told, timeout=30_000)
    expect(asking).to_have_attribute("aria-expanded", "true")
    asking.click()
    expect(both.locator(".why").first).to_be_hidden()


def test_why_by_memories(page):
    reasons = [
        {"memory": memory, "score": score, "item": item, "title": title, "text": "", "image": None}
        for memory, score, item, title in (
            ("words", 2.0, "i1", "Red car"),
            ("co_occurrence", 1.5, "i2", "Blue boat"),
            ("co_occurrence", 1.0, "i1", "Red car"),
        )
    ]
    page.route("**/because", lambda route: route.fulfill(json={"results": [reasons]}))
    page.route("**/similar", lambda route: route.fulfill(status=400, json={"detail": "None."}))
    add_by_search(page, "i3")
    both = page.get_by_role("list", name="Both streams")
    both.get_by_role("button", name="Why").first.click()
    expect(both.locator(".why").first.get_by_role("listitem")).to_have_text(
        ["often taken around the time of Blue boat; Red car", "shares words with Red car"]
    )


def test_a_light_and_a_dark_look(page):
    """Both are readable: contrasts are at least 4.5 (WCAG 2.2, success criterion 1.4.3)."""
    add_by_search(page, "red")
    expect(page.get_by_role("heading", name="Content stream alone")).to_be_visible()
    page.locator("#of-fused").get_by_role("button", name="Why").first.click()
    expect(page.locator("#of-fused .why").first).to_be_visible()
    look, backgrounds = page.locator("#look"), {}
    for kind in ("light", "dark"):
        look.click()
        expect(look).to_have_text(f"Look: {kind}")
        for selector in (
            "h1",
            ".hint",
            ".cards .title",
            ".cards .note",
            ".cards button",
            ".why li",
        ):
            assert contrast(page, selector) >= 4.5, (kind, selector)
        picture = Image.open(io.BytesIO(page.screenshot())).convert("L")
        backgrounds[kind] = picture.getpixel((5, 5))
        # It is a picture of something: not of one colour.
        assert len(set(picture.resize((60, 45)).get_flattened_data())) > 10
    assert backgrounds["light"] > 200 and backgrounds["dark"] < 60
    page.reload()
    expect(look).to_have_text("Look: dark")
    look.click()
    expect(look).to_have_text("Look: system")


def contrast(page, selector):
    """Contrast of the first element's text with what is behind it, from 1 to 21."""
    colours = page.locator(selector).first.evaluate(
        """element => {
            let behind = element;
            while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)")
              behind = behind.parentElement;
            return [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor];
        }"""
    )
    lights = []
    for colour in colours:
        channels = [int(n) / 255 for n in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_on_a_phone_one_list_at_a_time(page):
    page.set_viewport_size({"width": 390, "height": 800})
    add_by_search(page, "red")
    both, ids = (page.get_by_role("heading", name=name) for name in ("Both streams", "Id stream"))
    expect(both).to_be_visible()
    expect(ids).to_be_hidden()
    page.get_by_role("button", name="Id stream alone").click()
    expect(ids).to_be_visible()
    expect(both).to_be_hidden()
    # The next lists are shown at the same tab.
    page.get_by_role("list", name="Id stream").get_by_role("button", name="Add").first.click()
    expect(page.locator("#history").get_by_role("button")).to_have_count(2)
    expect(ids).to_be_visible()
    for _ in range(4):
        page.get_by_role("list", name="Id stream").get_by_role("button", name="Add").first.click()
    expect(page.locator("#history").get_by_role("button")).to_have_count(6)
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 390
