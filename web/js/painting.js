// @ts-check
/** Tokens painted on the map: the text that is saved, and what it forces. The rule of safe_dit_engine/tokens/painting.py; tests/fixtures/plans.json pins both. */
import { resized } from "./codec.js";

/** @typedef {{ w: number, h: number, tokens: Uint8Array }} Painting */

export const FREE = 0;
export const SENSITIVE = 1;
export const CONTEXT = 2;
const LETTERS = "fsc";
const TEXT = /^([1-9]\d{0,6})x([1-9]\d{0,6}):((?:[1-9]\d{0,6}[fsc])*)$/;
const MOST_TOKENS = 1024 * 1024;

/**
 * @param {unknown} text
 * @returns {Painting | null} null where nothing is painted, and for what is no painting: the server says what is wrong with it
 */
export function parsePainting(text) {
  const found = typeof text === "string" ? TEXT.exec(text) : null;
  if (!found) return null;
  const [w, h] = [Number(found[1]), Number(found[2])];
  if (w * h > MOST_TOKENS) return null;
  const tokens = new Uint8Array(w * h);
  let at = 0;
  for (const [, count, letter] of found[3].matchAll(/(\d+)([fsc])/g)) {
    tokens.fill(LETTERS.indexOf(letter), at, at + Number(count));
    at += Number(count);
  }
  return at <= tokens.length && tokens.some(Boolean) ? { w, h, tokens } : null;
}

/**
 * The shortest text.
 * @param {Painting} painting
 */
export function formatPainting({ w, h, tokens }) {
  const parts = [];
  for (const { from, to, value } of runsOf(tokens)) if (value || to < tokens.length) parts.push(`${to - from}${LETTERS[value]}`);
  return tokens.some(Boolean) ? `${w}x${h}:${parts.join("")}` : "";
}

/**
 * Stretches of the same value.
 * @param {Uint8Array} tokens
 * @returns {Generator<{ from: number, to: number, value: number }>}
 */
export function* runsOf(tokens) {
  for (let from = 0, to = 0; from < tokens.length; from = to) {
    while (to < tokens.length && tokens[to] === tokens[from]) to++;
    yield { from, to, value: tokens[from] };
  }
}

/**
 * @param {Painting} painting
 * @param {number} width
 * @param {number} height
 * @returns {Painting}
 */
export function resizedPainting({ w, h, tokens }, width, height) {
  return { w: width, h: height, tokens: Uint8Array.from(resized(tokens, [w, h], [width, height])) };
}

/**
 * How many tokens are painted sensitive and context.
 * @param {Painting} painting
 */
export function countsOf({ tokens }) {
  const counts = [0, 0, 0];
  for (const value of tokens) counts[value]++;
  return { sensitive: counts[SENSITIVE], context: counts[CONTEXT] };
}

/**
 * How many of `tokens` a selective step computes when so many are forced; at least one.
 * @param {number} tokens
 * @param {number} keepRatio
 * @param {number} sensitive
 * @param {number} context
 */
export function keptTokens(tokens, keepRatio, sensitive, context) {
  return Math.max(1, Math.min(Math.max(Math.ceil(keepRatio * tokens), sensitive), tokens - context));
}

/**
 * The border around all tokens of a value.
 * @param {Painting} painting
 * @param {number} value
 * @returns {[number, number, number, number][]} lines from x, y to x, y, in tokens
 */
export function outline({ w, h, tokens }, value) {
  const is = (/** @type {number} */ x, /** @type {number} */ y) => x >= 0 && y >= 0 && x < w && y < h && tokens[y * w + x] === value;
  /** @type {[number, number, number, number][]} */
  const lines = [];
  for (let y = 0; y <= h; y++)
    for (let x = 0; x <= w; x++) {
      if (is(x, y) !== is(x, y - 1)) lines.push([x, y, x + 1, y]);
      if (is(x, y) !== is(x - 1, y)) lines.push([x, y, x, y + 1]);
    }
  return lines;
}

/**
 * Tokens under a round brush that is drawn from one place to another; always those under the line itself.
 * @param {{ w: number, h: number }} grid
 * @param {[number, number]} from x and y, in tokens
 * @param {[number, number]} to
 * @param {number} radius in tokens
 * @returns {Set<number>}
 */
export function brushed({ w, h }, from, to, radius) {
  const found = new Set();
  const pieces = Math.max(1, Math.ceil(4 * Math.max(Math.abs(to[0] - from[0]), Math.abs(to[1] - from[1]))));
  for (let piece = 0; piece <= pieces; piece++) {
    const [x, y] = [0, 1].map((axis) => from[axis] + ((to[axis] - from[axis]) * piece) / pieces);
    const [left, top] = [Math.floor(x - radius), Math.floor(y - radius)];
    for (let row = Math.max(top, 0); row <= Math.min(y + radius, h - 1); row++)
      for (let column = Math.max(left, 0); column <= Math.min(x + radius, w - 1); column++) {
        const under = Math.floor(x) === column && Math.floor(y) === row;
        if (under || Math.hypot(column + 0.5 - x, row + 0.5 - y) <= radius) found.add(row * w + column);
      }
  }
  return found;
}
