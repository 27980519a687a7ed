/**
 * Capture by nftables on a real kernel: who lands where, what stays untouched, what the guard holds, and that nothing
 * is left behind.
 */
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { type Capture, createCapture } from '../../src/controlplane/capture/capture.ts'
import { createCommandRunner, type RunCommand } from '../../src/controlplane/capture/command.ts'
import type { CapturePlan } from '../../src/controlplane/capture/rules.ts'
import { MeshError } from '../../src/lib/errors.ts'
import type { SocketAddress } from '../../src/model/address.ts'
import { eventually } from '../harness/eventually.ts'
import { type Namespace, Network } from '../harness/network.ts'
import { mustRun, OwnedProcess } from '../harness/owned-process.ts'
import { connectFrom, insideAs, startListener, TestCgroup, tableOwnerIn } from './capture-host.ts'

const backend = 'nftables'
const DAEMON = 2_900
const WEB = 2_001
const SHOP = 2_002
const STRANGER = 2_003
const PORTS = { web: 15_100, shop: 15_101, unit: 15_102, default: 15_199 }
/** Where a service that is no part of the mesh answers on the other host. */
const PLAIN_PORT = 8_080
const INSTANCE_PORT = 9_090

const plan: CapturePlan = {
  workloads: [
    { selector: { kind: 'user', user: String(WEB) }, capturePort: PORTS.web },
    { selector: { kind: 'user', user: String(SHOP) }, capturePort: PORTS.shop },
  ],
  virtualRange: '240.0.0.0/4',
  virtualRange6: 'fdc6:6d65:7368::/64',
  daemonUid: DAEMON,
  ownPorts: [...Object.values(PORTS), 15_443],
}

const virtual = [
  { ip: '240.7.7.7', port: 5_432 },
  { ip: 'fdc6:6d65:7368::7', port: 6_379 },
]

const REFUSED = { error: 'Connection refused' }

const atInstancePort = (ip: string) => ({ ip, port: INSTANCE_PORT })

/** Says hello from one address and port to another as a user; what comes back, at most 5 s later. */
async function talk(
  host: Namespace,
  uid: number,
  from: SocketAddress,
  to: SocketAddress,
): Promise<string> {
  const { ip: localAddress, port: localPort } = from
  const options = JSON.stringify({ host: to.ip, port: to.port, localAddress, localPort })
  const script = `const socket = require('node:net').connect(${options}, () => socket.write('hello'))
    socket.on('error', (error) => console.log(error.code)).setTimeout(5000, () => socket.destroy(new Error('silence')))
    socket.on('data', (bytes) => { process.stdout.write(bytes); socket.destroy() })`
  return (await mustRun(insideAs(host, uid, [process.execPath, '-e', script]))).trim()
}

describe('nftables', () => {
  let network: Network
  let a: Namespace
  let b: Namespace
  let run: RunCommand
  let capture: Capture
  let pristine: string
  const listeners: OwnedProcess[] = []
  const instances = (...ips: string[]): Promise<void> =>
    capture.updateAddresses({
      instances: ips.map(atInstancePort),
      permitted: [],
    })
  const nft = async (...words: string[]): Promise<string> => a.run('nft', ...words)

  before(async () => {
    network = await Network.create(['a', 'b'])
    a = network.host('a')
    b = network.host('b')
    const runner = createCommandRunner()
    run = (tool, args, input) => {
      const [command = '', ...rest] = a.inside([tool, ...args])
      return runner(command, rest, input)
    }
    await nft('add', 'table', 'inet', 'filter')
    pristine = await a.rules()
    capture = createCapture({ run, backend })
    listeners.push(
      await startListener(a, Object.values(PORTS), 'transparent'),
      await startListener(a, [15_443, INSTANCE_PORT], 'plain'),
      await startListener(b, [PLAIN_PORT, INSTANCE_PORT, 22], 'plain'),
    )
    await capture.apply(plan)
  })

  after(async () => {
    for (const listener of listeners) await listener.stop()
    await network[Symbol.asyncDispose]()
  })

  test('two users that reach the same address land on different ports, with the address known', async () => {
    await instances(b.ip, b.ip6, a.ip, a.ip6)
    for (const { ip, port } of [...virtual, ...[b.ip, b.ip6, a.ip, a.ip6].map(atInstancePort)])
      for (const [uid, landed] of [
        [WEB, PORTS.web],
        [SHOP, PORTS.shop],
      ] as const)
        assert.deepEqual(await connectFrom(a, { uid }, ip, port), {
          port: landed,
          original: { ip, port },
        })
    assert.deepEqual(capture.problems(), [])
  })

  test('a virtual address answers a caller without identity, and the daemon, with a reset', async () => {
    const counted = (await capture.show()).counts.refusedVirtual
    for (const { ip, port } of virtual)
      for (const uid of [STRANGER, DAEMON, 0])
        assert.deepEqual(await connectFrom(a, { uid }, ip, port), REFUSED)
    assert.equal((await capture.show()).counts.refusedVirtual, counted + 6)
  })

  test('addresses outside of the mesh pass untouched, and instances for who has no identity', async () => {
    for (const ip of [b.ip, b.ip6]) {
      for (const port of [PLAIN_PORT, 22])
        assert.equal((await connectFrom(a, { uid: WEB }, ip, port)).port, port)
      for (const uid of [STRANGER, DAEMON])
        assert.equal((await connectFrom(a, { uid }, ip, INSTANCE_PORT)).port, INSTANCE_PORT)
    }
  })

  test('an address that is no instance any more is not captured', async () => {
    await instances(b.ip)
    assert.equal((await connectFrom(a, { uid: WEB }, b.ip6, INSTANCE_PORT)).port, INSTANCE_PORT)
    await instances(b.ip, b.ip6)
    assert.equal((await connectFrom(a, { uid: WEB }, b.ip6, INSTANCE_PORT)).port, PORTS.web)
  })

  test('a direct dial to a capture port shows that port, and one to the tunnel port is left alone', async () => {
    for (const ip of ['127.0.0.1', '::1'])
      for (const uid of [WEB, STRANGER])
        assert.deepEqual(await connectFrom(a, { uid }, ip, PORTS.shop), {
          port: PORTS.shop,
          original: { ip, port: PORTS.shop },
        })
    for (const ip of [a.ip, a.ip6])
      assert.deepEqual(await connectFrom(a, { uid: WEB }, ip, PORTS.shop), REFUSED)
    await capture.updateAddresses({ instances: [{ ip: a.ip, port: 15_443 }], permitted: [] })
    assert.equal((await connectFrom(a, { uid: WEB }, a.ip, 15_443)).port, 15_443)
  })

  test('callers without identity land on the port of the default identity where there is one', async () => {
    await instances(b.ip)
    await capture.apply({ ...plan, defaultCapturePort: PORTS.default })
    for (const { ip, port } of [...virtual, { ip: b.ip, port: INSTANCE_PORT }]) {
      assert.equal((await connectFrom(a, { uid: STRANGER }, ip, port)).port, PORTS.default)
      assert.equal((await connectFrom(a, { uid: WEB }, ip, port)).port, PORTS.web)
    }
    assert.deepEqual(await connectFrom(a, { uid: DAEMON }, '240.7.7.7', 5_432), REFUSED)
    await capture.apply(plan)
  })

  test('where unknown callers are refused at instances, nobody else is, and it is counted', async () => {
    const refusing = { ...plan, refusesUnknownAtInstances: true }
    await capture.apply(refusing)
    await instances(b.ip, b.ip6)
    const { inSync, difference } = await capture.show(refusing)
    assert.equal(inSync, true, difference)
    for (const ip of [b.ip, b.ip6]) {
      const counted = (await capture.show()).counts.refusedInstance
      assert.deepEqual(await connectFrom(a, { uid: STRANGER }, ip, INSTANCE_PORT), REFUSED)
      assert.equal((await capture.show()).counts.refusedInstance, counted + 1)
      assert.equal((await connectFrom(a, { uid: STRANGER }, ip, 22)).port, 22)
      assert.equal((await connectFrom(a, { uid: WEB }, ip, INSTANCE_PORT)).port, PORTS.web)
      assert.equal((await connectFrom(a, { uid: DAEMON }, ip, INSTANCE_PORT)).port, INSTANCE_PORT)
    }
    await capture.apply(plan)
  })

  test('what is permitted passes and is counted, for who has an identity, too', async () => {
    const instance = { ip: b.ip, port: INSTANCE_PORT }
    await capture.updateAddresses({ instances: [instance], permitted: [instance] })
    assert.equal((await connectFrom(a, { uid: WEB }, b.ip, INSTANCE_PORT)).port, INSTANCE_PORT)
    assert.equal((await capture.show()).counts.permitted, 1)
    await instances(b.ip)
    assert.equal((await connectFrom(a, { uid: WEB }, b.ip, INSTANCE_PORT)).port, PORTS.web)
  })

  test('a unit is recognized by its cgroup before its user, also when it has restarted or starts late', async () => {
    using unit = await TestCgroup.create('my\\x2dapp@1.service')
    await using kept = createCapture({
      run,
      backend,
      maintain: { verifyEveryMs: 60_000, cgroupEveryMs: 1_000 },
    })
    const late = unit.path.replace(/[^/]*$/, 'late.service')
    await kept.apply({
      ...plan,
      workloads: [
        ...plan.workloads,
        { selector: { kind: 'cgroup', path: unit.path }, capturePort: PORTS.unit },
        { selector: { kind: 'cgroup', path: late }, capturePort: PORTS.default },
      ],
    })
    const inUnit = { uid: WEB, cgroup: unit.folder }
    assert.equal((await connectFrom(a, inUnit, '240.0.0.9', 80)).port, PORTS.unit)
    unit.restart()
    await eventually(async () =>
      assert.equal((await connectFrom(a, inUnit, '240.0.0.9', 80)).port, PORTS.unit),
    )
    assert.match(kept.problems().join('\n'), /late\.service/)
    using started = await TestCgroup.create('late.service')
    await eventually(async () =>
      assert.equal(
        (await connectFrom(a, { uid: STRANGER, cgroup: started.folder }, '240.0.0.9', 80)).port,
        PORTS.default,
      ),
    )
    await eventually(() => assert.deepEqual(kept.problems(), []))
  })

  test('applying again keeps what packets have put into sets', async () => {
    await capture.apply(plan)
    await instances(b.ip)
    const tuple = '10.88.0.1 . 1234 . 10.88.0.2 . 9090'
    for (const set of ['open4', 'spared4'])
      await nft('add', 'element', 'inet', 'hostmesh', set, `{ ${tuple} }`)
    await capture.apply({ ...plan, ownPorts: [15_443] })
    await capture.apply(plan)
    for (const set of ['open4', 'spared4'])
      assert.match(await nft('list', 'set', 'inet', 'hostmesh', set), /\. 1234 \./)
  })

  test('a look does not read what packets have put into sets', async () => {
    await capture.apply(plan)
    await instances(b.ip)
    const tuples = Array.from(
      { length: 200_000 },
      (_, index) =>
        `10.1.${index >> 16}.${(index >> 8) & 255} . ${1 + (index & 255)} . 10.88.0.2 . 9090`,
    )
    const fill = ['hostmesh', 'hostmesh_guard'].map(
      (table) => `add element inet ${table} open4 { ${tuples.join(', ')} }\n`,
    )
    assert.equal((await run('nft', ['-f', '-'], fill.join(''))).status, 0)
    // To read them takes nft several seconds of processor time: it is ended by the kernel after one.
    const limited: RunCommand = (tool, args, input) =>
      run('prlimit', ['--cpu=1', '--', tool, ...args], input)
    const looking = createCapture({ run: limited, backend })
    assert.equal((await looking.show(plan)).inSync, true)
    await looking.apply(plan)
    await looking.updateAddresses({ instances: [atInstancePort(b.ip)], permitted: [] })
    assert.deepEqual(looking.problems(), [])
    for (const table of ['hostmesh', 'hostmesh_guard'])
      await nft('flush', 'set', 'inet', table, 'open4')
  })

  test('whatever part is changed by others is noticed, and applying puts it right', async () => {
    await capture.apply(plan)
    await instances(b.ip)
    const changes: Record<string, string[]> = {
      'a rule gone': ['nft', 'flush', 'chain', 'inet', 'hostmesh', 'callers'],
      'a rule added': ['nft', 'insert', 'rule', 'inet', 'hostmesh', 'output', 'accept'],
      'the table gone': ['nft', 'delete', 'table', 'inet', 'hostmesh'],
      'everything gone': ['nft', 'flush', 'ruleset'],
      'the guard gone': ['nft', 'delete', 'table', 'inet', 'hostmesh_guard'],
      'a set flushed': ['nft', 'flush', 'set', 'inet', 'hostmesh', 'instances4'],
      'the rule of the mark gone': ['ip', 'rule', 'del', 'priority', '5'],
      'the rule of virtual addresses gone': ['ip', 'rule', 'del', 'priority', '6'],
      'the route of the mark gone': ['ip', 'route', 'flush', 'table', '213'],
      'the route of virtual addresses gone': ['ip', 'route', 'del', '240.0.0.0/4'],
    }
    for (const [what, command] of Object.entries(changes)) {
      assert.equal((await capture.show()).inSync, true, `before: ${what}`)
      await a.run(...command)
      assert.equal((await capture.show()).inSync, false, what)
      assert.equal((await createCapture({ run, backend }).show(plan)).inSync, false, what)
      if (what === 'everything gone') await nft('add', 'table', 'inet', 'filter')
      await capture.apply(plan)
      assert.equal((await capture.show()).inSync, true, what)
      for (const { ip, port } of [...virtual, { ip: b.ip, port: INSTANCE_PORT }])
        assert.equal((await connectFrom(a, { uid: WEB }, ip, port)).port, PORTS.web, what)
    }
  })

  test('an exchanged element is noticed', async () => {
    await a.run('nft', 'add', 'element', 'inet', 'hostmesh', 'instances4', '{ 10.88.0.9 . 1 }')
    await a.run(
      'nft',
      'delete',
      'element',
      'inet',
      'hostmesh',
      'instances4',
      `{ ${b.ip} . ${INSTANCE_PORT} }`,
    )
    assert.match((await capture.show()).difference ?? '', /holds others/)
    await capture.apply(plan)
    assert.equal((await connectFrom(a, { uid: WEB }, b.ip, INSTANCE_PORT)).port, PORTS.web)
  })

  test('without a listener everything captured is refused at once', async () => {
    const other = {
      ...plan,
      workloads: plan.workloads.map((w, i) => ({ ...w, capturePort: 16_000 + i })),
    }
    await capture.apply(other)
    for (const { ip, port } of [...virtual, { ip: b.ip, port: INSTANCE_PORT }])
      assert.deepEqual(await connectFrom(a, { uid: WEB }, ip, port), REFUSED)
    await capture.apply(plan)
  })

  test('a local user who binds a capture port while nobody listens gets nothing', async () => {
    const other = {
      ...plan,
      workloads: [
        { selector: { kind: 'user' as const, user: String(WEB) }, capturePort: INSTANCE_PORT },
      ],
    }
    await capture.apply(other)
    for (const { ip, port } of virtual)
      assert.deepEqual(await connectFrom(a, { uid: WEB }, ip, port), REFUSED)
    await capture.apply(plan)
  })

  test('what ends a handshake by SYN cookies reaches no listener of others, and is reset', async () => {
    await capture.apply(plan)
    await instances(b.ip, b.ip6)
    const cookies = 'net.ipv4.tcp_syncookies'
    const usual = (await a.run('sysctl', '-n', cookies)).trim()
    // The kernel remembers no first segment, so that the third meets whoever listens at its address.
    await a.run('sysctl', '-qw', `${cookies}=2`)
    const spy = await startListener(a, [5_432, 6_379], 'plain')
    try {
      for (const { ip, port } of [...virtual, ...[b.ip, b.ip6].map(atInstancePort)])
        assert.match(
          String((await connectFrom(a, { uid: WEB }, ip, port)).error),
          /Connection reset|Connection refused/,
          ip,
        )
    } finally {
      await spy.stop()
      await a.run('sysctl', '-qw', `${cookies}=${usual}`)
    }
  })

  test('what could not be applied is tried again', async () => {
    await capture.clear()
    let fails = true
    const unreliable: RunCommand = (tool, args, input) =>
      fails && args[0] === '-f'
        ? Promise.resolve({ status: 1, stdout: '', stderr: 'not now' })
        : run(tool, args, input)
    const maintain = { verifyEveryMs: 200, cgroupEveryMs: 100 }
    await using kept = createCapture({ run: unreliable, backend, maintain })
    await kept.updateAddresses({ instances: [atInstancePort(b.ip)], permitted: [] })
    await assert.rejects(kept.apply(plan), /not now/)
    fails = false
    await eventually(async () => assert.equal((await kept.show()).inSync, true))
    assert.deepEqual(await connectFrom(a, { uid: WEB }, b.ip, INSTANCE_PORT), {
      port: PORTS.web,
      original: atInstancePort(b.ip),
    })
    assert.deepEqual(kept.problems(), [])
    await kept[Symbol.asyncDispose]()
    await capture.apply(plan)
    await instances(b.ip, b.ip6)
  })

  test('the copy of the guard comes back when its nft has ended', async () => {
    const { owner, children } = tableOwnerIn(a)
    const maintain = { verifyEveryMs: 200, cgroupEveryMs: 100, owner }
    await using kept = createCapture({ run, backend, maintain })
    await kept.apply(plan)
    const held = async (): Promise<string> => nft('list', 'tables', 'inet')
    const name = `hostmesh_held_${process.pid}`
    await eventually(async () => assert.match(await held(), new RegExp(`${name}$`, 'm')))
    children[0]?.kill('SIGKILL')
    await eventually(async () => assert.match(await held(), new RegExp(`${name}_2$`, 'm')))
    assert.equal(kept.condition().isGuardHeld, true)
  })

  test('the guard holds when what diverts is gone', async () => {
    await instances(b.ip, b.ip6)
    await nft('delete', 'table', 'inet', 'hostmesh')
    const counted = (await capture.show()).counts.guarded ?? 0
    for (const { ip, port } of [...virtual, ...[b.ip, b.ip6].map(atInstancePort)])
      assert.deepEqual(await connectFrom(a, { uid: WEB }, ip, port), REFUSED, ip)
    assert.equal((await connectFrom(a, { uid: STRANGER }, b.ip, INSTANCE_PORT)).port, INSTANCE_PORT)
    assert.equal((await connectFrom(a, { uid: WEB }, b.ip, 22)).port, 22)
    assert.equal((await capture.show()).counts.guarded, counted + 4)
    await capture.apply(plan)
  })

  test('a delivery of the daemon is not taken for the captured connection that had its numbers', async () => {
    await capture.apply(plan)
    for (const ip of [b.ip, b.ip6]) {
      await instances(ip)
      const from = { ip: ip === b.ip ? a.ip : a.ip6, port: 40_123 }
      const set = ip === b.ip ? 'open4' : 'open6'
      const tuple = `${from.ip} . ${from.port} . ${ip} . ${INSTANCE_PORT}`
      await nft('add', 'element', 'inet', 'hostmesh', set, `{ ${tuple} }`)
      assert.match(await talk(a, DAEMON, from, { ip, port: INSTANCE_PORT }), /^\{.*\}$/)
    }
  })

  test('who dials from the address and port of an instance is answered', async () => {
    const server = `const {createServer} = require('node:net')
      createServer((socket) => socket.on('data', (bytes) => socket.end('to ' + bytes))).listen(8088, () => console.log('ready'))`
    const listener = await OwnedProcess.start(insideAs(a, WEB, [process.execPath, '-e', server]), {
      name: 'web',
    })
    try {
      await eventually(() => assert.match(listener.output, /ready/))
      for (const isV4 of [true, false]) {
        const from = { ip: isV4 ? b.ip : b.ip6, port: 9_191 }
        await capture.updateAddresses({ instances: [from], permitted: [] })
        const to = { ip: isV4 ? a.ip : a.ip6, port: 8_088 }
        assert.equal(await talk(b, STRANGER, from, to), 'to hello')
        // And what a workload of this host dials there is captured as ever.
        assert.equal((await connectFrom(a, { uid: WEB }, from.ip, from.port)).port, PORTS.web)
      }
    } finally {
      await listener.kill()
    }
  })

  test('connections that take the mark of who dials are answered', async () => {
    await capture.apply(plan)
    await instances(b.ip, b.ip6)
    await a.run('sysctl', '-qw', 'net.ipv4.tcp_fwmark_accept=1')
    for (const { ip, port } of [...virtual, ...[b.ip, b.ip6].map(atInstancePort)])
      assert.equal((await connectFrom(a, { uid: WEB }, ip, port)).port, PORTS.web, ip)
    await a.run('sysctl', '-qw', 'net.ipv4.tcp_fwmark_accept=0')
  })

  test('no ip rule of others leads virtual addresses elsewhere', async () => {
    await capture.apply(plan)
    const rules = [
      ['from', a.ip],
      ['uidrange', `${WEB}-${WEB}`],
      ['from', 'all'],
    ]
    await a.run('ip', 'route', 'add', 'default', 'via', b.ip, 'dev', 'eth0', 'table', '100')
    for (const words of rules) {
      await a.run('ip', 'rule', 'add', ...words, 'priority', '1000', 'table', '100')
      for (const { ip, port } of virtual)
        assert.equal((await connectFrom(a, { uid: WEB }, ip, port)).port, PORTS.web, words.join())
      await a.run('ip', 'rule', 'del', 'priority', '1000')
    }
    await a.run('ip', 'route', 'flush', 'table', '100')
    assert.deepEqual(capture.problems(), [])
  })

  test('when IPv6 routing cannot be applied to a fresh host, nothing stays', async () => {
    await capture.clear()
    const broken: RunCommand = (tool, args, input) =>
      tool === 'ip' && args[0] === '-6' && args.includes('add')
        ? Promise.resolve({ status: 1, stdout: '', stderr: 'no' })
        : run(tool, args, input)
    await assert.rejects(
      createCapture({ run: broken, backend }).apply(plan),
      (error) => error instanceof MeshError && error.code === 'HM_CAPTURE_APPLY_FAILED',
    )
    assert.equal(await a.rules(), pristine)
  })

  test('rounds of apply and clear leave everything else as it was', async () => {
    for (let round = 0; round < 5; round += 1) {
      await capture.apply(plan)
      assert.notEqual(await a.rules(), pristine)
      assert.equal((await createCapture({ run }).clear()).removed, true)
      assert.equal(await a.rules(), pristine)
    }
    assert.deepEqual(await capture.clear(), { removed: false, notes: [] })
  })

  test('an ip rule of others that uses our bits of the mark is named', async () => {
    await a.run('ip', 'rule', 'add', 'fwmark', '0x1000/0x3000', 'priority', '100', 'table', '99')
    await capture.apply(plan)
    assert.match(capture.problems().join(), /priority 100 .*uses bits of the mark 0x1000/)
    await a.run('ip', 'rule', 'del', 'priority', '100')
    await capture.apply(plan)
    assert.deepEqual(capture.problems(), [])
    await capture.clear()
  })
})
