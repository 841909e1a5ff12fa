// @ts-check
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { planRun } from "../../../web/js/budget.js";
import { fullStep, measured, predictedShare } from "../../../web/js/plan.js";

const fixture = JSON.parse(readFileSync(new URL("../../fixtures/plans.json", import.meta.url), "utf8"));

/** As the engine writes a step. @param {string} kind */
const letter = (kind) => (kind === "skipped" ? "-" : kind[0]);

test("the plan and its cost are those of the engine", () => {
  assert.ok(fixture.cases.length > 500);
  for (const { progress, warmup, schedule, window, keep_ratio, sampler, coarse, plan, share } of fixture.cases) {
    const found = planRun(progress, warmup, schedule, sampler, window, coarse, fixture.costs);
    assert.equal(found.map(letter).join(""), plan, JSON.stringify({ progress, warmup, schedule, sampler, window, coarse }));
    assert.ok(Math.abs(predictedShare(found, keep_ratio, fixture.costs) - share) < 1e-8);
  }
});

test("a run is measured against its own full steps", () => {
  const kinds = [["warmup", 10], ["refresh", 12], ["skipped", 0], ["refresh", 11], ["selective", 3]];
  const run = /** @type {any[]} */ (kinds.map(([kind, ms], step) => ({ step, kind, ms })));
  assert.deepEqual(measured(run), { ours: 0.036, full: 0.055 });
  assert.equal(measured(run.slice(2, 3)), null);
  assert.equal(fullStep(run), 0.011);
  assert.equal(fullStep(run.flatMap((evaluation) => [evaluation, evaluation])), 0.022, "two evaluations a step");
});
