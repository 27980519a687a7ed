/**
 * The connections of a worker: caps, one ending each, deadlines.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Reaching } from '../../src/dataplane/proxy/connection.ts'
import { ConnectionTable } from '../../src/dataplane/proxy/connection-table.ts'
import type { Account } from '../../src/dataplane/tunnel/accounts.ts'
import { MeshError } from '../../src/lib/errors.ts'
import {
  readTraffic,
  TrafficCounters,
  type TrafficLabels,
  trafficLayout,
} from '../../src/telemetry/counters.ts'
import { openStage } from '../integration/tunnel-fixtures.ts'
import { looseAccount, makeAccounts } from './account-fixtures.ts'

const limits = {
  connections: 4,
  connectionsPerService: 3,
  inboundConnections: 5,
  inboundConnectionsPerService: 2,
  idleMs: 1_000,
  halfClosedMs: 100,
}

const account = looseAccount()

/** An instance of a service is reached for a connection. */
function reaching(destination: string, row = 2): Reaching {
  const reach = { peer: undefined, decidedFor: undefined, heldMemory: 0 }
  return { state: 'reaching', destination, row, reach }
}

function makeTable(): {
  table: ConnectionTable
  counters: TrafficCounters
  rows: () => { pair: string; opened: number; closed: Record<string, number> }[]
} {
  const memory = TrafficCounters.createMemory()
  const labels: (TrafficLabels | undefined)[] = []
  const counters = new TrafficCounters(memory, (row, label) => {
    labels[row] = label
  })
  return {
    table: new ConnectionTable(limits, counters),
    counters,
    rows: () =>
      readTraffic(memory, labels).map((row) => ({
        pair: `${row.labels.reporter} ${row.labels.source} ${row.labels.destination}`,
        opened: trafficLayout.read(row.cells).opened,
        closed: Object.fromEntries(
          Object.entries(trafficLayout.read(row.cells).closed).filter(([, count]) => count !== 0),
        ),
      })),
  }
}

test('services are in use that were called since the last look or have connections, but not their callers', () => {
  const { table } = makeTable()
  const long = table.add('outbound', 'web', account, undefined)
  table.setDestination(long, reaching('db'))
  const short = table.add('outbound', 'web', account, undefined)
  table.setDestination(short, reaching('cache'))
  table.end(short, '-')
  const inbound = table.add('inbound', 'api', account, undefined)
  table.setDestination(inbound, { state: 'refused', destination: 'web', row: 3, peer: undefined })
  assert.deepEqual(new Set(table.takeCalled()), new Set(['db', 'cache']))
  assert.deepEqual(table.takeCalled(), ['db'], 'for as long as it is open')
  table.end(long, '-')
  assert.deepEqual(table.takeCalled(), [])
})

test('caps hold for all and for each caller, and endings make room', () => {
  const { table } = makeTable()
  const { accounts } = makeAccounts()
  const [ofWeb, ofApi] = [accounts.of('web', 0), accounts.of('api', 0)]
  const web = [1, 2, 3].map(() => table.add('outbound', 'web', ofWeb, undefined))
  assert.equal(table.hasRoom('outbound', 'web', ofWeb), false)
  assert.equal(table.hasRoom('outbound', 'api', ofApi), true)
  table.add('outbound', 'api', ofApi, undefined)
  assert.equal(table.hasRoom('outbound', 'api', ofApi), false, 'the table is full')
  table.end(web[0]!, '-')
  table.end(web[1]!, '-')
  assert.equal(table.hasRoom('outbound', 'web', ofWeb), true)
  assert.equal(table.size, 2)
})

test('each direction has caps of its own', () => {
  const { table } = makeTable()
  const { accounts } = makeAccounts()
  const [web, api, cron] = ['web', 'api', 'cron'].map((name) => accounts.of(name, 0)) as [
    Account,
    Account,
    Account,
  ]
  for (let i = 0; i < 2; i += 1) table.add('inbound', 'peer', web, undefined)
  assert.equal(table.hasRoom('inbound', 'peer', web), false)
  for (let i = 0; i < 4; i += 1) table.add('outbound', 'web', api, undefined)
  assert.equal(table.hasRoom('outbound', 'web', api), false)
  assert.equal(table.hasRoom('outbound', 'cron', cron), false)
  assert.equal(table.hasRoom('inbound', 'cron', cron), true)
})

test('a host with many identities leaves room for callers of other hosts', () => {
  const memory = TrafficCounters.createMemory()
  const caps = { ...limits, inboundConnections: 1_000, inboundConnectionsPerService: 500 }
  const table = new ConnectionTable(caps, new TrafficCounters(memory, () => undefined))
  const { accounts } = makeAccounts()
  const fill = (name: string, ip: string): number => {
    const of = accounts.of(name, 0, ip)
    let count = 0
    for (; table.hasRoom('inbound', name, of); count += 1) table.add('inbound', name, of, undefined)
    return count
  }
  assert.equal(fill('evil', '10.0.0.1'), 500, 'one that is alone has its cap')
  for (let i = 0; i < 30; i += 1) fill(`evil ${i}`, '10.0.0.1')
  assert.ok(fill('web', '10.0.0.2') >= 100)
  assert.ok(fill('api', '10.0.0.3') >= 50)
})

test('a caller without descriptors left has no room, and its endings give them back', () => {
  const { accounts } = makeAccounts({ descriptors: 16 })
  const { table } = makeTable()
  const [web, api] = [accounts.of('web', 0), accounts.of('api', 0)]
  const held = [1, 2, 3].map(() => {
    const connection = table.add('outbound', 'web', web, undefined)
    table.useDescriptors(connection, 2)
    table.useDescriptors(connection, 1)
    return connection
  })
  assert.equal(web.descriptors.used, 6)
  const more = table.add('inbound', 'web', web, undefined)
  table.useDescriptors(more, 2)
  assert.equal(table.hasRoom('inbound', 'web', web), false, 'it has eight, and so are free')
  assert.equal(table.hasRoom('inbound', 'api', api), true)
  for (const connection of [...held, more]) table.end(connection, '-')
  table.end(more, '-')
  assert.equal(web.descriptors.used, 0)
  assert.equal(accounts.shared.descriptors.used, 0)
})

test('of a caller that is shed, what holds most goes first, and no more than is needed', () => {
  const { accounts } = makeAccounts()
  const { table } = makeTable()
  const [web, api] = [accounts.of('web', 0), accounts.of('api', 0)]
  const broken: string[] = []
  const make = (name: string, of: typeof web, stream: number, socket: number): void => {
    const connection = table.add('outbound', name, of, undefined)
    connection.stage = openStage({
      stream: { heldMemory: stream },
      local: { heldMemory: socket },
    })
    const abort = (flag: string, reason: MeshError): void => {
      broken.push(`${name} ${flag} ${reason.code}`)
      table.end(connection, 'UO')
    }
    connection.abort = abort
  }
  make('little', web, 10, 0)
  make('much', web, 100, 200)
  make('half', web, 0, 150)
  make('other', api, 1_000, 0)
  make('nothing', web, 0, 0)
  assert.equal(table.shed(web, 301), 2)
  assert.deepEqual(broken.splice(0), ['much UO HM_LIMIT_MEMORY', 'half UO HM_LIMIT_MEMORY'])
  assert.equal(table.shed(web, 1_000), 1)
  assert.deepEqual(broken, ['little UO HM_LIMIT_MEMORY'])
})

test('a connection ends once, under its first flag, for its pair', () => {
  const { table, counters, rows } = makeTable()
  const connection = table.add('outbound', 'web', account, undefined)
  table.setDestination(connection, reaching('db', counters.row('source', 'web', 'db')))
  table.end(connection, 'DENY')
  table.end(connection, '-')
  assert.deepEqual(rows(), [{ pair: 'source web db', opened: 1, closed: { DENY: 1 } }])
  assert.equal(table.size, 0)
})

test('one whose destination was never known is counted as unknown', () => {
  const { table, rows } = makeTable()
  table.end(table.add('inbound', 'web', account, undefined), 'PE')
  assert.deepEqual(rows(), [{ pair: 'destination web unknown', opened: 1, closed: { PE: 1 } }])
})

test('quiet connections are broken off, busy and opening ones are not', () => {
  const { table } = makeTable()
  const aborted: string[] = []
  const make = (name: string, state: 'opening' | 'open' | 'half-closed') => {
    const connection = table.add('outbound', name, account, undefined)
    if (state !== 'opening') connection.stage = openStage({ state })
    connection.abort = (flag, reason) => {
      aborted.push(`${name} ${flag} ${reason.code}`)
      table.end(connection, flag)
    }
    return connection
  }
  make('opening', 'opening')
  make('quiet', 'open')
  const busy = make('busy', 'open')
  make('half', 'half-closed')
  const startMs = performance.now()
  busy.sentBytes = 1
  table.sweep(startMs + 500)
  assert.deepEqual(aborted.splice(0), ['half UT HM_CONNECTION_IDLE'])
  table.sweep(startMs + 1_400)
  assert.deepEqual(aborted.splice(0), ['quiet UT HM_CONNECTION_IDLE'])
  busy.receivedBytes = 1
  table.sweep(startMs + 1_500)
  table.sweep(startMs + 2_499)
  assert.deepEqual(aborted, [])
  table.sweep(startMs + 2_501)
  assert.deepEqual(aborted, ['busy UT HM_CONNECTION_IDLE'])
  assert.equal(table.size, 1)
})

test('breaking off by choice reaches exactly the chosen, even when they end themselves meanwhile', () => {
  const { table } = makeTable()
  const aborted: number[] = []
  const all = ['web', 'api', 'web'].map((source) => {
    const connection = table.add('inbound', source, account, undefined)
    connection.abort = () => {
      aborted.push(connection.id)
      for (const other of all) if (other.source === 'web') table.end(other, 'DENY')
    }
    return connection
  })
  const reason = new MeshError('HM_POLICY_DENIED', 'changed')
  assert.equal(
    table.abortWhere(({ source }) => source === 'web', 'DENY', reason),
    2,
  )
  assert.deepEqual(aborted, [all[0]!.id, all[2]!.id])
  assert.equal(table.size, 1)
})

test('the list is bounded, oldest first', () => {
  const { table } = makeTable()
  const ids = [1, 2, 3].map(() => table.add('outbound', 'web', account, undefined).id)
  assert.deepEqual(
    table.list(2).map(({ id }) => id),
    ids.slice(0, 2),
  )
  const view = table.list(1)[0]!
  assert.equal(view.state, 'opening')
  assert.equal(view.peer, undefined)
})
