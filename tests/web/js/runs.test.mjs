// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";
import { Runs } from "../../../web/js/runs.js";

const step = (/** @type {any} */ more) => ({
  v: 1, workflow: "W", prompt_id: "p", node: "1", sampler: "3", show: ["1", "9"], step: 0, total: 3, kind: "warmup", w: 2, h: 1, k: null, mask: null,
  sens: null, rows: [4, 4], ms: 5, cache: 0, masks: null, ...more,
});
const record = {
  v: 1, total: 3, w: 2, h: 1, k: 1, mask: btoa("\u0001"), sens: btoa("\u0001\u0002"), cache_bytes: 9, mask_counts: [1, 0, 0, 0], notes: ["a note"],
  ids: { workflow: "W", prompt_id: "p", sampler: "3", show: ["1"] }, steps: [[0, "warmup", 4, 4, 5], [1, "skipped", 0, 4, 0], [2, "selective", 1, 4, 2]],
};

test("a run is shown where its messages say, in its own workflow only", () => {
  const runs = new Runs();
  const run = runs.step(step({}));
  assert.equal(runs.of("W", "1"), run);
  assert.equal(runs.of("W", "9"), run);
  assert.equal(runs.of("W", "2"), null);
  assert.equal(runs.of("another", "1"), null);
});

test("the newest run of a node replaces the one before; two samplers stay apart", () => {
  const runs = new Runs();
  runs.step(step({}));
  const other = runs.step(step({ sampler: "4", show: ["2"] }));
  const next = runs.step(step({ prompt_id: "q" }));
  assert.equal(runs.of("W", "1"), next);
  assert.equal(runs.of("W", "2"), other);
});

test("the record fills the holes and keeps masks that moved", () => {
  const runs = new Runs();
  const run = runs.step(step({}));
  runs.step(step({ step: 2, kind: "selective", rows: [1, 4], ms: 2, mask: btoa("\u0002") }));
  assert.equal(run?.evaluations.length, 2);
  assert.equal(runs.record(record, "W", "9"), run);
  assert.deepEqual(run?.evaluations.map(({ kind }) => kind), ["warmup", "skipped", "selective"]);
  assert.deepEqual([...(run?.activeAt(2) ?? [])], [0, 1]);
  assert.deepEqual([run?.finished, run?.notes, [...(run?.sens ?? [])]], [true, ["a note"], [1, 2]]);
});

test("holes leave their place on the timeline empty; repeated steps are numbered", () => {
  const run = new Runs().step(step({}));
  assert.deepEqual(run?.places(), [0]);
  run?.evaluations.push({ ...run.evaluations[0], step: 2 });
  assert.deepEqual(run?.places(), [0, 2]);
  run?.evaluations.push({ ...run.evaluations[0], step: 2 });
  assert.deepEqual(run?.places(), [0, 1, 2]);
});

test("a record alone is enough, after the page was loaded anew", () => {
  const runs = new Runs();
  const run = runs.record(record, "W", "9");
  assert.equal(runs.of("W", "1"), run);
  assert.equal(runs.of("W", "9"), run);
  assert.deepEqual([...(run?.activeAt(2) ?? [])], [1, 0]);
  assert.equal(run?.activeAt(0), null);
});

test("coarse steps are believed as the other kinds are, live and from the record", () => {
  const runs = new Runs();
  const run = runs.step(step({ kind: "coarse", rows: [0, 0] }));
  assert.deepEqual(run?.evaluations.map(({ kind }) => kind), ["coarse"]);
  assert.equal(run?.activeAt(0), null);
  runs.record({ ...record, steps: [[0, "coarse", 0, 0, 2], [1, "warmup", 4, 4, 5], [2, "refresh", 4, 4, 5]] }, "W", "9");
  assert.deepEqual(run?.evaluations.map(({ kind }) => kind), ["coarse", "warmup", "refresh"]);
});

test("runs do not pile up", () => {
  const runs = new Runs();
  for (let i = 0; i < 500; i++) runs.step(step({ prompt_id: String(i) }));
  assert.equal(runs.byKey.size, 48);
  assert.ok(runs.of("W", "1"));
});

test("what is not believed changes nothing", () => {
  const runs = new Runs();
  assert.equal(runs.step(step({ v: 3 })), null);
  assert.equal(runs.step(step({ prompt_id: undefined })), null);
  assert.equal(runs.record({}, "W", "9"), null);
  assert.equal(runs.byKey.size, 0);
});

test("a sentence is heard once a run, and shown on the node", () => {
  const runs = new Runs();
  const note = (/** @type {any} */ more) => ({ v: 1, level: "warn", sentence: "Computed in full, because of a test.", workflow: "W", prompt_id: "p", sampler: "3", ...more });
  const run = runs.step(step({}));
  assert.deepEqual(runs.note(note({})), { sentence: "Computed in full, because of a test.", warning: true });
  assert.equal(runs.note(note({})), null);
  assert.deepEqual(run?.notes, ["Computed in full, because of a test."]);
  assert.ok(runs.note(note({ prompt_id: "q" })), "the next run says it again");
  assert.equal(runs.note(note({ sentence: "More.", level: "info" }))?.warning, false);
  for (const odd of [note({ v: 2 }), note({ level: "error" }), note({ sentence: 7 }), note({ sentence: "x".repeat(2000) }), {}, null])
    assert.equal(runs.note(odd), null);
  for (let i = 0; i < 2000; i++) runs.note(note({ prompt_id: `many ${i}` }));
  assert.equal(runs.heard.size, 500);
});

test("a run that ends too early is told from one that was complete before its prompt failed", () => {
  const runs = new Runs();
  const early = runs.step(step({}));
  const late = runs.step(step({ sampler: "4", step: 2 }));
  const other = runs.step(step({ prompt_id: "q" }));
  runs.end("p", "interrupted");
  assert.deepEqual([early?.ended, late?.ended, other?.ended], ["interrupted", "done", null]);
  assert.deepEqual([early?.interrupted, late?.interrupted, late?.timed], [true, false, false], "of the late one steps are missing");
});

test("a record says which of its sentences are warnings; those of older versions do not", () => {
  const runs = new Runs();
  assert.deepEqual([...(runs.record({ ...record, warnings: ["a note"] }, "W", "9")?.warnings ?? [])], ["a note"]);
  assert.equal(runs.record(record, "W", "9")?.warnings.size, 0);
});
