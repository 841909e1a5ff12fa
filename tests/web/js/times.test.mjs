// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";
import { Times } from "../../../web/js/times.js";

test("what was timed is known to the next page of the tab, and does not pile up", () => {
  /** @type {Map<string, string>} */
  const kept = new Map();
  const storage = { getItem: (/** @type {string} */ name) => kept.get(name) ?? null, setItem: (/** @type {string} */ name, /** @type {string} */ text) => void kept.set(name, text) };
  const times = new Times(storage);
  assert.equal(times.steps.get("model"), undefined);
  times.stepTimed("model", 1.5);
  times.fullTimed("model euler 20", 30);
  for (let i = 0; i < 500; i++) times.stepTimed(`another ${i}`, i);
  times.stepTimed("model", 1.25);
  const again = new Times(storage);
  assert.equal(again.steps.get("model"), 1.25);
  assert.equal(again.fulls.get("model euler 20"), 30);
  assert.equal(again.steps.size, 64);
});

test("without a place to keep them they are known to this page", () => {
  const times = new Times();
  times.fullTimed("model", 3);
  assert.equal(times.fulls.get("model"), 3);
});
