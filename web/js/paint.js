// @ts-check
/** From a run to pixels: one pixel a token, RGBA. */

/** Stops from the perceptually even maps of matplotlib (public domain), dark to bright; safe for every kind of colour blindness. */
const STOPS = {
  viridis: [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]],
  cividis: [[0, 34, 78], [66, 78, 108], [124, 123, 120], [188, 175, 111], [255, 234, 70]],
  grey: [[30, 30, 30], [90, 90, 90], [150, 150, 150], [205, 205, 205], [250, 250, 250]],
};
export const PALETTES = /** @type {(keyof typeof STOPS)[]} */ (Object.keys(STOPS));

/** Kinds of steps on the timeline: told apart by height as well as by colour. */
export const KIND_STYLE = {
  warmup: { height: 1, colour: "#8a8f98" },
  refresh: { height: 1, colour: "#e69f00" },
  selective: { height: 0.6, colour: "#56b4e9" },
  skipped: { height: 0.2, colour: "#009e73" },
  coarse: { height: 0.4, colour: "#cc79a7" },
};

const DIMMED = 0.4;

/**
 * @param {string} palette
 * @returns {Uint8Array} 256 colours, three bytes each
 */
export function lookup(palette) {
  const stops = STOPS[/** @type {keyof typeof STOPS} */ (palette)] ?? STOPS.viridis;
  const table = new Uint8Array(256 * 3);
  for (let i = 0; i < 256; i++) {
    const at = (i / 255) * (stops.length - 1);
    const from = Math.min(Math.floor(at), stops.length - 2);
    for (let c = 0; c < 3; c++) table[3 * i + c] = stops[from][c] + (at - from) * (stops[from + 1][c] - stops[from][c]);
  }
  return table;
}

/**
 * Active tokens in the colour of their sensitivity, the others dimmed.
 * @param {{ w: number, h: number, sens: Uint8Array | null }} run
 * @param {import("./plan.js").Kind | null} kind
 * @param {Uint8Array | null} active null: all tokens, none where the step is skipped
 * @param {Uint8Array} colours
 * @param {number} alpha 0..255
 * @returns {Uint8ClampedArray<ArrayBuffer>}
 */
export function pixels({ w, h, sens }, kind, active, colours, alpha = 255) {
  const found = new Uint8ClampedArray(4 * w * h);
  for (let i = 0; i < w * h; i++) {
    const on = kind === "skipped" ? false : active ? active[i] : true;
    const value = 3 * (sens ? sens[i] : on ? 200 : 60);
    const bright = on ? 1 : DIMMED;
    for (let c = 0; c < 3; c++) found[4 * i + c] = colours[value + c] * bright;
    found[4 * i + 3] = alpha;
  }
  return found;
}

/**
 * What the two pictures of a slider are: the dense one to the left, the accelerated one to the right, above it where there is no room beside.
 * @param {CanvasRenderingContext2D} context
 * @param {{ width: number, bottom: number }} place
 * @param {number} scale points of the canvas in one of the page
 * @param {[string, string]} labels of the accelerated and the dense picture
 */
export function drawLabels(context, { width, bottom }, scale, [accelerated, dense]) {
  const [margin, line] = [6 * scale, 18 * scale];
  context.font = `${12 * scale}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const wide = (/** @type {string} */ text) => context.measureText(text).width + 2 * margin;
  const draw = (/** @type {string} */ text, /** @type {number} */ left, /** @type {number} */ top) => {
    context.fillStyle = "rgba(0, 0, 0, 0.65)";
    context.fillRect(left, top, wide(text), line);
    context.fillStyle = "#fff";
    context.fillText(text, left + margin, top + line / 2);
  };
  const top = bottom - line - margin;
  const above = wide(dense) + wide(accelerated) + 3 * margin > width;
  draw(dense, margin, top);
  draw(accelerated, width - margin - wide(accelerated), above ? top - line : top);
}

/** How close two pictures of one size are: PSNR in dB, infinite where they are equal. @param {ImageBitmap} first @param {ImageBitmap} second */
export function closeness(first, second) {
  const [one, other] = [first, second].map((picture) => {
    const context = /** @type {OffscreenCanvasRenderingContext2D} */ (new OffscreenCanvas(first.width, first.height).getContext("2d"));
    context.drawImage(picture, 0, 0);
    return context.getImageData(0, 0, first.width, first.height).data;
  });
  const squares = one.reduce((sum, value, i) => sum + (value - other[i]) ** 2, 0);
  // Of four values a point has one is its opacity, which is always the same.
  return 10 * Math.log10((255 ** 2 * one.length * 0.75) / squares);
}
