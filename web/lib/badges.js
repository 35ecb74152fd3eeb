// SPDX-License-Identifier: Apache-2.0
// A badge for each accelerator in the top bar, with a tooltip of its own: its ten largest models.

import { el, scheduled, update } from './dom.js'
import { debugLog } from './debug.js'
import { deviceTitle, formatBytes, modelsOn, tooltipLines } from './format.js'

export class Badges {
  constructor(store) {
    this.store = store
    this.element = el('div', { class: 'dt-badges', role: 'group', 'aria-label': 'DisTorch: GPU memory' })
    this.open = null // the device whose tooltip shows
    store.addEventListener('change', scheduled(this.element, () => this.render()))
    this.render()
  }

  render() {
    const devices = this.store.devices.filter((device) => device.device !== 'cpu')
    update(this.element, ...devices.map((device) => this.badge(device)))
  }

  badge(device) {
    const id = `dt-tip-${device.device.replace(':', '-')}`
    const share = Math.min(100, Math.round(((device.total - device.free) / device.total) * 100))
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
        'aria-label': `${title}: ${share} % of ${formatBytes(device.total)} in use`,
        onmouseenter: show,
        onmouseleave: hide,
        onfocus: show,
        onblur: hide,
        onkeydown: (event) => event.key === 'Escape' && hide(),
        onclick: () => this.store.dispatchEvent(new Event('open'))
      },
      el('span', { class: 'dt-badge-name' }, title),
      el(
        'span',
        { class: 'dt-badge-track', 'aria-hidden': 'true' },
        el('span', { class: share >= 90 ? 'dt-badge-fill dt-full' : 'dt-badge-fill', style: `width:${share}%` })
      ),
      el('span', { class: 'dt-badge-value' }, `${share} %`)
    )
    return el('div', { class: 'dt-badge-box', 'data-device': device.device }, button, this.tooltip(device, id))
  }

  tooltip(device, id) {
    const lines = tooltipLines(this.store.models, device.device)
    const used = `${device.name}: ${formatBytes(device.total - device.free)} of ${formatBytes(device.total)} in use`
    return el(
      'div',
      { id, role: 'tooltip', class: 'dt-tip', hidden: this.open !== device.device },
      el('div', { class: 'dt-tip-head' }, used),
      lines.length ? el('ul', {}, ...lines.map((line) => el('li', {}, line))) : el('div', {}, 'No models')
    )
  }

  show(device) {
    this.open = device
    this.render()
    this.log(device)
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

/** Puts the badges into the top bar; where this front end has none, into a corner of the page. */
export function mountBadges(app, element) {
  const group = app.menu?.settingsGroup?.element
  if (group?.isConnected) {
    group.before(element)
    return 'menu'
  }
  element.classList.add('dt-floating')
  document.body.append(element)
  return 'floating'
}
