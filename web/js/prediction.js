// @ts-check
/** What the next run of a node will do and take: its plan by the settings in the graph, its seconds by those of runs before. */
import { USUAL_SAMPLER, planRun } from "./budget.js";
import { effective, partner, samplingAhead } from "./comfy.js";
import { countsOf, keptTokens } from "./painting.js";
import { isFull, predictedShare, stretched, usualProgress } from "./plan.js";
import { Times } from "./times.js";

export const ACCELERATE = "SafeDitAccelerate";
export const SAMPLER = "SafeDitSelectiveSampler";
export const REPORT = "SafeDitReport";
const PARTITIONER = "SafeDitPartitioner";
export const CUSTOM = "custom";
export const SPEEDUP = "speedup";
const USUAL_STEPS = 20;
/** Less is called little. */
const LITTLE = 1.2;
/** From here on it pays. */
const PAYS = 1.3;
const MOST_STEPS = 60;

/**
 * What a run is made of, as far as the graph tells; texts that change when it does. `cost`: model, size and sampler, on which a full step's time
 * depends. `whole`: those and the noise levels, so all but our settings. `key`: everything, but seed and prompts.
 * @typedef {{ cost: string, whole: string, window: string, key: string }} Subject
 * @typedef {import("./budget.js").Sampler & { full: boolean }} Listed a sampler; `full`: whether every step is computed
 * @typedef {{ presets: Record<string, any>, costs: import("./plan.js").Costs, samplers?: Record<string, Listed> }} Rule `samplers`: not from a server that was started before an update
 * @typedef {{ steps: number | null, sampler: string | null }} Ahead
 * @typedef {{ name: string, values?: Record<string, number> }} Cure a text of what to do where little is saved
 * @typedef {{ plan: import("./plan.js").Kind[], share: number, steps: number | null, exact: boolean, subject: Subject, step: number | null, paints: boolean, cure: Cure | null }} Prediction
 *   `paints`: whether there are steps that painting has a say in; `step`: seconds of a full step the last time
 */

/** @type {Rule | null} */
let rule = null;
export const times = new Times(window.sessionStorage);

/** @param {Rule | null} found */
export function learnRule(found) {
  rule = found;
}

/** Values of a preset, where it has some of its own. @param {string} name @returns {Record<string, any> | null} */
export function presetValues(name) {
  const values = rule?.presets[name];
  return values && !values.speedup ? values : null;
}

/** Presets that leave out whole steps, the slowest first, as the server has them. */
export function presetsBySpeed() {
  return Object.entries(rule?.presets ?? {}).filter(([, values]) => values.skipped_steps || values.speedup).map(([name]) => name);
}

/** @param {any} node @param {import("./painting.js").Painting} painting @param {import("./runs.js").Run | null} run the last one @param {string | null} id of the node @returns {Prediction | null} */
export function predict(node, painting, run, id) {
  const values = valuesOf(node);
  if (!rule || !values) return null;
  const ahead = samplingAhead(node);
  const subject = subjectOf(node, values);
  const seen = seenBy(run, id, subject);
  const plan = planOf(values, levelsOf(values, ahead, seen), rule);
  const keep = keptShare(values.keep_ratio, painting);
  const done = keep >= 1 ? plan.map((kind) => (isFull(kind) ? kind : "refresh")) : plan;
  const share = predictedShare(done, keep, rule.costs);
  const paints = plan.includes("selective");
  const painted = paints && paintedOver(values.keep_ratio, keep, plan, share);
  const cure = painted || (1 / share < LITTLE ? cureOf(values, done, ahead, seen) : null);
  return { plan: done, share, steps: seen ? done.length : ahead.steps, exact: Boolean(seen), subject, step: times.steps.get(subject.cost) ?? null, paints, cure };
}

/** How many times faster a run with a preset would be, by the plan. @param {any} node @param {string} preset @param {import("./runs.js").Run | null} run @param {string | null} id @returns {number | null} null where it is not known */
export function presetFactor(node, preset, run, id) {
  const values = ofAccelerate(node, preset);
  if (!rule || !values || preset === CUSTOM) return null;
  const plan = planOf(values, levelsOf(values, samplingAhead(node), seenBy(run, id, subjectOf(node, values))), rule);
  return 1 / predictedShare(plan, values.keep_ratio, rule.costs);
}

/** What a node's next run is made of. @param {any} node @param {Record<string, any> | null} values @returns {Subject} */
export function subjectOf(node, values = valuesOf(node)) {
  const { levels, cost } = samplingAhead(node);
  const whole = `${cost} ${levels}`;
  return { cost, whole, window: `${values?.start_percent} ${values?.end_percent}`, key: `${whole} ${JSON.stringify(values)}` };
}

// Noise levels

/** Noise levels, and which steps start and end percent mean, only a run of this model, scheduler and number of steps tells. @param {import("./runs.js").Run | null} run @param {string | null} id @param {Subject} subject */
function seenBy(run, id, subject) {
  const asked = run?.subjects?.get(id ?? "");
  return asked?.whole === subject.whole && asked.window === subject.window ? (run?.levels ?? null) : null;
}

/** @param {Record<string, any>} values @param {Ahead} ahead @param {import("./codec.js").Levels | null} seen @returns {import("./codec.js").Levels} */
function levelsOf(values, { steps, sampler }, seen) {
  const total = steps ?? USUAL_STEPS;
  const { full, ...limits } = rule?.samplers?.[sampler ?? ""] ?? { ...USUAL_SAMPLER, full: false };
  const asked = [Math.ceil(values.start_percent * total), Math.ceil(values.end_percent * total)];
  return seen ?? { progress: usualProgress(total), window: /** @type {[number, number]} */ (full ? [0, 0] : asked), coarse: true, ...limits };
}

/** @param {Record<string, any>} values @param {import("./codec.js").Levels} levels @param {Rule} known */
function planOf(values, levels, { costs }) {
  return planRun(levels.progress, values.warmup_steps, /** @type {any} */ (values), levels, levels.window, levels.coarse, costs);
}

// Where little is saved

/** Where it is the painting alone that nothing is saved for. @param {number} asked @param {number} keep @param {import("./plan.js").Kind[]} plan @param {number} share @returns {Cure | null} */
function paintedOver(asked, keep, plan, share) {
  if (asked >= 1 || keep <= asked) return null;
  if (keep >= 1) return { name: "paintedAll" };
  const without = predictedShare(plan, asked, /** @type {Rule} */ (rule).costs);
  return 1 / share < LITTLE && 1 / without >= LITTLE ? { name: "paintedMuch" } : null;
}

/** @param {Record<string, any>} values @param {import("./plan.js").Kind[]} plan @param {Ahead} ahead @param {import("./codec.js").Levels | null} seen @returns {Cure} */
function cureOf(values, plan, ahead, seen) {
  if (values.speedup && values.speedup < LITTLE) return { name: "raiseSpeedup" };
  if (!values.speedup && values.refresh_interval === 1) return { name: "raiseInterval" };
  if (values.keep_ratio >= 1 && !values.skipped_steps) return { name: "lowerKeep" };
  const enough = enoughSteps(values, plan.length, ahead, seen);
  if (!enough && !seen && values.spaced && levelsOf(values, ahead, null).even) return { name: "evenSteps" };
  return enough ? { name: "fewSteps", values: { steps: plan.length, full: plan.filter(isFull).length, enough } } : { name: "littleSaved" };
}

/** From how many steps on it pays. @param {Record<string, any>} values @param {number} steps @param {Ahead} ahead @param {import("./codec.js").Levels | null} seen @returns {number | null} */
function enoughSteps(values, steps, { sampler }, seen) {
  if (seen?.window[1] === 0) return null; // a sampler with which every step is computed
  for (let more = steps + 1; more <= MOST_STEPS; more += 1) {
    const usual = levelsOf(values, { steps: more, sampler }, null);
    const levels = seen ? { ...seen, progress: stretched(seen.progress, more), window: usual.window } : usual;
    const known = /** @type {Rule} */ (rule);
    if (1 / predictedShare(planOf(values, levels, known), values.keep_ratio, known.costs) >= PAYS) return more;
  }
  return null;
}

/** Share of tokens that a selective step computes: what is painted may force more or fewer than asked for. @param {number} keepRatio @param {import("./painting.js").Painting} painting */
function keptShare(keepRatio, painting) {
  const { sensitive, context } = countsOf(painting);
  const { length } = painting.tokens;
  return keepRatio >= 1 || !(sensitive || context) ? keepRatio : keptTokens(length, keepRatio, sensitive, context) / length;
}

// Values of nodes

/** What a node asks of a run; null where only the run will tell. @param {any} node @returns {Record<string, any> | null} */
function valuesOf(node) {
  if (node.type === REPORT) return null;
  return node.type === ACCELERATE ? ofAccelerate(node) : ofSampler(node);
}

/** @param {any} node @param {string[]} names @returns {Record<string, any> | null} null while one of them is unknown */
function effectiveValues(node, names) {
  const found = Object.fromEntries(names.map((name) => [name, effective(node, name)]));
  return Object.values(found).includes(undefined) ? null : found;
}

/** @param {any} node @param {string} preset @returns {any} */
function ofAccelerate(node, preset = effective(node, "preset")) {
  const names = ["keep_ratio", "refresh_interval", "warmup_steps", "early_refresh", "skipped_steps", "coarse_steps"];
  const speedup = preset === SPEEDUP ? effectiveValues(node, [SPEEDUP]) : {};
  const values = preset === CUSTOM ? effectiveValues(node, names) : rule?.presets[preset === SPEEDUP ? "express" : preset];
  return values && speedup && { ...whole({ ...values, ...speedup }), start_percent: 0, end_percent: 1 };
}

/** @param {any} node @returns {any} */
function ofSampler(node) {
  const values = effectiveValues(node, ["refresh_interval", "start_percent", "end_percent", "early_refresh", "skipped_steps"]);
  const partitioner = partner(node, PARTITIONER);
  const partition = partitioner && effectiveValues(partitioner, ["keep_ratio", "warmup_steps"]);
  return values && partition && { ...whole({ ...values, ...partition }) };
}

/** The classic slider hands out fractions where Python sees whole numbers. @param {Record<string, any>} values */
function whole(values) {
  const counts = ["refresh_interval", "warmup_steps", "skipped_steps", "coarse_steps"].map((name) => [name, Math.max(0, Math.floor(values[name] ?? 0))]);
  const found = { ...values, ...Object.fromEntries(counts) };
  return { ...found, refresh_interval: Math.max(1, found.refresh_interval) };
}
