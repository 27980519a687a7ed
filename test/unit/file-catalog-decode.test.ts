/** Claims about src/controlplane/catalog/file/decode.ts: what a catalog file means, and what it must not say. */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { resolve } from 'node:path'
import { test } from 'node:test'
import * as fc from 'fast-check'
import {
  type CatalogContent,
  decodeCatalog,
  policyOf,
} from '../../src/controlplane/catalog/file/decode.ts'
import { catalogService, endpoint } from '../harness/builders.ts'

function contentOf(text: string): CatalogContent {
  const decoded = decodeCatalog(text, 'c.yaml')
  assert.ok('content' in decoded, 'problems' in decoded ? decoded.problems.join('\n') : '')
  return decoded.content
}

function problemsOf(text: string): readonly string[] {
  const decoded = decodeCatalog(text, 'c.yaml')
  return 'problems' in decoded ? decoded.problems : []
}

const DB = `services:
  - Name: db
    Instances:
      - {Node: host-b, Address: 10.0.0.7}
`

test('an instance with only a node and an address gets the defaults', () => {
  const endpoints = [endpoint('host-b/db', { datacenter: '', application: undefined })]
  assert.deepEqual(contentOf(DB).serviceByName.get('db'), catalogService('db', { endpoints }))
})

test('every key of an instance is taken', () => {
  const content = contentOf(`services:
  - Name: db
    Protocol: http2
    ConnectTimeout: 250ms
    VirtualAddresses: [240.0.0.5, 'FDC6::5']
    Instances:
      - {Node: b, ID: db-2, Address: '::ffff:10.0.0.7', Port: 1, ServiceAddress: 'FD00::7', ServicePort: 5432, Status: warning, Weight: 3}
`)
  const application = { ip: 'fd00::7', port: 5432 }
  assert.deepEqual(content.serviceByName.get('db'), {
    name: 'db',
    protocol: 'http2',
    virtualIps: ['240.0.0.5', 'fdc6::5'],
    routes: [{ match: { kind: 'any' }, clusters: [{ cluster: 'db', weight: 1 }] }],
    clusters: [
      {
        name: 'db',
        service: 'db',
        datacenter: '',
        subset: undefined,
        connectTimeoutMs: 250,
        endpoints: [
          {
            key: 'b/db-2',
            service: 'db',
            datacenter: '',
            priority: 0,
            id: 'db-2',
            node: 'b',
            tunnel: { ip: '10.0.0.7', port: 1 },
            application,
            health: 'warning',
            weight: 3,
            local: false,
          },
        ],
      },
    ],
    addresses: [{ ...application, node: 'b', since: 0 }],
  })
})

test('the address of the application is that of the host unless given', () => {
  const text = DB.replace('10.0.0.7}', '10.0.0.7, ServicePort: 5432}')
  assert.deepEqual(contentOf(text).serviceByName.get('db')?.clusters[0].endpoints[0]?.application, {
    ip: '10.0.0.7',
    port: 5432,
  })
})

test('a file that does not say otherwise denies', () => {
  assert.equal(contentOf('services: []\n').defaultPolicy, 'deny')
  assert.equal(contentOf('defaultPolicy: allow\n').defaultPolicy, 'allow')
})

const RULES = `intentions:
  - {SourceName: '*', DestinationName: '*', Action: allow}
  - {SourceName: web, DestinationName: '*', Action: deny}
  - {SourceName: '*', DestinationName: db, Action: deny}
  - {SourceName: web, DestinationName: db, Action: allow}
  - {SourceName: web, DestinationName: cache, Action: allow}
  - {SourceName: api, DestinationName: db, Permissions: [{Action: allow, HTTP: {PathPrefix: /}}]}
`

test('the permissions of a rule are kept as they are written', () => {
  const [rule] = policyOf(contentOf(RULES), 'db').intentions
  assert.deepEqual(rule?.permissions, [
    { action: 'allow', path: { kind: 'prefix', value: '/' }, methods: [], headers: [] },
  ])
})

test('rules of a destination come highest precedence first, wildcards included, others left out', () => {
  assert.deepEqual(
    policyOf(contentOf(RULES), 'db').intentions.map(
      (rule) => `${rule.source} -> ${rule.destination} ${rule.precedence} ${rule.action}`,
    ),
    [
      'api -> db 9 undefined',
      'web -> db 9 allow',
      '* -> db 8 deny',
      'web -> * 6 deny',
      '* -> * 5 allow',
    ],
  )
})

test('a destination without rules of its own has the wildcard rules', () => {
  const { intentions } = policyOf(contentOf(RULES), 'queue')
  assert.deepEqual(
    intentions.map((rule) => rule.precedence),
    [6, 5],
  )
})

const MISTAKES: readonly [claim: string, text: string, problem: RegExp][] = [
  [
    'a mistyped default policy',
    'defualtPolicy: deny\n',
    /^c\.yaml:1:1: Unknown key "defualtPolicy"; did you mean "defaultPolicy"/,
  ],
  [
    'a mistyped action',
    'intentions: [{SourceName: a, DestinationName: b, Action: alow}]\n',
    /intentions\[0\]\.Action: .*did you mean "allow"/,
  ],
  [
    'an action in upper case',
    'intentions: [{SourceName: a, DestinationName: b, Action: ALLOW}]\n',
    /did you mean "allow"/,
  ],
  [
    'a rule without action',
    'intentions: [{SourceName: a, DestinationName: b}]\n',
    /intentions\[0\]: Must have either Action or Permissions/,
  ],
  [
    'a rule with action and permissions',
    'intentions: [{SourceName: a, DestinationName: b, Action: allow, Permissions: [{}]}]\n',
    /either Action or Permissions/,
  ],
  [
    'a permission with an unknown field',
    'intentions:\n  - SourceName: a\n    DestinationName: b\n    Permissions:\n      - {Action: allow, HTTP: {PathPrefix: /, Query: x}}\n',
    /:5:9: intentions\[0\]\.Permissions\[0\]: This permission has the unknown field "Query"/,
  ],
  [
    'a permission without a condition',
    'intentions: [{SourceName: a, DestinationName: b, Permissions: [{Action: allow, HTTP: {}}]}]\n',
    /has no condition at all/,
  ],
  [
    'two rules for one pair',
    'intentions:\n  - {SourceName: a, DestinationName: b, Action: allow}\n  - {SourceName: a, DestinationName: b, Action: deny}\n',
    /:3:5: intentions\[1\]: Intention a -> b is given twice, first in intentions\[0\]/,
  ],
  [
    'a pattern as source',
    "intentions: [{SourceName: 'a*', DestinationName: b, Action: allow}]\n",
    /SourceName: Must be a service name, or \* for all/,
  ],
  [
    'a service given twice',
    'services:\n  - Name: a\n  - Name: a\n',
    /:3:11: services\[1\]\.Name: Service a is given twice/,
  ],
  [
    'an instance given twice',
    `${DB}      - {Node: host-b, Address: 10.0.0.8}\n`,
    /:5:9: services\[0\]\.Instances\[1\]: Instance host-b\/db is given twice/,
  ],
  [
    'one ID for two services of a node',
    `${DB}  - Name: cache\n    Instances: [{Node: host-b, ID: db, Address: 10.0.0.7}]\n`,
    /Instance host-b\/db is given twice/,
  ],
  [
    'one virtual address for two services',
    "services: [{Name: a, VirtualAddresses: [240.0.0.1]}, {Name: b, VirtualAddresses: ['::ffff:240.0.0.1']}]\n",
    /Virtual address 240\.0\.0\.1 is given twice/,
  ],
  [
    'an unspecified address',
    DB.replace('10.0.0.7', '0.0.0.0'),
    /Address: Must be the IPv4 or IPv6 address of one host/,
  ],
  ['a multicast address', DB.replace('10.0.0.7', '224.0.0.1'), /Address: Must be/],
  ['a host name for an address', DB.replace('10.0.0.7', 'db.example'), /Address: Must be/],
  ['port 0', DB.replace('10.0.0.7', '10.0.0.7, Port: 0'), /Port: Must be at least 1/],
  ['weight 0', DB.replace('10.0.0.7', '10.0.0.7, Weight: 0'), /Weight: Must be at least 1/],
  [
    'an unknown status',
    DB.replace('10.0.0.7', '10.0.0.7, Status: pasing'),
    /did you mean "passing"/,
  ],
  ['a missing node', DB.replace('Node: host-b, ', ''), /Node: Is missing/],
  ['a node with a slash', DB.replace('host-b', 'host/b'), /Node: Must be/],
]

for (const [claim, text, expected] of MISTAKES)
  test(`${claim} is an error that says so`, () => {
    const problems = problemsOf(text)
    assert.ok(
      problems.some((problem) => expected.test(problem)),
      `none of:\n${problems.join('\n')}\nmatches ${expected}`,
    )
  })

test('one wrong instance refuses the whole file', () => {
  assert.equal(problemsOf(`${DB}      - {Node: host-c, Address: x}\n`).length, 1)
})

const WORDS = [
  ...'services Name Instances intentions SourceName Permissions Action a 1 { } [ ] * ~'.split(' '),
  ': ',
  '\n',
  '\n  ',
  '\n- ',
  ', ',
  '&a ',
]

test('no text makes the decoder throw', () => {
  const words = fc.constantFrom(...WORDS)
  fc.assert(
    fc.property(
      fc.oneof(
        fc.string(),
        fc.array(words, { maxLength: 50 }).map((parts) => parts.join('')),
      ),
      (text) => {
        const decoded = decodeCatalog(text, 'x')
        assert.ok('content' in decoded || decoded.problems.length > 0)
      },
    ),
    { numRuns: 1_000 },
  )
})

test('the example in docs/file-catalog.md is sound', () => {
  const document = readFileSync(resolve(import.meta.dirname, '../../docs/file-catalog.md'), 'utf8')
  const text = /```yaml\n([\s\S]*?)```/.exec(document)?.[1] ?? ''
  const content = contentOf(text)
  assert.equal(content.serviceByName.get('db')?.clusters[0].endpoints.length, 1)
  assert.equal(content.intentions.length, 2)
})
