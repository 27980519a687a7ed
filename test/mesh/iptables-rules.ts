/**
 * Capture by iptables on a real kernel: who lands where, what stays untouched, and that nothing is left behind.
 * Each claim is tried with both variants of iptables and, where it matters, with both families.
 */
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { type Capture, createCapture } from '../../src/controlplane/capture/capture.ts'
import type { RunCommand } from '../../src/controlplane/capture/command.ts'
import type { CapturePlan } from '../../src/controlplane/capture/rules.ts'
import { MeshError } from '../../src/lib/errors.ts'
import { eventually } from '../harness/eventually.ts'
import { type Namespace, Network } from '../harness/network.ts'
import type { OwnedProcess } from '../harness/owned-process.ts'
import {
  connectFrom,
  savedRules,
  startListener,
  TestCgroup,
  type Variant,
  VariantPath,
} from './capture-host.ts'

const backend = 'iptables'
const DAEMON = 2_900
const WEB = 2_001
const SHOP = 2_002
const STRANGER = 2_003
const PORTS = {
  web: 15_100,
  shop: 15_101,
  unit: 15_102,
  container: 15_103,
  container6: 15_104,
  default: 15_199,
}
/** Where a service that is no part of the mesh answers on the other host. */
const PLAIN_PORT = 8_080
const INSTANCE_PORT = 9_090

/** Two users. */
export const plan: CapturePlan = {
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

/** Rules as Docker, fail2ban and an administrator leave them, in every table. */
const foreign = (family: 'v4' | 'v6'): string => {
  const net = family === 'v4' ? '172.30.0.0/16' : 'fd30::/64'
  return [
    '*raw',
    '-A PREROUTING -p udp --dport 53 -j ACCEPT',
    'COMMIT',
    '*mangle',
    '-A POSTROUTING -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu',
    'COMMIT',
    '*nat',
    ':DOCKER - [0:0]',
    '-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER',
    `-A OUTPUT ! -d ${net} -m addrtype --dst-type LOCAL -j DOCKER`,
    `-A POSTROUTING -s ${net} ! -o docker0 -j MASQUERADE`,
    `-A DOCKER -i docker0 -m comment --comment "not -j HOSTMESH_OUTPUT" -j RETURN`,
    'COMMIT',
    '*filter',
    ':DOCKER-USER - [0:0]',
    ':f2b-sshd - [0:0]',
    '-A INPUT -p tcp -m multiport --dports 22 -j f2b-sshd',
    '-A FORWARD -j DOCKER-USER',
    '-A DOCKER-USER -j RETURN',
    '-A f2b-sshd -j RETURN',
    'COMMIT',
    '',
  ].join('\n')
}

/** Declares the claims for one variant. */
export function testRules(variant: Variant): void {
  describe(`iptables-${variant}`, () => {
    let network: Network
    let a: Namespace
    let b: Namespace
    let tools: VariantPath
    let run: RunCommand
    let capture: Capture
    let pristine: string
    const listeners: OwnedProcess[] = []

    before(async () => {
      network = await Network.create(['a', 'b', 'c'])
      a = network.host('a')
      b = network.host('b')
      tools = new VariantPath(variant)
      run = tools.runnerIn(a)
      for (const [tool, family] of [
        ['iptables-restore', 'v4'],
        ['ip6tables-restore', 'v6'],
      ] as const)
        assert.equal((await run(tool, [], foreign(family))).stderr, '')
      pristine = await savedRules(run)
      assert.match(pristine, /DOCKER-USER/)
      capture = createCapture({ run, backend })
      listeners.push(
        await startListener(a, [...Object.values(PORTS), 15_443]),
        await startListener(b, [PLAIN_PORT, INSTANCE_PORT, 22]),
      )
    })

    after(async () => {
      for (const listener of listeners) await listener.kill()
      await network[Symbol.asyncDispose]()
      tools[Symbol.dispose]()
    })

    test('two users that reach the same virtual address land on different ports, with the address known', async () => {
      await capture.apply(plan)
      for (const { ip, port } of virtual)
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
      for (const { ip, port } of virtual)
        for (const uid of [STRANGER, DAEMON, 0])
          assert.deepEqual(await connectFrom(a, { uid }, ip, port), { error: 'Connection refused' })
    })

    test('addresses outside of the mesh pass untouched, SSH and ports of captured hosts too', async () => {
      for (const ip of [b.ip, b.ip6])
        for (const port of [PLAIN_PORT, INSTANCE_PORT, 22])
          assert.equal((await connectFrom(a, { uid: WEB }, ip, port)).port, port)
    })

    test('an instance address is captured while it is in the set, and for callers with an identity only', async () => {
      for (const ip of [b.ip, b.ip6]) {
        const instance = { ip, port: INSTANCE_PORT }
        await capture.updateAddresses({
          instances: [instance, { ip: '127.0.0.1', port: 1 }],
          permitted: [],
        })
        assert.deepEqual(await connectFrom(a, { uid: WEB }, ip, INSTANCE_PORT), {
          port: PORTS.web,
          original: instance,
        })
        assert.equal((await connectFrom(a, { uid: WEB }, ip, PLAIN_PORT)).port, PLAIN_PORT)
        assert.equal(
          (await connectFrom(a, { uid: STRANGER }, ip, INSTANCE_PORT)).port,
          INSTANCE_PORT,
        )
        assert.equal((await connectFrom(a, { uid: DAEMON }, ip, INSTANCE_PORT)).port, INSTANCE_PORT)
        await capture.updateAddresses({ instances: [], permitted: [] })
        assert.equal((await connectFrom(a, { uid: WEB }, ip, INSTANCE_PORT)).port, INSTANCE_PORT)
      }
    })

    test('a direct dial to a port of the daemon shows that port as its destination, for captured callers too', async () => {
      for (const ip of ['127.0.0.1', '127.0.0.2', '::1', a.ip, a.ip6])
        for (const uid of [WEB, STRANGER]) {
          assert.deepEqual(await connectFrom(a, { uid }, ip, PORTS.shop), {
            port: PORTS.shop,
            original: { ip, port: PORTS.shop },
          })
        }
    })

    test('an own port in the set of instances is still not captured on addresses of this host', async () => {
      await capture.updateAddresses({ instances: [{ ip: a.ip, port: 15_443 }], permitted: [] })
      assert.equal((await connectFrom(a, { uid: WEB }, a.ip, 15_443)).port, 15_443)
      await capture.updateAddresses({ instances: [], permitted: [] })
    })

    test('callers without identity land on the port of the default identity where there is one', async () => {
      await capture.apply({ ...plan, defaultCapturePort: PORTS.default })
      for (const { ip, port } of virtual) {
        assert.equal((await connectFrom(a, { uid: STRANGER }, ip, port)).port, PORTS.default)
        assert.equal((await connectFrom(a, { uid: WEB }, ip, port)).port, PORTS.web)
        assert.equal((await connectFrom(a, { uid: DAEMON }, ip, port)).error, 'Connection refused')
      }
      await capture.apply(plan)
    })

    test('where unknown callers are refused at instances, nobody else is, and the rules read back', async () => {
      const refusing = { ...plan, refusesUnknownAtInstances: true }
      await capture.apply(refusing)
      assert.equal((await capture.show(refusing)).inSync, true)
      const count = async (): Promise<number> => (await capture.show()).counts.refusedInstance
      for (const ip of [b.ip, b.ip6]) {
        await capture.updateAddresses({ instances: [{ ip, port: INSTANCE_PORT }], permitted: [] })
        const landing = (uid: number, port: number) => connectFrom(a, { uid }, ip, port)
        const counted = await count()
        assert.equal((await landing(STRANGER, INSTANCE_PORT)).error, 'Connection refused')
        assert.equal(await count(), counted + 1)
        assert.equal((await landing(STRANGER, 22)).port, 22)
        assert.equal((await landing(STRANGER, PLAIN_PORT)).port, PLAIN_PORT)
        assert.equal((await landing(WEB, INSTANCE_PORT)).port, PORTS.web)
        assert.equal((await landing(DAEMON, INSTANCE_PORT)).port, INSTANCE_PORT)
      }
      await capture.apply(plan)
      assert.equal(
        (await connectFrom(a, { uid: STRANGER }, b.ip6, INSTANCE_PORT)).port,
        INSTANCE_PORT,
      )
      await capture.updateAddresses({ instances: [], permitted: [] })
    })

    test('a unit is recognized by its cgroup before its user, escaped names and sub-cgroups included', async () => {
      using unit = await TestCgroup.create('my\\x2dapp@1.service')
      await capture.apply({
        ...plan,
        workloads: [
          ...plan.workloads,
          { selector: { kind: 'cgroup', path: unit.path }, capturePort: PORTS.unit },
        ],
      })
      for (const { ip, port } of virtual) {
        const inside = await connectFrom(a, { uid: WEB, cgroup: unit.folder }, ip, port)
        assert.deepEqual(inside, { port: PORTS.unit, original: { ip, port } })
        assert.equal((await connectFrom(a, { uid: WEB }, ip, port)).port, PORTS.web)
      }
      assert.deepEqual(capture.problems(), [])
    })

    test('a cgroup and a user that do not exist are named, and everybody else is captured', async () => {
      await capture.apply({
        ...plan,
        workloads: [
          { selector: { kind: 'cgroup', path: 'no.slice/such.service' }, capturePort: PORTS.unit },
          { selector: { kind: 'user', user: 'hmc-nobody' }, capturePort: PORTS.container },
          ...plan.workloads,
        ],
      })
      assert.match(capture.problems().join('\n'), /no cgroup no\.slice\/such\.service/)
      assert.match(capture.problems().join('\n'), /no user hmc-nobody/)
      assert.equal((await connectFrom(a, { uid: WEB }, '240.0.0.9', 80)).port, PORTS.web)
    })

    test('a container is recognized by its source address; its neighbors are refused', async () => {
      const c = network.host('c')
      await c.run('ip', 'route', 'replace', 'default', 'via', a.ip)
      await c.run('ip', '-6', 'route', 'replace', 'default', 'via', a.ip6)
      await a.run('sysctl', '-qw', 'net.ipv4.ip_forward=1', 'net.ipv6.conf.all.forwarding=1')
      await capture.apply({
        ...plan,
        workloads: [
          ...plan.workloads,
          { selector: { kind: 'sourceAddress', ip: c.ip }, capturePort: PORTS.container },
          { selector: { kind: 'sourceAddress', ip: c.ip6 }, capturePort: PORTS.container6 },
        ],
      })
      for (const [index, { ip, port }] of virtual.entries()) {
        const landed = [PORTS.container, PORTS.container6][index]
        assert.deepEqual(await connectFrom(c, { uid: WEB }, ip, port), {
          port: landed,
          original: { ip, port },
        })
      }
      await capture.apply(plan)
      // The kernel forwards nothing to loopback by IPv6: it refuses before any rule does.
      for (const [index, { ip, port }] of virtual.entries())
        assert.equal(
          (await connectFrom(c, { uid: WEB }, ip, port)).error,
          ['Connection refused', 'Network is unreachable'][index],
        )
    })

    test('applying twice equals applying once, and keeps the counters', async () => {
      await capture.apply(plan)
      await connectFrom(a, { uid: WEB }, '240.0.0.9', 80)
      const once = await savedRules(run)
      const caught = async (): Promise<number> =>
        (await capture.show()).rules
          .filter(({ rule, family }) => family === 'v4' && rule.endsWith(String(PORTS.web)))
          .reduce((sum, { packets }) => sum + (packets ?? 0), 0)
      const packets = await caught()
      assert.ok(packets > 0)
      await capture.apply(plan)
      assert.equal(await savedRules(run), once)
      assert.equal(await caught(), packets)
      await createCapture({ run, backend }).apply(plan)
      assert.equal(await savedRules(run), once)
    })

    test('jumps stand before what Docker and others put at the head of a chain', async () => {
      await run('iptables', ['-t', 'nat', '-I', 'OUTPUT', '1', '-p', 'tcp', '-j', 'ACCEPT'])
      assert.equal(
        (await connectFrom(a, { uid: WEB }, '240.0.0.9', 80)).error,
        'Connection refused',
      )
      await capture.apply(plan)
      assert.equal((await connectFrom(a, { uid: WEB }, '240.0.0.9', 80)).port, PORTS.web)
      await run('iptables', ['-t', 'nat', '-D', 'OUTPUT', '-p', 'tcp', '-j', 'ACCEPT'])
    })

    test('whatever half of the rules is there, applying ends in the same state', async () => {
      await capture.apply(plan)
      const whole = await savedRules(run)
      const halves: Record<string, readonly [tool: string, args: string[]][]> = {
        'nat flushed': [['iptables', ['-t', 'nat', '-F', 'HOSTMESH_LOCAL']]],
        'a jump doubled': [
          ['iptables', ['-t', 'nat', '-A', 'OUTPUT', '-p', 'tcp', '-j', 'HOSTMESH_OUTPUT']],
        ],
        'the IPv6 jump gone': [
          [
            'ip6tables',
            [
              '-D',
              'OUTPUT',
              '-d',
              plan.virtualRange6,
              '-m',
              'comment',
              '--comment',
              'hostmesh',
              '-j',
              'HOSTMESH_VIRTUAL',
            ],
          ],
        ],
        'a chain of an older version': [
          ['iptables', ['-t', 'nat', '-N', 'HOSTMESH_OLD']],
          ['iptables', ['-t', 'nat', '-I', 'PREROUTING', '-j', 'HOSTMESH_OLD']],
        ],
      }
      for (const [what, commands] of Object.entries(halves)) {
        for (const [tool, args] of commands) {
          const { status, stderr } = await run(tool, args)
          assert.equal(status, 0, stderr)
        }
        assert.notEqual(await savedRules(run), whole, what)
        assert.equal((await capture.show()).inSync, false, what)
        await createCapture({ run, backend }).apply(plan)
        assert.equal(await savedRules(run), whole, what)
        assert.equal((await capture.show()).inSync, true, what)
      }
    })

    test('an apply that dies after any of its steps is completed by the next, and removed by clear', async () => {
      await capture.clear()
      await capture.apply(plan)
      const whole = await savedRules(run)
      for (let steps = 1; steps <= 3; steps += 1) {
        await capture.clear()
        let changes = 0
        const dying: RunCommand = (tool, args, input) => {
          const isChange = tool.endsWith('restore') || args[0] === 'restore'
          if (isChange) changes += 1
          // Like a killed process: from here on nothing runs, no roll-back either.
          return changes > steps ? Promise.reject(new Error('killed')) : run(tool, args, input)
        }
        await assert.rejects(createCapture({ run: dying, backend }).apply(plan), /killed/)
        if (steps < 3) assert.notEqual(await savedRules(run), whole)
        await createCapture({ run, backend }).apply(plan)
        assert.equal(await savedRules(run), whole)
      }
      await createCapture({ run, backend }).clear()
      assert.equal(await savedRules(run), pristine)
    })

    test('when IPv6 cannot be applied, IPv4 is as before: without rules, or with the former ones', async () => {
      const broken: RunCommand = (tool, args, input) =>
        tool === 'ip6tables-restore'
          ? Promise.resolve({ status: 1, stdout: '', stderr: 'line 2 failed' })
          : run(tool, args, input)
      const isApplyFailure = (error: unknown): boolean =>
        error instanceof MeshError && error.code === 'HM_CAPTURE_APPLY_FAILED'
      await assert.rejects(createCapture({ run: broken, backend }).apply(plan), isApplyFailure)
      assert.equal(await savedRules(run), pristine)
      assert.equal((await run('ipset', ['list', '-name'])).stdout, '')
      await capture.apply(plan)
      const former = await savedRules(run)
      const other = { ...plan, defaultCapturePort: PORTS.default }
      await assert.rejects(createCapture({ run: broken, backend }).apply(other), isApplyFailure)
      assert.equal(await savedRules(run), former)
    })

    test('a rule set that does not read back as applied is an error, and rolled back', async () => {
      await capture.clear()
      const forgetful: RunCommand = async (tool, args, input) => {
        const result = await run(tool, args, input)
        if (tool === 'iptables-restore' && input?.includes('-I OUTPUT') === true)
          await run('iptables', ['-t', 'nat', '-D', 'HOSTMESH_LOCAL', '1'])
        return result
      }
      await assert.rejects(
        createCapture({ run: forgetful, backend }).apply(plan),
        (error) => error instanceof MeshError && error.code === 'HM_CAPTURE_VERIFY_FAILED',
      )
      assert.equal(await savedRules(run), pristine)
    })

    test('ten rounds of apply and clear leave foreign rules byte for byte as they were', async () => {
      for (let round = 0; round < 10; round += 1) {
        await capture.apply(plan)
        const applied = (await savedRules(run)).replaceAll(/^.*HOSTMESH_.*\n/gm, (line) =>
          line.includes('not -j') ? line : '',
        )
        assert.equal(applied, pristine)
        assert.equal((await capture.clear()).removed, true)
        assert.equal(await savedRules(run), pristine)
      }
      assert.equal((await run('ipset', ['list', '-name'])).stdout, '')
      assert.deepEqual(await capture.clear(), { removed: false, notes: [] })
      assert.equal(await savedRules(run), pristine)
    })

    test('clear removes the rules of another process that is gone, and of the other iptables variant', async () => {
      const other: Variant = variant === 'nft' ? 'legacy' : 'nft'
      using otherTools = new VariantPath(other)
      const otherRun = otherTools.runnerIn(a)
      await createCapture({ run: otherRun, backend }).apply(plan)
      assert.match(await savedRules(otherRun), /HOSTMESH_LOCAL/)
      assert.equal((await createCapture({ run, backend }).clear()).removed, true)
      assert.doesNotMatch(await savedRules(otherRun), /HOSTMESH_/)
      assert.equal(await savedRules(run), pristine)
    })

    test('a jump to our chains from a chain of somebody else goes too, and only the jump', async () => {
      await capture.apply(plan)
      await run('iptables', ['-t', 'nat', '-N', 'ADMIN'])
      await run('iptables', ['-t', 'nat', '-A', 'ADMIN', '-j', 'HOSTMESH_OUTPUT'])
      assert.equal((await capture.clear()).removed, true)
      assert.equal((await run('iptables', ['-t', 'nat', '-S', 'ADMIN'])).stdout, '-N ADMIN\n')
      await run('iptables', ['-t', 'nat', '-X', 'ADMIN'])
      assert.equal(await savedRules(run), pristine)
    })

    test('the maintenance loop restores rules and sets that others flushed, and counts it', async () => {
      await using kept = createCapture({
        run,
        backend,
        maintain: { verifyEveryMs: 100, cgroupEveryMs: 50 },
      })
      await kept.updateAddresses({ instances: [{ ip: b.ip, port: INSTANCE_PORT }], permitted: [] })
      await kept.apply(plan)
      const whole = await savedRules(run)
      await run('iptables', ['-t', 'nat', '-F', 'OUTPUT'])
      await eventually(async () =>
        assert.match(await savedRules(run), /-A OUTPUT .*HOSTMESH_OUTPUT/),
      )
      await run('iptables', ['-t', 'nat', '-A', 'OUTPUT', ...foreignOutput])
      await run('ipset', ['flush', 'hostmesh_instances'])
      await eventually(async () => {
        assert.equal((await connectFrom(a, { uid: WEB }, b.ip, INSTANCE_PORT)).port, PORTS.web)
      })
      await eventually(async () => assert.ok((await kept.show()).repairs >= 1))
      assert.equal(await savedRules(run), whole)
      assert.deepEqual(kept.problems(), [])
      await kept.clear()
      assert.equal(await savedRules(run), pristine)
    })

    test('what others flush while their last flush is mended is mended at once', async () => {
      let tell = (): void => undefined
      let flushesAgain = false
      const meddled: RunCommand = async (tool, args, input) => {
        const result = await run(tool, args, input)
        // The last that is written: nobody reads it back.
        if (!flushesAgain || tool !== 'ip6tables-restore') return result
        flushesAgain = false
        await run('iptables', ['-t', 'nat', '-F', 'OUTPUT'])
        tell()
        return result
      }
      await using kept = createCapture({
        run: meddled,
        backend,
        maintain: {
          verifyEveryMs: 60_000,
          cgroupEveryMs: 1_000,
          watch: (onChange) => {
            tell = onChange
            return { [Symbol.dispose]: () => undefined }
          },
        },
      })
      await kept.apply(plan)
      flushesAgain = true
      for (const tool of ['iptables', 'ip6tables']) await run(tool, ['-t', 'nat', '-F', 'OUTPUT'])
      tell()
      await eventually(() => assert.equal(flushesAgain, false))
      // It looks after the maintenance loop has done its work.
      const { inSync, repairs } = await kept.show()
      assert.deepEqual({ inSync, repairs }, { inSync: true, repairs: 2 })
      await kept.clear()
    })

    test('a unit that restarts, and one that starts late, are captured without a new apply', async () => {
      using unit = await TestCgroup.create('restarting.service')
      await using kept = createCapture({
        run,
        backend,
        maintain: { verifyEveryMs: 60_000, cgroupEveryMs: 1_000 },
      })
      const late = unit.path.replace('restarting', 'late')
      await kept.apply({
        ...plan,
        workloads: [
          { selector: { kind: 'cgroup', path: unit.path }, capturePort: PORTS.unit },
          { selector: { kind: 'cgroup', path: late }, capturePort: PORTS.shop },
        ],
      })
      const inUnit = { uid: STRANGER, cgroup: unit.folder }
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
          PORTS.shop,
        ),
      )
      await eventually(() => assert.deepEqual(kept.problems(), []))
      await kept.clear()
    })

    test('virtual addresses can be dialed on a host without a default route, and the added route goes with clear', async () => {
      await a.run('ip', 'route', 'del', 'default')
      await a.run('ip', '-6', 'route', 'del', 'default')
      const routes = async (): Promise<string> =>
        `${await a.run('ip', 'route')}${await a.run('ip', '-6', 'route')}`
      const without = await routes()
      const [first] = virtual
      assert.equal(
        (await connectFrom(a, { uid: WEB }, first?.ip ?? '', 80)).error,
        'Network is unreachable',
      )
      await capture.apply(plan)
      assert.deepEqual(capture.problems(), [])
      for (const { ip, port } of virtual)
        assert.deepEqual(await connectFrom(a, { uid: WEB }, ip, port), {
          port: PORTS.web,
          original: { ip, port },
        })
      assert.notEqual(await routes(), without)
      await capture.clear()
      assert.equal(await routes(), without)
    })
  })
}

/** The foreign rule in nat OUTPUT, as arguments. */
const foreignOutput = [
  '!',
  '-d',
  '172.30.0.0/16',
  '-m',
  'addrtype',
  '--dst-type',
  'LOCAL',
  '-j',
  'DOCKER',
]
