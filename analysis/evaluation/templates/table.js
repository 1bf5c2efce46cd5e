// The table: sorting by a click on a heading, filters, and the choice of columns.

const order = { column: null, down: false };
const policyColumn = { name: "policy", heading: "policy" };
const shownColumns = new Set(data.columns.filter((column) => column.first).map((column) => column.name));
const hasStatus = data.rows.some((row) => row.status);

function sortKey(row, name) {
  return name === "policy" ? row.policy : row.values[name].value;
}

function compareRows(a, b) {
  const [x, y] = [sortKey(a, order.column), sortKey(b, order.column)];
  if (x === null || y === null) return (x === null) - (y === null);  // not measured: last
  const result = typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y;
  return order.down ? -result : result;
}

function heading(column) {
  const sorted = order.column === column.name;
  const direction = sorted ? (order.down ? "descending" : "ascending") : "none";
  const arrow = sorted ? (order.down ? " ▼" : " ▲") : "";
  const button = element("button", { type: "button" },
    column.heading, element("span", { ariaHidden: "true" }, arrow));
  button.addEventListener("click", () => {
    order.down = sorted && !order.down;
    order.column = column.name;
    drawTable();
    byId("table").querySelector(`th[data-name="${CSS.escape(column.name)}"] button`).focus();
  });
  return element("th", { scope: "col", ariaSort: direction, "data-name": column.name }, button);
}

function cellElement(row, column) {
  const { text } = row.values[column.name];
  const small = [text.interval, text.difference].filter(Boolean).map((part) => element("small", {}, part));
  return element("td", {}, text.value, ...small);
}

function drawTable() {
  const columns = data.columns.filter((column) => shownColumns.has(column.name));
  const wanted = byId("filter").value.trim().toLowerCase();
  const status = byId("status").value;
  const rows = data.rows.filter((row) =>
    `${row.policy} ${row.verdict}`.toLowerCase().includes(wanted) && (!status || row.status === status));
  if (order.column !== null) rows.sort(compareRows);
  const [head, body] = ["thead", "tbody"].map((tag) => byId("table").querySelector(tag));
  head.replaceChildren(element("tr", {}, ...[policyColumn, ...columns].map(heading)));
  body.replaceChildren(...rows.map((row) => element("tr", {},
    element("th", { scope: "row" }, element("code", {}, row.policy),
      hasStatus ? element("div", {}, statusLabel(row)) : null),
    ...columns.map((column) => cellElement(row, column)))));
  byId("count").textContent = `${rows.length} of ${data.rows.length} policies`;
  hintAtMore();
}

function hintAtMore() {
  const box = byId("table").querySelector(".scroll");
  byId("more").hidden = box.scrollWidth <= box.clientWidth + 1;
}

for (const column of data.columns) {
  const box = element("input", { type: "checkbox", checked: shownColumns.has(column.name), name: column.name });
  box.addEventListener("change", () => {
    if (box.checked) shownColumns.add(column.name);
    else shownColumns.delete(column.name);
    drawTable();
  });
  byId("columns").querySelector("fieldset").append(element("label", {}, box, ` ${column.heading}`));
}
for (const status of new Set(data.rows.map((row) => row.status))) {
  if (status) byId("status").append(element("option", {}, status));
}
byId("status-filter").hidden = !hasStatus;
byId("filter").addEventListener("input", drawTable);
byId("status").addEventListener("change", drawTable);
addEventListener("resize", hintAtMore);
drawTable();
