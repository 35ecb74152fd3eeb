// SPDX-License-Identifier: Apache-2.0
// What became of the last thing that was asked for: what it freed, and what it left and why.

import { el } from './dom.js'
import { deviceTitle, formatBytes } from './format.js'

const MOST_KEPT = 3

/** Paragraphs for the tab's status; none without a report. */
export function lastReport(report) {
  if (!report) return []
  if (report.state === 'failed') return [el('p', { class: 'dt-error' }, `Not done: ${report.error}`)]
  if (report.state === 'queued') {
    const when = report.when === 'now' ? '' : `, ${report.when}`
    return [el('p', {}, report.ticket ? `Will ${report.will}${when}` : `${report.will}.`)]
  }
  const freed = Object.entries(report.freed).map(([device, bytes]) => `${formatBytes(bytes)} on ${deviceTitle(device)}`)
  const text = freed.length ? `Freed ${freed.join(', ')}` : 'Done: there was nothing to free'
  return [el('p', { 'data-freed': report.freed_total }, text), ...kept(report.details?.kept ?? [])]
}

/** Models that a "free" left where they are: what the user must do to have them freed. */
function kept(models) {
  const lines = models.slice(0, MOST_KEPT).map((model) => el('p', { class: 'dt-kept' }, `${model.name} stays: ${model.why}. To let go of it, ${model.let_go}.`))
  if (models.length > MOST_KEPT) lines.push(el('p', { class: 'dt-kept' }, `${models.length - MOST_KEPT} more stay.`))
  return lines
}
