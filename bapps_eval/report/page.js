"use strict";
// Without this script all is shown but the plots, whose scores the tables hold.

// ---- plots ---------------------------------------------------------------------------------------------------------

const root = document.documentElement;
const around = (x, y, reach) => [x - reach, y - reach, x + reach, y + reach];  // a box: left, top, right, bottom
const apart = (a, b) => a[0] >= b[2] || b[0] >= a[2] || a[1] >= b[3] || b[1] >= a[3];

/** The figure of a plot for its present width and colours; `paper`: those of paper, whatever the screen's are. */
function figureOf(plot, paper) {
  root.classList.toggle("paper", paper);
  const css = getComputedStyle(root);
  const figure = JSON.parse(plot.querySelector("script").textContent, (key, value) => {
    const name = typeof value === "string" && value.match(/^var\((--\w+)\)$/);
    return name ? css.getPropertyValue(name[1]).trim() : value;
  });
  root.classList.remove("paper");
  figure.layout.width = plot.clientWidth;
  if (figure.layout.meta === "cost") placeNames(figure);
  const box = plot.closest("[data-scatter]");
  if (box) {
    const own = plot.parentNode.querySelector(".ids");  // of a metric that lacks some of the items
    JSON.parse((own || box.querySelector(":scope > .ids")).textContent).forEach((ids, group) => {
      const faded = { opacity: 0.1, hoverinfo: "skip", hovertemplate: "" };
      const out = [undefined, String(group)].includes(box.dataset.only);  // chosen in the legend, or none is
      Object.assign(figure.data[group], out ? { hovertext: ids } : faded);
    });
    if (matchMedia("(pointer: fine)").matches) {  // a finger that drags wants to scroll the page
      figure.layout.dragmode = "zoom";
      figure.layout.xaxis.fixedrange = figure.layout.yaxis.fixedrange = false;
    }
  }
  return figure;
}

/** Names of points stand near them where they cover nothing, on a thin line where that is not beside the point. */
function placeNames({ data: [points], layout }) {
  const { width, height, margin, xaxis, yaxis, shapes = [] } = layout;
  const ruler = document.createElement("canvas").getContext("2d");
  ruler.font = `12px ${getComputedStyle(document.body).fontFamily}`;
  const [w, h] = [width - margin.l - margin.r, height - margin.t - margin.b];
  const share = ({ range: [low, high] }, value) => (value - low) / (high - low);
  const down = (value) => h * (1 - share(yaxis, value));
  const at = points.x.map((x, i) => [w * share(xaxis, Math.log10(x)), down(points.y[i])]);
  const dots = at.map(([x, y]) => around(x, y, 6));
  const whiskers = at.map(([x, y], i) => [x - 6, Math.min(y - 6, down(points.y[i] + points.error_y.array[i])), x + 6,
                                          Math.max(y + 6, down(points.y[i] - points.error_y.arrayminus[i]))]);
  const taken = shapes.map(({ y0, label }) => [w - 8 * label.text.length, down(y0) - 17, w, down(y0) + 3]);
  const steps = [...Array(25).keys()].map((i) => 8 * (i - 12));
  const shifts = [9, 17, 25, 45, 70, 100].flatMap((dx) => steps.flatMap((dy) => [[dx, dy], [-dx, dy]]))
    .sort((a, b) => Math.hypot(...a) - Math.hypot(...b));
  layout.annotations = at.flatMap(([x, y], i) => {
    const length = ruler.measureText(points.customdata[i]).width + 4;
    const others = [...dots.slice(0, i), ...dots.slice(i + 1), ...taken];
    for (const [dx, dy] of shifts) {
      const left = x + dx - (dx < 0 ? length : 0), far = Math.hypot(dx, dy) > 20;
      const box = [left, y + dy - 7, left + length, y + dy + 7];
      const line = far ? [2, 3, 4, 5, 6, 7, 8].map((k) => around(x + dx * k / 8, y + dy * k / 8, 3)) : [];
      if (box[0] < 0 || box[1] < 0 || box[2] > w || box[3] > h) continue;
      if (![...whiskers, ...taken].every((other) => apart(box, other))) continue;
      if (!line.every((step) => others.every((other) => apart(step, other)))) continue;
      taken.push(box, ...line);
      return [{ x: Math.log10(points.x[i]), y: points.y[i], text: points.text[i], xanchor: dx < 0 ? "right" : "left",
        yanchor: "middle", borderpad: 0, showarrow: far, xshift: far ? 0 : dx, yshift: far ? 0 : -dy, ax: dx, ay: dy,
        arrowhead: 0, arrowwidth: 1, standoff: 6, arrowcolor: layout.modebar.color }];
    }
    return [];  // no room: it is told when it is pointed at
  });
}

/** A button that saves a plot as it looks on paper. */
const save = (format, icon) => ({
  name: format, title: `Save as ${format.toUpperCase()}`, icon,
  click: (plot) => {
    const { data, layout } = figureOf(plot, true);
    const { width, height, meta } = layout;
    const filename = `${plot.closest("section").querySelector("h2").textContent} ${meta}`;
    Plotly.downloadImage({ data, layout }, { format, width, height, filename, scale: format === "png" ? 3 : 1 });
  },
});
const buttons = [save("png", Plotly.Icons.camera), save("svg", Plotly.Icons.disk)];

function draw(plot, paper = false) {
  if (!plot.clientWidth) return;  // not chosen
  const figure = figureOf(plot, paper);
  const zoom = figure.layout.dragmode ? [["resetScale2d"]] : [];
  Plotly.react(plot, figure.data, figure.layout,
               { displayModeBar: true, displaylogo: false, showTips: false, modeBarButtons: [...zoom, buttons] });
  plot.removeAttribute("role");  // an image has no buttons: the drawing is the image
  plot.querySelectorAll(".main-svg").forEach((svg, i) => {
    svg.setAttribute("viewBox", `0 0 ${figure.layout.width} ${figure.layout.height}`);  // for it to shrink on paper
    svg.setAttribute(...(i ? ["aria-hidden", "true"] : ["role", "img"]));
    if (!i) svg.setAttribute("aria-label", plot.getAttribute("aria-label"));
  });
}

const plots = [...document.querySelectorAll(".plot")];
const drawn = () => plots.filter((plot) => plot.querySelector(".main-svg"));
const resized = new ResizeObserver((entries) => entries.forEach(({ target }) => draw(target)));
const near = new IntersectionObserver((entries) => entries.forEach(({ isIntersecting, target }) => {
  if (!isIntersecting) return;
  near.unobserve(target);
  resized.observe(target);  // which draws it first
}), { rootMargin: "600px" });
plots.forEach((plot) => near.observe(plot));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn().forEach((plot) => draw(plot)));
addEventListener("beforeprint", () => plots.forEach((plot) => draw(plot, true)));
addEventListener("afterprint", () => drawn().forEach((plot) => draw(plot)));

for (const box of document.querySelectorAll("[data-scatter]")) {
  const legend = [...box.querySelectorAll(".legend button")];
  for (const button of legend) button.addEventListener("click", () => {
    const { only } = box.dataset, { group } = button.dataset;
    if (only === group) delete box.dataset.only;
    else box.dataset.only = group;
    legend.forEach((each) => each.setAttribute("aria-pressed", String(each.dataset.group === box.dataset.only)));
    box.querySelectorAll(".js-plotly-plot").forEach((plot) => draw(plot));
  });
}
