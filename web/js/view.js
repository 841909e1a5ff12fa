// @ts-check
/** The widget on a node: what is saved, the steps as bars, the map of active tokens. Knows nothing of ComfyUI. */
import { Brush } from "./brush.js";
import { drawLabels, lookup, pixels } from "./paint.js";
import { addStyle, make, neededHeight, say } from "./style.js";
import { t } from "./text.js";
import { barsOf, drawBars, writeLegend } from "./timeline.js";
import { cautions, details, headline, stepLine } from "./words.js";

/** @typedef {import("./runs.js").Run} Run */
/** @typedef {import("./prediction.js").Prediction} Prediction */
/** @typedef {import("./words.js").Facts} Facts */

/** What the map's place shows. */
const MODES = ["map", "compare", "difference"];
/** How much a difference is raised, so that it can be seen. */
const RAISED = 4;

export class View {
  /**
   * @param {{ palette: () => string, predict: (painting: import("./painting.js").Painting) => Prediction | null, full: (subject: import("./prediction.js").Subject | null) => number | null, store: import("./brush.js").Store | null, grown: () => void }} source
   *   `store`: where what is painted on the map is kept; null where it cannot be painted on. `full`: seconds of a full run that was timed. `grown`: told when another height is needed
   */
  constructor(source) {
    addStyle();
    this.source = source;
    /** @type {Run | null} the last one */
    this.run = null;
    /** What was asked of it. @type {import("./prediction.js").Subject | null} */
    this.asked = null;
    /** Whether the map is to be seen where no step is selective. */
    this.where = false;
    /** Height that all of it needs. */
    this.needed = 120;
    /** @type {number | null} the evaluation looked at; null follows the newest */
    this.at = null;
    /** @type {ImageBitmap | null} */
    this.preview = null;
    this.drawn = 0;
    this.element = make("div", "safe-dit", { tabindex: "0", role: "group" });
    this.headline = make("div", "headline");
    this.headline.append(document.createElement("strong"), document.createElement("span"));
    this.timeline = /** @type {HTMLCanvasElement} */ (make("canvas", "timeline", { role: "slider", tabindex: "-1", "data-least": "timeline" }));
    this.legend = make("div", "legend");
    this.step = make("div", "step");
    this.cautions = make("div", "cautions", { role: "status" });
    this.map = /** @type {HTMLCanvasElement} */ (make("canvas", "map", { role: "img", "data-least": "map" }));
    this.toggle = this.#pushable("where", () => { this.where = !this.where; });
    this.painted = make("div", "painted");
    this.answer = make("div", "answer", { role: "status", hidden: "" });
    this.more = make("details", "more");
    this.line = make("div", "line");
    const summary = document.createElement("summary");
    summary.textContent = t("details");
    this.more.append(summary, this.line);
    this.more.addEventListener("toggle", () => this.refresh());
    /** @type {[ImageBitmap, ImageBitmap] | null} accelerated and dense */
    this.pictures = null;
    /** @type {[string, string] | null} what stands on the two pictures */
    this.labels = null;
    this.mode = MODES[0];
    /** Where the slider between the two pictures stands, 0..1. */
    this.split = 0.5;
    this.modes = make("div", "modes", { hidden: "" });
    this.buttons = MODES.map((mode) => this.#pushable(`mode-${mode}`, () => this.#switch(mode)));
    this.buttons[0].setAttribute("aria-pressed", "true");
    this.modes.append(...this.buttons);
    this.brush = new Brush(this.map, source.store, {
      refresh: () => this.refresh(), begin: () => this.#switch(MODES[0]), grid: () => (this.run?.w ? this.run : null), box: (grid) => this.#box(grid),
    });
    this.element.append(
      this.headline, this.timeline, this.legend, this.step, this.cautions, this.modes, this.toggle, this.brush.element, this.map, this.painted, this.answer, this.more,
    );
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

  /** @param {Run | null} run @param {import("./prediction.js").Subject | null} asked what was asked of it */
  show(run, asked) {
    if (run !== this.run) {
      [this.run, this.at, this.preview] = [run, null, null];
      this.tell("");
      if (this.labels) this.compare(null);
    }
    this.asked = asked;
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

  /** Say what came of something that was asked for; the next run makes it old. @param {string} sentence */
  tell(sentence) {
    say(this.answer, sentence);
    this.answer.hidden = !sentence;
    this.refresh();
  }

  /** @param {[ImageBitmap, ImageBitmap] | null} pictures accelerated and dense @param {[string, string] | null} labels with these, the slider is shown at once */
  compare(pictures, labels = null) {
    [this.pictures, this.labels] = [pictures, labels];
    this.modes.hidden = !pictures;
    if (!pictures || labels) this.#switch(MODES[pictures ? 1 : 0]);
    this.refresh();
  }

  /** @param {string} name @param {() => void} action */
  #pushable(name, action) {
    const button = make("button", name, { type: "button", "aria-pressed": "false" });
    button.textContent = t(name.replace("-", "_"));
    button.addEventListener("pointerdown", (event) => event.stopPropagation());
    button.addEventListener("click", () => { action(); this.refresh(); });
    return button;
  }

  /** @param {string} mode */
  #switch(mode) {
    this.mode = mode;
    if (mode === MODES[0]) this.where ||= Boolean(this.pictures);
    else this.brush.stop();
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
    const facts = this.#facts();
    this.#arrange(facts);
    if (this.mode === "map") this.#drawMap();
    else this.#drawPictures();
    this.#drawTimeline(facts);
    this.#write(facts);
    this.#grow();
  }

  /** The run and what is predicted, of the same thing: a finished run is left for the next one's plan as soon as settings differ. @returns {Facts} */
  #facts() {
    const prediction = this.source.predict(this.brush.painting());
    const other = Boolean(this.run && prediction && this.asked && this.asked.key !== prediction.subject.key);
    const changed = other && Boolean(this.run?.ended || this.run?.complete);
    const [run, ahead] = [changed ? null : this.run, other && !changed ? null : prediction];
    return { run, prediction: ahead, full: this.source.full(run ? this.asked : (ahead?.subject ?? null)), changed, painted: !this.brush.empty };
  }

  /** What there is room for: the map where steps are selective, else when it is asked for. @param {Facts} facts */
  #arrange({ run, prediction, changed }) {
    const unknown = !prediction && !run && Boolean(this.source.store);
    const always = unknown || prediction?.paints || run?.evaluations.some(({ kind }) => kind === "selective");
    const something = Boolean(this.run?.w) || !this.brush.empty;
    const open = this.mode !== MODES[0] || always || (something && this.where);
    this.map.hidden = this.painted.hidden = !open;
    this.element.classList.toggle("closed", !open);
    this.map.classList.toggle("changed", changed);
    this.toggle.hidden = Boolean(always) || !something || this.mode !== MODES[0];
    this.toggle.setAttribute("aria-pressed", String(this.where));
    this.brush.element.hidden = !this.source.store || !always || this.mode !== MODES[0];
    if (this.brush.on && this.brush.element.hidden) this.brush.stop();
  }

  /** Ask for another height where another is needed. */
  #grow() {
    const needed = neededHeight(this.element);
    if (needed === null || needed === this.needed || this.brush.stroke) return;
    this.needed = needed;
    this.element.style.minHeight = `${needed}px`;
    this.source.grown();
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
    if (this.labels) drawLabels(context, { width, bottom: box[1] + h }, scale, this.labels);
  }

  /** @param {Facts} facts */
  #drawTimeline({ run, prediction }) {
    const bars = barsOf(run, prediction?.plan ?? []);
    const slots = Math.max(run ? this.#slots() : 0, ...bars.map(({ place }) => place + 1), 1);
    drawBars(this.#sized(this.timeline), bars, slots, run && this.index >= 0 ? run.places()[this.index] : null);
    writeLegend(this.legend, bars);
  }

  /** @param {Facts} facts */
  #write(facts) {
    // Lines that come and go would move the map away under the pointer that draws on it.
    if (this.brush.stroke) return;
    const { strong, rest } = headline(facts);
    this.headline.hidden = !facts.run && !facts.prediction && !this.answer.hidden;
    say(/** @type {HTMLElement} */ (this.headline.firstChild), strong);
    say(/** @type {HTMLElement} */ (this.headline.lastChild), rest);
    const step = facts.run && this.index >= 0 ? stepLine(facts.run, this.index) : facts.changed ? t("changed") : "";
    say(this.step, step);
    this.#caution(cautions(facts));
    say(this.painted, this.brush.words().join("\n"));
    say(this.line, details(facts, this.index).join("\n"));
    this.step.hidden = !step;
    this.more.hidden = !this.line.textContent;
    this.element.setAttribute("aria-label", `${t("title")}: ${[strong, rest, ...cautions(facts), step].filter(Boolean).join(". ")}`);
    const about = t(this.brush.on ? "aboutPainting" : this.mode === "map" ? "map" : `about_${this.mode}`);
    this.map.setAttribute("aria-label", [about, ...(this.mode === "compare" ? this.labels ?? [] : [])].join(". "));
    this.#describeTimeline(facts.run, step);
  }

  /** @param {string[]} sentences */
  #caution(sentences) {
    if ([...this.cautions.children].map(({ textContent }) => textContent).join("\n") === sentences.join("\n")) return;
    this.cautions.replaceChildren(...sentences.map((sentence) => {
      const line = document.createElement("p");
      line.textContent = sentence;
      return line;
    }));
  }

  /** @param {Run | null} run @param {string} step */
  #describeTimeline(run, step) {
    const count = run?.evaluations.length ?? 0;
    const values = { "aria-label": t("timeline"), "aria-valuemin": 0, "aria-valuemax": Math.max(count - 1, 0), "aria-valuenow": run ? Math.max(this.index, 0) : 0 };
    for (const [key, value] of Object.entries(values)) this.timeline.setAttribute(key, String(value));
    this.timeline.setAttribute("aria-valuetext", step);
  }
}
