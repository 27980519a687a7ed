/**
 * What the meter makes of the kernel's files: differences of a span, successors of a cgroup, what is not given.
 */
import assert from 'node:assert/strict'
import { statSync } from 'node:fs'
import { mkdir, mkdtemp, rename, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { test } from 'node:test'
import { WorkloadMeter } from '../../src/daemon/workload-use.ts'
import { TestClock } from '../harness/test-clock.ts'

/** A cgroup and a /proc that hold what the test writes. */
class FakeKernel implements AsyncDisposable {
  readonly root: string
  readonly clock = new TestClock()
  readonly sockets = new Map<bigint, number>()

  private constructor(root: string) {
    this.root = root
  }

  static async make(): Promise<FakeKernel> {
    return new FakeKernel(await mkdtemp(join(tmpdir(), 'hostmesh-cgroup-')))
  }

  meter(...services: [name: string, path: string][]): WorkloadMeter {
    return new WorkloadMeter({
      services: services.map(([name, path]) => ({ name, selector: { kind: 'cgroup', path } })),
      cgroupRoot: join(this.root, 'cgroup'),
      procRoot: join(this.root, 'proc'),
      clock: this.clock,
      countSockets: () => this.sockets,
    })
  }

  async write(files: Readonly<Record<string, string>>): Promise<void> {
    for (const [path, text] of Object.entries(files)) {
      await mkdir(dirname(join(this.root, path)), { recursive: true })
      await writeFile(join(this.root, path), text)
    }
  }

  cgroup(path: string, cpuUs: number, more: Readonly<Record<string, string>> = {}): Promise<void> {
    const files = { 'cpu.stat': `usage_usec ${cpuUs}\nuser_usec 1\n`, ...more }
    return this.write(
      Object.fromEntries(
        Object.entries(files).map(([name, text]) => [`cgroup/${path}/${name}`, text]),
      ),
    )
  }

  inode(path: string): bigint {
    return statSync(join(this.root, 'cgroup', path), { bigint: true }).ino
  }

  [Symbol.asyncDispose](): Promise<void> {
    return rm(this.root, { recursive: true, force: true })
  }
}

const WEB = 'system.slice/web.service'

function stalled(totalUs: number): string {
  return `some avg10=9.99 avg60=1.00 avg300=0.00 total=${totalUs}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n`
}

test('a second reading has the CPU time and pressure of the span, the first has none', async () => {
  await using kernel = await FakeKernel.make()
  const present = { 'memory.current': '4096\n', 'pids.current': '3\n' }
  await kernel.cgroup(WEB, 5_000_000, { ...present, 'cpu.pressure': stalled(1_000_000) })
  kernel.sockets.set(kernel.inode(WEB), 12)
  const meter = kernel.meter(['web', WEB])
  const [, first] = await meter.read()
  assert.deepEqual(first, { service: 'web', memoryBytes: 4_096, tasks: 3, sockets: 12 })
  await kernel.cgroup(WEB, 5_250_000, { ...present, 'cpu.pressure': stalled(2_000_000) })
  kernel.clock.pass(10_000)
  const [, second] = await meter.read()
  assert.deepEqual(second, {
    service: 'web',
    cpuMs: 250,
    memoryBytes: 4_096,
    tasks: 3,
    sockets: 12,
    pressure: { cpu: 0.1 },
  })
})

test('what the kernel does not give is left out, and no cgroup is no entry', async () => {
  await using kernel = await FakeKernel.make()
  await kernel.write({ [`cgroup/${WEB}/cgroup.procs`]: '' })
  const meter = kernel.meter(['web', WEB], ['gone', 'system.slice/gone.service'])
  await meter.read()
  kernel.clock.pass(10_000)
  assert.deepEqual(await meter.read(), [{ service: 'hostmesh' }, { service: 'web' }])
})

test('a cgroup that came in the span has used all of its counters in it, also in place of another', async () => {
  await using kernel = await FakeKernel.make()
  const meter = kernel.meter(['web', WEB])
  await meter.read()
  await kernel.cgroup(WEB, 40_000)
  kernel.clock.pass(10_000)
  assert.equal((await meter.read())[1]?.cpuMs, 40)
  await kernel.cgroup(`${WEB}.next`, 70_000)
  await rename(join(kernel.root, 'cgroup', WEB), join(kernel.root, 'former'))
  await rename(join(kernel.root, 'cgroup', `${WEB}.next`), join(kernel.root, 'cgroup', WEB))
  kernel.clock.pass(10_000)
  assert.equal((await meter.read())[1]?.cpuMs, 70, 'not 30, the difference to another cgroup')
})

test('readings happen once in 10 s on the average, and a refused one loses nothing', async () => {
  await using kernel = await FakeKernel.make()
  await kernel.cgroup(WEB, 0)
  const meter = kernel.meter(['web', WEB])
  await meter.read()
  let readings = 0
  let cpuMs = 0
  for (let at = 1; at <= 100; at += 1) {
    await kernel.cgroup(WEB, at * 1_000)
    kernel.clock.pass(995)
    const [, web] = await meter.read()
    if (web === undefined) continue
    readings += 1
    cpuMs += web.cpuMs ?? 0
  }
  assert.ok(readings === 9 || readings === 10, `${readings} readings in 99.5 s`)
  assert.ok(cpuMs >= 90 && cpuMs <= 100, `${cpuMs} ms are counted once`)
})

test('instances of a service are one entry: sums, and the highest pressure', async () => {
  await using kernel = await FakeKernel.make()
  const [a, b] = ['system.slice/a.service', 'system.slice/b.service']
  const meter = kernel.meter(['web', a], ['web', b], ['web', a])
  await kernel.cgroup(a, 0, { 'memory.current': '100', 'io.pressure': stalled(0) })
  await kernel.cgroup(b, 0, { 'memory.current': '200', 'pids.current': '1' })
  await meter.read()
  await kernel.cgroup(a, 1_000, { 'io.pressure': stalled(30_000_000) })
  await kernel.cgroup(b, 2_000, { 'io.pressure': stalled(1) })
  kernel.clock.pass(10_000)
  const [, web] = await meter.read()
  assert.deepEqual(web, {
    service: 'web',
    cpuMs: 3,
    memoryBytes: 300,
    pressure: { io: 1 },
  })
})

test('the daemon is read from its cgroup when it is alone there, else from its process', async () => {
  await using kernel = await FakeKernel.make()
  const own = 'system.slice/hostmesh.service'
  const stat = (ticks: number): string =>
    `77 (hostmesh) (x) S 1 77 77 0 -1 4194560 1 2 3 4 ${ticks} 5 1 1 20 0 9 0 100\n`
  await kernel.write({
    'proc/self/cgroup': `1:name=systemd:/\n0::/${own}\n`,
    'proc/self/stat': stat(100),
    'proc/self/status': 'Name:\thostmesh\nVmRSS:\t    2048 kB\nThreads:\t9\n',
  })
  await kernel.cgroup(own, 0, { 'cgroup.procs': '77\n', 'memory.current': '5' })
  const meter = kernel.meter()
  assert.deepEqual(await meter.read(), [{ service: 'hostmesh', memoryBytes: 5 }])
  await kernel.cgroup(own, 9_000, { 'cgroup.procs': '77\n' })
  kernel.clock.pass(10_000)
  assert.equal((await meter.read())[0]?.cpuMs, 9)
  await kernel.cgroup(own, 20_000, { 'cgroup.procs': '77\n99\n' })
  kernel.clock.pass(10_000)
  assert.deepEqual(
    await meter.read(),
    [{ service: 'hostmesh', memoryBytes: 2_097_152, tasks: 9 }],
    'no difference between a cgroup and a process',
  )
  await kernel.write({ 'proc/self/stat': stat(130) })
  kernel.clock.pass(10_000)
  assert.equal((await meter.read())[0]?.cpuMs, 300)
})

test('without cgroup v2 only the daemon is read', async () => {
  const meter = new WorkloadMeter({
    services: [{ name: 'web', selector: { kind: 'cgroup', path: WEB } }],
    cgroupRoot: undefined,
  })
  const uses = await meter.read()
  assert.deepEqual(
    uses.map(({ service }) => service),
    ['hostmesh'],
  )
  assert.ok((uses[0]?.memoryBytes ?? 0) > 10_000_000 && (uses[0]?.tasks ?? 0) > 1)
})

test('of 1,200 cgroups 1,000 are read, and other work gets its turn meanwhile', async () => {
  await using kernel = await FakeKernel.make()
  const paths = Array.from({ length: 1_200 }, (_, i): [string, string] => [
    `s${i}`,
    `u${i}.service`,
  ])
  for (const [, path] of paths) await mkdir(join(kernel.root, 'cgroup', path), { recursive: true })
  let turns = 0
  const timer = setInterval(() => (turns += 1), 0)
  const uses = await kernel.meter(...paths).read()
  clearInterval(timer)
  assert.equal(uses.length, 1_001)
  assert.ok(turns > 0)
})
