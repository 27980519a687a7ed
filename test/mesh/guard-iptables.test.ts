/**
 * What the rules of iptables refuse: what was not diverted, what was diverted to a port that is not the daemon's, and what
 * was captured before they were cleared. Each claim with both variants of iptables.
 */
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import {
  type Capture,
  createCapture,
  defaultNftSettings,
} from '../../src/controlplane/capture/capture.ts'
import type { RunCommand } from '../../src/controlplane/capture/command.ts'
import type { CapturePlan } from '../../src/controlplane/capture/rules.ts'
import { eventually } from '../harness/eventually.ts'
import { type Namespace, Network } from '../harness/network.ts'
import { OwnedProcess, runCommand } from '../harness/owned-process.ts'
import { watchForPlaintext } from '../harness/plaintext-watch.ts'
import { canary } from '../harness/wire-capture.ts'
import {
  connectFrom,
  insideAs,
  startListener,
  tableOwnerIn,
  type Variant,
  VariantPath,
} from './capture-host.ts'

const backend = 'iptables'
const WEB = 2_001
const OTHER = 2_003
const PORTS = { web: 15_100, box: 15_101, box6: 15_102 }
const INSTANCE_PORT = 9_090
const SPARE_SECONDS = 10
const VIRTUAL = ['240.7.7.7', 'fdc6:6d65:7368::7']

/** How a caller is told that it may not. */
const REFUSED = { error: 'Connection refused' }

/** Takes every connection to a port and says whose it was. */
const SQUATTER = `
import socket, sys
s = socket.create_server(('', int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
print('up', flush=True)
while True:
    c, _ = s.accept()
    print('taken', flush=True)
`

/** Writes more than anybody reads, and ends: what is left is the kernel's to send. */
const LEAVES_MUCH = `
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
while s.recv(1000): pass
s.setblocking(False)
text = sys.argv[3].encode() * 1000
try:
    while True: s.send(text)
except BlockingIOError: pass
`

/** Dials from a port that is given; when told so it resets that connection, dials from the same port again, and then writes. */
const REUSES_ITS_PORT = `
import signal, socket, struct, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
def dial():
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    s.bind(('', 41000))
    s.connect((sys.argv[1], int(sys.argv[2])))
    print(s.recv(1000), flush=True)
    signal.sigwait([signal.SIGUSR1])
    return s
dial().close()
s = dial()
while True:
    s.sendall(sys.argv[3].encode())
    time.sleep(0.1)
`

for (const variant of ['nft', 'legacy'] as Variant[])
  describe(`iptables-${variant}`, () => {
    let network: Network
    let a: Namespace
    let b: Namespace
    let box: Namespace
    let tools: VariantPath
    let run: RunCommand
    let capture: Capture
    let listener: OwnedProcess
    let instance: OwnedProcess
    const plan: CapturePlan = {
      workloads: [{ selector: { kind: 'user', user: String(WEB) }, capturePort: PORTS.web }],
      virtualRange: '240.0.0.0/4',
      virtualRange6: 'fdc6:6d65:7368::/64',
      // The listener here stands in for the daemon.
      daemonUid: 0,
      ownPorts: Object.values(PORTS),
    }
    let whole: CapturePlan

    before(async () => {
      network = await Network.create(['a', 'b', 'box'])
      a = network.host('a')
      b = network.host('b')
      box = network.host('box')
      await a.run('sysctl', '-qw', 'net.ipv4.ip_forward=1', 'net.ipv6.conf.all.forwarding=1')
      // The kernel tells a neighbor of a refusal once in a second, which may be of the datagram that nobody asks about.
      await a.run('sysctl', '-qw', 'net.ipv4.icmp_ratelimit=0')
      // All live on one link, of which a router would tell.
      const refuse =
        'for file in /proc/sys/net/ipv*/conf/*/accept_redirects; do echo 0 >$file; done'
      await box.run('sh', '-c', refuse)
      for (const [to, via] of [
        ['240.0.0.0/4', a.ip],
        [b.ip, a.ip],
        [b.ip6, a.ip6],
      ] as const)
        await box.run('ip', via.includes(':') ? '-6' : '-4', 'route', 'replace', to, 'via', via)
      tools = new VariantPath(variant)
      run = tools.runnerIn(a)
      capture = createCapture({
        run,
        backend,
        nft: { ...defaultNftSettings, spareSeconds: SPARE_SECONDS },
      })
      whole = {
        ...plan,
        workloads: [
          ...plan.workloads,
          { selector: { kind: 'sourceAddress', ip: box.ip }, capturePort: PORTS.box },
          { selector: { kind: 'sourceAddress', ip: box.ip6 }, capturePort: PORTS.box6 },
        ],
      }
      listener = await startListener(a, Object.values(PORTS))
      instance = await startListener(b, [INSTANCE_PORT])
      await capture.updateAddresses({
        instances: [b.ip, b.ip6].map((ip) => ({ ip, port: INSTANCE_PORT })),
        permitted: [],
      })
      await capture.apply(whole)
    })

    after(async () => {
      await listener.kill()
      await instance.kill()
      await network[Symbol.asyncDispose]()
      tools[Symbol.dispose]()
    })

    const flush = async (...tables: string[]): Promise<void> => {
      for (const tool of ['iptables', 'ip6tables'])
        for (const table of tables) assert.equal((await run(tool, ['-t', table, '-F'])).status, 0)
    }

    const forget = async (): Promise<void> => {
      for (const family of ['ipv4', 'ipv6']) await run('conntrack', ['-F', '-f', family])
    }

    const guarded = async (): Promise<number> => (await capture.show()).counts.guarded ?? 0

    /** Dials, prints what it hears, and then writes a line again and again until it cannot. */
    const dial = async (host: Namespace, ip: string, text: string): Promise<OwnedProcess> => {
      const shell = `exec 3<>/dev/tcp/${ip}/${INSTANCE_PORT} && read line <&3 && echo "$line" && while sleep 0.2; do echo ${text} >&3 || exit 7; done`
      const caller = await OwnedProcess.start(
        insideAs(host, WEB, ['bash', '--norc', '-c', shell]),
        {
          name: 'caller',
        },
      )
      await eventually(() => assert.match(caller.output, /"port":\d+/))
      return caller
    }

    test('what no rule diverts any more is refused: of workloads and of containers, and of nobody else', async () => {
      await flush('nat')
      for (const ip of [b.ip, b.ip6]) {
        for (const host of [a, box])
          assert.deepEqual(await connectFrom(host, { uid: WEB }, ip, INSTANCE_PORT), REFUSED, ip)
        assert.equal((await connectFrom(a, { uid: OTHER }, ip, INSTANCE_PORT)).port, INSTANCE_PORT)
      }
      await capture.apply(whole)
      for (const ip of [b.ip, b.ip6])
        assert.equal((await connectFrom(a, { uid: WEB }, ip, INSTANCE_PORT)).port, PORTS.web)
    })

    for (const tables of [[], ['nat']])
      test(`what goes on after tracking has forgotten it${tables.length > 0 ? ', and nat was flushed,' : ''} is not seen on the wire`, async () => {
        for (const host of [a, box])
          for (const ip of [b.ip, b.ip6]) {
            const secret = canary()
            await using leaks = await watchForPlaintext(b, secret)
            await using caller = await dial(host, ip, secret)
            await flush(...tables)
            await forget()
            // It ends, or tracking has found it again.
            await eventually(async () =>
              assert.ok(
                caller.hasExited || (await run('conntrack', ['-L'])).stdout.includes('[ASSURED]'),
              ),
            )
            await leaks.assertNone()
            await caller.kill()
            await capture.apply(whole)
          }
      })

    if (variant === 'nft')
      test('what is captured is not seen on the wire when nat is taken away altogether', async () => {
        for (const host of [a, box]) {
          const secret = canary()
          await using leaks = await watchForPlaintext(b, secret)
          await using caller = await dial(host, b.ip, secret)
          await flush('nat')
          // Without a base chain nothing is translated, though tracking knows it all.
          await run('iptables', ['-t', 'nat', '-X'])
          await eventually(() => assert.equal(caller.hasExited, true))
          await leaks.assertNone()
          await capture.apply(whole)
        }
      })

    for (const isRemade of [false, true])
      test(`the copy of the guard${isRemade ? ' that was made anew' : ''} knows what is captured when all rules are gone and tracking has forgotten it`, async () => {
        const { owner, children } = tableOwnerIn(a)
        const tables = (): Promise<string> => a.run('nft', 'list', 'tables', 'inet')
        for (const host of [a, box]) {
          await using kept = createCapture({
            run,
            backend,
            maintain: { verifyEveryMs: 60_000, cgroupEveryMs: 1_000, owner },
          })
          await kept.updateAddresses({
            instances: [b.ip, b.ip6].map((ip) => ({ ip, port: INSTANCE_PORT })),
            permitted: [],
          })
          await kept.apply(whole)
          const name = /hostmesh_held_\S+/
          const first = await eventually(async () => {
            const [held] = name.exec(await tables()) ?? []
            assert.ok(held !== undefined)
            return held
          })
          const secret = canary()
          await using leaks = await watchForPlaintext(b, secret)
          await using caller = await dial(host, b.ip, secret)
          if (isRemade) {
            children.at(-1)?.kill('SIGKILL')
            await eventually(async () => {
              const [held = first] = name.exec(await tables()) ?? []
              assert.notEqual(held, first)
              // It is filled line by line; of containers tracking is asked.
              const set = host === a ? 'open4' : 'known4'
              const listed = await a.run('nft', 'list', 'set', 'inet', held, set)
              assert.ok(listed.includes(b.ip))
            })
          }
          await flush('nat', 'filter')
          await forget()
          await eventually(() => assert.equal(caller.hasExited, true))
          await leaks.assertNone()
        }
        await capture.apply(whole)
      })

    test('what a process has left to the kernel to send is nobody’s, and refused once it is forgotten', async () => {
      const secret = canary()
      await using leaks = await watchForPlaintext(b, secret)
      const words = ['/usr/bin/python3', '-c', LEAVES_MUCH, b.ip, String(INSTANCE_PORT), secret]
      assert.equal((await runCommand(insideAs(a, WEB, words))).code, 0)
      const counted = await guarded()
      await flush('nat')
      await forget()
      await eventually(async () => assert.ok((await guarded()) > counted))
      await leaks.assertNone()
      await capture.apply(whole)
    })

    test('while all sets are empty, workloads open nothing, and others everything', async () => {
      await run('ipset', ['flush'])
      for (const ip of [b.ip, b.ip6]) {
        for (const host of [a, box])
          assert.deepEqual(await connectFrom(host, { uid: WEB }, ip, INSTANCE_PORT), REFUSED, ip)
        assert.equal((await connectFrom(a, { uid: OTHER }, ip, INSTANCE_PORT)).port, INSTANCE_PORT)
      }
      await capture.apply(whole)
      assert.equal((await connectFrom(a, { uid: WEB }, b.ip, INSTANCE_PORT)).port, PORTS.web)
    })

    test('a datagram to a virtual address is refused at once', async () => {
      for (const [host, addresses] of [
        [a, VIRTUAL],
        [box, VIRTUAL.slice(0, 1)],
      ] as const)
        for (const ip of addresses) {
          const shell = `exec 3>/dev/udp/${ip}/53; echo a >&3; sleep 0.3; echo b >&3`
          const { stderr } = await runCommand(insideAs(host, WEB, ['bash', '--norc', '-c', shell]))
          assert.match(stderr, /Connection refused|Operation not permitted/, ip)
        }
    })

    test('who binds a capture port that the daemon has left gets nothing', async () => {
      await listener.kill()
      for (const port of [PORTS.web, PORTS.box]) {
        await using squatter = await OwnedProcess.start(
          insideAs(a, OTHER, ['/usr/bin/python3', '-c', SQUATTER, String(port)]),
          { name: 'squatter' },
        )
        await eventually(() => assert.match(squatter.output, /up/))
        const host = port === PORTS.web ? a : box
        const addresses = [...VIRTUAL, b.ip, b.ip6].filter(
          (ip) => port === PORTS.web || !ip.includes(':'),
        )
        for (const ip of addresses)
          assert.deepEqual(await connectFrom(host, { uid: WEB }, ip, INSTANCE_PORT), REFUSED, ip)
        assert.doesNotMatch(squatter.output, /taken/)
        await squatter.kill()
      }
      listener = await startListener(a, Object.values(PORTS))
    })

    test('what is captured ends before the rules are cleared', async () => {
      for (const host of [a, box])
        for (const ip of [b.ip, b.ip6]) {
          const secret = canary()
          await using leaks = await watchForPlaintext(b, secret)
          await using caller = await dial(host, ip, secret)
          assert.equal((await capture.clear()).removed, true)
          await eventually(() => assert.equal(caller.hasExited, true))
          await leaks.assertNone()
          await capture.apply(whole)
        }
    })

    test('connections that were open before are listed while they are spared, and then cut', async () => {
      await capture.clear()
      await using caller = await dial(a, b.ip, 'x')
      await capture.apply(whole)
      const { spared, counts } = await capture.show()
      assert.deepEqual(
        spared.map((text) => text.replace(/:\d+ /, ' ')),
        [`${a.ip} > ${b.ip}:${INSTANCE_PORT}`],
      )
      assert.equal(counts.spared, 1)
      assert.equal(caller.hasExited, false)
      await eventually(() => assert.equal(caller.hasExited, true), {
        withinMs: 4_000 * SPARE_SECONDS,
      })
      assert.deepEqual((await capture.show()).spared, [])
    })

    test('who has the port of a connection that was spared is not spared', async () => {
      await capture.clear()
      const secret = canary()
      const words = ['/usr/bin/python3', '-c', REUSES_ITS_PORT, b.ip, String(INSTANCE_PORT), secret]
      await using caller = await OwnedProcess.start(insideAs(a, WEB, words), { name: 'caller' })
      const landed = (port: number): Promise<void> =>
        eventually(() => assert.match(caller.output, new RegExp(`"port":${port}\\b`)))
      await landed(INSTANCE_PORT)
      await capture.apply(whole)
      assert.equal((await capture.show()).counts.spared, 1)
      await using leaks = await watchForPlaintext(b, secret)
      caller.signal('SIGUSR1')
      await landed(PORTS.web)
      await forget()
      caller.signal('SIGUSR1')
      await eventually(async () =>
        assert.ok(
          caller.hasExited || (await run('conntrack', ['-L'])).stdout.includes('[ASSURED]'),
        ),
      )
      await leaks.assertNone()
      assert.equal((await capture.show()).counts.spared, 0)
    })
  })
