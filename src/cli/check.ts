/**
 * `hostmesh check`: one line for each thing that must be right on this host, with the next step. With `--pre` before
 * a daemon runs, else by what the daemon says.
 */
import { type Command, Option } from 'commander'
import { type Check, fail, ok, warn } from '../daemon/preflight/check.ts'
import { preflight } from '../daemon/preflight/preflight.ts'
import type { CertsDocument, LeafEntry, ReportStatus, StatusDocument } from '../model/admin.ts'
import { daemonPid } from './admin-client.ts'
import { type AdminOptions, fetchList } from './admin-command.ts'
import type { Answer } from './answer.ts'
import { exitCodes } from './failure.ts'
import { readingCommand, show } from './reading-command.ts'
import { formatAge, formatSince } from './render/format.ts'
import { type Column, renderList, type Tone } from './render/table.ts'

/** A certificate with less than this share of its lifetime left should have been renewed long before. */
const LATE_SHARE = 0.25

/** Reports are sent every second. */
const REPORTS_LATE_MS = 30_000

interface Options extends AdminOptions {
  readonly pre?: true
  readonly config: string
}

/** The `check` command. */
export function checkCommand(): Command {
  return readingCommand(
    'check',
    'Check this host, one line each with the next step; exit code 1 if something fails',
  )
    .option('--pre', 'before a daemon runs: machine, configuration, ports, Consul, CA')
    .addOption(
      new Option('--config <file>', 'with --pre: the configuration of the daemon').default(
        '/etc/hostmesh/hostmesh.yaml',
      ),
    )
    .action(async (_options: unknown, command: Command) => {
      const options = command.optsWithGlobals<Options>()
      await show(options, async () =>
        answerOf(options.pre === true ? await checkBefore(options) : await checkRunning(options)),
      )
    })
}

function checkBefore({ config }: Options): Promise<Check[]> {
  const isDaemonAt = async (socket: string): Promise<boolean> =>
    (await daemonPid(`unix://${socket}`)) !== undefined
  return preflight(config, { isDaemonAt })
}

async function checkRunning({ addr }: Options): Promise<Check[]> {
  const [status, certs] = await Promise.all([
    fetchList<StatusDocument>(addr, '/v1/status', 'problems'),
    fetchList<CertsDocument>(addr, '/v1/certs', 'leaves'),
  ])
  return runningChecks(status, certs, Date.now())
}

/** The checks of a daemon that runs. Pure. */
export function runningChecks(
  status: StatusDocument,
  { leaves, roots }: Pick<CertsDocument, 'leaves' | 'roots'>,
  nowMs: number,
): Check[] {
  const problems = status.problems.map(({ blocks, message, hint, code }) => ({
    ...(blocks ? fail('status', message, hint) : warn('status', message, hint)),
    finding: `${message} (${code})`,
  }))
  const late = leaves.flatMap((leaf) => lateLeaf(leaf, nowMs))
  const [first] = leaves.map(({ notAfter }) => notAfter).toSorted()
  const expired = roots.filter(({ notAfter }) => Date.parse(notAfter) <= nowMs)
  return [
    ...(problems.length > 0 ? problems : [wellOrNot(status)]),
    ...(status.warnings ?? []).map((text) => warn('status', text, 'See docs/cli.md, status')),
    ...(late.length > 0 || first === undefined
      ? late
      : [
          ok(
            'certificates',
            `${leaves.length} certificates, the first expires in ${formatAge(Date.parse(first) - nowMs)}`,
          ),
        ]),
    ...expired.map(({ fingerprint }) =>
      warn('certificates', `Root ${fingerprint} has expired`, 'See docs/certificates.md'),
    ),
    captureCheck(status),
    ...(status.reports ?? []).map((report) => reportCheck(report, nowMs)),
  ]
}

function wellOrNot({ node, version, ready, awaited }: StatusDocument): Check {
  if (ready) return ok('status', `${node} is well, hostmesh ${version}`)
  return fail(
    'status',
    `Not ready: waiting for ${awaited.join(', ')}`,
    'hostmesh status --wait 60s',
  )
}

function lateLeaf({ service, notBefore, notAfter }: LeafEntry, nowMs: number): Check[] {
  const leftMs = Date.parse(notAfter) - nowMs
  const next = 'See the problems of hostmesh status, and docs/certificates.md'
  if (leftMs <= 0) return [fail('certificates', `The certificate of ${service} has expired`, next)]
  const share = leftMs / Math.max(1, Date.parse(notAfter) - Date.parse(notBefore))
  if (share >= LATE_SHARE) return []
  const left = `${formatAge(leftMs)} left, less than a quarter of its life`
  return [warn('certificates', `The certificate of ${service} has ${left}`, next)]
}

function captureCheck({ capture }: StatusDocument): Check {
  if (capture.mode === 'off') return ok('capture', 'Capture is off')
  if (capture.inSync === true) return ok('capture', 'The rules in the kernel are as planned')
  const next = 'hostmesh capture show --config FILE names the difference'
  return fail('capture', 'The rules in the kernel are not as planned', next)
}

function reportCheck({ aggregator, waiting, lastSuccessAt }: ReportStatus, nowMs: number): Check {
  const next = `See whether ${aggregator} runs, and whether an intention allows this host to reach it`
  if (lastSuccessAt === null) return warn('reports', `${aggregator} has taken no report yet`, next)
  const ago = `${formatSince(lastSuccessAt, nowMs)} ago`
  if (nowMs - Date.parse(lastSuccessAt) > REPORTS_LATE_MS || waiting > 1)
    return warn('reports', `${aggregator} took the last one ${ago}, ${waiting} records wait`, next)
  return ok('reports', `${aggregator} took the last one ${ago}`)
}

const TONES: Readonly<Record<Check['result'], Tone>> = { ok: 'good', warn: 'warning', fail: 'bad' }

const columns: readonly Column<Check>[] = [
  { heading: 'RESULT', cell: ({ result }) => ({ text: result, tone: TONES[result] }) },
  { heading: 'CHECK', cell: ({ check }) => check },
  {
    heading: 'FINDING',
    cell: ({ finding, next }) => (next === null ? finding : `${finding}. Next: ${next}`),
  },
]

function answerOf(checks: readonly Check[]): Answer {
  return {
    document: { checks },
    text: (style) => renderList(columns, checks, style),
    exitCode: checks.some(({ result }) => result === 'fail') ? exitCodes.failed : exitCodes.ok,
  }
}
