// @ts-check
/** The inputs of SAFE-DiT Accelerate: those that a preset ignores are hidden, and the presets are shown with what they save. */
import { effective } from "./comfy.js";
import { CUSTOM, SPEEDUP, presetFactor, presetValues } from "./prediction.js";
import { t } from "./text.js";

const PRESET = "preset";
const BY_HAND = ["keep_ratio", "refresh_interval", "warmup_steps", "forecast", "early_refresh", "skipped_steps", "corrector", "coarse_steps"];
/** Only selective steps keep keys and values. */
const CACHE = "cache";
/** Inputs that are advanced when they are seen: for hidden ones, too, Nodes 2.0 would offer to show advanced inputs. @type {WeakSet<any>} */
const ADVANCED = new WeakSet();

/** Which inputs a preset reads; null: all, because it is not known which preset it will be. @param {string | undefined} preset @returns {string[] | null} */
export function readBy(preset) {
  if (preset === undefined) return null;
  if (preset === CUSTOM) return [...BY_HAND, CACHE];
  if (preset === SPEEDUP) return [SPEEDUP];
  const values = presetValues(preset);
  return values && !values.skipped_steps ? [CACHE] : [];
}

/** Hide what the preset ignores, but for inputs with a link, which must be seen. Places and values of widgets stay. @param {any} node */
export function hideIgnored(node) {
  const read = readBy(effective(node, PRESET));
  const linked = new Set(node.inputs?.filter((/** @type {any} */ input) => input.link != null).map((/** @type {any} */ input) => input.widget?.name));
  const ours = node.widgets.filter((/** @type {any} */ { name }) => [...BY_HAND, CACHE, SPEEDUP].includes(name));
  const changed = ours.filter((/** @type {any} */ widget) => hide(widget, read !== null && !read.includes(widget.name) && !linked.has(widget.name)));
  if (!changed.length) return;
  // Nodes 2.0 reads `options` anew only when the list of widgets is set, and some of them only when it becomes another list.
  const all = [...node.widgets];
  node.widgets = all.slice(1);
  node.widgets = all;
  node.graph?.setDirtyCanvas?.(true, true);
}

/** @param {any} widget @param {boolean} hidden @returns {boolean} whether something changed */
function hide(widget, hidden) {
  const changed = Boolean(widget.hidden) !== hidden;
  [widget.hidden, widget.options.hidden] = [hidden, hidden];
  if (widget.options.advanced) ADVANCED.add(widget);
  widget.options.advanced = !hidden && ADVANCED.has(widget);
  return changed;
}

/**
 * Follow what the user chooses: *custom* starts from the values of the preset before it.
 * @param {any} node
 * @returns {() => void} to be called when the preset was changed otherwise, as by loading a workflow
 */
export function followPreset(node) {
  const widget = node.widgets.find((/** @type {any} */ found) => found.name === PRESET);
  let before = widget.value;
  const { callback } = widget;
  widget.callback = function (/** @type {any[]} */ ...args) {
    const result = callback?.apply(this, args);
    const values = widget.value === CUSTOM && before !== CUSTOM ? presetValues(before) : null;
    // A preset by budget has no values of its own: those that the node has stay.
    for (const name of values ? BY_HAND : []) setValue(node, name, values?.[name]);
    before = widget.value;
    hideIgnored(node);
    return result;
  };
  return () => { before = widget.value; };
}

/** @param {any} node @param {string} name @param {unknown} value */
function setValue(node, name, value) {
  const widget = node.widgets.find((/** @type {any} */ found) => found.name === name);
  if (widget && value !== undefined) widget.value = value;
}

/** Show the presets with how many times faster they are; what is saved and sent stays the preset's name. @param {any} node @param {() => [import("./runs.js").Run | null, string | null]} shown the last run, and the node's id */
export function labelPresets(node, shown) {
  const widget = node.widgets.find((/** @type {any} */ found) => found.name === PRESET);
  widget.options.getOptionLabel = (/** @type {string | null} */ preset) => {
    const factor = preset ? presetFactor(node, preset, ...shown()) : null;
    return factor === null ? (preset ?? "") : t("presetFactor", { preset: preset ?? "", factor: factor.toFixed(1) });
  };
}
