// SPDX-License-Identifier: Apache-2.0
// The sidebar tab: models with their placements first, then devices, reports and the last prompt.

import { deviceList } from './devices.js'
import { el, scheduled, update } from './dom.js'
import { modelList } from './models.js'
import { reportSection, spoken } from './report.js'
import { runSection } from './runs.js'
import { Steer } from './steer.js'
import { said, t } from './text.js'

export class Panel {
  /** `graph`: the workflow on the canvas (graph.js). */
  constructor(store, graph) {
    this.store = store
    this.graph = graph
    this.folds = new Set() // keys of what is open
    this.steers = new Map() // model id -> Steer
    this.body = el('div', { class: 'dt-body' })
    this.status = el('div', { class: 'dt-hidden', role: 'status', 'aria-live': 'polite' })
    this.element = el('section', { class: 'dt-panel', 'aria-label': t('tab') }, this.status, this.body)
    this.onChange = scheduled(this.element, () => this.render())
  }

  /** Shows the panel in `parent` and keeps it fresh until unmount(). */
  mount(parent) {
    parent.append(this.element)
    this.store.addEventListener('change', this.onChange)
    this.unwatch = this.store.watch('tab')
    this.render()
  }

  unmount() {
    this.store.removeEventListener('change', this.onChange)
    this.unwatch?.()
    this.element.remove()
  }

  /** Remembers what is open. */
  fold(key, open) {
    if (this.folds.has(key) === open) return
    if (open) this.folds.add(key)
    else this.folds.delete(key)
    this.render()
  }

  /** Brings a model's card into view and marks it; for the jump from a node. */
  reveal(node) {
    const model = this.store.models.find((one) => one.node === String(node))
    const card = model && this.element.querySelector(`[data-model="${model.id}"]`)
    if (!card) return false
    card.scrollIntoView({ block: 'center' })
    card.classList.add('dt-found')
    setTimeout(() => card.classList.remove('dt-found'), 2000)
    return true
  }

  /** What steers a model by hand; the same one each time. */
  steer(model) {
    if (!this.steers.has(model.id)) {
      const placement = this.store.placements.find((one) => one.model === model.id)
      const write = (text) => this.graph.write(model.node, text, model.type === 'clip' ? 'text encoder' : 'model')
      const steer = new Steer(this.store, { name: model.name, about: () => ({ id: model.id }), write: model.node ? write : null })
      this.steers.set(model.id, steer)
      steer.begin(placement?.requested ?? '')
    }
    return this.steers.get(model.id)
  }

  buttons() {
    const button = (key, path, body) =>
      el('button', { type: 'button', class: 'dt-button', title: t(`${key}.why`), 'data-key': key, onclick: () => this.store.post(path, body) }, t(key))
    return el(
      'div',
      { class: 'dt-buttons', role: 'toolbar', 'aria-label': t('give_back') },
      button('eject_flagged', '/distorch/eject', {}),
      button('free_models', '/distorch/free', { unload_models: true }),
      button('free_all', '/distorch/free', { unload_models: true, free_memory: true }),
      button('clear_caches', '/distorch/clear_cache', {})
    )
  }

  render() {
    const { error, reports, runs } = this.store
    const live = new Set(this.store.models.map((model) => model.id))
    for (const id of this.steers.keys()) if (!live.has(id)) this.steers.delete(id)
    update(this.status, el('p', {}, said(error) || spoken(reports[0])))
    update(
      this.body,
      this.buttons(),
      error ? el('p', { class: 'dt-report dt-error' }, said(error)) : null,
      reportSection(reports, () => this.store.clearReports()),
      el('h3', {}, t('models')),
      modelList(this),
      el('h3', {}, t('devices')),
      ...deviceList(this),
      runSection(runs, this.graph)
    )
  }
}
