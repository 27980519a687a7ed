/**
 * What the kernel's connection tracking forgets is no business of capture: a caller that has said all and waits, a pool
 * that writes on a connection which the server has closed long ago; hosts that track everything, or nothing.
 */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'

import { within } from '../harness/eventually.ts'
import { type Mesh, startMesh } from '../harness/mesh.ts'
import { watchForPlaintext } from '../harness/plaintext-watch.ts'
import { manual, type RunningService } from '../harness/service.ts'
import { canary } from '../harness/wire-capture.ts'

const API_PORT = 8_080

/** How long tracking remembers what is not established, in seconds, on these hosts; and what outlasts it. */
const FORGOTTEN_S = 1
const LATE_MS = 2_500

/** Rules of an administrator, which decide what is tracked. */
const hosts: Readonly<Record<string, readonly string[]>> = {
  'everything is tracked': [
    'iptables -A OUTPUT -m conntrack --ctstate ESTABLISHED,RELATED,NEW -j ACCEPT',
    'iptables -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED,NEW -j ACCEPT',
    'ip6tables -A OUTPUT -m conntrack --ctstate ESTABLISHED,RELATED,NEW -j ACCEPT',
    ...['syn_sent', 'fin_wait', 'close_wait', 'last_ack', 'time_wait', 'close'].map(
      (state) => `sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_${state}=${FORGOTTEN_S}`,
    ),
    `sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_established=${FORGOTTEN_S}`,
  ],
  'nothing is tracked': ['iptables', 'ip6tables'].flatMap((tool) =>
    ['OUTPUT', 'PREROUTING'].map((chain) => `${tool} -t raw -I ${chain} -j CT --notrack`),
  ),
  'everything that was tracked is forgotten': ['iptables', 'ip6tables'].flatMap((tool) =>
    ['OUTPUT', 'PREROUTING'].map((chain) => `${tool} -t raw -D ${chain} -j CT --notrack`),
  ),
}

let mesh: Mesh
let web: RunningService
let api: RunningService

before(async () => {
  mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file' })
  web = await mesh.host('a').service('web').start()
  api = await mesh.host('b').service('api', { listens: API_PORT }).start(manual)
  await mesh.allow('web', 'api')
  await mesh.up()
})

after(async () => {
  const { namespace } = mesh.host('a')
  for (const tool of ['iptables', 'ip6tables']) await namespace.run(tool, '-F')
  await mesh[Symbol.asyncDispose]()
})

/** The ways to the service, from host a. */
async function targets(): Promise<readonly (readonly [what: string, ip: string])[]> {
  const a = mesh.host('a')
  return [
    ['virtual IPv4', (await mesh.virtualAddress('api', a, 4)).ip],
    ['virtual IPv6', (await mesh.virtualAddress('api', a, 6)).ip],
    ['instance', mesh.host('b').namespace.ip],
  ]
}

/** Has host a forget what it tracks now, where it tracks. */
async function forget(): Promise<void> {
  await mesh.host('a').namespace.run('sh', '-c', 'conntrack -F 2>/dev/null')
}

for (const [what, commands] of Object.entries(hosts)) {
  test(`a half-closed connection is answered late where ${what}`, async () => {
    const { namespace } = mesh.host('a')
    for (const command of commands) await namespace.run(...command.split(' '))
    const asked = []
    for (const [way, ip] of await targets()) {
      const near = await web.workload.dial(ip, API_PORT)
      await near.write(`${way}\n`)
      await near.end()
      const far = await api.accept()
      assert.equal(await far.readLine(), way)
      assert.equal((await far.readRest()).ending, 'end')
      asked.push({ way, near, far })
    }
    await sleep(LATE_MS)
    await forget()
    for (const { way, near, far } of asked) {
      await far.write(`answer to ${way}\n`)
      await far.end()
      assert.equal(await near.readLine(), `answer to ${way}`)
      const { bytes, ending } = await near.readRest()
      assert.deepEqual({ bytes, ending }, { bytes: 0, ending: 'end' }, way)
    }
  })

  test(`a stale connection of a pool is an error and no plaintext where ${what}`, async () => {
    const { namespace } = mesh.host('a')
    const text = canary()
    await using watch = await watchForPlaintext(namespace, text)
    for (const [way, ip] of await targets()) {
      const near = await web.workload.dial(ip, API_PORT)
      await near.write('first\n')
      const far = await api.accept()
      assert.equal(await far.readLine(), 'first')
      await far.write('hello\n')
      assert.equal(await near.readLine(), 'hello')
      // The server hangs up, and the pool does not look.
      await far.end()
      await sleep(LATE_MS)
      await forget()
      await near.write(`${text}-1\n`)
      assert.equal(
        await far.readLine(),
        `${text}-1`,
        'through the mesh, while the server still reads',
      )
      await far.reset()
      const outcome = await within(
        10_000,
        `An error for the stale connection, ${way}`,
        (async () => {
          for (;;) {
            try {
              await near.write(`${text}-1\n`)
            } catch (error) {
              return String(error)
            }
            await sleep(100)
          }
        })(),
      )
      assert.match(outcome, /EPIPE|ECONNRESET/, way)
    }
    await watch.assertNone()
  })
}
