// @ts-check
/** Seconds that runs took, for as long as the browser's tab is open: what a full step of a model and size took, and what a whole full run took. */

const KEPT = 64;
const PLACE = "SafeDit.Times";

/** @typedef {{ getItem: (name: string) => string | null, setItem: (name: string, text: string) => void }} Storage the browser's, of this tab */

export class Times {
  /** @param {Storage | null} storage */
  constructor(storage = null) {
    this.storage = storage;
    const { steps = {}, fulls = {} } = JSON.parse(storage?.getItem(PLACE) ?? "{}");
    /** Seconds of a full step, by what it costs. @type {Map<string, number>} */
    this.steps = new Map(Object.entries(steps));
    /** Seconds of a full run, by all that it is made of but our own settings. @type {Map<string, number>} */
    this.fulls = new Map(Object.entries(fulls));
    /** Called when something was kept: every node that speaks of it has to be drawn anew. */
    this.changed = () => {};
  }

  /** @param {string} cost @param {number} seconds */
  stepTimed(cost, seconds) {
    this.#keep(this.steps, cost, seconds);
  }

  /**
   * A full run was timed.
   * @param {string} whole what was run, less our settings: `subjectOf(node).whole` of prediction.js
   * @param {number} seconds that its steps took
   */
  fullTimed(whole, seconds) {
    this.#keep(this.fulls, whole, seconds);
  }

  /** @param {Map<string, number>} map @param {string} key @param {number} seconds */
  #keep(map, key, seconds) {
    map.delete(key);
    map.set(key, seconds);
    for (const old of map.keys()) if (map.size > KEPT) map.delete(old);
    this.storage?.setItem(PLACE, JSON.stringify({ steps: Object.fromEntries(this.steps), fulls: Object.fromEntries(this.fulls) }));
    this.changed();
  }
}
