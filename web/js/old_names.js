// @ts-check
/**
 * Names that inputs and values had in earlier versions: saved workflows still hold them. nodes/old_names.py does the same for prompts that
 * reach the server; tests/fixtures/old_names.json pins both tables.
 */

/** @type {Record<string, string>} */
const SCHEDULE = { widen: "early_refresh", held_steps: "skipped_steps", settle: "corrector" };
/** Type of a node, old name of an input, its name now. @type {Record<string, Record<string, string>>} */
export const INPUTS = { SafeDitAccelerate: SCHEDULE, SafeDitSelectiveSampler: SCHEDULE };
/** Type of a node, input, old value, its value now. @type {Record<string, Record<string, Record<string, string>>>} */
export const VALUES = { SafeDitPartitioner: { signal: { spread: "attention" } } };
/** Workflows keep values by their place. @type {Record<string, Record<string, number>>} */
const PLACES = { SafeDitPartitioner: { signal: 1 } };

/** @param {string | undefined} type @param {string} name @returns {string | undefined} nothing where the name is not an old one */
function newName(type, name) {
  return INPUTS[type ?? ""]?.[name];
}

/**
 * A node as a workflow keeps it, changed in place. Where it has an input under both names, the new one counts.
 * @param {any} saved
 * @returns {string[]} what was renamed
 */
export function renameNode(saved) {
  const inputs = saved?.inputs ?? [];
  const renamed = [];
  for (const input of inputs) {
    const name = newName(saved.type, input.name);
    if (!name || inputs.some((/** @type {any} */ other) => other.name === name)) continue;
    renamed.push(`${input.name} is now ${name}`);
    input.name = name;
    if (input.widget) input.widget.name = name;
  }
  return [...renamed, ...renameSavedValues(saved)];
}

/** @param {any} saved @returns {string[]} */
function renameSavedValues(saved) {
  const renamed = [];
  for (const [input, values] of Object.entries(VALUES[saved?.type] ?? {})) {
    const place = PLACES[saved.type][input];
    const old = saved.widgets_values?.[place];
    if (!Object.hasOwn(values, old)) continue;
    saved.widgets_values[place] = values[old];
    renamed.push(`${input} ${old} is now ${values[old]}`);
  }
  return renamed;
}

/**
 * A workflow, changed in place: its nodes, those of its subgraphs, and where else it names their widgets.
 * @param {any} workflow
 * @returns {string[]} what was renamed
 */
export function renameWorkflow(workflow) {
  const graphs = graphsOf(workflow);
  const nodes = graphs.flatMap((graph) => graph?.nodes ?? []);
  const elsewhere = [...renamePromoted(graphs, nodes), ...renameInApp(workflow?.extra?.linearData?.inputs ?? [], nodes)];
  return [...new Set([...nodes.flatMap(renameNode), ...elsewhere])];
}

/** @param {any} graph @returns {any[]} the graph and the subgraphs it defines */
function graphsOf(graph) {
  return [graph, ...(graph?.definitions?.subgraphs ?? []).flatMap(graphsOf)];
}

/**
 * Widgets that a subgraph's node shows of the nodes inside: pairs of a node's id and the widget's name.
 * @param {any[]} graphs @param {any[]} nodes
 * @returns {string[]}
 */
function renamePromoted(graphs, nodes) {
  /** @param {any} host @param {[string, string]} entry @returns {any} the node that has the widget, however deep it lies */
  const owner = (host, [id, name]) => {
    const inside = graphs.find((graph) => graph.id === host.type)?.nodes?.find((/** @type {any} */ node) => String(node.id) === String(id));
    const deeper = promotedBy(inside).find(([, other]) => other === name);
    return deeper ? owner(inside, deeper) : inside;
  };
  const found = nodes.flatMap((host) => promotedBy(host).map((entry) => ({ entry, name: newName(owner(host, entry)?.type, entry[1]) })));
  return found.flatMap(({ entry, name }) => (name ? [renameEntry(entry, name)] : []));
}

/** @param {any} host @returns {[string, string][]} */
function promotedBy(host) {
  const entries = host?.properties?.proxyWidgets;
  return Array.isArray(entries) ? entries : [];
}

/**
 * Widgets that the app mode shows: pairs of an id and the widget's name. The id is a node's, or `graph:node:name`.
 * @param {[string | number, string][]} entries @param {any[]} nodes
 * @returns {string[]}
 */
function renameInApp(entries, nodes) {
  const renamed = [];
  for (const entry of entries) {
    const parts = String(entry[0]).split(":");
    const id = parts.length === 3 ? parts[1] : parts[parts.length - 1];
    const name = nodes.filter((node) => String(node.id) === id).map((node) => newName(node.type, entry[1])).find(Boolean);
    if (!name) continue;
    if (parts.length === 3) entry[0] = [parts[0], id, name].join(":");
    renamed.push(renameEntry(entry, name));
  }
  return renamed;
}

/** @param {[any, string]} entry @param {string} name */
function renameEntry(entry, name) {
  const told = `${entry[1]} is now ${name}`;
  entry[1] = name;
  return told;
}

/**
 * A prompt in the API's format, changed in place. Where a node has an input under both names, the new one counts.
 * @param {any} prompt
 * @returns {string[]} what was renamed
 */
export function renamePrompt(prompt) {
  return [...new Set(Object.values(prompt ?? {}).flatMap(renameInPrompt))];
}

/** @param {any} node @returns {string[]} */
function renameInPrompt({ class_type: type, inputs }) {
  const renamed = [];
  for (const [old, name] of Object.entries(INPUTS[type] ?? {})) {
    if (!Object.hasOwn(inputs, old)) continue;
    inputs[name] ??= inputs[old];
    delete inputs[old];
    renamed.push(`${old} is now ${name}`);
  }
  for (const [input, values] of Object.entries(VALUES[type] ?? {})) {
    const old = inputs[input];
    if (!Object.hasOwn(values, old)) continue;
    inputs[input] = values[old];
    renamed.push(`${input} ${old} is now ${values[old]}`);
  }
  return renamed;
}
