/**
 * How `hostmesh reload` ends when the daemon that it has asked dies: at once, and saying so.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { test } from 'node:test'
import { reloadResult } from '../../src/cli/reload.ts'
import { hostmesh, scriptedView, startScripted, wellStatus } from './admin-fixtures.ts'

const never = { count: 0, state: 'none', reason: null, earlierConnections: null } as const

/** A process that a hangup ends: what a daemon is when it dies in the hand-over. */
async function mortal(): Promise<{ pid: number } & Disposable> {
  const child = spawn('sleep', ['60'], { stdio: 'ignore' })
  await once(child, 'spawn')
  const { pid } = child
  assert.ok(pid !== undefined)
  return { pid, [Symbol.dispose]: () => child.kill('SIGKILL') }
}

test('what an answer says of a reload', () => {
  const before = { pid: 1, reload: { ...never, count: 2, state: 'done' } } as const
  const of = (pid: number, count: number, state: 'running' | 'done' | 'failed' | 'none') =>
    reloadResult(before, { pid, reload: { ...never, count, state } })
  assert.equal(of(1, 2, 'done'), 'under way', 'the signal has not come yet')
  assert.equal(of(1, 3, 'running'), 'under way')
  assert.equal(of(1, 3, 'failed'), 'failed')
  assert.equal(of(9, 3, 'running'), 'under way', 'the successor has the socket')
  assert.equal(of(9, 3, 'done'), 'done')
  assert.equal(of(9, 0, 'none'), 'lost', 'somebody has started it anew')
  assert.equal(reloadResult({ pid: 1 }, { pid: 9 }), 'lost')
})

test('a daemon that somebody has started anew meanwhile is no successor', async () => {
  using asked = await mortal()
  let answers = 0
  await using server = await startScripted(
    scriptedView({
      status: () =>
        Promise.resolve({
          ...wellStatus,
          reload: never,
          pid: answers++ === 0 ? asked.pid : 99_999,
        }),
    }),
  )
  const { code, stderr } = await hostmesh(['reload', '--addr', `unix://${server.socketPath}`])
  assert.equal(code, 1)
  assert.match(stderr, /has died in the reload: .* process 99999 has started in its place/)
  assert.match(stderr, /hint: hostmesh status/)
})

test('a daemon that dies and that nobody succeeds is not waited for', async () => {
  using asked = await mortal()
  const server = await startScripted(
    scriptedView({
      status: () => Promise.resolve({ ...wellStatus, reload: never, pid: asked.pid }),
    }),
  )
  const ended = hostmesh(['reload', '--addr', `unix://${server.socketPath}`])
  const wait = setInterval(() => {
    try {
      process.kill(asked.pid, 0)
    } catch {
      clearInterval(wait)
      void server[Symbol.asyncDispose]()
    }
  }, 20)
  const startedMs = performance.now()
  const { code, stderr } = await ended
  clearInterval(wait)
  assert.equal(code, 1)
  assert.match(stderr, /has died in the reload: .* no process has taken over/)
  assert.ok(performance.now() - startedMs < 60_000)
})

test('a reload that somebody else has asked for is waited for, and then there is another one', async () => {
  using former = await mortal()
  using asked = await mortal()
  const answers = [
    { pid: former.pid, reload: { ...never, count: 1, state: 'running' } },
    { pid: asked.pid, reload: { ...never, count: 1, state: 'done' } },
    { pid: 99_999, reload: { ...never, count: 2, state: 'done' } },
  ] as const
  let next = 0
  await using server = await startScripted(
    scriptedView({
      status: () => Promise.resolve({ ...wellStatus, ...(answers[next++] ?? answers[2]) }),
    }),
  )
  const { code, stdout, stderr } = await hostmesh([
    'reload',
    '--addr',
    `unix://${server.socketPath}`,
  ])
  assert.equal(code, 0, stderr)
  assert.match(stdout, new RegExp(`process 99999 has taken over from ${asked.pid}`))
  assert.ok(process.kill(former.pid, 0), 'it was not asked a second time')
})
