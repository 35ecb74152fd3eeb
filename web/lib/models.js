// SPDX-License-Identifier: Apache-2.0
// One card a model: what it is, where it lies, what can be done with it; below it, if DisTorch placed it, how.

import { deviceColour, modelColour } from './colours.js'
import { el, lazy } from './dom.js'
import { deviceTitle, formatAge, formatBytes, formatLayers, formatMilliseconds, modelDetails } from './format.js'
import { placementStrip } from './strip.js'
import { said, t } from './text.js'

/** The list of cards. `panel` has store, graph, steer(model), and fold(key, open) for what is folded. */
export function modelList(panel) {
  const { models } = panel.store
  if (!models.length) return el('p', { class: 'dt-empty' }, t('models.none'))
  const names = models.map((model) => model.name)
  const twice = new Set(names.filter((name, index) => names.indexOf(name) !== index))
  return el('ul', { class: 'dt-models', 'aria-label': t('models') }, ...models.map((model) => card(panel, model, twice.has(model.name))))
}

function card(panel, model, isTwin) {
  const placement = panel.store.placements.find((one) => one.model === model.id && one.blocks)
  const facts = [t(`type.${model.type}`), formatLayers(model), formatAge(model.loaded_since, panel.store.now)].filter(Boolean).join(' · ')
  return el(
    'li',
    { class: 'dt-model', 'data-model': model.id, title: modelDetails(model, panel.store.now).join('\n') },
    el(
      'div',
      { class: 'dt-line' },
      el(
        'span',
        { class: 'dt-title' },
        el('span', { class: 'dt-swatch', style: `background:${modelColour(model.id)}`, 'aria-hidden': 'true' }),
        name(panel, model)
      ),
      el('span', { class: 'dt-amount' }, formatBytes(model.total))
    ),
    el('div', { class: 'dt-small' }, facts, ...tags(model, placement)),
    isTwin && model.file ? el('div', { class: 'dt-small dt-file' }, model.file) : null,
    where(model, placement),
    actions(panel.store, model),
    placement ? placed(panel, model, placement) : null
  )
}

function name(panel, model) {
  if (!model.node || !panel.graph.node(model.node)) return el('span', { class: 'dt-name' }, model.name)
  return el(
    'button',
    {
      type: 'button',
      class: 'dt-name dt-link',
      'data-key': `show-${model.id}`,
      title: t('model.show_node', { node: panel.graph.title(model.node, model.node) }),
      onclick: () => panel.graph.show(model.node)
    },
    model.name
  )
}

function tags(model, placement) {
  const found = []
  if (model.kept) found.push(t('tag.kept'))
  if (placement && placement.state !== 'placed') found.push(t('tag.not_loaded'))
  else if (model.offloaded) found.push(t('offloaded'))
  return found.map((text) => el('span', { class: 'dt-tag' }, text))
}

/** The model's bytes by device, accelerators first, the pinned part of RAM apart. */
function where(model, placement) {
  const order = Object.entries(model.bytes).filter(([, bytes]) => bytes > 0)
  order.sort(([a], [b]) => (a === 'cpu') - (b === 'cpu') || a.localeCompare(b, 'en', { numeric: true }))
  const pinned = Math.min(placement?.pinned_bytes ?? 0, model.bytes.cpu ?? 0)
  const part = (device, bytes, label, className) =>
    el('span', { class: `dt-share ${className}`, 'data-part': `${device}${className}`, style: `flex-grow:${bytes};background-color:${deviceColour(device)}`, title: `${label}: ${formatBytes(bytes)}` })
  const bars = order.flatMap(([device, bytes]) =>
    device === 'cpu' && pinned
      ? [part(device, bytes - pinned, deviceTitle(device), ''), part(device, pinned, t('pinned'), 'dt-pinned')]
      : [part(device, bytes, deviceTitle(device), '')]
  )
  const amounts = order.map(([device, bytes]) =>
    el(
      'li',
      { 'data-device': device, 'data-bytes': bytes },
      el('span', { class: 'dt-swatch', style: `background:${deviceColour(device)}`, 'aria-hidden': 'true' }),
      `${deviceTitle(device)} ${formatBytes(bytes)}`,
      device === 'cpu' && pinned ? ` (${t('pinned')} ${formatBytes(pinned)})` : null
    )
  )
  return el('div', { class: 'dt-where' }, el('div', { class: 'dt-shares', 'aria-hidden': 'true' }, ...bars), el('ul', { class: 'dt-legend' }, ...amounts))
}

function actions(store, model) {
  const button = (key, label, why, disabled, body) =>
    el(
      'button',
      { type: 'button', class: 'dt-button', disabled, title: why, 'data-key': `${key}-${model.id}`, 'aria-label': `${model.name}: ${label}`, onclick: () => store.post('/distorch/eject', body) },
      label
    )
  const why = model.ejectable ? t(model.kept ? 'move.why_kept' : 'move.why') : said(model.why_not)
  const move = button('eject', t('move'), why, !model.ejectable, { ids: [model.id] })
  const letGo = model.kept ? button('let-go', t('let_go'), t('let_go.why'), false, { ids: [model.id], let_go: true }) : null
  if (!model.ejectable && !model.kept) return el('div', { class: 'dt-actions' }, el('span', { class: 'dt-small' }, why))
  return el('div', { class: 'dt-actions' }, keepSwitch(store, model), model.ejectable ? move : null, letGo)
}

function keepSwitch(store, model) {
  const input = el('input', {
    type: 'checkbox',
    role: 'switch',
    checked: !model.eject,
    'data-key': `flag-${model.id}`,
    'aria-label': `${model.name}: ${t('keep')}`,
    onchange: (event) => store.post('/distorch/flag', { id: model.id, eject: !event.target.checked })
  })
  return el('label', { class: 'dt-switch', title: t(model.eject ? 'keep.off_why' : 'keep.on_why') }, input, el('span', { class: 'dt-switch-track', 'aria-hidden': 'true' }), el('span', {}, t(model.eject ? 'keep.off' : 'keep.on')))
}

function placed(panel, model, placement) {
  const key = `steer-${model.id}`
  const open = panel.folds.has(key)
  return el(
    'div',
    { class: 'dt-placement', 'data-placement': placement.key },
    el('div', { class: 'dt-small dt-mono', title: t('placement.requested') }, placement.requested),
    placementStrip(placement),
    deviceTable(rowsOf(placement)),
    ...placement.notes.map((note) => el('p', { class: 'dt-note' }, said(note))),
    el('div', { class: 'dt-small' }, [placement.streamed_bytes ? t('placement.streamed', { size: formatBytes(placement.streamed_bytes) }) : '', stepTimes(placement)].filter(Boolean).join(' · ')),
    el(
      'details',
      { class: 'dt-fold', open, 'aria-label': t('steer'), 'data-key': key, ontoggle: (event) => panel.fold(key, event.target.open) },
      el('summary', {}, t('steer')),
      lazy(el('div', { class: 'dt-steer-place', 'data-key': `${key}-place` }), open ? 'open' : '', () => (open ? [panel.steer(model).element] : []))
    )
  )
}

/** A row for each device of a placement. */
function rowsOf(placement) {
  const modes = new Map()
  for (const block of placement.blocks) modes.set(block.device, block.how)
  const devices = [...new Set([placement.compute, ...Object.keys(placement.bytes), ...Object.keys(placement.caps ?? {})])]
  return devices
    .map((device) => ({
      device,
      cap: placement.caps?.[device] ?? null,
      weights: placement.bytes[device] ?? 0,
      slots: device === placement.compute ? placement.staging_bytes : 0,
      how: placement.state === 'placed' ? (modes.get(device) ?? '') : 'waiting'
    }))
    .filter((row) => row.weights || row.slots || row.device === placement.compute)
}

/** cap · weights · slots · how, for each device; columns keep their widths. */
export function deviceTable(rows) {
  const head = ['device', 'cap', 'weights', 'slots', 'how'].map((key) => el('th', { scope: 'col' }, t(`row.${key}`)))
  const cell = (row, value) => el('td', {}, value)
  return el(
    'table',
    { class: 'dt-rows' },
    el('caption', { class: 'dt-hidden' }, t('row.caption')),
    el('thead', {}, el('tr', {}, ...head)),
    el(
      'tbody',
      {},
      ...rows.map((row) =>
        el(
          'tr',
          { 'data-device': row.device },
          el('th', { scope: 'row' }, el('span', { class: 'dt-swatch', style: `background:${deviceColour(row.device)}`, 'aria-hidden': 'true' }), deviceTitle(row.device)),
          cell(row, row.cap === null ? '–' : formatBytes(row.cap)),
          cell(row, formatBytes(row.weights)),
          cell(row, row.slots ? formatBytes(row.slots) : '–'),
          cell(row, row.how ? t(`how.${row.how}`) : '–')
        )
      )
    )
  )
}

function stepTimes(placement) {
  const { predicted_step_ms: predicted, measured_step_ms: measured } = placement
  if (!predicted && !measured) return ''
  const text = (value) => (value ? formatMilliseconds(value) : t('unknown'))
  return t('placement.step', { predicted: text(predicted), measured: text(measured) })
}
