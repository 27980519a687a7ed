/**
 * A reload hands over to a new process: no call fails, none waits, open connections go on, and a new configuration that
 * does not work changes nothing.
 */
import assert from 'node:assert/strict'
import { readFile, writeFile } from 'node:fs/promises'
import { test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { eventually, within } from '../harness/eventually.ts'
import type { Host } from '../harness/host.ts'
import { startMesh } from '../harness/mesh.ts'
import { startPair } from '../harness/pair.ts'
import { echo, manual } from '../harness/service.ts'
import { keepCalling, keepConnecting } from '../harness/steady-calls.ts'

const LONGEST_CALL_MS = 1_000

test('both daemons reload', async (t) => {
  await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file' })
  const web = await mesh.host('a').service('web').start()
  const db = await mesh.host('b').service('db', { listens: 5432 }).start(manual)
  await mesh.host('b').service('quick', { listens: 5433 }).start(echo)
  await mesh.allow('web', 'db')
  await mesh.allow('web', 'quick')
  await mesh.up()
  await eventually(() => web.call('quick'))
  // Found once: it asks the daemon, whose admin socket changes hands.
  const { ip, port } = await mesh.virtualAddress('quick', mesh.host('a'))
  await using undo = new AsyncDisposableStack()

  for (const name of ['a', 'b']) {
    const host = mesh.host(name)
    const first = host.daemon.pid
    await t.test(`on host ${name} nothing is lost`, async () => {
      const [caller, called] = await web.connectTo(db)
      let slowestMs = 0
      await using calls = keepCalling(async () => {
        const startMs = performance.now()
        const answer = await web.callAddress(ip, port)
        slowestMs = Math.max(slowestMs, performance.now() - startMs)
        return answer
      })
      await calls.more(10)
      const { code, stdout, stderr } = await host.daemon.cli('reload')
      assert.equal(code, 0, stdout + stderr + host.daemon.log)
      await calls.more(10)
      assert.deepEqual(await calls.failures(), [])
      assert.ok(slowestMs < LONGEST_CALL_MS, `the slowest took ${slowestMs} ms`)

      const status = await host.daemon.status()
      undo.defer(() => endSuccessor(status.pid))
      assert.notEqual(status.pid, first)
      assert.deepEqual([status.ready, status.reload?.count], [true, 1])
      await eventually(async () =>
        assert.equal((await host.daemon.status()).reload?.earlierConnections, 1),
      )
      await called.write('still here')
      assert.equal(await caller.read(10), 'still here')
      await caller.end()
      await called.end()
      assert.equal((await caller.readRest()).ending, 'end')
      assert.equal((await called.readRest()).ending, 'end')
      const exit = await within(5_000, 'the end of the one that was replaced', host.daemon.exited)
      assert.deepEqual(exit, { code: 0, signal: null })
      assert.equal((await host.daemon.status()).reload?.earlierConnections, null)
      await web.call('quick')
    })
  }
})

test('fewer workers, and more again, refuse nobody', async () => {
  await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file', workers: 2 })
  const web = await mesh.host('a').service('web').start()
  await mesh.host('b').service('quick', { listens: 5433 }).start(echo)
  await mesh.allow('web', 'quick')
  await mesh.up()
  await eventually(() => web.call('quick'))
  const { ip, port } = await mesh.virtualAddress('quick', mesh.host('a'))
  await using undo = new AsyncDisposableStack()
  await using calls = await keepConnecting(web.service, { targets: [`${ip}:${port}`], rate: 100 })
  await calls.more(50)
  for (const workers of [1, 2])
    for (const name of ['a', 'b']) {
      const { daemon } = mesh.host(name)
      await daemon.writeConfig({ ...mesh.host(name).config(), workers })
      const { code, stdout, stderr } = await daemon.cli('reload')
      assert.equal(code, 0, stdout + stderr + daemon.log)
      const status = await daemon.status()
      undo.defer(() => endSuccessor(status.pid))
      assert.equal(status.workers.length, workers)
      // Those in whose sockets nobody would look are among them.
      await calls.more(100)
    }
  const { outcomes, calls: all, longestMs } = await calls.stop()
  assert.deepEqual(outcomes, { served: all })
  assert.ok(longestMs < 2 * LONGEST_CALL_MS, `the slowest took ${longestMs} ms`)
})

test('a reload that does not work out changes nothing and says why', async (t) => {
  await using pair = await startPair({ behavior: echo })
  const { mesh, web } = pair
  await eventually(() => web.call('db'))
  const { ip, port } = await mesh.virtualAddress('db', mesh.host('a'))
  const { daemon } = mesh.host('a')
  const { pid } = daemon

  async function failToReload(host: Host, reason: RegExp): Promise<void> {
    await using calls = keepCalling(() => web.callAddress(ip, port))
    await calls.more(3)
    const { code, stderr } = await host.daemon.cli('reload')
    assert.equal(code, 1, stderr)
    assert.match(stderr, reason)
    await calls.more(3)
    assert.deepEqual(await calls.failures(), [])
    const status = await host.daemon.status()
    assert.deepEqual([status.pid, status.ready], [pid, true])
    assert.match(status.problems.map(({ message }) => message).join(), reason)
  }

  await t.test('a broken configuration', async () => {
    await writeFile(daemon.configPath, 'workers: many\n')
    await failToReload(mesh.host('a'), /workers/)
    await writeFile(daemon.configPath, 'nonsense: 1\n')
    await failToReload(mesh.host('a'), /nonsense/)
    // systemd's status line and the log hear of problems that are new.
    assert.match(daemon.log, /"subsystem":"problems".*nonsense/)
  })

  await t.test(
    'a port that somebody else has: the new process finds out after the hand-over began',
    async () => {
      const config = mesh.host('a').config()
      await daemon.writeConfig({ ...config, metrics: { port: 9_109 } })
      await web.workload.listen('127.0.0.1', 9_109, 'manual')
      await failToReload(mesh.host('a'), /9109/)
      await web.workload.ask({ op: 'unlisten' })
    },
  )

  await t.test('certificates that do not come', async () => {
    await daemon.writeConfig({
      ...mesh.host('a').config(),
      certificates: { kind: 'files', directory: '/nonexistent' },
    })
    await failToReload(mesh.host('a'), /nonexistent|certificate|roots/)
  })
  await daemon.writeConfig(mesh.host('a').config())
})

test('the last workload of a host goes by a reload, and comes again', async () => {
  await using pair = await startPair({ behavior: echo })
  const { mesh, web } = pair
  await eventually(() => web.call('db'))
  const { ip, port } = await mesh.virtualAddress('db', mesh.host('a'))
  const { daemon } = mesh.host('a')
  await using undo = new AsyncDisposableStack()
  const config = mesh.host('a').config()
  for (const isThere of [false, true]) {
    await daemon.writeConfig(isThere ? config : { ...config, services: [] })
    const { code, stdout, stderr } = await daemon.cli('reload')
    assert.equal(code, 0, stdout + stderr + daemon.log)
    const { pid, ready, problems } = await daemon.status()
    undo.defer(() => endSuccessor(pid))
    assert.deepEqual([ready, problems], [true, []])
    if (isThere) await eventually(() => web.callAddress(ip, port))
    else await assert.rejects(web.callAddress(ip, port), /refused/i)
  }
})

test('a stop in the midst of a reload stops the host: no successor goes on', async () => {
  // From before the new process can say anything to about when it takes over.
  for (const delayMs of [20, 150, 300, 450, 600]) {
    await using pair = await startPair({ behavior: echo })
    const { mesh, web } = pair
    await eventually(() => web.call('db'))
    const { daemon } = mesh.host('a')
    process.kill(daemon.pid, 'SIGHUP')
    await delay(delayMs)
    process.kill(daemon.pid, 'SIGTERM')
    await within(20_000, 'the end', daemon.exited)
    // From then on it was not the daemon any more.
    const { to } = /"to":(?<to>\d+),"msg":"Handed over"/.exec(daemon.log)?.groups ?? {}
    if (to !== undefined) await endSuccessor(Number(to))
    // The mesh looks for processes that are left.
  }
})

test('a successor that is stopped while it takes over gives everything back', async (t) => {
  await using pair = await startPair({ behavior: echo })
  const { mesh, web } = pair
  const host = mesh.host('a')
  const { daemon } = host
  for (const when of [20, 200, 500, 800, 1_000, 'it accepts'] as const)
    await t.test(typeof when === 'number' ? `after ${when} ms` : `when ${when}`, async () => {
      // It may have stopped in the step before.
      await mesh.up()
      await eventually(() => web.call('db'))
      const { ip, port } = await mesh.virtualAddress('db', host)
      const { pid } = daemon
      const earlier = daemon.log.length
      const log = (): string => daemon.log.slice(earlier)
      process.kill(pid, 'SIGHUP')
      if (typeof when === 'number') await delay(when)
      else await eventually(() => assert.match(log(), /"msg":"Listening"/), { everyMs: 1 })
      const successor = await eventually(() => successorOf(host), { everyMs: 1 })
      process.kill(successor, 'SIGTERM')
      await eventually(() => assert.ok(!isRunning(successor)))
      if (/"msg":"Handed over"/.test(log())) {
        // It was the daemon already, and this was a stop of the host.
        assert.match(log(), /"msg":"Stopped"/)
        await within(20_000, 'the end of the one that was replaced', daemon.exited)
        return
      }
      const status = await eventually(async () => {
        const current = await daemon.status()
        assert.deepEqual([current.pid, current.ready, current.reload?.state], [pid, true, 'failed'])
        return current
      })
      assert.match(status.problems.map(({ code }) => code).join(), /HM_RELOAD_FAILED/)
      await web.callAddress(ip, port)
    })
})

test('of the processes that were replaced and still have connections, four go on and the oldest ends in order', async () => {
  await using pair = await startPair()
  const { mesh, web, db } = pair
  const { daemon } = mesh.host('a')
  const open: Awaited<ReturnType<typeof web.connectTo>>[] = []
  await using undo = new AsyncDisposableStack()
  // The last one's connection is the fifth of a replaced process.
  for (let reloads = 1; reloads <= 5; reloads += 1) {
    open.push(await eventually(() => web.connectTo(db)))
    const { code, stdout, stderr } = await daemon.cli('reload')
    assert.equal(code, 0, stdout + stderr + daemon.log)
  }
  const { pid } = await daemon.status()
  undo.defer(() => endSuccessor(pid))
  const [oldest, ...others] = open
  assert.ok(oldest !== undefined)
  assert.equal(
    (await within(15_000, 'the end of the oldest', oldest[0].readRest())).ending,
    'ECONNRESET',
  )
  assert.match(daemon.log, /Too many reloads/)
  for (const [caller, called] of others) {
    await called.write('still here')
    assert.equal(await caller.read(10), 'still here')
    await caller.end()
    await called.end()
    assert.equal((await caller.readRest()).ending, 'end')
  }
})

/** The process that a reload has started on this host. @throws when there is none */
async function successorOf({ daemon, namespace }: Host): Promise<number> {
  for (const pid of await namespace.pids()) {
    const commandLine = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')
    const status = await readFile(`/proc/${pid}/status`, 'utf8').catch(() => '')
    // A child of the daemon only starts it.
    const isStarter = status.includes(`PPid:\t${daemon.pid}\n`)
    if (pid !== daemon.pid && !isStarter && commandLine.includes(daemon.configPath)) return pid
  }
  throw new Error('No successor')
}

async function endSuccessor(pid: number): Promise<void> {
  // One that has been replaced since may have ended.
  if (!isRunning(pid)) return
  process.kill(pid, 'SIGTERM')
  await eventually(() => assert.throws(() => process.kill(pid, 0)))
}

function isRunning(pid: number): boolean {
  try {
    return process.kill(pid, 0)
  } catch {
    return false
  }
}
