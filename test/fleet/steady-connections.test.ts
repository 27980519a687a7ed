/**
 * What the tests of a machine's life measure with: connections that go on over a reboot and a power cut, counted on the
 * machine by themselves and from outside by their plaintext. There is no mesh here, so both must see the same.
 */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'

import { eventually } from '../harness/eventually.ts'
import { Network } from '../harness/network.ts'
import { watchForPlaintext } from '../harness/plaintext-watch.ts'
import { summarizeCalls } from '../harness/steady-calls.ts'
import { canary } from '../harness/wire-capture.ts'
import { Workload } from '../harness/workload.ts'
import { Machine } from './machine.ts'
import { dialerCommand, dialerFiles, keepConnectingOn, machineCalls } from './steady-connections.ts'

const PORT = 5432
const LOG = '/var/log/calls.jsonl'

const cleanUp = new AsyncDisposableStack()
const text = canary()
let network: Network
let machine: Machine
let target: string

before(async () => {
  network = cleanUp.use(await Network.create(['a', 'b']))
  const echo = cleanUp.use(
    await Workload.start({
      namespace: network.host('b'),
      uid: 47_001,
      service: 'db',
      instance: 'db',
    }),
  )
  await echo.listen('::', PORT, 'echo')
  target = `${network.host('b').ip}:${PORT}`
  const command = dialerCommand({ targets: [target], rate: 20, canary: text, log: LOG })
  machine = cleanUp.use(
    await Machine.create('host-a', network.host('a'), {
      ...(await dialerFiles()),
      '/etc/systemd/system/calls.service': `[Service]\nExecStart=${command}\n`,
      // Enabled, as systemctl would.
      '/etc/systemd/system/multi-user.target.d/calls.conf': '[Unit]\nWants=calls.service\n',
    }),
  )
})

after(() => cleanUp.disposeAsync())

test('connections of a unit go on over a reboot and a power cut, each counted once by its plaintext', async () => {
  await using leaks = await watchForPlaintext(network.host('a'), text)
  const more = async (count: number): Promise<void> => {
    const wanted = (await machineCalls(machine, LOG)).length + count
    await eventually(async () => assert.ok((await machineCalls(machine, LOG)).length >= wanted), {
      withinMs: 30_000,
    })
  }
  await machine.boot()
  await more(20)
  await machine.reboot()
  await more(20)
  await machine.cutPower()
  await machine.boot()
  await more(20)
  await machine.must('systemctl', 'stop', 'calls.service')
  const calls = await machineCalls(machine, LOG)
  const { served } = summarizeCalls(calls)
  assert.ok(served >= 60, `${served} served`)
  assert.equal(new Set(calls.map(({ number }) => number)).size, calls.length)
  const seen = new Set((await leaks.leaks()).map(({ serial }) => serial))
  for (const { number, outcome } of calls)
    if (outcome === 'served') assert.ok(seen.has(number), `connection ${number} was not seen`)
  // A connection in flight at the end of a life is in no log.
  assert.ok((await leaks.count()) <= calls.length + 4)
})

test('connections for the time of a test are of the user that was asked for', async () => {
  await using calls = await keepConnectingOn(machine, { targets: [target], user: 'daemon' })
  await using leaks = await watchForPlaintext(network.host('a'), calls.canary)
  await calls.more(20)
  const owners = await machine.must('ps', '-C', 'python3', '-o', 'user=')
  assert.match(owners, /^daemon$/m)
  const { outcomes, calls: all } = await calls.stop()
  assert.deepEqual(outcomes, { served: all })
  assert.ok((await leaks.count()) >= 20)
})
