/**
 * Claims about what two summaries of services say has changed.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { changedServices, readSummary } from '../../src/controlplane/catalog/consul/change-hints.ts'

const db = { Name: 'db', InstanceCount: 1, ChecksPassing: 1 }
const proxy = { Name: 'db-proxy', ProxyFor: ['db'], ChecksPassing: 1 }

function changed(before: unknown, after: unknown): readonly string[] {
  return changedServices(readSummary(before), readSummary(after)).toSorted()
}

test('the same summary says that nothing has changed', () => {
  assert.deepEqual(changed([db, proxy], [{ ...db }, { ...proxy }]), [])
})

test('a service that differs, a new one and one that is gone are named', () => {
  const web = { Name: 'web' }
  assert.deepEqual(changed([db], [{ ...db, InstanceCount: 2 }]), ['db'])
  assert.deepEqual(changed([db], [db, web]), ['web'])
  assert.deepEqual(changed([db, web], [db]), ['web'])
})

test('a proxy that differs names the service behind it as well', () => {
  assert.deepEqual(changed([db, proxy], [db, { ...proxy, ChecksPassing: 0 }]), ['db', 'db-proxy'])
})

test('what is no summary says nothing and breaks nothing', () => {
  for (const body of [
    undefined,
    null,
    7,
    {},
    [null, 7, {}, { Name: 7 }, { Name: 'x', ProxyFor: 7 }],
  ])
    assert.doesNotThrow(() => readSummary(body))
  assert.deepEqual([...readSummary([{ Name: 'x', ProxyFor: [7, 'y'] }]).keys()], ['x', 'y'])
})
