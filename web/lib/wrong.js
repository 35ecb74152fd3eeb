// SPDX-License-Identifier: Apache-2.0
// What is wrong with an allocation string: a mark under the fault, and what should stand there.

import { el } from './dom.js'
import { said, t } from './text.js'

/** Elements for what a route has refused; none for null. */
export function wrongString(refused) {
  if (!refused) return []
  const words = String(refused.message ?? '').split('\n')
  return [
    el('p', {}, said(refused.caret ? words[0].replace(/^allocation string: (.*) at offset \d+; expected .*$/, '$1') : words.join('\n'))),
    refused.caret ? el('pre', {}, refused.caret) : null,
    refused.caret ? el('p', {}, t('string.expected', { expected: said(refused.expected) })) : null
  ].filter(Boolean)
}
