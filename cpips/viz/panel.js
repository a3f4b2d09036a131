// What stands around the pictures: controls, distances, the largest differences, the loupe.

const LENS = 11;  // image pixels on a side of the loupe
const THUMB = 96;  // px of a difference's picture
const say = (text) => { $("status").textContent = text; };
const make = (tag, content = "", properties = {}) => Object.assign(document.createElement(tag), { textContent: content }, properties);
const mapped = data.metrics.map((_, i) => data.images.some((image) => image.maps[i]));
const only = data.images.length === 1;

// ---- choosing ------------------------------------------------------------------------------------------------------

function choose(mode) {
  view.mode = mode;
  document.querySelector(`input[name="mode"][value="${mode}"]`).checked = true;
  redraw();
}

function show(image) {
  view.image = (image + data.images.length) % data.images.length;
  view.peak = -1;
  listPeaks();
  redraw();
  const { name, values } = data.images[view.image];
  say(`${name}: ${data.metrics.map((metric, i) => `${metric.name} ${values[i]}`).join(", ")}`);
}

function goTo(peak) {
  const peaks = heat()?.peaks ?? [];
  if (!peaks.length) return;
  view.peak = (peak + peaks.length) % peaks.length;
  const { x, y, text } = peaks[view.peak];
  view.point = { x, y };
  view.byMouse = false;
  const { width, height } = box();
  glide(x, y, clamp(Math.min(width, height) / AIM, fitScale(), 16));
  say(`Difference ${view.peak + 1} of ${peaks.length}, ${text}, at x ${x}, y ${y}`);
}

for (const radio of document.querySelectorAll('input[name="mode"]')) radio.addEventListener("change", () => choose(radio.value));
$("smaller").addEventListener("click", () => zoomTo(view.scale / 1.25));
$("larger").addEventListener("click", () => zoomTo(view.scale * 1.25));
$("fit").addEventListener("click", fit);
$("actual").addEventListener("click", () => zoomTo(1 / devicePixelRatio));
$("heat").addEventListener("change", () => { view.heat = $("heat").checked; redraw(); });
$("keys").addEventListener("click", () => { $("help").open = true; });
$("opacity").addEventListener("input", () => {
  view.opacity = $("opacity").value / 100;
  view.heat = $("heat").checked = true;  // who turns it wants to see it
  redraw();
});
$("heat-metric").addEventListener("change", () => {
  view.metric = Number($("heat-metric").value);
  view.peak = -1;
  scaleOfHeat();
  listPeaks();
  redraw();
});

// ---- what does not change ------------------------------------------------------------------------------------------

$("reference-name").textContent = data.reference.name;
stage.style.setProperty("--aspect", data.width / data.height);
$("size").textContent = `${data.width} × ${data.height} px`;
for (const pane of [$("left"), $("right")]) pane.querySelector(".tag:last-child").textContent = data.reference.name;
data.metrics.forEach((metric, i) => {
  const head = make("th", `${metric.name} ${metric.lower ? "↓" : "↑"}`, { scope: "col", title: metric.lower ? "lower is closer" : "higher is closer" });
  $("values").tHead.rows[0].append(head);
  $("signatures").append(make("li", metric.signature));
  if (mapped[i]) $("heat-metric").append(make("option", metric.name, { value: i }));
});
$("heat-metric").hidden = mapped.filter(Boolean).length < 2;
$("heat-tools").hidden = $("peaks-card").hidden = !mapped.some(Boolean);
$("values-note").textContent = "↓ lower, ↑ higher is closer" + (only ? "" : "; the best is bold");

const best = data.metrics.map(({ lower }, i) => {
  const all = data.images.map(({ order }) => Number(order[i])).filter((value) => !Number.isNaN(value));
  return lower ? Math.min(...all) : Math.max(...all);
});
data.images.forEach(({ name, values, order }, i) => {
  const row = $("values").tBodies[0].insertRow();
  const head = make("th", "", { scope: "row" });
  const button = make("button", name, { type: "button", title: name });
  button.addEventListener("click", () => show(i));
  head.append(button);
  row.append(head, ...values.map((value, j) => make("td", value, { className: !only && Number(order[j]) === best[j] ? "best" : "" })));
});

function scaleOfHeat() {
  const { vmax, name } = data.metrics[view.metric];
  if (!vmax) return;
  const end = `${Number(vmax.toPrecision(2))}+`;
  $("heat-scale").lastElementChild.textContent = end;
  $("heat-scale").setAttribute("aria-label", `Colours of ${name}, from 0 to ${end}`);
  const canvas = $("heat-scale").querySelector("canvas");
  const colours = new ImageData(data.palette.length, 1);
  data.palette.forEach(([r, g, b], i) => colours.data.set([r, g, b, 255], 4 * i));
  canvas.width = data.palette.length;
  canvas.getContext("2d").putImageData(colours, 0, 0);
}

// ---- the largest differences ---------------------------------------------------------------------------------------

/** A difference's button: the reference above the image, divided from corner to corner. */
function listPeaks() {
  const peaks = heat()?.peaks ?? [];
  $("peaks-note").textContent = peaks.length ? `by ${data.metrics[view.metric].name}; upper left the reference, lower right the image`
    : "none: the images are equal to this metric";
  $("peaks").replaceChildren(...peaks.map(({ x, y, text }, i) => {
    const button = make("button", "", { type: "button" });
    button.setAttribute("aria-label", `Difference ${i + 1}: ${text}, at x ${x}, y ${y}`);
    const canvas = canvasOf(THUMB, THUMB);
    const side = Math.min(64, data.width, data.height);
    const [left, top] = [clamp(x - side / 2, 0, data.width - side), clamp(y - side / 2, 0, data.height - side)];
    const pen = canvas.getContext("2d");
    pen.drawImage(pictures.reference, left, top, side, side, 0, 0, THUMB, THUMB);
    pen.beginPath();
    pen.moveTo(THUMB, 0);
    pen.lineTo(THUMB, THUMB);
    pen.lineTo(0, THUMB);
    pen.closePath();
    pen.save();
    pen.clip();
    pen.drawImage(pictures.images[view.image], left, top, side, side, 0, 0, THUMB, THUMB);
    pen.restore();
    pen.beginPath();
    pen.moveTo(THUMB, 0);
    pen.lineTo(0, THUMB);
    pen.strokeStyle = "#fffc";
    pen.stroke();
    button.append(canvas, make("b", String(i + 1)), make("span", text));
    button.addEventListener("click", () => goTo(i));
    const item = document.createElement("li");
    item.append(button);
    return item;
  }));
}

// ---- the loupe -----------------------------------------------------------------------------------------------------

const near = canvasOf(LENS, LENS);
const nearPen = near.getContext("2d", { willReadFrequently: true });

function drawLens(canvas, picture, { x, y }) {
  nearPen.clearRect(0, 0, LENS, LENS);
  nearPen.drawImage(picture, (LENS - 1) / 2 - x, (LENS - 1) / 2 - y);
  const pen = canvas.getContext("2d");
  const cell = canvas.width / LENS;
  pen.imageSmoothingEnabled = false;
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(near, 0, 0, canvas.width, canvas.height);
  const corner = ((LENS - 1) / 2) * cell;
  for (const [colour, thick] of [["#000", 4], ["#fff", 2]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = thick;
    pen.strokeRect(corner, corner, cell, cell);
  }
  return nearPen.getImageData((LENS - 1) / 2, (LENS - 1) / 2, 1, 1).data.slice(0, 3);
}

function drawLoupe() {
  const { x, y } = view.point;
  $("place").textContent = `x ${x}, y ${y}`;
  const sources = [pictures.reference, pictures.images[view.image]];
  const names = ["reference", data.images[view.image].name];
  const lenses = [...$("loupe").querySelectorAll(".lenses canvas")];
  const rows = [...$("loupe").querySelectorAll(".rgb tbody tr")];
  const colours = sources.map((picture, i) => {
    const colour = drawLens(lenses[i], picture, view.point);
    lenses[i].setAttribute("aria-label", `Pixels of ${names[i]} around x ${x}, y ${y}`);
    rows[i].querySelector(".chip").style.background = `rgb(${[...colour]})`;
    return colour;
  });
  const change = [...colours[1]].map((value, i) => value - colours[0][i]);
  [...colours, change].forEach((values, i) => [...values].forEach((value, j) => {
    rows[i].cells[j + 1].textContent = i < 2 || !value ? value : `${value > 0 ? "+" : "−"}${Math.abs(value)}`;
  }));
  const map = heat();
  const value = map?.cells[Math.floor(y / data.cell) * map.columns + Math.floor(x / data.cell)];
  $("heat-here").textContent = map ? `${data.metrics[view.metric].name} in this cell: ${value}` : "";
}

// ---- after each drawing --------------------------------------------------------------------------------------------

drawn.push(() => {
  const { name, values, grade } = data.images[view.image];
  const { name: metric, lower } = data.metrics[0];
  $("image-name").textContent = name;
  $("headline").replaceChildren(make("b", values[0]), `${metric}, ${lower ? "lower" : "higher"} is closer`,
                               ...(grade ? [make("br"), grade] : []));
  $("scale").textContent = `${Math.round(100 * view.scale * devicePixelRatio)}\u200a%`;
  const tag = $("right").querySelector(".tag");
  tag.textContent = view.held ? data.reference.name : name;
  tag.classList.toggle("held", view.held);
  $("hold").setAttribute("aria-pressed", view.held);
  $("heat-tools").classList.toggle("off", !view.heat);
  $("divider").setAttribute("aria-valuenow", Math.round(100 * view.divider));
  $("left").querySelector("canvas").setAttribute("aria-label", `The reference, ${data.reference.name}`);
  $("right").querySelector("canvas").setAttribute("aria-label", view.mode === "slider" ? `${data.reference.name} left of the divider, ${name} right of it`
    : view.held ? `The reference, ${data.reference.name}` : `${name}${view.heat ? " under its heat map" : ""}`);
  [...$("values").tBodies[0].rows].forEach((row, i) => {
    row.classList.toggle("chosen", !only && i === view.image);
    row.querySelector("button").setAttribute("aria-current", i === view.image);
  });
  [...$("peaks").querySelectorAll("button")].forEach((button, i) => button.setAttribute("aria-current", i === view.peak));
  $("loupe").querySelectorAll("figcaption")[1].textContent = name;
  if (view.point) drawLoupe();
});

ready.then(() => {
  const first = heat()?.peaks[0];
  view.point = first ? { x: first.x, y: first.y } : { x: data.width >> 1, y: data.height >> 1 };
  scaleOfHeat();
  listPeaks();
  new ResizeObserver(redraw).observe(stage);
  redraw();
  document.body.inert = false;
  document.body.dataset.ready = "";
}, () => document.body.prepend(make("p", "A picture of this page cannot be decoded by this browser.",
                                    { className: "warning", role: "alert" })));
