/**
 * `hostmesh status`: whether this host has problems, and which. Exit code 0 only when nothing is wrong.
 */
import { setTimeout as delay } from 'node:timers/promises'
import { type Command, InvalidArgumentError, Option } from 'commander'
import { parseDuration } from '../lib/duration.ts'
import { MeshError } from '../lib/errors.ts'
import type { ProblemEntry, ReportStatus, StatusDocument, WorkerStatus } from '../model/admin.ts'
import { fetchDocument } from './admin-client.ts'
import { type AdminOptions, hasKey } from './admin-command.ts'
import { exitCodes } from './failure.ts'
import { readingCommand, show } from './reading-command.ts'
import { formatAge, formatSince } from './render/format.ts'
import { type Cell, paint, renderTable, type TableStyle, type Tone } from './render/table.ts'

/** Servers with a leader are asked every 7 s; an older contact is shown. Milliseconds. */
const LEADER_MS = 12_000

/** Interval of the checks of `--wait`, milliseconds. */
const POLL_MS = 250

/** Interval at which `--wait` reports what it waits for, milliseconds. */
const REPORT_MS = 5_000

interface StatusOptions extends AdminOptions {
  readonly wait?: number
}

/** The `status` command. */
export function statusCommand(): Command {
  return readingCommand('status', 'Show whether this host is well, and what is wrong if not')
    .addOption(
      new Option('--wait <duration>', 'wait until the host is well, at most this long (60s)')
        .argParser(toDuration)
        .conflicts('watch'),
    )
    .action(async (_options: unknown, command: Command) => {
      const options = command.optsWithGlobals<StatusOptions>()
      await show(options, async () => {
        const status = await awaitStatus(options.addr, options.wait ?? 0)
        return {
          document: status,
          text: (style) => renderStatus(status, Date.now(), style),
          exitCode: reasons(status).length > 0 ? exitCodes.failed : exitCodes.ok,
        }
      })
    })
}

/** The status when nothing is wrong, or the last one at the timeout. */
async function awaitStatus(address: string, waitMs: number): Promise<StatusDocument> {
  const endMs = performance.now() + waitMs
  let reportAtMs = performance.now() + REPORT_MS
  for (;;) {
    const leftMs = endMs - performance.now()
    const outcome = await tryStatus(address)
    const problems = outcome instanceof MeshError ? [outcome.message] : reasons(outcome)
    if (problems.length === 0 || leftMs <= 0) {
      if (outcome instanceof MeshError) throw outcome
      return outcome
    }
    if (performance.now() >= reportAtMs) {
      console.error(`hostmesh: still waiting, ${formatAge(leftMs)} left: ${problems.join('; ')}`)
      reportAtMs += REPORT_MS
    }
    await delay(Math.min(POLL_MS, Math.max(0, leftMs)))
  }
}

/** What is wrong with the host or missing; empty when it is ready without problems. */
function reasons({ ready, problems, awaited }: StatusDocument): readonly string[] {
  if (ready || problems.length > 0) return problems.map(({ message }) => message)
  return [`Not ready: waiting for ${awaited.join(', ')}`]
}

/** Returns the error of an unreachable daemon, because `--wait` continues then; throws every other error. */
async function tryStatus(address: string): Promise<StatusDocument | MeshError> {
  try {
    return await fetchDocument(address, '/v1/status', isStatusDocument)
  } catch (error) {
    if (error instanceof MeshError && error.code === 'HM_ADMIN_UNREACHABLE') return error
    throw error
  }
}

function isStatusDocument(value: unknown): value is StatusDocument {
  return (
    hasKey(value, 'workers', Array.isArray) &&
    hasKey(
      value,
      'problems',
      (list) =>
        Array.isArray(list) &&
        list.every((each) => hasKey(each, 'message', (text) => typeof text === 'string')),
    ) &&
    ['catalog', 'certificates', 'capture', 'state'].every((part) =>
      hasKey(value, part, (field) => hasKey(field, 'problems', Array.isArray)),
    )
  )
}

function reportText({ aggregator, waiting, lastSuccessAt }: ReportStatus, nowMs: number): string {
  const last =
    lastSuccessAt === null ? 'none taken yet' : `${formatSince(lastSuccessAt, nowMs)} ago`
  return `to ${aggregator}, ${last}${waiting > 1 ? `, ${waiting} records wait` : ''}`
}

/** The status as text. */
function renderStatus(status: StatusDocument, nowMs: number, style: TableStyle): string {
  const { problems } = status
  const uptime = formatSince(status.startedAt, nowMs)
  const { catalog, certificates, capture, dns } = status
  const age =
    catalog.ageMs === null ? 'no answer yet' : `last answer ${formatAge(catalog.ageMs)} ago`
  const { lastContactMs } = catalog
  const leader =
    lastContactMs === null || lastContactMs < LEADER_MS
      ? ''
      : `, its servers heard from a leader ${formatAge(lastContactMs)} ago`
  const facts = renderTable(
    ['HOST', status.node],
    [
      ['State', stateCell(status)],
      ['Daemon', `hostmesh ${status.version}, process ${status.pid}, up ${uptime}`],
      ['Datacenter', status.datacenter],
      ['Catalog', `${catalog.description}, ${age}${leader}`],
      ['Certificates', certificates.description],
      ['Capture', captureText(capture.mode, capture.inSync)],
      ...(capture.details ?? []).map(([name, value]): [string, string] => [`  ${name}`, value]),
      ['DNS', dns.address ?? 'off'],
      ...(status.reports ?? []).map((report): [string, string] => [
        'Reports',
        reportText(report, nowMs),
      ]),
      ...stateRows(status.state),
      ['Snapshot', status.snapshotVersion === 0 ? 'none yet' : `version ${status.snapshotVersion}`],
    ],
    style,
  )
  const workers = renderTable(
    ['WORKER', 'STATE', 'CONNECTIONS', 'RESTARTS'],
    status.workers.map((worker) => [
      String(worker.id),
      { text: worker.state, tone: workerTone(worker.state) },
      String(worker.connections),
      String(worker.restarts),
    ]),
    style,
  )
  const wrong = problems.flatMap((problem) => problemLines(problem, nowMs))
  const known = (status.warnings ?? []).map((text) => `  ${paint({ text, tone: 'warning' })}`)
  return [
    facts,
    '',
    workers,
    ...(wrong.length === 0 ? [] : ['', 'Problems:', ...wrong]),
    ...(known.length === 0 ? [] : ['', 'Warnings:', ...known]),
  ].join('\n')
}

function stateCell({ ready, serving, problems }: StatusDocument): Cell {
  if (problems.length === 0 && ready) return { text: 'well', tone: 'good' }
  if (ready) return { text: 'not well: it does its work, with problems', tone: 'warning' }
  const what = serving ? 'it serves, but not all of its work is done' : 'it takes no traffic'
  return { text: `not well and not ready: ${what}`, tone: 'bad' }
}

function problemLines(
  { code, message, hint, blocks, since }: ProblemEntry,
  nowMs: number,
): string[] {
  const tone = blocks ? 'bad' : 'warning'
  // A configuration error lists several problems, one per line.
  const [first = '', ...more] = message.split('\n')
  return [
    `  ${paint({ text: first, tone })}`,
    ...more.map((line) => `    ${paint({ text: line.trim(), tone })}`),
    `    Next: ${hint}`,
    `    ${code}, for ${formatSince(since, nowMs)}`,
  ]
}

/** What is live and what is only remembered; empty when everything comes from files. */
function stateRows({ parts }: StatusDocument['state']): [string, string][] {
  if (parts.length === 0) return []
  const texts = parts.map(({ part, state, remembered, ageMs }) => {
    const age = ageMs === null || state === 'live' ? '' : ` (${formatAge(ageMs)})`
    return `${part} ${remembered > 0 && state === 'stale' ? 'remembered, stale' : state}${age}`
  })
  return [['Freshness', texts.join(', ')]]
}

function captureText(mode: 'off' | 'on', inSync: boolean | null): string {
  if (mode === 'off') return 'off'
  return inSync === true ? 'on, rules in place' : 'on, rules not in place'
}

function workerTone(state: WorkerStatus['state']): Tone {
  if (state === 'running') return 'good'
  return state === 'stopped' ? 'bad' : 'warning'
}

function toDuration(text: string): number {
  const ms = parseDuration(text)
  if (ms === undefined) throw new InvalidArgumentError('It must be a duration such as 30s or 2m.')
  return ms
}
