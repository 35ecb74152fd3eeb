// SPDX-License-Identifier: Apache-2.0
// The workflow on the canvas, as far as the tab needs it: a node's title, a jump to it, the string in it.

const STRINGS = ['expert_mode_allocations', 'unet_expert_mode_allocations', 'clip_expert_mode_allocations', 'compare_with']

export class Graph {
  /** `app`: ComfyUI's; where it has no graph, no node is found. */
  constructor(app) {
    this.app = app
  }

  /** The node with an id such as "7", or "3:7" in a subgraph; null where the open workflow has none. */
  node(id) {
    let graph = this.app.rootGraph ?? this.app.graph
    let found = null
    for (const part of String(id).split(':')) {
      found = part && graph?.getNodeById ? graph.getNodeById(Number(part)) : null
      graph = found?.subgraph
    }
    return found ?? null
  }

  /** Its title on the canvas; `fallback` where it is not there. */
  title(id, fallback) {
    return this.node(id)?.title || fallback
  }

  /** Brings a node into view and selects it; whether there is one. */
  show(id) {
    const node = this.node(id)
    if (!node) return false
    const canvas = this.app.canvas
    if (canvas.graph !== node.graph && node.graph) canvas.setGraph?.(node.graph)
    canvas.centerOnNode(node)
    canvas.selectNode?.(node, false)
    return true
  }

  /** Every widget for an allocation string of a node. */
  stringWidgets(node) {
    return (node?.widgets ?? []).filter((widget) => STRINGS.includes(widget.name))
  }

  /** The widget for the allocation string of a node; `part` is "model" or "text encoder". */
  stringWidget(node, part = 'model') {
    const widgets = this.stringWidgets(node)
    return widgets.find((widget) => part === 'text encoder' && widget.name.startsWith('clip_')) ?? widgets[0] ?? null
  }

  /** Puts a string into a node and shows it; whether that could be done. */
  write(id, text, part) {
    return this.put(this.node(id), text, part) && this.show(id)
  }

  /** Puts a string into a node's widget; whether it has one. */
  put(node, text, part) {
    const widget = this.stringWidget(node, part)
    if (!widget) return false
    widget.value = text
    widget.callback?.(text, this.app.canvas, node)
    node.setDirtyCanvas?.(true, true)
    return true
  }
}
