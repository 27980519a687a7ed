/** Claims about src/model/snapshot.ts: a delta is exactly the way from one snapshot to the next. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import * as fc from 'fast-check'
import {
  applyDelta,
  diffSnapshots,
  emptySnapshot,
  type ServicePolicy,
  type Snapshot,
} from '../../src/model/snapshot.ts'
import { meshService } from '../harness/builders.ts'

const name = fc.constantFrom('a', 'b', 'c', 'd', 'e', 'f')
const service = fc
  .record({ name, connectTimeoutMs: fc.constantFrom(1, 2) })
  .map(({ name: given, connectTimeoutMs }) => meshService(given, { connectTimeoutMs }))
const policy = fc
  .record({ destination: name, defaultPolicy: fc.constantFrom('allow' as const, 'deny' as const) })
  .map((given): ServicePolicy => ({ ...given, intentions: [] }))

const snapshot = fc
  .record({
    version: fc.nat(),
    datacenter: fc.constantFrom('dc1', 'dc2'),
    services: fc.array(service),
    policies: fc.array(policy),
  })
  .map(
    ({ version, datacenter, services, policies }): Snapshot => ({
      version,
      datacenter,
      services: new Map(services.map((one) => [one.name, one])),
      policies: new Map(policies.map((one) => [one.destination, one])),
    }),
  )

/** A pair where the second keeps some parts of the first, as compile() leaves them. */
const pair = fc
  .tuple(snapshot, snapshot, fc.array(name), fc.array(name))
  .map(([before, after, keptServices, keptPolicies]): [Snapshot, Snapshot] => {
    const services = new Map(after.services)
    const policies = new Map(after.policies)
    for (const key of keptServices) {
      const kept = before.services.get(key)
      if (kept !== undefined) services.set(key, kept)
    }
    for (const key of keptPolicies) {
      const kept = before.policies.get(key)
      if (kept !== undefined) policies.set(key, kept)
    }
    return [before, { ...after, services, policies }]
  })

test('a snapshot and the delta to the next give the next', () => {
  fc.assert(
    fc.property(pair, ([before, after]) => {
      assert.deepEqual(applyDelta(before, diffSnapshots(before, after)), after)
    }),
    { numRuns: 500 },
  )
})

test('a delta that crossed a thread boundary gives the next snapshot too', () => {
  fc.assert(
    fc.property(pair, ([before, after]) => {
      const delta = structuredClone(diffSnapshots(before, after))
      assert.deepEqual(applyDelta(before, delta), after)
    }),
    { numRuns: 200 },
  )
})

test('a delta names no part that kept its identity', () => {
  fc.assert(
    fc.property(pair, ([before, after]) => {
      const delta = diffSnapshots(before, after)
      for (const one of delta.services) assert.notEqual(before.services.get(one.name), one)
      for (const one of delta.policies) assert.notEqual(before.policies.get(one.destination), one)
    }),
    { numRuns: 200 },
  )
})

test('applying a delta changes neither the snapshot it is applied to nor its unnamed parts', () => {
  fc.assert(
    fc.property(pair, ([before, after]) => {
      const copy = structuredClone(before)
      const delta = diffSnapshots(before, after)
      const next = applyDelta(before, delta)
      assert.deepEqual(before, copy)
      const named = new Set(delta.services.map((one) => one.name))
      for (const [key, value] of next.services)
        if (!named.has(key)) assert.equal(value, before.services.get(key))
    }),
    { numRuns: 200 },
  )
})

test('a snapshot without change shares its maps with the one before', () => {
  const next = applyDelta(emptySnapshot, {
    ...diffSnapshots(emptySnapshot, emptySnapshot),
    version: 7,
  })
  assert.equal(next.version, 7)
  assert.equal(next.services, emptySnapshot.services)
  assert.equal(next.policies, emptySnapshot.policies)
})

test('the empty snapshot knows no service and no policy', () => {
  assert.equal(emptySnapshot.services.size, 0)
  assert.equal(emptySnapshot.policies.size, 0)
})
