// @ts-check
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { brushed, countsOf, formatPainting, keptTokens, outline, parsePainting, resizedPainting } from "../../../web/js/painting.js";

const fixture = JSON.parse(readFileSync(new URL("../../fixtures/plans.json", import.meta.url), "utf8"));
const digits = (/** @type {Uint8Array} */ tokens) => [...tokens].join("");
const read = (/** @type {string} */ text) => /** @type {import("../../../web/js/painting.js").Painting} */ (parsePainting(text));

test("paintings are read, written and resized as the engine does", () => {
  assert.ok(fixture.paintings.length > 4);
  for (const { text, tokens, shortest, resized } of fixture.paintings) {
    const painting = read(text);
    assert.equal(digits(painting.tokens), tokens, text);
    assert.equal(formatPainting(painting), shortest);
    for (const [width, height, expected] of resized) assert.equal(digits(resizedPainting(painting, width, height).tokens), expected);
  }
});

test("as many tokens are computed as in the engine", () => {
  assert.ok(fixture.kept.length > 40);
  for (const [tokens, keep, sensitive, context, kept] of fixture.kept) assert.equal(keptTokens(tokens, keep, sensitive, context), kept);
});

test("what is no painting paints nothing", () => {
  for (const odd of ["", "x", "2x2", "2x2:5s", "2x2:1z", "9999x9999:1s", "2x2:4f", "2x2:1s\n", null, undefined, 7])
    assert.equal(parsePainting(odd), null, String(odd));
});

test("counting", () => {
  assert.deepEqual(countsOf(read("4x2:1s2c1f3s")), { sensitive: 4, context: 2 });
});

test("an outline goes around a region, not through it", () => {
  const sorted = (/** @type {number[][]} */ lines) => lines.map(String).sort();
  assert.deepEqual(sorted(outline(read("3x1:2s"), 1)), sorted([[0, 0, 1, 0], [1, 0, 2, 0], [0, 1, 1, 1], [1, 1, 2, 1], [0, 0, 0, 1], [2, 0, 2, 1]]));
  assert.deepEqual(outline(read("3x1:2s"), 2), []);
});

test("a brush leaves no gaps, and paints at least what is under it", () => {
  const grid = { w: 8, h: 8 };
  assert.deepEqual([...brushed(grid, [2.9, 3.1], [2.9, 3.1], 0)], [3 * 8 + 2]);
  assert.deepEqual([...brushed(grid, [0.5, 0.5], [7.5, 7.5], 0)].filter((i) => i % 9 === 0).length, 8);
  assert.deepEqual([...brushed(grid, [4.5, 4.5], [4.5, 4.5], 1)].sort((a, b) => a - b), [28, 35, 36, 37, 44]);
  assert.deepEqual([...brushed(grid, [-3, 2.5], [-1, 2.5], 0.4)], []);
});
