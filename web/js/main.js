// @ts-check
/** Puts the widget on the pack's nodes and feeds it. */
import { allNodes, api, app, executionId, fetchJson, isAsNow, setWidget, setting, warn, whenQueued, wish, workflowId } from "./comfy.js";
import { addComparison, comparisonBy, isFullRun, show } from "./compare.js";
import { followPreset, hideIgnored, labelPresets } from "./inputs.js";
import { menuItems, openMenuFrom } from "./menu.js";
import { PALETTES } from "./paint.js";
import { fullStep, isFull, measured } from "./plan.js";
import { ACCELERATE, REPORT, SAMPLER, learnRule, predict, subjectOf, times } from "./prediction.js";
import { Runs, keyOf } from "./runs.js";
import { speak, t } from "./text.js";
import { View } from "./view.js";
import { duration } from "./words.js";

const WIDGET = "safe_dit_map";
const PAINTED = "painted_tokens";
const LIVE = "SafeDit.LiveMap";
const COLOURS = "SafeDit.Colours";
const PER_SECOND = "SafeDit.EventsPerSecond";
const TOASTS = "SafeDit.Toasts";
/** Around an element the classic renderer leaves a margin, above and below. */
const MARGINS = 20;
const KEPT_PROMPTS = 64;

const runs = new Runs();
/** @type {Map<any, View>} by node */
const views = new Map();
/** Where each node's element was put: Nodes 2.0 forgets to put the new one there after an undo. @type {Map<string, Element>} */
const hosts = new Map();
/** What nodes were set to when a prompt was queued, by prompt and execution id. @type {Map<string, Map<string, import("./prediction.js").Subject>>} */
const asked = new Map();

// Nodes

/** @param {any} node */
function addWidget(node) {
  const painted = node.widgets?.find((/** @type {any} */ other) => other.name === PAINTED);
  const view = new View({
    palette: () => setting(COLOURS, PALETTES[0]), predict: (painting) => predict(node, painting, ...lastOf(node)),
    full: (subject) => times.fulls.get(subject?.whole ?? "") ?? null,
    store: painted ? storeIn(node, painted) : null, grown: () => node.graph?.setDirtyCanvas?.(true, true),
  });
  // Last of all widgets, and kept out of file and prompt: values are saved by their place.
  const widget = node.addDOMWidget(WIDGET, WIDGET, view.element, {
    serialize: false, hideOnZoom: false, hideInPanel: true, getMinHeight: () => view.needed + MARGINS, getValue: () => "", setValue: () => {},
  });
  widget.serialize = false;
  views.set(node, view);
  for (const other of node.widgets) if (other !== widget) chain(other, "callback", () => requestAnimationFrame(() => view.refresh()));
  if (node.comfyClass === ACCELERATE) addPresets(node);
  chain(node, "onAdded", () => begin(node, view));
  chain(node, "onRemoved", () => end(node));
  chain(node, "onConfigure", () => update(node));
  forwardWheel(view.element);
  openMenuFrom(view.element, node);
  if (node.comfyClass !== REPORT) addComparison(node, view);
  if (node.graph) begin(node, view);
}

/** @param {any} node */
function addPresets(node) {
  labelPresets(node, () => lastOf(node));
  chain(node, "onConfigure", followPreset(node));
}

/** The last run that a node shows, and its id. @param {any} node @returns {[import("./runs.js").Run | null, string | null]} */
function lastOf(node) {
  const id = executionId(node);
  return [id === null ? null : runs.of(workflowId(), id), id];
}

/** What is painted is kept in a hidden widget of the node: so it is saved, copied, undone and sent as any other value. @param {any} node @param {any} widget */
function storeIn(node, widget) {
  return {
    read: () => String(widget.value ?? ""),
    write: (/** @type {string} */ text) => setWidget(node, widget.name, text),
  };
}

/** @param {any} owner @param {string} name @param {() => void} more */
function chain(owner, name, more) {
  const before = owner[name];
  owner[name] = function (/** @type {any[]} */ ...args) {
    const result = before?.apply(this, args);
    more();
    return result;
  };
}

/** @param {any} node @param {View} view */
function begin(node, view) {
  views.set(node, view);
  view.start();
  adopt(node, view);
  update(node);
}

/** @param {any} node */
function end(node) {
  views.get(node)?.stop();
  views.delete(node);
}

/** After an undo in Nodes 2.0 the old place stays and the new element is never put there. @param {any} node @param {View} view */
function adopt(node, view) {
  requestAnimationFrame(() => requestAnimationFrame(() => {
    const key = `${node.graph?.id}:${node.id}`;
    const place = hosts.get(key);
    if (!view.element.isConnected && place?.isConnected && views.get(node) === view) place.replaceChildren(view.element);
    if (view.element.parentElement) hosts.set(key, view.element.parentElement);
  }));
}

/** Show a node what it is to show. @param {any} node */
function update(node) {
  const [run, id] = lastOf(node);
  if (node.type === ACCELERATE) hideIgnored(node);
  views.get(node)?.show(run, run && askedOf(run, id));
}

/** What was asked of a run; of a node that asks for nothing, as the Report, what the run's own node asked. @param {import("./runs.js").Run} run @param {string | null} id */
function askedOf(run, id) {
  const shown = [...(run.subjects ?? [])].find(([other]) => runs.of(workflowId(), other) === run);
  return run.subjects?.get(id ?? "") ?? shown?.[1] ?? null;
}

function updateAll() {
  const present = new Set([...allNodes()].map(([, node]) => node));
  // Nodes inside subgraphs are not told when the whole graph is replaced.
  for (const node of views.keys()) if (!present.has(node)) end(node);
  for (const node of present) {
    const view = views.get(node);
    if (view) adopt(node, view);
    update(node);
  }
}

/** The classic canvas does not zoom while the pointer is over an element. @param {HTMLElement} element */
function forwardWheel(element) {
  element.addEventListener("wheel", (event) => {
    if (!window.LiteGraph?.vueNodesMode) app.canvas?.processMouseWheel?.(event);
  }, { passive: true });
}

// What the server says

/** What our nodes are set to now, by execution id. */
function subjectsNow() {
  return new Map([...allNodes()].filter(([, node]) => views.has(node) && node.type !== REPORT).map(([id, node]) => [id, subjectOf(node)]));
}

/** Of a run with other settings than now. */
function subjectsUnknown() {
  return new Map([...subjectsNow().keys()].map((id) => [id, { cost: "", whole: "", window: "", key: "" }]));
}

/** @param {string} prompt @param {Map<string, import("./prediction.js").Subject>} subjects */
function keepAsked(prompt, subjects) {
  asked.set(prompt, subjects);
  for (const old of asked.keys()) if (asked.size > KEPT_PROMPTS) asked.delete(old);
}

/** @param {any} message */
function onStep(message) {
  const run = runs.step(message);
  if (!run || message.workflow !== workflowId()) return;
  // A prompt that another page or a script queued: as far as this page knows, it is what its own nodes are set to.
  run.subjects ??= asked.get(message.prompt_id) ?? subjectsNow();
  if (run.timed) keepTimes(run);
  for (const [id, node] of allNodes()) if (views.has(node) && runs.of(workflowId(), id) === run) update(node);
}

/** Seconds of a run that is over, for the next one's prediction. @param {import("./runs.js").Run} run */
function keepTimes(run) {
  const [found, step] = [measured(run.evaluations), fullStep(run.evaluations)];
  if (!found || step === null) return;
  for (const [id, { cost, whole }] of run.subjects ?? []) {
    if (runs.of(workflowId(), id) !== run) continue;
    times.stepTimed(cost, step);
    if (run.evaluations.every(({ kind }) => isFull(kind))) times.fullTimed(whole, found.ours);
  }
}

/** @param {string} prompt @param {import("./runs.js").Ended} how */
function onEnd(prompt, how) {
  runs.end(prompt, how);
  refreshAll();
}

/** Once a run and cause: the server says it once, and what comes twice all the same is known. @param {any} message */
function onNote(message) {
  const note = runs.note(message);
  if (!note || message.workflow !== workflowId()) return;
  refreshAll();
  if (note.warning && setting(TOASTS, true)) warn(note.sentence);
}

/** @param {string} id execution id of the node that ran @param {any} output @param {string} workflow the one that it ran in @param {boolean} [asNow] whether settings were those of now, as far as is known */
function onExecuted(id, output, workflow, asNow = true) {
  const record = output?.safe_dit?.[0];
  const run = record ? runs.record(record, workflow, id) : null;
  const without = output?.safe_dit_without;
  if (without) runs.forget(workflow, id);
  if (!(run || without) || workflow !== workflowId()) return;
  if (run) run.subjects ??= asked.get(record.ids?.prompt_id) ?? (asNow ? subjectsNow() : subjectsUnknown());
  if (run) keepTimes(run);
  updateAll();
  const node = [...allNodes()].find(([found]) => found === id)?.[1];
  if (views.has(node)) fetchPictures(node, output.safe_dit_pictures ?? []);
  if (without) views.get(node)?.tell(without[0] === null ? t("ranWithout") : t("ranWithoutIn", { time: duration(without[0]) }));
}

/** Where an output that just came belongs: another workflow may be on screen by now. A kept output's record knows only where it was first made. @param {any} detail */
function workflowOf({ output, prompt_id }) {
  const { ids } = output?.safe_dit?.[0] ?? {};
  return ids?.workflow && ids.prompt_id === prompt_id ? String(ids.workflow) : workflowId();
}

/** The finished picture and the dense one beside it, where both are connected. @param {any} node @param {any[]} files */
async function fetchPictures(node, files) {
  const pictures = await Promise.all(files.map(async (file) => {
    const response = await api.fetchApi(`/view?${new URLSearchParams(file)}`);
    return createImageBitmap(await response.blob());
  }));
  views.get(node)?.compare(pictures.length === 2 ? [pictures[0], pictures[1]] : null);
}

/** @param {{ blob: Blob, realNodeId?: string, jobId?: string, promptId?: string }} detail older frontends say `promptId` */
async function onPreview({ blob, realNodeId, jobId, promptId }) {
  const key = keyOf({ prompt_id: jobId ?? promptId, sampler: realNodeId });
  const waiting = () => [...views.values()].filter(({ run }) => run?.key === key);
  if (!waiting().length) return;
  const picture = await createImageBitmap(blob);
  // Meanwhile the next run may have begun.
  for (const view of waiting()) {
    view.preview = picture;
    view.refresh();
  }
}

/** The page was loaded anew: the last finished job of this workflow still has its record; where that was a full run to compare with, the one before it has. */
async function restore() {
  const workflow = workflowId();
  const jobs = await fetchJson(`/jobs?workflow_id=${workflow}&status=completed&limit=1`);
  const newest = jobs?.jobs?.[0]?.id;
  const pair = comparisonBy(newest);
  const last = pair?.last ?? newest;
  const job = last ? await fetchJson(`/jobs/${last}`) : null;
  if (!job || workflow !== workflowId()) return;
  const asNow = isAsNow(job.workflow?.prompt ?? {});
  for (const [id, output] of Object.entries(job.outputs ?? {})) onExecuted(id, output, workflow, asNow);
  const view = views.get([...allNodes()].find(([id]) => id === pair?.node)?.[1]);
  if (pair && view?.run?.key.startsWith(pair.last)) await show(view, pair, view.asked);
}

const SETTINGS = [
  { id: LIVE, category: ["SAFE-DiT", "Live map", "on"], name: "Show the map while sampling", type: "boolean", defaultValue: true, onChange: (/** @type {boolean} */ live) => tell(live) },
  {
    id: PER_SECOND, category: ["SAFE-DiT", "Live map", "rate"], name: "Most updates a second", type: "slider", defaultValue: 30,
    attrs: { min: 1, max: 60, step: 1 }, onChange: (/** @type {number} */ rate) => tell(undefined, rate),
  },
  {
    id: COLOURS, category: ["SAFE-DiT", "Map", "colours"], name: "Colours of the map", type: "combo", defaultValue: PALETTES[0],
    options: [...PALETTES], onChange: refreshAll,
  },
  { id: TOASTS, category: ["SAFE-DiT", "Messages", "on"], name: "Pop up a message when a run could not do what was asked", type: "boolean", defaultValue: true },
];

function refreshAll() {
  for (const [node, view] of views) {
    if (node.type === ACCELERATE) hideIgnored(node);
    view.refresh();
  }
}

/** Tell the server what this tab wants; a setting that is just being changed still has its old value, so the new one is handed in. */
function tell(live = setting(LIVE, true), perSecond = setting(PER_SECOND, 30)) {
  wish(Boolean(live), Number(perSecond));
}

app.registerExtension({
  name: "SafeDit.Map",
  settings: SETTINGS,
  aboutPageBadges: [{ label: "SAFE-DiT", url: "https://arxiv.org/abs/2606.29360", icon: "pi pi-bolt" }],
  async setup() {
    speak(setting("Comfy.Locale", "en"));
    times.changed = () => views.forEach((view) => view.refresh());
    api.addEventListener("safe_dit.step", (/** @type {any} */ { detail }) => onStep(detail));
    api.addEventListener("safe_dit.note", (/** @type {any} */ { detail }) => onNote(detail));
    api.addEventListener("executed", async (/** @type {any} */ { detail }) => {
      if (!(await isFullRun(detail.prompt_id))) onExecuted(String(detail.node), detail.output, workflowOf(detail));
    });
    api.addEventListener("b_preview_with_metadata", (/** @type {any} */ { detail }) => onPreview(detail));
    for (const [event, how] of /** @type {const} */ ([["success", "done"], ["interrupted", "interrupted"], ["error", "failed"]]))
      api.addEventListener(`execution_${event}`, (/** @type {any} */ { detail }) => onEnd(detail.prompt_id, how));
    whenQueued(subjectsNow, keepAsked);
    api.addEventListener("reconnected", () => tell());
    api.addEventListener("status", once(() => tell()));
    api.addEventListener("graphChanged", refreshAll);
    learnRule(await fetchJson("/safe_dit/rule"));
    tell();
    updateAll();
  },
  nodeCreated(/** @type {any} */ node) {
    if ([ACCELERATE, SAMPLER, REPORT].includes(node.comfyClass)) addWidget(node);
  },
  getNodeMenuItems: (/** @type {any} */ node) => menuItems(node, views.get(node)),
  async afterConfigureGraph() {
    updateAll();
    await restore();
  },
});

/** @param {() => void} action */
function once(action) {
  let done = false;
  return () => {
    if (!done) action();
    done = true;
  };
}
