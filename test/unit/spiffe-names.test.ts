/** Claims about src/model/spiffe-id.ts: identities survive a round trip, lookalikes are refused. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import * as fc from 'fast-check'
import {
  formatServerName,
  formatSpiffeId,
  isServiceName,
  parseSpiffeId,
  serviceOfServerName,
} from '../../src/model/spiffe-id.ts'

const TRUST_DOMAIN = '11111111-2222-3333-4444-555555555555.consul'
const place = { trustDomain: TRUST_DOMAIN, datacenter: 'dc1' }
const service = fc.stringMatching(/^[a-z0-9]([a-z0-9._-]{0,126}[a-z0-9])?$/)
const identity = fc.record({
  trustDomain: fc.stringMatching(/^[a-z0-9._-]{1,64}$/),
  datacenter: fc.stringMatching(/^[a-z0-9_-]{1,64}$/),
  service,
})

test('an identity is read back from its SPIFFE ID', () => {
  fc.assert(
    fc.property(identity, (given) => {
      assert.deepEqual(parseSpiffeId(formatSpiffeId(given)), { ...given })
    }),
  )
})

test('an ID is the one that Consul writes', () => {
  assert.equal(
    formatSpiffeId({ ...place, service: 'db' }),
    `spiffe://${TRUST_DOMAIN}/ns/default/dc/dc1/svc/db`,
  )
  assert.equal(
    formatServerName({ ...place, service: 'db' }),
    `db.default.dc1.internal.${TRUST_DOMAIN}`,
  )
})

test('IDs of agents, gateways, other namespaces and lookalikes are not those of a service', () => {
  const good = formatSpiffeId({ ...place, service: 'db' })
  const lookalikes = [
    '',
    `spiffe://${TRUST_DOMAIN}/agent/client/dc/dc1/id/host-a`,
    `spiffe://${TRUST_DOMAIN}/gateway/mesh/dc/dc1`,
    `spiffe://${TRUST_DOMAIN}/ns/other/dc/dc1/svc/db`,
    `spiffe://${TRUST_DOMAIN}/ap/x/ns/default/dc/dc1/svc/db`,
    `${good}/`,
    `${good}?x`,
    `${good}#x`,
    `${good}\0`,
    `${good}\n`,
    ` ${good}`,
    good.replace('spiffe', 'SPIFFE'),
    good.replace('spiffe', 'https'),
    good.replace(TRUST_DOMAIN, TRUST_DOMAIN.toUpperCase().replace('1', 'A')),
    good.replace('/svc/db', '/svc/'),
    good.replace('/svc/db', '/svc/d%62'),
    good.replace('/svc/db', '/svc/a/b'),
    good.replace('/svc/db', '/svc/*'),
    good.replace('/svc/db', `/svc/${'a'.repeat(129)}`),
  ]
  for (const uri of lookalikes) assert.equal(parseSpiffeId(uri), undefined, JSON.stringify(uri))
})

test('no text is read as an identity that is written differently', () => {
  fc.assert(
    fc.property(
      fc.oneof(
        fc.string(),
        service.map((name) => `spiffe://td/ns/default/dc/dc1/svc/${name}`),
      ),
      (uri) => {
        const parsed = parseSpiffeId(uri)
        if (parsed !== undefined) assert.equal(formatSpiffeId(parsed), uri)
      },
    ),
  )
})

test('a server name leads back to its service, in any case', () => {
  fc.assert(
    fc.property(service, (name) => {
      const serverName = formatServerName({ ...place, service: name })
      assert.equal(serviceOfServerName(serverName, place, new Set([name])), name)
      assert.equal(serviceOfServerName(serverName.toUpperCase(), place, new Set([name])), name)
    }),
  )
})

test('a server name of another datacenter, trust domain or shape names no service', () => {
  for (const name of [
    '',
    'db',
    `.default.dc1.internal.${TRUST_DOMAIN}`,
    `db.default.dc2.internal.${TRUST_DOMAIN}`,
    `db.default.dc1.internal.evil.${TRUST_DOMAIN}.`,
    `db.default.dc1.internal.x${TRUST_DOMAIN}`,
    `db.default.dc1.internal.${TRUST_DOMAIN}.evil`,
    `db.other.dc1.internal.${TRUST_DOMAIN}`,
    `*.default.dc1.internal.${TRUST_DOMAIN}`,
    `-.default.dc1.internal.${TRUST_DOMAIN}`,
  ])
    assert.equal(
      serviceOfServerName(name, place, new Set(['', 'db', '*', '-', 'other'])),
      undefined,
      name,
    )
})

test('a subset in front of a server name asks for the same service', () => {
  const ask = (name: string, offered: readonly string[]): string | undefined =>
    serviceOfServerName(`${name}.default.dc1.internal.${TRUST_DOMAIN}`, place, new Set(offered))
  assert.equal(ask('v1.db', ['db']), 'db')
  assert.equal(ask('V1.DB', ['db']), 'db')
  assert.equal(ask('v1.a.b', ['a.b']), 'a.b')
  assert.equal(ask('v1.db', ['db', 'v1.db']), 'v1.db', 'a service may be called so')
  for (const name of [
    'v1.other',
    'a.v1.db',
    '.db',
    '-v.db',
    'v_1.db',
    'v1..db',
    '*.db',
    'v1.db.',
    `${'x'.repeat(64)}.db`,
  ])
    assert.equal(ask(name, ['db']), undefined, name)
})

test('names with pattern characters, upper case or a dot at an end are no service names', () => {
  for (const name of [
    '',
    '*',
    '.*',
    'a*',
    'A',
    'a.',
    '.a',
    '-a',
    'a-',
    'a b',
    'a/b',
    'a\n',
    'é',
    'a'.repeat(129),
  ])
    assert.equal(isServiceName(name), false, JSON.stringify(name))
  for (const name of ['a', '0', 'a.b', 'a-b', 'a_b', 'a'.repeat(128)])
    assert.equal(isServiceName(name), true, name)
})
