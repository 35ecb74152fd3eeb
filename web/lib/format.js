// SPDX-License-Identifier: Apache-2.0
// Numbers and words as the user reads them. Binary units: 1 GB = 2^30 bytes.

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
  if (seconds < 60) return 'just now'
  if (seconds < 3600) return `${Math.floor(seconds / 60)}m ago`
  if (seconds < 86400) return `${Math.floor(seconds / 3600)}h ago`
  return `${Math.floor(seconds / 86400)}d ago`
}

/** "0.4 s", "12 s", "2:05 min". */
export function formatSeconds(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`
  if (seconds < 60) return `${Math.round(seconds)} s`
  const whole = Math.round(seconds)
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, '0')} min`
}

/** "GPU 0" for an accelerator, "RAM" for the host. */
export function deviceTitle(device) {
  if (device === 'cpu') return 'RAM'
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
  return `${model.layers} ${model.layers === 1 ? 'layer' : 'layers'}`
}

/** "Wan2_2 (checkpoint, 2.1 GB, 145 layers)", with " (offloaded)" in RAM. */
export function describeModel(model, device) {
  const text = `${model.name} (${model.type}, ${formatBytes(model.bytes[device] ?? 0)}, ${formatLayers(model)})`
  return device === 'cpu' && model.offloaded ? `${text} (offloaded)` : text
}

/** The lines of a badge's tooltip: the `top` largest, then "and N more". */
export function tooltipLines(models, device, top = 10) {
  const there = modelsOn(models, device)
  const lines = there.slice(0, top).map((model) => describeModel(model, device))
  if (there.length > top) lines.push(`and ${there.length - top} more`)
  return lines
}

function amounts(sizes) {
  return Object.entries(sizes ?? {}).map(([device, bytes]) => `${formatBytes(bytes)} on ${deviceTitle(device)}`).join(', ')
}

/** Everything the row's hover text says of a model; `now` in seconds, as its times. */
export function modelDetails(model, now) {
  const facts = [
    ['File', model.file],
    ['Class', model.class_name],
    ['Data type', model.dtype],
    ['Parameters', model.parameters.toLocaleString('en')],
    ['Architecture', model.architecture],
    ['Base model', model.base_model],
    ['Last used', model.last_used ? formatAge(model.last_used, now) : ''],
    ['In memory beside its tensors', amounts(model.outside)],
    ['Streamed', model.streamed ? formatBytes(model.streamed) : ''],
    ['Migrated', model.migrated ? formatBytes(model.migrated) : ''],
    ['Shares memory with', model.shares_with.join(', ')]
  ]
  return facts.filter(([, value]) => value).map(([name, value]) => `${name}: ${value}`)
}
