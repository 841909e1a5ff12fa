// @ts-check
import assert from "node:assert/strict";
import { test } from "node:test";
import { speak, t, TEXTS } from "../../../web/js/text.js";

const placeholders = (/** @type {string} */ text) => [...text.matchAll(/\{(\w+)\}/g)].map(([, name]) => name).sort();

test("every language says everything, with the same values in it", () => {
  for (const [language, texts] of Object.entries(TEXTS))
    for (const [key, english] of Object.entries(TEXTS.en)) {
      assert.ok(texts[key], `${language}: ${key}`);
      assert.deepEqual(placeholders(texts[key]), placeholders(english), `${language}: ${key}`);
    }
});

test("an unknown language is English", () => {
  speak("zh");
  assert.match(t("step", { step: 1, total: 2 }), /第 1 步/);
  speak("zh-TW");
  assert.equal(t("step", { step: 1, total: 2 }), "step 1 of 2");
});
