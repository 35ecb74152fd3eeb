// SPDX-License-Identifier: Apache-2.0
// Every text in English and Chinese, from one table: web/texts.json, which the nodes read as well.

import texts from '../texts.json' with { type: 'json' }

let locale = () => globalThis.document?.documentElement.lang || 'en'

/** Says where the language is read: "en", "zh", "zh-TW", … */
export function useLocale(read) {
  locale = read
}

/** The text of a key, with its "{names}" filled in; English where there is no other. */
export function t(key, values = {}) {
  const found = texts[key]
  if (!found) throw new Error(`no text ${key}`)
  const text = found[String(locale()).startsWith('zh') ? 1 : 0]
  return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole)
}

/** Whether there is such a text. */
export function hasText(key) {
  return key in texts
}
