// SPDX-License-Identifier: Apache-2.0
// Every text in English and Chinese, from one table: web/texts.json, which the nodes read as well. Its keys "said.…" are
// what the server says in English: notes of plans, reasons, errors.

import texts from '../texts.json' with { type: 'json' }

let locale = () => globalThis.document?.documentElement.lang || 'en'

/** Says where the language is read: "en", "zh", "zh-TW", … */
export function useLocale(read) {
  locale = read
}

function chinese() {
  return String(locale()).startsWith('zh')
}

function filled(text, values) {
  return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole)
}

/** The text of a key, with its "{names}" filled in; English where there is no other. */
export function t(key, values = {}) {
  const found = texts[key]
  if (!found) throw new Error(`no text ${key}`)
  return filled(found[chinese() ? 1 : 0], values)
}

/** Whether there is such a text. */
export function hasText(key) {
  return key in texts
}

function pattern(english) {
  const parts = english.split(/\{(\w+)\}/)
  return new RegExp(`^${parts.map((part, i) => (i % 2 ? `(?<${part}>.+?)` : part.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'))).join('')}$`)
}

const SENTENCES = Object.entries(texts)
  .filter(([key]) => key.startsWith('said.'))
  .map(([, [english, words]]) => ({ pattern: pattern(english), words }))

/** What the server says, in the page's language: each line that the table has; others as they are. */
export function said(text) {
  if (!chinese()) return String(text)
  return String(text).split('\n').map(sentence).join('\n')
}

function sentence(line) {
  const [, before, text] = /^(\s*)(.*)$/.exec(line)
  for (const { pattern, words } of SENTENCES) {
    const found = pattern.exec(text)
    if (!found) continue
    const values = Object.fromEntries(Object.entries(found.groups ?? {}).map(([name, value]) => [name, sentence(value)]))
    return before + filled(words, values)
  }
  return line
}
