// cpips in JavaScript: the perceptual distance of two images, their quality, where they differ, and embeddings. No dependency, no
// network: the arithmetic is a WebAssembly module of a few kB (or plain JavaScript where there is none) and the weights are inline.

import { KERNEL } from "./kernel.js";
import { WEIGHTS } from "./weights.js";

/** Grades of the five-grade impairment scale of ITU-R BT.500. */
const WORDS = { 5: "imperceptible", 4: "perceptible but not annoying", 3: "slightly annoying", 2: "annoying", 1: "very annoying" };
const SPREAD = 0.2155;  // of the opinions of single people, see cpips/opinion.py
const VISIBLE = 4.5;
const WINDOW = 16;  // px over which features are averaged, as cpips/contrast.py has it
const BLOCK = 2;  // cells over which squares are averaged
const EPS = 1e-5;
const FLOOR = 1e-4;
const PER_CHANNEL = ["mean_weight", "mean_floor", "contrast_weight", "contrast_floor"];
const PER_SCALE = ["mean_threshold", "contrast_threshold", "power"];
const MAX_PIXELS = 89478485;  // as in Python
const TOLERANCE = 1e-4;  // by which values may leave [0,1]: rounding of a resize
const BAND = 1 << 19;  // pixels that are encoded at a time, about

/** An image that cannot be compared; the message says what was given and how to fix it. */
export class ImageError extends Error {
  name = "ImageError";
}

/** Weights that are damaged, or not made for this module. */
export class WeightsError extends Error {
  name = "WeightsError";
}

// ---- what a quality means ------------------------------------------------------------------------------------------

/** The words of the nearest grade of the scale, for a quality from 1 to 5. */
export function words(quality) {
  return Number.isNaN(quality) ? "unknown" : WORDS[Math.min(5, Math.max(1, Math.floor(quality + 0.5)))];
}

/** The probability that a person sees a difference, for a quality from 1 to 5. */
export function visibility(quality) {
  const q = Math.min(5, Math.max(1, quality));
  const spread = Math.sqrt(Math.max(SPREAD * (5 - q) * (q - 1), 1e-12));
  return normal((VISIBLE - q) / spread);
}

/** The distribution function of the standard normal, to 1e-7 (Numerical Recipes, erfcc). */
function normal(x) {
  const z = Math.abs(x) / Math.SQRT2;
  const t = 1 / (1 + z / 2);
  const series = [1.00002368, 0.37409196, 0.09678418, -0.18628806, 0.27886807, -1.13520398, 1.48851587, -0.82215223, 0.17087277];
  const tail = t * Math.exp(-z * z - 1.26551223 + series.reduceRight((sum, each) => t * (each + sum), 0)) / 2;
  return x > 0 ? 1 - tail : tail;
}

// ---- images ---------------------------------------------------------------------------------------------------------

/**
 * Pixels of an image: `{data, width, height, channels}`, RGB (or RGBA of which alpha is 255 everywhere), bytes or floats in [0,1].
 * A Blob is decoded by the browser, with EXIF orientation and color profile applied.
 */
export async function readImage(image, { background = null, icc = true, name = "the image" } = {}) {
  if (typeof Blob !== "undefined" && image instanceof Blob) return readBlob(image, background, icc, image.name || name);
  if (isElement(image)) return readElement(image, background, name);
  if (image && typeof image === "object" && "data" in image && "width" in image && "height" in image) return readArray(image, background, name);
  const given = image === null ? "null" : image?.constructor?.name ?? typeof image;
  throw new ImageError(`${name} is a ${given}: expected a Blob or File, ImageData, an image element, canvas or ImageBitmap, or ` +
                       "{data, width, height} with a typed array");
}

function isElement(image) {
  const kinds = ["HTMLImageElement", "HTMLCanvasElement", "OffscreenCanvas", "ImageBitmap", "HTMLVideoElement", "VideoFrame"];
  return kinds.some((kind) => typeof globalThis[kind] !== "undefined" && image instanceof globalThis[kind]);
}

async function readBlob(blob, background, icc, name) {
  if (typeof createImageBitmap === "undefined") {
    throw new ImageError(`${name} is a file, and there is no image decoder here: decode it and pass {data, width, height}`);
  }
  await checkWhole(blob, name);
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { imageOrientation: "from-image", colorSpaceConversion: icc ? "default" : "none" });
  } catch {
    throw new ImageError(`${name} is not an image that this browser can read (${blob.size} bytes): save it as PNG, JPEG, WebP, AVIF or BMP`);
  }
  try {
    return readElement(bitmap, background, name);
  } finally {
    bitmap.close();
  }
}

/** Browsers show the first frame of an animation, and what there is of a file that was cut short: both are refused here. */
async function checkWhole(blob, name) {
  const head = new Uint8Array(await blob.slice(0, 16).arrayBuffer());
  const tail = new Uint8Array(await blob.slice(-65536).arrayBuffer());
  const found = (...bytes) => tail.some((_, i) => bytes.every((byte, j) => tail[i + j] === byte));
  const png = head[0] === 0x89 && head[1] === 0x50;
  const jpeg = head[0] === 0xff && head[1] === 0xd8;
  if ((png && !found(0x49, 0x45, 0x4e, 0x44)) || (jpeg && !found(0xff, 0xd9))) {
    throw new ImageError(`${name} is damaged or truncated (it has no end): fetch or save it again`);
  }
  if (typeof ImageDecoder === "undefined" || !blob.type || !(await ImageDecoder.isTypeSupported(blob.type).catch(() => false))) return;
  let frames = 1;
  let decoder;
  try {
    decoder = new ImageDecoder({ data: await blob.arrayBuffer(), type: blob.type });
    await decoder.tracks.ready;
    await decoder.completed;
    frames = decoder.tracks.selectedTrack?.frameCount ?? 1;
  } catch {
    // createImageBitmap has the last word on what can be decoded
  } finally {
    decoder?.close();
  }
  if (frames > 1) throw new ImageError(`${name} has ${frames} frames: extract the one to compare`);
}

function readElement(element, background, name) {
  const width = element.naturalWidth ?? element.videoWidth ?? element.displayWidth ?? element.width;
  const height = element.naturalHeight ?? element.videoHeight ?? element.displayHeight ?? element.height;
  if (!width || !height) throw new ImageError(`${name} has no pixels: wait until it is loaded (await image.decode())`);
  checkSize(width, height, name);
  const canvas = typeof OffscreenCanvas !== "undefined" ? new OffscreenCanvas(width, height)
    : Object.assign(document.createElement("canvas"), { width, height });
  const pen = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  let pixels;
  try {
    pen.drawImage(element, 0, 0);
    pixels = pen.getImageData(0, 0, width, height);
    if (background !== null && !opaque(pixels.data)) {
      pen.globalCompositeOperation = "destination-over";  // the browser composites: straight alpha cannot be had from a canvas
      pen.fillStyle = `rgb(${color(background).map((value) => 255 * value)})`;
      pen.fillRect(0, 0, width, height);
      pixels = pen.getImageData(0, 0, width, height);
    }
  } catch (error) {
    if (error instanceof ImageError) throw error;
    throw new ImageError(error?.name === "SecurityError"
      ? `${name} is of another site, which does not let pages read it: load it with crossOrigin='anonymous' from a server that allows it`
      : `${name} (${width}x${height} px) cannot be read by this browser (${error?.message ?? error}): compare a crop of it`);
  }
  return readArray(pixels, null, name);
}

function readArray({ data, width, height, channels }, background, name) {
  const kinds = [Uint8ClampedArray, Uint8Array, Float32Array, Float64Array];
  const kind = data?.constructor?.name ?? typeof data;
  if (!kinds.some((type) => data instanceof type)) {
    throw new ImageError(`${name} has pixels of type ${kind}: expected bytes 0 to 255 (Uint8Array, Uint8ClampedArray) or floats in [0,1] ` +
                         "(Float32Array, Float64Array)");
  }
  if (![width, height].every((side) => Number.isInteger(side) && side >= 1)) {
    throw new ImageError(`${name} has no pixels (${width}x${height}): expected sides of 1 px or more`);
  }
  checkSize(width, height, name);
  const each = data.length / (width * height);
  if ((each !== 3 && each !== 4) || (channels !== undefined && channels !== each)) {
    const fix = each === 1 ? "gray images are compared as RGB: repeat each value three times" : "RGB or RGBA, channels last, row by row";
    throw new ImageError(`${name} has ${data.length} values for ${width}x${height} px: expected 3 or 4 a pixel; ${fix}`);
  }
  const white = data instanceof Uint8Array || data instanceof Uint8ClampedArray ? 255 : 1;
  if (white === 1) checkValues(data, name);
  if (each === 4 && !opaque(data, white)) {
    if (background === null) {
      throw new ImageError(`${name} has an alpha channel, and a distance needs opaque pixels: composite it, with background: 'white'`);
    }
    return { data: composite(data, color(background), white), width, height, channels: 3 };
  }
  return { data, width, height, channels: each };
}

function checkSize(width, height, name) {
  if (width * height > MAX_PIXELS) {
    throw new ImageError(`${name} is too large (${width}x${height} px, more than ${MAX_PIXELS} pixels): compare crops of it`);
  }
}

function checkValues(data, name) {
  let low = Infinity;
  let high = -Infinity;
  for (let i = 0; i < data.length; i += 1) {
    const value = data[i];
    if (Number.isNaN(value)) throw new ImageError(`${name} holds NaN: expected finite values in [0,1]`);
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low >= -TOLERANCE && high <= 1 + TOLERANCE) return;
  if (!Number.isFinite(low) || !Number.isFinite(high)) throw new ImageError(`${name} holds infinite values: expected finite values in [0,1]`);
  const fix = high > 2 ? "it looks like 0..255 (or wider): divide by its white, or pass a Uint8Array"
    : low < -0.05 ? "it looks like [-1,1]: convert with (x + 1) / 2" : "a network or filter overshoots: clamp it";
  throw new ImageError(`${name} has values from ${low.toPrecision(4)} to ${high.toPrecision(4)}: expected [0,1]; ${fix}`);
}

function opaque(data, white = 255) {
  for (let i = 3; i < data.length; i += 4) if (data[i] < white) return false;
  return true;
}

/** RGBA with straight alpha over a color, in encoded sRGB, as cpips.images.composite does it. */
function composite(data, rgb, white) {
  const out = new Float32Array((data.length / 4) * 3);
  for (let i = 0, j = 0; i < data.length; i += 4) {
    const alpha = data[i + 3] / white;
    for (let c = 0; c < 3; c += 1, j += 1) out[j] = (data[i + c] / white) * alpha + rgb[c] * (1 - alpha);
  }
  return out;
}

function color(background) {
  const named = { white: [1, 1, 1], black: [0, 0, 0], gray: [128 / 255, 128 / 255, 128 / 255] }[background];
  const hex = /^#([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2})$/i.exec(typeof background === "string" ? background : "");
  const rgb = named ?? (hex ? hex.slice(1).map((part) => parseInt(part, 16) / 255) : Array.isArray(background) ? background : []);
  if (rgb.length !== 3 || !rgb.every((value) => value >= 0 && value <= 1)) {
    throw new ImageError(`background ${JSON.stringify(background)} is not a color: expected 'white', 'black', 'gray', '#rrggbb', or three ` +
                         "numbers in [0,1]");
  }
  return rgb;
}

function checkSameSize(x, y) {
  if (x.width === y.width && x.height === y.height) return;
  throw new ImageError(`the images have different sizes, ${x.width}x${x.height} and ${y.width}x${y.height} px (width x height): ` +
                       "crop or resize one of them; how to resize is part of the measurement, so cpips does not choose");
}

const UNIT = Float32Array.from({ length: 256 }, (_, i) => i / 255);

/** Reads rows of pixels as RGB floats. */
function rowsOf({ data, width, channels }) {
  const bytes = data instanceof Uint8Array || data instanceof Uint8ClampedArray;
  return (y, out, at) => {
    for (let i = y * width * channels, end = i + width * channels, to = at; i < end; i += channels, to += 3) {
      for (let c = 0; c < 3; c += 1) out[to + c] = bytes ? UNIT[data[i + c]] : data[i + c];
    }
  };
}

/** Half the size: means of 2x2 pixels, of those that there are at an odd side. */
function halved(pixels) {
  const { width, height } = pixels;
  const [w, h] = [Math.ceil(width / 2), Math.ceil(height / 2)];
  const read = rowsOf(pixels);
  const out = new Float32Array(w * h * 3);
  const [top, bottom] = [new Float32Array(width * 3), new Float32Array(width * 3)];
  for (let y = 0; y < h; y += 1) {
    read(2 * y, top, 0);
    const tall = 2 * y + 1 < height;
    if (tall) read(2 * y + 1, bottom, 0);
    for (let x = 0; x < w; x += 1) {
      const wide = 2 * x + 1 < width;
      for (let c = 0; c < 3; c += 1) {
        const at = 6 * x + c;
        let sum = top[at] + (tall ? bottom[at] : 0);
        if (wide) sum += top[at + 3] + (tall ? bottom[at + 3] : 0);
        out[(y * w + x) * 3 + c] = sum / ((tall ? 2 : 1) * (wide ? 2 : 1));
      }
    }
  }
  return { data: out, width: w, height: h, channels: 3 };
}

function meanColor(pixels) {
  const read = rowsOf(pixels);
  const line = new Float32Array(pixels.width * 3);
  const sums = [0, 0, 0];
  for (let y = 0; y < pixels.height; y += 1) {
    read(y, line, 0);
    for (let i = 0; i < line.length; i += 1) sums[i % 3] += line[i];
  }
  return sums.map((sum) => sum / (pixels.width * pixels.height));
}

// ---- weights --------------------------------------------------------------------------------------------------------

const bytesOf = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));

function half(bits) {
  const [sign, exponent, fraction] = [bits & 0x8000 ? -1 : 1, (bits >> 10) & 31, bits & 1023];
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}

/** The tensors of a safetensors file, and what else cpips.browser.weights says of the model. */
function parse(content) {
  const bytes = content instanceof ArrayBuffer ? new Uint8Array(content) : content;
  try {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const length = Number(view.getBigUint64(0, true));
    const { __metadata__: metadata = {}, ...entries } = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
    const tensors = Object.fromEntries(Object.entries(entries).map(([name, { dtype, shape, data_offsets: [from, to] }]) => {
      const wide = dtype === "F32";
      if (!wide && dtype !== "F16") throw new WeightsError(`${name} has dtype ${dtype}: expected F16 or F32`);
      const data = new Float32Array((to - from) / (wide ? 4 : 2));
      for (let i = 0; i < data.length; i += 1) {
        const at = 8 + length + from + i * (wide ? 4 : 2);
        data[i] = wide ? view.getFloat32(at, true) : half(view.getUint16(at, true));
      }
      return [name, { shape, data }];
    }));
    return { facts: JSON.parse(metadata.cpips ?? "{}"), tensors };
  } catch (error) {
    if (error instanceof WeightsError) throw error;
    throw new WeightsError(`the weights are no safetensors file, or damaged (${error.message}): fetch them again`);
  }
}

const padded = (channels) => Math.ceil(channels / 8) * 8;

/** Layers and settings, laid out for the kernel: input channel by input channel, output channels padded with zeros. */
function prepare({ facts: { strides, taps }, tensors }) {
  if (!strides || !taps) throw new WeightsError("these weights were not exported for the browser: use cpips.browser.weights in Python");
  const get = (name) => {
    if (!tensors[name]) throw new WeightsError(`${name} is missing in the weights: export them again`);
    return tensors[name];
  };
  const known = ["head.contrast.color", ...taps.flatMap((tap) => [...PER_CHANNEL, ...PER_SCALE, "mix"].map((part) => `head.contrast.${tap}.${part}`))];
  const strange = Object.keys(tensors).filter((name) => name.startsWith("head.") && name !== "head.quality" && !known.includes(name));
  if (strange.length) {
    throw new WeightsError(`the weights have the settings ${strange.join(", ")}, which this module does not know: use the module of the ` +
                           "same version of cpips");
  }
  const column = (data, outputs, otherwise = 0) => Float32Array.from({ length: padded(outputs) }, (_, i) => (i < outputs ? data[i] : otherwise));
  const matrix = ({ shape: [outputs, inputs], data }) => {
    const out = new Float32Array(padded(inputs) * padded(outputs));
    for (let o = 0; o < outputs; o += 1) for (let i = 0; i < inputs; i += 1) out[i * padded(outputs) + o] = data[o * inputs + i];
    return out;
  };
  let cell = 1;
  const stages = strides.map((stride, i) => {
    const { shape: [outputs, inputs, kernel], data } = get(`g_a.${2 * i}.weight`);
    const [deep, wide] = [i ? padded(inputs) : inputs, padded(outputs)];
    const weight = new Float32Array(kernel * kernel * deep * wide);
    for (let o = 0, from = 0; o < outputs; o += 1) {
      for (let c = 0; c < inputs; c += 1) {
        for (let k = 0; k < kernel * kernel; k += 1, from += 1) weight[(k * deep + c) * wide + o] = data[from];
      }
    }
    cell *= stride;
    return {
      tap: `gdn${i + 1}`, kernel, stride, cell, deep, wide, channels: outputs, before: kernel % 2 ? kernel >> 1 : (kernel - stride) / 2, weight,
      bias: column(get(`g_a.${2 * i}.bias`).data, outputs), beta: column(get(`g_a.${2 * i + 1}.beta`).data, outputs, 1),
      gamma: matrix(get(`g_a.${2 * i + 1}.gamma`)),
    };
  });
  const scales = get(`head.contrast.${taps[0]}.power`).data.length;
  const head = Object.fromEntries(taps.map((tap) => {
    const setting = (part) => get(`head.contrast.${tap}.${part}`);
    const channels = setting("mix").shape[0];
    const perScale = Array.from({ length: scales }, (_, scale) => Object.fromEntries([
      ...PER_CHANNEL.map((part) => [part, setting(part).data.subarray(scale * channels, (scale + 1) * channels)]),
      ...PER_SCALE.map((part) => [part, setting(part).data[scale]])]));
    return [tap, { mix: matrix(setting("mix")), none: new Float32Array(padded(channels)), scales: perScale }];
  }));
  return { stages: stages.filter(({ tap }, i) => stages.slice(i).some((later) => taps.includes(later.tap)) || taps.includes(tap)), taps, head, scales,
           color: get("head.contrast.color").data, quality: tensors["head.quality"]?.data ?? null };
}

// ---- arithmetic -----------------------------------------------------------------------------------------------------

/** The functions of kernel.c without WebAssembly, twenty times as slow; pointers are in bytes, as there. */
function plainKernel(memory) {
  const floats = () => new Float32Array(memory.buffer);
  return {
    row(input, segments, length, pitch, step, weight, bias, channels, out, count) {
      const f = floats();
      const sums = new Float64Array(channels);
      for (let i = 0; i < count; i += 1) {
        for (let c = 0; c < channels; c += 1) sums[c] = f[bias / 4 + c];
        for (let s = 0, w = weight / 4; s < segments; s += 1) {
          for (let k = 0, x = input / 4 + i * step + s * pitch; k < length; k += 1, x += 1, w += channels) {
            const value = f[x];
            for (let c = 0; c < channels; c += 1) sums[c] += value * f[w + c];
          }
        }
        f.set(sums, out / 4 + i * channels);
      }
    },
    square(x, out, count) {
      const f = floats();
      for (let i = 0; i < count; i += 1) f[out / 4 + i] = f[x / 4 + i] ** 2;
    },
    divide(x, norm, count) {
      const f = floats();
      for (let i = 0; i < count; i += 1) f[x / 4 + i] /= Math.sqrt(f[norm / 4 + i]);
    },
    root(x, eps, count) {
      const f = floats();
      for (let i = 0; i < count; i += 1) f[x / 4 + i] = Math.sqrt(f[x / 4 + i] + eps);
    },
    pool(input, rows, columns, channels, pitch, window, squares, out) {
      const f = floats();
      let to = out / 4;
      for (let top = 0; top < rows; top += window) {
        for (let left = 0; left < columns; left += window) {
          const [height, width] = [Math.min(window, rows - top), Math.min(window, columns - left)];
          for (let c = 0; c < channels; c += 1, to += 1) {
            let sum = 0;
            for (let y = 0; y < height; y += 1) {
              for (let x = 0; x < width; x += 1) {
                const value = f[input / 4 + (top + y) * pitch + (left + x) * channels + c];
                sum += squares ? value * value : value;
              }
            }
            f[to] = sum / (height * width);
          }
        }
      }
    },
  };
}

/** Memory with what encodes in it. */
class Engine {
  constructor(model, memory, kernel, base) {
    Object.assign(this, { model, memory, kernel, end: base });
    for (const stage of model.stages) for (const part of ["weight", "bias", "beta", "gamma"]) stage[`${part}At`] = this.put(stage[part]);
    for (const tap of model.taps) for (const part of ["mix", "none"]) model.head[tap][`${part}At`] = this.put(model.head[tap][part]);
    this.base = this.end;
  }

  static async make(model, backend) {
    if (backend !== "plain") {
      try {
        const memory = new WebAssembly.Memory({ initial: 2 });
        const { instance } = await WebAssembly.instantiate(bytesOf(KERNEL), { env: { memory } });
        return new Engine(model, memory, instance.exports, 1 << 16);  // the kernel's stack is below
      } catch (error) {  // no SIMD, or a content policy without 'wasm-unsafe-eval'
        if (backend === "wasm") throw new Error(`WebAssembly with SIMD is not available here (${error.message}): use backend 'auto'`);
      }
    }
    const memory = { buffer: new ArrayBuffer(0), grow(pages) {
      const larger = new Uint8Array(this.buffer.byteLength + pages * 65536);
      larger.set(new Uint8Array(this.buffer));
      this.buffer = larger.buffer;
    } };
    return new Engine(model, memory, plainKernel(memory), 0);
  }

  /** The address of room for so many floats. */
  room(count) {
    const at = this.end;
    this.end += Math.ceil(count / 4) * 16;
    const missing = Math.ceil((this.end - this.memory.buffer.byteLength) / 65536);
    if (missing > 0) {
      try {
        this.memory.grow(missing);
      } catch {
        throw new ImageError("the memory for an image of this size is not available: compare crops of it");
      }
    }
    return at;
  }

  put(values) {
    const at = this.room(values.length);
    this.view(at, values.length).set(values);
    return at;
  }

  view(at, count) {
    return new Float32Array(this.memory.buffer, at, count);
  }

  /** What is compared of an image: per scale and tap its means and its contrasts. */
  encode(pixels) {
    const maps = [];
    let scaled = pixels;
    for (let scale = 0; scale < this.model.scales; scale += 1) {
      if (scale) scaled = halved(scaled);
      maps.push(...this.encodeScale(scaled, scale));
    }
    return { maps, color: meanColor(pixels), width: pixels.width, height: pixels.height };
  }

  encodeScale(pixels, scale) {
    const { stages, taps, head } = this.model;
    const read = rowsOf(pixels);
    // sizes of the levels: the image, then each stage's features
    const levels = [{ rows: pixels.height, columns: pixels.width, wide: 3 }];
    for (const { stride, wide } of stages) {
      const { rows, columns } = levels[levels.length - 1];
      levels.push({ rows: Math.ceil(rows / stride), columns: Math.ceil(columns / stride), wide });
    }
    const maps = [];
    const statistics = stages.map((stage, i) => {
      if (!taps.includes(stage.tap)) return null;
      const window = Math.max(WINDOW >> scale, stage.cell) / stage.cell;
      const level = levels[i + 1];
      const made = [window, BLOCK].map((side) => {
        const [rows, columns] = [Math.ceil(level.rows / side), Math.ceil(level.columns / side)];
        return { data: new Float32Array(rows * columns * stage.wide), rows, columns, wide: stage.wide, channels: stage.channels, scale, tap: stage.tap,
                 stride: (side * stage.cell) << scale };
      });
      maps.push(...made);
      return { window, made };
    });
    const deepest = stages[stages.length - 1];
    const unit = Math.max(...maps.map(({ stride }) => stride >> scale), deepest.cell);
    const height = Math.max(1, Math.floor(BAND / pixels.width / unit)) * unit;
    for (let top = 0; top < pixels.height; top += height) {
      this.end = this.base;
      this.encodeBand({ read, levels, statistics, stages, head, top, bottom: Math.min(top + height, pixels.height) });
    }
    return maps;
  }

  /** A band of rows of the image, from `top` to `bottom`, with the rows above and below that its features see. */
  encodeBand({ read, levels, statistics, stages, head, top, bottom }) {
    const { kernel } = this;
    // rows of each level that the deepest features of the band need, which may lie outside: there are zeros
    const bands = [];
    let from = top / stages[stages.length - 1].cell;
    let to = Math.ceil(bottom / stages[stages.length - 1].cell);
    for (let i = stages.length; i >= 0; i -= 1) {
      bands[i] = { from, to };
      if (!i) break;
      const { stride, before, kernel: side } = stages[i - 1];
      [from, to] = [from * stride - before, (to - 1) * stride - before + side];
    }
    bands.forEach((band, i) => {
      const { columns, wide } = levels[i];
      const next = stages[i];
      const before = next ? next.before : 0;
      const across = next ? Math.max((levels[i + 1].columns - 1) * next.stride + next.kernel, before + columns) : columns;
      Object.assign(band, { before, pitch: across * wide, at: this.room((band.to - band.from) * across * wide) });
    });
    const widest = Math.max(...levels.slice(1).map(({ columns, wide }) => columns * wide));
    const [squared, norm] = [this.room(widest), this.room(widest)];
    const largest = Math.max(...stages.map((stage, i) => (bands[i + 1].to - bands[i + 1].from + 1) * levels[i + 1].columns * stage.wide));
    const [pooled, mixed] = [this.room(largest), this.room(largest)];

    const image = bands[0];
    const buffer = this.view(image.at, (image.to - image.from) * image.pitch).fill(0);
    for (let y = Math.max(image.from, 0); y < Math.min(image.to, levels[0].rows); y += 1) {
      read(y, buffer, (y - image.from) * image.pitch + 3 * image.before);
    }
    stages.forEach((stage, i) => {
      const [input, output, { rows, columns }] = [bands[i], bands[i + 1], levels[i + 1]];
      const { kernel: side, stride, deep, wide } = stage;
      this.view(output.at, (output.to - output.from) * output.pitch).fill(0);
      for (let y = Math.max(output.from, 0); y < Math.min(output.to, rows); y += 1) {
        const source = input.at + 4 * (y * stride - stage.before - input.from) * input.pitch;
        const target = output.at + 4 * ((y - output.from) * output.pitch + output.before * wide);
        kernel.row(source, side, side * deep, input.pitch, stride * deep, stage.weightAt, stage.biasAt, wide, target, columns);
        kernel.square(target, squared, columns * wide);
        kernel.row(squared, 1, wide, 0, wide, stage.gammaAt, stage.betaAt, wide, norm, columns);
        kernel.divide(target, norm, columns * wide);
      }
      if (!statistics[i]) return;
      const { window, made: [means, contrasts] } = statistics[i];
      const [first, last] = [top / stage.cell, Math.min(Math.ceil(bottom / stage.cell), rows)];
      const source = output.at + 4 * ((first - output.from) * output.pitch + output.before * wide);
      const store = (map, from, at, side2) => {
        const count = Math.ceil((last - first) / side2) * map.columns * wide;
        map.data.set(this.view(at, count), (first / side2) * map.columns * wide);
      };
      kernel.pool(source, last - first, columns, wide, output.pitch, window, 0, pooled);
      store(means, first, pooled, window);
      kernel.pool(source, last - first, columns, wide, output.pitch, BLOCK, 1, pooled);
      const cells = Math.ceil((last - first) / BLOCK) * contrasts.columns;
      kernel.row(pooled, 1, wide, 0, wide, head[stage.tap].mixAt, head[stage.tap].noneAt, wide, mixed, cells);
      kernel.root(mixed, EPS, cells * wide);
      store(contrasts, first, mixed, BLOCK);
    });
  }
}

// ---- comparison -----------------------------------------------------------------------------------------------------

/** Contributions of the cells of two maps of one kind; their mean over the image is a part of the distance. */
function compareMaps(a, b, settings, size, means) {
  const kind = means ? "mean" : "contrast";
  const [weight, floor, threshold] = [settings[`${kind}_weight`], settings[`${kind}_floor`], settings[`${kind}_threshold`]];
  const total = weight.reduce((sum, each) => sum + each, 0);
  const count = a.rows * a.columns;
  const [values, weights] = [new Float64Array(count), new Float64Array(count)];
  for (let i = 0; i < count; i += 1) {
    let error = 0;
    let energy = 0;
    for (let c = 0, at = i * a.wide; c < a.channels; c += 1, at += 1) {
      const [s, t] = [a.data[at], b.data[at]];
      const [s2, t2] = [s * s, t * t];
      error += (((s - t) * (s - t)) / (s2 + t2 + floor[c])) * weight[c];
      energy += (s2 > t2 ? s2 : t2) * weight[c];
    }
    values[i] = (error * error) / (error + threshold);
    if (!means) {
      weights[i] = (energy / total + FLOOR) ** settings.power;
      values[i] *= weights[i];
    }
  }
  if (!means) {
    const mean = cellMean({ ...a, values: weights }, size);
    for (let i = 0; i < count; i += 1) values[i] /= mean;
  }
  return { values, rows: a.rows, columns: a.columns, stride: a.stride };
}

/** Mean over the image's own pixels: a cell counts by the pixels of the image that it covers. */
function cellMean({ values, rows, columns, stride }, { width, height }) {
  let sum = 0;
  for (let y = 0, i = 0; y < rows; y += 1) {
    let line = 0;
    for (let x = 0; x < columns; x += 1, i += 1) line += values[i] * Math.min(stride, width - x * stride);
    sum += line * Math.min(stride, height - y * stride);
  }
  return sum / (width * height);
}

/** The perceptual distance of cpips. `await CPIPS.load()` makes one. */
export class CPIPS {
  #engine;

  constructor(engine, { name, digest, signature }) {
    this.#engine = engine;
    Object.assign(this, { name, digest, signature: `${signature}|JavaScript` });
    this.hasQuality = engine.model.quality !== null;
  }

  /**
   * The model whose weights come with the module, or that of `weights`, bytes as `cpips.browser.weights(metric)` gives them in Python.
   * `backend`: 'auto', 'wasm', or 'plain' (JavaScript alone).
   */
  static async load({ weights = null, backend = "auto", background = null, icc = true } = {}) {
    if (!["auto", "wasm", "plain"].includes(backend)) {
      throw new TypeError(`backend ${JSON.stringify(backend)} is unknown: choose from auto, wasm, plain`);
    }
    if (background !== null) color(background);
    const parsed = parse(weights ?? bytesOf(WEIGHTS));
    const metric = new CPIPS(await Engine.make(prepare(parsed), backend), parsed.facts);
    return Object.assign(metric, { background, icc });
  }

  /** What is compared of an image: encode once, compare often. It can be sent to a worker and back. */
  async embed(image, name = "the image") {
    const pixels = await readImage(image, { background: this.background, icc: this.icc, name });
    return { kind: "cpips embedding", key: this.signature, ...this.#engine.encode(pixels) };
  }

  /** The distance of an image to its reference: lower is closer, 0 for equal images. Either may be an embedding. */
  async distance(reference, image) {
    return this.#distance(await this.#parts(reference, image));
  }

  /** The expected opinion of people, from 5 (imperceptible) to 1 (very annoying). */
  async quality(reference, image) {
    return this.qualityOf(await this.distance(reference, image));
  }

  /** As `quality`, of a distance. */
  qualityOf(distance) {
    if (!this.hasQuality) throw new WeightsError(`${this.name} has no fit to human ratings: use the default model`);
    const [middle, steepness] = this.#engine.model.quality;
    return 1 + 4 / (1 + (distance / middle) ** steepness);
  }

  /** Where the images differ: `{data, width, height}`, whose mean is the distance. */
  async map(reference, image) {
    return this.#map(await this.#parts(reference, image));
  }

  /** Distance, quality, its words, the share of people who see a difference, and the map, at once. */
  async compare(reference, image) {
    const parts = await this.#parts(reference, image);
    const distance = this.#distance(parts);
    const opinion = this.hasQuality ? this.qualityOf(distance) : null;
    const said = opinion === null ? {} : { quality: opinion, words: words(opinion), visibility: visibility(opinion) };
    return { distance, ...said, map: this.#map(parts), signature: this.signature };
  }

  async #parts(reference, image) {
    const own = async (each, name) => {
      if (each?.kind !== "cpips embedding") return this.embed(each, name);
      if (each.key !== this.signature) {
        throw new ImageError("the embedding was made by another metric: embed the images with the metric that compares them");
      }
      return each;
    };
    const [a, b] = [await own(reference, "the reference"), await own(image, "the image")];
    checkSameSize(a, b);
    const { head, color: weight } = this.#engine.model;
    const size = { width: a.width, height: a.height };
    const cells = a.maps.map((map, i) => compareMaps(map, b.maps[i], head[map.tap].scales[map.scale], size, i % 2 === 0));
    const colors = a.color.reduce((sum, value, c) => sum + weight[c] * (value - b.color[c]) ** 2, 0);
    return { ...size, cells, colors };
  }

  #distance({ cells, colors, ...size }) {
    return cells.reduce((sum, each) => sum + cellMean(each, size), colors);
  }

  #map({ cells, colors, width, height }) {
    const finest = Math.min(...cells.map(({ stride }) => stride));  // of which all strides are multiples
    const columns = Math.ceil(width / finest);
    const line = new Float64Array(columns);
    const data = new Float32Array(width * height);
    for (let y = 0; y < height; y += finest) {
      line.fill(colors);
      for (const each of cells) {
        const from = Math.floor(y / each.stride) * each.columns;
        for (let x = 0; x < columns; x += 1) line[x] += each.values[from + Math.floor((x * finest) / each.stride)];
      }
      const at = y * width;
      for (let x = 0; x < width; x += 1) data[at + x] = line[Math.floor(x / finest)];
      for (let copy = y + 1; copy < Math.min(y + finest, height); copy += 1) data.copyWithin(copy * width, at, at + width);
    }
    return { data, width, height };
  }
}
