// @ts-check
/** Compare with a full run: the last run is queued once more without SAFE-DiT, and the node shows both pictures with their times. */
import { allNodes, api, app, effective, executionId, fetchJson, postJson, setWidget } from "./comfy.js";
import { closeness } from "./paint.js";
import { measured } from "./plan.js";
import { presetsBySpeed, times } from "./prediction.js";
import { make } from "./style.js";
import { t } from "./text.js";
import { duration } from "./words.js";

/** @typedef {import("./view.js").View} View */
/** @typedef {{ why?: string, prompt: any, workflow: any, shown: string[], preset: string | null }} Offer */
/** Two finished prompts, the last run and the full one, and the node that shows a picture of both. @typedef {{ node: string, last: string, full: string, shown: string, preset: string | null }} Pair */

const PRESET = "preset";
/** Of this tab: the comparison that is shown again after a reload or an undo. */
const KEPT = "SafeDit.Comparison";
const SEEDS = ["seed", "noise_seed"];

/** Prompts that were queued here: what they say is not about a run of the user's. @type {Set<string>} */
const fullRuns = new Set();
/** @type {Promise<any>} until the server has named the prompt that is being queued */
let queueing = Promise.resolve();

/** @param {string} promptId */
export async function isFullRun(promptId) {
  await queueing.catch(() => {});
  return fullRuns.has(promptId);
}

/** Put the buttons on a node's widget. @param {any} node @param {View} view */
export function addComparison(node, view) {
  const bar = make("div", "comparison");
  const compare = button("full-run", t("fullRun"), t("about_fullRun"), async () => {
    compare.disabled = true;
    await compareWithFull(node, view).finally(() => { compare.disabled = false; });
  });
  bar.append(compare);
  if (node.widgets.some((/** @type {any} */ widget) => widget.name === PRESET)) bar.append(...presetSteps(node, view));
  view.answer.before(bar);
}

/** @param {string} name @param {string} text @param {string} about @param {() => void} press */
function button(name, text, about, press) {
  const made = /** @type {HTMLButtonElement} */ (make("button", name, { type: "button", title: about }));
  made.textContent = text;
  made.addEventListener("pointerdown", (event) => event.stopPropagation());
  made.addEventListener("click", press);
  return made;
}

// To the next preset

/** @param {any} node @param {View} view */
function presetSteps(node, view) {
  return [["preset_closer", -1], ["preset_faster", 1]].map(([name, by]) => button(String(name), t(String(name)), t(`about_${name}`), () => {
    const next = nextPreset(node, Number(by));
    if (next) setWidget(node, PRESET, next);
    else view.tell(t("noPreset", { presets: presetsBySpeed().join(", ") }));
  }));
}

/** @param {any} node @param {number} by @returns {string | undefined} */
function nextPreset(node, by) {
  const presets = presetsBySpeed();
  const at = presets.indexOf(effective(node, PRESET));
  return at < 0 ? undefined : presets[at + by];
}

// The full run

/** @param {any} node @param {View} view */
async function compareWithFull(node, view) {
  const { run } = view;
  const last = run?.key.split("|")[0];
  const why = last ? await queueFull(node, view, last) : "runFirst";
  if (why) view.tell(t(`why_${why}`));
}

/** @param {any} node @param {View} view @param {string} last the prompt that the node shows a run of @returns {Promise<string | null>} why there is nothing to show */
async function queueFull(node, view, last) {
  const now = (await app.graphToPrompt()).output;
  /** @type {Offer} */
  const offer = await postJson("/safe_dit/full_run", { prompt_id: last, node: executionId(node), now, changing: changing() });
  if (offer.why) return offer.why;
  view.tell(t("comparing"));
  const { run, asked } = view;
  queueing = queue(offer);
  const full = await queueing;
  const entry = await finished(full);
  if (entry?.status?.status_str !== "success") return "stopped";
  // Meanwhile the next run may have begun.
  if (view.run !== run) return "changed";
  const { shown, preset } = offer;
  /** @type {Pair} */
  const pair = { node: String(executionId(node)), last, full, shown: shown[0], preset };
  sessionStorage.setItem(KEPT, JSON.stringify(pair));
  return show(view, pair, asked);
}

/** The comparison that a prompt was queued for. @param {string | undefined} full @returns {Pair | null} */
export function comparisonBy(full) {
  /** @type {Pair | null} */
  const kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "null");
  return kept?.full === full ? kept : null;
}

/** @param {Offer} offer @returns {Promise<string>} id of the prompt */
async function queue({ prompt, workflow, shown }) {
  const { prompt_id } = await api.queuePrompt(0, { output: prompt, workflow }, { partialExecutionTargets: shown });
  fullRuns.add(prompt_id);
  return prompt_id;
}

/** What ComfyUI keeps of a prompt, once it is over; null where it was taken out of the queue. @param {string} id @returns {Promise<any>} */
async function finished(id) {
  for (;;) {
    const changed = new Promise((done) => api.addEventListener("status", done, { once: true }));
    const queue = await fetchJson("/queue");
    const entry = (await fetchJson(`/history/${id}`))?.[id];
    const waits = [...(queue?.queue_running ?? []), ...(queue?.queue_pending ?? [])].some(([, queued]) => queued === id);
    if (entry || (queue && !waits)) return entry ?? null;
    await changed;
  }
}

/** Open the slider. @param {View} view @param {Pair} pair @param {View["asked"]} asked what was asked of the last run @returns {Promise<string | null>} why there is nothing to show */
export async function show(view, { last, full, shown, preset }, asked) {
  const [ours, plain] = await Promise.all([last, full].map((id) => pictureOf(id, shown)));
  if (!ours || !plain) return "gone";
  const [seconds, fullSeconds] = await Promise.all([last, full].map((id) => secondsOf(id, shown)));
  const steps = view.run && measured(view.run.evaluations)?.ours;
  // The samplers' time is more than that of the steps, in both runs: the node speaks of steps, and of the same factor.
  if (asked && fullSeconds && seconds && steps) times.fullTimed(asked.whole, (fullSeconds * steps) / seconds);
  view.compare([ours, plain], [label(preset ?? t("accelerated"), seconds), label(t("full"), fullSeconds)]);
  const close = closeness(ours, plain);
  view.tell(close === Infinity ? t("equal") : t("closeness", { db: close.toFixed(1) }));
  return null;
}

/** Seconds that the samplers before a node took in a prompt. @param {string} id @param {string} node @returns {Promise<number | null>} */
function secondsOf(id, node) {
  return fetchJson(`/safe_dit/seconds?${new URLSearchParams({ prompt_id: id, node })}`);
}

/** @param {string} id @param {string} node @returns {Promise<ImageBitmap | null>} null where the file is gone */
async function pictureOf(id, node) {
  const file = (await fetchJson(`/history/${id}`))?.[id]?.outputs?.[node]?.images?.[0];
  const response = file && await api.fetchApi(`/view?${new URLSearchParams(file)}`);
  return response?.ok ? createImageBitmap(await response.blob()) : null;
}

/** @param {string} name @param {number | null} seconds */
function label(name, seconds) {
  return seconds ? t("label", { name, time: duration(seconds) }) : name;
}

/** Inputs that differ from queueing to queueing though nobody changes them, by execution id: seeds that are drawn anew, and texts with a choice in them. */
function changing() {
  /** @type {Record<string, string[]>} */
  const found = {};
  for (const [id, node] of allNodes())
    found[id] = (node.widgets ?? []).filter(changes).map((/** @type {any} */ widget) => widget.name);
  return found;
}

/** @param {any} widget */
function changes({ name, value, dynamicPrompts, linkedWidgets }) {
  const control = linkedWidgets?.some((/** @type {any} */ other) => other.name === "control_after_generate" && other.value !== "fixed");
  return SEEDS.includes(name) || control || (dynamicPrompts && String(value).includes("{"));
}
