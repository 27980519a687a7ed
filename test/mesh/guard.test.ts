/**
 * What the guard holds when the rules that divert are gone, and what applying them again must know of connections that
 * were captured before.
 */
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { type Capture, createCapture } from '../../src/controlplane/capture/capture.ts'
import { createCommandRunner, type RunCommand } from '../../src/controlplane/capture/command.ts'
import type { CapturePlan } from '../../src/controlplane/capture/rules.ts'
import { eventually } from '../harness/eventually.ts'
import { type Namespace, Network } from '../harness/network.ts'
import { OwnedProcess, runCommand } from '../harness/owned-process.ts'
import { watchForPlaintext } from '../harness/plaintext-watch.ts'
import { canary } from '../harness/wire-capture.ts'
import { insideAs, startListener } from './capture-host.ts'

const WEB = 2_001
const PORTS = { web: 15_100, box: 15_101, box6: 15_102 }
const INSTANCE_PORT = 9_090

describe('the guard', () => {
  let network: Network
  let a: Namespace
  let b: Namespace
  let box: Namespace
  let capture: Capture
  let plan: CapturePlan
  const listeners: OwnedProcess[] = []

  before(async () => {
    network = await Network.create(['a', 'b', 'box'])
    a = network.host('a')
    b = network.host('b')
    box = network.host('box')
    // A container as its host sees it: it forwards for its address.
    await a.run('sysctl', '-qw', 'net.ipv4.ip_forward=1', 'net.ipv6.conf.all.forwarding=1')
    // The listener's sockets are gone soon after it, as those of a daemon are at once: while the kernel remembers one it
    // drops what belongs to it before any rule sees that.
    await a.run('sysctl', '-qw', 'net.ipv4.tcp_fin_timeout=1')
    // All live on one link, of which a router would tell.
    const refuse = 'for file in /proc/sys/net/ipv*/conf/*/accept_redirects; do echo 0 >$file; done'
    await box.run('sh', '-c', refuse)
    for (const [to, via] of [
      ['240.0.0.0/4', a.ip],
      [b.ip, a.ip],
      [b.ip6, a.ip6],
    ] as const)
      await box.run('ip', via.includes(':') ? '-6' : '-4', 'route', 'replace', to, 'via', via)
    const runner = createCommandRunner()
    const run: RunCommand = (tool, args, input) => {
      const [command = '', ...rest] = a.inside([tool, ...args])
      return runner(command, rest, input)
    }
    capture = createCapture({ run, backend: 'nftables' })
    plan = {
      workloads: [
        { selector: { kind: 'user', user: String(WEB) }, capturePort: PORTS.web },
        { selector: { kind: 'sourceAddress', ip: box.ip }, capturePort: PORTS.box },
        { selector: { kind: 'sourceAddress', ip: box.ip6 }, capturePort: PORTS.box6 },
      ],
      virtualRange: '240.0.0.0/4',
      virtualRange6: 'fdc6:6d65:7368::/64',
      // The listener here stands in for the daemon.
      daemonUid: 0,
      ownPorts: Object.values(PORTS),
    }
    listeners.push(await startListener(a, Object.values(PORTS), 'transparent'))
    listeners.push(await startListener(b, [INSTANCE_PORT]))
    await capture.updateAddresses({
      instances: [b.ip, b.ip6].map((ip) => ({ ip, port: INSTANCE_PORT })),
      permitted: [],
    })
    await capture.apply(plan)
  })

  after(async () => {
    for (const listener of listeners) await listener.stop()
    await network[Symbol.asyncDispose]()
  })

  /** Dials, prints what it hears, and then writes a line each time that a line comes in. */
  const dial = async (
    host: Namespace,
    ip: string,
    text: string,
    uid = WEB,
  ): Promise<OwnedProcess> => {
    const shell = `exec 3<>/dev/tcp/${ip}/${INSTANCE_PORT} && read line <&3 && echo "$line" && while sleep 0.2; do echo ${text} >&3 || exit 7; done`
    const caller = await OwnedProcess.start(insideAs(host, uid, ['bash', '--norc', '-c', shell]), {
      name: 'caller',
    })
    await eventually(() => assert.match(caller.output, /"port":1510/))
    return caller
  }

  for (const family of ['IPv4', 'IPv6'] as const)
    test(`what a container still sends when daemon and rules are gone is refused, by ${family}`, async () => {
      const secret = canary()
      await using leaks = await watchForPlaintext(b, secret)
      await using caller = await dial(box, family === 'IPv4' ? b.ip : b.ip6, secret)
      // It does not hear that the daemon ends.
      await box.run('nft', 'add', 'table', 'inet', 'deaf')
      await box.run(
        ...'nft add chain inet deaf input { type filter hook input priority 0 ; }'.split(' '),
      )
      await box.run(
        ...`nft add rule inet deaf input tcp sport ${INSTANCE_PORT} tcp flags & (fin | rst) != 0 drop`.split(
          ' ',
        ),
      )
      await listeners.shift()?.kill()
      await a.run('nft', 'delete', 'table', 'inet', 'hostmesh')
      await eventually(async () => assert.ok(((await capture.show()).counts.guarded ?? 0) > 0))
      await leaks.assertNone()
      await caller.kill()
      await box.run('nft', 'delete', 'table', 'inet', 'deaf')
      listeners.unshift(await startListener(a, Object.values(PORTS), 'transparent'))
      await capture.apply(plan)
    })

  for (const family of ['IPv4', 'IPv6'] as const)
    test(`tables that are made anew know what is captured, by ${family}`, async () => {
      const ip = family === 'IPv4' ? b.ip : b.ip6
      await using local = await dial(a, ip, 'x')
      await using contained = await dial(box, ip, 'x')
      assert.ok(!local.hasExited && !contained.hasExited)
      const open = async (table: string): Promise<number> => {
        const text = await a.run('nft', 'list', 'set', 'inet', table, `open${family.slice(-1)}`)
        return text.split(` . ${INSTANCE_PORT} `).length - 1
      }
      assert.ok((await open('hostmesh')) >= 2)
      await a.run('nft', 'flush', 'ruleset')
      await capture.apply(plan)
      for (const table of ['hostmesh', 'hostmesh_guard']) assert.ok((await open(table)) >= 2, table)
    })

  test('a datagram to a virtual address is refused at once', async () => {
    const send = async (host: Namespace, uid: number, ip: string): Promise<string> => {
      const shell = `exec 3>/dev/udp/${ip}/53; echo a >&3; sleep 0.3; echo b >&3`
      return (await runCommand(insideAs(host, uid, ['bash', '--norc', '-c', shell]))).stderr
    }
    for (const ip of ['240.7.7.7', 'fdc6:6d65:7368::7'])
      for (const uid of [WEB, 0])
        assert.match(await send(a, uid, ip), /Operation not permitted/, ip)
    // Who is not on this host hears by ICMP, which the kernel sends once a second to each neighbor.
    await a.run('sysctl', '-qw', 'net.ipv4.icmp_ratelimit=0')
    await eventually(async () =>
      assert.match(await send(box, WEB, '240.7.7.7'), /Connection refused/),
    )
  })

  test('connections that were open before are listed while they are spared', async () => {
    await capture.clear()
    const shell = `exec 3<>/dev/tcp/${b.ip}/${INSTANCE_PORT} && sleep 60`
    await using caller = await OwnedProcess.start(
      insideAs(a, WEB, ['bash', '--norc', '-c', shell]),
      {
        name: 'early caller',
      },
    )
    await eventually(async () => assert.match(await a.run('ss', '-Htn'), /:9090/))
    await capture.apply(plan)
    const { spared, counts } = await capture.show()
    assert.deepEqual(
      spared.map((text) => text.replace(/:\d+ /, ' ')),
      [`${a.ip} > ${b.ip}:${INSTANCE_PORT}`],
    )
    assert.equal(counts.spared, 1)
    assert.equal(caller.hasExited, false)
  })
})
