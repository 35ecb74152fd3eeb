// SPDX-License-Identifier: Apache-2.0
// The settings that the server reads (patches/settings.py holds the same table).
// ComfyUI stores them in its settings file; the server follows that file.

import { t } from './text.js'

const entry = (name, group, rest) => ({
  id: `DisTorch.${name}`,
  category: ['DisTorch', t(`setting.${group}`), t(`setting.${name}`)],
  name: t(`setting.${name}`),
  tooltip: t(`setting.${name}.why`),
  ...rest
})

const number = (defaultValue, min, max, step) => ({
  type: 'slider',
  defaultValue,
  attrs: { min, max, step }
})

/** Those of the page, which needs what becomes of them. */
export const pageSettings = (showBadges) => [
  entry('debug_mode', 'view', { type: 'boolean', defaultValue: false }),
  entry('badges', 'view', { type: 'boolean', defaultValue: true, onChange: showBadges })
]

/** Those of the server. */
export const serverSettings = () => [
  entry('cpu_memory_threshold', 'memory', number(85, 50, 100, 1)),
  entry('cpu_memory_hysteresis', 'memory', number(5, 0, 20, 1)),
  entry('kept_under_pressure', 'memory', { type: 'boolean', defaultValue: true }),
  entry('kept_memory_threshold', 'memory', number(92, 50, 100, 1)),
  entry('reserve_gb', 'placement', number(0, 0, 64, 0.5)),
  entry('strict', 'placement', { type: 'boolean', defaultValue: false }),
  entry('log_level', 'server', { type: 'combo', defaultValue: 'INFO', options: ['DEBUG', 'INFO', 'WARNING', 'ERROR'] }),
  entry('scan_interval', 'server', number(1, 1, 60, 1))
]
