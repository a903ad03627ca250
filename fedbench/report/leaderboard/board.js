// Sorting of the leaderboard's tables, and filtering by method. The page is whole without it.
"use strict";
document.documentElement.classList.add("scripted");

const value = (row, column) => {
  const cell = row.cells[column];
  if (cell.classList.contains("name") || cell.classList.contains("source")) return cell.textContent.trim().toLowerCase();
  return cell.dataset.v === undefined ? null : Number(cell.dataset.v);
};
const stripes = (body) => {
  let shown = 0;
  for (const row of body.rows) if (!row.hidden) row.classList.toggle("odd", shown++ % 2 === 1);
};
// Cells without a number stay below; equal cells keep their order.
const sort = (table, column, down) => {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  for (const head of heads) head.removeAttribute("aria-sort");
  heads[column].setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = [...body.rows].map((row, place) => ({ row, place, key: value(row, column) }));
  rows.sort((a, b) => {
    if (a.key === null || b.key === null) return (a.key === null) - (b.key === null) || a.place - b.place;
    const order = a.key < b.key ? -1 : a.key > b.key ? 1 : 0;
    return (down ? -order : order) || a.place - b.place;
  });
  for (const { row } of rows) body.append(row);
  stripes(body);
};
for (const table of document.querySelectorAll("table.board")) {
  const heads = [...table.tHead.rows[0].cells];
  const choice = document.createElement("select");
  heads.forEach((head, column) => {
    const act = () => {
      const before = head.getAttribute("aria-sort");
      sort(table, column, before ? before === "ascending" : head.dataset.first !== "up");
    };
    head.tabIndex = 0;
    head.addEventListener("click", act);
    head.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); act(); }
    });
    const option = document.createElement("option");
    option.textContent = head.textContent.trim();
    option.value = String(column);
    option.selected = column === 1;
    choice.append(option);
  });
  choice.addEventListener("change", () => {
    const column = Number(choice.value);
    sort(table, column, heads[column].dataset.first !== "up");
  });
  const label = document.createElement("label");
  label.className = "sortby";
  label.append("Sort by ", choice);
  table.parentElement.before(label);
  stripes(table.tBodies[0]);
}
const method = document.getElementById("method");
method.addEventListener("input", () => {
  const wanted = method.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of document.querySelectorAll("table.board tbody tr")) {
    const name = row.cells[0].textContent.toLowerCase();
    row.hidden = !wanted.every((word) => name.includes(word));
  }
  for (const table of document.querySelectorAll("table.board")) stripes(table.tBodies[0]);
});
