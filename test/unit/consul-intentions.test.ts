/**
 * What Consul says about intentions, old and new: nothing that is not understood may open anything.
 */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { assert as check, constantFrom, jsonValue, property } from 'fast-check'
import { decodeIntentions } from '../../src/controlplane/catalog/consul/decode-intentions.ts'
import { errorCode } from '../../src/lib/errors.ts'

function intention(fields: Record<string, unknown>): Record<string, unknown> {
  return {
    ID: '8bea',
    SourceNS: 'default',
    SourceName: 'web',
    DestinationNS: 'default',
    DestinationName: 'db',
    SourceType: 'consul',
    Action: 'allow',
    Precedence: 9,
    ...fields,
  }
}

function decodeRules(...rules: unknown[]) {
  const decoded = decodeIntentions(['db'], { db: rules })
  return { rules: decoded.byDestination.get('db') ?? [], problems: decoded.problems }
}

test('intentions keep their action and precedence, highest first', () => {
  const { rules } = decodeRules(
    intention({ SourceName: '*', DestinationName: '*', Action: 'deny', Precedence: 5 }),
    intention({}),
    intention({ SourceName: '*', Precedence: 8 }),
  )
  assert.deepEqual(
    rules.map((rule) => [rule.source, rule.destination, rule.action, rule.precedence]),
    [
      ['web', 'db', 'allow', 9],
      ['*', 'db', 'allow', 8],
      ['*', '*', 'deny', 5],
    ],
  )
})

test('null stands for no intentions, and a destination that is not mentioned refuses the answer', () => {
  assert.deepEqual(decodeIntentions(['db'], { db: null }).byDestination.get('db'), [])
  for (const body of [{}, { web: [] }, [], null, 'x', { db: 'x' }, { db: {} }])
    assert.throws(
      () => decodeIntentions(['db'], body),
      (error) => errorCode(error) === 'HM_CONSUL_ANSWER_MALFORMED',
      JSON.stringify(body),
    )
})

test('a destination called __proto__ or constructor is no more than a name', () => {
  assert.throws(() => decodeIntentions(['constructor'], {}))
  const body: unknown = JSON.parse('{"__proto__":[]}')
  assert.deepEqual(decodeIntentions(['__proto__'], body).byDestination.get('__proto__'), [])
})

test('an action that is none, JWT, sameness groups and unknown fields deny, and say why', () => {
  for (const [fields, why] of [
    [{ Action: '' }, /the action ""/],
    [{ Action: 'ALLOW' }, /the action "ALLOW"/],
    [{ Action: undefined }, /the action nothing/],
    [{ Action: 7 }, /the action 7/],
    [{ JWT: { Providers: [{ Name: 'okta' }] } }, /JWT requirements/],
    [{ JWT: {} }, /JWT requirements/],
    [{ Action: undefined, Permissions: allowAll(), JWT: {} }, /JWT requirements/],
    [{ SourceSamenessGroup: 'all' }, /sameness group/],
    [{ SourceType: 'external-uri' }, /source type "external-uri"/],
    [{ SourceIdentity: 'x' }, /unknown field "SourceIdentity"/],
    [{ Permissions: allowAll() }, /both an action and permissions/],
    [{ Action: undefined, Permissions: { 0: 'x' } }, /an object as its permissions/],
  ] as const) {
    const { rules, problems } = decodeRules(intention(fields))
    assert.equal(rules[0]?.action, undefined, JSON.stringify(fields))
    assert.match(rules[0]?.undecidable ?? '', why)
    assert.equal(rules[0]?.permissions, undefined)
    assert.match(problems[0] ?? '', /"web" -> "db" denies/)
  }
  const silent = { Permissions: [], JWT: null, NewText: '', NewFlag: false, NewList: [] }
  assert.deepEqual(decodeRules(intention(silent)), decodeRules(intention({})))
})

function allowAll() {
  return [{ Action: 'allow', HTTP: { PathPrefix: '/' } }]
}

test('L7 permissions are kept in their order, with all conditions, and the rule has no action', () => {
  const { rules, problems } = decodeRules(
    intention({
      Action: undefined,
      Permissions: [
        { Action: 'deny', HTTP: { PathExact: '/admin', Methods: ['post', 'PUT'] } },
        {
          Action: 'allow',
          HTTP: {
            PathRegex: '/v[0-9]+/.*',
            Header: [
              { Name: 'X-Debug', Present: true, Invert: true },
              { Name: 'x-team', Prefix: 'Core', IgnoreCase: true },
              { Name: 'a', Exact: '1' },
              { Name: 'b', Suffix: '2' },
              { Name: 'c', Contains: '3' },
              { Name: 'd', Regex: '4|5' },
            ],
          },
        },
        { Action: 'allow', HTTP: { PathPrefix: '/api' }, JWT: null },
      ],
    }),
  )
  const header = { value: '', invert: false, ignoreCase: false }
  assert.deepEqual(rules[0]?.permissions, [
    {
      action: 'deny',
      path: { kind: 'exact', value: '/admin' },
      methods: ['POST', 'PUT'],
      headers: [],
    },
    {
      action: 'allow',
      path: { kind: 'regex', value: '/v[0-9]+/.*' },
      methods: [],
      headers: [
        { ...header, name: 'x-debug', kind: 'present', invert: true },
        { ...header, name: 'x-team', kind: 'prefix', value: 'Core', ignoreCase: true },
        { ...header, name: 'a', kind: 'exact', value: '1' },
        { ...header, name: 'b', kind: 'suffix', value: '2' },
        { ...header, name: 'c', kind: 'contains', value: '3' },
        { ...header, name: 'd', kind: 'regex', value: '4|5' },
      ],
    },
    { action: 'allow', path: { kind: 'prefix', value: '/api' }, methods: [], headers: [] },
  ])
  assert.equal(rules[0]?.action, undefined)
  assert.equal(rules[0]?.undecidable, undefined)
  assert.match(problems[0] ?? '', /"web" -> "db" denies: it decides by HTTP request/)
})

test('a permission with one thing that is not understood makes its whole rule undecidable', () => {
  const http = (HTTP: unknown): unknown => ({ Action: 'allow', HTTP })
  const header = (fields: Record<string, unknown>): unknown =>
    http({ PathPrefix: '/', Header: [{ Name: 'x', ...fields }] })
  for (const [permission, why] of [
    ['x', /"x" where an object belongs/],
    [{ Action: 'allow' }, /nothing where an object belongs/],
    [{ Action: 'log', HTTP: { PathPrefix: '/' } }, /the action "log"/],
    [{ ...allowAll()[0], GRPC: { Service: 'x' } }, /unknown field "GRPC"/],
    [{ ...allowAll()[0], JWT: { Providers: [{ Name: 'okta' }] } }, /JWT requirements/],
    [http({}), /no condition at all/],
    [http({ PathPrefix: '/', Query: 'x' }), /unknown field "Query"/],
    [http({ PathPrefix: '/', PathExact: '/a' }), /more than one condition on the path/],
    [http({ PathPrefix: 'api' }), /does not begin with/],
    [http({ PathPrefix: 7 }), /7 as its PathPrefix/],
    [http({ Methods: 'GET' }), /"GET" as its Methods/],
    [http({ Methods: ['GET', 7] }), /the method 7/],
    [http({ Methods: ['GET POST'] }), /the method "GET POST"/],
    [http({ Header: {} }), /an object as its Header/],
    [header({ Exact: 'a', Sounds: 'like' }), /unknown field "Sounds"/],
    [header({}), /0 conditions on the header x/],
    [header({ Present: true, Exact: 'a' }), /2 conditions on the header x/],
    [header({ Exact: 7 }), /7 as Exact/],
    [header({ Exact: 'a', Invert: 'yes' }), /neither true nor false/],
    [header({ Name: 'a b', Exact: 'a' }), /the header "a b"/],
  ] as const) {
    const { rules } = decodeRules(
      intention({ Action: undefined, Permissions: [...allowAll(), permission] }),
    )
    assert.match(rules[0]?.undecidable ?? '', /^has a permission \(1\) that /)
    assert.match(rules[0]?.undecidable ?? '', why, JSON.stringify(permission))
    assert.equal(rules[0]?.permissions, undefined)
    assert.equal(rules[0]?.action, undefined)
  }
})

test('what a Consul 1.22 makes of service-intentions entries is read as they were written', () => {
  const file = join(import.meta.dirname, '../vectors/consul/intentions-match-1.22.json')
  const body: unknown = JSON.parse(readFileSync(file, 'utf8'))
  const { byDestination } = decodeIntentions(['db', 'cache'], body)
  const verdicts = [...byDestination.values()]
    .flat()
    .map((rule) => [
      `${rule.source} -> ${rule.destination}`,
      rule.action ?? rule.undecidable ?? rule.permissions?.map(({ action }) => action).join(),
    ])
  assert.deepEqual(Object.fromEntries(verdicts), {
    'api -> db': 'allow',
    'jwt -> db': 'has a permission (0) that has JWT requirements',
    'web -> db': 'deny,allow',
    'web -> cache': 'has JWT requirements',
  })
})

test('a missing precedence is computed as Consul would', () => {
  const precedence = (SourceName: string, DestinationName: string): number | undefined =>
    decodeRules(intention({ SourceName, DestinationName, Precedence: undefined })).rules[0]
      ?.precedence
  assert.equal(precedence('web', 'db'), 9)
  assert.equal(precedence('*', 'db'), 8)
  assert.equal(precedence('web', '*'), 6)
  assert.equal(precedence('*', '*'), 5)
})

test('of two rules for the same pair the one that does not allow decides', () => {
  const { rules } = decodeRules(intention({}), intention({ Action: 'deny' }))
  assert.equal(rules[0]?.action, 'deny')
})

test('a rule that cannot be read refuses the answer rather than vanish', () => {
  for (const rule of [null, 'x', {}, intention({ SourceName: 7 }), intention({ SourceName: '' })])
    assert.throws(
      () => decodeRules(rule),
      (error) => errorCode(error) === 'HM_CONSUL_ANSWER_MALFORMED',
    )
  assert.throws(() => decodeRules(intention({ DestinationName: 'web' })))
})

test('rules about callers of another cluster, partition or namespace never speak of ours', () => {
  for (const fields of [
    { SourcePeer: 'east' },
    { SourcePeer: '*' },
    { SourcePeer: 'default' },
    { SourceNS: 'team' },
    { SourcePartition: 'p2' },
    { SourcePartition: '*' },
    { DestinationNS: 'team' },
    { DestinationPartition: 'p2' },
  ])
    for (const Action of ['allow', 'deny'])
      for (const SourceName of ['web', '*'])
        assert.deepEqual(
          decodeRules(intention({ ...fields, Action, SourceName })).rules,
          [],
          JSON.stringify(fields),
        )
  assert.equal(
    decodeRules(intention({ SourcePeer: '', SourcePartition: 'default' })).rules.length,
    1,
  )
})

test('a peer, partition or namespace that is no text refuses the answer rather than drop a rule', () => {
  for (const key of ['SourcePeer', 'SourceNS', 'SourcePartition', 'DestinationNS'])
    for (const value of [7, true, {}, ['x']])
      assert.throws(
        () => decodeRules(intention({ [key]: value, Action: 'deny' })),
        (error) => errorCode(error) === 'HM_CONSUL_ANSWER_MALFORMED',
        `${key} ${JSON.stringify(value)}`,
      )
})

test('a destination in another case is ours, as it is to Consul; a source in another case is another', () => {
  const { rules } = decodeRules(intention({ SourceName: 'Web', DestinationName: 'DB' }))
  assert.deepEqual([rules[0]?.source, rules[0]?.destination], ['Web', 'db'])
})

test('source names are kept byte for byte: only * is special to those who compare', () => {
  for (const name of ['a.b', 'a*', '.*', 'é', '__proto__', 'x'.repeat(300)])
    assert.equal(decodeRules(intention({ SourceName: name })).rules[0]?.source, name)
})

test('no JSON in any field of a rule makes it allow, or the decoder crash', () => {
  const fields = ['Action', 'Permissions', 'JWT', 'SourceType', 'Precedence', 'SourcePeer', 'New']
  check(
    property(constantFrom(...fields), jsonValue({ maxDepth: 3 }), (field, value) => {
      try {
        const { rules } = decodeRules(intention({ Action: 'deny', [field]: value }))
        if (field !== 'Action' || value !== 'allow')
          for (const rule of rules) assert.notEqual(rule.action, 'allow')
      } catch (error) {
        assert.match(errorCode(error), /^HM_CONSUL_/)
      }
    }),
    { seed: 7, numRuns: 1_000 },
  )
})
