/** Pixels row by row, channels last: bytes 0 to 255, or floats in [0,1]; RGB, or RGBA. */
export interface Pixels {
  data: Uint8Array | Uint8ClampedArray | Float32Array | Float64Array;
  width: number;
  height: number;
  /** 3 or 4; default: as many as the data has for each pixel. */
  channels?: number;
}

/** What is compared: a file, pixels, or what the browser shows. */
export type Image =
  | Blob
  | ImageData
  | Pixels
  | HTMLImageElement
  | HTMLCanvasElement
  | HTMLVideoElement
  | OffscreenCanvas
  | ImageBitmap
  | VideoFrame;

/** A color that transparent images are laid over: 'white', 'black', 'gray', '#rrggbb', or three numbers in [0,1]. */
export type Background = string | readonly [number, number, number];

export interface ReadOptions {
  /** Default: null, which refuses images with transparent pixels. */
  background?: Background | null;
  /** Whether color profiles of files are applied. Default: true. */
  icc?: boolean;
}

export interface LoadOptions extends ReadOptions {
  /** As `cpips.browser.weights(metric)` gives them in Python. Default: those of the default model, which come with the module. */
  weights?: ArrayBuffer | Uint8Array | null;
  /** Default: 'auto', WebAssembly where it can be used; 'plain' is JavaScript alone. */
  backend?: "auto" | "wasm" | "plain";
}

/** Plain data, which can be sent to a worker and back, or stored. */
export interface Embedding {
  readonly kind: "cpips embedding";
  /** Of the metric that made it; no other compares it. */
  readonly key: string;
  readonly width: number;
  readonly height: number;
  /** Mean red, green and blue, in [0,1]. */
  readonly color: readonly number[];
  /** Local means and contrasts, at each scale and tap in turn, channels last. */
  readonly maps: readonly FeatureMap[];
}

export interface FeatureMap {
  readonly data: Float32Array;
  readonly rows: number;
  readonly columns: number;
  /** Values that a cell has, of which the first `channels` count. */
  readonly wide: number;
  readonly channels: number;
  readonly tap: string;
  readonly scale: number;
  /** Pixels of the image that a cell covers, each way. */
  readonly stride: number;
}

/** A map of an image, row by row, one value a pixel. Its mean is the distance. */
export interface DistanceMap {
  data: Float32Array;
  width: number;
  height: number;
}

export interface Comparison {
  /** Lower is closer; 0 for equal images. */
  distance: number;
  /** The expected opinion of people, 5 imperceptible to 1 very annoying; absent for a model without a fit to human ratings. */
  quality?: number;
  /** The words of the nearest grade. */
  words?: string;
  /** The probability that a person sees a difference, in [0,1]. */
  visibility?: number;
  map: DistanceMap;
  signature: string;
}

/** An image that cannot be compared; the message says what was given and how to fix it. */
export class ImageError extends Error {}

/** Weights that are damaged, or not made for this module. */
export class WeightsError extends Error {}

/** The perceptual distance of cpips. All methods take images or embeddings, the reference first. */
export class CPIPS {
  private constructor();
  static load(options?: LoadOptions): Promise<CPIPS>;
  readonly name: string;
  readonly digest: string;
  /** What was measured: print it beside scores. */
  readonly signature: string;
  readonly hasQuality: boolean;
  background: Background | null;
  icc: boolean;
  embed(image: Image, name?: string): Promise<Embedding>;
  distance(reference: Image | Embedding, image: Image | Embedding): Promise<number>;
  quality(reference: Image | Embedding, image: Image | Embedding): Promise<number>;
  qualityOf(distance: number): number;
  map(reference: Image | Embedding, image: Image | Embedding): Promise<DistanceMap>;
  compare(reference: Image | Embedding, image: Image | Embedding): Promise<Comparison>;
}

/** The words of the nearest grade of the scale, for a quality from 1 to 5. */
export function words(quality: number): string;

/** The probability that a person sees a difference, for a quality from 1 to 5. */
export function visibility(quality: number): number;

/** Pixels of an image, checked. */
export function readImage(image: Image, options?: ReadOptions & { name?: string }): Promise<Pixels>;
