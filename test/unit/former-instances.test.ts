/** Claims about src/controlplane/catalog/file/former-instances.ts: what a file lists no more, and for how long it counts. */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { YIELDING } from '../../src/controlplane/catalog/catalog.ts'
import { type CatalogContent, decodeCatalog } from '../../src/controlplane/catalog/file/decode.ts'
import {
  ageServices,
  type KnownServices,
  listOf,
  noteContent,
  serviceOf,
} from '../../src/controlplane/catalog/file/former-instances.ts'
import { FORGET_MS, indexAddresses } from '../../src/controlplane/catalog/known-addresses.ts'
import { shareInstanceAddresses } from '../../src/controlplane/discovery/instance-addresses.ts'

const NOW_MS = 1_000_000

function content(...services: readonly (readonly [name: string, ...ports: number[]])[]) {
  const text = services.map(([Name, ...ports]) => ({
    Name,
    Instances: ports.map((ServicePort) => ({
      Node: 'b',
      ID: `${Name}-${ServicePort}`,
      Address: '10.0.0.2',
      ServicePort,
    })),
  }))
  const decoded = decodeCatalog(JSON.stringify({ services: text }), 'catalog.yaml')
  assert.ok('content' in decoded)
  return decoded.content
}

function owners(file: CatalogContent, known: KnownServices): Record<string, readonly number[]> {
  const names = listOf({ content: file, known }).map(({ name }) => name)
  const { byService } = shareInstanceAddresses({
    nodeName: 'a',
    localServices: [],
    catalogServices: new Map(
      names.map((name) => [name, serviceOf({ content: file, known }, name)]),
    ),
  })
  return Object.fromEntries(
    [...byService].map(([name, addresses]) => [name, addresses.map(({ port }) => port)]),
  )
}

describe('addresses of a catalog file', () => {
  test('one that is listed no more is forgotten after three days, not before', () => {
    const before = noteContent(new Map(), content(['db', 8080]), NOW_MS)
    const gone = noteContent(before, content(['db', 8081]), NOW_MS)
    assert.deepEqual(owners(content(['db', 8081]), gone), { db: [8080, 8081] })
    assert.equal(ageServices(gone, NOW_MS + FORGET_MS - 1), gone, 'the same object')
    assert.equal(ageServices(gone, NOW_MS - 1), gone, 'a clock that was put back')
    const aged = ageServices(gone, NOW_MS + FORGET_MS)
    assert.deepEqual(owners(content(['db', 8081]), aged), { db: [8081] })
  })

  test('a service that is gone is forgotten with its last address', () => {
    const empty = content()
    const gone = noteContent(noteContent(new Map(), content(['db', 8080]), 1), empty, NOW_MS)
    assert.deepEqual(listOf({ content: empty, known: gone }), [
      {
        name: 'db',
        virtualIps: [],
        addresses: [
          { ip: '10.0.0.2', port: 8080, node: 'b', since: YIELDING, goneSinceMs: NOW_MS },
        ],
        goneSinceMs: NOW_MS,
      },
    ])
    const aged = ageServices(gone, NOW_MS + FORGET_MS)
    assert.deepEqual(listOf({ content: empty, known: aged }), [])
  })

  test('whatever the file lists has an address before whatever was there, wherever it stands', () => {
    const first = content(['aaa', 8080], ['db', 5432])
    const renamed = content(['db', 5432], ['zzz', 8080])
    const known = noteContent(noteContent(new Map(), first, 1), renamed, 1)
    assert.deepEqual(owners(renamed, known), { db: [5432], zzz: [8080] })
    const back = noteContent(known, first, 2)
    assert.deepEqual(owners(first, back), { aaa: [8080], db: [5432] })
  })

  test('of more than there is room for the latest stay', () => {
    const addresses = (goneSinceMs: number) =>
      Array.from({ length: 200 }, (_, index) => ({
        ip: '10.0.0.2',
        port: 1_000 + index,
        node: 'b',
        since: YIELDING,
        goneSinceMs,
      }))
    const all: KnownServices = new Map(
      Array.from({ length: 109 }, (_, round) => [`s${round}`, indexAddresses(addresses(round))]),
    )
    const known = noteContent(all, content(['live', 80, 81]), NOW_MS)
    const count = (name: string): number => known.get(name)?.size ?? 0
    assert.equal(
      [...known.values()].reduce((sum, { size }) => sum + size, 0),
      20_000 + 2,
    )
    assert.equal(count('s0'), 0)
    assert.equal(count('s9'), 200)
    assert.equal(count('s108'), 200)
  })
})
