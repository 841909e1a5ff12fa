// @ts-check
/** How the widget looks: ComfyUI's own colours, so that it is dark or light with the page. */

/** Least height of the map and of the bars, in pixels. */
export const LEAST = { map: 150, timeline: 36 };
const GAP = 5;
const PADDING = 6;

const STYLE = `
.safe-dit { display: flex; flex-direction: column; gap: ${GAP}px; box-sizing: border-box; width: 100%; height: 100%; min-height: 120px; padding: ${PADDING}px;
  font: 12px/1.35 system-ui, sans-serif; color: var(--input-text, #ddd); background: var(--comfy-input-bg, #222); border-radius: 6px; outline: none; }
.safe-dit:focus-visible { box-shadow: 0 0 0 2px var(--p-primary-color, #60a5fa); }
.safe-dit [hidden] { display: none !important; }
.safe-dit > * { flex: none; }
.safe-dit canvas { display: block; width: 100%; min-height: 0; }
.safe-dit .headline { overflow-wrap: anywhere; }
.safe-dit .headline strong { font-size: 16px; margin-right: 4px; }
.safe-dit .map { flex: 1 1 ${LEAST.map}px; min-height: ${LEAST.map}px; }
.safe-dit .map.changed { opacity: 0.35; }
.safe-dit .map.painting { cursor: crosshair; touch-action: none; }
.safe-dit .timeline { flex: 0 0 ${LEAST.timeline}px; cursor: ew-resize; touch-action: none; }
.safe-dit.closed .timeline { flex: 1 1 ${LEAST.timeline}px; max-height: 96px; }
.safe-dit .legend { display: flex; flex-wrap: wrap; gap: 2px 10px; font-size: 11px; }
.safe-dit .legend i { display: inline-block; width: 9px; height: 9px; margin-right: 4px; border-radius: 2px; }
.safe-dit .cautions { display: flex; flex-direction: column; gap: 4px; }
.safe-dit .cautions p { margin: 0; padding: 4px 6px; border-left: 3px solid #e69f00; border-radius: 3px; overflow-wrap: anywhere;
  background: color-mix(in srgb, #e69f00 20%, var(--comfy-input-bg, #222)); }
.safe-dit .modes, .safe-dit .tools, .safe-dit .comparison { display: flex; flex-wrap: wrap; gap: 4px; }
.safe-dit button { font: inherit; color: inherit; background: transparent; border: 1px solid currentColor; border-radius: 4px; padding: 0 6px; cursor: pointer; }
.safe-dit button[aria-pressed="true"] { color: var(--comfy-input-bg, #222); background: var(--input-text, #ddd); }
.safe-dit .comparison button { padding: 2px 8px; }
.safe-dit button:disabled { opacity: 0.5; cursor: default; }
.safe-dit .where { align-self: flex-start; }
.safe-dit summary { cursor: pointer; }
.safe-dit .line, .safe-dit .painted { white-space: pre-line; overflow-wrap: anywhere; }
`;

export function addStyle() {
  if (document.getElementById("safe-dit-style")) return;
  const style = document.createElement("style");
  style.id = "safe-dit-style";
  style.textContent = STYLE;
  document.head.append(style);
}

/** @param {string} tag @param {string} name @param {Record<string, string>} attributes */
export function make(tag, name, attributes = {}) {
  const element = document.createElement(tag);
  element.className = name;
  element.dataset.testid = `safe-dit-${name}`;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

/** @param {HTMLElement} element @param {string} text */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Height that an element's parts need, the map and the bars at their least; null while it is not on the page. @param {HTMLElement} element */
export function neededHeight(element) {
  // Empty parts count as well: there is a gap beside them.
  const parts = /** @type {HTMLElement[]} */ ([...element.children]).filter((part) => part.getClientRects().length);
  if (!element.clientWidth || !parts.length) return null;
  const heights = parts.map((part) => LEAST[/** @type {keyof typeof LEAST} */ (part.dataset.least)] ?? part.offsetHeight);
  return heights.reduce((sum, height) => sum + height + GAP, 2 * PADDING - GAP);
}
