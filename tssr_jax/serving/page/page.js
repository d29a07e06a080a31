// The page: a history that is built by clicking, and what the service makes of it.

const LIST_LENGTH = 10;
const SEARCH_DELAY = 150; // milliseconds of not typing
const RETRIES = 3; // of a request that finds the service busy
const byId = (id) => document.getElementById(id);
const NAMES = {
  fused: "Both streams, mixed", id: "Id stream alone", content: "Content stream alone",
};

let about = null;
let chosen = []; // the history, [{item, title, image}], oldest first
let rankings = 0; // answers to older questions are dropped
let likenesses = 0;
let foundFor = ""; // the query that the shown items were found for

async function ask(path, body) {
  const options = body && {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  let response;
  for (let tries = 0; ; tries++) {
    try {
      response = await fetch(path, options);
    } catch {
      throw new Error("The service can't be reached. Is it still running?");
    }
    if (response.status !== 503 || tries === RETRIES) break;
    const seconds = Number(response.headers.get("Retry-After")) || 1;
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) {
    const detail = typeof answer.detail === "string" ? answer.detail : response.statusText;
    throw new Error(`The service refused (${response.status}): ${detail}`);
  }
  return answer;
}

// What failed, by what was asked for: one success does not hide another failure.
const failures = new Map();
function tell(what, error) {
  if (error) failures.set(what, error.message);
  else failures.delete(what);
  byId("error").textContent = [...new Set(failures.values())].join(" ");
  byId("error").hidden = failures.size === 0;
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function button(text, label, onclick) {
  const made = element("button", { type: "button", textContent: text, onclick });
  made.setAttribute("aria-label", label);
  return made;
}

const titleOf = (item) => item.title || item.item;

function letter(title) {
  const made = element("span", { className: "letter", textContent: [...title][0].toUpperCase() });
  made.setAttribute("aria-hidden", "true");
  return made;
}

function card(item, score) {
  const title = titleOf(item);
  let picture = letter(title);
  if (item.image) {
    picture = element("img", { src: item.image.slice(1), alt: "", loading: "lazy" });
    picture.onerror = () => picture.replaceWith(letter(title));
  }
  const text = element(
    "div", {},
    element("p", {}, title, " ", element("span", { className: "score", textContent: score })),
    button("Add", `Add ${title}`, (event) => add(item, event.currentTarget)),
    button("Similar", `Similar to ${title}`, () => showSimilar(item)),
  );
  return element("li", {}, picture, text);
}

const decimal = (score) => score.toFixed(2);
const times = (score) => `seen ${score.toLocaleString("en")} times`;

function add(item, from) {
  const list = from && from.closest("section");
  chosen.push(item);
  byId("search").value = "";
  showFound([], "");
  refresh(list && list.id);
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
  byId("gate-text").textContent =
    `The id stream weighs ${percent}%, the content stream ${100 - percent}%.`;
  byId("gate-id").style.width = `${percent}%`;
}

function showLists(streams, results) {
  byId("lists").replaceChildren(...results.map((result, i) => {
    const name = result.popular ? "Popular" : streams.length > 1 ? NAMES[streams[i]] : "Recommended";
    const heading = element("h2", { id: `list-${streams[i]}`, textContent: name });
    const tellScore = result.popular ? times : decimal;
    const cards = result.items.map((item) => card(item, tellScore(item.score)));
    const list = element("ol", { className: "cards" }, ...cards);
    list.setAttribute("aria-labelledby", heading.id);
    return element("section", { id: `of-${streams[i]}` }, heading, list);
  }));
}

// All lists: both streams mixed, and what each finds alone. The focus stays in the list it was in.
async function refresh(focused) {
  const mine = ++rankings;
  showHistory();
  byId("status").textContent = "Ranking …";
  const ids = chosen.map((item) => item.item);
  try {
    about = about || await ask("about");
    if (mine !== rankings) return;
    const kind = about.streams.length === 2 ? "ids and content" : about.streams[0];
    byId("about").textContent = `${about.name}: ${about.items.toLocaleString("en")} items, ${kind}`;
    const streams = ["fused", ...(ids.length ? about.apart : [])];
    const results = [];
    for (const stream of streams) {
      const answer = await ask("recommend", { histories: [ids], top_k: LIST_LENGTH, stream });
      if (mine !== rankings) return;
      results.push(answer.results[0]);
    }
    tell("lists", null);
    showGate(results[0].stream_weights);
    showLists(streams, results);
    byId("status").textContent = `Ranked all ${about.items.toLocaleString("en")} items.`;
    const stay = focused && (byId(focused) || byId("lists")).querySelector("button");
    if (stay && document.activeElement === document.body) stay.focus();
  } catch (error) {
    if (mine !== rankings) return;
    byId("status").textContent = "";
    byId("lists").replaceChildren();
    showGate(null);
    tell("lists", error);
  }
}

async function showSimilar(item) {
  const mine = ++likenesses;
  try {
    const answer = await ask("similar", { item: item.item, top_k: LIST_LENGTH });
    if (mine !== likenesses) return;
    tell("similar", null);
    byId("similar-label").textContent = `Similar to ${titleOf(item)}`;
    byId("similar-items").replaceChildren(...answer.items.map((x) => card(x, decimal(x.score))));
    byId("similar").hidden = false;
    byId("similar-label").focus();
    byId("similar").scrollIntoView({ block: "nearest" });
  } catch (error) {
    if (mine === likenesses) tell("similar", error);
  }
}

function showFound(items, query) {
  foundFor = query;
  byId("found").replaceChildren(...items.map((item) => element(
    "li", {}, button(titleOf(item), `Add ${titleOf(item)}`, () => {
      add(item);
      byId("search").focus();
    }),
  )));
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
      const answer = await ask(`search?q=${encodeURIComponent(query)}`);
      const late = byId("search").value.trim() !== query;
      if (late || byId("found").contains(document.activeElement)) return;
      tell("search", null);
      showFound(answer.items, query);
    } catch (error) {
      tell("search", error);
    }
  }, SEARCH_DELAY);
});

// From the search field down through what was found, and back.
document.addEventListener("keydown", (event) => {
  const found = [...byId("found").querySelectorAll("button")];
  const stops = [byId("search"), ...found];
  const here = stops.indexOf(document.activeElement);
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

byId("clear").addEventListener("click", () => {
  chosen = [];
  refresh();
  byId("search").focus();
});
byId("close-similar").addEventListener("click", () => {
  likenesses++;
  byId("similar").hidden = true;
  byId("search").focus();
});

refresh();
