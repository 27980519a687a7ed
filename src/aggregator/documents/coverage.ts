/**
 * What the figures of a document cover, and why something is missing in them. Pure.
 */
import type { Coverage } from '../../model/fleet.ts'
import type { HostReading } from '../fleet-store.ts'
import { coveredMs, type Fleet, type Moment, SILENT_MS } from './fleet.ts'

/** Names of hosts in one note; the rest is counted. */
const NAMES = 3

/** A record that is stored later than this after its end was delayed by more than the usual way. */
const LATE_MS = 15_000

/**
 * The coverage of a document.
 * @param counted whether anything was counted in the span; undefined when the document has no figures
 */
export function coverageOf(moment: Moment, fleet: Fleet, counted?: boolean): Coverage {
  const { span, live, hosts } = moment
  const reporting = hosts.filter((host) => coversEnd(host, moment)).length
  return {
    at: isoTime(span.toMs),
    windowMs: coveredMs(moment),
    live,
    hosts: hosts.length,
    reporting,
    notes: [...notesOnHosts(moment, fleet), ...notesOnFigures(moment, reporting, counted)],
  }
}

/** Whether a host has reported up to the end of the span, and not only after it. */
function coversEnd(host: HostReading, { atMs, span }: Moment): boolean {
  return host.firstReportAtMs <= span.toMs && atMs - host.lastReportAtMs <= SILENT_MS
}

function notesOnHosts({ hosts, atMs, span }: Moment, fleet: Fleet): string[] {
  if (hosts.length === 0)
    return [
      'No host has ever reported: it needs the service hostmesh-aggregator as upstream, and an intention hostmesh -> hostmesh-aggregator',
    ]
  const silent = hosts.filter((host) => fleet.isSilent(host))
  const late = hosts.filter((host) => !fleet.isSilent(host) && host.lateMs > LATE_MS)
  const conflicting = hosts.filter((host) => host.isConflicting)
  const recent = hosts.filter((host) => host.firstReportAtMs > span.fromMs)
  const notes: string[] = []
  if (silent.length > 0) {
    const since = silent.map(
      ({ name, lastReportAtMs }) => `${name} since ${isoTime(lastReportAtMs)}`,
    )
    notes.push(`${countOf(silent.length, 'host is', 'hosts are')} silent: ${listed(since)}`)
  }
  if (late.length > 0) {
    const by = late.map(({ name, lateMs }) => `${name} ${Math.round(lateMs / 1_000)} s`)
    notes.push(
      `${countOf(late.length, 'host reports', 'hosts report')} late, so the newest figures may be incomplete: ${listed(by)}`,
    )
  }
  if (conflicting.length > 0)
    notes.push(
      `Two hosts report with the same name, and only the first counts: ${listed(conflicting.map(({ name }) => name))}`,
    )
  if (recent.length > 0 && recent.length < hosts.length && atMs > span.fromMs)
    notes.push(
      `${countOf(recent.length, 'host has', 'hosts have')} reported for the first time in this span: ${listed(recent.map(({ name }) => name))}`,
    )
  return notes
}

function notesOnFigures(
  { span, oldestMs, hosts }: Moment,
  reporting: number,
  counted: boolean | undefined,
): string[] {
  const notes: string[] = []
  const isStored = oldestMs !== undefined && oldestMs < span.toMs
  if (counted !== undefined && hosts.length > 0 && !isStored)
    notes.push(
      oldestMs === undefined
        ? 'No figures are stored yet'
        : `The span is before the oldest figures that are stored, of ${isoTime(oldestMs)}`,
    )
  else if (isStored && oldestMs > span.fromMs && counted !== undefined)
    notes.push(`There are no figures before ${isoTime(oldestMs)}`)
  if (counted === false && isStored && reporting > 0)
    notes.push('No connection was counted in this span')
  return notes
}

/** The last time that a date can be. */
const MAX_TIME_MS = 8.64e15

/** RFC 3339, UTC. Total: a host may report any number. */
export function isoTime(ms: number): string {
  const bounded = Math.min(Math.max(ms, 0), MAX_TIME_MS)
  return new Date(Number.isNaN(bounded) ? 0 : bounded).toISOString()
}

function countOf(count: number, one: string, many: string): string {
  return `${count} ${count === 1 ? one : many}`
}

function listed(words: readonly string[]): string {
  const shown = words.slice(0, NAMES).join(', ')
  return words.length > NAMES ? `${shown} and ${words.length - NAMES} more` : shown
}
