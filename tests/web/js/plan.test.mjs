// @ts-check
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { limited, measuredShare, planSteps, predictedShare } from "../../../web/js/plan.js";

const fixture = JSON.parse(readFileSync(new URL("../../fixtures/plans.json", import.meta.url), "utf8"));

/** As the engine writes a step. @param {string} kind */
const letter = (kind) => (kind === "skipped" ? "-" : kind[0]);

test("the plan and its cost are those of the engine", () => {
  assert.ok(fixture.cases.length > 500);
  for (const { progress, warmup, schedule, window, keep_ratio, sampler, plan, share } of fixture.cases) {
    const found = planSteps(progress, warmup, limited(schedule, sampler), window);
    assert.equal(found.map(letter).join(""), plan, JSON.stringify({ progress, warmup, schedule, sampler, window }));
    assert.ok(Math.abs(predictedShare(found, keep_ratio, fixture.costs) - share) < 1e-8);
  }
});

test("a run is measured against its own full steps", () => {
  const run = /** @type {any[]} */ ([["warmup", 10], ["refresh", 12], ["skipped", 0], ["refresh", 11], ["selective", 3]].map(([kind, ms]) => ({ kind, ms })));
  assert.equal(measuredShare(run), 36 / (11 * 5));
  assert.equal(measuredShare(run.slice(2, 3)), null);
});
