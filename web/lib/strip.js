// SPDX-License-Identifier: Apache-2.0
// The blocks of a placed model in its order, to scale in bytes: colour is the device, hatching is streamed. Behind them the
// slots, as large as they are beside the weights. Blocks that wait for their place are marked; a change flashes.

import { deviceColour } from './colours.js'
import { lazy, svg } from './dom.js'
import { deviceTitle, formatBytes } from './format.js'
import { said, t } from './text.js'

const WIDTH = 1000
const HEIGHT = 26
const GAP = 10 // between blocks and slots
const FLASH_MS = 4000

const seen = new Map() // key -> {devices: block -> device, changed: block -> time}

/** Of a loaded model; `placement` as the server tells it. */
export function placementStrip(placement) {
  const parts = placement.blocks.map((block) => ({
    name: block.name,
    device: block.device,
    how: placement.state === 'placed' ? (block.how ?? (block.device === placement.compute ? 'resident' : 'streamed')) : 'waiting',
    bytes: block.bytes || 1,
    reason: block.reason,
    waits: block.waits,
    changed: changedAt(placement.key, block)
  }))
  return strip(`p-${placement.key}`, placement.name, parts, placement.compute, placement.staging_bytes ?? 0)
}

/** Of a plan: `view` as POST /distorch/plan answers. */
export function planStrip(key, name, view) {
  const parts = view.strip.map((part) => ({
    name: part.blocks === 1 ? part.first : t('strip.stretch', { first: part.first, count: part.blocks }),
    device: part.device,
    how: part.how,
    bytes: part.bytes,
    reason: part.reason
  }))
  const slots = view.devices.find((row) => row.device === view.compute)?.slots ?? 0
  return strip(key, name, parts, view.compute, slots)
}

function changedAt(key, block) {
  const known = seen.get(key) ?? { devices: new Map(), changed: new Map() }
  seen.set(key, known)
  const before = known.devices.get(block.name)
  if (before !== undefined && before !== block.device) known.changed.set(block.name, Date.now())
  known.devices.set(block.name, block.device)
  const at = known.changed.get(block.name) ?? 0
  return Date.now() - at < FLASH_MS ? at : 0
}

function strip(key, name, parts, compute, slots) {
  const total = parts.reduce((sum, part) => sum + part.bytes, 0)
  const words = [...sums(parts)].map(([device, bytes]) => t('strip.part', { size: formatBytes(bytes), device: deviceTitle(device) }))
  if (slots) words.push(t('strip.slots', { size: formatBytes(slots), device: deviceTitle(compute) }))
  const node = svg('svg', {
    class: 'dt-strip',
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
    preserveAspectRatio: 'none',
    role: 'img',
    'data-strip': key,
    'aria-label': t('strip.label', { name, parts: words.join(', ') })
  })
  const same = parts.map((part) => [part.name, part.device, part.how, part.bytes, part.waits, part.changed].join(' '))
  return lazy(node, [slots, t('strip.slots'), ...same].join('\n'), () => draw(key, parts, total, compute, slots))
}

function sums(parts) {
  const found = new Map()
  for (const part of parts) found.set(part.device, (found.get(part.device) ?? 0) + part.bytes)
  return found
}

function draw(key, parts, total, compute, slots) {
  const id = `dt-hatch-${key.replace(/\W/g, '-')}`
  const room = slots ? WIDTH - GAP : WIDTH
  const scale = room / Math.max(1, total + slots)
  const nodes = [
    svg(
      'defs',
      {},
      svg('pattern', { id, width: 7, height: 7, patternUnits: 'userSpaceOnUse', patternTransform: 'rotate(45)' }, svg('rect', { width: 2.5, height: 7, class: 'dt-hatch' }))
    )
  ]
  let x = 0
  for (const part of parts) {
    const width = part.bytes * scale
    const place = { x, y: 0, width, height: HEIGHT }
    nodes.push(
      svg(
        'rect',
        { ...place, fill: deviceColour(part.device), class: part.changed ? 'dt-block dt-changed' : 'dt-block', 'data-block': part.name, 'data-how': part.how, 'data-bytes': part.bytes },
        svg('title', {}, title(part))
      )
    )
    if (part.how === 'streamed') nodes.push(svg('rect', { ...place, fill: `url(#${id})`, class: 'dt-hatched' }))
    if (part.waits) nodes.push(svg('rect', { x, y: HEIGHT - 4, width, height: 4, fill: deviceColour(part.waits), class: 'dt-waits' }))
    x += width
  }
  if (slots) {
    const place = { x: x + GAP, y: 1, width: slots * scale, height: HEIGHT - 2 }
    const words = t('strip.slots', { size: formatBytes(slots), device: deviceTitle(compute) })
    nodes.push(svg('rect', { ...place, stroke: deviceColour(compute), class: 'dt-slots', 'data-slots': slots }, svg('title', {}, words)))
  }
  return nodes
}

function title(part) {
  const lines = [part.name, `${formatBytes(part.bytes)} · ${deviceTitle(part.device)} · ${t(`how.${part.how}`)}`]
  if (part.reason) lines.push(t('strip.reason', { reason: said(part.reason) }))
  if (part.waits) lines.push(t('strip.waits', { device: deviceTitle(part.waits) }))
  return lines.join('\n')
}
