// SPDX-License-Identifier: Apache-2.0
// The state of the memory, as the server last told. It comes by websocket; it is fetched once
// when something begins to show it, and after the page was hidden. Nothing is ever polled.

import { debugLog } from './debug.js'

const HISTORY_SECONDS = 600
const MOST_SAMPLES = 2000
const MOST_RUNS = 10

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
    this.watchers = 0
    this.stale = true
    api.addEventListener('distorch.update', (event) => this.receive(event.detail))
    api.addEventListener('distorch.sample', (event) => this.sample(event.detail))
    api.addEventListener('distorch.run', (event) => this.run(event.detail))
    api.addEventListener('distorch.report', (event) => this.report(event.detail))
    api.addEventListener('reconnected', () => this.wake(true))
    document.addEventListener('visibilitychange', () => this.wake(false))
  }

  /** Begins to keep the state fresh; call the function it returns to end that. */
  watch() {
    this.watchers += 1
    if (this.watchers === 1 || this.stale) this.wake(false)
    let watching = true
    return () => {
      if (watching) this.watchers -= 1
      watching = false
    }
  }

  get awake() {
    return this.watchers > 0 && !document.hidden
  }

  wake(force) {
    if (this.awake && (this.stale || force)) this.refresh()
  }

  receive(state) {
    if (!this.awake) {
      this.stale = true
      return
    }
    this.apply(state)
  }

  apply(state) {
    this.models = state.models ?? this.models
    this.devices = state.devices ?? this.devices
    this.placements = state.placements ?? this.placements
    this.error = ''
    if (!this.sampled) {
      const used = Object.fromEntries(this.devices.map((d) => [d.device, d.total - d.free]))
      this.addSample({ time: Date.now() / 1000, used, peak: {} })
    }
    this.changed()
  }

  addSample(sample) {
    this.samples.push(sample)
    if (this.samples.length > MOST_SAMPLES) this.samples.splice(0, this.samples.length - MOST_SAMPLES)
  }

  sample(sample) {
    this.sampled = true
    if (!this.awake) {
      this.stale = true
      return
    }
    this.addSample(readSample(sample))
    this.changed()
  }

  run(run) {
    this.runs = [run, ...this.runs.filter((other) => other.prompt !== run.prompt)].slice(0, MOST_RUNS)
    if (this.awake) this.changed()
  }

  report(report) {
    this.reports = [report, ...this.reports.filter((r) => r.ticket !== report.ticket)].slice(0, 5)
    this.changed()
  }

  changed() {
    this.dispatchEvent(new Event('change'))
  }

  /** Fetches everything once. */
  async refresh() {
    this.stale = false
    try {
      const [models, devices, placements, history] = await Promise.all([
        this.get('/distorch/models'),
        this.get('/distorch/devices'),
        this.get('/distorch/placements'),
        this.get(`/distorch/history?seconds=${HISTORY_SECONDS}`)
      ])
      this.samples = (history.samples ?? []).map(readSample)
      this.runs = (history.runs ?? []).toReversed().slice(0, MOST_RUNS)
      this.apply({ ...models, ...devices, ...placements })
    } catch (error) {
      this.stale = true
      this.error = `The server did not answer: ${error.message}`
      debugLog('[refresh] Error:', error)
      debugLog('[refresh] Error stack:', error.stack)
      this.changed()
    }
  }

  async get(path) {
    const response = await this.api.fetchApi(path)
    debugLog(`[GET ${path}] Response status: ${response.status} ${response.ok ? 'OK' : 'FAILED'}`)
    if (!response.ok) throw new Error(`${path}: status ${response.status}`)
    const data = await response.json()
    debugLog(`[GET ${path}] API response:`, data)
    return data
  }

  /** Sends a request; the answer, or a report of what went wrong. */
  async post(path, body) {
    const response = await this.api.fetchApi(path, {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify(body)
    })
    const data = await response.json().catch(() => ({}))
    debugLog(`[POST ${path}] Response status: ${response.status}`, data)
    if (!response.ok) {
      this.report({ ticket: -Date.now(), state: 'failed', kind: path, error: data.error ?? `status ${response.status}`, freed: {} })
      return null
    }
    const last = this.reports.find((report) => report.ticket === data.ticket)
    if (data.will && !last) {
      this.report({ ticket: data.ticket, state: 'queued', kind: path, will: data.will, when: data.when, freed: {}, error: '' })
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
