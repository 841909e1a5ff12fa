// @ts-check
/** The plan that comes closest to a share of the work: the rule of safe_dit_engine/steps/budget.py. tests/fixtures/plans.json pins both. */
import { fallsThrough, limited, planSteps, predictedShare } from "./plan.js";

/**
 * @typedef {import("./plan.js").Kind} Kind
 * @typedef {import("./plan.js").Schedule} Schedule
 * @typedef {import("./plan.js").Costs} Costs
 * @typedef {{ skipped: number, selective: number, reach: number, begins: number, even: boolean }} Sampler
 */

/** Refresh interval, warm-up and early refresh of the plans that keep the picture. @type {readonly [number, number, boolean][]} */
const KEEPING = [[1, 1, false], [2, 8, false], [2, 4, false], [3, 6, true], [3, 4, true], [3, 2, true], [4, 2, true]];
const SLACK = 0.05;
const LAYOUT = 0.35;
const LONG_LAYOUT = 0.55;
const FEW_STEPS = 10;
const FEW_COARSE = 0.35;
const COARSE_GAP = 0.08;
const THIN_GAP = 0.15;
const HELD = 0.17;
const FREELY = 2;
const WIDEST = 0.65;
const FEW_WIDEST = 0.4;
const TINY = 1e-6;
const GROWTH = 1.15;
const SHORT_STEP = 0.0525;
const SHORT_PAIR = 0.125;
const EVEN = 1.15;
const SELECTIVE_BEGINS = 0.3;
const SELECTIVE_SHORT = 0.9;
const LONG_LATE = 1.1;
const MIDDLE_BEGINS = 0.2;
const BEGIN = 0.05;
/** Of a sampler that is not known yet. @type {Sampler} */
export const USUAL_SAMPLER = { skipped: 3, selective: 1, reach: 1, begins: 0, even: false };

/**
 * The plan of a run, by budget or by the values of `schedule`; `coarse`: whether the latent is large enough for coarse steps.
 * @param {readonly number[]} levels
 * @param {number} warmup
 * @param {Schedule} schedule
 * @param {Sampler} sampler
 * @param {readonly [number, number]} window
 * @param {boolean} coarse
 * @param {Costs} costs
 * @returns {Kind[]}
 */
export function planRun(levels, warmup, schedule, sampler, window, coarse, costs) {
  const progress = fromNoise(levels);
  if (schedule.speedup) return planBudget(progress, schedule.speedup, sampler, window, coarse, costs);
  const asked = limited(coarse ? schedule : { ...schedule, coarse_steps: 0 }, sampler);
  if (!asked.spaced) return planSteps(progress, warmup, asked, window);
  return planSpaced(progress, warmup, asked, sampler, window);
}

/**
 * @param {readonly number[]} progress
 * @param {number} warmup
 * @param {Schedule} asked
 * @param {Sampler} sampler
 * @param {readonly [number, number]} window
 */
function planSpaced(progress, warmup, asked, sampler, window) {
  const steps = progress.length - 1;
  const late = longLate(progress) && progress[0] <= BEGIN;
  const middle = late && endsSlowly(progress);
  const mean = (progress[steps] - progress[0]) / Math.max(steps, 1);
  const long = mean > SHORT_STEP;
  const none = ((sampler.begins > 0 || late) && long) || (sampler.even && longLate(progress));
  const planned = none ? { ...asked, refresh_interval: 1 } : asked;
  const selective = late && !asked.skipped_steps;
  const begins = Math.max(sampler.begins, middle ? MIDDLE_BEGINS : 0, selective ? SELECTIVE_BEGINS : 0);
  const pair = Math.min(sampler.begins ? SHORT_PAIR : Infinity, selective ? 2 * SELECTIVE_SHORT * mean : Infinity);
  return planSteps(progress, warmup, planned, window, begins, pair, middle ? 0 : EVEN);
}

/** The progress of a run, from 0 where it begins in noise. @param {readonly number[]} progress */
function fromNoise(progress) {
  const first = progress[0];
  const last = progress[progress.length - 1];
  if (first <= 0 || first > BEGIN || first >= last) return progress;
  return progress.map((level) => last - ((last - level) * last) / (last - first));
}

/** Whether a step of the later half is long beside the middle one of all. @param {readonly number[]} progress */
function longLate(progress) {
  const lengths = progress.slice(1).map((after, index) => after - progress[index]);
  const half = Math.floor(lengths.length / 2);
  const middle = [...lengths].sort((a, b) => a - b)[half];
  return middle > 0 && Math.max(...lengths.slice(half)) > LONG_LATE * middle;
}

/** Whether the last quarter of the steps comes less than a quarter of the way. @param {readonly number[]} progress */
function endsSlowly(progress) {
  const steps = progress.length - 1;
  const quarter = Math.floor(steps / 4);
  return (progress[steps] - progress[steps - quarter]) * steps < (progress[steps] - progress[0]) * quarter;
}

/**
 * @param {readonly number[]} progress
 * @param {number} speedup
 * @param {Sampler} sampler
 * @param {readonly [number, number]} window
 * @param {boolean} coarse
 * @param {Costs} costs
 * @returns {Kind[]}
 */
function planBudget(progress, speedup, sampler, window, coarse, costs) {
  const total = progress.length - 1;
  const budget = total / speedup;
  const cost = (/** @type {Kind[]} */ plan) => predictedShare(plan, 1, costs) * plan.length;
  const plans = KEEPING.map(([interval, warmup, early]) => keeping(progress, interval, warmup, early, sampler, window));
  const fitting = plans.filter((plan) => cost(plan) <= budget + Math.min(1, SLACK * total));
  const off = (/** @type {Kind[]} */ plan) => Math.abs(cost(plan) - budget);
  if (fitting.length) return fitting.reduce((best, plan) => (off(plan) < off(best) ? plan : best));
  const falls = Array.from({ length: total - 1 }, (_, index) => fallsThrough(progress, index + 1)).every(Boolean);
  if (coarse && total > 1 && window[0] === 0 && window[1] === total && falls) plans.push(coarsely(progress, budget, sampler.skipped, costs));
  const over = (/** @type {Kind[]} */ plan) => Math.max(cost(plan) - budget, 0);
  return plans.reduce((best, plan) => (over(plan) < over(best) ? plan : best));
}

/**
 * @param {readonly number[]} progress
 * @param {number} interval
 * @param {number} warmup
 * @param {boolean} early
 * @param {Sampler} sampler
 * @param {readonly [number, number]} window
 */
function keeping(progress, interval, warmup, early, sampler, window) {
  const skipped = Math.min(interval - 1, sampler.skipped);
  const schedule = { refresh_interval: skipped + 1, start_percent: 0, end_percent: 1, early_refresh: early, skipped_steps: skipped, spaced: sampler.reach };
  return planSteps(progress, warmup, schedule, window, sampler.begins);
}

/**
 * Coarse steps, then full ones with gaps that grow from the start and a coarse step within the wide ones; the last step is full.
 * @param {readonly number[]} progress
 * @param {number} budget
 * @param {number} skipped
 * @param {Costs} costs
 * @returns {Kind[]}
 */
function coarsely(progress, budget, skipped, costs) {
  const total = progress.length - 1;
  const most = total < FEW_STEPS ? Math.floor(FEW_COARSE * total) : total - 1;
  const end = (skipped < FREELY ? LONG_LAYOUT : LAYOUT) - TINY;
  const early = progress.slice(0, total).filter((level) => level < end).length;
  const layout = Math.max(1, Math.min(early, most));
  const rest = total - layout;
  const widest = 1 + Math.ceil((progress[total - 1] - progress[layout]) / (total < FEW_STEPS ? FEW_WIDEST : WIDEST) - TINY);
  const fewest = skipped < FREELY ? Math.max(widest, 1 + Math.ceil((rest - 1) / (skipped + 1))) : widest;
  const many = total < FEW_STEPS ? [COARSE_GAP] : [COARSE_GAP, THIN_GAP];
  const gaps = skipped < FREELY ? [skipped ? COARSE_GAP : 0] : many;
  /** @type {Kind[]} */
  let plan = [];
  for (const gap of gaps) {
    for (let count = rest; count >= Math.min(fewest, rest); count -= 1) {
      plan = withFull(progress, layout, count, gap);
      if (predictedShare(plan, 1, costs) * total <= budget + 0.5) return plan;
    }
  }
  return plan;
}

/**
 * `count` full steps from the step `layout` on; the coarse ones before it lie `gap` apart.
 * @param {readonly number[]} progress
 * @param {number} layout
 * @param {number} count
 * @param {number} gap
 * @returns {Kind[]}
 */
function withFull(progress, layout, count, gap) {
  const total = progress.length - 1;
  const full = growing(total - layout, count).map((place) => layout + place);
  const later = total < FEW_STEPS ? [] : full.slice(1).flatMap((after, index) => within(progress, full[index], after));
  const coarse = new Set([...apart(progress, layout, gap), ...later]);
  /** @type {Kind[]} */
  const kinds = Array.from({ length: total }, (_, step) => (coarse.has(step) ? "coarse" : "skipped"));
  full.forEach((place, number) => { kinds[place] = number ? "refresh" : "warmup"; });
  return kinds;
}

/** The first two of `steps`, and those that lie far enough from the one before. @param {readonly number[]} progress @param {number} steps @param {number} gap */
function apart(progress, steps, gap) {
  const chosen = [0, 1].slice(0, steps);
  for (let step = 2; step < steps; step += 1) if (progress[step] - progress[chosen[chosen.length - 1]] >= gap - TINY) chosen.push(step);
  return chosen;
}

/** Steps that divide the gap between two others evenly, if it is wide. @param {readonly number[]} progress @param {number} before @param {number} after */
function within(progress, before, after) {
  const parts = Math.ceil((progress[after] - progress[before]) / HELD - TINY);
  return Array.from({ length: Math.max(parts - 1, 0) }, (_, index) => {
    const level = progress[before] + ((progress[after] - progress[before]) * (index + 1)) / parts;
    const off = (/** @type {number} */ step) => Math.round(Math.abs(progress[step] - level) * 1e6);
    let nearest = before;
    for (let step = before + 1; step < after; step += 1) if (off(step) < off(nearest)) nearest = step;
    return nearest;
  });
}

/** `count` of `steps`, the first and the last among them unless it is the last alone, with gaps that grow. @param {number} steps @param {number} count */
function growing(steps, count) {
  /** @type {number[]} */
  const places = [];
  for (let number = 0; number < count; number += 1) {
    const place = count > 1 ? Math.floor((steps - 1) * (number / (count - 1)) ** GROWTH + 0.5) : steps - 1;
    places.push(Math.min(Math.max(place, (places.at(-1) ?? -1) + 1), steps - count + number));
  }
  return places;
}
