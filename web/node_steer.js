// SPDX-License-Identifier: Apache-2.0
// Under a loader's allocation string: what is wrong with it, where it is typed, and the sliders that write it. Also the
// words of our nodes in the language of the page.

import { app } from '../../scripts/app.js'
import { api } from '../../scripts/api.js'
import { Graph } from './lib/graph.js'
import { el, update } from './lib/dom.js'
import { Steer } from './lib/steer.js'
import { Store } from './lib/store.js'
import { dress } from './lib/string_widget.js'
import { hasText, t } from './lib/text.js'
import { wrongString } from './lib/wrong.js'

const WIDGET = 'distorch_plan'
const MODEL_FILE = /\.(safetensors|sft|gguf|ckpt|pt|pth|bin)$/i
const ONE_FILE = ['unet_name', 'ckpt_name', 'clip_name', 'vae_name', 'control_net_name', 'file']
const CLOSED = 46
const OPEN = 420
const WRONG = 84 // a fault of one string

// Of this folder, whatever it is called. The category would not do: ComfyUI translates it.
const MODULE = `custom_nodes.${decodeURIComponent(new URL(import.meta.url).pathname).split('/extensions/')[1]?.split('/')[0]}`
const isOurs = (nodeData) => nodeData?.python_module === MODULE

const graph = new Graph(app)
const asking = { ask: Store.prototype.ask, post: Store.prototype.post, report() {}, api, reports: [], namesOf: () => [], now: 0 }

function value(node, ...names) {
  return node.widgets?.find((widget) => names.includes(widget.name))?.value
}

/** What POST /distorch/plan is to be asked beside the string; null where no single file is chosen. */
function about(node) {
  const file = node.widgets?.find((widget) => ONE_FILE.includes(widget.name) && MODEL_FILE.test(widget.value))?.value
  if (!file) return null
  const part = value(node, 'part') ?? 'model'
  const compute = value(node, 'compute_device', 'device', 'unet_compute_device')
  const donor = value(node, 'donor_device', 'unet_donor_device')
  const gigabytes = Number(value(node, 'virtual_vram_gb', 'unet_virtual_vram_gb') ?? 0)
  const found = { model: file.slice(0, 500), part, virtual_bytes: Math.round(gigabytes * 2 ** 30) }
  if (compute) found.compute = compute
  if (donor) found.donor = donor
  return found
}

class NodePlan {
  /** `strings`: the node's widgets for allocation strings; the first one is what the sliders write. */
  constructor(node, strings) {
    this.node = node
    this.strings = strings
    this.string = strings[0]
    this.steer = null
    this.faults = new Map() // widget -> what is wrong with its string
    this.wrong = el('div', { class: 'dt-wrong', role: 'alert' })
    this.head = el('button', { type: 'button', class: 'dt-button dt-node-head', 'aria-expanded': 'false', onclick: () => this.toggle() }, t('steer'))
    this.place = el('div', { class: 'dt-node-place', hidden: true })
    this.element = el('div', { class: 'dt-panel dt-node' }, this.head, this.wrong, this.place)
    for (const string of strings) this.follow(string)
    this.widget = node.addDOMWidget(WIDGET, 'distorch', this.element, { serialize: false, hideOnZoom: true, getMinHeight: () => this.height(), getMaxHeight: () => this.height() })
    this.widget.serialize = false
  }

  follow(string) {
    const before = string.callback
    string.callback = (...args) => {
      before?.apply(string, args)
      this.check(string, String(string.value ?? ''))
    }
    dress(string, async (text, tell) => tell(await this.check(string, text)))
  }

  height() {
    return this.place.hidden ? CLOSED + WRONG * this.faults.size : OPEN
  }

  /** A string was edited in the node: it is checked at once, and the sliders follow. Returns whether it is wrong. */
  async check(string, text) {
    this.checked = text
    if (string === this.string && this.steer && !this.place.hidden && this.steer.text !== text) this.steer.begin(text)
    const answer = text.trim() ? await asking.ask('/distorch/parse', { text }) : { ok: true }
    if (text !== this.checked) return !answer.ok
    if (answer.ok) this.faults.delete(string)
    else this.faults.set(string, answer)
    const named = this.strings.length > 1
    const shown = [...this.faults].flatMap(([widget, fault]) => [named ? el('p', {}, t('string.wrong', { widget: widget.label ?? widget.name })) : null, ...wrongString(fault)])
    update(this.wrong, ...shown)
    this.fit()
    return !answer.ok
  }

  toggle() {
    const open = this.place.hidden
    const question = about(this.node)
    this.place.hidden = !open
    this.head.setAttribute('aria-expanded', String(open))
    if (open && !question) update(this.place, el('p', { class: 'dt-note' }, t('steer.no_file')))
    else if (open && !this.steer) {
      this.steer = new Steer(asking, { name: this.node.title, about: () => about(this.node) ?? question, write: (text) => graph.put(this.node, text) })
      this.place.replaceChildren(this.steer.element)
    }
    if (open) this.steer?.begin(String(this.string.value ?? ''))
    this.fit()
  }

  fit() {
    this.node.setSize?.([Math.max(this.node.size[0], this.place.hidden && !this.faults.size ? 0 : 380), this.node.computeSize()[1]])
    this.node.setDirtyCanvas?.(true, true)
  }
}

/** Tooltips of our widgets, and the descriptions, in the page's language. */
function translate(nodeData) {
  const family = nodeData.search_aliases?.find?.((alias) => alias.startsWith('distorch '))?.split(' ')[1]
  if (family && hasText(`family.${family}`)) nodeData.description = t(`family.${family}`)
  for (const inputs of [nodeData.input?.required, nodeData.input?.optional]) {
    for (const [name, spec] of Object.entries(inputs ?? {})) {
      const key = `widget.${name.replace(/^(unet|clip|vae)_(?=.*(device|vram|allocations))/, '')}`
      if (spec[1]?.tooltip && hasText(key)) spec[1].tooltip = t(key)
    }
  }
}

app.registerExtension({
  name: 'DisTorch.NodePlan',
  beforeRegisterNodeDef(_nodeType, nodeData) {
    if (isOurs(nodeData)) translate(nodeData)
  },
  nodeCreated(node) {
    if (!node.addDOMWidget || !isOurs(node.constructor.nodeData)) return
    const strings = graph.stringWidgets(node)
    if (strings.length) node.distorchPlan = new NodePlan(node, strings)
  }
})
