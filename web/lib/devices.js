// SPDX-License-Identifier: Apache-2.0
// One foldable row a device: its bar always, the last ten minutes and what NVML tells when it is open.

import { memoryBar, timeline } from './charts.js'
import { el } from './dom.js'
import { deviceTitle, formatBytes } from './format.js'
import { t } from './text.js'

const MOST_PROCESSES = 5

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
    { class: 'dt-device', open, 'aria-label': title, 'data-device': device.device, ontoggle: (event) => panel.fold(key, event.target.open) },
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
    ...(device.activity ? activity(device.activity) : [])
  )
}

/** What NVML tells of a GPU; what it does not tell is not there. */
function activity(does) {
  const watts = does.power === null ? null : Math.round(does.power)
  const traffic = [does.pcie_received, does.pcie_sent].map((bytes) => (bytes === null ? t('unknown') : `${formatBytes(bytes)}/s`))
  const facts = [
    ['load', does.load, `${does.load} %`],
    ['temperature', does.temperature, `${does.temperature} °C`],
    ['power', watts, does.power_limit === null ? `${watts} W` : t('device.power_of', { now: watts, limit: Math.round(does.power_limit) })],
    ['pcie', does.pcie_received ?? does.pcie_sent, traffic.join(', ')]
  ].filter(([, known]) => known !== null)
  const processes = does.processes ?? []
  return [
    facts.length ? el('dl', { class: 'dt-activity' }, ...facts.map(([key, , words]) => el('div', { 'data-key': key }, el('dt', {}, t(`device.${key}`)), el('dd', {}, words)))) : null,
    processes.length
      ? el(
          'ul',
          { class: 'dt-changes', 'aria-label': t('device.processes') },
          ...processes.slice(0, MOST_PROCESSES).map((one) => el('li', { 'data-key': `process-${one.pid}` }, el('span', {}, processName(one)), el('span', { class: 'dt-number' }, one.bytes === null ? t('unknown') : formatBytes(one.bytes)))),
          processes.length > MOST_PROCESSES ? el('li', {}, t('more', { count: processes.length - MOST_PROCESSES })) : null
        )
      : null
  ]
}

function processName({ name, pid, own }) {
  if (own) return t('device.process_own', { pid })
  return name ? t('device.process', { name, pid }) : t('device.process_unnamed', { pid })
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
