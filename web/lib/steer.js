// SPDX-License-Identifier: Apache-2.0
// Placing by hand: a slider for each device, and what comes of it while it moves. Asks POST /distorch/plan; one question is
// under way at a time, and of those that came meanwhile the last is asked. Nothing is loaded by it.

import { deviceColour } from './colours.js'
import { el, update } from './dom.js'
import { deviceTitle, formatBytes } from './format.js'
import { outlook } from './outlook.js'
import { t } from './text.js'
import { wrongString } from './wrong.js'

const GB = 2 ** 30
const MB = 2 ** 20
const STEP = 16 * MB

let count = 0

export class Steer {
  /**
   * `store`: with post() and ask(). `subject`: {name, about() -> the question's fields beside text, write(text) or null}.
   */
  constructor(store, subject) {
    this.store = store
    this.subject = subject
    this.key = `steer-${(count += 1)}`
    this.text = ''
    this.answer = null
    this.error = null
    this.asking = false
    this.again = false
    this.amounts = new Map() // device -> bytes, as the sliders stand
    this.input = el('input', { type: 'text', class: 'dt-string', spellcheck: 'false', autocomplete: 'off', 'data-key': `${this.key}-text`, 'aria-label': t('string'), oninput: () => this.typed() })
    this.input.placeholder = 'cuda:0,8gb;cpu,*'
    this.error_ = el('div', { class: 'dt-wrong', role: 'alert' })
    this.sliders = el('div', { class: 'dt-sliders', role: 'group', 'aria-label': t('steer.sliders') })
    this.shown = el('div', { class: 'dt-outlook' })
    this.buttons = el('div', { class: 'dt-actions' })
    this.element = el('div', { class: 'dt-steer' }, this.input, this.error_, this.sliders, this.shown, this.buttons)
  }

  /** Starts from a string; "" asks what the widgets beside it say. */
  begin(text) {
    this.input.value = this.text = text
    return this.ask()
  }

  typed() {
    this.text = this.input.value
    this.amounts.clear()
    this.ask()
  }

  async ask() {
    if (this.asking) {
      this.again = true
      return
    }
    this.asking = true
    do {
      this.again = false
      const answer = await this.store.ask('/distorch/plan', { ...this.subject.about(), text: this.text })
      this.error = answer.ok ? null : answer
      if (answer.ok) this.answer = answer
    } while (this.again)
    this.asking = false
    this.render()
    this.onAnswer?.(this)
  }

  render() {
    const wrong = this.error
    update(this.error_, ...wrongString(wrong))
    this.input.setAttribute('aria-invalid', String(Boolean(wrong)))
    if (!this.answer) return
    update(this.sliders, ...this.devices().map((device) => this.slider(device)))
    update(this.shown, wrong ? null : outlook(this.key, this.subject.name, this.answer))
    update(this.buttons, ...this.actions())
  }

  /** The accelerators, the compute device first; where there is one only, it alone. The host takes the rest. */
  devices() {
    const found = this.answer.machine.map((one) => one.device).filter((device) => device !== 'cpu')
    return found.sort((a, b) => (b === this.answer.compute) - (a === this.answer.compute))
  }

  row(device) {
    return this.answer.devices.find((one) => one.device === device)
  }

  amount(device) {
    const row = this.row(device)
    return this.amounts.get(device) ?? (row ? row.weights + row.slots : 0)
  }

  slider(device) {
    const there = this.answer.machine.find((one) => one.device === device)
    const most = Math.min(there?.total ?? Infinity, Math.ceil((this.answer.model_bytes * 1.1) / STEP) * STEP)
    const value = Math.min(most, this.amount(device))
    const id = `${this.key}-${device.replace(':', '-')}`
    const input = el('input', {
      type: 'range',
      id,
      min: 0,
      max: most,
      step: STEP,
      'data-key': id,
      'data-device': device,
      style: `color:${deviceColour(device)}`,
      'aria-valuetext': formatBytes(value),
      oninput: (event) => this.moved(device, Number(event.target.value))
    })
    input.value = value
    return el(
      'div',
      { class: 'dt-slider', 'data-key': `${id}-row` },
      el('label', { for: id }, deviceTitle(device), device === this.answer.compute ? el('span', { class: 'dt-tag' }, t('steer.computes')) : null),
      el('span', { class: 'dt-amount' }, formatBytes(value)),
      input
    )
  }

  moved(device, bytes) {
    for (const one of this.devices()) if (!this.amounts.has(one)) this.amounts.set(one, this.amount(one))
    this.amounts.set(device, bytes)
    this.text = this.compose()
    this.input.value = this.text
    this.ask()
  }

  /** The string that the sliders say. A mode that stands in the string stays. */
  compose() {
    const { compute } = this.answer
    const used = this.devices().filter((device) => device === compute || this.amounts.get(device) > 0)
    const mode = (device) => this.answer.spec.match(new RegExp(`${device},[^;#]*(,mode=\\w+)`))?.[1] ?? ''
    const parts = used.map((device) => `${device},${size(this.amounts.get(device))}${device === compute ? '' : mode(device)}`)
    if (compute === 'cpu') return 'cpu,*'
    return [...parts, `cpu,*${mode('cpu')}`].join(';')
  }

  actions() {
    const button = (key, onclick, disabled) => el('button', { type: 'button', class: 'dt-button', disabled, title: t(`${key}.why`), 'data-key': `${this.key}-${key}`, onclick }, t(key))
    return [
      this.subject.write ? button('steer.write', () => this.subject.write(this.text), Boolean(this.error)) : null,
      button('steer.copy_string', () => this.copy(), Boolean(this.error)),
      button('steer.links', () => this.store.post('/distorch/links', {}), false)
    ]
  }

  async copy() {
    await navigator.clipboard.writeText(this.answer.resolved)
    this.input.classList.add('dt-copied')
    setTimeout(() => this.input.classList.remove('dt-copied'), 600)
  }
}

/** "2.5gb" or "640mb", as a string has it. */
export function size(bytes) {
  return bytes >= GB ? `${Number((bytes / GB).toFixed(3))}gb` : `${Math.round(bytes / MB)}mb`
}
