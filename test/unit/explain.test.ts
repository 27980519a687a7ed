/**
 * Every verdict of explain(), from facts alone.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { explain } from '../../src/daemon/explain/explain.ts'
import { parseFacts } from '../../src/daemon/facts-file.ts'
import type { ConnectionEntry, RefusedEntry } from '../../src/model/admin.ts'
import type { Explanation } from '../../src/model/explanation.ts'
import type { HostFacts } from '../../src/model/facts.ts'
import { endpoint, facts, local, policy, service } from './explain-fixtures.ts'

function ask(from: string, to: string, parts: Partial<HostFacts> = {}): Explanation {
  return explain(facts(parts), { kind: 'pair', from, to })
}

function station(explanation: Explanation, name: string): Explanation['stations'][number] {
  const found = explanation.stations.find((each) => each.name === name)
  assert.ok(found, `no station ${name}`)
  return found
}

test('an allowed pair: every station is good, and each says what it found', () => {
  const said = ask('web', 'db')
  assert.equal(said.verdict, 'allowed')
  assert.deepEqual(
    said.stations.map(({ name, mark }) => [name, mark]),
    [
      ['caller', 'good'],
      ['capture', 'good'],
      ['route', 'good'],
      ['endpoint', 'good'],
      ['certificate', 'good'],
      ['tunnel', 'good'],
      ['policy', 'good'],
      ['delivery', 'none'],
    ],
  )
  assert.deepEqual(said.policy?.intention, {
    source: 'web',
    destination: 'db',
    action: 'allow',
    precedence: 9,
  })
  assert.deepEqual(station(said, 'policy').details.slice(1), [
    'Would match too, and comes later: * -> db deny (precedence 8)',
  ])
  assert.equal(said.serverName, 'db.default.dc1.internal.mesh.example')
  assert.equal(said.expectedSpiffeId, 'spiffe://mesh.example/ns/default/dc/dc1/svc/db')
  assert.equal(said.tunnels.length, 1)
})

test('endpoints: candidates first, with the lowest cost and all that is in flight; the others with the reason', () => {
  const { endpoints } = ask('web', 'db')
  assert.deepEqual(
    endpoints.map(({ endpoint: key, excluded, cost, inFlight }) => [key, excluded, cost, inFlight]),
    [
      ['host-2/db-2', null, 3.25, 3],
      ['host-3/db-3', 'its health is critical', null, 0],
    ],
  )
})

test('names that mean the same service get the same answer', () => {
  const expected = ask('web', 'db')
  for (const to of [
    'db.mesh',
    'db.mesh.',
    'db.virtual.consul',
    'db:5432',
    '240.0.0.1',
    '240.0.0.1:1',
  ])
    assert.equal(ask('web', to).summary, expected.summary, to)
})

test('a denied pair: the first rule that matches is named, or the default policy', () => {
  const denied = ask('web', 'vault')
  assert.equal(denied.verdict, 'denied')
  assert.equal(denied.policy?.intention?.action, 'deny')
  assert.deepEqual(denied.next, ['To allow it: consul intention create -allow -replace web vault'])
  const byWildcard = ask('tool', '127.0.0.1:9001')
  assert.equal(byWildcard.policy?.intention?.source, '*')
  const none = ask('web', 'db', { policies: [policy('db', 'catalog', [])] })
  assert.equal(none.verdict, 'denied')
  assert.equal(none.policy?.intention, null)
  assert.match(none.summary, /default policy says deny/)
})

test('a rule that decides by permissions denies a TCP service, and is the one that is named', () => {
  const said = ask('web', 'db', { policies: [policy('db', 'catalog', [['web', 'db', undefined]])] })
  assert.equal(said.verdict, 'denied')
  assert.equal(said.policy?.intention?.action, null)
})

test('rules that are not loaded deny at the destination, and are undecided elsewhere', () => {
  const here = ask('web', 'cache', { policies: [] })
  assert.equal(here.verdict, 'denied')
  assert.match(here.summary, /not loaded/)
  const elsewhere = ask('web', 'db', { policies: [] })
  assert.equal(elsewhere.verdict, 'undecided')
  assert.equal(elsewhere.policy?.allow, null)
  assert.deepEqual(elsewhere.next, ['On host-2: hostmesh explain --from web --to db'])
})

test('what the catalog says is no substitute for the rules by which this host decides', () => {
  const said = ask('web', 'cache', {
    policies: [policy('cache', 'catalog', [['web', 'cache', 'allow']])],
  })
  assert.equal(said.verdict, 'denied')
})

test('on the same host: no certificate, no tunnel, the same policy, delivered here', () => {
  const said = ask('web', 'cache', {
    certificates: { ...facts().certificates, leaves: [] },
  })
  assert.equal(said.verdict, 'allowed')
  assert.equal(said.policy?.decidedAt, 'here')
  assert.equal(station(said, 'certificate').mark, 'none')
  assert.equal(station(said, 'tunnel').mark, 'none')
  assert.match(station(said, 'delivery').summary, /127\.0\.0\.1:6379/)
})

test('no instance, and none that may be picked, are unreachable', () => {
  assert.equal(ask('web', 'gone').verdict, 'unreachable')
  const services = [service('db', 1, [endpoint('db', 2, { health: 'critical' })])]
  const said = ask('web', 'db', { services })
  assert.equal(said.verdict, 'unreachable')
  assert.match(station(said, 'endpoint').details.join(), /left out, its health is critical/)
  assert.match(station(said, 'certificate').summary, /^It shows/)
  assert.match(station(said, 'tunnel').summary, /10\.0\.0\.2:15443/)
  const own = [service('cache', 3, [endpoint('cache', 1, { local: true, health: 'critical' })])]
  assert.equal(ask('web', 'cache', { services: own }).policy?.decidedAt, 'here')
  assert.equal(station(ask('web', 'gone'), 'tunnel').summary, 'None: there is nobody to dial')
})

test('an instance that was asked for by its address is tried whatever its health', () => {
  const said = ask('web', '10.0.0.3:5432')
  assert.equal(said.verdict, 'allowed')
  assert.equal(station(said, 'endpoint').mark, 'warning')
  assert.deepEqual(
    said.endpoints.map(({ endpoint: key, excluded }) => [key, excluded]),
    [
      ['host-3/db-3', null],
      ['host-2/db-2', 'another instance was asked for'],
    ],
  )
})

test('callers and services that are not known are said to be', () => {
  assert.equal(ask('nobody', 'db').verdict, 'unknownCaller')
  assert.equal(ask('web', 'nothing').verdict, 'unknownService')
  assert.equal(ask('web', '240.9.9.9:80').verdict, 'unreachable')
  const early = ask('web', '240.0.0.1', { snapshotVersion: 0, services: [], awaited: ['db'] })
  assert.equal(early.verdict, 'unreachable')
  assert.match(early.summary, /nothing of the mesh yet/)
})

test('every way past the mesh is not captured, with the reason', () => {
  const { capture } = facts()
  const said = {
    off: ask('web', 'db', { capture: { ...capture, mode: 'off', inSync: null, plan: null } }),
    noIdentity: ask('tool', '240.0.0.1'),
    noRule: ask('web', 'db', {
      capture: {
        ...capture,
        problems: ['there is no cgroup'],
        plan: capture.plan === null ? null : { ...capture.plan, workloads: [] },
      },
    }),
    foreign: ask('web', '10.9.9.9:80'),
    otherListener: ask('web', '127.0.0.1:9001'),
  }
  for (const [name, { verdict }] of Object.entries(said)) assert.equal(verdict, 'uncaptured', name)
  assert.match(said.off.summary, /capture is off/)
  assert.match(said.noIdentity.summary, /no identity/)
  assert.deepEqual(said.noRule.next.slice(0, 1), ['there is no cgroup'])
  assert.match(said.foreign.summary, /past the mesh/)
  assert.match(said.otherListener.summary, /in the name of tool/)
})

test('a container is captured where the host forwards for it, by the address that is known', () => {
  const { capture, local: services } = facts()
  const selector = { kind: 'sourceAddress', ip: '172.17.0.2' } as const
  const parts = {
    local: [...services, local('boxed', { selector, capturePort: 15_101 })],
    services: [
      service('db', 1, [endpoint('db', 2)]),
      service('near', 2, [endpoint('near', 1, { application: { ip: '172.17.0.3', port: 80 } })]),
      service('six', 3, [endpoint('six', 2, { application: { ip: 'fd00::2', port: 80 } })]),
    ],
    capture: {
      ...capture,
      plan: capture.plan && {
        ...capture.plan,
        workloads: [...capture.plan.workloads, { selector, capturePort: 15_101 }],
      },
    },
  } satisfies Partial<HostFacts>
  assert.equal(station(ask('boxed', 'db', parts), 'capture').mark, 'good')
  const near = ask('boxed', '172.17.0.3:80', parts)
  assert.equal(near.verdict, 'uncaptured')
  assert.match(near.summary, /on one bridge/)
  const shown = { ...parts, capture: { ...parts.capture, backend: 'iptables' } } as const
  assert.equal(station(ask('boxed', '172.17.0.3:80', shown), 'capture').mark, 'good')
  const six = ask('boxed', '[fd00::2]:80', parts)
  assert.equal(six.verdict, 'uncaptured')
  assert.match(station(six, 'capture').summary, /by IPv6/)
})

test('an upstream port needs neither capture nor identity', () => {
  const said = ask('tool', 'db', { policies: [policy('db', 'catalog', [['*', '*', 'allow']])] })
  assert.equal(said.verdict, 'allowed')
  assert.deepEqual(said.entry, {
    kind: 'upstream',
    address: '127.0.0.1:9001',
    port: 9001,
    rules: [],
  })
})

test('a caller that no rule recognizes goes in the name of the default identity, and that is said', () => {
  const { capture, local: services } = facts()
  const said = ask('tool', '240.0.0.1:5432', {
    local: [...services, local('anybody', { capturePort: 15_199 })],
    capture: {
      ...capture,
      plan: capture.plan === null ? null : { ...capture.plan, defaultCapturePort: 15_199 },
    },
  })
  assert.equal(said.verdict, 'uncaptured')
  assert.match(said.summary, /in the name of anybody, not of tool/)
})

test('a certificate that is missing, over, not begun or revoked makes it unreachable', () => {
  const { certificates } = facts()
  const [web] = certificates.leaves
  assert.ok(web)
  const withLeaf = (leaf: Partial<typeof web>): Explanation =>
    ask('web', 'db', { certificates: { ...certificates, leaves: [{ ...web, ...leaf }] } })
  const said = {
    'is missing': ask('web', 'db', { certificates: { ...certificates, leaves: [] } }),
    'has expired': withLeaf({ notAfter: '2026-03-01T11:59:59.000Z' }),
    'is not valid before': withLeaf({ notBefore: '2026-03-01T12:00:01.000Z' }),
    'is revoked': ask('web', 'db', { certificates: { ...certificates, revokedSerials: ['0A'] } }),
  }
  for (const [why, { verdict, summary }] of Object.entries(said)) {
    assert.equal(verdict, 'unreachable', why)
    assert.ok(summary.includes(why), summary)
  }
})

test('the first failure on the path is the verdict, and later ones are still shown', () => {
  const said = ask('web', 'vault', { certificates: { ...facts().certificates, leaves: [] } })
  assert.equal(said.verdict, 'unreachable')
  assert.equal(station(said, 'policy').mark, 'bad')
})

test('the destination explains a caller of another host by its own rules alone', () => {
  assert.equal(ask('elsewhere', 'cache').verdict, 'denied')
  const said = ask('elsewhere', 'cache', {
    policies: [policy('cache', 'snapshot', [['*', 'cache', 'allow']])],
  })
  assert.equal(said.verdict, 'allowed')
  assert.match(said.summary, /host-1 lets elsewhere reach cache/)
})

test('a live connection is told from its record, a refused one with what it ended with', () => {
  const open: ConnectionEntry = {
    id: '0-17',
    direction: 'outbound',
    source: 'web',
    destination: 'db',
    downstreamAddress: '10.0.0.1:40112',
    originalDestination: '240.0.0.1:5432',
    endpoint: 'host-2/db-2',
    openedAt: '2026-03-01T11:59:30.000Z',
    sentBytes: 100,
    receivedBytes: 2_048,
    state: 'open',
    peerAddress: '10.0.0.2:15443',
  }
  const live = explain(facts(), { kind: 'connection', connection: open })
  assert.equal(live.verdict, 'allowed')
  assert.equal(live.connection, '0-17')
  assert.equal(station(live, 'endpoint').summary, 'It was given to host-2/db-2')
  assert.match(station(live, 'connection').details.join(), /100 bytes sent, 2048 received/)
  const refused: RefusedEntry = {
    ...open,
    flag: 'UF',
    code: 'HM_DIAL_FAILED',
    reason: 'Cannot reach db at 10.0.0.2:15443',
    endedAt: '2026-03-01T11:59:31.500Z',
  }
  const ended = explain(facts(), { kind: 'connection', connection: refused })
  assert.equal(ended.verdict, 'unreachable')
  assert.match(station(ended, 'connection').summary, /with UF after 1500 ms: Cannot reach db/)
  const denied = explain(facts(), {
    kind: 'connection',
    connection: { ...refused, flag: 'DENY', destination: 'unknown', originalDestination: null },
  })
  assert.equal(denied.verdict, 'denied')
  const early = { ...open, destination: '', originalDestination: null, endpoint: null }
  const opening = explain(facts(), { kind: 'connection', connection: early })
  assert.deepEqual(
    opening.stations.map(({ name }) => name),
    ['connection'],
  )
})

test('what is no destination is a usage error', () => {
  for (const to of ['', 'db:0', 'db:65536', 'a b', '[::1', 'db:x'])
    assert.throws(() => ask('web', to), { code: 'HM_USAGE_DESTINATION' }, to)
  assert.equal(ask('web', '[fdc6::1]:80').verdict, 'uncaptured')
  assert.equal(ask('web', 'fdc6::1').verdict, 'uncaptured')
})

test('facts go through a file unchanged as far as explaining goes; broken files are refused by name', () => {
  const read = parseFacts(JSON.stringify(facts()), 'f.json')
  const db = facts().services[0]
  for (const [from, to] of [
    ['web', 'db'],
    ['web', 'vault'],
    ['tool', '127.0.0.1:9001'],
  ] as const)
    assert.deepEqual(explain(read, { kind: 'pair', from, to }), ask(from, to))
  for (const [text, why] of [
    ['{', /f\.json: it is no JSON/],
    ['{}', /format/],
    [
      JSON.stringify({ ...facts(), formatVersion: 1 }),
      /formatVersion: it is 1, and this hostmesh reads 3$/,
    ],
    [JSON.stringify({ ...facts(), services: [{ name: 'x' }] }), /services\.0/],
    [JSON.stringify({ ...facts(), services: [{ ...db, clusters: [] }] }), /services\.0\.clusters/],
  ] as const)
    assert.throws(() => parseFacts(text, 'f.json'), { code: 'HM_SNAPSHOT_INVALID', message: why })
})

test('a redirect is told by the service and datacenter that it reaches, failover by its order', () => {
  const services = [
    service('db', 9, [
      endpoint('api', 4, { datacenter: 'dc2' }),
      endpoint('spare', 5, { priority: 1 }),
    ]),
  ]
  const policies = [policy('api', 'catalog', [['web', 'api', 'allow']])]
  const said = ask('web', 'db', { services, policies })
  assert.equal(said.verdict, 'allowed')
  assert.equal(said.service, 'db')
  assert.equal(said.expectedSpiffeId, 'spiffe://mesh.example/ns/default/dc/dc2/svc/api')
  assert.equal(said.serverName, 'api.default.dc2.internal.mesh.example')
  assert.equal(said.policy?.intention?.destination, 'api')
  assert.deepEqual(
    said.endpoints.map(({ endpoint: key, excluded }) => [key, excluded]),
    [
      ['host-4/api-4', null],
      ['host-5/spare-5', 'it is for failover (step 1)'],
    ],
  )
})

test('an instance that every worker has ejected is excluded with the reason, unless it is the last', () => {
  const services = [service('db', 9, [endpoint('db', 2), endpoint('db', 4, { priority: 1 })])]
  const load = (worker: number, ejectionReason: string | null): HostFacts['loads'][number] => ({
    worker,
    endpoint: 'host-2/db-2',
    inFlight: 0,
    cost: 1,
    failures: 3,
    ejectionReason,
  })
  const chosen = (loads: HostFacts['loads'], list = services): string[] =>
    ask('web', 'db', { services: list, loads }).endpoints.map(
      ({ endpoint: key, excluded }) => `${key}: ${excluded ?? 'candidate'}`,
    )
  assert.deepEqual(chosen([load(0, 'refused'), load(1, null)]), [
    'host-2/db-2: candidate',
    'host-4/db-4: it is for failover (step 1)',
  ])
  assert.deepEqual(chosen([load(0, 'refused'), load(1, 'refused')]), [
    'host-4/db-4: candidate',
    'host-2/db-2: connections to it failed (refused)',
  ])
  const alone = [service('db', 9, [endpoint('db', 2)])]
  assert.deepEqual(chosen([load(0, 'refused')], alone), ['host-2/db-2: candidate'])
})
