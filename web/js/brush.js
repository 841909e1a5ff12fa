// @ts-check
/** Painting on the map: its tools, pointer and keys, and how painted tokens look. */
import { brushed, CONTEXT, countsOf, formatPainting, FREE, outline, parsePainting, resizedPainting, runsOf, SENSITIVE } from "./painting.js";
import { t } from "./text.js";

/** @typedef {import("./painting.js").Painting} Painting */
/** @typedef {{ read: () => string, write: (text: string) => void }} Store where the text of the painting is kept */
/** @typedef {{ x: number, y: number, fit: number }} Box where the map lies on its canvas, and the size of a token, in canvas pixels */

/** The grid to paint on before anything tells the run's; the run resizes it. */
const UNKNOWN = { w: 16, h: 16 };
/** Reach of the brush in pixels of the screen: small tokens cannot be hit one by one. */
const REACH = 5;
const TOOLS = /** @type {const} */ ([["sensitive", SENSITIVE], ["context", CONTEXT], ["erase", FREE]]);
const NAMES = { [FREE]: "free", [SENSITIVE]: "sensitive", [CONTEXT]: "context" };
/** Told apart by the way the lines lean and by their dashes, not by colour alone: bright over dark, and dark over bright. */
const LOOKS = [
  { value: SENSITIVE, over: "#ffffff", under: "#000000", dashes: [], rising: true },
  { value: CONTEXT, over: "#000000", under: "#ffffff", dashes: [4, 3], rising: false },
];
const HATCH = 8;

export class Brush {
  /**
   * @param {HTMLCanvasElement} map
   * @param {Store | null} store null: nothing can be painted here
   * @param {{ refresh: () => void, begin: () => void, grid: () => { w: number, h: number } | null, box: (grid: { w: number, h: number }) => Box }} view
   *   `begin`: painting begins, so show the map; `grid`: of the run that is shown
   */
  constructor(map, store, view) {
    this.map = map;
    this.store = store;
    this.view = view;
    this.on = false;
    /** @type {number} what the brush makes of a token */
    this.value = SENSITIVE;
    /** The token that keys act on. @type {[number, number]} */
    this.cursor = [0, 0];
    /** @type {Painting | null} what is being drawn, until it is stored */
    this.stroke = null;
    /** @type {[number, number] | null} where the pointer was, in tokens */
    this.last = null;
    /** @type {{ key: string, painting: Painting } | null} */
    this.known = null;
    this.element = document.createElement("div");
    this.element.className = "tools";
    this.element.dataset.testid = "safe-dit-tools";
    this.element.setAttribute("role", "toolbar");
    this.element.setAttribute("aria-label", t("paintTools"));
    this.element.hidden = !store;
    this.toggle = this.#button("paint", () => this.#switch(!this.on));
    this.tools = TOOLS.map(([name, value]) => this.#button(name, () => this.#take(value)));
    this.wipe = this.#button("clear", () => this.#store({ ...this.#grid(), tokens: new Uint8Array(0) }));
    this.element.append(this.toggle, ...this.tools, this.wipe);
    this.#listen();
    this.#show();
  }

  /** What is painted, on the grid that is shown. @returns {Painting} */
  painting() {
    if (this.stroke) return this.stroke;
    const text = this.store?.read() ?? "";
    const { w, h } = this.#grid();
    const key = `${w} ${h} ${text}`;
    if (this.known?.key !== key) {
      const found = parsePainting(text);
      this.known = { key, painting: found ? resizedPainting(found, w, h) : { w, h, tokens: new Uint8Array(w * h) } };
    }
    return this.known.painting;
  }

  get empty() {
    return !this.painting().tokens.some(Boolean);
  }

  /** Leave painting. */
  stop() {
    this.#switch(false);
  }

  /** The run's grid; before a run that of the painting. */
  #grid() {
    return this.view.grid() ?? parsePainting(this.store?.read()) ?? UNKNOWN;
  }

  /** @param {string} name @param {() => void} action */
  #button(name, action) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = `tool-${name}`;
    button.dataset.testid = `safe-dit-tool-${name}`;
    button.textContent = t(`tool_${name}`);
    button.title = t(`about_${name}`);
    button.addEventListener("pointerdown", (event) => event.stopPropagation());
    button.addEventListener("click", action);
    return button;
  }

  /** @param {boolean} on */
  #switch(on) {
    this.on = on && Boolean(this.store);
    if (this.on) this.view.begin();
    this.#show();
  }

  /** @param {number} value */
  #take(value) {
    this.value = value;
    this.#show();
  }

  #show() {
    this.toggle.setAttribute("aria-pressed", String(this.on));
    this.tools.forEach((button, i) => button.setAttribute("aria-pressed", String(TOOLS[i][1] === this.value)));
    for (const button of [...this.tools, this.wipe]) button.hidden = !this.on;
    this.map.classList.toggle("painting", this.on);
    this.view.refresh();
  }

  // Pointer: mouse, finger and pen alike

  #listen() {
    this.map.addEventListener("pointerdown", (event) => {
      if (!this.on || !event.isPrimary || event.button !== 0) return;
      event.stopPropagation();
      this.map.setPointerCapture(event.pointerId);
      const { w, h, tokens } = this.painting();
      this.stroke = { w, h, tokens: Uint8Array.from(tokens) };
      this.#draw(event);
    });
    this.map.addEventListener("pointermove", (event) => {
      if (!this.stroke || !this.map.hasPointerCapture(event.pointerId)) return;
      event.stopPropagation();
      // The browser puts several moves into one event: without them a fast stroke would be a polygon.
      for (const move of [...(event.getCoalescedEvents?.() ?? []), event]) this.#draw(move);
    });
    // Comes after the pointer was lifted, and where the browser takes it away.
    this.map.addEventListener("lostpointercapture", () => {
      const drawn = this.stroke;
      [this.stroke, this.last] = [null, null];
      if (drawn) this.#store(drawn);
    });
  }

  /** @param {PointerEvent} event */
  #draw(event) {
    const stroke = /** @type {Painting} */ (this.stroke);
    const { left, top, width, height } = this.map.getBoundingClientRect();
    const { x, y, fit } = this.view.box(stroke);
    const scale = this.map.width / width;
    /** @type {[number, number]} */
    const at = [((event.clientX - left) * scale - x) / fit, ((event.clientY - top) * (this.map.height / height) - y) / fit];
    for (const token of brushed(stroke, this.last ?? at, at, (REACH * scale) / fit)) stroke.tokens[token] = this.value;
    this.last = at;
    this.view.refresh();
  }

  /** @param {Painting} painting */
  #store(painting) {
    this.store?.write(formatPainting(painting));
    this.view.refresh();
  }

  // Keys

  /**
   * A key while painting: arrows, Home and End move the cursor, Enter and Space paint under it, s, c and e with that tool, Escape leaves.
   * @param {KeyboardEvent} event
   * @returns {boolean} whether it was for the brush
   */
  key(event) {
    if (!this.on || (event.target instanceof HTMLElement && event.target.matches("button, summary") && [" ", "Enter"].includes(event.key))) return false;
    const { w, h } = this.painting();
    const [x, y] = [Math.min(this.cursor[0], w - 1), Math.min(this.cursor[1], h - 1)];
    /** @type {Record<string, [number, number]>} */
    const moves = { ArrowLeft: [x - 1, y], ArrowRight: [x + 1, y], ArrowUp: [x, y - 1], ArrowDown: [x, y + 1], Home: [0, y], End: [w - 1, y] };
    /** @type {Record<string, number>} */
    const paints = { " ": this.value, Enter: this.value, s: SENSITIVE, c: CONTEXT, e: FREE, Delete: FREE, Backspace: FREE };
    if (event.key in moves) this.cursor = [clamp(moves[event.key][0], w), clamp(moves[event.key][1], h)];
    else if (event.key in paints) this.#paintAt(y * w + x, paints[event.key]);
    else if (event.key === "Escape") this.stop();
    else return false;
    this.view.refresh();
    return true;
  }

  /** @param {number} token @param {number} value */
  #paintAt(token, value) {
    const { w, h, tokens } = this.painting();
    const painted = Uint8Array.from(tokens);
    painted[token] = value;
    this.#store({ w, h, tokens: painted });
  }

  // Drawing

  /** What is painted, in words; nothing where there is nothing to say. @returns {string[]} */
  words() {
    const { w, h, tokens } = this.painting();
    const words = this.empty ? [] : [t("painted", countsOf({ w, h, tokens }))];
    if (!this.on) return words;
    const [x, y] = [Math.min(this.cursor[0], w - 1), Math.min(this.cursor[1], h - 1)];
    const value = /** @type {keyof typeof NAMES} */ (tokens[y * w + x]);
    return [...words, t("cursor", { row: y + 1, column: x + 1, value: t(`token_${NAMES[value]}`) })];
  }

  /** @param {CanvasRenderingContext2D} context @param {number} scale pixels of the canvas to one of the page */
  drawOn(context, scale) {
    const painting = this.painting();
    const box = this.view.box(painting);
    if (this.on && !this.view.grid()) drawGrid(context, painting, box);
    for (const look of LOOKS) if (painting.tokens.includes(look.value)) drawPainted(context, painting, box, look, scale);
    if (this.on) this.#drawCursor(context, painting, box, scale);
  }

  /** @param {CanvasRenderingContext2D} context @param {Painting} painting @param {Box} box @param {number} scale */
  #drawCursor(context, { w, h }, { x, y, fit }, scale) {
    const [column, row] = [Math.min(this.cursor[0], w - 1), Math.min(this.cursor[1], h - 1)];
    for (const [colour, width] of /** @type {const} */ ([["#000", 4], ["#fff", 2]])) {
      context.strokeStyle = colour;
      context.lineWidth = width * scale;
      context.strokeRect(x + column * fit, y + row * fit, fit, fit);
    }
  }
}

/** @param {number} value @param {number} size */
function clamp(value, size) {
  return Math.max(0, Math.min(value, size - 1));
}

/** Where there is no map yet. @param {CanvasRenderingContext2D} context @param {{ w: number, h: number }} grid @param {Box} box */
function drawGrid(context, { w, h }, { x, y, fit }) {
  context.strokeStyle = "#808080";
  context.lineWidth = 1;
  context.beginPath();
  for (let column = 0; column <= w; column++) {
    context.moveTo(x + column * fit, y);
    context.lineTo(x + column * fit, y + h * fit);
  }
  for (let row = 0; row <= h; row++) {
    context.moveTo(x, y + row * fit);
    context.lineTo(x + w * fit, y + row * fit);
  }
  context.stroke();
}

/**
 * Hatched, with a border.
 * @param {CanvasRenderingContext2D} context @param {Painting} painting @param {Box} box @param {typeof LOOKS[0]} look @param {number} scale
 */
function drawPainted(context, painting, { x, y, fit }, look, scale) {
  const { w, h, tokens } = painting;
  context.fillStyle = /** @type {CanvasPattern} */ (context.createPattern(hatch(look, scale), "repeat"));
  for (let row = 0; row < h; row++)
    for (const { from, to, value } of runsOf(tokens.subarray(row * w, (row + 1) * w)))
      if (value === look.value) context.fillRect(x + from * fit, y + row * fit, (to - from) * fit, fit);
  context.beginPath();
  for (const [fromX, fromY, toX, toY] of outline(painting, look.value)) {
    context.moveTo(x + fromX * fit, y + fromY * fit);
    context.lineTo(x + toX * fit, y + toY * fit);
  }
  for (const [colour, width, dashes] of /** @type {const} */ ([[look.under, 3, []], [look.over, 1.5, look.dashes]])) {
    context.strokeStyle = colour;
    context.lineWidth = width * scale;
    context.setLineDash(dashes.map((/** @type {number} */ dash) => dash * scale));
    context.stroke();
  }
  context.setLineDash([]);
}

/** One tile of leaning lines. @param {typeof LOOKS[0]} look @param {number} scale */
function hatch({ over, under, rising }, scale) {
  const tile = document.createElement("canvas");
  const size = (tile.width = tile.height = Math.max(4, Math.round(HATCH * scale)));
  const context = /** @type {CanvasRenderingContext2D} */ (tile.getContext("2d"));
  if (!rising) [context.fillStyle, context.globalAlpha] = ["#000", 0.35];
  if (!rising) context.fillRect(0, 0, size, size);
  context.globalAlpha = 1;
  for (const [colour, width] of /** @type {const} */ ([[under, 3.6], [over, 1.2]])) {
    context.strokeStyle = colour;
    context.lineWidth = width * scale;
    context.beginPath();
    for (const shift of [-size, 0, size]) {
      context.moveTo(shift, rising ? size : 0);
      context.lineTo(shift + size, rising ? 0 : size);
    }
    context.stroke();
  }
  return tile;
}
