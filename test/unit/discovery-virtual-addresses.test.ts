/** Claims about src/controlplane/discovery/virtual-addresses.ts: stable, unique, in range. */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { test } from 'node:test'
import * as fc from 'fast-check'
import type { CatalogService } from '../../src/controlplane/catalog/catalog.ts'
import { AddressBook } from '../../src/controlplane/discovery/address-book.ts'
import {
  assignVirtualAddresses,
  type VirtualAddresses,
} from '../../src/controlplane/discovery/virtual-addresses.ts'
import { type Cidr, cidrAddress, cidrContains, cidrSize, parseCidr } from '../../src/model/cidr.ts'
import { catalogService } from '../harness/builders.ts'

function cidr(text: string): Cidr {
  const parsed = parseCidr(text)
  assert.ok(parsed !== undefined)
  return parsed
}

const V4 = cidr('240.0.0.0/4')
const V6 = cidr('fdc6:6d65:7368::/64')
const nothing: VirtualAddresses = new Map()
const none = new Set<string>()

const names = fc.uniqueArray(fc.stringMatching(/^[a-z][a-z0-9-]{0,20}$/), { maxLength: 60 })
/** Small ranges, where names must collide. */
const range = fc.constantFrom(
  '10.9.0.0/29',
  '10.9.0.0/26',
  '240.0.0.0/4',
  'fd00::/122',
  'fd00::/64',
)

const ipsOf = (assigned: VirtualAddresses): string[] => [...assigned.values()].flat()

test('every address is in its range, is neither its first nor its last, and is given once', () => {
  fc.assert(
    fc.property(names, range, (given, text) => {
      const block = cidr(text)
      const assigned = assignVirtualAddresses({
        ranges: [block],
        names: given,
        existing: nothing,
        taken: none,
      })
      const ips = ipsOf(assigned)
      assert.equal(new Set(ips).size, ips.length)
      for (const ip of ips) {
        assert.ok(cidrContains(block, ip))
        assert.notEqual(ip, cidrAddress(block, 0n))
        assert.notEqual(ip, cidrAddress(block, cidrSize(block) - 1n))
      }
      const usable = cidrSize(block) - 2n
      assert.equal(ips.length, Math.min(given.length, Number(usable)))
      assert.deepEqual(new Set(assigned.keys()), new Set(given))
    }),
    { numRuns: 500 },
  )
})

test('the order of the names does not matter', () => {
  fc.assert(
    fc.property(names, range, (given, text) => {
      const assign = (list: readonly string[]): VirtualAddresses =>
        assignVirtualAddresses({
          ranges: [cidr(text)],
          names: list,
          existing: nothing,
          taken: none,
        })
      assert.deepEqual(assign(given), assign(given.toReversed()))
    }),
  )
})

test('an assignment passed in again stays, whoever joins or leaves', () => {
  fc.assert(
    fc.property(names, names, range, (before, after, text) => {
      const ranges = [cidr(text)]
      const existing = assignVirtualAddresses({
        ranges,
        names: before,
        existing: nothing,
        taken: none,
      })
      const next = assignVirtualAddresses({ ranges, names: after, existing, taken: none })
      for (const name of after)
        if ((existing.get(name)?.length ?? 0) > 0)
          assert.deepEqual(next.get(name), existing.get(name))
    }),
    { numRuns: 500 },
  )
})

test('an address that the catalog gave to somebody is not assigned and is given up', () => {
  fc.assert(
    fc.property(names, range, fc.nat(), (given, text, pick) => {
      const ranges = [cidr(text)]
      const existing = assignVirtualAddresses({
        ranges,
        names: given,
        existing: nothing,
        taken: none,
      })
      const ips = ipsOf(existing)
      const stolen = ips[pick % Math.max(1, ips.length)]
      const taken = new Set(stolen === undefined ? [] : [stolen])
      const next = assignVirtualAddresses({ ranges, names: given, existing, taken })
      assert.ok(!ipsOf(next).some((ip) => taken.has(ip)))
    }),
  )
})

test('an address is that of the documented hash', () => {
  const digest = createHash('sha256').update('db').digest().readBigUInt64BE()
  const assigned = assignVirtualAddresses({
    ranges: [V4, V6],
    names: ['db'],
    existing: nothing,
    taken: none,
  })
  assert.deepEqual(assigned.get('db'), [
    cidrAddress(V4, 1n + (digest % (2n ** 28n - 2n))),
    cidrAddress(V6, 1n + (digest % (2n ** 64n - 2n))),
  ])
})

test('assignments that are out of range, double, or no addresses are replaced', () => {
  const existing = new Map([
    ['a', ['10.0.0.1', 'nonsense']],
    ['b', ['240.0.0.5']],
    ['c', ['240.0.0.5']],
    ['d', ['240.0.0.0']],
  ])
  const assigned = assignVirtualAddresses({
    ranges: [V4],
    names: ['a', 'b', 'c', 'd'],
    existing,
    taken: none,
  })
  const ips = ipsOf(assigned)
  assert.equal(new Set(ips).size, 4)
  assert.ok(ips.every((ip) => cidrContains(V4, ip) && ip !== '240.0.0.0'))
  assert.deepEqual(assigned.get('b'), ['240.0.0.5'])
})

test('a thousand services have an address of each family each', () => {
  const given = Array.from({ length: 1_000 }, (_, index) => `service-${index}`)
  const assigned = assignVirtualAddresses({
    ranges: [V4, V6],
    names: given,
    existing: nothing,
    taken: none,
  })
  assert.equal(new Set(ipsOf(assigned)).size, 2_000)
  for (const [first = '', second = ''] of assigned.values())
    assert.ok(cidrContains(V4, first) && cidrContains(V6, second))
})

test('a full range leaves names without an address instead of giving one twice', () => {
  const assigned = assignVirtualAddresses({
    ranges: [cidr('10.0.0.0/30'), V6],
    names: ['a', 'b', 'c'],
    existing: nothing,
    taken: none,
  })
  assert.deepEqual(
    [...assigned.values()].map((ips) => ips.length).toSorted((a, b) => a - b),
    [1, 2, 2],
  )
})

const RANGES = [V4, V6]

test('an address of one family that is remembered gets its sibling, and all is well', () => {
  const first = new AddressBook(RANGES)
  const api = new Map([['api', ['240.0.0.10']]])
  first.update(new Map([['api', catalogService('api', { virtualIps: ['240.0.0.10'] })]]), api)
  const second = new AddressBook(RANGES, first.all())
  const followed = new Map([['api', catalogService('api')]])
  second.update(followed, new Map())
  assert.deepEqual(second.problems(followed), [])
  const [v4, v6 = ''] = second.of('api')
  assert.equal(v4, '240.0.0.10')
  assert.ok(cidrContains(V6, v6))
  const kept = second.all()
  second.update(followed, new Map())
  assert.equal(second.all(), kept)
})

test('a range that is full is said, and not searched again for the same names', () => {
  const book = new AddressBook([cidr('10.9.0.0/30')])
  const followed = new Map(['a', 'b', 'c'].map((name) => [name, catalogService(name)]))
  book.update(followed, new Map())
  assert.match(book.problems(followed).join(), /10\.9\.0\.0\/30 is full/)
  const kept = book.all()
  book.update(followed, new Map())
  assert.equal(book.all(), kept)
})

test('an address that was assigned is taken by nobody, followed or listed, now or after a restart', () => {
  const first = new AddressBook(RANGES)
  first.update(new Map(), new Map([['db', []]]))
  const [stolen = ''] = first.of('db')
  const evil = catalogService('evil', { virtualIps: [stolen] })
  for (const book of [first, new AddressBook(RANGES, first.all())])
    for (const [followed, listed] of [
      [new Map([['evil', evil]]), new Map([['db', []]])],
      [new Map([['evil', evil]]), new Map()],
      [new Map(), new Map([['evil', [stolen]]])],
    ] as const) {
      book.update(followed, listed)
      assert.equal(book.ownerOf(stolen), 'db')
      assert.equal(book.owns('evil', stolen), false)
      assert.match(book.warnings().join(), /of service evil belongs to service db/)
    }
})

test("an address that a service without any would get is nobody else's, whoever is heard of first and without a memory", () => {
  const [own = ''] =
    assignVirtualAddresses({
      ranges: RANGES,
      names: ['db'],
      existing: nothing,
      taken: none,
    }).get('db') ?? []
  const evil = [own]
  for (const answers of [
    [
      new Map([
        ['db', []],
        ['evil', evil],
      ]),
    ],
    [
      new Map([['evil', evil]]),
      new Map([
        ['db', []],
        ['evil', evil],
      ]),
    ],
  ]) {
    const book = new AddressBook(RANGES)
    for (const listed of answers) book.update(new Map(), listed)
    assert.equal(book.ownerOf(own), 'db')
    assert.equal(book.owns('evil', own), false)
    assert.match(book.warnings().join(), /of service evil belongs to service db/)
  }
})

test('of two followed services the one that has an address keeps it, whoever claims it later', () => {
  const book = new AddressBook(RANGES)
  const claim = (name: string): [string, CatalogService] => [
    name,
    catalogService(name, { virtualIps: ['240.0.0.9'] }),
  ]
  book.update(new Map([claim('pay')]), new Map())
  book.update(new Map([claim('aaa'), claim('pay')]), new Map())
  assert.equal(book.ownerOf('240.0.0.9'), 'pay')
  const fresh = new AddressBook(RANGES)
  fresh.update(new Map([claim('aaa'), claim('pay')]), new Map())
  assert.equal(fresh.ownerOf('240.0.0.9'), undefined, 'nobody was first')
  assert.equal(fresh.of('pay').length, 2)
})
