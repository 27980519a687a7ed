/**
 * `hostmesh fleet`: what the aggregator knows of all hosts.
 */
import { Command, Option } from 'commander'
import type {
  HostDocument,
  HostEntry,
  InstanceEntry,
  OverviewDocument,
  Risk,
  VersionsDocument,
  WorkloadEntry,
} from '../model/fleet.ts'
import type { Answer } from './answer.ts'
import { exitCodes } from './failure.ts'
import { fetchFleet } from './fleet-client.ts'
import {
  addFleetOptions,
  coverageNotes,
  errorCell,
  type FleetOptions,
  quantileText,
  stateCell,
} from './fleet-command.ts'
import { unknownName } from './known-names.ts'
import { readingCommand, show } from './reading-command.ts'
import { formatAge, formatBytes, formatRate, formatShare, formatSince } from './render/format.ts'
import {
  type Cell,
  type Column,
  paint,
  renderList,
  renderTable,
  type TableStyle,
} from './render/table.ts'

/** Clocks that differ by more are marked; certificates and logs suffer. Milliseconds. */
const CLOCK_MS = 2_000

/** A record that came this late was kept by its host: the aggregator was away. Milliseconds. */
const LATE_MS = 15_000

/** The `fleet` command and its subcommands. */
export function fleetCommand(): Command {
  const fleet = new Command('fleet').description('Ask the aggregator about all hosts')
  const subcommands = [statusCommand(), hostsCommand(), versionsCommand(), risksCommand()]
  for (const command of subcommands) fleet.addCommand(addFleetOptions(command))
  return fleet
}

function statusCommand(): Command {
  return readingCommand(
    'status',
    'Show the fleet in one look; exit code 1 if a host is not well',
  ).action(async (_options: unknown, command: Command) => {
    const options = command.optsWithGlobals<FleetOptions>()
    await show(options, async () => {
      const overview = await fetchFleet(options, 'overview')
      const { degraded, silent, conflicting } = overview.hosts
      return {
        document: overview,
        text: (style) => renderOverview(overview, style),
        notes: coverageNotes(overview.coverage),
        exitCode: degraded + silent + conflicting > 0 ? exitCodes.failed : exitCodes.ok,
      }
    })
  })
}

function renderOverview(overview: OverviewDocument, style: TableStyle): string {
  const { hosts, traffic, store, coverage } = overview
  const states = (['ready', 'degraded', 'starting', 'draining', 'silent', 'conflicting'] as const)
    .filter((state) => hosts[state] > 0)
    .map((state) => `${hosts[state]} ${state}`)
  const isWell = hosts.ready === hosts.total
  const facts: [string, Cell][] = [
    ['Hosts', { text: states.join(', ') || 'none', tone: isWell ? 'good' : 'warning' }],
    ['Reporting', `${coverage.reporting} of ${coverage.hosts}`],
    ['Services', `${overview.services}, ${overview.pairs} pairs of them`],
    ['Connections', `${formatRate(traffic.openedPerSecond)}/s, ${traffic.active} open`],
    ['Errors', errorCell(traffic)],
    ['Connecting', quantileText(traffic.connectMs)],
    ['First byte', quantileText(traffic.firstByteMs)],
    [
      'Bytes',
      `${formatBytes(traffic.sentBytesPerSecond)}/s sent, ${formatBytes(traffic.receivedBytesPerSecond)}/s received`,
    ],
    ['Store', `${formatBytes(store.bytes)} of ${formatBytes(store.maxBytes)}`],
    ['Oldest figures', store.oldest.hours ?? store.oldest.minutes ?? store.oldest.seconds ?? '-'],
  ]
  const problems = renderTable(
    ['PROBLEM', 'HOSTS'],
    overview.problems.map(({ code, hosts: count }) => [
      { text: code, tone: 'warning' },
      String(count),
    ]),
    style,
  )
  const title = ['FLEET', `last ${formatAge(coverage.windowMs)}, aggregator ${overview.version}`]
  const table = renderTable(title, facts, style)
  return overview.problems.length === 0 ? table : `${table}\n\n${problems}`
}

function hostsCommand(): Command {
  return readingCommand('hosts', 'List the hosts of the fleet, or show one of them')
    .argument('[name]', 'show this host, with its services and problems')
    .addOption(
      new Option('--state <state>', 'only hosts in this state').choices([
        'starting',
        'ready',
        'degraded',
        'draining',
        'silent',
        'conflicting',
      ]),
    )
    .action(async (name: string | undefined, _options: unknown, command: Command) => {
      const options = command.optsWithGlobals<FleetOptions & { state?: string }>()
      await show(options, () => (name === undefined ? listHosts(options) : showHost(options, name)))
    })
}

async function listHosts(options: FleetOptions & { state?: string }): Promise<Answer> {
  const all = await fetchFleet(options, 'hosts')
  const hosts = all.hosts.filter(({ state }) => state === (options.state ?? state))
  const empty =
    options.state === undefined ? 'No host has ever reported' : `No host is ${options.state}`
  return {
    document: { ...all, hosts },
    text: (style) => (hosts.length === 0 ? '' : renderList(hostColumns(Date.now()), hosts, style)),
    notes: [...(hosts.length === 0 ? [empty] : []), ...coverageNotes(all.coverage)],
  }
}

/** One host; the list of all is asked first, so that a wrong name finds the right one. */
async function showHost(options: FleetOptions, name: string): Promise<Answer> {
  const { hosts } = await fetchFleet(options, 'hosts')
  const known = hosts.map((host) => host.name)
  if (!known.includes(name))
    throw unknownName('host', name, {
      known,
      message: `Cannot show host ${name}: the aggregator has no report of it`,
      hint: 'See what there is: hostmesh fleet hosts',
    })
  const document = await fetchFleet(options, 'host', { name })
  return {
    document,
    text: (style) => renderHost(document, style),
    notes: coverageNotes(document.coverage),
  }
}

function hostColumns(nowMs: number): readonly Column<HostEntry>[] {
  return [
    { heading: 'HOST', cell: ({ name }) => name },
    { heading: 'STATE', cell: ({ state }) => stateCell(state) },
    { heading: 'VERSION', cell: ({ version }) => version ?? '-' },
    { heading: 'DATACENTER', isWide: true, cell: ({ datacenter }) => datacenter ?? '-' },
    { heading: 'ZONE', isWide: true, cell: ({ zone }) => zone ?? '-' },
    {
      heading: 'REPORTED',
      cell: (host) => {
        const text = `${formatSince(host.lastReportAt, nowMs)} ago`
        return host.lateMs > LATE_MS
          ? { text: `${text}, ${formatAge(host.lateMs)} late`, tone: 'warning' }
          : text
      },
    },
    { heading: 'LOST', isWide: true, cell: ({ lostRecords }) => String(lostRecords) },
    { heading: 'CLOCK', isWide: true, cell: clockCell },
    { heading: 'CPU', cell: ({ cpu }) => (cpu === null ? '-' : formatShare(cpu)) },
    { heading: 'MEMORY', cell: ({ memoryBytes }) => bytesText(memoryBytes) },
    { heading: 'SERVICES', cell: ({ services }) => services.join(', ') || '-' },
    {
      heading: 'PROBLEMS',
      cell: ({ problems }) =>
        problems.length === 0
          ? '-'
          : { text: problems.map(({ code }) => code).join(', '), tone: 'warning' },
    },
  ]
}

function clockCell({ clockOffsetMs }: HostEntry): Cell {
  if (clockOffsetMs === null) return '-'
  const text = `${clockOffsetMs < 0 ? '-' : '+'}${(Math.abs(clockOffsetMs) / 1_000).toFixed(1)}s`
  return Math.abs(clockOffsetMs) > CLOCK_MS ? { text, tone: 'warning' } : text
}

function renderHost(document: HostDocument, style: TableStyle): string {
  const { host, capture, tunnels } = document
  const facts: [string, Cell][] = [
    ['State', stateCell(host.state)],
    ['Version', `hostmesh ${host.version ?? '?'}, Node ${document.nodeVersion ?? '?'}`],
    ['Up since', document.startedAt ?? '-'],
    ['Last report', host.lastReportAt],
    ['Datacenter', `${host.datacenter ?? '-'}${host.zone === null ? '' : `, zone ${host.zone}`}`],
    ['Clock', clockCell(host)],
    ['Workers', document.workers === null ? '-' : String(document.workers)],
    ['Capture', capture === null ? '-' : captureText(capture)],
    ['Tunnels', tunnels === null ? '-' : `${tunnels.sessions} to ${tunnels.peers} peers`],
  ]
  const problems = host.problems.map(
    ({ code, message, blocks }) =>
      `  ${paint({ text: message, tone: blocks ? 'bad' : 'warning' })} (${paint(code)})`,
  )
  return [
    renderTable(['HOST', host.name], facts, style),
    ...(document.services.length === 0
      ? []
      : [renderList(instanceColumns, document.services, style)]),
    ...(document.workloads.length === 0
      ? []
      : [renderList(workloadColumns, document.workloads, style)]),
    ...(problems.length === 0 ? [] : [['Problems:', ...problems].join('\n')]),
  ].join('\n\n')
}

function captureText({ mode, backend, inSync }: NonNullable<HostDocument['capture']>): string {
  if (mode === 'off') return 'off'
  const sync = inSync === null ? '' : `, rules ${inSync ? 'in place' : 'not in place'}`
  return `on${backend === null ? '' : ` by ${backend}`}${sync}`
}

const instanceColumns: readonly Column<InstanceEntry>[] = [
  { heading: 'INSTANCE', cell: ({ id }) => id },
  { heading: 'LISTENS AT', cell: ({ target }) => target ?? '-' },
  { heading: 'CAPTURED', cell: ({ captured }) => (captured ? 'yes' : '-') },
  { heading: 'HEALTH', cell: ({ health }) => (health === null ? '-' : stateCell(health)) },
  { heading: 'CERTIFICATE UNTIL', cell: ({ certificateNotAfter }) => certificateNotAfter ?? '-' },
]

const workloadColumns: readonly Column<WorkloadEntry>[] = [
  { heading: 'WORKLOAD', cell: ({ service }) => service },
  { heading: 'CPU', cell: ({ cpu }) => (cpu === null ? '-' : formatShare(cpu)) },
  { heading: 'MEMORY', cell: ({ memoryBytes }) => bytesText(memoryBytes) },
  { heading: 'TASKS', cell: ({ tasks }) => (tasks === null ? '-' : String(tasks)) },
  { heading: 'SOCKETS', cell: ({ sockets }) => (sockets === null ? '-' : String(sockets)) },
  { heading: 'WAITED FOR CPU', cell: ({ cpuPressure }) => shareText(cpuPressure) },
  { heading: 'MEMORY', cell: ({ memoryPressure }) => shareText(memoryPressure) },
  { heading: 'IO', cell: ({ ioPressure }) => shareText(ioPressure) },
]

function versionsCommand(): Command {
  return readingCommand(
    'versions',
    'List which versions run where, and pairs that are mixed',
  ).action(async (_options: unknown, command: Command) => {
    const options = command.optsWithGlobals<FleetOptions>()
    await show(options, async () => {
      const document = await fetchFleet(options, 'versions')
      return {
        document,
        text: (style) => renderVersions(document, style),
        notes: coverageNotes(document.coverage),
      }
    })
  })
}

function renderVersions({ versions, mixedPairs }: VersionsDocument, style: TableStyle): string {
  const hosts = renderTable(
    ['VERSION', 'NUMBER', 'HOSTS'],
    versions.map((entry) => [entry.version, String(entry.hosts.length), entry.hosts.join(', ')]),
    style,
  )
  if (mixedPairs.length === 0) return hosts
  const pairs = renderTable(
    ['SOURCE', 'DESTINATION', 'MIXED VERSIONS'],
    mixedPairs.map((pair) => [pair.source, pair.destination, pair.versions.join(', ')]),
    style,
  )
  return `${hosts}\n\n${pairs}`
}

const SEVERITIES = ['high', 'medium', 'low'] as const

function risksCommand(): Command {
  return readingCommand('risks', 'List what will break, before it does; exit code 1 if one is high')
    .addOption(
      new Option('--severity <least>', 'only risks that are at least so severe')
        .choices(SEVERITIES)
        .default('low'),
    )
    .action(async (_options: unknown, command: Command) => {
      const options = command.optsWithGlobals<FleetOptions & { severity: Risk['severity'] }>()
      await show(options, () => listRisks(options))
    })
}

async function listRisks(
  options: FleetOptions & { readonly severity: Risk['severity'] },
): Promise<Answer> {
  const all = await fetchFleet(options, 'risks')
  const rank = (severity: Risk['severity']): number => SEVERITIES.indexOf(severity)
  const risks = all.risks
    .filter(({ severity }) => rank(severity) <= rank(options.severity))
    .toSorted((a, b) => rank(a.severity) - rank(b.severity))
  return {
    document: { ...all, risks },
    text: (style) => (risks.length === 0 ? '' : renderList(riskColumns, risks, style)),
    notes: [...(risks.length === 0 ? ['No risks are known'] : []), ...coverageNotes(all.coverage)],
    exitCode: risks.some(({ severity }) => severity === 'high') ? exitCodes.failed : exitCodes.ok,
  }
}

const riskColumns: readonly Column<Risk>[] = [
  { heading: 'SEVERITY', cell: ({ severity }) => stateCell(severity) },
  { heading: 'KIND', cell: ({ kind }) => kind },
  { heading: 'SUBJECT', cell: ({ subject }) => subject },
  { heading: 'WHAT', cell: ({ message }) => message },
  { heading: 'NEXT', isWide: true, cell: ({ hint }) => hint },
]

function bytesText(bytes: number | null): string {
  return bytes === null ? '-' : formatBytes(bytes)
}

function shareText(share: number | null): string {
  return share === null ? '-' : formatShare(share)
}
