// The document, helpers, the theme and the verdicts.
// Texts of models and policies enter the page through textContent alone.

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function drawing(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const number = (value, digits) => value === null || value === undefined ? "–" : value.toFixed(digits).replace("-", "−");

// Theme: the reader's choice, or the system's.
const theme = { dark: false, listeners: [] };

function setTheme(dark) {
  theme.dark = dark;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  byId("theme").textContent = dark ? "Light" : "Dark";
  byId("theme").ariaLabel = dark ? "Use light colours" : "Use dark colours";
  for (const listener of theme.listeners) listener();
}

const systemTheme = matchMedia("(prefers-color-scheme: dark)");
systemTheme.addEventListener("change", () => setTheme(systemTheme.matches));
byId("theme").addEventListener("click", () => setTheme(!theme.dark));
setTheme(systemTheme.matches);

// Black is the colour of full depth; on a dark page it is white.
const shade = (colour) => theme.dark && colour === "#000000" ? "#ffffff" : colour;

function icon(row) {
  const colour = row.colour === "#000000" ? "currentColor" : row.colour;
  const path = drawing("path", { d: row.path, fill: colour, stroke: colour, "stroke-width": 1.6, "fill-opacity": 0.75 });
  return drawing("svg", { viewBox: "-8 -8 16 16", class: "icon", "aria-hidden": "true" }, path);
}

const STATUS_SIGNS = { baseline: "●", "not worse": "✓", worse: "✗", undecided: "?" };

function statusLabel(row) {
  const sign = STATUS_SIGNS[row.status] ?? "";
  const kind = row.status.replaceAll(/[^a-z]/g, "-");
  return element("span", { className: `status ${kind}` }, `${sign} ${row.status}`.trim());
}

if (data.rows.some((row) => row.verdict || row.status)) {
  byId("verdicts").hidden = false;
  for (const row of data.rows) {
    byId("verdicts").querySelector("ul").append(element(
      "li", {}, statusLabel(row),
      element("span", {}, icon(row), " ", element("code", {}, row.policy)),
      element("span", {}, row.verdict)));
  }
}
