/**
 * A unit that restarts has another cgroup each time. Nothing that it sends to a mesh address leaves in plaintext
 * before the rules know that; and it loses nothing but a moment.
 */
import assert from 'node:assert/strict'
import { mkdirSync, rmdirSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { createCapture } from '../../src/controlplane/capture/capture.ts'
import { createCommandRunner, type RunCommand } from '../../src/controlplane/capture/command.ts'
import type { CapturePlan } from '../../src/controlplane/capture/rules.ts'
import { eventually } from '../harness/eventually.ts'
import { type Namespace, Network } from '../harness/network.ts'
import { OwnedProcess } from '../harness/owned-process.ts'
import { watchForPlaintext } from '../harness/plaintext-watch.ts'
import { canary } from '../harness/wire-capture.ts'
import { connectFrom, startListener, TestCgroup } from './capture-host.ts'

const WEB = 2_001
const DAEMON = 2_900
const INSTANCE_PORT = 9_090
const CAPTURE_PORT = 15_100
const RESTARTS = 30

const REFUSED = { error: 'Connection refused' }

function runnerIn(host: Namespace): RunCommand {
  const runner = createCommandRunner()
  return (tool, args, input) => {
    const [command = '', ...rest] = host.inside([tool, ...args])
    return runner(command, rest, input)
  }
}

/** A plan with one unit. */
function planOf(path: string): CapturePlan {
  return {
    workloads: [{ selector: { kind: 'cgroup', path }, capturePort: CAPTURE_PORT }],
    virtualRange: '240.0.0.0/4',
    virtualRange6: 'fdc6:6d65:7368::/64',
    daemonUid: DAEMON,
    ownPorts: [CAPTURE_PORT],
  }
}

/** A caller that lives on while its cgroup is replaced under it, as the processes of a unit are by a restart. */
async function startCaller(
  host: Namespace,
  cgroup: TestCgroup,
  args: readonly string[],
): Promise<OwnedProcess> {
  const script = join(import.meta.dirname, 'steady-caller.ts')
  const enter = `echo $$ > ${cgroup.folder}/cgroup.procs && exec "$@"`
  const dial = host.inside([process.execPath, script, ...args])
  return OwnedProcess.start(['sh', '-c', enter, 'sh', ...dial], { name: 'steady caller' })
}

/** What a restart is to the kernel: the same path, another cgroup; who calls does so at once. */
function restart(caller: OwnedProcess, folder: string, aside: string): void {
  const move = (to: string): void => writeFileSync(join(to, 'cgroup.procs'), String(caller.pid))
  caller.signal('SIGSTOP')
  move(aside)
  rmdirSync(folder)
  mkdirSync(folder, { recursive: true })
  move(folder)
  caller.signal('SIGCONT')
}

for (const [what, name] of [
  ['a unit', 'web.service'],
  ['a unit of a user, deeper down', 'user.slice/user-1.slice/app.slice/web.service'],
] as const)
  test(`${what} that restarts under load sends nothing in plaintext`, async () => {
    await using network = await Network.create(['a', 'b'])
    const [a, b] = [network.host('a'), network.host('b')]
    const secret = canary()
    await using leaks = await watchForPlaintext(a, secret)
    await using diverted = await startListener(a, [CAPTURE_PORT], 'transparent')
    await using direct = await startListener(b, [INSTANCE_PORT])
    assert.ok(!diverted.hasExited && !direct.hasExited)
    using unit = await TestCgroup.create(name)
    using aside = await TestCgroup.create('aside')
    await using capture = createCapture({
      run: runnerIn(a),
      backend: 'nftables',
      maintain: { verifyEveryMs: 60_000, cgroupEveryMs: 1_000 },
    })
    await capture.updateAddresses({
      instances: [b.ip, b.ip6].map((ip) => ({ ip, port: INSTANCE_PORT })),
      permitted: [],
    })
    await capture.apply(planOf(unit.path))
    await using caller = await startCaller(a, unit, [b.ip, String(INSTANCE_PORT), secret])
    await eventually(() => assert.match(caller.output, new RegExp(`${CAPTURE_PORT}\n`)))
    for (let round = 0; round < RESTARTS; round += 1) {
      restart(caller, unit.folder, aside.folder)
      await delay(100)
    }
    const before = caller.output.length
    await eventually(() =>
      assert.ok(caller.output.slice(before).split('\n').length > 100, 'it goes on'),
    )
    const landings = new Set(caller.output.trim().split('\n'))
    assert.deepEqual([...landings], [String(CAPTURE_PORT)], 'none was refused, or another’s')
    await leaks.assertNone()
    const { counts, inSync, difference } = await capture.show()
    assert.ok((counts.waited ?? 0) > 0, 'some had to wait')
    assert.equal(inSync, true, difference)
  })

test('who starts beside a unit waits for a moment and passes; when nobody watches, he is refused', async () => {
  await using network = await Network.create(['a', 'b'])
  const [a, b] = [network.host('a'), network.host('b')]
  await using direct = await startListener(b, [INSTANCE_PORT])
  assert.ok(!direct.hasExited)
  using unit = await TestCgroup.create('web.service')
  await using capture = createCapture({
    run: runnerIn(a),
    backend: 'nftables',
    maintain: { verifyEveryMs: 60_000, cgroupEveryMs: 1_000 },
  })
  await capture.updateAddresses({ instances: [{ ip: b.ip, port: INSTANCE_PORT }], permitted: [] })
  await capture.apply(planOf(unit.path))
  const call = async (cgroup: string | undefined) =>
    connectFrom(a, { uid: WEB, ...(cgroup !== undefined && { cgroup }) }, b.ip, INSTANCE_PORT)
  assert.equal((await call(undefined)).port, INSTANCE_PORT)
  {
    using beside = await TestCgroup.create('beside.service')
    assert.equal((await call(beside.folder)).port, INSTANCE_PORT)
  }
  await capture.suspend()
  // What keeps the rules goes on until then, and would see who comes.
  await capture[Symbol.asyncDispose]()
  using late = await TestCgroup.create('late.service')
  assert.deepEqual(await call(late.folder), REFUSED)
  assert.equal((await call(undefined)).port, INSTANCE_PORT, 'who was there before passes')
  assert.equal(dirname(late.path), dirname(unit.path))
})
