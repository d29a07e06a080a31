// What an item looks like: a cover, a title, where each list has it, and why it is there.

import { ask } from "./service.js";

const SHORT = { fused: "both", id: "ids", content: "content" };
const MEMORIES = {
  co_occurrence: "often taken around the time of",
  words: "shares words with",
  repeats: "you had it before:",
};
const MOST_NAMED = 3; // items of the history by which a memory speaks

export const titleOf = (item) => item.title || item.item;

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export function button(text, label, onclick) {
  const made = element("button", { type: "button", textContent: text, onclick });
  made.setAttribute("aria-label", label);
  return made;
}

// A colour and letters that an item keeps, dark enough for white letters.
function generatedCover(item, size) {
  let hash = 0;
  for (const sign of item.item) hash = (hash * 31 + sign.codePointAt(0)) >>> 0;
  const all = titleOf(item).split(/\s+/).filter((word) => /[\p{L}\p{N}]/u.test(word));
  const named = all.filter((word) => /^\p{L}/u.test(word));
  const words = named.length ? named : all;
  const letters = words.slice(0, 2).map((word) => [...word.replace(/^[^\p{L}\p{N}]+/u, "")][0]);
  const made = element("span", { className: `cover ${size}` });
  made.textContent = letters.join("").toUpperCase() || "?";
  const hue = hash % 360;
  made.style.background =
    `linear-gradient(135deg, hsl(${hue} 55% 32%), hsl(${(hue + 50) % 360} 60% 24%))`;
  made.setAttribute("aria-hidden", "true");
  return made;
}

export function cover(item, size = "") {
  if (!item.image) return generatedCover(item, size);
  const picture = element("img", {
    src: item.image.slice(1), alt: "", loading: "lazy", className: `cover ${size}`,
  });
  picture.onerror = () => picture.replaceWith(generatedCover(item, size));
  return picture;
}

// The title with what was searched for underlined.
export function marked(title, query) {
  const words = query.split(/\s+/).filter(Boolean)
    .map((word) => word.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"));
  if (!words.length) return element("span", {}, title);
  const parts = title.split(new RegExp(`(${words.join("|")})`, "iu"));
  return element("span", {}, ...parts.map((part, i) => (
    i % 2 ? element("mark", { textContent: part }) : part)));
}

// Where lists have an item: [[stream, place or null]].
export function rankNotes(ranks, listed) {
  return ranks.map(([stream, place]) => element("span", {
    className: `rank note ${stream}`,
    textContent: `${SHORT[stream]} ${place ?? `> ${listed}`}`,
    title: place ? `Number ${place} of the list "${SHORT[stream]}"`
      : `Not among the first ${listed} of the list "${SHORT[stream]}"`,
  }));
}

// Sentences about what of the history speaks for an item.
async function reasons(item, history) {
  const ids = [...new Set(history.map((x) => x.item))];
  const timed = history.every((x) => x.time !== undefined);
  const [found] = (await ask("because", {
    history: history.map((x) => x.item),
    items: [item.item],
    ...(timed && { times: history.map((x) => x.time) }),
  })).results;
  const told = [];
  for (const [memory, how] of Object.entries(MEMORIES)) {
    const own = new Set(found.filter((x) => x.memory === memory).map(titleOf));
    if (own.size) told.push(`${how} ${[...own].slice(0, MOST_NAMED).join("; ")}`);
  }
  const others = ids.filter((id) => id !== item.item);
  for (const [space, how] of [["id", "by ids"], ["content", "by content"]]) {
    if (!others.length) break;
    try {
      const asked = { item: item.item, only: others, top_k: 1, space };
      const [near] = (await ask("similar", asked)).items;
      if (near) told.push(`${how} most like ${titleOf(near)} (cosine ${near.score.toFixed(2)})`);
    } catch (error) {
      if (!/\(400\)/.test(error.message)) throw error; // a model without such vectors
    }
  }
  return told;
}

function why(item, history) {
  const list = element("ul", {});
  const failure = element("p", {});
  const region = element("div", { className: "why", hidden: true }, list, failure);
  const asking = button("Why", `Why ${titleOf(item)}`, async () => {
    region.hidden = !region.hidden;
    asking.setAttribute("aria-expanded", String(!region.hidden));
    if (region.hidden || list.childElementCount) return;
    failure.textContent = "";
    try {
      const told = await reasons(item, history);
      if (!told.length) told.push("nothing of the history speaks for it by itself");
      list.replaceChildren(...told.map((text) => element("li", { textContent: text })));
    } catch (error) {
      failure.textContent = error.message; // the next click asks again
    }
  });
  asking.setAttribute("aria-expanded", "false");
  return [asking, region];
}

// A card of a list. `told`: {place, notes, history, took, add, similar}.
export function card(item, told) {
  const title = titleOf(item);
  const [asking, region] = told.history?.length ? why(item, told.history) : ["", ""];
  const text = element(
    "div", {},
    element("p", { className: "title", textContent: title }),
    told.took ? element("p", { className: "mark", textContent: "What they took next" }) : "",
    item.text ? element("p", { className: "text", textContent: item.text }) : "",
    told.notes.length ? element("p", {}, ...told.notes) : "",
    button("Add", `Add ${title}`, (event) => told.add(item, event.currentTarget)),
    button("Similar", `Similar to ${title}`, () => told.similar(item)),
    asking,
    region,
  );
  const place = element("span", { className: "place", textContent: told.place });
  const made = element("li", { className: told.took ? "took" : "" }, place, cover(item), text);
  made.dataset.item = item.item;
  return made;
}
