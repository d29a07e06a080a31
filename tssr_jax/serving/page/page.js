// The page: a history that is built by clicking, and what the service makes of it.

import { button, card, cover, element, marked, rankNotes, titleOf } from "./cards.js";
import { ask } from "./service.js";

const LIST_LENGTH = 10;
const RANKED = 100; // items of each list in which others are looked for
const SEARCH_DELAY = 150; // milliseconds of not typing
const byId = (id) => document.getElementById(id);
const NAMES = {
  fused: "Both streams, mixed", id: "Id stream alone", content: "Content stream alone",
};
const TABS = { fused: "Both", id: "Ids", content: "Content" };

let about = null;
let chosen = []; // the history, [{item, title, text, image, time, event}], oldest first
let profile = {}; // what is known of the user of an example, by fields
let answer = null; // what the user of an example took next
let shownList = "fused"; // on a phone
let rankings = 0; // answers to older questions are dropped
let likenesses = 0;
let foundFor = ""; // the query that the shown items were found for

// What failed, by what was asked for: one success does not hide another failure.
const failures = new Map();
function tell(what, error) {
  if (error) failures.set(what, error.message);
  else failures.delete(what);
  byId("error").textContent = [...new Set(failures.values())].join(" ");
  byId("error").hidden = failures.size === 0;
}

// The history, and the address that shares it.

function change(items, example = null) {
  chosen = items;
  if (example || !items.length) profile = example ? example.profile : {};
  answer = example && example.answer;
  let shared = "";
  if (example) shared = `#example=${example.number}`;
  else if (items.length) shared = `#items=${items.map((x) => encodeURIComponent(x.item)).join(",")}`;
  history.replaceState(null, "", shared || location.pathname);
}

function add(item, from) {
  const list = from && from.closest("section");
  const { time, event } = chosen.at(-1) ?? {};
  const own = { ...item };
  if (time !== undefined) own.time = time + 60;
  if (event !== undefined) own.event = about.usual_event;
  change([...chosen, own]);
  byId("search").value = "";
  showFound([], "");
  refresh(list && list.id);
}

function remove(place) {
  change(chosen.filter((_, i) => i !== place));
  refresh();
  const chips = byId("history").querySelectorAll("button");
  (chips[Math.min(place, chips.length - 1)] || byId("search")).focus();
}

async function showExample(number = null) {
  const mine = ++rankings;
  byId("status").textContent = "Looking for a user …";
  try {
    const found = await ask(number === null ? "example" : `example?number=${number}`);
    if (mine !== rankings) return undefined;
    tell("example", null);
    change(found.history.map((item, i) => ({
      ...item, time: found.times[i], event: found.events?.[i],
    })), found);
  } catch (error) {
    if (mine !== rankings) return undefined;
    tell("example", error);
  }
  return refresh();
}

async function open() {
  const mine = ++rankings;
  const [kind, value] = location.hash.slice(1).split("=", 2);
  try {
    about = await ask("about");
    if (mine !== rankings) return undefined;
    if (kind === "items" && value) {
      const ids = value.split(",").map(decodeURIComponent);
      const asked = ids.map((id) => `id=${encodeURIComponent(id)}`).join("&");
      const found = await ask(`items?${asked}`);
      if (mine !== rankings) return undefined;
      change(found.items);
    } else if (about.examples) {
      return showExample(kind === "example" && /^\d+$/.test(value) ? value : null);
    }
    tell("lists", null);
  } catch (error) {
    tell("lists", error);
  }
  return refresh();
}

function showHistory() {
  byId("history").replaceChildren(...chosen.map((item, place) => {
    const chip = button("", `Remove ${titleOf(item)}`, () => remove(place));
    chip.append(cover(item, "small"), element("span", { textContent: titleOf(item) }));
    const day = item.time === undefined ? [] : [new Date(1000 * item.time).toISOString().slice(0, 10)];
    chip.title = [...day, ...(item.event ? [item.event] : [])].join(", ");
    return element("li", {}, chip);
  }));
  byId("history").scrollLeft = byId("history").scrollWidth; // the newest ones
  byId("no-history").hidden = chosen.length > 0;
  const told = Object.entries(profile).map(([name, value]) => `${name} ${value}`);
  byId("profile").textContent = told.join(", ");
  byId("clear").hidden = chosen.length === 0;
  byId("random").hidden = !about?.examples;
}

// What the service answers.

function showGate(weights) {
  byId("gate").hidden = !weights;
  if (!weights) return;
  const percent = Math.round(100 * weights.id);
  byId("gate-text").textContent =
    `The id stream weighs ${percent}%, the content stream ${100 - percent}%.`;
  byId("gate-id").style.width = `${percent}%`;
}

const placeIn = (result, item) => {
  const place = result.items.findIndex((x) => x.item === item.item);
  return place < 0 ? null : place + 1;
};

function showAnswer(streams, results) {
  byId("answer").hidden = !answer;
  if (!answer) return;
  const ranks = streams.map((stream, i) => [stream, placeIn(results[i], answer)]);
  byId("answer").replaceChildren(
    cover(answer, "small"),
    element("span", {}, element("b", { textContent: "They took next: " }), titleOf(answer), " ",
      ...rankNotes(ranks, results[0].items.length)),
  );
}

function showLists(streams, results) {
  byId("lists").replaceChildren(...results.map((result, i) => {
    const name = result.popular ? "Popular" : streams.length > 1 ? NAMES[streams[i]] : "Recommended";
    const heading = element("h2", { id: `list-${streams[i]}`, textContent: name });
    const cards = result.items.slice(0, LIST_LENGTH).map((item, place) => {
      const ranks = streams.flatMap((stream, j) => (
        j === i ? [] : [[stream, placeIn(results[j], item)]]));
      const seen = element("span", {
        className: "note", textContent: `seen ${item.score.toLocaleString("en")} times`,
      });
      return card(item, {
        place: place + 1,
        notes: result.popular ? [seen] : rankNotes(ranks, result.items.length),
        history: chosen,
        took: answer?.item === item.item,
        add,
        similar: showSimilar,
      });
    });
    const list = element("ol", { className: "cards" }, ...cards);
    list.setAttribute("aria-labelledby", heading.id);
    return element("section", { id: `of-${streams[i]}` }, heading, list);
  }));
  byId("tabs").hidden = streams.length < 2;
  byId("tabs").replaceChildren(...streams.map((stream) => {
    const tab = button(TABS[stream], NAMES[stream], () => showTab(stream, streams));
    tab.id = `tab-${stream}`;
    return tab;
  }));
  showTab(streams.includes(shownList) ? shownList : streams[0], streams);
}

// On a phone one list is shown at a time.
function showTab(shown, streams) {
  shownList = shown;
  for (const stream of streams) {
    byId(`of-${stream}`).classList.toggle("shown", stream === shown);
    byId(`tab-${stream}`).setAttribute("aria-pressed", String(stream === shown));
  }
}

// An item that is pointed at is framed in all lists.
for (const [kind, frames] of [["pointerover", true], ["pointerout", false]]) {
  byId("lists").addEventListener(kind, (event) => {
    const item = event.target.closest("li[data-item]")?.dataset.item;
    const same = [...byId("lists").querySelectorAll("li[data-item]")].filter(
      (x) => x.dataset.item === item);
    for (const one of same) one.classList.toggle("same", frames && same.length > 1);
  });
}

// All lists: both streams mixed, and what each finds alone. The focus stays in the list it was in.
async function refresh(focused) {
  const mine = ++rankings;
  showHistory();
  byId("status").textContent = "Ranking …";
  const ids = chosen.map((item) => item.item);
  const times = chosen.map((item) => item.time);
  try {
    about = about || await ask("about");
    if (mine !== rankings) return;
    showHistory();
    const kind = about.streams.length === 2 ? "ids and content" : about.streams[0];
    byId("about").textContent = `${about.name}: ${about.items.toLocaleString("en")} items, ${kind}`;
    const streams = ["fused", ...(ids.length ? about.apart : [])];
    const asked = { histories: [ids], top_k: ids.length ? RANKED : LIST_LENGTH };
    if (ids.length && !times.includes(undefined)) asked.times = [times];
    const events = chosen.map((item) => item.event);
    if (ids.length && !events.includes(undefined)) asked.events = [events];
    if (Object.keys(profile).length) asked.profiles = [profile];
    const results = [];
    for (const stream of streams) {
      const told = await ask("recommend", { ...asked, stream });
      if (mine !== rankings) return;
      results.push(told.results[0]);
    }
    tell("lists", null);
    showGate(results[0].stream_weights);
    showAnswer(streams, results);
    showLists(streams, results);
    const items = `${about.items.toLocaleString("en")} items`;
    byId("status").textContent = about.index ? `Searched ${items} by an index.` : `Ranked all ${items}.`;
    const stay = focused && (byId(focused) || byId("lists")).querySelector("button");
    if (stay && document.activeElement === document.body) stay.focus();
  } catch (error) {
    if (mine !== rankings) return;
    byId("status").textContent = "";
    byId("lists").replaceChildren();
    byId("tabs").hidden = byId("answer").hidden = true;
    showGate(null);
    tell("lists", error);
  }
}

async function showSimilar(item) {
  const mine = ++likenesses;
  try {
    const told = await ask("similar", { item: item.item, top_k: LIST_LENGTH });
    if (mine !== likenesses) return;
    tell("similar", null);
    byId("similar-label").textContent = `Similar to ${titleOf(item)}`;
    byId("similar-items").replaceChildren(...told.items.map((x, place) => {
      const note = element("span", {
        className: "note", textContent: `cosine ${x.score.toFixed(2)}`,
      });
      const take = (other) => {
        byId("similar").close();
        add(other);
      };
      return card(x, { place: place + 1, notes: [note], add: take, similar: showSimilar });
    }));
    if (!byId("similar").open) byId("similar").showModal();
    byId("similar").scrollTop = 0;
    byId("similar-label").focus();
  } catch (error) {
    if (mine === likenesses) tell("similar", error);
  }
}

function showFound(items, query) {
  foundFor = query;
  byId("found").replaceChildren(...items.map((item) => {
    const row = button("", `Add ${titleOf(item)}`, () => {
      add(item);
      byId("search").focus();
    });
    row.append(cover(item, "small"), marked(titleOf(item), query));
    return element("li", {}, row);
  }));
  byId("nothing-found").hidden = items.length > 0 || !query;
  byId("number-found").textContent = items.length ? `${items.length} items found.` : "";
}

let typing = 0;
byId("search").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(async () => {
    const query = byId("search").value.trim();
    if (!query) return showFound([], "");
    try {
      const told = await ask(`search?q=${encodeURIComponent(query)}`);
      const late = byId("search").value.trim() !== query;
      if (late || byId("found").contains(document.activeElement)) return;
      tell("search", null);
      showFound(told.items, query);
    } catch (error) {
      tell("search", error);
    }
  }, SEARCH_DELAY);
});

// "/" goes to the search field; from there down through what was found, and back.
document.addEventListener("keydown", (event) => {
  const found = [...byId("found").querySelectorAll("button")];
  const stops = [byId("search"), ...found];
  const here = stops.indexOf(document.activeElement);
  if (event.key === "/" && here && !byId("similar").open) {
    event.preventDefault();
    byId("search").focus();
  }
  if (here < 0 || !found.length || event.isComposing) return;
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (event.key === "Escape") {
    showFound([], "");
    byId("search").focus();
  } else if (event.key === "Enter" && here === 0) {
    if (byId("search").value.trim() === foundFor) found[0].click();
  } else if (step) {
    event.preventDefault();
    stops[(here + step + stops.length) % stops.length].focus();
  }
});

byId("random").addEventListener("click", () => showExample());
byId("clear").addEventListener("click", () => {
  change([]);
  refresh();
  byId("search").focus();
});
byId("close-similar").addEventListener("click", () => byId("similar").close());
byId("similar").addEventListener("close", () => likenesses++);
window.addEventListener("hashchange", open);

// The look: that of the system, or light, or dark.
const LOOKS = ["system", "light", "dark"];
function showLook(look) {
  if (look === "system") delete document.documentElement.dataset.look;
  else document.documentElement.dataset.look = look;
  byId("look").textContent = `Look: ${look}`;
  byId("look").onclick = () => {
    const next = LOOKS[(LOOKS.indexOf(look) + 1) % LOOKS.length];
    localStorage.setItem("look", next);
    showLook(next);
  };
}
const kept = localStorage.getItem("look");
showLook(LOOKS.includes(kept) ? kept : "system");

open();
