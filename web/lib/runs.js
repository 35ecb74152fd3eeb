// SPDX-License-Identifier: Apache-2.0
// The last prompt: how long its nodes took, what they needed at most, and what they loaded.

import { el } from './dom.js'
import { deviceTitle, formatBytes, formatSeconds } from './format.js'

const MOST_NODES = 8

const WORDS = { running: 'running', success: 'done', error: 'failed', interrupted: 'interrupted' }

/** The section of the tab; null while no prompt has run. */
export function runSection(runs) {
  const run = runs[0]
  if (!run) return null
  const nodes = largest(run.nodes)
  const more = run.nodes.length - nodes.length
  return el(
    'div',
    { class: 'dt-run', 'data-prompt': run.prompt },
    el('h3', {}, 'Last prompt'),
    el('div', { class: 'dt-line' }, el('span', {}, [WORDS[run.status], duration(run)].filter(Boolean).join(', ')), el('span', { class: 'dt-amount' }, `peak ${peaks(run.peak)}`)),
    el(
      'table',
      { class: 'dt-nodes' },
      el('caption', { class: 'dt-hidden' }, 'The nodes that needed most'),
      el('thead', {}, el('tr', {}, ...['Node', 'Time', 'Peak'].map((text) => el('th', { scope: 'col' }, text)))),
      el('tbody', {}, ...nodes.map(row))
    ),
    more > 0 ? el('p', { class: 'dt-small' }, `and ${more} more`) : null
  )
}

/** The nodes with the largest peaks, in the order in which they ran. */
function largest(nodes) {
  const order = [...nodes].sort((a, b) => total(b.peak) - total(a.peak))
  const chosen = new Set(order.slice(0, MOST_NODES))
  return nodes.filter((node) => chosen.has(node))
}

function row(node) {
  const loads = node.loaded.map((model) => `${model.name}: ${peaks(model.bytes)}`)
  return el(
    'tr',
    { 'data-node': node.node, title: loads.length ? `Loaded ${loads.join('\n')}` : null },
    el('th', { scope: 'row' }, node.kind, loads.length ? el('span', { class: 'dt-tag' }, 'loads') : null),
    el('td', { class: 'dt-number' }, duration(node)),
    el('td', { class: 'dt-number' }, peaks(node.peak))
  )
}

function duration(part) {
  return part.ended === null ? '' : formatSeconds(part.ended - part.started)
}

function onAccelerators(sizes) {
  return Object.entries(sizes).filter(([device, bytes]) => device !== 'cpu' && bytes > 0)
}

function total(sizes) {
  return onAccelerators(sizes).reduce((sum, [, bytes]) => sum + bytes, 0)
}

function peaks(sizes) {
  const shown = onAccelerators(sizes)
  const chosen = shown.length ? shown : Object.entries(sizes)
  return chosen.map(([device, bytes]) => `${deviceTitle(device)} ${formatBytes(bytes)}`).join(', ')
}
