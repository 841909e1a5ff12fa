// @ts-check
/** The one file that touches ComfyUI's frontend: ids, links, effective values, settings. */
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

export { api, app };

/** Ends of a subgraph's links that are no nodes. */
const SUBGRAPH_INPUT = -10;
const SUBGRAPH_OUTPUT = -20;
const FARTHEST = 200;

/** @typedef {any} GraphNode */

export const workflowId = () => String(app.rootGraph?.id ?? app.graph?.id ?? "");

/** Every node of the workflow, those inside subgraphs too, with its execution id. @returns {Generator<[string, GraphNode]>} */
export function* allNodes(graph = app.rootGraph ?? app.graph, prefix = "") {
  for (const node of graph?.nodes ?? []) {
    const id = `${prefix}${node.id}`;
    yield [id, node];
    if (node.subgraph) yield* allNodes(node.subgraph, `${id}:`);
  }
}

/** The id under which the server knows a node: `5:1` for node 1 inside subgraph node 5. @param {GraphNode} wanted */
export function executionId(wanted) {
  for (const [id, node] of allNodes()) if (node === wanted) return id;
  return null;
}

/** The node that stands for a subgraph in the graph around it. @param {any} graph */
function hostOf(graph) {
  for (const [, node] of allNodes()) if (node.subgraph === graph) return node;
  return null;
}

/** @param {any} graph @param {number | null | undefined} id */
export function linkOf(graph, id) {
  if (!graph || id === null || id === undefined) return null;  // a node between two graphs, while it is moved into a subgraph
  return graph.getLink?.(id) ?? graph.links?.get?.(id) ?? graph.links?.[id] ?? null;
}

/**
 * Where an input's value comes from: a node and its output, across the borders of subgraphs.
 * @param {GraphNode} node @param {any} input
 * @returns {{ node: GraphNode, slot: number, host?: GraphNode } | null}
 */
export function origin(node, input) {
  const link = linkOf(node.graph, input?.link);
  if (!link) return null;
  if (link.origin_id === SUBGRAPH_INPUT) {
    const host = hostOf(node.graph);
    const outer = host?.inputs?.[link.origin_slot];
    return outer?.link != null ? origin(host, outer) : host ? { node: host, slot: link.origin_slot, host } : null;
  }
  const source = node.graph.getNodeById(link.origin_id);
  if (!source?.subgraph) return source ? { node: source, slot: link.origin_slot } : null;
  const inner = linkOf(source.subgraph, source.subgraph.outputs?.[link.origin_slot]?.linkIds?.[0]);
  const inside = inner && source.subgraph.getNodeById(inner.origin_id);
  return inside ? { node: inside, slot: inner.origin_slot } : null;
}

/** Nodes that an output leads to, across the borders of subgraphs. @param {GraphNode} node @returns {GraphNode[]} */
function consumers(node) {
  const found = [];
  for (const output of node.outputs ?? [])
    for (const id of output.links ?? []) found.push(...targets(node.graph, linkOf(node.graph, id)));
  return found;
}

/** @param {any} graph @param {any} link @returns {GraphNode[]} */
function targets(graph, link) {
  if (!link) return [];
  if (link.target_id === SUBGRAPH_OUTPUT) {
    const host = hostOf(graph);
    return (host?.outputs?.[link.target_slot]?.links ?? []).flatMap((/** @type {number} */ id) => targets(host.graph, linkOf(host.graph, id)));
  }
  const target = graph.getNodeById(link.target_id);
  if (!target?.subgraph) return target ? [target] : [];
  const inner = target.subgraph.inputs?.[link.target_slot]?.linkIds ?? [];
  return inner.flatMap((/** @type {number} */ id) => targets(target.subgraph, linkOf(target.subgraph, id)));
}

/** Nodes before `node`, nearest first. @param {GraphNode} node @returns {GraphNode[]} */
function producers(node) {
  return (node.inputs ?? []).map((/** @type {any} */ input) => origin(node, input)?.node).filter(Boolean);
}

/**
 * Nodes reached by `next`, nearest first, without `start`.
 * @param {GraphNode} start @param {(node: GraphNode) => GraphNode[]} next
 * @returns {GraphNode[]}
 */
function reached(start, next) {
  const seen = new Set([start]);
  for (const node of seen) {
    for (const other of next(node)) seen.add(other);
    if (seen.size > FARTHEST) break;
  }
  seen.delete(start);
  return [...seen];
}

/**
 * The value an input will have when the prompt is queued; undefined where only the run will tell.
 * @param {GraphNode} node @param {string} name
 * @returns {any}
 */
export function effective(node, name) {
  const input = node.inputs?.find((/** @type {any} */ found) => found.widget?.name === name);
  const source = input?.link != null ? origin(node, input) : null;
  if (input?.link != null) {
    if (source?.host) return source.host.widgets?.find((/** @type {any} */ widget) => widget.name === source.host.inputs[source.slot]?.widget?.name)?.value;
    return source?.node.type?.startsWith("Primitive") ? source.node.widgets?.[0]?.value : undefined;
  }
  return node.widgets?.find((/** @type {any} */ widget) => widget.name === name)?.value;
}

/** What a run's noise levels depend on, as far as the graph tells. */
const SAMPLING = ["steps", "scheduler", "denoise", "sampler_name", "start_at_step", "end_at_step", "shift", "max_shift", "base_shift"];
/** What a full step's time depends on beside the model; some samplers ask the model more than once a step. */
const SIZE = ["width", "height", "length", "batch_size", "megapixels", "image", "cfg", "sampler_name"];

/**
 * Steps and name of the sampler that a node leads to, null where they cannot be read; a text that changes when its noise levels may, and
 * one that changes when the time of a full step may.
 * @param {GraphNode} node
 * @returns {{ steps: number | null, sampler: string | null, levels: string, cost: string }}
 */
export function samplingAhead(node) {
  const before = reached(node, producers);
  const ahead = [...new Set([node, ...before, ...reached(node, consumers).flatMap((found) => [found, ...producers(found)])])];
  const levels = ahead.flatMap((found) => valuesIn(found, SAMPLING));
  const steps = levels.find(([, name, value]) => name === "steps" && Number.isInteger(value) && value > 0)?.[2] ?? null;
  const sampler = levels.find(([, name, value]) => name === "sampler_name" && value)?.[2] ?? null;
  return { steps, sampler, levels: JSON.stringify(levels), cost: costAhead(node) };
}

/** The model and the size of what is sampled. @param {GraphNode} node */
function costAhead(node) {
  const gives = (/** @type {GraphNode} */ found, /** @type {string} */ type) => found.outputs?.some((/** @type {any} */ output) => output.type === type);
  const sampler = reached(node, consumers).find((found) => gives(found, "LATENT")) ?? node;
  const parts = [sampler, ...reached(sampler, producers)];
  // Our own nodes change how many steps are full, not what a full one takes.
  const models = parts.filter((found) => gives(found, "MODEL") && !found.type.startsWith("SafeDit"));
  const loaded = models.map((found) => [found.type, found.mode, ...(found.widgets ?? []).map((/** @type {any} */ { value }) => (typeof value === "object" ? null : value))]);
  return JSON.stringify([loaded, parts.flatMap((found) => valuesIn(found, SIZE)).map(([, name, value]) => [name, value])]);
}

/** Those of a node's values that have one of these names. @param {GraphNode} node @param {string[]} names @returns {[unknown, string, any][]} */
function valuesIn(node, names) {
  const found = names.filter((name) => node.widgets?.some((/** @type {any} */ widget) => widget.name === name));
  return found.map((name) => [node.id, name, effective(node, name) ?? null]);
}

/** The nearest node of a type that shares a sampler with `node`. @param {GraphNode} node @param {string} type @returns {GraphNode | null} */
export function partner(node, type) {
  for (const ahead of reached(node, consumers)) {
    const found = [ahead, ...reached(ahead, producers)].find((candidate) => candidate !== node && candidate.type === type);
    if (found) return found;
  }
  return null;
}

/** Do something with the first argument of a method before it runs. @param {any} owner @param {string} name @param {(argument: any) => void} first */
export function before(owner, name, first) {
  const method = owner[name];
  owner[name] = function (/** @type {any[]} */ ...args) {
    first(args[0]);
    return method.apply(this, args);
  };
}

/**
 * Whether a prompt that ran before is what the graph says now, but for seeds, texts and what is painted.
 * @param {Record<string, { inputs: Record<string, unknown> }>} prompt
 */
export function isAsNow(prompt) {
  const asNow = (/** @type {[string, GraphNode]} */ [id, node]) =>
    Object.entries(prompt[id]?.inputs ?? {}).every(([name, value]) => Array.isArray(value) || !counts(node, name) || effective(node, name) === value);
  return [...allNodes()].every(asNow);
}

/** Whether a value changes what our nodes do or how long it takes. @param {GraphNode} node @param {string} name */
function counts(node, name) {
  return [...SAMPLING, ...SIZE].includes(name) || (node.type.startsWith("SafeDit") && name !== "painted_tokens");
}

/**
 * Keep what nodes are set to when a prompt is queued: by the time it runs they may be set otherwise.
 * @param {() => any} look @param {(prompt: string, found: any) => void} keep
 */
export function whenQueued(look, keep) {
  const queue = api.queuePrompt;
  api.queuePrompt = async function (/** @type {any[]} */ ...args) {
    const found = look();
    const answer = await queue.apply(this, args);
    if (answer?.prompt_id) keep(answer.prompt_id, found);
    return answer;
  };
}

/** Show a message that is not fatal; ComfyUI shows errors itself. @param {string} detail */
export function warn(detail) {
  app.extensionManager?.toast?.add?.({ severity: "warn", summary: "SAFE-DiT", detail, life: 10_000 });
}

/** Something was changed that undo is to take back: the frontend looks by itself only after clicks and keys of its own. */
export function remember() {
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
}

/** @param {string} id @param {any} [otherwise] */
export function setting(id, otherwise) {
  return app.extensionManager?.setting?.get?.(id) ?? otherwise;
}

/** @param {string} path */
export async function fetchJson(path) {
  const response = await api.fetchApi(path);
  return response.ok ? response.json() : null;
}

/** @param {string} path @param {any} body @returns {Promise<any>} */
export async function postJson(path, body) {
  const response = await api.fetchApi(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  return response.json();
}

/** Set a widget as its user does, and so that undo takes it back. @param {GraphNode} node @param {string} name @param {any} value */
export function setWidget(node, name, value) {
  const widget = node.widgets.find((/** @type {any} */ found) => found.name === name);
  widget.value = value;
  widget.callback?.(value);
  node.graph?.setDirtyCanvas?.(true, true);
  remember();
}

/** Tell the server how much this tab wants to hear of steps. @param {boolean} live @param {number} perSecond */
export async function wish(live, perSecond) {
  if (!api.clientId) return;
  await postJson("/safe_dit/live", { client_id: api.clientId, live, per_second: perSecond });
}
