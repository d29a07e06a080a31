// The page: a history that is built by clicking, and what the service makes of it.

const LIST_LENGTH = 10;
const SEARCH_DELAY = 150; // milliseconds of not typing
const byId = (id) => document.getElementById(id);
const NAMES = { fused: "Both streams, mixed", id: "Id stream alone", content: "Content stream alone" };

let about = null;
let chosen = []; // the history, [{item, title, image}], oldest first
let asked = 0; // answers to older questions are dropped

async function ask(path, body) {
  const options = body && {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The service can't be reached. Is it still running?");
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) {
    const detail = typeof answer.detail === "string" ? answer.detail : response.statusText;
    throw new Error(`The service refused (${response.status}): ${detail}`);
  }
  return answer;
}

function show(error) {
  byId("error").textContent = error ? error.message : "";
  byId("error").hidden = !error;
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function button(text, label, onclick) {
  const made = element("button", { type: "button", textContent: text, onclick });
  if (label) made.setAttribute("aria-label", label);
  return made;
}

const titleOf = (item) => item.title || item.item;

function card(item) {
  const title = titleOf(item);
  const picture = item.image
    ? element("img", { src: item.image.slice(1), alt: "", loading: "lazy" })
    : element("span", { className: "letter", textContent: title.slice(0, 1).toUpperCase() });
  if (!item.image) picture.setAttribute("aria-hidden", "true");
  const text = element(
    "div", {},
    element("p", {}, title, " ", element("span", {
      className: "score", textContent: item.score.toPrecision(3),
    })),
    button("Add", `Add ${title}`, () => add(item)),
    button("Similar", `Similar to ${title}`, () => showSimilar(item)),
  );
  return element("li", {}, picture, text);
}

function add(item) {
  chosen.push(item);
  byId("search").value = "";
  showFound([]);
  refresh();
}

function remove(place) {
  chosen.splice(place, 1);
  refresh();
  const chips = byId("history").querySelectorAll("button");
  (chips[Math.min(place, chips.length - 1)] || byId("search")).focus();
}

function showHistory() {
  byId("history").replaceChildren(...chosen.map((item, place) => element(
    "li", {}, button(titleOf(item), `Remove ${titleOf(item)}`, () => remove(place)),
  )));
  byId("no-history").hidden = chosen.length > 0;
  byId("clear").hidden = chosen.length === 0;
}

function showGate(weights) {
  byId("gate").hidden = !weights;
  if (!weights) return;
  const percent = Math.round(100 * weights.id);
  byId("gate-text").textContent = `The id stream weighs ${percent}%, the content stream ${100 - percent}%.`;
  byId("gate-id").style.width = `${percent}%`;
}

// All lists at once: what each stream finds alone, and both mixed between them.
async function refresh() {
  const mine = ++asked;
  showHistory();
  byId("status").textContent = "Ranking …";
  const ids = chosen.map((item) => item.item);
  const streams = about.streams.length === 2 && ids.length ? ["id", "fused", "content"] : ["fused"];
  try {
    const answers = await Promise.all(streams.map((stream) => ask(
      "recommend", { histories: [ids], top_k: LIST_LENGTH, stream },
    )));
    if (mine !== asked) return;
    show(null);
    const results = answers.map((answer) => answer.results[0]);
    const fused = results[streams.indexOf("fused")];
    showGate(fused.stream_weights);
    byId("lists").replaceChildren(...results.map((result, i) => {
      const name = result.popular ? "Popular" : streams.length > 1 ? NAMES[streams[i]] : "Recommended";
      const heading = element("h2", { id: `list-${streams[i]}`, textContent: name });
      const list = element("ol", { className: "cards" }, ...result.items.map(card));
      list.setAttribute("aria-labelledby", heading.id);
      return element("section", { className: streams[i] }, heading, list);
    }));
    byId("status").textContent = ids.length
      ? `Ranked all ${about.items.toLocaleString("en")} items.` : "";
  } catch (error) {
    if (mine !== asked) return;
    byId("status").textContent = "";
    show(error);
  }
}

async function showSimilar(item) {
  try {
    const answer = await ask("similar", { item: item.item, top_k: LIST_LENGTH });
    show(null);
    byId("similar-label").textContent = `Similar to ${titleOf(item)}`;
    byId("similar-items").replaceChildren(...answer.items.map(card));
    byId("similar").hidden = false;
    byId("similar-label").focus();
    byId("similar").scrollIntoView({ block: "nearest" });
  } catch (error) {
    show(error);
  }
}

function showFound(items, query = "") {
  byId("found").replaceChildren(...items.map((item) => element(
    "li", {}, button(titleOf(item), `Add ${titleOf(item)}`, () => {
      add(item);
      byId("search").focus();
    }),
  )));
  byId("nothing-found").hidden = items.length > 0 || !query;
}

let typing = 0;
byId("search").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(async () => {
    const query = byId("search").value.trim();
    if (!query) return showFound([]);
    try {
      const answer = await ask(`search?q=${encodeURIComponent(query)}`);
      if (byId("search").value.trim() !== query) return;
      show(null);
      showFound(answer.items, query);
    } catch (error) {
      show(error);
    }
  }, SEARCH_DELAY);
});

// From the search field down through what was found, and back.
document.addEventListener("keydown", (event) => {
  const found = [...byId("found").querySelectorAll("button")];
  const stops = [byId("search"), ...found];
  const here = stops.indexOf(document.activeElement);
  if (here < 0 || !found.length) return;
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (event.key === "Escape") {
    showFound([]);
    byId("search").focus();
  } else if (event.key === "Enter" && here === 0) {
    found[0].click();
  } else if (step) {
    event.preventDefault();
    stops[(here + step + stops.length) % stops.length].focus();
  }
});

byId("clear").addEventListener("click", () => {
  chosen = [];
  refresh();
  byId("search").focus();
});
byId("close-similar").addEventListener("click", () => {
  byId("similar").hidden = true;
  byId("search").focus();
});

(async () => {
  try {
    about = await ask("about");
    byId("about").textContent =
      `${about.workdir}: ${about.items.toLocaleString("en")} items, ` +
      `${about.streams.length === 2 ? "ids and content" : about.streams[0]}`;
    await refresh();
  } catch (error) {
    show(error);
  }
})();
