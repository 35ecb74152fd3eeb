// SPDX-License-Identifier: Apache-2.0
// What a plan comes to: its strip, a row for each device, what a step copies and how long it takes, and in amber what was
// noted. `view` is what POST /distorch/plan answers, and what the Plan node shows.

import { el } from './dom.js'
import { deviceTitle, formatBytes, formatMilliseconds } from './format.js'
import { deviceTable } from './models.js'
import { planStrip } from './strip.js'
import { said, t } from './text.js'

/** The elements, in their order. `key` tells strips apart, `name` is whose plan it is. */
export function outlook(key, name, view) {
  const rows = view.devices.filter((row) => row.weights || row.slots || row.device === view.compute)
  return [planStrip(key, name, view), deviceTable(rows), ...facts(view)]
}

function fact(key, value, data) {
  return el('div', { class: 'dt-fact' }, el('span', {}, t(key)), el('strong', data, value))
}

function facts(view) {
  const { step, streamed_bytes: streamed, notes } = view
  const found = [
    fact('steer.streamed', formatBytes(streamed), { 'data-streamed': streamed }),
    fact('steer.step', step.seconds === null ? t('unknown') : formatMilliseconds(step.seconds * 1000), { 'data-step': step.seconds ?? '' })
  ]
  const copies = Object.entries(step.copies ?? {}).map(([device, seconds]) => t('steer.copy', { device: deviceTitle(device), time: formatMilliseconds(seconds * 1000) }))
  if (step.seconds !== null) copies.unshift(step.bound === 'compute' ? t('steer.by_compute') : t('steer.by_link', { device: deviceTitle(step.bound) }))
  if (copies.length) found.push(el('div', { class: 'dt-small' }, copies.join(' · ')))
  for (const one of step.missing) found.push(note(one === 'compute' ? t('steer.lacks_compute') : t('steer.lacks_link', { device: deviceTitle(one) })))
  return [...found, ...notes.map((text) => note(said(text)))]
}

/** What was noted, in amber. */
export function note(text) {
  return el('p', { class: 'dt-note' }, text)
}
