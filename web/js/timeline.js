// @ts-check
/** The bars, one a step, and what their colours mean. */
import { KIND_STYLE } from "./paint.js";
import { KINDS } from "./plan.js";
import { t } from "./text.js";

/** @typedef {import("./plan.js").Kind} Kind */
/** A bar: where, of which kind, and whether it was seen or is only expected. @typedef {{ place: number, kind: Kind, seen: boolean }} Bar */

/**
 * What was seen, and what is still to come.
 * @param {import("./runs.js").Run | null} run @param {readonly Kind[]} plan
 * @returns {Bar[]}
 */
export function barsOf(run, plan) {
  const places = run?.places() ?? [];
  const seen = places.map((place, i) => ({ place, kind: /** @type {import("./runs.js").Run} */ (run).evaluations[i].kind, seen: true }));
  const next = places.length ? places[places.length - 1] + 1 : 0;
  const expected = run?.finished || run?.complete ? [] : plan.map((kind, place) => ({ place, kind, seen: false })).filter(({ place }) => place >= next);
  return [...seen, ...expected];
}

/**
 * @param {{ context: CanvasRenderingContext2D, width: number, height: number, scale: number }} canvas
 * @param {Bar[]} bars @param {number} slots @param {number | null} looked the place looked at
 */
export function drawBars({ context, width, height, scale }, bars, slots, looked) {
  const slot = width / slots;
  const faint = bars.some(({ seen }) => seen) ? 0.4 : 1;
  for (const { place, kind, seen } of bars) {
    const bar = Math.max(KIND_STYLE[kind].height * (height - 6 * scale), 2);
    context.globalAlpha = seen ? 1 : faint;
    context.fillStyle = KIND_STYLE[kind].colour;
    context.fillRect(place * slot + slot * 0.08, height - bar, slot * 0.84, bar);
  }
  context.globalAlpha = 1;
  if (looked === null) return;
  context.strokeStyle = getComputedStyle(context.canvas).color;
  context.lineWidth = 2 * scale;
  context.strokeRect(looked * slot + scale, scale, Math.max(slot - 2 * scale, scale), height - 2 * scale);
}

/** A square and a word for each kind among the bars. @param {HTMLElement} element @param {Bar[]} bars */
export function writeLegend(element, bars) {
  const present = KINDS.filter((kind) => bars.some((bar) => bar.kind === kind));
  if (element.dataset.kinds === present.join(" ")) return;
  element.dataset.kinds = present.join(" ");
  element.replaceChildren(...present.map((kind) => {
    const [entry, square] = [document.createElement("span"), document.createElement("i")];
    square.style.background = KIND_STYLE[kind].colour;
    entry.append(square, t(`legend_${kind}`));
    return entry;
  }));
}
