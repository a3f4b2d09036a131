// What the page's workers do, after the module and its weights: encode an image, and compare two encodings.

const CELL = 16;  // px of a cell of the heat map
const PEAKS = 8;  // places at most, as cpips/viz/peaks.py has it
const APART = 0.06;  // of the longer side, between two of them
const FAINTEST = 0.1;  // of the largest difference
const LEAST = 0.01;  // scale of the heat, as cpips/viz/heatmap.py has it
const THUMB = [96, 72];

const made = CPIPS.load();

/** Means of a map over cells of 16 px, or what the image has of them. */
function cellsOf({ data, width, height }) {
  const [columns, rows] = [Math.ceil(width / CELL), Math.ceil(height / CELL)];
  const sums = new Float64Array(columns * rows);
  for (let y = 0, i = 0; y < height; y += 1) {
    const row = Math.floor(y / CELL) * columns;
    for (let x = 0; x < width; x += 1, i += 1) sums[row + (x >> 4)] += data[i];
  }
  const cells = [...sums].map((sum, i) => sum / (Math.min(CELL, width - (i % columns) * CELL) * Math.min(CELL, height - Math.floor(i / columns) * CELL)));
  return { cells, columns, rows };
}

/** The highest cells, no two of them near each other. */
function largest({ cells, columns, rows }, { width, height }) {
  const heat = [...cells];
  const reach = Math.max(2, Math.round(APART * Math.max(columns, rows)));
  const middle = (cell, side) => Math.floor((cell * CELL + Math.min((cell + 1) * CELL, side)) / 2);
  const found = [];
  while (found.length < PEAKS) {
    const best = heat.reduce((top, value, i) => (value > heat[top] ? i : top), 0);
    const [row, column, value] = [Math.floor(best / columns), best % columns, heat[best]];
    if (!(value > (found.length ? found[0].value * FAINTEST : 0))) break;
    found.push({ x: middle(column, width), y: middle(row, height), value });
    for (let y = Math.max(0, row - reach); y <= Math.min(rows - 1, row + reach); y += 1) {
      for (let x = Math.max(0, column - reach); x <= Math.min(columns - 1, column + reach); x += 1) heat[y * columns + x] = -1;
    }
  }
  return found;
}

/** The 99.5th percentile of the map at the cells' corners: the brightest color. */
function brightest({ data, width, height }) {
  const values = [];
  for (let y = 0; y < height; y += CELL) for (let x = 0; x < width; x += CELL) values.push(data[y * width + x]);
  values.sort((a, b) => a - b);
  const at = 0.995 * (values.length - 1);
  const below = Math.floor(at);
  const peak = values[below] + (at - below) * ((values[below + 1] ?? values[below]) - values[below]);
  return Math.max(peak, LEAST);
}

function canvasOf({ data, width, height, channels }) {
  const image = new ImageData(width, height);
  const white = data instanceof Uint8Array || data instanceof Uint8ClampedArray ? 1 : 255;
  for (let from = 0, to = 0; to < image.data.length; from += channels, to += 4) {
    for (let c = 0; c < 3; c += 1) image.data[to + c] = Math.round(white * data[from + c]);
    image.data[to + 3] = 255;
  }
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

function thumbnail(canvas) {
  const small = new OffscreenCanvas(...THUMB);
  const pen = small.getContext("2d");
  const scale = Math.min(THUMB[0] / canvas.width, THUMB[1] / canvas.height);
  const [width, height] = [Math.max(1, canvas.width * scale), Math.max(1, canvas.height * scale)];
  pen.imageSmoothingQuality = "high";
  pen.drawImage(canvas, (THUMB[0] - width) / 2, (THUMB[1] - height) / 2, width, height);
  return small.transferToImageBitmap();
}

const TASKS = {
  async facts() {
    const metric = await made;
    return { name: metric.name, signature: metric.signature };
  },
  async encode({ file, name, background }) {
    const metric = await made;
    const pixels = await readImage(file, { background, name });
    const canvas = canvasOf(pixels);
    const begin = performance.now();
    const embedding = await metric.embed(pixels, name);
    const seconds = (performance.now() - begin) / 1000;
    return { embedding, seconds, thumb: thumbnail(canvas), png: await canvas.convertToBlob({ type: "image/png" }) };
  },
  async compare({ reference, image }) {
    const metric = await made;
    const begin = performance.now();
    const { map, ...found } = await metric.compare(reference, image);
    const seconds = (performance.now() - begin) / 1000;
    const cells = cellsOf(map);
    return { ...found, seconds, cells: cells.cells, columns: cells.columns, peaks: largest(cells, map), vmax: brightest(map) };
  },
};

onmessage = async ({ data: { id, task, ...given } }) => {
  try {
    postMessage({ id, done: await TASKS[task](given) });
  } catch (error) {
    postMessage({ id, failed: error instanceof ImageError || error instanceof WeightsError ? error.message : `this browser failed: ${error}` });
  }
};
