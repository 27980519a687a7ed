/** Claims about src/model/address.ts: one spelling for each address, the same verdict as node:net. */
import assert from 'node:assert/strict'
import { isIP } from 'node:net'
import { test } from 'node:test'
import * as fc from 'fast-check'
import {
  canonicalIp,
  formatAddress,
  ipBytes,
  ipFromBytes,
  isLoopback,
  isUndialable,
} from '../../src/model/address.ts'

const v4 = fc.ipV4()
const v6 = fc.ipV6()
/** Texts that are nearly addresses: where two parsers would differ if they differ at all. */
const nearly = fc
  .array(
    fc.constantFrom('0', '1', 'f', 'A', '255', '256', '01', ':', '::', '.', '1.2.3.4', 'ffff', 'g'),
    { maxLength: 17 },
  )
  .map((parts) => parts.join(''))

test('a text is an address exactly when node:net says so', () => {
  fc.assert(
    fc.property(fc.oneof(v4, v6, nearly, fc.string({ maxLength: 50 })), (text) => {
      // Zones name an interface of one machine: node:net takes them, we do not.
      if (text.includes('%')) return
      assert.equal(canonicalIp(text) !== undefined, isIP(text) !== 0, text)
    }),
    { numRuns: 5_000 },
  )
})

test('a canonical address is an address and is its own canonical form', () => {
  fc.assert(
    fc.property(fc.oneof(v4, v6), (text) => {
      const canonical = canonicalIp(text)
      assert.ok(canonical !== undefined && isIP(canonical) !== 0)
      assert.equal(canonicalIp(canonical), canonical)
    }),
  )
})

test('every spelling of an address has the same canonical form', () => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 16, maxLength: 16 }), (bytes) => {
      const groups = Array.from({ length: 8 }, (_, i) =>
        (((bytes[i * 2] ?? 0) << 8) | (bytes[i * 2 + 1] ?? 0)).toString(16),
      )
      const full = groups.map((group) => group.padStart(4, '0')).join(':')
      const canonical = canonicalIp(full)
      assert.equal(canonicalIp(groups.join(':').toUpperCase()), canonical)
      const tail = `${bytes[12]}.${bytes[13]}.${bytes[14]}.${bytes[15]}`
      assert.equal(canonicalIp(`${groups.slice(0, 6).join(':')}:${tail}`), canonical)
      // The WHATWG URL parser compresses by RFC 5952 too.
      if (canonical?.includes(':') === true)
        assert.equal(new URL(`http://[${full}]/`).hostname, `[${canonical}]`)
    }),
  )
})

test('bytes and text of an address lead back to each other', () => {
  fc.assert(
    fc.property(fc.oneof(v4, v6), (text) => {
      const canonical = canonicalIp(text) ?? ''
      assert.equal(ipFromBytes(ipBytes(canonical)), canonical)
    }),
  )
})

test('an IPv4 address mapped into IPv6 is the IPv4 address', () => {
  for (const text of ['::ffff:10.1.2.3', '::FFFF:0a01:0203', '0:0:0:0:0:ffff:a01:203'])
    assert.equal(canonicalIp(text), '10.1.2.3')
})

test('neighbors of the mapped block stay IPv6', () => {
  assert.equal(canonicalIp('::fffe:10.1.2.3'), '::fffe:a01:203')
  assert.equal(canonicalIp('::1:ffff:10.1.2.3'), '::1:ffff:a01:203')
  assert.equal(canonicalIp('::10.1.2.3'), '::a01:203')
})

test('octal, hexadecimal, short and zoned spellings are no addresses', () => {
  for (const text of ['010.0.0.1', '0x7f.0.0.1', '127.1', '2130706433', 'fe80::1%eth0', ' 1.2.3.4'])
    assert.equal(canonicalIp(text), undefined, text)
})

test('ipBytes throws for what is no address and ipFromBytes gives nothing for other lengths', () => {
  assert.throws(() => ipBytes('db.mesh'), RangeError)
  for (const length of [0, 3, 5, 15, 17])
    assert.equal(ipFromBytes(new Uint8Array(length)), undefined)
})

test('IPv6 is bracketed before a port', () => {
  assert.equal(formatAddress({ ip: '::1', port: 80 }), '[::1]:80')
  assert.equal(formatAddress({ ip: '10.0.0.1', port: 80 }), '10.0.0.1:80')
})

test('addresses at which no single host answers are undialable, and no others', () => {
  for (const ip of ['0.0.0.0', '::', '255.255.255.255', '224.0.0.1', '239.255.0.1', 'ff02::1'])
    assert.equal(isUndialable(ip), true, ip)
  for (const ip of ['10.0.0.1', '223.255.255.255', '240.0.0.1', '::1', 'fe80::1', 'fdff::1'])
    assert.equal(isUndialable(ip), false, ip)
})

test('loopback is the whole of 127.0.0.0/8 and ::1, in the mapped spelling too', () => {
  for (const text of ['127.0.0.1', '127.255.0.9', '::1', '::ffff:127.0.0.1'])
    assert.equal(isLoopback(canonicalIp(text) ?? ''), true, text)
  for (const ip of ['128.0.0.1', '12.7.0.1', '::2', '1::1']) assert.equal(isLoopback(ip), false, ip)
})
