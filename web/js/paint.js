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
