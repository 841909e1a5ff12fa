// @ts-check
/** Workflows of earlier versions keep their links and values, whichever way they come in. */
import { app, before } from "./comfy.js";
import { INPUTS, VALUES, renameNode, renamePrompt, renameWorkflow } from "./old_names.js";

/** What was renamed and not told yet. @type {Set<string>} */
const untold = new Set();

/** One warning for all that comes in at once. @param {string[]} renamed */
function tell(renamed) {
  if (renamed.length && !untold.size) queueMicrotask(warnOnce);
  for (const sentence of renamed) untold.add(sentence);
}

function warnOnce() {
  console.warn(`SAFE-DiT: this workflow was saved with older names, which are still read: ${[...untold].join(", ")}. Save it to keep the new ones.`);
  untold.clear();
}

app.registerExtension({
  name: "SafeDit.OldNames",
  /** Pasted nodes and subgraphs from the library are part of no workflow that is loaded. @param {any} nodeType @param {{ name: string }} nodeData */
  beforeRegisterNodeDef(nodeType, { name }) {
    if (name in INPUTS || name in VALUES) before(nodeType.prototype, "configure", (saved) => tell(renameNode(saved)));
  },
  /** @param {any} workflow */
  beforeConfigureGraph(workflow) {
    tell(renameWorkflow(workflow));
  },
  /** A prompt in the API's format is loaded past all hooks. */
  setup() {
    if (app.loadApiJson) before(app, "loadApiJson", (prompt) => tell(renamePrompt(prompt)));
  },
});
