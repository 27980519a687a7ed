/** Documents of the fleet: what is missing is said, what nobody reported is null, and each risk is one that it names. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { coverageOf, isoTime } from '../../src/aggregator/documents/coverage.ts'
import { Fleet } from '../../src/aggregator/documents/fleet.ts'
import { graphDocument } from '../../src/aggregator/documents/graph.ts'
import { historyDocument, stepFigures } from '../../src/aggregator/documents/history.ts'
import { hostDocument, hostsDocument } from '../../src/aggregator/documents/hosts.ts'
import { sidesOf } from '../../src/aggregator/documents/pairs.ts'
import { risksDocument } from '../../src/aggregator/documents/risks.ts'
import { serviceDocument, servicesDocument } from '../../src/aggregator/documents/services.ts'
import { compareVersions, versionsDocument } from '../../src/aggregator/documents/versions.ts'
import type { HostReading } from '../../src/aggregator/fleet-store.ts'
import type { GraphNode, RiskKind } from '../../src/model/fleet.ts'
import type { ReportedPolicy } from '../../src/model/report.ts'
import { reportedService } from '../harness/fleet-reports.ts'
import { momentOf, NOW, reading, row } from './fleet-fixtures.ts'

const noFigures = { counts: new Map(), splits: new Map(), histograms: new Map() }
const notesOf = (hosts: readonly HostReading[], counted: boolean, more = {}): string => {
  const moment = momentOf(hosts, more)
  return coverageOf(moment, new Fleet(moment), counted).notes.join('\n')
}

test('an empty document says why it is empty', () => {
  assert.match(notesOf([], false), /^No host has ever reported/)
  assert.equal(notesOf([reading('a')], false), 'No connection was counted in this span')
  assert.equal(notesOf([reading('a')], false, { oldestMs: undefined }), 'No figures are stored yet')
  assert.match(
    notesOf([reading('a')], false, { oldestMs: NOW + 1 }),
    /before the oldest figures that are stored, of 2026-11-27T10:00:00\.001Z/,
  )
  assert.match(
    notesOf([reading('a')], true, { oldestMs: NOW - 30_000 }),
    /no figures before 2026-11-27T09:59:30/,
  )
})

test('a document says which hosts are missing in it', () => {
  const silent = (name: string): HostReading =>
    reading(name, [], { lastReportAtMs: NOW - 3_600_000 })
  assert.equal(
    notesOf([reading('a'), silent('b')], true),
    '1 host is silent: b since 2026-11-27T09:00:00.000Z',
  )
  const many = ['b', 'c', 'd', 'e', 'f'].map(silent)
  assert.match(notesOf([reading('a'), ...many], true), /^5 hosts are silent: .* and 2 more$/)
  assert.match(notesOf([reading('a', [], { lateMs: 40_000 })], true), /1 host reports late.*a 40 s/)
  assert.match(notesOf([reading('a', [], { isConflicting: true })], true), /same name.*: a$/)
  const moment = momentOf([reading('a'), silent('b')])
  const { hosts, reporting } = coverageOf(moment, new Fleet(moment), true)
  assert.deepEqual([hosts, reporting], [2, 1])
  assert.equal(notesOf([reading('a')], true), '')
})

test('a time is text, whatever number a host has sent', () => {
  for (const ms of [Number.NaN, Infinity, -Infinity, 1e300, -5]) isoTime(ms)
  assert.equal(isoTime(0), '1970-01-01T00:00:00.000Z')
})

test('a rate is of the part of the span for which there are figures', () => {
  const moment = momentOf([reading('a')], { oldestMs: NOW - 20_000 })
  const { edges, coverage } = graphDocument(
    moment,
    [row('a', 'source', ['web', 'db'], { opened: 100 })],
    'service',
  )
  assert.equal(coverage.windowMs, 20_000)
  assert.equal(edges[0]?.traffic.openedPerSecond, 5)
})

function nodeOf(
  id: string,
  hosts: readonly HostReading[],
  rows: Parameters<typeof graphDocument>[1] = [],
): Pick<GraphNode, 'health' | 'reasons'> {
  const { nodes } = graphDocument(momentOf(hosts), rows, 'service')
  const { health, reasons } = nodes.find((node) => node.id === id) ?? assert.fail(id)
  return { health, reasons }
}

test('the health of a service is that of its instances, hosts and connections', () => {
  const db = reportedService('db')
  const well = reading('a', [db])
  const pair = ['web', 'db'] as const
  const failed = (share: number, side: 'source' | 'destination'): ReturnType<typeof row> =>
    row('z', side, pair, { closed: { '-': 100 - share, UF: share } })
  assert.deepEqual(nodeOf('db', [well]), { health: 'healthy', reasons: [] })
  assert.equal(nodeOf('db', [well], [failed(4, 'destination')]).health, 'healthy')
  assert.equal(nodeOf('db', [well], [failed(6, 'destination')]).health, 'degraded')
  assert.equal(nodeOf('db', [well], [failed(60, 'destination')]).health, 'failing')
  assert.equal(nodeOf('web', [well], [failed(6, 'source')]).health, 'unknown')
  const critical = reading('b', [reportedService('db', { health: 'critical' })])
  assert.equal(nodeOf('db', [well, critical]).health, 'degraded')
  assert.equal(nodeOf('db', [critical]).health, 'failing')
  const silent = reading('c', [db], { lastReportAtMs: NOW - 60_000 })
  assert.deepEqual(nodeOf('db', [silent]), {
    health: 'failing',
    reasons: ['c has not reported since 2026-11-27T09:59:00.000Z'],
  })
  const expired = { leftMs: 5_000, lifeMs: 10_000, spiffeId: '' }
  const late = reading('d', [reportedService('db', { certificate: expired })])
  assert.match(nodeOf('db', [late]).reasons.join(), /certificate of db on d has expired/)
})

test('what only callers have seen counts for the health of a service', () => {
  const rows = [
    row('a', 'destination', ['web', 'db'], { opened: 100, closed: { '-': 100 } }),
    row('z', 'source', ['web', 'db'], { opened: 200, closed: { '-': 100, UH: 100 } }),
  ]
  assert.deepEqual(nodeOf('db', [reading('a', [reportedService('db')])], rows), {
    health: 'failing',
    reasons: ['50 % of the connections to it failed, as counted by the hosts of its callers'],
  })
})

const policy: ReportedPolicy = {
  defaultAction: 'allow',
  intentions: [
    { source: '*', destination: 'db', action: 'deny', precedence: 8 },
    { source: 'web', destination: 'db', action: 'allow', precedence: 9 },
    { source: 'old', destination: 'db', action: 'allow', precedence: 9 },
  ],
}

test('the policy of an edge is what the intention with the highest precedence says', () => {
  const hosts = [reading('a', [reportedService('db', { policy })])]
  const { edges } = graphDocument(
    momentOf(hosts),
    [row('a', 'destination', ['web', 'db']), row('a', 'destination', ['x', 'db'])],
    'service',
  )
  assert.deepEqual(
    edges.map((edge) => [edge.source, edge.policy?.allow, edge.policy?.rule?.source]),
    [
      ['web', true, 'web'],
      ['x', false, '*'],
    ],
  )
  const unknown = graphDocument(momentOf(hosts), [row('a', 'source', ['web', 'mail'])], 'service')
  assert.equal(unknown.edges[0]?.policy, null)
})

test('hosts with other rules than the newest are said in the reason', () => {
  const denying: ReportedPolicy = { defaultAction: 'deny', intentions: [] }
  const hosts = [
    reading('a', [reportedService('db', { policy: denying })], { factsAtMs: NOW - 90_000 }),
    reading('b', [reportedService('db', { policy })], { factsAtMs: NOW - 1_000 }),
  ]
  const decision = new Fleet(momentOf(hosts)).policies.decide('web', 'db')
  assert.equal(decision?.allow, true)
  assert.match(decision.reason, /says allow; 1 of 2 hosts that run db decide otherwise$/)
})

test('a service knows how often each of its rules has decided', () => {
  const hosts = [reading('a', [reportedService('db', { policy })])]
  const rows = [
    row('a', 'destination', ['web', 'db'], { opened: 30 }),
    row('a', 'destination', ['x', 'db'], { opened: 2, closed: { DENY: 2 } }),
    row('a', 'source', ['db', 'mail'], { opened: 1 }),
  ]
  const workloads = [
    { host: 'a', spanMs: 60_000, use: { service: 'db', cpuMs: 30_000, memoryBytes: 5 } },
  ]
  const document = serviceDocument(momentOf(hosts), { name: 'db', rows, workloads })
  assert.deepEqual(
    document?.policy.intentions.map(({ source, used }) => [source, used]),
    [
      ['web', 30],
      ['old', 0],
      ['*', 2],
    ],
  )
  assert.deepEqual(
    document.callers.map(({ source }) => source),
    ['web', 'x'],
  )
  assert.equal(document.destinations.length, 1)
  assert.deepEqual(document.instances[0]?.resources, {
    service: 'db',
    cpu: 0.5,
    memoryBytes: 5,
    tasks: null,
    sockets: null,
    cpuPressure: null,
    memoryPressure: null,
    ioPressure: null,
  })
  const silent = [
    reading('a', [reportedService('db', { policy })], { lastReportAtMs: NOW - 99_000 }),
  ]
  const unsure = serviceDocument(momentOf(silent), { name: 'db', rows: [], workloads: [] })
  assert.equal(unsure?.policy.intentions[0]?.used, null)
  assert.equal(serviceDocument(momentOf(hosts), { name: 'no', rows, workloads }), undefined)
})

test('a service that only callers know is listed, as unknown', () => {
  const { services } = servicesDocument(momentOf([]), [row('a', 'source', ['web', 'db'])])
  assert.deepEqual(
    services.map(({ name, health, instances, callers }) => [name, health, instances, callers]),
    [
      ['db', 'unknown', 0, 1],
      ['web', 'unknown', 0, 0],
    ],
  )
})

test('a host is silent after 30 s, conflicting before all else, and never healthy by default', () => {
  const stateOf = (more: Partial<Omit<HostReading, 'facts'>>): string | undefined =>
    hostsDocument(momentOf([reading('a', [], more)]), []).hosts[0]?.state
  assert.equal(stateOf({}), 'ready')
  assert.equal(stateOf({ lastReportAtMs: NOW - 30_001 }), 'silent')
  assert.equal(stateOf({ lastReportAtMs: NOW - 30_000 }), 'ready')
  assert.equal(stateOf({ isConflicting: true, lastReportAtMs: 0 }), 'conflicting')
  assert.equal(stateOf({ state: 'draining' }), 'draining')
  const bare = { ...reading('a'), facts: undefined, factsAtMs: undefined, state: undefined }
  const [entry] = hostsDocument(momentOf([bare]), []).hosts
  assert.deepEqual(
    [entry?.state, entry?.version, entry?.cpu, entry?.services],
    ['starting', null, null, []],
  )
})

test('a host has an edge for each side that it counted', () => {
  const hosts = [reading('a', [reportedService('web'), reportedService('db')])]
  const rows = [
    row('a', 'source', ['web', 'db'], { opened: 6 }),
    row('a', 'destination', ['web', 'db'], { opened: 5 }),
  ]
  const document = hostDocument(momentOf(hosts), {
    name: 'a',
    rows,
    workloads: [],
    figures: {
      ...noFigures,
      counts: new Map([['acceptedConnections', 9]]),
      splits: new Map([['limitRefusals', new Map([['memory', 2]])]]),
    },
  })
  assert.deepEqual(
    document?.edges.map(({ reporter, traffic }) => [reporter, traffic.openedPerSecond * 60]),
    [
      ['destination', 5],
      ['source', 6],
    ],
  )
  assert.deepEqual(document.counters, { acceptedConnections: 9, 'limitRefusals.memory': 2 })
})

test('a step in which no host reported is null, one in which nothing happened is 0', () => {
  const rows = [
    row('a', 'destination', ['web', 'db'], { opened: 20, closed: { UF: 5, DENY: 10 }, lost: 5 }),
    row('a', 'source', ['web', 'db'], { opened: 19 }),
  ]
  const sides = sidesOf(rows)
  const steps = [
    stepFigures({ atMs: NOW - 20_000, pairs: rows, reporting: 1 }, 10_000, sides),
    stepFigures({ atMs: NOW - 10_000, pairs: [], reporting: 1 }, 10_000, sides),
    stepFigures({ atMs: NOW, pairs: [], reporting: 0 }, 10_000, sides),
  ]
  const hosts = [reading('a'), reading('b', [], { firstReportAtMs: NOW - 15_000 })]
  const { series, missing } = historyDocument(momentOf(hosts), steps, { stepMs: 10_000 })
  assert.deepEqual(series.openedPerSecond, [2, 0, null])
  assert.deepEqual(series.errorsPerSecond, [1, 0, null])
  assert.deepEqual(series.deniedPerSecond, [1, 0, null])
  assert.deepEqual(series.connectP50Ms, [null, null, null])
  assert.deepEqual(missing, [0, 1, 2])
})

test('records of both sides in neighbouring steps are not added', () => {
  const rows = [
    row('a', 'source', ['web', 'db'], { opened: 15 }),
    row('b', 'destination', ['web', 'db'], { opened: 15 }),
  ]
  const figures = rows.map((one, i) =>
    stepFigures({ atMs: NOW + i * 10_000, pairs: [one], reporting: 1 }, 10_000, sidesOf(rows)),
  )
  assert.deepEqual(
    figures.map(({ values }) => values.openedPerSecond),
    [1.5, 0],
  )
})

function risksOf(
  hosts: readonly HostReading[],
  rows: Parameters<typeof risksDocument>[1] = [],
  more = {},
): [RiskKind, string][] {
  const { risks } = risksDocument(momentOf(hosts, more), rows)
  return risks.map(({ kind, subject }) => [kind, subject])
}

test('a fleet that is well has no risks', () => {
  const db = reportedService('db')
  const hosts = [
    reading('a', [db], { facts: { zone: 'n' } }),
    reading('b', [db], { facts: { zone: 's' } }),
  ]
  assert.deepEqual(risksOf(hosts, [row('a', 'destination', ['web', 'db'], { opened: 1 })]), [])
})

test('each risk of a host is found, and a silent one has no other', () => {
  assert.deepEqual(
    risksOf([
      reading('a', [], { lastReportAtMs: NOW - 60_000, clockOffsetMs: 1e6 }),
      reading('b', [], { clockOffsetMs: -5_000 }),
      reading('c', [], { facts: { version: '0.1.9' } }),
      reading('d', [], { facts: { capture: { mode: 'on', inSync: false, plainInbound: 4 } } }),
      reading('e', [], { facts: { capture: { mode: 'off' } } }),
      reading('f', [
        reportedService('s', { certificate: { leftMs: 2_000, lifeMs: 10_000, spiffeId: '' } }),
      ]),
    ]),
    [
      ['captureOff', 'd'],
      ['certificateLife', 's on f'],
      ['silentHost', 'a'],
      ['clockOff', 'b'],
      ['plaintext', 'd'],
      ['captureOff', 'e'],
      ['oldVersion', 'c'],
    ],
  )
})

test('a called service that depends on one instance, host or zone is a risk', () => {
  const called = (service: string): ReturnType<typeof row> =>
    row('a', 'source', ['web', service], { opened: 1 })
  const rows = ['one', 'two', 'zoned'].map(called)
  const hosts = [
    reading('a', [reportedService('one'), reportedService('uncalled')], { facts: { zone: 'n' } }),
    reading('b', [reportedService('two'), reportedService('two', { id: 'two-2' })], {
      facts: { zone: 's' },
    }),
    reading('c', [reportedService('zoned')], { facts: { zone: 's' } }),
    reading('d', [reportedService('zoned')], { facts: { zone: 's' } }),
  ]
  assert.deepEqual(risksOf(hosts, rows), [
    ['oneHost', 'two'],
    ['singleInstance', 'one'],
    ['oneZone', 'zoned'],
  ])
})

test('a default of deny would cut who is allowed by no rule; an allow that nobody uses is named', () => {
  const open: ReportedPolicy = {
    defaultAction: 'allow',
    intentions: [{ source: 'old', destination: 'db', action: 'allow', precedence: 9 }],
  }
  const db = reportedService('db', { policy: open })
  const hosts = [reading('a', [db]), reading('b', [db])]
  const rows = [row('a', 'destination', ['web', 'db'], { opened: 1 })]
  assert.deepEqual(risksOf(hosts, rows), [['defaultDenyWouldCut', 'web -> db']])
  const hour = { span: { fromMs: NOW - 3_600_000, toMs: NOW } }
  assert.deepEqual(risksOf(hosts, rows, hour), [
    ['defaultDenyWouldCut', 'web -> db'],
    ['unusedAllow', 'old -> db'],
  ])
  const short = { ...hour, oldestMs: NOW - 60_000 }
  assert.deepEqual(risksOf(hosts, rows, short), [['defaultDenyWouldCut', 'web -> db']])
})

test('versions are compared by their numbers', () => {
  const ordered = ['0.2.0', '0.9.9', '0.10.0-rc.1', '0.10.0', '1.0.0']
  assert.deepEqual(ordered.toReversed().toSorted(compareVersions), ordered)
})

test('pairs whose hosts run several versions are mixed', () => {
  const hosts = [
    reading('a', [reportedService('web')], { facts: { version: '0.9.0' } }),
    reading('b', [reportedService('db')], { facts: { version: '0.10.0' } }),
  ]
  const { versions, mixedPairs } = versionsDocument(momentOf(hosts), [
    row('a', 'source', ['web', 'db']),
    row('a', 'source', ['web', 'web']),
  ])
  assert.deepEqual(
    versions.map(({ version }) => version),
    ['0.10.0', '0.9.0'],
  )
  assert.deepEqual(mixedPairs, [
    { source: 'web', destination: 'db', versions: ['0.9.0', '0.10.0'] },
  ])
})
