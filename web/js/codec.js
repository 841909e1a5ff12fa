// @ts-check
/** Reads step messages and records of runs (safe_dit_engine/report.py). They may come from anyone's prompt: nothing is believed. */
import { KINDS } from "./plan.js";

/** @typedef {import("./plan.js").Kind} Kind */
/** @typedef {{ step: number, kind: Kind, rows: [number, number], ms: number, k: number | null, mask: Uint8Array | null }} Evaluation */
/** Noise levels of a run, the steps that need not be computed in full, and what its sampler lets presets do; whether the latent is large enough for coarse steps. @typedef {{ progress: number[], window: [number, number], skipped: number, selective: number, reach: number, begins: number, even: boolean, coarse: boolean }} Levels */
/** @typedef {{ w: number, h: number, total: number, sens: Uint8Array | null, cache: number, masks: number[] | null, levels: Levels | null }} Header */

export const VERSION = 1;
/** More tokens than any picture that fits a card: 16,384 px a side at 16 px a token. */
const MOST_TOKENS = 1024 * 1024;
const MOST_STEPS = 100_000;
const LONGEST_SENTENCE = 1000;

/**
 * @param {unknown} text
 * @returns {Uint8Array | null}
 */
export function bytesOf(text) {
  if (typeof text !== "string") return null;
  try {
    return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  } catch {
    return null;
  }
}

/**
 * Little-endian bits to one byte a token.
 * @param {Uint8Array} bytes
 * @param {number} count
 */
export function bitsOf(bytes, count) {
  const bits = new Uint8Array(count);
  for (let i = 0; i < count; i++) bits[i] = (bytes[i >> 3] >> (i & 7)) & 1;
  return bits;
}

/**
 * Values on one grid to the nearest of another.
 * @param {Uint8Array} values
 * @param {[number, number]} from width and height
 * @param {[number, number]} to
 */
export function resized(values, [w, h], [width, height]) {
  if (w === width && h === height) return values;
  const found = new Uint8Array(width * height);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++)
      found[y * width + x] = values[Math.floor(((y + 0.5) * h) / height) * w + Math.floor(((x + 0.5) * w) / width)];
  return found;
}

/**
 * @param {unknown} value
 * @param {number} most
 * @returns {value is number}
 */
function isCount(value, most) {
  return Number.isInteger(value) && Number(value) >= 0 && Number(value) <= most;
}

/**
 * @param {any} message
 * @returns {{ header: Header, evaluation: Evaluation } | null} null for what is no step message of this version
 */
export function readStep(message) {
  const header = readHeader(message);
  const kind = KINDS.find((known) => known === message?.kind);
  if (!header || !kind || !isCount(message.step, MOST_STEPS) || !isPair(message.rows)) return null;
  const bytes = bytesOf(message.mask);
  const tokens = header.w * header.h;
  const mask = bytes && bytes.length === (tokens + 7) >> 3 ? bitsOf(bytes, tokens) : null;
  const { step, rows, ms, k } = message;
  return { header, evaluation: { step, kind, rows, ms: Number(ms) || 0, k: isCount(k, MOST_TOKENS) ? k : null, mask } };
}

/**
 * @param {any} message
 * @returns {{ sentence: string, warning: boolean } | null} null for what is no sentence about a run; a warning says that something else was done than asked for
 */
export function readNote(message) {
  const { v, level, sentence } = message ?? {};
  if (v !== VERSION || !["info", "warn"].includes(level) || typeof sentence !== "string" || sentence.length > LONGEST_SENTENCE) return null;
  return { sentence, warning: level === "warn" };
}

/**
 * @param {any} record what the Report node shows of a run
 * @returns {{ header: Header, evaluations: Evaluation[] } | null}
 */
export function readRecord(record) {
  const header = readHeader(record);
  if (!header || !Array.isArray(record.steps)) return null;
  const bytes = bytesOf(record.mask);
  const tokens = header.w * header.h;
  const mask = bytes && bytes.length === (tokens + 7) >> 3 ? bitsOf(bytes, tokens) : null;
  const evaluations = [];
  for (const [step, name, active, total, ms] of record.steps) {
    const kind = KINDS.find((known) => known === name);
    if (!kind || !isCount(step, MOST_STEPS) || !isPair([active, total])) return null;
    const selective = kind === "selective";
    const k = selective ? record.k : kind === "skipped" ? 0 : null;
    evaluations.push({ step, kind, rows: /** @type {[number, number]} */ ([active, total]), ms: Number(ms) || 0, k, mask: selective ? mask : null });
  }
  return { header, evaluations };
}

/**
 * @param {any} data
 * @returns {Header | null}
 */
function readHeader(data) {
  if (data?.v !== VERSION || !isCount(data.total, MOST_STEPS)) return null;
  if (!isCount(data.w, MOST_TOKENS) || !isCount(data.h, MOST_TOKENS) || data.w * data.h > MOST_TOKENS) return null;
  const counts = data.masks ?? null;
  const masks = Array.isArray(data.mask_counts) ? data.mask_counts : Array.isArray(counts) ? counts : null;
  return { w: data.w, h: data.h, total: data.total, sens: sensitivity(data), cache: Number(data.cache ?? data.cache_bytes) || 0, masks, levels: levelsOf(data) };
}

/** @param {any} data @returns {Levels | null} */
function levelsOf({ levels, total }) {
  const { progress, window, skipped, selective, reach, begins, even, coarse } = levels ?? {};
  const believed = Array.isArray(progress) && progress.length === total + 1 && progress.every((level) => Number.isFinite(level)) && isPair(window);
  return believed && isCount(skipped, MOST_STEPS) && isCount(selective, MOST_STEPS) && Number.isFinite(reach) ? { progress, window, skipped, selective, reach, begins: Number(begins) || 0, even: Boolean(even), coarse: Boolean(coarse) } : null;
}

/** @param {any} data */
function sensitivity({ sens, w, h }) {
  const bytes = bytesOf(sens);
  if (!bytes) return null;
  if (bytes.length === w * h) return bytes;
  // A record pools large maps to at most 64 a side.
  const [width, height] = [Math.min(w, 64), Math.min(h, 64)];
  return bytes.length === width * height ? resized(bytes, [width, height], [w, h]) : null;
}

/** @param {unknown} pair */
function isPair(pair) {
  return Array.isArray(pair) && pair.length === 2 && pair.every((value) => isCount(value, Number.MAX_SAFE_INTEGER));
}
