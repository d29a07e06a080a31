"""The page in a real browser: a history is built, lists change, what is empty or fails is told."""

import io
import os
import re
import shutil

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
    """The page on a phone's screen; anything from elsewhere, and any error of its own, fails."""
    page = browser.new_page(viewport={"width": 390, "height": 800})
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(error))  # noqa: PLW0108 - no builtins
    page.goto(service[1])
    expect(page.get_by_role("heading", name="Popular")).to_be_visible()
    yield page
    assert not errors
    elsewhere = [x for x in requests if not x.startswith((service[1], "data:"))]
    assert not elsewhere
    page.close()


def titles(page, name):
    cards = page.get_by_role("list", name=name).get_by_role("listitem")
    return [card.locator("p").inner_text() for card in cards.all()]


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
        shown = [re.sub(r" \S+$", "", title) for title in titles(page, name)]
        assert shown == [x.title for x in own.items]


def test_similar_items(page, recommender):
    add_by_search(page, "i6")
    item = recommender.recommend([["i6"]], top_k=10)[0].items[0]
    both = page.get_by_role("list", name="Both streams")
    both.get_by_role("button", name="Similar").first.click()
    expect(page.get_by_role("heading", name=f"Similar to {item.title}")).to_be_focused()
    shown = [re.sub(r" \S+$", "", title) for title in titles(page, "Similar to")]
    assert shown == [x.title for x in recommender.similar_items(item.item, 10)]
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
    page.keyboard.press("Tab")
    expect(page.get_by_label("Find items")).to_be_focused()
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
    about = {"name": "run", "items": 20, "streams": ["id", "content"], "apart": []}
    page.route("**/about", lambda route: route.fulfill(json=about))
    page.goto(service[1])
    add_by_search(page, "red car")
    expect(page.get_by_role("heading", name="Recommended")).to_be_visible()
    expect(page.get_by_role("heading", name="alone")).to_have_count(0)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_pictures_and_what_stands_for_those_that_are_not_there(page):
    items = [
        {"item": f"x{place}", "title": title, "score": 1.0, "image": f"/image/{place}"}
        for place, title in ((1, "with a picture"), (2, "lost picture"))
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
    expect(second.locator(".letter")).to_have_text("L")
    expect(second.locator("img")).to_have_count(0)


def test_nothing_is_wider_than_a_phone(page):
    add_by_search(page, "red")
    expect(page.get_by_role("heading", name="Content stream alone")).to_be_visible()
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 390
