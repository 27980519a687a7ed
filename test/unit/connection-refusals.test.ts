/**
 * The connections that are remembered after their end.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ConnectionTable } from '../../src/dataplane/proxy/connection-table.ts'
import { MeshError } from '../../src/lib/errors.ts'
import { TrafficCounters } from '../../src/telemetry/counters.ts'
import { looseAccount } from './account-fixtures.ts'

const account = looseAccount()

function makeTable(): ConnectionTable {
  const limits = {
    connections: 5,
    connectionsPerService: 5,
    inboundConnections: 5,
    inboundConnectionsPerService: 5,
    idleMs: 1_000,
    halfClosedMs: 100,
  }
  return new ConnectionTable(
    limits,
    new TrafficCounters(TrafficCounters.createMemory(), () => undefined),
  )
}

test('only what was refused or broken off with a reason is remembered', () => {
  const table = makeTable()
  const denied = table.add('inbound', 'web', account, undefined)
  table.setDestination(denied, { state: 'refused', destination: 'db', row: 2, peer: undefined })
  table.end(denied, 'DENY', new MeshError('HM_POLICY_DENIED', 'Denied web -> db'))
  for (const flag of ['-', 'DC'] as const)
    table.end(table.add('outbound', 'web', account, undefined), flag, new Error())
  table.end(table.add('outbound', 'web', account, undefined), 'UF')
  const refusals = table.refusals()
  assert.deepEqual(
    refusals.map(({ id, destination, flag, code, reason }) => [
      id,
      destination,
      flag,
      code,
      reason,
    ]),
    [[denied.id, 'db', 'DENY', 'HM_POLICY_DENIED', 'Denied web -> db']],
  )
  assert.equal(table.find(denied.id), undefined)
})

test('the last 256 are kept, newest first, and a long reason is cut', () => {
  const table = makeTable()
  for (let i = 1; i <= 300; i += 1)
    table.end(
      table.add('outbound', 'web', account, undefined),
      'UF',
      new Error(`${i} ${'x'.repeat(1_000)}`),
    )
  const refusals = table.refusals()
  assert.equal(refusals.length, 256)
  assert.match(refusals[0]?.reason ?? '', /^300 /)
  assert.match(refusals.at(-1)?.reason ?? '', /^45 /)
  assert.ok(refusals.every(({ reason }) => reason.length <= 500))
})
