// Quality against cost: Bokeh draws, this fills its data source.

const visible = data.rows.map(() => true);
const chosen = (kind) => data.axes[kind].find((axis) => axis.name === byId(kind).value);
const cellOf = (row, axis) => row.values[axis.name];

function withInterval(axis, value, low, high) {
  const interval = low === null || low === undefined
    ? "" : ` [${number(low, axis.digits)}, ${number(high, axis.digits)}]`;
  return `${number(value, axis.digits)}${interval}`;
}

// Position, interval and text of a row on an axis; the difference of full depth is 0.
function place(row, index, axis, difference) {
  const cell = cellOf(row, axis);
  const text = `${axis.label}: ${withInterval(axis, cell.value, cell.low, cell.high)}`;
  if (!difference) return { at: cell.value, low: cell.low, high: cell.high, text };
  if (index === 0) return { at: cell.value === null ? null : 0, low: 0, high: 0, text };
  const change = withInterval(axis, cell.diff, cell.diff_low, cell.diff_high);
  return { at: cell.diff, low: cell.diff_low, high: cell.diff_high, text: `${text}; difference ${change}` };
}

function span(range, values) {
  const found = values.filter((value) => value !== null && value !== undefined);
  const [low, high] = found.length ? [Math.min(...found), Math.max(...found)] : [0, 1];
  const pad = 0.07 * (high - low) || 0.5;
  range.setv({ start: low - pad, end: high + pad, reset_start: low - pad, reset_end: high + pad });
}

function drawRows(models) {
  const [quality, cost] = [chosen("quality"), chosen("cost")];
  const difference = byId("shown").value === "difference";
  const points = data.rows.map((row, index) => ({
    row, shown: visible[index], x: place(row, index, cost, false), y: place(row, index, quality, difference),
  })).filter(({ x, y }) => x.at !== null && y.at !== null);
  const drawn = points.filter((point) => point.shown);
  const column = (read) => drawn.map(read);
  models.rows.data = {
    x: column(({ x }) => x.at), x_low: column(({ x }) => x.low ?? x.at), x_high: column(({ x }) => x.high ?? x.at),
    y: column(({ y }) => y.at), y_low: column(({ y }) => y.low ?? y.at), y_high: column(({ y }) => y.high ?? y.at),
    x_text: column(({ x }) => x.text), y_text: column(({ y }) => y.text),
    colour: column(({ row }) => shade(row.colour)), marker: column(({ row }) => row.marker),
    policy: column(({ row }) => row.policy), status: column(({ row }) => row.status || "–"),
  };
  const middle = difference ? 0 : cellOf(data.rows[0], quality).value;
  const hasMargin = quality.margin !== null && middle !== null;
  const edges = hasMargin ? [middle - quality.margin, middle + quality.margin] : [];
  models.margin.visible = hasMargin;
  if (hasMargin) models.margin.setv({ bottom: edges[0], top: edges[1] });
  // the axes fit the rows that are shown: to hide one that is far off enlarges the others
  span(models.figure.x_range, drawn.flatMap(({ x }) => [x.low, x.at, x.high]));
  span(models.figure.y_range, [...edges, ...drawn.flatMap(({ y }) => [y.low, y.at, y.high])]);
  const [below, left] = [models.figure.below[0], models.figure.left[0]];
  below.axis_label = `${cost.label} (${cost.better} is better)`;
  left.axis_label = `${quality.label}${difference ? ": difference" : ""} (${quality.better} is better)`;
  byId("caption").textContent = caption(quality, difference, hasMargin);
}

function caption(quality, difference, hasMargin) {
  const band = `The grey band is the equivalence margin of ±${quality.margin} around full depth. `;
  const paired = "Differences are paired by question. ";
  const tested = "A verdict also corrects for the number of policies and can need more than its interval shows. ";
  return `Bars are 95 % intervals. ${difference ? paired : ""}${hasMargin ? band : ""}${
    data.rows.some((row) => row.verdict) ? tested : ""}Point at a marker for its numbers.`;
}

function paintFigure(models) {
  const style = getComputedStyle(document.body);
  const ink = style.color;
  const line = getComputedStyle(byId("legend")).borderTopColor;
  for (const axis of [...models.figure.below, ...models.figure.left]) {
    axis.setv({
      axis_label_text_color: ink, major_label_text_color: ink, axis_line_color: ink,
      major_tick_line_color: ink, minor_tick_line_color: null, axis_label_text_font_style: "normal",
      axis_label_text_font_size: "13px", major_label_text_font_size: "12px",
    });
  }
  for (const grid of models.figure.center) if ("grid_line_color" in grid) grid.grid_line_color = line;
}

async function startPlot() {
  if (!data.axes.quality.length || !data.axes.cost.length) return;
  byId("plot").hidden = false;
  for (const kind of ["quality", "cost"]) {
    for (const axis of data.axes[kind]) byId(kind).append(element("option", { value: axis.name }, axis.label));
  }
  Bokeh.logger.set_level("error");
  const item = JSON.parse(byId("figure").textContent);
  await Bokeh.embed.embed_item(item, byId("canvas"));
  const shown = Bokeh.documents.at(-1);
  const models = Object.fromEntries(["rows", "margin", "figure"].map((n) => [n, shown.get_model_by_name(n)]));
  const draw = () => drawRows(models);
  data.rows.forEach((row, index) => {
    const box = element("input", { type: "checkbox", checked: true });
    box.addEventListener("change", () => { visible[index] = box.checked; draw(); });
    byId("legend").append(element("label", {}, box, " ", icon(row), " ", element("code", {}, row.policy)));
  });
  for (const id of ["quality", "cost", "shown"]) byId(id).addEventListener("change", draw);
  theme.listeners.push(() => { paintFigure(models); draw(); });
  paintFigure(models);
  draw();
  byId("plot").dataset.ready = "true";
}

startPlot();
