// SPDX-License-Identifier: Apache-2.0
// The sidebar tab: devices, models, placements, timelines, and the buttons that give memory back.

import { blockMode, memoryBar, placementStrip, timeline } from './charts.js'
import { deviceColour, modelColour } from './colours.js'
import { el, scheduled, update } from './dom.js'
import { deviceTitle, formatAge, formatBytes, formatLayers, modelDetails } from './format.js'
import { lastReport } from './report.js'
import { runSection } from './runs.js'

export class Panel {
  constructor(store) {
    this.store = store
    this.body = el('div', { class: 'dt-body' })
    this.status = el('div', { class: 'dt-status', role: 'status', 'aria-live': 'polite' })
    this.element = el(
      'section',
      { class: 'dt-panel', 'aria-label': 'DisTorch: who holds the memory' },
      this.buttons(),
      this.status,
      this.body
    )
    this.onChange = scheduled(this.element, () => this.render())
  }

  /** Shows the panel in `parent` and keeps it fresh until unmount(). */
  mount(parent) {
    parent.append(this.element)
    this.store.addEventListener('change', this.onChange)
    this.unwatch = this.store.watch()
    this.render()
  }

  unmount() {
    this.store.removeEventListener('change', this.onChange)
    this.unwatch?.()
    this.element.remove()
  }

  buttons() {
    const button = (label, title, path, body) =>
      el(
        'button',
        { type: 'button', class: 'dt-button', title, 'data-key': label, onclick: () => this.store.post(path, body) },
        label
      )
    return el(
      'div',
      { class: 'dt-buttons', role: 'toolbar', 'aria-label': 'Give memory back' },
      button('Eject flagged', 'Unload the models whose switch says eject', '/distorch/eject', {}),
      button('Free models', 'Unload all models; results of nodes stay', '/distorch/free', { unload_models: true }),
      button('Free models and node cache', 'Unload all models and forget all results', '/distorch/free', {
        unload_models: true,
        free_memory: true
      }),
      button('Clear caches', 'Give unused memory of the allocators back; unloads nothing', '/distorch/clear_cache', {})
    )
  }

  render() {
    const { devices, models, error } = this.store
    const placements = this.store.placements.filter((placement) => placement.blocks)
    update(this.status, error ? el('p', { class: 'dt-error' }, error) : null, lastReport(this.store.reports[0]))
    update(
      this.body,
      el('h3', {}, 'Devices'),
      ...devices.map((device) => this.device(device)),
      this.legend(),
      el('h3', {}, 'Models'),
      models.length ? this.table(models, devices) : el('p', { class: 'dt-empty' }, 'No models are loaded.'),
      placements.length ? el('h3', {}, 'Placement') : null,
      ...placements.map((placement) => this.placement(placement)),
      runSection(this.store.runs)
    )
  }

  device(device) {
    const { node, peak, average } = timeline(device, this.store.samples, this.store.now)
    const used = device.total - device.free
    return el(
      'div',
      { class: 'dt-device', 'data-device': device.device },
      el(
        'div',
        { class: 'dt-line' },
        el('span', { class: 'dt-title', title: device.name }, deviceTitle(device.device), ' ', device.name === deviceTitle(device.device) ? null : el('small', {}, device.name)),
        el('span', { class: 'dt-amount' }, `${formatBytes(used)} of ${formatBytes(device.total)}`)
      ),
      memoryBar(device, this.store.models),
      node,
      el('div', { class: 'dt-small' }, `peak ${formatBytes(peak)} · average ${formatBytes(average)}`)
    )
  }

  legend() {
    const item = (name, text) => el('li', {}, el('span', { class: `dt-swatch ${name}` }), text)
    return el(
      'ul',
      { class: 'dt-legend', 'aria-label': 'Colours of the bars beside the models' },
      item('dt-tensors', 'other tensors'),
      item('dt-unused', 'reserved, unused'),
      item('dt-other', 'other processes'),
      item('dt-free', 'free')
    )
  }

  table(models, devices) {
    const columns = devices.map((d) => d.device).filter((d) => models.some((model) => model.bytes[d] > 0))
    return el(
      'table',
      { class: 'dt-models' },
      el('caption', { class: 'dt-hidden' }, 'Models in memory'),
      el(
        'thead',
        {},
        el(
          'tr',
          {},
          el('th', { scope: 'col' }, 'Model'),
          ...columns.map((d) => el('th', { scope: 'col', class: 'dt-number' }, deviceTitle(d))),
          el('th', { scope: 'col' }, el('span', { class: 'dt-hidden' }, 'Actions'))
        )
      ),
      el('tbody', {}, ...models.map((model) => this.row(model, columns)))
    )
  }

  row(model, columns) {
    const how = [
      model.streamed ? `${formatBytes(model.streamed)} streamed` : '',
      model.migrated ? `${formatBytes(model.migrated)} migrated` : ''
    ]
    const facts = [model.type, formatLayers(model), ...how, formatAge(model.loaded_since, this.store.now)].filter(Boolean).join(' · ')
    return el(
      'tr',
      { 'data-model': model.id, title: modelDetails(model, this.store.now).join('\n') },
      el(
        'th',
        { scope: 'row' },
        el('span', { class: 'dt-swatch', style: `background:${modelColour(model.id)}`, 'aria-hidden': 'true' }),
        el('span', { class: 'dt-name' }, model.name),
        model.offloaded ? el('span', { class: 'dt-tag' }, '(offloaded)') : null,
        model.managed ? el('span', { class: 'dt-tag' }, 'DisTorch') : null,
        el('div', { class: 'dt-small' }, facts)
      ),
      ...columns.map((d) =>
        el('td', { class: 'dt-number', 'data-device': d, 'data-title': deviceTitle(d), 'data-bytes': model.bytes[d] ?? 0 }, model.bytes[d] ? formatBytes(model.bytes[d]) : '–')
      ),
      el('td', { class: 'dt-actions' }, ...this.actions(model))
    )
  }

  actions(model) {
    const flag = el('input', {
      type: 'checkbox',
      role: 'switch',
      checked: model.eject,
      disabled: !model.ejectable,
      'data-key': `flag-${model.id}`,
      'aria-label': `${model.name}: eject with the next eject`,
      onchange: (event) => this.store.post('/distorch/flag', { id: model.id, eject: event.target.checked })
    })
    const now = el(
      'button',
      {
        type: 'button',
        class: 'dt-button dt-eject',
        disabled: !model.ejectable,
        title: model.ejectable ? `Unload this model when no prompt runs${model.kept ? '; it stays kept, in RAM' : ''}` : model.why_not,
        'data-key': `eject-${model.id}`,
        'aria-label': `Move ${model.name} off the GPU`,
        onclick: () => this.store.post('/distorch/eject', { ids: [model.id] })
      },
      'Move off the GPU'
    )
    const letGo = el(
      'button',
      {
        type: 'button',
        class: 'dt-button dt-eject',
        title: 'End its keeping, in RAM too: it is gone when no node holds it',
        'data-key': `let-go-${model.id}`,
        'aria-label': `Let go of ${model.name}`,
        onclick: () => this.store.post('/distorch/eject', { ids: [model.id], let_go: true })
      },
      'Let go'
    )
    return [el('label', { class: 'dt-switch', title: 'On: unloaded by the next eject. Off: kept' }, flag, el('span', {}, model.eject ? 'eject' : 'keep')), now, ...(model.kept ? [letGo] : [])]
  }

  placement(placement) {
    const devices = [...new Set(placement.blocks.map((block) => block.device))]
    return el(
      'div',
      { class: 'dt-placement', 'data-placement': placement.key },
      el(
        'div',
        { class: 'dt-line' },
        el('span', { class: 'dt-title', title: placement.requested }, placement.name),
        el('span', { class: 'dt-amount' }, `runs on ${deviceTitle(placement.compute)}`)
      ),
      placementStrip(placement),
      el(
        'ul',
        { class: 'dt-legend' },
        ...devices.map((device) =>
          el(
            'li',
            {},
            el('span', { class: 'dt-swatch', style: `background:${deviceColour(device)}` }),
            [`${deviceTitle(device)} ${formatBytes(placement.bytes[device] ?? 0)}`, ...uses(placement, device)].join(', ')
          )
        )
      ),
      placement.streaming ? el('div', { class: 'dt-small' }, placement.streaming) : null,
      stepTimes(placement)
    )
  }
}

/** How the blocks on a device are used, where that is not the device they run on anyway. */
function uses(placement, device) {
  const there = placement.blocks.filter((block) => block.device === device)
  const modes = [...new Set(there.map((block) => blockMode(block, placement)))]
  return modes.filter((mode) => mode !== 'resident').map((mode) => (mode === 'migrated' ? 'computes there' : mode))
}

function stepTimes(placement) {
  const predicted = placement.predicted_step_ms
  const measured = placement.measured_step_ms
  if (!predicted && !measured) return null
  const text = (value) => (value ? `${value.toFixed(value < 10 ? 1 : 0)} ms` : 'not known')
  return el('div', { class: 'dt-small' }, `a step: predicted ${text(predicted)}, measured ${text(measured)}`)
}
