/**
 * The meter on a real cgroup of this machine: a process that burns CPU and holds sockets.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, rmdirSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { test } from 'node:test'
import { findCgroupRoot } from '../../src/controlplane/capture/workloads.ts'
import { WorkloadMeter } from '../../src/daemon/workload-use.ts'
import { eventually } from '../harness/eventually.ts'
import { TestClock } from '../harness/test-clock.ts'

/** Enters the cgroup before it opens anything; each line on standard input burns 200 ms of CPU. */
const program = `
  const { writeFileSync } = require('node:fs')
  writeFileSync(process.argv[1] + '/cgroup.procs', String(process.pid))
  const server = require('node:net').createServer().listen(0, '127.0.0.1', () => {
    const client = require('node:net').connect(server.address().port, '127.0.0.1')
    client.on('connect', () => console.log('open'))
  })
  process.stdin.on('data', () => {
    const end = process.cpuUsage().user + 200_000
    while (process.cpuUsage().user < end);
    console.log('burnt')
  })`

test('a real cgroup: CPU time, sockets, pressure, and what its controllers give', async () => {
  const root = await findCgroupRoot()
  assert.ok(root !== undefined, 'cgroup v2 is mounted on this machine')
  const path = `hostmesh-test-${process.pid}`
  const folder = join(root, path)
  mkdirSync(folder)
  const child = spawn(process.execPath, ['-e', program, folder], {
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  try {
    const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
    assert.equal((await lines.next()).value, 'open')
    const clock = new TestClock()
    const services = [{ name: 'web', selector: { kind: 'cgroup', path } }] as const
    const meter = new WorkloadMeter({ services, cgroupRoot: root, clock })
    const [, first] = await meter.read()
    assert.equal(first?.service, 'web')
    assert.equal(first.cpuMs, undefined)
    assert.equal(first.sockets, 3, 'one that listens, and both ends of a connection')
    child.stdin.write('burn\n')
    assert.equal((await lines.next()).value, 'burnt')
    clock.pass(10_000)
    const [daemon, second] = await meter.read()
    assert.ok((second?.cpuMs ?? 0) >= 200, `${second?.cpuMs} ms`)
    assert.ok((second?.cpuMs ?? 0) < 5_000, `${second?.cpuMs} ms`)
    const share = second?.pressure?.cpu
    assert.ok(share !== undefined && share >= 0 && share <= 1, `${share}`)
    assert.ok((daemon?.memoryBytes ?? 0) > 10_000_000, 'the process of this test')
  } finally {
    child.kill('SIGKILL')
    await once(child, 'exit')
    await eventually(() => rmdirSync(folder))
  }
})
