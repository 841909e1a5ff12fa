// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";
import { KIND_STYLE, lookup, PALETTES, pixels } from "../../../web/js/paint.js";
import { KINDS } from "../../../web/js/plan.js";

/** Brightness as the eye sees it. @param {Uint8Array | Uint8ClampedArray} rgb @param {number} at */
const luminance = (rgb, at) => 0.2126 * rgb[at] + 0.7152 * rgb[at + 1] + 0.0722 * rgb[at + 2];

test("more sensitive is brighter in every palette, also to those who see no colours", () => {
  for (const palette of PALETTES) {
    const table = lookup(palette);
    for (let i = 8; i < 256; i += 8) assert.ok(luminance(table, 3 * i) > luminance(table, 3 * (i - 8)), `${palette} ${i}`);
  }
  assert.deepEqual(lookup("unknown"), lookup("viridis"));
});

test("kinds of steps differ in height, not only in colour, but for those that compute everything", () => {
  const heights = KINDS.map((kind) => KIND_STYLE[kind].height);
  assert.deepEqual(heights, [1, 1, 0.6, 0.2, 0.4]);
  assert.equal(new Set(KINDS.map((kind) => KIND_STYLE[kind].colour)).size, KINDS.length);
});

test("tokens that are not computed are dimmed", () => {
  const run = { w: 2, h: 1, sens: Uint8Array.from([255, 255]) };
  const table = lookup("grey");
  const some = pixels(run, "selective", Uint8Array.from([1, 0]), table);
  assert.ok(luminance(some, 0) > 2 * luminance(some, 4));
  const all = pixels(run, "refresh", null, table);
  assert.deepEqual([...all.slice(0, 4)], [...all.slice(4)]);
  const none = pixels(run, "skipped", null, table, 99);
  assert.ok(luminance(none, 0) < 0.5 * luminance(all, 0));
  assert.equal(none[3], 99);
});

test("without a map, active and held tokens still differ", () => {
  const found = pixels({ w: 2, h: 1, sens: null }, "selective", Uint8Array.from([1, 0]), lookup("viridis"));
  assert.ok(luminance(found, 0) > luminance(found, 4));
});
