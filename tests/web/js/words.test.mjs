// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";
import { Run } from "../../../web/js/runs.js";
import { barsOf } from "../../../web/js/timeline.js";
import { cautions, details, duration, headline, stepLine } from "../../../web/js/words.js";

/** @type {any} */
const plan = { plan: ["warmup", "refresh", "skipped", "refresh"], share: 0.75, steps: 4, exact: true, paints: false, step: null, cure: null };

/** @param {[string, number][]} steps kind and milliseconds @param {number} total */
function runOf(steps, total = steps.length) {
  const run = new Run("p|3", { w: 0, h: 0, total });
  run.evaluations = /** @type {any[]} */ (steps.map(([kind, ms], step) => ({ step, kind, ms, rows: [0, 0], k: null, mask: null })));
  return run;
}

const facts = (/** @type {any} */ more) => ({ run: null, prediction: null, full: null, changed: false, painted: false, ...more });
const whole = () => runOf([["warmup", 2000], ["refresh", 2000], ["skipped", 0], ["refresh", 2000]]);

test("seconds as one says them", () => {
  assert.deepEqual([0.412, 3.14, 28.4, 99.6, 150].map(duration), ["0.41 s", "3.1 s", "28 s", "1 min 40 s", "2 min 30 s"]);
});

test("before a run: the factor, and seconds once a step's are known", () => {
  assert.deepEqual(headline(facts({ prediction: plan })), { strong: "about 1.3x faster", rest: "3 of 4 steps in full" });
  assert.deepEqual(headline(facts({ prediction: { ...plan, step: 10 } })), { strong: "about 1.3x faster", rest: "30 s instead of about 40 s" });
  assert.deepEqual(headline(facts({ prediction: { ...plan, step: 10 }, full: 36 })), { strong: "about 1.3x faster", rest: "27 s instead of 36 s" });
  assert.equal(headline(facts({ prediction: { ...plan, steps: null } })).rest, "at 4 steps");
  assert.deepEqual(headline(facts({})), { strong: "no run yet", rest: "" });
});

test("during a run: by its own full steps; after it: what it took", () => {
  const running = runOf([["warmup", 10000]], 4);
  assert.deepEqual(headline(facts({ run: running, prediction: plan })), { strong: "about 1.3x faster", rest: "30 s instead of about 40 s" });
  assert.deepEqual(headline(facts({ run: whole() })), { strong: "1.3x faster", rest: "6.0 s instead of about 8.0 s" });
  assert.deepEqual(headline(facts({ run: whole(), prediction: plan, full: 9 })), { strong: "1.5x faster", rest: "6.0 s instead of 9.0 s" });
  assert.equal(headline(facts({ run: runOf([["warmup", 100], ["refresh", 100]]) })).strong, "not faster");
});

test("an interrupted run has no time, and says where it ended", () => {
  const run = runOf([["warmup", 10], ["refresh", 10]], 4);
  run.ended = "interrupted";
  assert.match(headline(facts({ run, prediction: plan })).strong, /^about/);
  assert.equal(headline(facts({ run })).strong, "", "it is over: the amber line says so");
  assert.match(cautions(facts({ run, prediction: plan }))[0], /^Interrupted at step 2 of 4/);
  run.ended = "failed";
  assert.match(cautions(facts({ run }))[0], /failed at step 2 of 4/);
});

test("sentences of a run are amber where it did something else than asked or planned, and folded otherwise", () => {
  const run = whole();
  run.notes = ["An explanation.", "Something else was done."];
  assert.deepEqual(cautions(facts({ run, prediction: plan })), []);
  assert.deepEqual(details(facts({ run, prediction: plan }), 3).slice(1), run.notes);
  run.evaluations[2].kind = "refresh";
  assert.deepEqual(cautions(facts({ run, prediction: plan })), run.notes, "more ran in full than planned");
  run.warnings.add("Something else was done.");
  assert.deepEqual(cautions(facts({ run, prediction: plan })), ["Something else was done."]);
  assert.deepEqual(details(facts({ run, prediction: plan }), 3).slice(1), ["An explanation."]);
});

test("what is painted for nothing, and what to change where little is saved", () => {
  assert.match(cautions(facts({ prediction: plan, painted: true }))[0], /^What is painted has no effect/);
  const cure = { name: "fewSteps", values: { steps: 4, full: 4, enough: 12 } };
  assert.match(cautions(facts({ prediction: { ...plan, cure } }))[0], /^Only 4 steps: .* from about 12 steps, or with preset speedup\.$/);
  assert.match(stepLine(whole(), 1), /^step 2 of 4/);
});

test("bars: what was seen, then what is still to come", () => {
  const running = runOf([["warmup", 10]], 4);
  assert.deepEqual(barsOf(running, plan.plan).map(({ seen }) => seen), [true, false, false, false]);
  assert.deepEqual(barsOf(whole(), plan.plan).map(({ seen }) => seen), [true, true, true, true]);
  assert.deepEqual(barsOf(null, plan.plan).map(({ kind }) => kind), plan.plan);
});
