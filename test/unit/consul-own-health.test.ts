/**
 * Claims about how a service of this host is said to be, by its checks at the agent.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import {
  decodeOwnHealth,
  hasNotRun,
  type OwnHealth,
  ownChecksPath,
} from '../../src/controlplane/catalog/consul/own-health.ts'

interface Check {
  readonly Status: string
  readonly Output?: string
  readonly ServiceID?: string
  readonly CheckID?: string
}

function healthOf(...checks: readonly Check[]): OwnHealth {
  const body = checks.map((check, at) => [
    String(at),
    { CheckID: `c${at}`, ServiceID: 'db', Name: `n${at}`, Output: '', ...check },
  ])
  return decodeOwnHealth(Object.fromEntries(body), ['db']).get('db') ?? assert.fail()
}

test('the worst of its own checks counts, whatever others have', () => {
  assert.equal(healthOf().health, 'passing')
  assert.equal(healthOf({ Status: 'critical', ServiceID: 'evil', Output: 'x' }).health, 'passing')
  assert.equal(healthOf({ Status: 'critical', ServiceID: '', Output: 'x' }).health, 'passing')
  const { health, failing } = healthOf(
    { Status: 'warning', Output: 'slow' },
    { Status: 'critical', Output: 'refused' },
  )
  assert.deepEqual([health, failing], ['critical', 'n1: refused'])
  assert.equal(healthOf({ Status: 'passing' }, { Status: 'warning' }).health, 'warning')
})

test('checks that have fallen silent have not run, others that are critical have', () => {
  const before = healthOf({ Status: 'passing', Output: 'connected' }, { Status: 'passing' })
  const silent = { Status: 'critical' }
  const ok = { Status: 'passing' }
  assert.equal(hasNotRun(before, healthOf(silent, ok)), true)
  assert.equal(hasNotRun(before, healthOf({ ...silent, Output: 'refused' }, ok)), false)
  assert.equal(hasNotRun(before, healthOf(ok, silent)), false, 'it never said anything')
  assert.equal(hasNotRun(before, healthOf(silent, silent)), false)
  assert.equal(hasNotRun(before, healthOf(ok, { Status: 'warning' })), false)
  const maintenance = { ...silent, CheckID: '_service_maintenance:db' }
  assert.equal(hasNotRun(before, healthOf(silent, maintenance)), false, 'a check that is new')
})

test('an answer that is no object is refused', () => {
  assert.throws(() => decodeOwnHealth([], ['db']), /checks of its agent/)
})

test('an ID with a quote asks for no more than itself', () => {
  const { searchParams } = new URL(ownChecksPath(['a" or ServiceID != "']), 'http://agent')
  assert.equal(searchParams.get('filter'), 'ServiceID == "a\\" or ServiceID != \\""')
})
