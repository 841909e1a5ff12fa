// @ts-check
/** What the widget says of a run and of the next one. */
import { fullStep, isFull, measured } from "./plan.js";
import { t } from "./text.js";

/** @typedef {import("./runs.js").Run} Run */
/** @typedef {import("./prediction.js").Prediction} Prediction */
/**
 * `run`: the one that is shown, which the prediction is about too. `full`: seconds of a full run of the same, where one was timed.
 * `changed`: there was another run, but since then settings changed.
 * @typedef {{ run: Run | null, prediction: Prediction | null, full: number | null, changed: boolean, painted: boolean }} Facts
 */

/** A factor below it is no gain to speak of. */
const SOME = 1.05;

/** @param {number} seconds */
export function duration(seconds) {
  if (seconds >= 99.5) return t("minutes", { minutes: Math.floor(Math.round(seconds) / 60), seconds: Math.round(seconds) % 60 });
  return t("seconds", { seconds: seconds.toFixed(seconds < 0.995 ? 2 : seconds < 9.95 ? 1 : 0) });
}

/** The line on top: how much faster, and how sure that is. @param {Facts} facts @returns {{ strong: string, rest: string }} */
export function headline({ run, prediction, full, changed }) {
  const times = run?.timed && !run.interrupted ? measured(run.evaluations) : null;
  if (times) return { strong: factorText(times.ours, full ?? times.full, "faster"), rest: timesText(times.ours, times.full, full) };
  if (prediction) return ahead(prediction, run, full);
  return { strong: run?.interrupted || (!run && changed) ? "" : t(run ? "running" : "noRun"), rest: "" };
}

/** @param {Prediction} prediction @param {Run | null} run @param {number | null} full @returns {{ strong: string, rest: string }} */
function ahead({ plan, share, steps, step }, run, full) {
  const strong = factorText(share, 1, "fasterAbout");
  const each = (run && fullStep(run.evaluations)) ?? step;
  const whole = full ?? (each === null || steps === null ? null : each * plan.length);
  if (whole !== null && steps !== null) return { strong, rest: timesText(share * whole, whole, full) };
  const counts = { full: plan.filter(isFull).length, steps: plan.length };
  return { strong, rest: t(steps === null ? "ifSteps" : "fullOf", counts) };
}

/** @param {number} ours @param {number} full @param {string} key */
function factorText(ours, full, key) {
  const factor = full / ours;
  return factor < SOME ? t("notFaster") : t(key, { factor: factor.toFixed(1) });
}

/** @param {number} ours @param {number} estimated seconds of a full run @param {number | null} timed the same, where one was timed */
function timesText(ours, estimated, timed) {
  return t(timed === null ? "insteadAbout" : "instead", { ours: duration(ours), full: duration(timed ?? estimated) });
}

/** What the user should know and can mend, most urgent first. @param {Facts} facts @returns {string[]} */
export function cautions({ run, prediction, painted }) {
  const found = run?.interrupted ? [t(run.ended === "failed" ? "failed" : "interrupted", { step: (run.evaluations.at(-1)?.step ?? 0) + 1, total: run.total })] : [];
  if (prediction?.cure) found.push(t(prediction.cure.name, prediction.cure.values));
  const idle = prediction && painted && !prediction.plan.includes("selective") && prediction.cure?.name !== "paintedAll";
  if (idle && !run?.notes.length) found.push(t("paintingIdle"));
  return [...found, ...loud(run, prediction)];
}

/** Notes of a run that did something else than was asked for, or, where none says so, of one that ran more steps in full than planned. @param {Run | null} run @param {Prediction | null} prediction */
function loud(run, prediction) {
  if (!run) return [];
  const left = run.evaluations.filter(({ kind }) => !isFull(kind)).length;
  const short = run.timed && prediction?.exact && left < prediction.plan.filter((kind) => !isFull(kind)).length;
  return run.notes.filter((note) => (run.warnings.size ? run.warnings.has(note) : short));
}

/** @param {Run} run @param {number} index @returns {string} */
export function stepLine(run, index) {
  const { step, kind, ms } = run.evaluations[index];
  return [t("step", { step: step + 1, total: run.total }), t(kind), `${ms.toFixed(ms < 10 ? 1 : 0)} ms`].join(" \u00b7 ");
}

/** What one looks at when one wants to know more, a line each. @param {Facts} facts @param {number} index of the evaluation shown @returns {string[]} */
export function details({ run, prediction, ...facts }, index) {
  const spoken = new Set(cautions({ run, prediction, ...facts }));
  return [shareLine(prediction), run && index >= 0 ? rowsLine(run, index) : "", ...(run?.notes ?? []).filter((note) => !spoken.has(note))].filter(Boolean);
}

/** @param {Prediction | null} prediction */
function shareLine(prediction) {
  if (!prediction) return "";
  const { plan, share, steps, exact } = prediction;
  const values = { share: Math.round(100 * share), full: plan.filter(isFull).length, steps: plan.length };
  return t(steps === null ? "predictedUnknown" : exact ? "predicted" : "predictedAbout", values);
}

/** @param {Run} run @param {number} index */
function rowsLine(run, index) {
  const { rows } = run.evaluations[index];
  const parts = rows[1] ? [t("rows", { active: rows[0].toLocaleString(), total: rows[1].toLocaleString() })] : [];
  if (run.cache) parts.push(t("cache", { size: (run.cache / 2 ** 20).toFixed(1) }));
  if (run.masks) parts.push(run.masks[1] ? t("masks", { done: run.masks[2] + run.masks[3], of: run.masks[1] }) : t("noMasks"));
  return parts.join(" \u00b7 ");
}
