/**
 * From address to service, as snapshots come and go.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import * as fc from 'fast-check'
import { AddressIndex } from '../../src/dataplane/route/by-address.ts'
import type { Endpoint } from '../../src/model/endpoint.ts'
import type { MeshService, SnapshotDelta } from '../../src/model/snapshot.ts'
import { endpoint, meshService } from '../harness/builders.ts'

function at(key: string, ip?: string, port = 80): Endpoint {
  return endpoint(key, { application: ip === undefined ? undefined : { ip, port } })
}

function service(
  name: string,
  virtualIps: readonly string[],
  endpoints: readonly Endpoint[] = [],
): MeshService {
  return meshService(name, {
    virtualIps,
    endpoints: endpoints.map((one) => ({ ...one, service: name })),
  })
}

function delta(
  services: readonly MeshService[],
  removedServices: readonly string[] = [],
): SnapshotDelta {
  return {
    version: 1,
    datacenter: 'dc1',
    services,
    removedServices,
    policies: [],
    removedPolicies: [],
  }
}

test('a virtual address means the service, at any port', () => {
  const index = new AddressIndex()
  index.apply(delta([service('db', ['240.0.0.1', 'fd00::1'])]))
  for (const ip of ['240.0.0.1', 'fd00::1'])
    for (const port of [1, 5432])
      assert.deepEqual(index.find({ ip, port }), { service: 'db', endpointKey: undefined })
  assert.equal(index.find({ ip: '240.0.0.2', port: 5432 }), undefined)
})

test('an instance address means that instance, at its port only', () => {
  const index = new AddressIndex()
  index.apply(
    delta([
      service('db', [], [at('a/db', '10.0.0.5', 5432), at('b/db', 'fd00::5', 5432), at('c/db')]),
    ]),
  )
  assert.deepEqual(index.find({ ip: '10.0.0.5', port: 5432 }), {
    service: 'db',
    endpointKey: 'a/db',
  })
  assert.deepEqual(index.find({ ip: 'fd00::5', port: 5432 }), {
    service: 'db',
    endpointKey: 'b/db',
  })
  assert.equal(index.find({ ip: '10.0.0.5', port: 5433 }), undefined)
})

test('a changed service loses the addresses it no longer has', () => {
  const index = new AddressIndex()
  index.apply(delta([service('db', ['240.0.0.1'], [at('a/db', '10.0.0.5')])]))
  index.apply(delta([service('db', ['240.0.0.2'], [at('b/db', '10.0.0.6')])]))
  assert.equal(index.find({ ip: '240.0.0.1', port: 1 }), undefined)
  assert.equal(index.find({ ip: '10.0.0.5', port: 80 }), undefined)
  assert.equal(index.find({ ip: '240.0.0.2', port: 1 })?.service, 'db')
  assert.equal(index.find({ ip: '10.0.0.6', port: 80 })?.endpointKey, 'b/db')
})

test('a removed service is not found any more, nor is one that was never there', () => {
  const index = new AddressIndex()
  index.apply(delta([service('db', ['240.0.0.1'], [at('a/db', '10.0.0.5')])]))
  index.apply(delta([], ['db', 'never']))
  assert.equal(index.find({ ip: '240.0.0.1', port: 1 }), undefined)
  assert.equal(index.find({ ip: '10.0.0.5', port: 80 }), undefined)
})

test('of two services that claim an address the first keeps it', () => {
  const index = new AddressIndex()
  index.apply(delta([service('a', ['240.0.0.1'])]))
  index.apply(delta([service('b', ['240.0.0.1'])]))
  assert.equal(index.find({ ip: '240.0.0.1', port: 1 })?.service, 'a')
})

test('a claimant that only changes otherwise keeps its address', () => {
  const index = new AddressIndex()
  index.apply(delta([service('a', ['240.0.0.1'], [at('x/a', '10.0.0.5')])]))
  index.apply(delta([service('b', ['240.0.0.1'], [at('x/b', '10.0.0.5')])]))
  index.apply(delta([service('a', ['240.0.0.1'], [at('y/a', '10.0.0.5')])]))
  assert.equal(index.find({ ip: '240.0.0.1', port: 1 })?.service, 'a')
  assert.deepEqual(index.find({ ip: '10.0.0.5', port: 80 }), { service: 'a', endpointKey: 'y/a' })
})

test('of two instances at one address the first is meant', () => {
  const index = new AddressIndex()
  index.apply(delta([service('a', [], [at('x/a', '10.0.0.5'), at('y/a', '10.0.0.5')])]))
  assert.equal(index.find({ ip: '10.0.0.5', port: 80 })?.endpointKey, 'x/a')
})

test('an address whose first claimant is gone goes to the other one that claims it', () => {
  const index = new AddressIndex()
  index.apply(delta([service('a', ['240.0.0.1'], [at('x/a', '10.0.0.5')])]))
  index.apply(delta([service('b', ['240.0.0.1'], [at('x/b', '10.0.0.5')])]))
  index.apply(delta([], ['a']))
  assert.equal(index.find({ ip: '240.0.0.1', port: 1 })?.service, 'b')
  assert.equal(index.find({ ip: '10.0.0.5', port: 80 })?.endpointKey, 'x/b')
})

test('an address that moves from one service to another in one snapshot is found, in either order', () => {
  for (const order of [
    ['a', 'b'],
    ['b', 'a'],
  ]) {
    const index = new AddressIndex()
    index.apply(delta([service('a', ['240.0.0.1']), service('b', ['240.0.0.2'])]))
    const after: Record<string, MeshService> = {
      a: service('a', ['240.0.0.2']),
      b: service('b', ['240.0.0.1']),
    }
    index.apply(delta(order.map((name) => after[name]!)))
    assert.equal(index.find({ ip: '240.0.0.1', port: 1 })?.service, 'b', order.join())
    assert.equal(index.find({ ip: '240.0.0.2', port: 1 })?.service, 'a', order.join())
  }
})

test('whatever the changes, every address of a known service is found, and none else', () => {
  const name = fc.constantFrom('a', 'b', 'c')
  const ips = fc.uniqueArray(fc.constantFrom('240.0.0.1', '240.0.0.2', '240.0.0.3'), {
    maxLength: 3,
  })
  const change = fc.oneof(
    fc.tuple(fc.constant('set' as const), name, ips),
    fc.tuple(fc.constant('remove' as const), name, ips),
  )
  fc.assert(
    fc.property(fc.array(fc.array(change, { maxLength: 3 }), { maxLength: 10 }), (snapshots) => {
      const index = new AddressIndex()
      const known = new Map<string, readonly string[]>()
      for (const changes of snapshots) {
        const set = new Map<string, readonly string[]>()
        const removed = new Set<string>()
        for (const [action, service_, addresses] of changes) {
          set.delete(service_)
          removed.delete(service_)
          if (action === 'set') set.set(service_, addresses)
          else removed.add(service_)
        }
        for (const gone of removed) known.delete(gone)
        for (const [service_, addresses] of set) known.set(service_, addresses)
        index.apply(
          delta(
            [...set].map(([service_, addresses]) => service(service_, addresses)),
            [...removed],
          ),
        )
        for (const ip of ['240.0.0.1', '240.0.0.2', '240.0.0.3']) {
          const claimants = [...known]
            .filter(([, addresses]) => addresses.includes(ip))
            .map(([n]) => n)
          const found = index.find({ ip, port: 1 })?.service
          if (claimants.length === 0) assert.equal(found, undefined)
          else
            assert.ok(
              found !== undefined && claimants.includes(found),
              `${ip}: ${found} of ${claimants.join()}`,
            )
        }
      }
    }),
    { seed: 8, numRuns: 500 },
  )
})

test('the address of an instance stays with its own service, whoever else is redirected to it', () => {
  const index = new AddressIndex()
  const shared = { ...at('n/api', '10.0.0.9'), service: 'api' }
  index.apply(
    delta([
      meshService('old-api', { virtualIps: ['240.0.0.1'], endpoints: [shared], addresses: [] }),
    ]),
  )
  assert.equal(index.find({ ip: '10.0.0.9', port: 80 }), undefined)
  index.apply(delta([service('api', ['240.0.0.2'], [shared])]))
  assert.equal(index.find({ ip: '10.0.0.9', port: 80 })?.service, 'api')
})

test('the address of an instance that no endpoint serves stays that of its service, and nobody is meant', () => {
  const index = new AddressIndex()
  const address = { ip: '10.0.0.5', port: 5432 }
  const served = service('db', ['240.0.0.1'], [at('a/db', address.ip, address.port)])
  const withoutProxy = { ...served, clusters: service('db', []).clusters }
  index.apply(delta([withoutProxy]))
  const unserved = { service: 'db', endpointKey: undefined, isUnserved: true }
  assert.deepEqual(index.find(address), unserved)
  index.apply(delta([served]))
  assert.deepEqual(index.find(address), { service: 'db', endpointKey: 'a/db' })
  index.apply(delta([withoutProxy]))
  assert.deepEqual(index.find(address), unserved)
  index.apply(delta([], ['db']))
  assert.equal(index.find(address), undefined)
})
