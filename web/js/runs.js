// @ts-check
/** The runs this page has heard of, live or afterwards, and which node shows which. */
import { readNote, readRecord, readStep } from "./codec.js";

/** @typedef {import("./codec.js").Evaluation} Evaluation */
/** How a run ended; null while it goes on. @typedef {"done" | "interrupted" | "failed" | null} Ended */

const KEPT = 48;
const KEPT_SENTENCES = 500;

/** One sampling run. Evaluations may be missing: a lost connection, or fewer messages asked for. */
export class Run {
  /** @param {string} key @param {{ w: number, h: number, total: number }} header */
  constructor(key, { w, h, total }) {
    this.key = key;
    this.w = w;
    this.h = h;
    this.total = total;
    /** @type {Evaluation[]} */
    this.evaluations = [];
    /** @type {Uint8Array | null} */
    this.sens = null;
    this.cache = 0;
    /** @type {number[] | null} */
    this.masks = null;
    /** Whether nothing of it is missing: the Report's record was read. */
    this.finished = false;
    /** @type {Ended} */
    this.ended = null;
    /** What nodes were set to when it was queued, by execution id. @type {Map<string, import("./prediction.js").Subject> | null} */
    this.subjects = null;
    /** @type {import("./codec.js").Levels | null} */
    this.levels = null;
    /** @type {string[]} */
    this.notes = [];
    /** Those of the notes that say that something else was done than asked for. @type {Set<string>} */
    this.warnings = new Set();
  }

  /** @param {import("./codec.js").Header} header */
  take({ w, h, total, sens, cache, masks, levels }) {
    if (w && h) [this.w, this.h] = [w, h];
    this.total = total;
    this.sens = sens ?? this.sens;
    this.cache = Math.max(this.cache, cache);
    this.masks = masks ?? this.masks;
    this.levels = levels ?? this.levels;
  }

  /** Whether its last step was heard of. */
  get complete() {
    return this.finished || (this.evaluations.at(-1)?.step ?? -1) + 1 >= this.total;
  }

  /** Whether it ended too early. */
  get interrupted() {
    return this.ended === "interrupted" || this.ended === "failed";
  }

  /** Whether it is over and every evaluation is known, so that its time is. */
  get timed() {
    return this.complete && (this.finished || this.evaluations.length >= this.total);
  }

  /** Place of each evaluation on the timeline: its step; or its number, where a sampler evaluates steps more than once. */
  places() {
    const steps = this.evaluations.map(({ step }) => step);
    return new Set(steps).size === steps.length ? steps : steps.map((_, i) => i);
  }

  /** Tokens active in an evaluation, one byte each; null: all of them, or none where the step is skipped. @param {number} index */
  activeAt(index) {
    const evaluation = this.evaluations[index];
    return evaluation?.kind === "selective" ? evaluation.mask : null;
  }
}

export class Runs {
  constructor() {
    /** @type {Map<string, Run>} */
    this.byKey = new Map();
    /** @type {Map<string, string>} */
    this.shown = new Map();
    /** Sentences of runs that were heard. @type {Set<string>} */
    this.heard = new Set();
  }

  /**
   * A step message.
   * @param {any} message
   * @returns {Run | null} the run it belongs to; null if it is not believed
   */
  step(message) {
    const read = readStep(message);
    if (!read || !message.prompt_id) return null;
    const run = this.#open(keyOf(message), read.header, message);
    run.take(read.header);
    run.evaluations.push(read.evaluation);
    return run;
  }

  /**
   * A sentence about a run, which need not have sent a step yet.
   * @param {any} message
   * @returns {ReturnType<typeof readNote>} null if it is not believed, or was heard before
   */
  note(message) {
    const read = readNote(message);
    const heard = `${keyOf(message ?? {})}|${read?.sentence}`;
    if (!read || this.heard.has(heard)) return null;
    this.heard.add(heard);
    for (const old of this.heard) if (this.heard.size > KEPT_SENTENCES) this.heard.delete(old);
    const run = this.byKey.get(keyOf(message));
    run?.notes.push(read.sentence);
    if (read.warning) run?.warnings.add(read.sentence);
    return read;
  }

  /**
   * The record of a finished run, as the Report node keeps it: it fills the holes and outlives the page.
   * @param {any} record
   * @param {string} workflow
   * @param {string} reportId execution id of the Report node
   * @returns {Run | null}
   */
  record(record, workflow, reportId) {
    const read = readRecord(record);
    if (!read) return null;
    const ids = record.ids ?? {};
    const show = [...(Array.isArray(ids.show) ? ids.show : []), reportId];
    const run = this.#open(keyOf({ prompt_id: ids.prompt_id ?? workflow, sampler: ids.sampler ?? reportId }), read.header, { workflow, show });
    run.take(read.header);
    const live = run.evaluations;
    // Masks that moved from step to step are only in the live messages.
    run.evaluations = read.evaluations.map((evaluation, i) => {
      const heard = live.find(({ step, ms }) => step === evaluation.step && ms === evaluation.ms);
      return { ...evaluation, mask: heard?.mask ?? evaluation.mask };
    });
    run.notes = Array.isArray(record.notes) ? record.notes.map(String) : [];
    run.warnings = new Set(Array.isArray(record.warnings) ? record.warnings.map(String) : []);
    [run.finished, run.ended] = [true, "done"];
    return run;
  }

  /**
   * A prompt is over.
   * @param {string} prompt
   * @param {Ended} how
   */
  end(prompt, how) {
    for (const [key, run] of this.byKey) if (key.startsWith(`${prompt}|`)) run.ended = run.complete ? "done" : how;
  }

  /**
   * @param {string} workflow
   * @param {string} executionId
   * @returns {Run | null} what a node shows
   */
  of(workflow, executionId) {
    return this.byKey.get(this.shown.get(`${workflow}|${executionId}`) ?? "") ?? null;
  }

  /** A node has no run of ours to show any more. @param {string} workflow @param {string} executionId */
  forget(workflow, executionId) {
    this.shown.delete(`${workflow}|${executionId}`);
  }

  /**
   * @param {string} key
   * @param {import("./codec.js").Header} header
   * @param {any} message
   */
  #open(key, header, message) {
    const run = this.byKey.get(key) ?? new Run(key, header);
    this.byKey.delete(key);
    this.byKey.set(key, run);
    for (const id of Array.isArray(message.show) ? message.show : [message.node]) this.shown.set(`${message.workflow}|${id}`, key);
    for (const old of this.byKey.keys()) if (this.byKey.size > KEPT) this.byKey.delete(old);
    return run;
  }
}

/** One sampler in one prompt. @param {any} message */
export function keyOf(message) {
  return `${message.prompt_id}|${message.sampler ?? message.node}`;
}
