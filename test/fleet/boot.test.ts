/**
 * What leaves a machine between its boot and its daemon: nothing of a captured workload in plaintext, from its first moment
 * on, after a reboot and after a power cut. And what is ordered after the mesh finds it serving.
 */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'

import { eventually } from '../harness/eventually.ts'
import { Network } from '../harness/network.ts'
import { watchForPlaintext } from '../harness/plaintext-watch.ts'
import { type Call, summarizeCalls } from '../harness/steady-calls.ts'
import { canary } from '../harness/wire-capture.ts'
import { Controller } from './controller.ts'
import { Machine } from './machine.ts'
import { serviceFiles } from './services.ts'
import { dialerCommand, dialerFiles, machineCalls } from './steady-connections.ts'
import {
  catalogOf,
  DB_PORT,
  DB_VIRTUAL_IP,
  db,
  rollOut,
  type ServiceConfig,
  statusOnceWell,
} from './web-and-db.ts'

/** Units that dial db from their first moment: when they start, and what pulls them in. */
const CALLERS = {
  early: { after: '', user: 'root', wantedBy: 'multi-user.target' },
  // By user: a cgroup is known only a moment after its unit has started, and refused until then.
  ordered: { after: 'hostmesh.service', user: 'backup', wantedBy: 'multi-user.target' },
  ready: { after: 'hostmesh-ready.target', user: 'www-data', wantedBy: 'hostmesh-ready.target' },
} as const

const names = ['early', 'ordered', 'ready'] as const

const cleanUp = new AsyncDisposableStack()
const text = canary()
let network: Network
let a: Machine
let b: Machine

before(async () => {
  network = cleanUp.use(await Network.create(['a', 'b']))
  const controller = cleanUp.use(await Controller.create(network.wire))
  const key = { '/root/.ssh/authorized_keys': controller.publicKey }
  const targets = [`${DB_VIRTUAL_IP}:${DB_PORT}`, `${network.host('b').ip}:${DB_PORT}`]
  const callers = Object.fromEntries(
    names.flatMap((name) => Object.entries(callerFiles(name, targets))),
  )
  a = cleanUp.use(
    await Machine.create('host-a', network.host('a'), {
      ...key,
      ...(await dialerFiles()),
      ...callers,
    }),
  )
  b = cleanUp.use(
    await Machine.create('host-b', network.host('b'), {
      ...key,
      // On all addresses: what came in plaintext would be answered.
      ...(await serviceFiles({ db: `echo ${DB_PORT} 0.0.0.0` })),
    }),
  )
  await Promise.all([a.boot(), b.boot()])
  await b.must('systemctl', 'enable', '--now', '--quiet', 'db.service')
  await a.must('systemctl', 'start', ...names.map((name) => `${name}.service`))
  const configured = names.map(
    (name): ServiceConfig => ({
      name,
      identity:
        name === 'early'
          ? { cgroup: `system.slice/${name}.service` }
          : { user: CALLERS[name].user },
      upstreams: [{ destination: 'db' }],
    }),
  )
  const catalog = {
    ...catalogOf(b),
    intentions: [{ SourceName: '*', DestinationName: 'db', Action: 'allow' }],
  }
  await rollOut(
    controller,
    new Map([
      [a, configured],
      [b, [db]],
    ]),
    { catalog },
  )
  await statusOnceWell(a)
  await eventually(async () => assert.equal((await a.run('test', '-s', KEPT)).code, 0))
})

after(() => cleanUp.disposeAsync())

/** What the guard is made from at the next boot. */
const KEPT = '/var/lib/hostmesh/capture.json'

for (const how of ['reboot', 'power cut'] as const) {
  test(`after a ${how} nothing leaves in plaintext, and whoever waits for the mesh is served from the first connection on`, async () => {
    await using leaks = await watchForPlaintext(network.host('a'), text)
    let bootedMs = 0
    const whileDown = async (): Promise<void> => {
      await forgetRules()
      bootedMs = Date.now()
    }
    if (how === 'reboot') await a.reboot(whileDown)
    else {
      await a.cutPower()
      await whileDown()
      await a.boot()
    }
    for (const name of ['ordered', 'ready'] as const)
      await eventually(async () => {
        const { outcomes, calls } = summarizeCalls(await callsSince(name, bootedMs))
        assert.ok(calls > 20, `${calls} of ${name}`)
        assert.deepEqual(outcomes, { served: calls }, `of ${name}`)
      })
    await eventually(async () => {
      const { served, refused, calls } = summarizeCalls(await callsSince('early', bootedMs))
      assert.ok(served > 0, `${served} of ${calls} were served`)
      // It did dial before there was a daemon.
      assert.ok(refused > 0, `${refused} of ${calls} were refused`)
    })
    assert.deepEqual(await leaks.leaks(), [])
    assert.equal(await a.property('ActiveState', 'hostmesh-guard.service'), 'active')
    assert.equal(await a.property('ActiveState', 'hostmesh-ready.target'), 'active')
    await statusOnceWell(a)
  })
}

test('without its daemon a host that was booted refuses, and who needs the mesh does not start', async () => {
  await a.must('systemctl', 'disable', '--quiet', 'hostmesh.service')
  await using leaks = await watchForPlaintext(network.host('a'), text)
  await a.cutPower()
  await forgetRules()
  const bootedMs = Date.now()
  await a.boot()
  await eventually(async () => {
    const { outcomes, calls } = summarizeCalls(await callsSince('early', bootedMs))
    assert.ok(calls > 20, `${calls} connections`)
    assert.deepEqual(outcomes, { refused: calls })
  })
  assert.equal(await a.property('ActiveState', 'ready.service'), 'inactive')
  await a.must('systemctl', 'enable', '--quiet', '--now', 'hostmesh.service')
  await eventually(async () =>
    assert.equal(await a.property('ActiveState', 'ready.service'), 'active'),
  )
  await statusOnceWell(a)
  assert.deepEqual(await leaks.leaks(), [])
})

/** A unit that dials, as a service of its own. */
function callerFiles(
  name: keyof typeof CALLERS,
  targets: readonly string[],
): Record<string, string> {
  const { after: orderedAfter, user, wantedBy } = CALLERS[name]
  const command = dialerCommand({ targets, rate: 20, canary: text, log: logOf(name) })
  const unit = [
    '[Unit]',
    ...(orderedAfter === '' ? [] : [`After=${orderedAfter}`]),
    '[Service]',
    `User=${user}`,
    `ExecStart=${command}`,
  ]
  return {
    [`/etc/systemd/system/${name}.service`]: `${unit.join('\n')}\n`,
    // Enabled, as systemctl would.
    [`/etc/systemd/system/${wantedBy}.d/${name}.conf`]: `[Unit]\nWants=${name}.service\n`,
  }
}

function logOf(name: string): string {
  return `/var/tmp/${name}.jsonl`
}

async function callsSince(name: string, sinceMs: number): Promise<readonly Call[]> {
  const calls = await machineCalls(a, logOf(name))
  return calls.filter(({ atMs }) => atMs >= sinceMs)
}

/** As hardware does: the namespace of a machine outlives it. */
async function forgetRules(): Promise<void> {
  await network.host('a').run('nft', 'flush', 'ruleset')
}
