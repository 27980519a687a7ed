/**
 * A daemon that may have 300 file descriptors, and two callers that want twice as many: they are refused in time, and
 * counted; another caller is served, the admin socket answers, the host says what it is short of and who has most;
 * and when they have gone everything is as before.
 */
import assert from 'node:assert/strict'
import { readdirSync } from 'node:fs'
import { test } from 'node:test'
import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'
import type { RunningService } from '../harness/service.ts'
import { keepCalling } from '../harness/steady-calls.ts'
import { type RemoteSocket, WorkloadError } from '../harness/workload.ts'

const DESCRIPTORS = 300
const WANTED = 600
const AT_ONCE = 50

interface Taken {
  readonly open: RemoteSocket[]
  readonly refusals: string[]
}

/** Opens connections, says a line on each and waits for the answer; keeps those that are served. */
async function take(caller: RunningService, destination: string): Promise<Taken> {
  const taken: Taken = { open: [], refusals: [] }
  for (let i = 0; i < WANTED; i += AT_ONCE)
    await Promise.all(
      Array.from({ length: AT_ONCE }, async () => {
        try {
          const socket = await caller.dial(destination)
          await socket.write('hello\n')
          const line = await socket.readLine()
          if (line === '') taken.refusals.push('an end without an answer')
          else taken.open.push(socket)
        } catch (error) {
          taken.refusals.push(error instanceof WorkloadError ? error.code : String(error))
        }
      }),
    )
  return taken
}

test('a daemon with few descriptors', async (t) => {
  await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file', workers: 1 })
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  const web = await a.service('web').start()
  const hog = await a.service('hog').start()
  await a.service('files', { listens: 8081 }).start()
  await b.service('db', { listens: 5432 }).start()
  const local = await b.service('local').start()
  const meek = await b.service('meek').start()
  for (const caller of ['web', 'hog']) await mesh.allow(caller, 'db')
  for (const caller of ['local', 'meek']) await mesh.allow(caller, 'files')
  await mesh.prepare(b)
  await b.daemon.start(['prlimit', `--nofile=${DESCRIPTORS}:${DESCRIPTORS}`])
  await mesh.up()
  await eventually(() => web.call('db'))
  await eventually(() => meek.call('files'))
  const openNow = (): number => readdirSync(`/proc/${b.daemon.pid}/fd`).length
  const before = openNow()
  const refusedBefore = await b.daemon.metric('hostmesh_limit_refusals_total', {
    limit: 'descriptors',
  })
  const calls = [keepCalling(() => web.call('db')), keepCalling(() => meek.call('files'))]
  let most = 0
  using undo = new DisposableStack()
  const watch = setInterval(() => {
    most = Math.max(most, openNow())
  }, 50)
  undo.defer(() => clearInterval(watch))
  const status = async (): Promise<string> => {
    const { problems } = await b.daemon.status()
    return problems.map(({ code, message }) => `${code} ${message}`).join('\n')
  }

  const both: Taken[] = []
  for (const [name, caller, destination] of [
    ['another host', hog, 'db'],
    ['its own host', local, 'files'],
  ] as const)
    await t.test(`a caller of ${name} that takes all it can is refused in time`, async () => {
      const taken = await take(caller, destination)
      both.push(taken)
      t.diagnostic(`${taken.open.length} open, ${taken.refusals.length} refused`)
      assert.ok(taken.open.length >= 10, `${taken.open.length} were served`)
      assert.ok(taken.open.length < DESCRIPTORS / 2, `${taken.open.length} were served`)
      assert.deepEqual([...new Set(taken.refusals)], ['ECONNRESET'], 'all others hear a reset')
    })

  await t.test('every refusal is counted', async () => {
    const refused = both.reduce((sum, { refusals }) => sum + refusals.length, 0)
    await eventually(async () => {
      const counted = await b.daemon.metric('hostmesh_limit_refusals_total', {
        limit: 'descriptors',
      })
      assert.equal(counted - refusedBefore, refused)
    })
  })

  await t.test('it says what it is short of, and who has most', async () => {
    await eventually(async () =>
      assert.match(
        await status(),
        /HM_LIMIT_DESCRIPTORS_SHORT.*most had (\S*\/svc\/hog( and others from \S+)?|local): \d/,
      ),
    )
    const { stdout } = await b.daemon.cli('status')
    assert.match(stdout, /HM_LIMIT_DESCRIPTORS_SHORT/)
  })

  await t.test('others were served all the time, with descriptors to spare', async () => {
    for (const each of calls) {
      await each.more(20)
      assert.deepEqual(await each.failures(), [])
    }
    t.diagnostic(`${before} descriptors before, ${most} at most`)
    assert.ok(most < DESCRIPTORS, `${most} descriptors`)
  })

  await t.test('when they have gone everything is as before', async () => {
    for (const { open } of both) for (const socket of open) await socket.reset()
    await eventually(() => assert.ok(openNow() <= before + 4, `${openNow()} descriptors`))
    for (let i = 0; i < 20; i += 1) {
      assert.equal((await hog.call('db')).service, 'db')
      assert.equal((await local.call('files')).service, 'files')
    }
  })
})
