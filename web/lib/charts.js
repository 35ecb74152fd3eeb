// SPDX-License-Identifier: Apache-2.0
// The charts, as SVG that stretches to its box. Each says its content in words as well.

import { deviceColour, modelColour } from './colours.js'
import { svg } from './dom.js'
import { deviceTitle, formatBytes, modelsOn } from './format.js'
import { t } from './text.js'

/** What a device's bar consists of: {key, label, bytes, colour | className}. */
export function barParts(device, models) {
  const there = modelsOn(models, device.device)
  const parts = there.map((model) => ({
    key: `model-${model.id}`,
    label: model.name,
    bytes: model.bytes[device.device],
    colour: modelColour(model.id)
  }))
  const rest = device.models - parts.reduce((sum, part) => sum + part.bytes, 0)
  if (rest > 0 && !there.length) parts.push({ key: 'weights', label: t('part.models'), bytes: rest, className: 'dt-other' })
  parts.push(
    { key: 'tensors', label: t('part.tensors'), bytes: device.tensors, className: 'dt-tensors' },
    { key: 'unused', label: t('part.unused_long'), bytes: device.unused, className: 'dt-unused' },
    { key: 'other', label: device.device === 'cpu' ? t('part.other_ram') : t('part.other'), bytes: device.other, className: 'dt-other' },
    { key: 'free', label: t('part.free'), bytes: device.free, className: 'dt-free' }
  )
  return parts.filter((part) => part.bytes > 0)
}

/** The stacked bar of a device. */
export function memoryBar(device, models) {
  const parts = barParts(device, models)
  const words = parts.map((part) => `${part.label} ${formatBytes(part.bytes)}`).join(', ')
  const node = svg('svg', {
    class: 'dt-bar',
    viewBox: '0 0 1000 24',
    preserveAspectRatio: 'none',
    role: 'img',
    'aria-label': `${deviceTitle(device.device)}: ${words}`
  })
  let x = 0
  for (const part of parts) {
    const width = (part.bytes / device.total) * 1000
    const rect = svg(
      'rect',
      { x, y: 0, width, height: 24, fill: part.colour, class: part.className, 'data-part': part.key, 'data-bytes': part.bytes },
      svg('title', {}, `${part.label}: ${formatBytes(part.bytes)}`)
    )
    node.append(rect)
    if (x > 0) node.append(svg('line', { x1: x, x2: x, y1: 0, y2: 24, class: 'dt-gap' }))
    x += width
  }
  return node
}

/** Used memory of a device over time, with its peak and average. */
export function timeline(device, samples, now) {
  const points = samples.filter((sample) => sample.used[device.device] !== undefined)
  const values = points.map((sample) => sample.used[device.device])
  const peaks = points.map((sample) => Math.max(sample.peak?.[device.device] ?? 0, sample.used[device.device]))
  const peak = peaks.length ? Math.max(...peaks) : 0
  const average = timeAverage(points, device.device, now)
  const first = points.length ? points[0].time : now
  const span = Math.max(1, now - first)
  const x = (time) => ((time - first) / span) * 1000
  const y = (bytes) => 46 - (bytes / device.total) * 44
  const node = svg('svg', {
    class: 'dt-timeline',
    viewBox: '0 0 1000 48',
    preserveAspectRatio: 'none',
    role: 'img',
    'aria-label': `${deviceTitle(device.device)}: ${t('device.peak', { peak: formatBytes(peak), average: formatBytes(average) })}`
  })
  if (!points.length) return { node, peak, average }
  // A value holds until the next one: messages come only when something changed.
  let path = `M0,48 L0,${y(values[0])}`
  points.forEach((sample, index) => {
    if (index > 0) path += ` L${x(sample.time)},${y(values[index - 1])}`
    path += ` L${x(sample.time)},${y(values[index])}`
  })
  path += ` L1000,${y(values.at(-1))} L1000,48 Z`
  // What rose and fell between two samples: a stroke from the value up to its peak.
  const spikes = points
    .map((sample, index) => ({ x: x(sample.time), from: y(values[index]), to: y(peaks[index]) }))
    .filter((spike) => spike.from - spike.to > 0.5)
    .map((spike) => `M${spike.x},${spike.from} L${spike.x},${spike.to}`)
  if (spikes.length) node.append(svg('path', { d: spikes.join(' '), class: 'dt-spikes', stroke: deviceColour(device.device) }))
  node.append(
    svg('path', { d: path, class: 'dt-area', fill: deviceColour(device.device), stroke: deviceColour(device.device) }),
    svg('line', { x1: 0, x2: 1000, y1: y(peak), y2: y(peak), class: 'dt-peak' }),
    svg('line', { x1: 0, x2: 1000, y1: y(average), y2: y(average), class: 'dt-average' })
  )
  return { node, peak, average }
}

/** The average over time, each value weighted with how long it held. */
export function timeAverage(points, device, now) {
  if (!points.length) return 0
  let sum = 0
  points.forEach((sample, index) => {
    const until = points[index + 1]?.time ?? now
    sum += sample.used[device] * Math.max(0, until - sample.time)
  })
  const span = now - points[0].time
  return span > 0 ? sum / span : points[0].used[device]
}
