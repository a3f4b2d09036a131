// The pictures: what is seen, from where, and how it is drawn. All panes share one view, so they move together.

const data = JSON.parse(document.getElementById("data").textContent);
document.body.inert = true;  // until the pictures are there
const $ = (id) => document.getElementById(id);
const stage = $("stage");
const panes = [$("left"), $("right")];  // the right one alone, but for side by side
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const MOST = 64;  // CSS pixels to an image pixel
const AIM = 160;  // image pixels that a view of a difference shows, about

const view = {
  image: 0,
  metric: Math.max(0, data.images[0].maps.findIndex(Boolean)),  // of the heat map
  mode: "slider",
  divider: 0.5,  // share of the stage's width
  held: false,  // the reference is shown in place of the image
  heat: false,
  opacity: 0.8,
  scale: 1, x: data.width / 2, y: data.height / 2,  // CSS pixels to an image pixel; image point amid the pane
  fitted: true,  // and stays so when the window changes
  peak: -1,
  point: null,  // image pixel under the loupe
  byMouse: true,  // the mouse points at it; else a mark does
};

const load = (uri) => {
  const image = new Image();
  image.src = uri;
  return image.decode().then(() => image);
};
const pictures = { reference: null, images: data.images.map(() => null) };
const ready = Promise.all([
  load(data.reference.uri).then((image) => { pictures.reference = image; }),
  ...data.images.map(({ uri }, i) => load(uri).then((image) => { pictures.images[i] = image; })),
]);
const heat = () => data.images[view.image].maps[view.metric];

// ---- the view ------------------------------------------------------------------------------------------------------

const box = () => panes[1].getBoundingClientRect();
const fitScale = () => {
  const { width, height } = box();
  return Math.max(0.98 * Math.min(width / data.width, height / data.height), 1e-3);
};
const fewest = () => Math.min(fitScale(), 1);

function settle() {
  if (view.fitted) view.scale = Math.min(fitScale(), MOST);
  const { width, height } = box();
  const within = (middle, seen, side) => (side * view.scale <= seen ? side / 2
    : clamp(middle, seen / 2 / view.scale, side - seen / 2 / view.scale));
  view.x = within(view.x, width, data.width);
  view.y = within(view.y, height, data.height);
}

/** Zoom so that the image point beneath `at` (CSS pixels in a pane) stays there. */
function zoomTo(scale, at = { x: box().width / 2, y: box().height / 2 }) {
  const under = toImage(at);
  view.scale = clamp(scale, fewest(), MOST);
  view.fitted = false;
  view.x = under.x - (at.x - box().width / 2) / view.scale;
  view.y = under.y - (at.y - box().height / 2) / view.scale;
  redraw();
}

function fit() {
  view.fitted = true;
  redraw();
}

function move(dx, dy) {
  view.x -= dx / view.scale;
  view.y -= dy / view.scale;
  redraw();
}

const toImage = (at) => ({
  x: view.x + (at.x - box().width / 2) / view.scale,
  y: view.y + (at.y - box().height / 2) / view.scale,
});
const toPane = (x, y) => ({
  x: (x - view.x) * view.scale + box().width / 2,
  y: (y - view.y) * view.scale + box().height / 2,
});

/** Glide to an image point and scale. */
function glide(x, y, scale) {
  const from = { x: view.x, y: view.y, scale: view.scale };
  const begin = performance.now();
  const lasts = matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 260;
  const token = (glide.token = {});
  view.fitted = false;
  const step = (now) => {
    if (glide.token !== token) return;
    const t = lasts ? clamp((now - begin) / lasts, 0, 1) : 1;
    const eased = 1 - (1 - t) ** 3;
    view.scale = from.scale * (scale / from.scale) ** eased;
    view.x = from.x + (x - from.x) * eased;
    view.y = from.y + (y - from.y) * eased;
    redraw();
    if (t < 1) requestAnimationFrame(step);
  };
  step(begin);
}

// ---- heat ----------------------------------------------------------------------------------------------------------

const colourOf = (value) => {
  const t = clamp(value / data.metrics[view.metric].vmax, 0, 1);
  return data.palette[Math.round(t * (data.palette.length - 1))];
};

/** The heat of the cells as a canvas, made smooth in steps; cells that reach out of the image reach out of it too. */
function heatCanvas() {
  const key = `${view.image}/${view.metric}`;
  if (heatCanvas.key === key) return heatCanvas.made;
  const { cells, columns } = heat();
  const rows = cells.length / columns;
  let made = canvasOf(columns, rows);
  const pixels = new ImageData(columns, rows);
  cells.forEach((value, i) => pixels.data.set(colourOf(value), 4 * i));
  made.getContext("2d").putImageData(pixels, 0, 0);
  for (let doubled = 0; doubled < 2; doubled += 1) {
    const finer = canvasOf(made.width * 2, made.height * 2);
    const pen = finer.getContext("2d");
    pen.imageSmoothingQuality = "high";
    pen.drawImage(made, 0, 0, finer.width, finer.height);
    made = finer;
  }
  Object.assign(heatCanvas, { key, made });
  return made;
}

function canvasOf(width, height) {
  return Object.assign(document.createElement("canvas"), { width, height });
}

function drawHeat(pen) {
  const { cells, columns } = heat();
  pen.save();
  pen.beginPath();
  pen.rect(0, 0, data.width, data.height);
  pen.clip();
  pen.globalCompositeOperation = "saturation";  // the picture shows through in dim grey
  pen.fillStyle = `rgb(128 128 128 / ${view.opacity})`;
  pen.fillRect(0, 0, data.width, data.height);
  pen.globalCompositeOperation = "source-over";
  pen.fillStyle = `rgb(0 0 0 / ${0.45 * view.opacity})`;
  pen.fillRect(0, 0, data.width, data.height);
  pen.globalAlpha = view.opacity;
  pen.imageSmoothingEnabled = true;
  pen.imageSmoothingQuality = "high";
  pen.drawImage(heatCanvas(), 0, 0, columns * data.cell, (cells.length / columns) * data.cell);
  pen.restore();
}

// ---- drawing -------------------------------------------------------------------------------------------------------

let queued = 0;
const drawn = [];  // what else is to be told of a change, by the panel

function redraw() {
  if (!queued) queued = requestAnimationFrame(() => { queued = 0; draw(); });
}

function draw() {
  stage.dataset.mode = view.mode;
  const { clientWidth, clientHeight } = stage;
  const wide = Math.min(clientWidth / 2 / data.width, clientHeight / data.height);
  const tall = Math.min(clientWidth / data.width, clientHeight / 2 / data.height);
  stage.classList.toggle("stacked", view.mode === "beside" && tall > wide);
  settle();
  const shown = pictures.images[view.image];
  const main = view.held ? pictures.reference : shown;
  if (view.mode === "beside") drawPane(panes[0], [{ picture: pictures.reference }]);
  const whole = { picture: main, heated: view.heat && !view.held && heat() };
  const { width } = box();
  drawPane(panes[1], view.mode !== "slider" ? [whole] : [
    { picture: pictures.reference, to: view.divider * width }, { ...whole, from: view.divider * width }]);
  $("divider").style.left = `${100 * view.divider}%`;
  drawn.forEach((tell) => tell());
}

function drawPane(pane, layers) {
  const canvas = pane.querySelector("canvas");
  const { width, height } = pane.getBoundingClientRect();
  const ratio = devicePixelRatio;
  const [w, h] = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
  if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
  const pen = canvas.getContext("2d");
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.clearRect(0, 0, w, h);
  for (const { picture, heated, from = 0, to = width } of layers) {
    if (!picture || to <= from) continue;
    pen.save();
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.beginPath();
    pen.rect(from, 0, to - from, height);
    pen.clip();
    const corner = toPane(0, 0);
    pen.setTransform(ratio * view.scale, 0, 0, ratio * view.scale, ratio * corner.x, ratio * corner.y);
    pen.imageSmoothingEnabled = view.scale * ratio < 2;  // nearer, pixels are squares
    pen.imageSmoothingQuality = "high";
    pen.drawImage(picture, 0, 0);
    if (heated) drawHeat(pen);
    pen.restore();
  }
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  drawMarks(pen);
}

/** A ring at the chosen difference, and at the loupe's pixel where no mouse shows it. */
function drawMarks(pen) {
  const peak = heat()?.peaks[view.peak];
  if (peak) {
    const at = toPane(peak.x, peak.y);
    ring(pen, at, clamp(data.cell * 1.6 * view.scale, 14, 90));
  }
  if (view.point && !view.byMouse) {
    const half = Math.max(view.scale / 2, 4);
    const at = toPane(view.point.x + 0.5, view.point.y + 0.5);
    for (const [colour, thick] of [["#000", 3], ["#fff", 1.25]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = thick;
      pen.strokeRect(at.x - half, at.y - half, 2 * half, 2 * half);
    }
  }
}

function ring(pen, { x, y }, radius) {
  for (const [colour, thick] of [["#000a", 4.5], ["#fff", 2]]) {
    pen.beginPath();
    pen.arc(x, y, radius, 0, 2 * Math.PI);
    pen.strokeStyle = colour;
    pen.lineWidth = thick;
    pen.stroke();
  }
}
