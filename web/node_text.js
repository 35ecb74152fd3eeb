// SPDX-License-Identifier: Apache-2.0
// Shows what DisTorch Plan and DisTorch Unload found in the node itself.

import { app } from '../../scripts/app.js'
import { ComfyWidgets } from '../../scripts/widgets.js'

const NODES = ['DisTorchPlan', 'DisTorchUnload']
const WIDGET = 'distorch_text'

/** The node's text field, with room for `lines`; made when there is something to show, and never part of a workflow. */
function textWidget(node, lines) {
  const found = node.widgets?.find((widget) => widget.name === WIDGET)
  if (found) return found
  const [width, height] = node.size
  const { widget } = ComfyWidgets.STRING(node, WIDGET, ['STRING', { multiline: true }], app)
  widget.serialize = false
  widget.options = { ...widget.options, serialize: false }
  const box = widget.inputEl ?? widget.element
  if (box) {
    box.readOnly = true
    box.style.fontFamily = 'monospace'
    box.style.whiteSpace = 'pre'
  }
  const columns = Math.max(...lines.map((line) => line.length))
  const room = [Math.min(720, 40 + 6 * columns), height + 30 + 12 * Math.min(40, lines.length)]
  node.setSize([Math.max(width, room[0]), room[1]])
  return widget
}

app.registerExtension({
  name: 'DisTorch.NodeText',
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!NODES.includes(nodeData.name)) return
    const executed = nodeType.prototype.onExecuted
    nodeType.prototype.onExecuted = function (message, ...more) {
      executed?.call(this, message, ...more)
      if (!message?.text) return
      const text = message.text.join('\n')
      textWidget(this, text.split('\n')).value = text
    }
  }
})
