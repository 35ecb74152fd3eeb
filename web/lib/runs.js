// SPDX-License-Identifier: Apache-2.0
// The last prompt: how long its nodes took, what they needed at most, and what they loaded.

import { el } from './dom.js'
import { deviceTitle, formatBytes, formatSeconds } from './format.js'
import { t } from './text.js'

const MOST_NODES = 8

/** The section of the tab; null while no prompt has run. */
export function runSection(runs, graph) {
  const run = runs[0]
  if (!run) return null
  const nodes = largest(run.nodes)
  const more = run.nodes.length - nodes.length
  return el(
    'div',
    { class: 'dt-run', 'data-prompt': run.prompt },
    el('h3', {}, t('run')),
    el('div', { class: 'dt-line' }, el('span', {}, [t(`run.${run.status}`), duration(run)].filter(Boolean).join(', ')), el('span', { class: 'dt-peaks' }, t('run.peak', { peak: peaks(run.peak) }))),
    el(
      'table',
      { class: 'dt-nodes' },
      el('caption', { class: 'dt-hidden' }, t('run.caption')),
      el('thead', {}, el('tr', {}, ...['run.node', 'run.time', 'run.own', 'run.device'].map((key) => el('th', { scope: 'col', title: t(`${key}_why`) }, t(key))))),
      el('tbody', {}, ...nodes.map((node) => row(node, graph)))
    ),
    more > 0 ? el('p', { class: 'dt-small' }, t('more', { count: more })) : null
  )
}

/** The nodes with the largest peaks, in the order in which they ran. */
function largest(nodes) {
  const order = [...nodes].sort((a, b) => total(b.peak) - total(a.peak))
  const chosen = new Set(order.slice(0, MOST_NODES))
  return nodes.filter((node) => chosen.has(node))
}

function row(node, graph) {
  const loads = node.loaded.map((model) => `${model.name}: ${peaks(model.bytes)}`)
  const title = graph.title(node.node, node.kind)
  const there = graph.node(node.node)
  return el(
    'tr',
    { 'data-node': node.node, title: loads.length ? t('run.loaded', { models: loads.join('\n') }) : null },
    el(
      'th',
      { scope: 'row' },
      there ? el('button', { type: 'button', class: 'dt-link', 'data-key': `node-${node.node}`, onclick: () => graph.show(node.node) }, title) : title,
      loads.length ? el('span', { class: 'dt-tag' }, t('run.loads')) : null
    ),
    el('td', { class: 'dt-number' }, duration(node)),
    el('td', { class: 'dt-number' }, ...lines(node.growth ?? {}, '+')),
    el('td', { class: 'dt-number' }, ...lines(node.peak, ''))
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

function shown(sizes) {
  const accelerators = onAccelerators(sizes)
  return accelerators.length ? accelerators : Object.entries(sizes).filter(([, bytes]) => bytes > 0)
}

function peaks(sizes) {
  return shown(sizes).map(([device, bytes]) => `${deviceTitle(device)} ${formatBytes(bytes)}`).join(', ')
}

function lines(sizes, sign) {
  return shown(sizes).map(([device, bytes]) => el('div', {}, el('small', {}, `${deviceTitle(device)} `), `${sign}${formatBytes(bytes)}`))
}
