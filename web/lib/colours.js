// SPDX-License-Identifier: Apache-2.0
// Devices are cool, models are warm, the host is grey: a colour never means both. Each palette is told apart by
// lightness too, for people who do not see all hues; bindings/distorch/plan_drawing.py has the devices' as well.

const DEVICES = ['#2f80ed', '#12a594', '#8b5cf6', '#4caf50', '#56c2f0', '#4656c9', '#7fd6b5', '#b9a5f5']
const MODELS = ['#e8743b', '#e6a700', '#d6508a', '#b5532a', '#f0a878', '#a8880f', '#f08fb4', '#8f4a5e', '#f5cf6b', '#c0392b']
const HOST = '#8c8c8c'

const given = new Map() // model id -> place in the palette

/** The colour of a model: it stays while others come and go; the first ten in memory differ. */
export function modelColour(id) {
  if (!given.has(id)) given.set(id, given.size % MODELS.length)
  return MODELS[given.get(id)]
}

/** The colour of a device: accelerators by index, RAM grey. */
export function deviceColour(device) {
  if (device === 'cpu') return HOST
  return DEVICES[Number(device.split(':')[1] ?? 0) % DEVICES.length]
}
