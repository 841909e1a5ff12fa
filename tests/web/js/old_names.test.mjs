// @ts-check
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { INPUTS, renameNode, renamePrompt, renameWorkflow, VALUES } from "../../../web/js/old_names.js";

const fixture = JSON.parse(readFileSync(new URL("../../fixtures/old_names.json", import.meta.url), "utf8"));
const input = (/** @type {string} */ name, /** @type {number | null} */ link = null) => ({ name, link, widget: { name } });
const sampler = (/** @type {any[]} */ ...inputs) => ({ id: 4, type: "SafeDitSelectiveSampler", inputs });

test("the tables are those of the server", () => {
  assert.deepEqual(INPUTS, fixture.inputs);
  assert.deepEqual(VALUES, fixture.values);
});

test("an input keeps its link under its new name", () => {
  const node = sampler(input("forecast"), input("held_steps", 7));
  assert.deepEqual(renameNode(node), ["held_steps is now skipped_steps"]);
  assert.deepEqual(node.inputs, [input("forecast"), input("skipped_steps", 7)]);
  assert.deepEqual(renameNode(node), []);
});

test("an input that is there under both names counts under the new one", () => {
  const node = sampler(input("skipped_steps", 1), input("held_steps", 7));
  assert.deepEqual(renameNode(node), []);
  assert.deepEqual(node.inputs, [input("skipped_steps", 1), input("held_steps", 7)]);
});

test("a signal that is no more becomes another, a text that reads the same stays", () => {
  const node = { type: "SafeDitPartitioner", widgets_values: [0.25, "spread", 4, 0.7, "spread"] };
  assert.deepEqual(renameNode(node), ["signal spread is now attention"]);
  assert.deepEqual(node.widgets_values, [0.25, "attention", 4, 0.7, "spread"]);
});

test("other packs' nodes and nodes without inputs are left alone", () => {
  const node = { type: "KSampler", inputs: [input("settle")], widgets_values: ["spread", "spread"] };
  const before = structuredClone(node);
  assert.deepEqual([renameNode(node), renameNode({ type: "SafeDitAccelerate" }), renameNode(null)], [[], [], []]);
  assert.deepEqual(node, before);
});

test("subgraphs, the widgets they show outside, and those of the app mode follow", () => {
  const inner = { id: "inner", nodes: [{ ...sampler(input("widen", 3)), id: 9 }] };
  const outer = { id: "outer", nodes: [{ id: 2, type: "inner", properties: { proxyWidgets: [["9", "widen"], ["9", "forecast"]] } }], definitions: { subgraphs: [inner] } };
  const shown = [["4", "settle"], ["graph:4:settle", "settle", { height: 9 }], [5, "settle"], ["graph:9:widen", "widen"]];
  const workflow = {
    nodes: [sampler(input("settle")), { id: 5, type: "KSampler" }, { id: 1, type: "outer", properties: { proxyWidgets: [["2", "widen"]] } }],
    definitions: { subgraphs: [outer] }, extra: { linearData: { inputs: shown } },
  };
  assert.deepEqual(new Set(renameWorkflow(workflow)), new Set(["settle is now corrector", "widen is now early_refresh"]));
  assert.deepEqual(workflow.nodes[0].inputs, [input("corrector")]);
  assert.deepEqual(inner.nodes[0].inputs, [input("early_refresh", 3)]);
  assert.deepEqual(outer.nodes[0].properties.proxyWidgets, [["9", "early_refresh"], ["9", "forecast"]]);
  assert.deepEqual(workflow.nodes[2].properties?.proxyWidgets, [["2", "early_refresh"]]);
  const expected = [["4", "corrector"], ["graph:4:corrector", "corrector", { height: 9 }], [5, "settle"], ["graph:9:early_refresh", "early_refresh"]];
  assert.deepEqual(shown, expected);
  assert.deepEqual(renameWorkflow(workflow), []);
});

test("a prompt in the API's format is renamed as the server does it", () => {
  const prompt = {
    1: { class_type: "SafeDitAccelerate", inputs: { widen: true, held_steps: 2, skipped_steps: 0, settle: ["3", 0] } },
    2: { class_type: "SafeDitPartitioner", inputs: { signal: "spread" } },
    3: { class_type: "Other", inputs: { settle: true } },
  };
  assert.equal(renamePrompt(prompt).length, 4);
  assert.deepEqual(prompt[1].inputs, { early_refresh: true, skipped_steps: 0, corrector: ["3", 0] });
  assert.deepEqual([prompt[2].inputs, prompt[3].inputs], [{ signal: "attention" }, { settle: true }]);
});
