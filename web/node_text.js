// SPDX-License-Identifier: Apache-2.0
// Shows what DisTorch Plan and DisTorch Unload found in the node itself.

import { app } from '../../scripts/app.js'
import { ComfyWidgets } from '../../scripts/widgets.js'

const NODES = ['DisTorchPlan', 'DisTorchUnload']
const WIDGET = 'distorch_text'

/** The node's text field; made when there is something to show, and never part of a workflow. */
function textWidget(node) {
  const found = node.widgets?.find((widget) => widget.name === WIDGET)
  if (found) return found
  const { widget } = ComfyWidgets.STRING(node, WIDGET, ['STRING', { multiline: true }], app)
  widget.serialize = false
  widget.options = { ...widget.options, serialize: false }
  const box = widget.inputEl ?? widget.element
  if (box) {
    box.readOnly = true
    box.style.fontFamily = 'monospace'
    box.style.whiteSpace = 'pre'
  }
  return widget
}

app.registerExtension({
  name: 'DisTorch.NodeText',
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!NODES.includes(nodeData.name)) return
    const executed = nodeType.prototype.onExecuted
    nodeType.prototype.onExecuted = function (message, ...more) {
      executed?.call(this, message, ...more)
      if (message?.text) textWidget(this).value = message.text.join('\n')
    }
  }
})
