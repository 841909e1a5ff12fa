// @ts-check
/** What the menu of a node offers: put SAFE-DiT before a sampler or after a model loader; save the map and the mask that are on screen. */
import { allNodes, app, linkOf, origin, remember } from "./comfy.js";
import { lookup, pixels } from "./paint.js";
import { t } from "./text.js";

/** @typedef {import("./view.js").View} View */
/** @typedef {{ content: string, callback: () => void }} Item */

const ACCELERATE = "SafeDitAccelerate";
const OURS = "SafeDit";
const MODEL = "MODEL";
const GAP = 60;
const TITLE = 30;
const SMALLEST_SIDE = 512;

/** @param {any} node @param {View | undefined} view the node's own, if it has one @returns {Item[]} */
export function menuItems(node, view) {
  const place = placeFor(node);
  const items = place ? [{ content: t("menu_accelerate"), callback: () => insert(node, place) }] : [];
  return view ? [...items, ...saving(view)] : items;
}

/** A right click on the widget opens the node's menu; Nodes 2.0 does that by itself. @param {HTMLElement} element @param {any} node */
export function openMenuFrom(element, node) {
  element.addEventListener("contextmenu", (event) => {
    if (window.LiteGraph?.vueNodesMode) return;
    event.preventDefault();
    app.canvas.adjustMouseEvent(event);
    app.canvas.processContextMenu(node, event);
  });
}

// Put the node in

/** Whether an input or output is of a kind. @param {string} kind */
const is = (kind) => (/** @type {any} */ slot) => slot.type === kind;

/** @typedef {{ node: any, input?: number, output?: number }} Place the input or output whose links lead through the new node */

/** @param {any} node @returns {Place | null} null where nothing is to be put */
function placeFor(node) {
  if (node.type?.startsWith(OURS) && node.type !== "SafeDitDemoModel") return null;
  const consumer = sampling(node);
  if (consumer) return [...modelsBefore(consumer)].some(is(ACCELERATE)) ? null : placeBefore(consumer);
  const output = node.outputs?.findIndex(is(MODEL)) ?? -1;
  const accelerated = [...allNodes()].some(([, other]) => other.type === ACCELERATE && [...modelsBefore(other)].includes(node));
  const inside = node.outputs?.[output]?.links?.every((/** @type {number} */ id) => nodeAt(node.graph, id, "target_id")) ?? true;
  return output < 0 || accelerated || !inside ? null : { node, output };
}

/** The node at one end of a link; null at the border of a subgraph, where nothing is put in. @param {any} graph @param {number | null} link @param {"origin_id" | "target_id"} end */
function nodeAt(graph, link, end) {
  const found = linkOf(graph, link);
  return found && graph.getNodeById(found[end]);
}

/** The node that takes the model for a sampler: itself, or its guider. @param {any} node */
function sampling(node) {
  const gives = (/** @type {string} */ kind) => node.outputs?.some(is(kind));
  if (!gives("LATENT") && !gives("GUIDER")) return null;
  const guider = node.inputs?.find(is("GUIDER"));
  const taker = guider ? origin(node, guider)?.node : node;
  return taker?.inputs?.some(is(MODEL)) ? taker : null;
}

/** Nodes that a model comes through, nearest first. @param {any} node */
function* modelsBefore(node) {
  const seen = new Set();
  for (let at = before(node); at && !seen.has(at); at = before(at)) {
    seen.add(at);
    yield at;
  }
}

/** @param {any} node */
function before(node) {
  const input = node.inputs?.find(is(MODEL));
  return input ? origin(node, input)?.node : null;
}

/** @param {any} node @returns {Place | null} */
function placeBefore(node) {
  const input = node.inputs.findIndex(is(MODEL));
  return nodeAt(node.graph, node.inputs[input].link, "origin_id") ? { node, input } : null;
}

/** @param {any} clicked @param {Place} place */
function insert(clicked, { node, input, output }) {
  const { graph } = node;
  const added = window.LiteGraph?.createNode(ACCELERATE);
  graph.add(added);
  added.pos = freePlace(added, clicked, input === undefined ? clicked.pos[0] + clicked.size[0] + GAP : clicked.pos[0] - added.size[0] - GAP);
  if (input === undefined) leadFrom(node, Number(output), added);
  else leadInto(node, input, added);
  graph.setDirtyCanvas(true, true);
  remember();
}

/** @param {any} node @param {number} slot @param {any} added */
function leadInto(node, slot, added) {
  const { graph } = node;
  const link = linkOf(graph, node.inputs[slot].link);
  graph.getNodeById(link.origin_id).connect(link.origin_slot, added, 0);
  added.connect(0, node, slot);
}

/** @param {any} node @param {number} slot @param {any} added */
function leadFrom(node, slot, added) {
  const { graph } = node;
  const links = [...(node.outputs[slot].links ?? [])].map((id) => linkOf(graph, id));
  const ends = links.map(({ target_id, target_slot }) => ({ target_id, target_slot }));
  for (const { target_id, target_slot } of ends) added.connect(0, graph.getNodeById(target_id), target_slot);
  node.connect(slot, added, 0);
}

/** Beside a node, below whatever lies there. @param {any} added @param {any} node @param {number} x @returns {[number, number]} */
function freePlace(added, node, x) {
  const [width, height] = added.size;
  let y = node.pos[1];
  for (;;) {
    const hit = node.graph.nodes.find((/** @type {any} */ other) => other !== added && covers(other, x, y, width, height));
    if (!hit) return [x, y];
    y = hit.pos[1] + hit.size[1] + TITLE + GAP / 2;
  }
}

/** @param {any} other @param {number} x @param {number} y @param {number} width @param {number} height */
function covers({ pos, size }, x, y, width, height) {
  const beside = x >= pos[0] + size[0] || pos[0] >= x + width;
  return !beside && y - TITLE < pos[1] + size[1] && pos[1] - TITLE < y + height;
}

// Save what is on screen

/** @param {View} view @returns {Item[]} */
function saving(view) {
  const { run, index } = view;
  if (!run?.w || index < 0) return [];
  const { kind, step } = run.evaluations[index];
  const active = run.activeAt(index);
  const map = pixels(run, kind, active, lookup(view.source.palette()));
  const items = [{ content: t("menu_saveMap"), callback: () => save(map, run, `safe-dit-map-${step + 1}.png`) }];
  const mask = active && { content: t("menu_saveMask"), callback: () => save(blackAndWhite(active), run, `safe-dit-mask-${step + 1}.png`) };
  return mask ? [...items, mask] : items;
}

/** @param {Uint8Array} active one byte a token */
function blackAndWhite(active) {
  const found = new Uint8ClampedArray(4 * active.length);
  active.forEach((on, i) => found.fill(on ? 255 : 0, 4 * i, 4 * i + 3).fill(255, 4 * i + 3, 4 * i + 4));
  return found;
}

/** Download colours of tokens as a picture in which each token is a square. @param {Uint8ClampedArray<ArrayBuffer>} colours @param {{ w: number, h: number }} grid @param {string} name */
async function save(colours, { w, h }, name) {
  const factor = Math.max(1, Math.ceil(SMALLEST_SIDE / Math.max(w, h)));
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [w * factor, h * factor];
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.imageSmoothingEnabled = false;
  context.drawImage(await createImageBitmap(new ImageData(colours, w, h)), 0, 0, canvas.width, canvas.height);
  const link = document.createElement("a");
  [link.href, link.download] = [canvas.toDataURL("image/png"), name];
  link.click();
}
