// SPDX-License-Identifier: Apache-2.0
// Shows in the node itself what DisTorch Plan and DisTorch Unload found. Never part of a workflow.

import { app } from '../../scripts/app.js'
import { ComfyWidgets } from '../../scripts/widgets.js'
import { el, update } from './lib/dom.js'
import { outlook } from './lib/outlook.js'
import { t } from './lib/text.js'

const TEXT = 'distorch_text'
const PLANS = 'distorch_plans'
const WIDTH = 440 // of a plan
let count = 0

/** The node's text field, with room for `lines`; made when there is something to show. */
function textWidget(node, lines) {
  const found = node.widgets?.find((widget) => widget.name === TEXT)
  if (found) return found
  const [width, height] = node.size
  const { widget } = ComfyWidgets.STRING(node, TEXT, ['STRING', { multiline: true }], app)
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

/** Plans, side by side where there is room, and the same as text. */
class Plans {
  constructor(node) {
    this.node = node
    this.key = `plans-${(count += 1)}`
    this.body = el('div', { class: 'dt-plans' })
    this.element = el('div', { class: 'dt-panel dt-node', role: 'group', 'aria-label': t('plan') }, this.body)
    const height = () => this.body.offsetHeight + 30
    this.widget = node.addDOMWidget(PLANS, 'distorch', this.element, { serialize: false, hideOnZoom: false, getMinHeight: height })
    this.widget.serialize = false
    // Its height is known when it is in the page, and changes with its width and when the text is unfolded.
    new ResizeObserver(() => this.fit()).observe(this.body)
  }

  show(views, text) {
    const plan = (view, index) => el('section', { class: 'dt-plan', 'data-key': `${this.key}-${index}` }, el('div', { class: 'dt-mono' }, view.spec), el('div', { class: 'dt-small dt-mono' }, `${t('plan.resolved')}: ${view.resolved}`), ...outlook(`${this.key}-${index}`, view.spec, view))
    const all = el('details', { class: 'dt-fold', open: this.open, 'aria-label': t('plan.text'), ontoggle: (event) => (this.open = event.target.open) }, el('summary', {}, t('plan.text')), el('pre', { class: 'dt-mono' }, text))
    update(this.body, ...views.map(plan), all)
    this.node.setSize([Math.max(this.node.size[0], WIDTH * Math.min(2, views.length)), this.node.size[1]])
    this.fit()
  }

  fit() {
    const [width, height] = [this.node.size[0], this.node.computeSize()[1]]
    if (Math.abs(height - this.node.size[1]) > 1) this.node.setSize([width, height])
    this.node.setDirtyCanvas?.(true, true)
  }
}

const SHOW = {
  DisTorchPlan(node, message) {
    node.distorchPlans ??= new Plans(node)
    node.distorchPlans.show(message.plans, message.text.join('\n'))
  },
  DisTorchUnload(node, message) {
    const text = message.text.join('\n')
    textWidget(node, text.split('\n')).value = text
  }
}

app.registerExtension({
  name: 'DisTorch.NodeText',
  beforeRegisterNodeDef(nodeType, nodeData) {
    const show = SHOW[nodeData.name]
    if (!show) return
    const executed = nodeType.prototype.onExecuted
    nodeType.prototype.onExecuted = function (message, ...more) {
      executed?.call(this, message, ...more)
      if (message?.text) show(this, message)
    }
  }
})
