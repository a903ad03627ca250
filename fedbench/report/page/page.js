// Sorting, filtering, and the runs behind a cell. The page is whole without it.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
document.documentElement.classList.add("scripted");

const make = (tag, text, attributes = {}) => {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
};
const act = (element, does) => {
  element.tabIndex = 0;
  element.addEventListener("click", does);
  element.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); does(event); }
  });
};

// -- sorting: numbers descending first; what has no number stays below ------------------------------------------------
const value = (row, column) => {
  const cell = row.cells[column];
  if (cell.tagName === "TH" || cell.classList.contains("name")) return cell.textContent.trim().toLowerCase();
  return cell.dataset.v === undefined || cell.dataset.v === "" ? null : Number(cell.dataset.v);
};
const stripes = (body) => {
  let shown = 0;
  for (const row of body.rows) if (!row.hidden) row.classList.toggle("odd", shown++ % 2 === 1);
};
const sort = (head) => {
  const table = head.closest("table"), body = table.tBodies[0], column = Number(head.dataset.column);
  const text = head.classList.contains("name");
  const before = head.getAttribute("aria-sort");
  const down = before ? before === "ascending" : !text;
  for (const other of table.querySelectorAll("[aria-sort]")) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = [...body.rows].map((row, place) => ({ row, place, key: value(row, column) }));
  rows.sort((a, b) => {
    if (a.key === null || b.key === null) return (a.key === null) - (b.key === null) || a.place - b.place;
    const order = a.key < b.key ? -1 : a.key > b.key ? 1 : 0;
    return (down ? -order : order) || a.place - b.place;
  });
  for (const { row } of rows) { row.classList.remove("first-reference"); body.append(row); }
  stripes(body);
};
for (const head of document.querySelectorAll("th.sorts")) act(head, () => sort(head));

// -- filtering: rows by method, columns and sections by setting --------------------------------------------------------
const method = document.getElementById("method"), setting = document.getElementById("setting");
data.settings.forEach((name, number) => setting.append(make("option", name, { value: number })));
const filter = () => {
  const words = method.value.toLowerCase().split(/\s+/).filter(Boolean), only = setting.value;
  const wanted = (text) => words.every((word) => text.toLowerCase().includes(word));
  for (const row of document.querySelectorAll("[data-method]")) row.hidden = !wanted(row.dataset.method);
  for (const part of document.querySelectorAll("[data-in]")) {
    if (!part.dataset.method) part.hidden = only !== "" && part.dataset.in !== only;
    else if (only !== "" && part.dataset.in !== only) part.hidden = true;
  }
  for (const table of document.querySelectorAll("table.grid")) {
    const columns = [...table.querySelectorAll("thead th.sorts")];
    table.closest(".scroll").hidden = columns.length > 1 && columns.slice(1).every((head) => head.hidden);
    stripes(table.tBodies[0]);
  }
};
method.addEventListener("input", filter);
setting.addEventListener("change", filter);

// -- the runs behind a cell --------------------------------------------------------------------------------------------
const cells = new Map();
data.runs.forEach((run) => {
  const place = `${run.s},${run.l}`;
  if (!cells.has(place)) cells.set(place, []);
  cells.get(place).push(run);
});
const dialog = document.getElementById("dialog");
const colours = ["#D55E00", "#332288", "#CC79A7", "#882255", "#56B4E9", "#117733", "#E69F00"];
const svg = (tag, attributes, text) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, item] of Object.entries(attributes)) made.setAttribute(name, item);
  if (text !== undefined) made.textContent = text;
  return made;
};
const curves = (runs) => {
  const points = runs.flatMap((run) => run.c);
  if (points.length < 2) return null;
  const last = Math.max(...points.map((p) => p[0])), high = Math.max(...points.map((p) => p[1])), low = Math.min(...points.map((p) => p[1]));
  const x = (round) => 34 + 250 * round / last, y = (share) => 110 - 95 * (share - low) / (high - low || 1);
  const drawn = svg("svg", { viewBox: "0 0 300 135", role: "img", "aria-label": "mean accuracy over rounds" });
  drawn.append(svg("path", { d: "M34 10V110H290", fill: "none", stroke: "#888", "stroke-width": .7 }));
  for (const share of high > low ? [low, high] : [low])
    drawn.append(svg("text", { x: 31, y: y(share) + 3, "text-anchor": "end", "font-size": 8, fill: "#5b6570" }, (100 * share).toFixed(1)));
  drawn.append(svg("text", { x: 290, y: 121, "text-anchor": "end", "font-size": 8, fill: "#5b6570" }, `round ${last}`));
  drawn.append(svg("text", { x: 38, y: 12, "font-size": 8, fill: "#5b6570" }, "mean accuracy (%)"));
  runs.forEach((run, number) => {
    if (!run.c.length) return;
    const colour = colours[number % colours.length];
    drawn.append(svg("polyline", { points: run.c.map((p) => `${x(p[0])},${y(p[1])}`).join(" "), fill: "none", stroke: colour, "stroke-width": 1.3 }));
    const end = run.c[run.c.length - 1];
    drawn.append(svg("circle", { cx: x(end[0]), cy: y(end[1]), r: 2, fill: colour }));
  });
  return drawn;
};
const open = (place) => {
  const runs = cells.get(place) || [], [s, l] = place.split(",").map(Number);
  dialog.replaceChildren();
  const close = make("button", "Close", { class: "close", type: "button" });
  close.addEventListener("click", () => dialog.close());
  dialog.append(close, make("h2", data.labels[l]), make("p", data.settings[s], { class: "soft" }));
  if (!runs.length) dialog.append(make("p", "No run of this method was planned in this setting."));
  const drawn = curves(runs);
  if (drawn) dialog.append(drawn);
  runs.forEach((run) => {
    dialog.append(make("h3", `Seed ${run.d}: ${run.st}`));
    if (run.w) dialog.append(make("p", run.w, { class: "note" }));
    const links = make("p");
    if (run.st !== "missing")
      for (const file of ["run.yaml", "records.jsonl", "clients.parquet", "env.json", "log.txt"])
        if (run.f.includes(file)) links.append(make("a", file, { href: `${data.results}/${encodeURIComponent(run.n)}/${file}` }));
    const list = make("dl");
    for (const [name, item] of [["run", run.n], ...data.hashes.map((hash, number) => [hash.replace("_", " "), run.h[number]])])
      if (item) { const dd = make("dd"); dd.append(make("code", item)); list.append(make("dt", name), dd); }
    dialog.append(links, list);
  });
  if (runs.length) {
    const config = make("details");
    config.append(make("summary", "Config, without the seed"), make("pre", JSON.stringify(data.configs[runs[0].k], null, 1)));
    dialog.append(config);
  }
  dialog.showModal();
};
for (const cell of document.querySelectorAll("td[data-s]")) act(cell, () => open(`${cell.dataset.s},${cell.dataset.l}`));
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
for (const table of document.querySelectorAll("table.grid")) stripes(table.tBodies[0]);
