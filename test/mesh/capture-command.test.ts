/**
 * `hostmesh capture` as an operator uses it: on a host, with a configuration file, without a daemon.
 */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import type { CaptureState } from '../../src/daemon/capture-operations.ts'
import { type Namespace, Network } from '../harness/network.ts'
import { type CommandResult, runCommand } from '../harness/owned-process.ts'

const commandFile = new URL('../../src/cli/capture.ts', import.meta.url).href
const folder = mkdtempSync(join(tmpdir(), 'hmc-command-'))
const config = join(folder, 'hostmesh.yaml')
const native = join(folder, 'native.yaml')
const off = join(folder, 'off.yaml')
let network: Network
let host: Namespace

const yaml = (mode: string, backend = 'iptables'): string => `
node: { name: a, address: 10.88.0.1 }
catalog: { kind: file, path: catalog.yaml }
certificates: { kind: files, directory: certs }
capture: { mode: ${mode}, backend: ${backend}, daemonUser: 2900 }
services:
  - { name: web, identity: { user: 2001 } }
  - { name: shop, identity: { cgroup: no.slice/shop.service } }
`

before(async () => {
  writeFileSync(config, yaml('on'), { mode: 0o600 })
  writeFileSync(native, yaml('on', 'nftables'), { mode: 0o600 })
  writeFileSync(off, yaml('off'), { mode: 0o600 })
  network = await Network.create(['a'])
  host = network.host('a')
})

after(async () => {
  await network[Symbol.asyncDispose]()
  rmSync(folder, { recursive: true })
})

function capture(...args: string[]): Promise<CommandResult> {
  const program = `import { captureCommand } from ${JSON.stringify(commandFile)}
    await captureCommand().parseAsync(${JSON.stringify(args)}, { from: 'user' })`
  return runCommand(
    host.inside([process.execPath, '--input-type=module-typescript', '-e', program]),
  )
}

/** Every line of the kernel's tables that names us; what the tools list of others does not count. */
async function ownTraces(): Promise<string> {
  const texts = await Promise.all([
    host.run('iptables-save'),
    host.run('ip6tables-save'),
    host.run('ipset', 'list', '-name'),
    host.run('nft', 'list', 'tables', 'inet'),
  ])
  return texts
    .flatMap((text) => text.split('\n'))
    .filter((line) => /hostmesh/i.test(line))
    .join('\n')
}

async function shown(...args: string[]): Promise<CaptureState> {
  const { stdout, stderr } = await capture('show', '-o', 'json', ...args)
  assert.ok(stdout.startsWith('{'), stderr)
  return JSON.parse(stdout) as CaptureState
}

test('plan prints texts that the tools take as they are, and changes nothing', async () => {
  const { code, stdout, stderr } = await capture('plan', '--config', config)
  assert.equal(code, 0, stderr)
  assert.match(stderr, /cgroup no\.slice\/shop\.service .*are not captured/)
  assert.equal(await ownTraces(), '')
  const parts = stdout.split(/^# (.*)\n/m).slice(1)
  for (let i = 0; i < parts.length; i += 2) {
    const file = join(folder, 'part')
    writeFileSync(file, parts[i + 1] ?? '')
    // The first line says what diverts and why.
    if (!(parts[i] ?? '').startsWith('iptables: '))
      await host.run('sh', '-c', `${parts[i]} < ${file}`)
  }
  assert.equal((await shown('--config', config)).inSync, true)
  assert.equal((await capture('clear')).stdout, 'Capture rules are removed\n')
  assert.equal(await ownTraces(), '')
})

test('apply, show and clear agree on what is there', async () => {
  assert.equal((await shown()).present, false)
  assert.equal((await capture('apply', '--config', config)).stdout, 'Capture rules are in place\n')
  const state = await shown('--config', config)
  assert.equal(state.inSync, true)
  assert.deepEqual(state.instances, { v4: 0, v6: 0 })
  assert.equal((await shown()).inSync, undefined)
  const table = await capture('show')
  assert.match(table.stdout, /^FAMILY +TABLE +CHAIN +PACKETS +BYTES +RULE\n/)
  assert.match(
    table.stdout,
    /IPv6 +nat +HOSTMESH_LOCAL +0 +0 +.*--uid-owner 2001 .*--to-ports 15100/,
  )
  await host.run('iptables', '-t', 'nat', '-F', 'HOSTMESH_LOCAL')
  assert.match(
    (await capture('show', '--config', config)).stdout,
    /Not as planned: IPv4: nat lacks/,
  )
  assert.equal((await capture('clear')).stdout, 'Capture rules are removed\n')
  assert.equal((await capture('clear')).stdout, 'There were no capture rules\n')
  assert.equal(await ownTraces(), '')
})

test('by nftables plan prints what nft takes, and apply, show and clear agree', async () => {
  const { stdout } = await capture('plan', '--config', native)
  const [, text = ''] = stdout.split('# nft -f -\n')
  const file = join(folder, 'plan.nft')
  writeFileSync(file, text)
  await host.run('nft', '--check', '-f', file)
  assert.equal(await ownTraces(), '')
  assert.equal((await capture('apply', '--config', native)).stdout, 'Capture rules are in place\n')
  const state = await shown('--config', native)
  assert.equal(state.inSync, true, state.difference)
  assert.equal(state.backend?.kind, 'nftables')
  const table = (await capture('show', '--config', native)).stdout
  assert.match(table, /Diverted by nftables: /)
  assert.match(table, /^FAMILY +TABLE +CHAIN +RULE\n/, 'nothing counts by rule')
  await host.run('nft', 'flush', 'chain', 'inet', 'hostmesh', 'callers')
  assert.match((await capture('show', '--config', native)).stdout, /Not as planned: the table has/)
  assert.equal((await capture('clear')).stdout, 'Capture rules are removed\n')
  assert.equal(await ownTraces(), '')
})

test('a change of the backend takes away what the other one made', async () => {
  await capture('apply', '--config', config)
  await capture('apply', '--config', native)
  assert.doesNotMatch(await ownTraces(), /HOSTMESH/)
  assert.equal((await shown('--config', native)).inSync, true)
  await capture('apply', '--config', config)
  assert.doesNotMatch(await ownTraces(), /table inet/)
  assert.equal((await shown('--config', config)).inSync, true)
  await capture('clear')
  assert.equal(await ownTraces(), '')
})

test('apply refuses a configuration that has capture off, before it touches a rule', async () => {
  const { code, stderr } = await capture('apply', '--config', off)
  assert.notEqual(code, 0)
  assert.match(stderr, /capture\.mode is off/)
  assert.equal(await ownTraces(), '')
})

test('clear works after the configuration is gone', async () => {
  await capture('apply', '--config', config)
  rmSync(config)
  const { code, stdout } = await capture('clear')
  assert.equal(code, 0)
  assert.equal(stdout, 'Capture rules are removed\n')
  assert.equal(await ownTraces(), '')
})
