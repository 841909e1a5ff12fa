// @ts-check
/** The widget on a node: map of active tokens, timeline, a line of text. Knows nothing of ComfyUI. */
import { Brush } from "./brush.js";
import { KIND_STYLE, lookup, pixels } from "./paint.js";
import { isFull, measuredShare } from "./plan.js";
import { t } from "./text.js";

/** @typedef {import("./runs.js").Run} Run */
/** @typedef {{ plan: import("./plan.js").Kind[], share: number, steps: number | null, exact: boolean } | null} Prediction */

const STYLE = `
.safe-dit { display: flex; flex-direction: column; gap: 4px; box-sizing: border-box; width: 100%; height: 100%; min-height: 220px; padding: 4px;
  font: 12px/1.35 system-ui, sans-serif; color: var(--input-text, #ddd); background: var(--comfy-input-bg, #222); border-radius: 6px; outline: none; }
.safe-dit:focus-visible { box-shadow: 0 0 0 2px var(--p-primary-color, #60a5fa); }
.safe-dit canvas { display: block; width: 100%; min-height: 0; }
.safe-dit .map { flex: 1 1 0; }
.safe-dit .timeline { flex: none; height: 36px; cursor: ew-resize; touch-action: none; }
.safe-dit .map.painting { cursor: crosshair; touch-action: none; }
.safe-dit .modes, .safe-dit .tools { display: flex; flex-wrap: wrap; gap: 4px; flex: none; }
.safe-dit .modes[hidden], .safe-dit .tools[hidden], .safe-dit button[hidden] { display: none; }
.safe-dit button { font: inherit; color: inherit; background: transparent; border: 1px solid currentColor; border-radius: 4px; padding: 0 6px; cursor: pointer; }
.safe-dit button[aria-pressed="true"] { color: var(--comfy-input-bg, #222); background: var(--input-text, #ddd); }
.safe-dit .line { flex: none; white-space: pre-line; overflow-wrap: anywhere; }
`;

function addStyle() {
  if (document.getElementById("safe-dit-style")) return;
  const style = document.createElement("style");
  style.id = "safe-dit-style";
  style.textContent = STYLE;
  document.head.append(style);
}

/** @param {string} tag @param {string} name @param {Record<string, string>} attributes */
function make(tag, name, attributes = {}) {
  const element = document.createElement(tag);
  element.className = name;
  element.dataset.testid = `safe-dit-${name}`;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

/** What the map's place shows. */
const MODES = ["map", "compare", "difference"];
/** How much a difference is raised, so that it can be seen. */
const RAISED = 4;

export class View {
  /**
   * @param {{ palette: () => string, predict: (painting: import("./painting.js").Painting) => Prediction, store: import("./brush.js").Store | null }} source
   *   `store`: where what is painted on the map is kept; null where it cannot be painted on
   */
  constructor(source) {
    addStyle();
    this.source = source;
    /** @type {Run | null} */
    this.run = null;
    /** @type {number | null} the evaluation looked at; null follows the newest */
    this.at = null;
    /** @type {ImageBitmap | null} */
    this.preview = null;
    this.drawn = 0;
    this.element = make("div", "safe-dit", { tabindex: "0", role: "group" });
    this.map = /** @type {HTMLCanvasElement} */ (make("canvas", "map", { role: "img" }));
    this.timeline = /** @type {HTMLCanvasElement} */ (make("canvas", "timeline", { role: "slider", tabindex: "-1" }));
    this.line = make("div", "line");
    /** @type {[ImageBitmap, ImageBitmap] | null} accelerated and dense */
    this.pictures = null;
    this.mode = MODES[0];
    /** Where the slider between the two pictures stands, 0..1. */
    this.split = 0.5;
    this.modes = make("div", "modes", { hidden: "" });
    this.buttons = MODES.map((mode) => this.#button(mode));
    this.modes.append(...this.buttons);
    this.brush = new Brush(this.map, source.store, {
      refresh: () => this.refresh(), begin: () => this.#switch(MODES[0]), grid: () => (this.run?.w ? this.run : null), box: (grid) => this.#box(grid),
    });
    this.element.append(this.modes, this.brush.element, this.map, this.timeline, this.line);
    this.tokens = document.createElement("canvas");
    this.resizes = new ResizeObserver(() => this.refresh());
    this.#listen();
  }

  start() {
    this.resizes.observe(this.element);
    this.refresh();
  }

  stop() {
    this.resizes.disconnect();
    cancelAnimationFrame(this.drawn);
    this.drawn = 0;
  }

  /** @param {Run | null} run */
  show(run) {
    if (run !== this.run) [this.run, this.at, this.preview] = [run, null, null];
    this.refresh();
  }

  /** Draw at the next frame; many calls, one drawing. */
  refresh() {
    this.drawn ||= requestAnimationFrame(() => {
      this.drawn = 0;
      this.#draw();
    });
  }

  /** Index of the evaluation on screen. */
  get index() {
    const last = (this.run?.evaluations.length ?? 0) - 1;
    return this.at === null ? last : Math.min(this.at, last);
  }

  /** @param {number | null} index null follows the newest */
  look(index) {
    const count = this.run?.evaluations.length ?? 0;
    this.at = index === null || !count ? null : Math.max(0, Math.min(index, count - 1));
    this.refresh();
  }

  /** @param {[ImageBitmap, ImageBitmap] | null} pictures accelerated and dense */
  compare(pictures) {
    this.pictures = pictures;
    this.modes.hidden = !pictures;
    if (!pictures) this.#switch(MODES[0]);
    this.refresh();
  }

  /** @param {string} mode */
  #button(mode) {
    const button = make("button", `mode-${mode}`, { type: "button", "aria-pressed": String(mode === MODES[0]) });
    button.textContent = t(`mode_${mode}`);
    button.addEventListener("pointerdown", (event) => event.stopPropagation());
    button.addEventListener("click", () => this.#switch(mode));
    return button;
  }

  /** @param {string} mode */
  #switch(mode) {
    this.mode = mode;
    if (mode !== MODES[0]) this.brush.stop();
    for (const button of this.buttons) button.setAttribute("aria-pressed", String(button.className === `mode-${mode}`));
    this.refresh();
  }

  #listen() {
    const slide = (/** @type {PointerEvent} */ event) => {
      if (this.mode !== "compare") return;
      event.stopPropagation();
      if (!event.buttons) return;
      const { left, width } = this.map.getBoundingClientRect();
      this.split = Math.max(0, Math.min(1, (event.clientX - left) / width));
      this.refresh();
    };
    this.map.addEventListener("pointerdown", slide);
    this.map.addEventListener("pointermove", slide);
    const scrub = (/** @type {PointerEvent} */ event) => {
      const { left, width } = this.timeline.getBoundingClientRect();
      const slot = Math.floor(((event.clientX - left) / width) * this.#slots());
      const places = this.run?.places() ?? [];
      // Where a message was lost, the nearest before.
      this.look(Math.max(0, places.filter((place) => place <= slot).length - 1));
    };
    this.timeline.addEventListener("pointerdown", (event) => {
      event.stopPropagation();
      this.element.focus({ preventScroll: true });
      this.timeline.setPointerCapture(event.pointerId);
      scrub(event);
    });
    this.timeline.addEventListener("pointermove", (event) => {
      if (!this.timeline.hasPointerCapture(event.pointerId)) return;
      event.stopPropagation();
      scrub(event);
    });
    this.element.addEventListener("keydown", (event) => this.#key(event));
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const last = (this.run?.evaluations.length ?? 0) - 1;
    const slides = this.mode === "compare" && (event.key === "ArrowLeft" || event.key === "ArrowRight");
    /** @type {Record<string, () => number | null>} */
    const moves = {
      ArrowLeft: () => this.index - 1, ArrowDown: () => this.index - 1, ArrowRight: () => this.index + 1, ArrowUp: () => this.index + 1,
      Home: () => 0, End: () => last, Escape: () => null,
    };
    // Whatever is typed here is not for the graph: its Delete would delete the node.
    if (event.key !== "Tab") event.stopPropagation();
    if (this.brush.key(event)) return event.preventDefault();
    if (slides) {
      event.preventDefault();
      this.split = Math.max(0, Math.min(1, this.split + (event.key === "ArrowLeft" ? -0.05 : 0.05)));
      this.refresh();
      return;
    }
    if (!(event.key in moves)) return;
    event.preventDefault();
    this.look(moves[event.key]());
  }

  /** Places on the timeline: the evaluations heard of, or the steps still to come. */
  #slots() {
    return Math.max(this.run?.total ?? 0, this.run?.evaluations.length ?? 0, 1);
  }

  #draw() {
    const prediction = this.source.predict(this.brush.painting());
    if (this.mode === "map") this.#drawMap();
    else this.#drawPictures();
    this.#drawTimeline(prediction);
    this.#write(prediction);
  }

  /** @param {HTMLCanvasElement} canvas */
  #sized(canvas) {
    const scale = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight].map((side) => Math.max(1, Math.round(side * scale)));
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    context.clearRect(0, 0, width, height);
    return { context, width, height, scale };
  }

  /** Where a grid of tokens lies on the map's canvas. @param {{ w: number, h: number }} grid */
  #box({ w, h }) {
    const { width, height } = this.map;
    const fit = Math.min(width / w, height / h);
    return { x: (width - w * fit) / 2, y: (height - h * fit) / 2, fit };
  }

  #drawMap() {
    const { context, scale } = this.#sized(this.map);
    const { run, index } = this;
    if (run && run.w && index >= 0) this.#drawTokens(context, run, index);
    this.brush.drawOn(context, scale);
  }

  /** @param {CanvasRenderingContext2D} context @param {Run} run @param {number} index */
  #drawTokens(context, run, index) {
    const { kind } = run.evaluations[index];
    const image = new ImageData(pixels(run, kind, run.activeAt(index), lookup(this.source.palette()), this.preview ? 150 : 255), run.w, run.h);
    [this.tokens.width, this.tokens.height] = [run.w, run.h];
    this.tokens.getContext("2d")?.putImageData(image, 0, 0);
    const { x, y, fit } = this.#box(run);
    const box = /** @type {const} */ ([x, y, run.w * fit, run.h * fit]);
    if (this.preview) context.drawImage(this.preview, ...box);
    context.imageSmoothingEnabled = false;
    context.drawImage(this.tokens, ...box);
  }

  #drawPictures() {
    const { context, width, height, scale } = this.#sized(this.map);
    if (!this.pictures) return;
    const [accelerated, dense] = this.pictures;
    const fit = Math.min(width / accelerated.width, height / accelerated.height);
    const [w, h] = [accelerated.width * fit, accelerated.height * fit];
    const box = /** @type {const} */ ([(width - w) / 2, (height - h) / 2, w, h]);
    context.drawImage(dense, ...box);
    if (this.mode === "difference") {
      context.globalCompositeOperation = "difference";
      context.drawImage(accelerated, ...box);
      // Doubling twice: a canvas cannot multiply by more than one.
      context.globalCompositeOperation = "lighter";
      for (let factor = 1; factor < RAISED; factor *= 2) context.drawImage(this.map, 0, 0);
      context.globalCompositeOperation = "source-over";
      return;
    }
    const at = this.split * width;
    context.save();
    context.beginPath();
    context.rect(at, 0, width - at, height);
    context.clip();
    context.drawImage(accelerated, ...box);
    context.restore();
    context.fillStyle = "#fff";
    context.fillRect(at - scale, 0, 2 * scale, height);
  }

  /** @param {Prediction} prediction */
  #drawTimeline(prediction) {
    const { context, width, height, scale } = this.#sized(this.timeline);
    const places = this.run?.places() ?? [];
    const expected = this.run?.finished ? [] : prediction?.plan ?? [];
    const slot = width / (this.run ? this.#slots() : Math.max(expected.length, 1));
    const draw = (/** @type {number} */ place, /** @type {import("./plan.js").Kind} */ kind, /** @type {number} */ alpha) => {
      const bar = Math.max(KIND_STYLE[kind].height * (height - 6 * scale), 2);
      context.globalAlpha = alpha;
      context.fillStyle = KIND_STYLE[kind].colour;
      context.fillRect(place * slot + slot * 0.08, height - bar, slot * 0.84, bar);
    };
    const next = places.length ? places[places.length - 1] + 1 : 0;
    expected.forEach((kind, place) => { if (place >= next && place * slot < width) draw(place, kind, 0.4); });
    places.forEach((place, i) => draw(place, /** @type {Run} */ (this.run).evaluations[i].kind, 1));
    context.globalAlpha = 1;
    if (this.index < 0) return;
    context.strokeStyle = getComputedStyle(this.element).color;
    context.lineWidth = 2 * scale;
    context.strokeRect(places[this.index] * slot + scale, scale, Math.max(slot - 2 * scale, scale), height - 2 * scale);
  }

  /** @param {Prediction} prediction */
  #write(prediction) {
    // Lines that come and go would move the map away under the pointer that draws on it.
    if (this.brush.stroke) return;
    const painted = [...this.brush.words(), this.#idleLine(prediction)];
    const lines = [this.#stepLine(), this.#shareLine(prediction), ...painted, ...(this.run?.notes ?? [])].filter(Boolean);
    this.line.textContent = lines.join("\n");
    this.element.setAttribute("aria-label", `${t("title")}: ${lines.join(". ")}`);
    this.map.setAttribute("aria-label", t(this.brush.on ? "aboutPainting" : this.mode === "map" ? "map" : `about_${this.mode}`));
    const count = this.run?.evaluations.length ?? 0;
    const values = { "aria-label": t("timeline"), "aria-valuemin": 0, "aria-valuemax": Math.max(count - 1, 0), "aria-valuenow": Math.max(this.index, 0) };
    for (const [key, value] of Object.entries(values)) this.timeline.setAttribute(key, String(value));
    this.timeline.setAttribute("aria-valuetext", this.#stepLine());
  }

  /** That a painting will do nothing; a run that is over has said so itself. @param {Prediction} prediction */
  #idleLine(prediction) {
    const idle = prediction && !prediction.plan.includes("selective") && !this.brush.empty && !this.run?.notes.length;
    return idle ? t("paintingIdle") : "";
  }

  #stepLine() {
    const { run, index } = this;
    if (!run || index < 0) return t("noRun");
    const { step, kind, rows, ms } = run.evaluations[index];
    const parts = [t("step", { step: step + 1, total: run.total }), t(kind)];
    if (rows[1]) parts.push(t("rows", { active: rows[0].toLocaleString(), total: rows[1].toLocaleString() }));
    parts.push(`${ms.toFixed(ms < 10 ? 1 : 0)} ms`);
    if (run.cache) parts.push(t("cache", { size: (run.cache / 2 ** 20).toFixed(1) }));
    if (run.masks) parts.push(run.masks[1] ? t("masks", { done: run.masks[2] + run.masks[3], of: run.masks[1] }) : t("noMasks"));
    return parts.join(" \u00b7 ");
  }

  /** @param {Prediction} prediction */
  #shareLine(prediction) {
    const measured = this.run?.finished || (this.run && this.run.evaluations.length >= this.run.total) ? measuredShare(this.run.evaluations) : null;
    const parts = [];
    if (prediction) {
      const full = prediction.plan.filter(isFull).length;
      const values = { share: Math.round(100 * prediction.share), full, steps: prediction.plan.length };
      parts.push(t(prediction.steps === null ? "predictedUnknown" : prediction.exact ? "predicted" : "predictedAbout", values));
    }
    if (measured !== null) parts.push(t("measured", { share: Math.round(100 * measured) }));
    return parts.join(" \u00b7 ");
  }
}
