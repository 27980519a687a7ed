/**
 * What this machine must have before a daemon starts: runtime, kernel, tools, ports, state folder, clock. Changes nothing.
 */
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { accessSync, constants, statfsSync } from 'node:fs'
import { createServer } from 'node:net'
import { release } from 'node:os'
import { dirname } from 'node:path'
import { localServices } from '../../config/local-services.ts'
import { type Config, isDnsOn } from '../../config/schema.ts'
import type { RunCommand } from '../../controlplane/capture/command.ts'
import { findCgroupRoot } from '../../controlplane/capture/workloads.ts'
import { errorCode, MeshError } from '../../lib/errors.ts'
import { nativeCalls } from '../../lib/native.ts'
import { findPortHolder } from '../../lib/port-holder.ts'
import { formatAddress, type SocketAddress } from '../../model/address.ts'
import { chosenBackend } from '../capture-operations.ts'
import { type Check, fail, failedBy, ok, warn } from './check.ts'

/** `engines` of package.json: the first version with all that is used. */
const LEAST_NODE = [24, 15] as const

/** State files of a large host take a few MiB, and are written beside the former ones. */
const LEAST_FREE_BYTES = 64 * 1_048_576

/** This program did not exist before: a clock that says so is wrong. */
const EARLIEST_MS = Date.UTC(2026, 0, 1)

/** Runtime and native calls. */
export function checkNode(version: string): Check {
  const [major = 0, minor = 0] = version.replace(/^v/, '').split('.').map(Number)
  const [leastMajor, leastMinor] = LEAST_NODE
  const next = 'Use the Node.js of the hostmesh package (docs/install.md)'
  if (major < leastMajor || (major === leastMajor && minor < leastMinor))
    return fail('node', `Node.js ${version} is older than ${LEAST_NODE.join('.')}`, next)
  if (nativeCalls() === undefined)
    return fail('node', `Node.js ${version} cannot make native calls: koffi does not load`, next)
  return ok('node', `Node.js ${version}, native calls work`)
}

/** Kernel, tools and rights for capture, and cgroup v2 where a workload is recognized by it. */
export async function checkKernel(config: Config, run: RunCommand): Promise<Check[]> {
  const kernel = `Linux ${release()}`
  if (config.capture.mode === 'off') return [ok('capture', `${kernel}; capture is off`)]
  return [await checkBackend(config, run, kernel), ...(await checkCgroups(config))]
}

async function checkBackend(config: Config, run: RunCommand, kernel: string): Promise<Check> {
  if (process.getuid?.() !== 0)
    return warn('capture', `${kernel}; not checked: only root may ask the kernel`, 'Run it as root')
  try {
    const chosen = await chosenBackend(config, run)
    if (chosen?.kind !== 'iptables')
      return ok('capture', `${kernel}, backend nftables: ${chosen?.reason}`)
    for (const [tool, word] of [
      ['iptables', '-S'],
      ['ipset', '-v'],
    ] as const) {
      const { status, stderr } = await run(tool, [word])
      if (status !== 0)
        return fail(
          'capture',
          `${kernel}, backend iptables (${chosen.reason}), but ${tool} fails: ${stderr.trim()}`,
          'See docs/capture.md for what the kernel must have',
        )
    }
    return ok('capture', `${kernel}, backend iptables: ${chosen.reason}`)
  } catch (error) {
    return failedBy('capture', error, 'Install nftables, or iptables and ipset')
  }
}

async function checkCgroups({ services }: Config): Promise<Check[]> {
  const isUsed = services.some(({ identity }) => identity !== undefined && 'cgroup' in identity)
  if (!isUsed) return []
  const root = await findCgroupRoot()
  if (root !== undefined) return [ok('cgroup', `cgroup v2 is mounted at ${root}`)]
  return [
    fail(
      'cgroup',
      'cgroup v2 is not mounted, and services are recognized by their cgroup',
      'Boot with systemd.unified_cgroup_hierarchy=1, or use identity.user',
    ),
  ]
}

/** A port that the daemon opens. */
interface WantedPort {
  readonly key: string
  readonly kind: 'tcp' | 'udp'
  readonly address: SocketAddress
}

/** Whether the ports that the daemon opens are free. */
export async function checkPorts(config: Config): Promise<Check[]> {
  const wanted = wantedPorts(config)
  const taken = await Promise.all(
    wanted.map(async (port) => ({ port, code: await bindCode(port) })),
  )
  const failures = taken.flatMap(({ port, code }) =>
    code === undefined ? [] : [portFailure(port, code)],
  )
  return failures.length > 0 ? failures : [ok('ports', `${wanted.length} ports are free`)]
}

function wantedPorts(config: Config): WantedPort[] {
  const { tunnel, dns, metrics, capture } = config
  const services = localServices(config)
  const tcp = (key: string, ip: string, port: number): WantedPort => ({
    key,
    kind: 'tcp',
    address: { ip, port },
  })
  return [
    tcp('tunnel.port', tunnel.address, tunnel.port),
    ...(metrics.port === undefined ? [] : [tcp('metrics.port', metrics.address, metrics.port)]),
    ...services.flatMap(({ name, connectPort, capturePort, upstreams }) => [
      ...(connectPort === undefined
        ? []
        : [tcp(`connectPort of ${name}`, tunnel.address, connectPort)]),
      ...(capturePort === undefined || capture.mode === 'off'
        ? []
        : [tcp(`the capture port of ${name}`, '127.0.0.1', capturePort)]),
      ...upstreams.flatMap(({ destination, bind }) =>
        bind === undefined ? [] : [tcp(`upstream ${destination} of ${name}`, bind.ip, bind.port)],
      ),
    ]),
    ...(isDnsOn(config)
      ? [
          tcp('dns.port', dns.address, dns.port),
          {
            key: 'dns.port',
            kind: 'udp' as const,
            address: { ip: dns.address, port: dns.port },
          },
        ]
      : []),
  ]
}

/** The error of binding a port; undefined when it can be bound. It is released at once. */
async function bindCode({ kind, address: { ip, port } }: WantedPort): Promise<string | undefined> {
  if (kind === 'udp') {
    const socket = createSocket(ip.includes(':') ? 'udp6' : 'udp4')
    const bound = once(socket, 'listening').then(() => undefined, errorCode)
    socket.bind({ address: ip, port, exclusive: true })
    const code = await bound
    if (code === undefined) socket.close()
    return code
  }
  const server = createServer()
  const bound = once(server, 'listening').then(() => undefined, errorCode)
  server.listen({ host: ip, port, exclusive: true })
  const code = await bound
  if (code === undefined) {
    server.close()
    await once(server, 'close')
  }
  return code
}

function portFailure({ key, kind, address }: WantedPort, code: string): Check {
  const at = `${kind.toUpperCase()} ${formatAddress(address)} (${key})`
  if (code !== 'EADDRINUSE')
    return fail('ports', `${at} cannot be opened: ${code}`, `Correct ${key}`)
  const { process: holder } = findPortHolder(kind, address.port) ?? {}
  const who = holder === undefined ? 'another process' : `${holder.name} (process ${holder.pid})`
  return fail('ports', `${at} is used by ${who}`, `Stop it, or set another port`)
}

/** The folder whose content outlives a restart. */
export function checkState({ state }: Config): Check {
  const { directory } = state
  const existing = [directory, dirname(directory)].find(isThere)
  if (existing === undefined)
    return fail('state', `${directory} is not there`, `Create it: mkdir -p ${directory}`)
  try {
    accessSync(existing, constants.W_OK | constants.X_OK)
  } catch {
    return fail(
      'state',
      `${existing} cannot be written to by this user`,
      'Run it as the user of the daemon, or correct the owner',
    )
  }
  const { bavail, bsize } = statfsSync(existing)
  if (bavail * bsize < LEAST_FREE_BYTES)
    return warn(
      'state',
      `${existing} has only ${Math.floor((bavail * bsize) / 1_048_576)} MiB of free space`,
      'Make room: what is not stored is missing after a restart without Consul',
    )
  return existing === directory
    ? ok('state', `${directory} can be written to`)
    : ok('state', `${directory} can be created`)
}

function isThere(path: string): boolean {
  try {
    accessSync(path, constants.F_OK)
    return true
  } catch {
    return false
  }
}

/** Whether the clock can be right: certificates are refused when it is not. */
export async function checkClock(nowMs: number, run: RunCommand): Promise<Check> {
  const now = new Date(nowMs).toISOString()
  const next = 'Start a time service: timedatectl set-ntp true'
  if (nowMs < EARLIEST_MS) return fail('clock', `The clock is wrong: it shows ${now}`, next)
  const answer = await run('timedatectl', ['show', '-p', 'NTPSynchronized', '--value']).catch(
    (error: unknown) => {
      if (error instanceof MeshError) return undefined
      throw error
    },
  )
  if (answer?.stdout.trim() === 'no')
    return warn('clock', `The clock shows ${now} and is not synchronized`, next)
  const isKnown = answer?.stdout.trim() === 'yes'
  const how = isKnown ? 'synchronized' : 'whether it is synchronized is not known'
  return ok('clock', `${now}, ${how}`)
}
