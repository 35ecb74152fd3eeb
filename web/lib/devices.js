// SPDX-License-Identifier: Apache-2.0
// One foldable row a device: its bar always, the last ten minutes and what NVML tells when it is open.

import { memoryBar, timeline } from './charts.js'
import { el } from './dom.js'
import { deviceTitle, formatBytes } from './format.js'
import { t } from './text.js'

/** The rows and the legend of their bars. */
export function deviceList(panel) {
  const { devices } = panel.store
  return [el('div', { class: 'dt-devices' }, ...devices.map((device) => row(panel, device))), legend()]
}

function row(panel, device) {
  const key = `device-${device.device}`
  const open = panel.folds.has(key)
  const title = deviceTitle(device.device)
  return el(
    'details',
    { class: 'dt-device', open, 'data-device': device.device, ontoggle: (event) => panel.fold(key, event.target.open) },
    el(
      'summary',
      { 'data-key': `${key}-head` },
      el(
        'div',
        { class: 'dt-line' },
        el('span', { class: 'dt-title', title: device.name }, title, device.name === title || device.name === 'RAM' ? null : el('small', {}, ` ${device.name}`)),
        el('span', { class: 'dt-amount' }, t('device.used', { used: formatBytes(device.total - device.free), total: formatBytes(device.total) }))
      ),
      memoryBar(device, panel.store.models)
    ),
    open ? details(panel, device) : null
  )
}

function details(panel, device) {
  const { node, peak, average } = timeline(device, panel.store.samples, panel.store.now)
  return el(
    'div',
    { class: 'dt-device-more' },
    node,
    el('div', { class: 'dt-small' }, t('device.peak', { peak: formatBytes(peak), average: formatBytes(average) })),
    gauges(device.gauges),
    processes(device.processes)
  )
}

/** Load, temperature, power and PCIe traffic, as far as NVML tells them. */
function gauges(figures) {
  if (!figures) return null
  const rate = (bytes) => `${formatBytes(bytes)}/s`
  const known = [
    ['load', figures.load, (v) => `${v} %`],
    ['temperature', figures.temperature, (v) => `${v} °C`],
    ['power', figures.power, (v) => (figures.power_limit ? `${Math.round(v)} / ${Math.round(figures.power_limit)} W` : `${Math.round(v)} W`)],
    ['pcie_rx', figures.pcie_rx, rate],
    ['pcie_tx', figures.pcie_tx, rate]
  ].filter(([, value]) => value !== null && value !== undefined)
  if (!known.length) return null
  return el('dl', { class: 'dt-gauges' }, ...known.flatMap(([key, value, words]) => [el('dt', {}, t(`gauge.${key}`)), el('dd', {}, words(value))]))
}

/** Who else holds memory there. */
function processes(list) {
  if (!list?.length) return null
  return el(
    'ul',
    { class: 'dt-processes', 'aria-label': t('processes') },
    ...list.map((one) => el('li', { 'data-key': `pid-${one.pid}` }, el('span', {}, `${one.name || '?'} (${one.pid})`), el('span', { class: 'dt-number' }, one.bytes === null ? t('unknown') : formatBytes(one.bytes))))
  )
}

function legend() {
  const item = (name, text) => el('li', {}, el('span', { class: `dt-swatch ${name}` }), text)
  return el(
    'ul',
    { class: 'dt-legend', 'aria-label': t('legend') },
    item('dt-tensors', t('part.tensors')),
    item('dt-unused', t('part.unused')),
    item('dt-other', t('part.other')),
    item('dt-free', t('part.free'))
  )
}
