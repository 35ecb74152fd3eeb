// SPDX-License-Identifier: Apache-2.0
// The settings that the server reads (patches/settings.py holds the same table).
// ComfyUI stores them in its settings file; the server follows that file.

const entry = (name, group, label, tooltip, rest) => ({
  id: `DisTorch.${name}`,
  category: ['DisTorch', group, label],
  name: label,
  tooltip,
  ...rest
})

const number = (defaultValue, min, max, step) => ({
  type: 'slider',
  defaultValue,
  attrs: { min, max, step }
})

const memory = 'System memory'
const placement = 'Placement'
const server = 'Server'

export const serverSettings = [
  entry(
    'cpu_memory_threshold',
    memory,
    'Forget results of nodes when system memory is this full (%)',
    'Checked between prompts while a model of DisTorch is loaded. 100: never.',
    number(85, 50, 100, 1)
  ),
  entry(
    'cpu_memory_hysteresis',
    memory,
    'Then wait until it is this much fuller (points)',
    'Falls back to the threshold within two minutes, so that a full machine does not forget after each node.',
    number(5, 0, 20, 1)
  ),
  entry(
    'kept_under_pressure',
    memory,
    'Let go of kept models when system memory is short',
    'Off: a model with keep_loaded stays whatever happens.',
    { type: 'boolean', defaultValue: true }
  ),
  entry(
    'kept_memory_threshold',
    memory,
    'Let go of kept models when system memory is this full (%)',
    'Looked at before a model is loaded; models that are not loaded go first.',
    number(92, 50, 100, 1)
  ),
  entry(
    'reserve_gb',
    placement,
    'Leave free on each accelerator (GB)',
    'Blocks are planned as if each accelerator had this much less. Counts from the next load on.',
    number(0, 0, 64, 0.5)
  ),
  entry(
    'strict',
    placement,
    'A device short of memory is an error',
    'Off: its part becomes smaller, with a note in the plan.',
    { type: 'boolean', defaultValue: false }
  ),
  entry('log_level', server, 'Log level', 'What DisTorch writes to the log of ComfyUI.', {
    type: 'combo',
    defaultValue: 'INFO',
    options: ['DEBUG', 'INFO', 'WARNING', 'ERROR']
  }),
  entry(
    'scan_interval',
    server,
    'Look for models every (seconds)',
    'How old the list of models in the DisTorch tab may be.',
    number(1, 1, 60, 1)
  )
]
