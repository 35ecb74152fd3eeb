// SPDX-License-Identifier: Apache-2.0
// Numbers and words as the user reads them. Binary units: 1 GB = 2^30 bytes.

import { t } from './text.js'

const MEGABYTE = 2 ** 20
const GIGABYTE = 2 ** 30

/** "2.1 GB" from one GB on, else "512 MB". */
export function formatBytes(bytes) {
  if (bytes >= GIGABYTE) return `${(bytes / GIGABYTE).toFixed(1)} GB`
  if (bytes > 0 && bytes < MEGABYTE) return '< 1 MB'
  return `${Math.round(bytes / MEGABYTE)} MB`
}

/** "just now", "2m ago", "3h ago", "2d ago"; `then` and `now` in seconds. */
export function formatAge(then, now) {
  if (!then) return ''
  const seconds = Math.max(0, now - then)
  if (seconds < 60) return t('age.now')
  if (seconds < 3600) return t('age.minutes', { count: Math.floor(seconds / 60) })
  if (seconds < 86400) return t('age.hours', { count: Math.floor(seconds / 3600) })
  return t('age.days', { count: Math.floor(seconds / 86400) })
}

/** "0.4 s", "12 s", "2:05 min". */
export function formatSeconds(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`
  if (seconds < 60) return `${Math.round(seconds)} s`
  const whole = Math.round(seconds)
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, '0')} min`
}

/** "14:03:22", of seconds since 1970. */
export function formatClock(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString([], { hour12: false })
}

/** "1030 ms", "8.4 ms", "1.84 s". */
export function formatMilliseconds(ms) {
  if (ms >= 10000) return `${(ms / 1000).toFixed(1)} s`
  return `${ms.toFixed(ms < 10 ? 1 : 0)} ms`
}

/** "GPU 0" for an accelerator, "RAM" for the host. */
export function deviceTitle(device) {
  if (device === 'cpu') return t('ram')
  const [kind, index] = device.split(':')
  if (kind === 'cuda') return `GPU ${index ?? 0}`
  return index === undefined ? kind.toUpperCase() : `${kind.toUpperCase()} ${index}`
}

/** The models with a part on `device`, largest first. */
export function modelsOn(models, device) {
  return models
    .filter((model) => model.bytes[device] > 0)
    .sort((a, b) => b.bytes[device] - a.bytes[device] || a.id - b.id)
}

/** "145 layers". */
export function formatLayers(model) {
  return t(model.layers === 1 ? 'layers.one' : 'layers', { count: model.layers })
}

/** "Wan2_2 (checkpoint, 2.1 GB, 145 layers)", with " (offloaded)" in RAM. */
export function describeModel(model, device) {
  const text = `${model.name} (${model.type}, ${formatBytes(model.bytes[device] ?? 0)}, ${formatLayers(model)})`
  return device === 'cpu' && model.offloaded ? `${text} (${t('offloaded')})` : text
}

/** The lines of a badge's tooltip: the `top` largest, then "and N more". */
export function tooltipLines(models, device, top = 10) {
  const there = modelsOn(models, device)
  const lines = there.slice(0, top).map((model) => describeModel(model, device))
  if (there.length > top) lines.push(t('more', { count: there.length - top }))
  return lines
}

function amounts(sizes) {
  return Object.entries(sizes ?? {}).map(([device, bytes]) => t('strip.part', { size: formatBytes(bytes), device: deviceTitle(device) })).join(', ')
}

/** Everything the row's hover text says of a model; `now` in seconds, as its times. */
export function modelDetails(model, now) {
  const facts = [
    [t('fact.file'), model.file],
    [t('fact.class'), model.class_name],
    [t('fact.dtype'), model.dtype],
    [t('fact.parameters'), model.parameters.toLocaleString('en')],
    [t('fact.architecture'), model.architecture],
    [t('fact.base'), model.base_model],
    [t('fact.used'), model.last_used ? formatAge(model.last_used, now) : ''],
    [t('fact.outside'), amounts(model.outside)],
    [t('how.streamed'), model.streamed ? formatBytes(model.streamed) : ''],
    [t('how.migrated'), model.migrated ? formatBytes(model.migrated) : ''],
    [t('fact.shares'), model.shares_with.join(', ')]
  ]
  return facts.filter(([, value]) => value).map(([name, value]) => `${name}: ${value}`)
}
