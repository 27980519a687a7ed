/**
 * Claims about when a host tells callers of its services: not before they would be served.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'

import { registerWhenServed } from '../../src/daemon/register-when-served.ts'
import type { LocalService } from '../../src/model/service.ts'
import { eventually } from '../harness/eventually.ts'

function local(name: string): LocalService {
  return {
    name,
    id: name,
    target: { ip: '127.0.0.1', port: 80 },
    selector: undefined,
    capturePort: undefined,
    connectPort: undefined,
    upstreams: [],
  }
}

/** A catalog that records what was registered, and services that are ready when they are told. */
function scene(timeoutMs: number) {
  const ready = new Set<string>()
  const registered: string[][] = []
  let looks = 0
  const stopping = new AbortController()
  const finished = registerWhenServed({
    registry: {
      register: async (services) => {
        registered.push(services.map(({ name }) => name))
      },
    },
    services: [local('db'), local('web')],
    tunnelPort: 15_443,
    canServe: ({ name }) => {
      looks += 1
      return ready.has(name)
    },
    signal: stopping.signal,
    timeoutMs,
  })
  return { ready, registered, stopping, finished, looks: () => looks }
}

test('nothing is registered until every service can be served, then all at once', async () => {
  const { ready, registered, finished, looks } = scene(60_000)
  ready.add('db')
  await eventually(() => assert.ok(looks() > 4))
  assert.deepEqual(registered, [])
  ready.add('web')
  await finished
  assert.deepEqual(registered, [['db', 'web']])
})

test('a service whose certificate does not come holds up the others for a while only', async () => {
  const { ready, registered, finished } = scene(100)
  ready.add('web')
  await eventually(() => assert.deepEqual(registered, [['web']]))
  ready.add('db')
  await finished
  assert.deepEqual(registered, [['web'], ['db', 'web']])
})

test('a host that stops registers nothing any more', async () => {
  const { ready, registered, stopping, finished } = scene(60_000)
  stopping.abort()
  await finished
  ready.add('db').add('web')
  assert.deepEqual(registered, [])
})
