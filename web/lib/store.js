// SPDX-License-Identifier: Apache-2.0
// The state of the memory, as the server last told. It comes by websocket; it is fetched once
// when something begins to show it, and after the page was hidden. Nothing is ever polled. The server is told what the
// page shows (nothing, the badges, the tab), and sends no more than that needs.

import { debugLog } from './debug.js'
import { said, t } from './text.js'

const HISTORY_SECONDS = 600
const MOST_SAMPLES = 2000
const MOST_RUNS = 10
const LEVELS = ['nothing', 'badges', 'tab']
const CLOCK_SECONDS = 10 // clocks may differ by that much unnoticed

export class Store extends EventTarget {
  /** `api`: ComfyUI's, with fetchApi() and addEventListener(). */
  constructor(api) {
    super()
    this.api = api
    this.models = []
    this.devices = []
    this.placements = []
    this.samples = [] // {time, used: {device: bytes}, peak: {device: bytes}}, oldest first
    this.sampled = false // whether the server sends samples by itself
    this.runs = [] // prompts with their nodes, last first
    this.reports = [] // last first
    this.error = ''
    this.watchers = [] // a level each
    this.asked = LEVELS[0] // the level that the server knows
    this.stale = true
    this.told = {} // what came by websocket since a refresh began
    this.ahead = 0 // seconds by which this machine's clock is before the server's
    api.addEventListener('distorch.update', (event) => this.receive(event.detail))
    api.addEventListener('distorch.sample', (event) => this.sample(event.detail))
    api.addEventListener('distorch.run', (event) => this.run(event.detail))
    api.addEventListener('distorch.report', (event) => this.report(event.detail))
    api.addEventListener('reconnected', () => {
      this.asked = LEVELS[0]
      this.wake(true)
    })
    api.addEventListener('status', () => this.tell()) // with the first one, the page has its id
    document.addEventListener('visibilitychange', () => this.wake(false))
  }

  /** Begins to keep fresh what "badges" or the "tab" show; call the function it returns to end that. */
  watch(level) {
    const one = { level }
    this.watchers.push(one)
    this.wake(false)
    return () => {
      this.watchers = this.watchers.filter((other) => other !== one)
      this.tell()
    }
  }

  /** The most that is shown now. */
  get level() {
    const shown = document.hidden ? [] : this.watchers.map((one) => LEVELS.indexOf(one.level))
    return LEVELS[Math.max(0, ...shown)]
  }

  get awake() {
    return this.level !== LEVELS[0]
  }

  wake(force) {
    this.tell()
    if (this.awake && (this.stale || force)) this.refresh()
  }

  /** Says to the server what is shown, where it does not know. */
  async tell() {
    const { level } = this
    if (level === this.asked || !this.api.clientId) return
    this.asked = level
    if (level !== 'tab') this.stale = true // samples and runs are not told of any more
    const answer = await this.ask('/distorch/watch', { client: this.api.clientId, what: level })
    if (answer.ok === false) debugLog('[watch] Error:', answer.message)
  }

  receive(state) {
    if (!this.awake) {
      this.stale = true
      return
    }
    this.told = { ...this.told, ...state }
    this.apply(state)
    if (this.placements.some((placement) => !placement.blocks)) this.wake(true) // told of before this page asked
  }

  /** The server's time, in seconds. */
  get now() {
    return Date.now() / 1000 - this.ahead
  }

  apply(state, known = this.placements) {
    this.models = state.models ?? this.models
    this.devices = state.devices ?? this.devices
    if (state.placements) {
      // Blocks come only when they have changed.
      const blocks = new Map(known.map((placement) => [placement.key, placement.blocks]))
      this.placements = state.placements.map((placement) => ({ ...placement, blocks: placement.blocks ?? blocks.get(placement.key) }))
    }
    this.error = ''
    if (!this.sampled) {
      const used = Object.fromEntries(this.devices.map((d) => [d.device, d.total - d.free]))
      this.addSample({ time: this.now, used, peak: {} })
    }
    this.changed()
  }

  addSample(sample) {
    this.samples.push(sample)
    if (this.samples.length > MOST_SAMPLES) this.samples.splice(0, this.samples.length - MOST_SAMPLES)
  }

  sample(sample) {
    this.sampled = true
    if (this.level !== 'tab') {
      this.stale = true
      return
    }
    this.addSample(readSample(sample))
    this.changed()
  }

  run(run) {
    if (!this.runs.some((other) => other.prompt === run.prompt)) this.forgetReports(run)
    this.runs = [run, ...this.runs.filter((other) => other.prompt !== run.prompt)].slice(0, MOST_RUNS)
    if (this.awake) this.changed()
  }

  /** Reports are of what was asked for before a run: they go with it. */
  forgetReports(run) {
    this.reports = this.reports.filter((report) => !isOver(report) || report.asked > run.started)
  }

  report(report) {
    this.reports = [report, ...this.reports.filter((r) => r.ticket !== report.ticket)].slice(0, 5)
    this.changed()
  }

  clearReports() {
    this.reports = this.reports.filter((report) => !isOver(report))
    this.changed()
  }

  changed() {
    this.dispatchEvent(new Event('change'))
  }

  /** Fetches everything once. */
  async refresh() {
    this.stale = false
    this.told = {}
    try {
      const [models, devices, placements, history] = await Promise.all([
        this.get('/distorch/models'),
        this.get('/distorch/devices'),
        this.get('/distorch/placements'),
        this.get(`/distorch/history?seconds=${HISTORY_SECONDS}`)
      ])
      this.takeHistory(history)
      // What came by websocket meanwhile is newer than these answers.
      this.apply({ ...models, ...devices, ...placements, ...this.told }, placements.placements)
    } catch (error) {
      this.stale = true
      this.error = t('no_answer', { error: said(error.message) })
      debugLog('[refresh] Error:', error)
      debugLog('[refresh] Error stack:', error.stack)
      this.changed()
    }
  }

  takeHistory(history) {
    const samples = (history.samples ?? []).map(readSample)
    const last = samples.at(-1)?.time
    if (last !== undefined) {
      const ahead = Date.now() / 1000 - last // a sample is taken every second
      this.ahead = Math.abs(ahead) > CLOCK_SECONDS ? ahead : 0
      samples.push(...this.samples.filter((sample) => sample.time > last))
    }
    this.samples = samples
    const ids = new Set((history.runs ?? []).map((run) => run.prompt))
    const runs = (history.runs ?? []).toReversed()
    if (runs.length) this.forgetReports(runs[0])
    this.runs = [...this.runs.filter((run) => !ids.has(run.prompt) && run.started > (runs[0]?.started ?? 0)), ...runs].slice(0, MOST_RUNS)
  }

  async get(path) {
    const response = await this.api.fetchApi(path)
    debugLog(`[GET ${path}] Response status: ${response.status} ${response.ok ? 'OK' : 'FAILED'}`)
    if (!response.ok) throw new Error(`${path}: status ${response.status}`)
    const data = await response.json()
    debugLog(`[GET ${path}] API response:`, data)
    return data
  }

  namesOf(ids = []) {
    return this.models.filter((model) => ids.includes(model.id)).map((model) => model.name)
  }

  /** Asks for what changes nothing; the answer, or {ok: false, message}. */
  async ask(path, body) {
    try {
      const response = await this.api.fetchApi(path, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) })
      const data = await response.json()
      return response.ok ? data : { ok: false, message: data.error }
    } catch (error) {
      return { ok: false, message: t('no_answer', { error: said(error.message) }) }
    }
  }

  /** Sends a request; the answer, or null and a report of what went wrong. */
  async post(path, body) {
    const failed = (error) => {
      this.report({ ticket: -Date.now(), asked: this.now, state: 'failed', kind: path.split('/').at(-1), names: this.namesOf(body.ids), error, freed: {} })
      return null
    }
    let response
    try {
      response = await this.api.fetchApi(path, {
        method: 'POST',
        headers: { 'Content-Type': 'application/json' },
        body: JSON.stringify(body)
      })
    } catch (error) {
      debugLog(`[POST ${path}] Error:`, error)
      debugLog(`[POST ${path}] Error stack:`, error.stack)
      return failed(t('no_answer', { error: said(error.message) }))
    }
    const data = await response.json().catch(() => ({}))
    debugLog(`[POST ${path}] Response status: ${response.status}`, data)
    if (!response.ok) return failed(data.error ?? `status ${response.status}`)
    // Its report may have come before this answer; ticket 0 is given to all that has nothing to do.
    const reported = data.ticket && this.reports.some((report) => report.ticket === data.ticket)
    if (data.will && !reported) {
      this.report({ ...data, asked: data.asked ?? this.now, kind: data.kind ?? path.split('/').at(-1), names: this.namesOf(data.models), state: 'queued', freed: {}, error: '' })
    }
    return data
  }
}

function readSample(sample) {
  const devices = Object.entries(sample.devices ?? {})
  return {
    time: sample.time,
    used: Object.fromEntries(devices.map(([device, value]) => [device, value.used])),
    peak: Object.fromEntries(devices.map(([device, value]) => [device, value.peak]))
  }
}

function isOver(report) {
  return report.state === 'done' || report.state === 'failed' || !report.ticket
}
