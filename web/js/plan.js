// @ts-check
/** Which step does what, and what the run will cost: the rule of safe_dit_engine/steps/plan.py. tests/fixtures/plans.json pins both. */

/**
 * @typedef {"warmup" | "refresh" | "selective" | "skipped" | "coarse"} Kind
 * @typedef {{ refresh_interval: number, start_percent: number, end_percent: number, early_refresh: boolean, skipped_steps: number, spaced?: boolean | number, coarse_steps?: number, speedup?: number }} Schedule
 * @typedef {{ fixed: number, kept: number, coarse: number }} Costs
 */

/** @type {readonly Kind[]} */
export const KINDS = ["warmup", "refresh", "selective", "skipped", "coarse"];

/** Whether everything runs in a step. @param {Kind} kind */
export const isFull = (kind) => kind === "warmup" || kind === "refresh";

/** Warm-up is given in steps of a run of so many. */
const REFERENCE_STEPS = 20;
const WIDEST_PAIR = 0.4;
const TINY = 1e-6;

/**
 * Kinds of the steps of a run between the noise levels `progress`, one more than there are steps; `window` is the half-open range of steps
 * that need not be computed in full.
 * @param {readonly number[]} progress
 * @param {number} warmup
 * @param {Schedule} schedule
 * @param {readonly [number, number]} [window]
 * @param {number} [begins] share of the steps or of the progress before which nothing is left out
 * @param {number} [pair] the most progress into and out of a step that is left out
 * @param {number} [even] how long steps that are left out in a row may be, beside the mean one
 * @returns {Kind[]}
 */
export function planSteps(progress, warmup, schedule, window = [0, progress.length - 1], begins = 0, pair = Infinity, even = Infinity) {
  const total = progress.length - 1;
  const least = Math.min(Math.ceil(begins * total), 1 + stepsBefore(progress, begins));
  const warm = schedule.spaced ? Math.max(least, Math.min(warmup, 1 + stepsBefore(progress, warmup / REFERENCE_STEPS))) : warmup;
  const coarse = window[0] > 0 ? 0 : Math.max(0, Math.min(schedule.coarse_steps ?? 0, window[1], total - 1));
  const opens = Math.min(Math.max(window[0], warm, coarse + 1), total);
  const closes = Math.min(window[1], total - 1);
  const interval = schedule.refresh_interval;
  /** @type {Kind[]} */
  const kinds = [...Array(coarse).fill("coarse"), ...Array(opens - coarse).fill("warmup")];
  const short = schedule.early_refresh ? Math.ceil((total - opens) / interval / 3) : 0;
  let [before, full] = [opens - 2, opens - 1];
  for (let index = 0; kinds.length < total; index += 1) {
    const length = index < short ? 2 + Math.floor((index * (interval - 2)) / short) : interval;
    const most = Math.min(length, interval) - 1;
    const end = Math.min(full + 1 + most, closes);
    kinds.push(...cycle(schedule, room(progress, Math.max(before, 0), Math.max(full, 0), full + 1, end, Number(schedule.spaced ?? 0), pair, even)));
    [before, full] = [full, kinds.length - 1];
  }
  return schedule.spaced ? worthwhile(evened(kinds.slice(0, total), progress, closes)) : kinds.slice(0, total);
}

/**
 * The plan, in full where all it leaves out is a part of one step.
 * @param {Kind[]} kinds
 * @returns {Kind[]}
 */
function worthwhile(kinds) {
  if (kinds.filter((kind) => !isFull(kind)).length !== 1) return kinds;
  return kinds.map((kind) => (kind === "selective" ? "refresh" : kind));
}

/**
 * The plan without two full steps at its end behind a long gap: the first of them lies within the gap instead.
 * @param {Kind[]} kinds
 * @param {readonly number[]} progress
 * @param {number} closes
 * @returns {Kind[]}
 */
function evened(kinds, progress, closes) {
  const between = kinds.length - 2;
  const [gap, kind] = kinds.slice(-4, -2);
  const two = kinds.length > 3 && !isFull(gap) && gap === kind && kinds.slice(-2).every((end) => end === "refresh");
  return two && between < closes && fallsThrough(progress, between) ? [...kinds.slice(0, -3), "refresh", gap, "refresh"] : kinds;
}

/**
 * A preset's schedule as it runs with a sampler that lets presets skip at most `skipped` steps one after another, or run at most `selective`
 * selective ones, with full steps at `reach` of the usual distance: the rule of safe_dit_engine/steps/samplers.py. Values given by hand stay.
 * @template {Schedule} T
 * @param {T} schedule
 * @param {{ skipped: number, selective: number, reach: number }} sampler
 * @returns {T}
 */
export function limited(schedule, { skipped, selective, reach }) {
  if (!schedule.spaced) return schedule;
  const fewer = Math.min(schedule.skipped_steps, skipped);
  const most = schedule.skipped_steps ? fewer : selective;
  const interval = Math.min(schedule.refresh_interval, most + 1);
  return { ...schedule, skipped_steps: fewer, refresh_interval: interval, spaced: Number(schedule.spaced) * reach };
}

/**
 * Progress of a run of so many steps of which nothing else is known: that of a flow-matching model with a common shift.
 * @param {number} steps
 */
export function usualProgress(steps) {
  const shift = 3;
  return Array.from({ length: steps + 1 }, (_, index) => (2 * index) / (2 * index + shift * (steps - index)));
}

/**
 * Progress of a run of so many steps with levels that lie as these do.
 * @param {readonly number[]} progress
 * @param {number} steps
 */
export function stretched(progress, steps) {
  const last = progress.length - 1;
  return Array.from({ length: steps + 1 }, (_, index) => {
    const place = Math.min((index * last) / steps, last - TINY);
    const before = Math.floor(place);
    return progress[before] + (place - before) * (progress[before + 1] - progress[before]);
  });
}

/** Steps, but for the first, that lie before a level. @param {readonly number[]} progress @param {number} level */
function stepsBefore(progress, level) {
  const found = progress.slice(1, -1).findIndex((reached) => reached >= level - TINY);
  return found < 0 ? progress.length - 2 : found;
}

/** Whether the noise level falls into and out of a step. @param {readonly number[]} progress @param {number} step */
export function fallsThrough(progress, step) {
  return step > 0 && step < progress.length - 1 && progress[step - 1] < progress[step] && progress[step] < progress[step + 1];
}

/**
 * How many of the steps from `first` up to `end` need not be computed in full after the `full` one, which follows the one `before`.
 * @param {readonly number[]} progress
 * @param {number} before
 * @param {number} full
 * @param {number} first
 * @param {number} end
 * @param {number} spaced
 * @param {number} pair
 * @param {number} even
 */
function room(progress, before, full, first, end, spaced, pair, even) {
  const last = progress.length - 1;
  const widest = spaced * Math.min(0.25, 0.07 + 0.435 * progress[full]) + TINY;
  const row = (/** @type {number} */ step) => (step > first ? progress[full] + ((even * (progress[last] - progress[0])) / last) * (step + 1 - full) : Infinity);
  const near = (/** @type {number} */ step) => progress[step + 1] - progress[full] <= widest && progress[step + 1] <= Math.min(progress[before] + WIDEST_PAIR, progress[step - 1] + pair, row(step)) + TINY;
  let step = first;
  while (step < end && fallsThrough(progress, step) && (!spaced || near(step))) step += 1;
  return step - first;
}

/**
 * @param {Schedule} schedule
 * @param {number} between
 * @returns {Kind[]}
 */
function cycle(schedule, between) {
  const skipped = Math.min(schedule.skipped_steps, between);
  return [...Array(between - skipped).fill("selective"), ...Array(skipped).fill("skipped"), "refresh"];
}

/**
 * Predicted time of a run relative to dense.
 * @param {readonly Kind[]} plan
 * @param {number} keepRatio
 * @param {Costs} costs
 */
export function predictedShare(plan, keepRatio, costs) {
  const selective = Math.min(1, costs.fixed + costs.kept * keepRatio);
  const cost = { warmup: 1, refresh: 1, selective, skipped: 0, coarse: costs.coarse };
  return plan.reduce((sum, kind) => sum + cost[kind], 0) / Math.max(plan.length, 1);
}

/** @typedef {readonly { step: number, kind: Kind, ms: number }[]} Evaluations */

/** Milliseconds of a run's full evaluations, the one in the middle. @param {Evaluations} evaluations @returns {number | null} null until one was seen */
function fullEvaluation(evaluations) {
  const full = evaluations.filter(({ kind }) => isFull(kind)).map(({ ms }) => ms);
  return full.length ? full.sort((a, b) => a - b)[Math.floor(full.length / 2)] : null;
}

/** Seconds of a full step of a run, judged by those it had; some samplers evaluate a step more than once. @param {Evaluations} evaluations @returns {number | null} */
export function fullStep(evaluations) {
  const middle = fullEvaluation(evaluations);
  return middle === null ? null : (middle * evaluations.length) / new Set(evaluations.map(({ step }) => step)).size / 1000;
}

/**
 * Seconds that a finished run's steps took, and seconds of as many full steps, judged by its own.
 * @param {Evaluations} evaluations
 * @returns {{ ours: number, full: number } | null} null until a full step was seen
 */
export function measured(evaluations) {
  const middle = fullEvaluation(evaluations);
  return middle === null ? null : { ours: evaluations.reduce((sum, { ms }) => sum + ms, 0) / 1000, full: (middle * evaluations.length) / 1000 };
}
