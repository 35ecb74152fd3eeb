// SPDX-License-Identifier: Apache-2.0
// What became of what was asked for: each device before and after, what stayed and why. Goes with the next run.

import { el } from './dom.js'
import { deviceTitle, formatBytes, formatClock } from './format.js'
import { said, t } from './text.js'

const MOST_KEPT = 3
const NOTICED = 2 ** 20
const NOTICED_RAM = 32 * 2 ** 20 // others take and give of it as well

/** The section; null without reports. */
export function reportSection(reports, clear) {
  if (!reports.length) return null
  return el(
    'div',
    { class: 'dt-reports' },
    el('div', { class: 'dt-line' }, el('h3', {}, t('reports')), el('button', { type: 'button', class: 'dt-link dt-small', 'data-key': 'clear-reports', onclick: clear }, t('reports.clear'))),
    ...reports.map((report) => one(report))
  )
}

/** The newest in a sentence, for a screen reader. */
export function spoken(report) {
  return report ? headline(report) : ''
}

function one(report) {
  const failed = report.state === 'failed'
  return el(
    'div',
    { class: failed ? 'dt-report dt-error' : 'dt-report', 'data-key': `report-${report.ticket}`, 'data-freed': report.state === 'done' ? report.freed_total : null, 'data-state': report.state },
    el('div', { class: 'dt-line' }, el('span', {}, headline(report)), el('time', { class: 'dt-small' }, report.asked ? formatClock(report.asked) : '')),
    changes(report),
    ...kept(report.details?.kept ?? []),
    ...links(report.details?.links)
  )
}

function headline(report) {
  const names = (report.details?.names ?? report.names ?? []).join(', ')
  const what = report.kind === 'eject' && !names ? t('eject_flagged') : t(`job.${report.kind}`, { names })
  if (report.state === 'failed') return t('report.failed', { what, error: said(report.error) })
  if (report.state !== 'done') return report.ticket ? t(report.when === 'now' ? 'report.queued' : 'report.queued_run', { what }) : t('report.nothing')
  const freed = Object.entries(report.freed).map(([device, bytes]) => t('strip.part', { size: formatBytes(bytes), device: deviceTitle(device) }))
  if (freed.length) return t('report.freed', { what, freed: freed.join(', ') })
  const ram = (report.before?.cpu ?? 0) - (report.after?.cpu ?? 0)
  if (report.kind === 'links') return t('report.done', { what })
  return ram >= NOTICED_RAM ? t('report.freed', { what, freed: t('strip.part', { size: formatBytes(ram), device: t('ram') }) }) : t('report.none', { what })
}

/** A line for each device whose memory changed: before → after; the others by name. */
function changes(report) {
  const { before, after } = report
  if (report.state !== 'done' || report.kind === 'links' || !before || !after) return null
  const devices = Object.keys(before)
  const moved = devices.filter((d) => d === 'cpu' || Math.abs(before[d] - (after[d] ?? before[d])) >= NOTICED)
  const rest = devices.filter((d) => !moved.includes(d)).map(deviceTitle)
  return el(
    'ul',
    { class: 'dt-changes' },
    ...moved.map((d) => el('li', { 'data-device': d }, el('span', {}, deviceTitle(d)), el('span', { class: 'dt-number' }, `${formatBytes(before[d])} → ${formatBytes(after[d] ?? before[d])}`))),
    rest.length ? el('li', {}, t('report.unchanged', { devices: rest.join(', ') })) : null
  )
}

/** Models that a "free" left where they are: what the user must do to have them freed. */
function kept(models) {
  const lines = models.slice(0, MOST_KEPT).map((model) => el('p', { class: 'dt-kept dt-small' }, t('report.stays', { name: model.name })))
  if (models.length > MOST_KEPT) lines.push(el('p', { class: 'dt-kept dt-small' }, t('more', { count: models.length - MOST_KEPT })))
  return lines
}

function links(found) {
  if (!found) return []
  if (!found.length) return [el('p', { class: 'dt-small' }, t('links.none'))]
  return [
    el(
      'ul',
      { class: 'dt-changes' },
      ...found.map((link) => el('li', {}, el('span', {}, `${deviceTitle(link.source)} → ${deviceTitle(link.target)}`), el('span', { class: 'dt-number' }, link.gbps ? `${link.gbps.toFixed(1)} GB/s` : said(link.error || '') || t('unknown'))))
    )
  ]
}
