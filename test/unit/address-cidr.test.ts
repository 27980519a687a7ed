/** Claims about src/model/cidr.ts. */
import assert from 'node:assert/strict'
import { BlockList } from 'node:net'
import { test } from 'node:test'
import * as fc from 'fast-check'
import { canonicalIp } from '../../src/model/address.ts'
import {
  cidrAddress,
  cidrContains,
  cidrSize,
  cidrsOverlap,
  formatCidr,
  parseCidr,
} from '../../src/model/cidr.ts'

const block = fc.oneof(
  fc.record({ ip: fc.ipV4(), prefix: fc.integer({ min: 0, max: 32 }) }),
  fc.record({ ip: fc.ipV6(), prefix: fc.integer({ min: 0, max: 128 }) }),
)
/** IPv6 texts of mapped IPv4 addresses are IPv4 to us: their prefixes mean another thing. */
const isOneFamily = (given: { ip: string }): boolean =>
  (canonicalIp(given.ip) ?? '').includes(':') === given.ip.includes(':')

test('a block contains exactly the addresses that node:net says are in it', () => {
  fc.assert(
    fc.property(block.filter(isOneFamily), fc.oneof(fc.ipV4(), fc.ipV6()), (given, text) => {
      const cidr = parseCidr(`${given.ip}/${given.prefix}`)
      const ip = canonicalIp(text) ?? ''
      assert.ok(cidr !== undefined)
      const family = given.ip.includes(':') ? 'ipv6' : 'ipv4'
      if (family !== (ip.includes(':') ? 'ipv6' : 'ipv4')) {
        assert.equal(cidrContains(cidr, ip), false)
        return
      }
      const oracle = new BlockList()
      oracle.addSubnet(given.ip, given.prefix, family)
      assert.equal(cidrContains(cidr, ip), oracle.check(ip, family))
    }),
    { numRuns: 1_000 },
  )
})

test('the first and the last address are in the block, the ones around it are not', () => {
  for (const text of [
    '10.1.0.0/16',
    '10.0.0.8/29',
    '192.0.2.7/32',
    'fdc6::/64',
    '2001:db8::10/124',
  ]) {
    const cidr = parseCidr(text)
    assert.ok(cidr !== undefined)
    assert.equal(formatCidr(cidr), text)
    assert.ok(cidrContains(cidr, cidrAddress(cidr, 0n)))
    assert.ok(cidrContains(cidr, cidrAddress(cidr, cidrSize(cidr) - 1n)))
    assert.ok(!cidrContains(cidr, cidrAddress(cidr, cidrSize(cidr))))
    assert.ok(!cidrContains(cidr, cidrAddress(cidr, -1n)))
  }
})

test('bits beyond the prefix are cleared', () => {
  assert.deepEqual(parseCidr('10.1.2.3/8'), { network: '10.0.0.0', prefix: 8 })
  assert.deepEqual(parseCidr('FDC6::1/64'), { network: 'fdc6::', prefix: 64 })
})

test('what is no block is none', () => {
  for (const text of [
    '',
    '/',
    '10.0.0.0',
    '10.0.0.0/',
    '10.0.0.0/33',
    '::/129',
    '10.0.0/8',
    'x/8',
    '10.0.0.0/8/8',
    '10.0.0.0/-1',
    '10.0.0.0/ 8',
    '10.0.0.0/1e1',
  ])
    assert.equal(parseCidr(text), undefined, text)
})

test('two blocks overlap exactly when one contains the start of the other', () => {
  const overlap = (a: string, b: string): boolean => {
    const left = parseCidr(a)
    const right = parseCidr(b)
    assert.ok(left !== undefined && right !== undefined)
    assert.equal(cidrsOverlap(left, right), cidrsOverlap(right, left))
    return cidrsOverlap(left, right)
  }
  assert.equal(overlap('10.0.0.0/8', '10.9.0.0/16'), true)
  assert.equal(overlap('10.0.0.0/9', '10.128.0.0/9'), false)
  assert.equal(overlap('0.0.0.0/0', '::/0'), false)
})
