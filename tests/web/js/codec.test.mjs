// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";
import { bitsOf, bytesOf, readRecord, readStep, resized } from "../../../web/js/codec.js";

const base64 = (/** @type {number[]} */ bytes) => btoa(String.fromCharCode(...bytes));
/** What the server does to a mask. @param {Uint8Array} bits */
function packedBits(bits) {
  const bytes = new Uint8Array((bits.length + 7) >> 3);
  bits.forEach((bit, i) => { bytes[i >> 3] |= (bit ? 1 : 0) << (i & 7); });
  return btoa(String.fromCharCode(...bytes));
}

const message = {
  v: 1, prompt_id: "p", node: "1", step: 2, total: 8, kind: "selective", w: 3, h: 3, k: 2, mask: base64([0b10000010, 1]), sens: null, rows: [5, 12], ms: 3.5,
  cache: 1024, masks: [9, 3, 2, 1],
};

test("bits are little-endian and row-major, there and back", () => {
  const read = readStep(message);
  assert.deepEqual([...(read?.evaluation.mask ?? [])], [0, 1, 0, 0, 0, 0, 0, 1, 1]);
  for (let count = 1; count < 40; count++) {
    const bits = Uint8Array.from({ length: count }, (_, i) => (i * 7 + count) % 3 === 0 ? 1 : 0);
    assert.deepEqual(bitsOf(/** @type {Uint8Array} */ (bytesOf(packedBits(bits))), count), bits);
  }
});

test("what is no message of this version is not believed", () => {
  for (const change of [
    { v: 2 }, { kind: "odd" }, { w: -1 }, { w: 1e9, h: 1e9 }, { total: "8" }, { step: 0.5 }, { rows: [1] }, { rows: null },
  ]) assert.equal(readStep({ ...message, ...change }), null, JSON.stringify(change));
  for (const odd of [null, undefined, 7, "x", [], {}]) assert.equal(readStep(odd), null);
});

test("a mask of the wrong length, or no base64, is left out", () => {
  for (const mask of [base64([1]), base64([1, 2, 3]), "%", 7, null]) assert.equal(readStep({ ...message, mask })?.evaluation.mask, null);
});

test("a record gives its steps, and its map at full size", () => {
  const sens = base64(Array.from({ length: 64 * 64 }, (_, i) => i % 64));
  const steps = [[0, "warmup", 12, 12, 9], [1, "selective", 5, 12, 3], [2, "skipped", 0, 12, 0]];
  const read = readRecord({ v: 1, total: 3, w: 128, h: 64, k: 2, mask: null, sens, steps, cache_bytes: 7, mask_counts: [1, 0, 0, 0], masks: "words" });
  assert.deepEqual(read?.evaluations.map(({ kind, k }) => [kind, k]), [["warmup", null], ["selective", 2], ["skipped", 0]]);
  assert.equal(read?.header.sens?.length, 128 * 64);
  assert.deepEqual([...(read?.header.sens ?? []).slice(0, 5)], [0, 0, 1, 1, 2]);
  assert.deepEqual([read?.header.cache, read?.header.masks], [7, [1, 0, 0, 0]]);
  assert.equal(readRecord({ v: 1, total: 3, w: 1, h: 1, steps: [[0, "odd", 1, 1, 1]] }), null);
  assert.equal(readRecord({}), null);
});

test("resizing takes the nearest", () => {
  assert.deepEqual([...resized(Uint8Array.from([1, 2, 3, 4]), [2, 2], [4, 2])], [1, 1, 2, 2, 3, 3, 4, 4]);
  assert.deepEqual([...resized(Uint8Array.from([1, 2, 3, 4]), [4, 1], [2, 1])], [2, 4]);
});

test("noise levels are believed whole or not at all", () => {
  const levels = { progress: [0, 0.5, 1], window: [0, 2], skipped: 2, selective: 1, reach: 0.75, begins: 0.25, even: true, coarse: true };
  const header = (/** @type {any} */ changed) => readStep({ ...message, total: 2, step: 1, levels: { ...levels, ...changed } })?.header.levels;
  assert.deepEqual(header({}), levels);
  assert.equal(header({ begins: undefined })?.begins, 0, "a record of before samplers had it");
  for (const odd of [{ progress: [0, 1] }, { window: [1] }, { skipped: -1 }, { selective: null }, { reach: "1" }]) assert.equal(header(odd), null, JSON.stringify(odd));
});
