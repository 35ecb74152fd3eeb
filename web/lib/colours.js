// SPDX-License-Identifier: Apache-2.0
// One colour a model and one a device, the same in every chart; readable on light and dark, and
// told apart by people who do not see red and green alike (after Okabe and Ito).

const PALETTE = ['#0072b2', '#e69f00', '#009e73', '#cc79a7', '#56b4e9', '#d55e00', '#8a6fd1', '#a08a00']
const HOST = '#8c8c8c'

/** The colour of a model: by its id, so that it stays while others come and go. */
export function modelColour(id) {
  return PALETTE[(id * 5) % PALETTE.length]
}

/** The colour of a device: accelerators by index, RAM grey. */
export function deviceColour(device) {
  if (device === 'cpu') return HOST
  return PALETTE[Number(device.split(':')[1] ?? 0) % PALETTE.length]
}
