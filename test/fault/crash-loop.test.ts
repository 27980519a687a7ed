/**
 * A daemon that dies again and again, at any moment of its start or after it: callers are refused at once or served, nothing leaves in
 * plaintext, the other host goes on with others, and one whole start later all is as if nothing had been.
 */
import assert from 'node:assert/strict'
import { readdir } from 'node:fs/promises'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'
import { canary } from '../harness/wire-capture.ts'

const DB_PORT = 5_432

/** When it is killed after its launch, milliseconds: from before its program is loaded to after it is ready. */
const MOMENTS = [0, 150, 300, 450, 600, 800, 1_100, 1_500]

test('a crash loop', async () => {
  await using mesh = await startMesh({ hosts: ['a', 'b', 'c'], catalog: 'file' })
  const [a, b, c] = [mesh.host('a'), mesh.host('b'), mesh.host('c')]
  const web = await a.service('web').start()
  const other = await c.service('other').start()
  await b.service('db', { listens: DB_PORT }).start()
  await mesh.allow('web', 'db')
  await mesh.allow('other', 'db')
  await mesh.up()
  await eventually(() => web.call('db'))
  const { ip, port } = await mesh.virtualAddress('db', a)
  const wire = await mesh.listenOnWire()
  // Tables are listed in the order in which they were made.
  const rulesNow = async (): Promise<string[]> => (await a.namespace.rules()).split('\n').toSorted()
  const rules = await rulesNow()
  const files = (await readdir(a.daemon.stateFolder)).toSorted()

  await a.daemon.kill()
  const outcomes: string[] = []
  const secret = canary()
  for (const moment of MOMENTS) {
    await a.daemon.launch()
    await sleep(moment)
    await a.daemon.kill()
    // A copy of the process that was about to run a tool has its sockets until it does: who comes then is reset after that.
    await eventually(
      async () => assert.equal(await a.namespace.run('ss', '-Hltn'), '', 'who listens still?'),
      { withinMs: 2_000, everyMs: 5 },
    )
    for (const [address, at] of [
      [ip, port],
      [b.namespace.ip, DB_PORT],
    ] as const) {
      const outcome = await web.workload.dial(address, at).then(
        async (socket) => {
          await socket.write(`${secret}\n`).catch(() => undefined)
          return (await socket.readRest()).ending
        },
        (error: Error & { code?: string }) => error.code ?? error.message,
      )
      outcomes.push(`killed after ${moment} ms, ${address}: ${outcome}`)
    }
    assert.equal((await other.call('db')).service, 'db')
  }
  assert.deepEqual(
    outcomes.filter((outcome) => !outcome.endsWith(': ECONNREFUSED')),
    [],
  )

  await a.daemon.start()
  await eventually(() => web.call('db'))
  assert.deepEqual((await a.daemon.status()).problems, [])
  await eventually(async () => assert.deepEqual(await rulesNow(), rules))
  assert.deepEqual((await readdir(a.daemon.stateFolder)).toSorted(), files)

  // The recording has caught up once it has seen what was sent after it.
  const marker = canary()
  const stranger = await a.stranger().start()
  const after = await stranger.workload.dial(b.namespace.ip, DB_PORT)
  await after.write(`${marker}\n`)
  await after.readLine()
  await wire.sees(marker)
  await after.reset()
  assert.equal(await wire.has(secret), false, 'the canary was seen on the wire')
})
