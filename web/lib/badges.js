// SPDX-License-Identifier: Apache-2.0
// A badge for each accelerator in the top bar, with a tooltip of its own: its ten largest models.

import { deviceColour } from './colours.js'
import { el, scheduled, update } from './dom.js'
import { debugLog } from './debug.js'
import { deviceTitle, formatBytes, modelsOn, tooltipLines } from './format.js'
import { t } from './text.js'

const LIST = 'list'
const MOST_BADGES = 3 // more fold into one that opens a list

export class Badges {
  constructor(store) {
    this.store = store
    this.element = el('div', { class: 'dt-badges', role: 'group', 'aria-label': t('badges') })
    this.open = null // the device whose tooltip shows, or LIST
    store.addEventListener('change', scheduled(this.element, () => this.render()))
    document.addEventListener('pointerdown', (event) => {
      if (this.open === LIST && !this.element.contains(event.target)) this.hide(LIST)
    })
    this.render()
  }

  render() {
    const devices = this.store.devices.filter((device) => device.device !== 'cpu')
    const boxes = devices.length > MOST_BADGES ? [this.folded(devices)] : devices.map((device) => this.badge(device))
    update(this.element, ...boxes)
  }

  /** One for all: the fullest device, and how many there are. */
  folded(devices) {
    const fullest = devices.reduce((most, device) => (share(device) > share(most) ? device : most))
    const open = this.open === LIST
    const button = el(
      'button',
      {
        type: 'button',
        class: 'dt-badge',
        'data-key': 'badge-all',
        'aria-expanded': String(open),
        'aria-controls': 'dt-badge-list',
        'aria-label': t('badge.all', { count: devices.length, device: deviceTitle(fullest.device), share: share(fullest) }),
        onkeydown: (event) => void (event.key === 'Escape' && this.hide(LIST)), // a handler that gives false swallows the key
        onclick: () => (open ? this.hide(LIST) : this.show(LIST))
      },
      el('span', { class: 'dt-badge-name' }, `${devices.length} GPU`),
      ...meter(fullest)
    )
    const rows = devices.map((device) =>
      el(
        'li',
        { 'data-device': device.device },
        el(
          'button',
          { type: 'button', class: 'dt-badge dt-badge-row', 'data-key': `row-${device.device}`, title: tooltipLines(this.store.models, device.device).join('\n'), onclick: () => this.store.dispatchEvent(new Event('open')) },
          el('span', { class: 'dt-badge-name' }, deviceTitle(device.device)),
          ...meter(device),
          el('span', { class: 'dt-small' }, t('device.used', { used: formatBytes(device.total - device.free), total: formatBytes(device.total) }))
        )
      )
    )
    return el('div', { class: 'dt-badge-box', 'data-device': LIST }, button, el('ul', { id: 'dt-badge-list', class: 'dt-tip dt-badge-list', hidden: !open }, ...rows))
  }

  badge(device) {
    const id = `dt-tip-${device.device.replace(':', '-')}`
    const title = deviceTitle(device.device)
    const show = () => this.show(device.device)
    const hide = () => this.hide(device.device)
    const button = el(
      'button',
      {
        type: 'button',
        class: 'dt-badge',
        'data-key': `badge-${device.device}`,
        'data-device': device.device,
        'aria-describedby': id,
        'aria-label': t('badge.one', { device: title, share: share(device), total: formatBytes(device.total) }),
        onmouseenter: show,
        onmouseleave: hide,
        onfocus: show,
        onblur: hide,
        onkeydown: (event) => void (event.key === 'Escape' && hide()), // a handler that gives false swallows the key
        onclick: () => this.store.dispatchEvent(new Event('open'))
      },
      el('span', { class: 'dt-badge-name' }, title),
      ...meter(device)
    )
    return el('div', { class: 'dt-badge-box', 'data-device': device.device }, button, this.tooltip(device, id))
  }

  tooltip(device, id) {
    const lines = tooltipLines(this.store.models, device.device)
    const used = t('device.used', { used: formatBytes(device.total - device.free), total: formatBytes(device.total) })
    return el(
      'div',
      { id, role: 'tooltip', class: 'dt-tip', hidden: this.open !== device.device },
      el('div', { class: 'dt-tip-head' }, `${device.name}: ${used}`),
      lines.length ? el('ul', {}, ...lines.map((line) => el('li', {}, line))) : el('div', {}, t('models.none'))
    )
  }

  show(device) {
    this.open = device
    this.render()
    if (device !== LIST) this.log(device)
  }

  hide(device) {
    if (this.open === device) this.open = null
    this.render()
  }

  log(device) {
    const id = device.split(':')[1] ?? device
    debugLog(`[updateGPUTooltip] Starting update for GPU ${id}`)
    const ids = this.store.devices.map((d) => d.device)
    debugLog('[updateGPUTooltip] Available GPU IDs:', ids)
    const data = this.store.devices.find((d) => d.device === device)
    debugLog(`[updateGPUTooltip] GPU ${id} data:`, data)
    const models = modelsOn(this.store.models, device)
    if (!models.length) {
      debugLog(`[updateGPUTooltip] No models found for GPU ${id}`)
      debugLog(`[updateGPUTooltip]   - gpuData exists: ${!!data}`)
      debugLog(`[updateGPUTooltip]   - models array exists: ${Array.isArray(this.store.models)}`)
      debugLog(`[updateGPUTooltip]   - models length: ${models.length}`)
      return
    }
    debugLog(`[updateGPUTooltip] Found ${models.length} models on GPU ${id}:`)
    models.forEach((model, index) => {
      const size = Math.round(model.bytes[device] / 2 ** 20)
      debugLog(`[updateGPUTooltip]   ${index + 1}. ${model.name} (${model.type}): ${size} MB [${model.class_name}]`)
    })
  }
}

function share(device) {
  return Math.min(100, Math.round(((device.total - device.free) / device.total) * 100))
}

function meter(device) {
  const used = share(device)
  const fill = el('span', { class: used >= 90 ? 'dt-badge-fill dt-full' : 'dt-badge-fill', style: `width:${used}%;background:${used >= 90 ? '' : deviceColour(device.device)}` })
  return [el('span', { class: 'dt-badge-track', 'aria-hidden': 'true' }, fill), el('span', { class: 'dt-badge-value' }, `${used} %`)]
}

/**
 * Puts the badges into the menu beside ComfyUI's own buttons, when that is in the page: the front end may build it after
 * the extensions. Without one they lie in a corner where nothing of ComfyUI's is.
 */
export function mountBadges(app, element, seconds = 10) {
  const place = () => {
    const group = app.menu?.settingsGroup?.element
    if (!group?.isConnected) return false
    group.before(element)
    return true
  }
  if (place()) return
  const observer = new MutationObserver(() => {
    if (!place()) return
    observer.disconnect()
    clearTimeout(late)
  })
  const late = setTimeout(() => {
    observer.disconnect()
    element.classList.add('dt-floating')
    document.body.append(element)
  }, seconds * 1000)
  observer.observe(document.body, { childList: true, subtree: true })
}
