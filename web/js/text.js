// @ts-check
/** What the widget says, in the languages the pack speaks. */

/** @type {Record<string, Record<string, string>>} */
export const TEXTS = {
  en: {
    title: "Active tokens",
    map: "Map of the tokens: computed ones in colour, held ones dimmed",
    timeline: "Steps of the run",
    noRun: "no run yet",
    mode_map: "map",
    mode_compare: "compare",
    mode_difference: "difference",
    about_compare: "Left of the line the dense picture, right of it the accelerated one; drag, or use the arrow keys",
    about_difference: "Difference between the dense and the accelerated picture, four times as strong",
    step: "step {step} of {total}",
    warmup: "warm-up",
    anchor: "refresh: all tokens",
    selective: "sensitive tokens only",
    held: "held: nothing computed",
    rows: "{active} of {total} rows",
    cache: "cache {size} MiB",
    masks: "{done} of {of} masks removed or trimmed",
    noMasks: "no masks",
    predicted: "predicted {share} % of dense time ({dense} of {steps} steps in full)",
    predictedUnknown: "predicted {share} % of dense time at {steps} steps",
    measured: "measured {share} %",
  },
  zh: {
    title: "活动词元",
    map: "词元图：计算的为彩色，保持的变暗",
    timeline: "本次运行的步",
    noRun: "尚未运行",
    mode_map: "词元图",
    mode_compare: "对比",
    mode_difference: "差异",
    about_compare: "线左侧为完整计算的图像，右侧为加速的图像；可拖动或用方向键移动",
    about_difference: "完整计算与加速图像之差，放大四倍",
    step: "第 {step} 步，共 {total} 步",
    warmup: "预热",
    anchor: "刷新：全部词元",
    selective: "仅敏感词元",
    held: "保持：不计算",
    rows: "{total} 行中的 {active} 行",
    cache: "缓存 {size} MiB",
    masks: "{of} 个掩码中 {done} 个被移除或裁剪",
    noMasks: "没有掩码",
    predicted: "预计为完整耗时的 {share} %（{steps} 步中 {dense} 步完整计算）",
    predictedUnknown: "按 {steps} 步预计为完整耗时的 {share} %",
    measured: "实测 {share} %",
  },
  ja: {
    title: "計算中のトークン",
    map: "トークンのマップ：計算したものは色付き、保持したものは暗く表示",
    timeline: "実行のステップ",
    noRun: "まだ実行されていません",
    mode_map: "マップ",
    mode_compare: "比較",
    mode_difference: "差分",
    about_compare: "線の左は全計算の画像、右は高速化した画像。ドラッグか矢印キーで動かせます",
    about_difference: "全計算の画像と高速化した画像の差（4 倍に強調）",
    step: "ステップ {step} / {total}",
    warmup: "ウォームアップ",
    anchor: "更新：全トークン",
    selective: "敏感なトークンのみ",
    held: "保持：計算なし",
    rows: "{total} 行中 {active} 行",
    cache: "キャッシュ {size} MiB",
    masks: "マスク {of} 件中 {done} 件を除去または短縮",
    noMasks: "マスクなし",
    predicted: "予測は全計算時間の {share} %（{steps} ステップ中 {dense} ステップを全計算）",
    predictedUnknown: "{steps} ステップとして予測は全計算時間の {share} %",
    measured: "実測 {share} %",
  },
};

let language = "en";

/** @param {string} locale one of ComfyUI's, such as `en`, or `zh-TW`, which the pack does not speak */
export function speak(locale) {
  language = locale in TEXTS ? locale : "en";
}

/**
 * @param {string} key
 * @param {Record<string, string | number>} [values]
 */
export function t(key, values = {}) {
  return TEXTS[language][key].replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
}
