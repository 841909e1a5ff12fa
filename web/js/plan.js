// @ts-check
/** Which step does what, and what the run will cost: the rule of safe_dit_engine/steps/plan.py. tests/fixtures/plans.json pins both. */

/**
 * @typedef {"warmup" | "anchor" | "selective" | "held"} Kind
 * @typedef {{ refresh_interval: number, start_percent: number, end_percent: number, widen: boolean, held_steps: number }} Schedule
 * @typedef {{ fixed: number, kept: number }} Costs
 */

/** @type {readonly Kind[]} */
export const KINDS = ["warmup", "anchor", "selective", "held"];

/**
 * Kinds of the steps of a run; `window` is the half-open range of steps that may be skipped.
 * @param {number} total
 * @param {number} warmup
 * @param {Schedule} schedule
 * @param {[number, number]} [window]
 * @returns {Kind[]}
 */
export function planSteps(total, warmup, schedule, window = [0, total]) {
  const opens = Math.min(Math.max(window[0], warmup), total);
  const closes = Math.min(window[1], total);
  const interval = schedule.refresh_interval;
  /** @type {Kind[]} */
  let kinds = Array(opens).fill("warmup");
  const short = schedule.widen ? Math.ceil((closes - opens) / interval / 3) : 0;
  for (let index = 0; kinds.length < closes; index += 1) {
    kinds.push(...cycle(schedule, index < short ? 2 + Math.floor((index * (interval - 2)) / short) : interval));
  }
  kinds = kinds.slice(0, Math.max(opens, closes));
  return [...kinds, ...Array(total - kinds.length).fill("anchor")];
}

/**
 * @param {Schedule} schedule
 * @param {number} length
 * @returns {Kind[]}
 */
function cycle(schedule, length) {
  const between = Math.min(length, schedule.refresh_interval) - 1;
  const held = Math.min(schedule.held_steps, between);
  return [...Array(between - held).fill("selective"), ...Array(held).fill("held"), "anchor"];
}

/**
 * Predicted time of a run relative to dense.
 * @param {readonly Kind[]} plan
 * @param {number} keepRatio
 * @param {Costs} costs
 */
export function predictedShare(plan, keepRatio, costs) {
  const selective = Math.min(1, costs.fixed + costs.kept * keepRatio);
  const cost = { warmup: 1, anchor: 1, selective, held: 0 };
  return plan.reduce((sum, kind) => sum + cost[kind], 0) / Math.max(plan.length, 1);
}

/**
 * Share of dense time that a finished run took: its milliseconds over those of as many dense steps, judged by its own dense steps.
 * @param {readonly { kind: Kind, ms: number }[]} evaluations
 * @returns {number | null} null until a dense step was seen
 */
export function measuredShare(evaluations) {
  const dense = evaluations.filter(({ kind }) => kind === "warmup" || kind === "anchor").map(({ ms }) => ms);
  if (!dense.length) return null;
  const sorted = dense.sort((a, b) => a - b);
  const middle = sorted[Math.floor(sorted.length / 2)];
  return evaluations.reduce((sum, { ms }) => sum + ms, 0) / (middle * evaluations.length);
}
