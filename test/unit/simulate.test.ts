/**
 * What a set of intentions, in each of its forms, would do to what was seen.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { readIntentions } from '../../src/daemon/intention-file.ts'
import { type Simulation, simulate } from '../../src/daemon/simulate.ts'
import type { GraphEdge } from '../../src/model/fleet.ts'
import { calm, edge } from '../integration/fleet-fixtures.ts'

const seen: readonly GraphEdge[] = [
  edge('web', 'db'),
  edge('batch', 'db'),
  edge('web', 'cache', { policy: null }),
  edge('probe', 'db', {
    policy: { allow: false, rule: null, reason: 'the default policy says deny' },
    traffic: { ...calm, active: 0, closed: { DENY: 3 } },
  }),
]

function outcome(text: string, edges = seen, defaultPolicy: 'allow' | 'deny' = 'deny'): Simulation {
  const destinations = [...new Set(edges.map(({ destination }) => destination))]
  return simulate(readIntentions(text, { fileName: 'x', defaultPolicy, destinations }), edges)
}

function changes(simulation: Simulation): string[] {
  return simulation.pairs.map(
    ({ source, destination, today, proposed, change }) =>
      `${source} -> ${destination}: ${today} -> ${proposed}, ${change}`,
  )
}

/** web may call db, probe too, all others not. */
const expected = [
  'web -> cache: allow -> deny, cut',
  'batch -> db: allow -> deny, cut',
  'probe -> db: deny -> allow, opened',
  'web -> db: allow -> allow, same',
]

test('every form of the same intentions has the same outcome', () => {
  const sources = [
    { Name: 'web', Action: 'allow' },
    { Name: 'probe', Action: 'allow', Precedence: 9, Type: 'consul', LegacyID: 'x' },
  ]
  const entry = { Kind: 'service-intentions', Name: 'db', Sources: sources, Meta: { who: 'me' } }
  const forms = [
    JSON.stringify(entry),
    JSON.stringify([entry, { Kind: 'proxy-defaults', Name: 'global' }]),
    'kind: service-intentions\nname: db\nsources:\n- {name: web, action: allow}\n- {name: probe, action: allow}\n',
    `---
apiVersion: consul.hashicorp.com/v1alpha1
kind: ServiceIntentions
metadata: {name: db}
spec:
  destination: {name: db}
  sources: [{name: web, action: allow}]
---
kind: ServiceIntentions
spec: {destination: {name: db}, sources: [{name: probe, action: allow}]}
`,
    JSON.stringify(
      ['web', 'probe'].map((SourceName) => ({
        ID: 'x',
        SourceName,
        DestinationName: 'db',
        Action: 'allow',
        SourceType: 'consul',
      })),
    ),
    'intentions:\n- {SourceName: web, DestinationName: db, Action: allow}\n- {SourceName: probe, DestinationName: db, Action: allow}\n',
  ]
  for (const text of forms) {
    const simulation = outcome(text)
    assert.deepEqual(changes(simulation), expected, text)
    assert.deepEqual(
      [simulation.cut, simulation.opened, simulation.allowed, simulation.denied],
      [2, 1, 2, 2],
    )
  }
})

test('the rule that decides is named, for today and for then', () => {
  const [cut] = outcome(
    JSON.stringify({
      Kind: 'service-intentions',
      Name: '*',
      Sources: [{ Name: '*', Action: 'deny' }],
    }),
  ).pairs.filter(({ source, destination }) => source === 'web' && destination === 'db')
  assert.equal(cut?.because, 'intention * -> * (precedence 5) says deny')
  assert.equal(cut?.becauseToday, 'intention web -> db (precedence 9) says allow')
})

test('the default policy is that of the catalog file, else the given one', () => {
  assert.equal(outcome('defaultPolicy: allow', seen, 'deny').cut, 0)
  assert.equal(outcome('[]', seen, 'allow').cut, 0)
  assert.equal(outcome('[]', seen, 'deny').cut, 3)
})

test('what cannot be obeyed denies and is said: HTTP permissions, JWT, unknown fields', () => {
  for (const more of [
    { Sources: [{ Name: 'web', Permissions: [{ Action: 'allow', HTTP: { PathPrefix: '/' } }] }] },
    { Sources: [{ Name: 'web', Action: 'allow' }], JWT: { Providers: [{ Name: 'okta' }] } },
    { Sources: [{ Name: 'web', Action: 'allow', Unheard: 1 }] },
    { Sources: [{ Name: 'web' }] },
  ]) {
    const simulation = outcome(JSON.stringify({ Kind: 'service-intentions', Name: 'db', ...more }))
    assert.ok(changes(simulation).includes('web -> db: allow -> deny, cut'), JSON.stringify(more))
    assert.match(simulation.problems.join('\n'), /"web" -> "db" denies/)
  }
})

test('without a reported rule, what became of the connections is what is true today', () => {
  const of = (traffic: Partial<typeof calm>): string | undefined =>
    outcome('[]', [
      edge('web', 'db', { policy: null, traffic: { ...calm, active: 0, ...traffic } }),
    ]).pairs[0]?.today
  assert.equal(of({ closed: { DENY: 4 } }), 'deny')
  assert.equal(of({ closed: { DENY: 4, UF: 1 } }), 'allow')
  assert.equal(of({ closed: {}, active: 2 }), 'allow')
  assert.equal(of({ closed: {} }), 'unknown')
})

test('pairs that hosts count together are not judged', () => {
  const simulation = outcome('[]', [edge('other', 'other')])
  assert.deepEqual(simulation.pairs, [])
  assert.match(simulation.problems.join(), /Not judged/)
})

test('a file that is none of these is refused with its reason, and nothing is guessed', () => {
  const wrong: [string, RegExp][] = [
    ['Kind = "service-intentions"\nName = "db"\n', /Cannot read intentions of x/],
    ['', /it is empty/],
    ['{"Kind": "service-intentions"}', /entry 1 has no Name/],
    ['{"Kind": "service-intentions", "Name": "db"}', /entry for db has no Sources/],
    ['{"Kind": "service-intentions", "Name": "db", "Sources": [{}]}', /has no Name/],
    ['{"Name": "db"}', /entry 1 has no Kind/],
    ['{"Kind": "a", "Kind": "b"}', /Duplicate key/],
    ['intentions:\n- {SourceName: web, DestinationName: db, Acton: allow}\n', /x:2:.*did you mean/],
    ['["x"]', /holds "x" as an entry/],
  ]
  for (const [text, reason] of wrong) {
    assert.throws(
      () => outcome(text),
      (thrown) => {
        assert.ok(thrown instanceof Error && 'code' in thrown)
        assert.equal(thrown.code, 'HM_USAGE_INTENTIONS')
        assert.match(thrown.message, reason)
        return true
      },
    )
  }
})
