/**
 * hostmesh itself, the real daemon with catalog and certificates from files on both hosts, four times: captured at the
 * virtual address of the service and at the address of its instance, by explicit upstream port, and that with two workers.
 */
import { existsSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { hostmeshVersion } from '../../src/lib/version.ts'
import { BACKEND_PORT, OTHER_PORT } from '../site/backend.ts'
import { writeConfig } from '../site/certificates.ts'
import { ADDRESS_B } from '../site/namespaces.ts'
import { run } from '../site/process.ts'
import { findTool } from '../site/tools.ts'
import type { SubjectName } from '../subject-names.ts'
import {
  type Attack,
  ENTRY_PORT,
  type Entry,
  EXPLICIT_ENTRY,
  type Site,
  type Subject,
  startHop,
  TUNNEL_PORT,
} from './subject.ts'

const ROOT = resolve(import.meta.dirname, '../..')
const EXECUTABLE = join(ROOT, 'scripts/hostmesh')

/** Virtual address of the service; any port of it leads there. */
const VIRTUAL_ADDRESS = '240.0.0.10'

/** The user whose connections are captured. No such account has to exist. */
const LOAD_UID = 60_077

const CAPTURED_ENTRY: Entry = { host: VIRTUAL_ADDRESS, port: BACKEND_PORT, uid: LOAD_UID }

/** Where the instance says it listens. The backend does not: what is not captured is refused. */
const INSTANCE_ENTRY: Entry = { ...CAPTURED_ENTRY, host: ADDRESS_B }

/** Peer of the scenario `fair`: it may reach `other`, which is the same backend, and not `web`. */
const ATTACK: Attack = {
  host: ADDRESS_B,
  port: TUNNEL_PORT,
  allowedName: 'other.default.dc1.internal.bench.consul',
  deniedName: 'web.default.dc1.internal.bench.consul',
  certificate: 'hostmesh-leaf-x/attacker.pem',
  key: 'hostmesh-leaf-x/attacker.key',
}

/** Through rules in namespace A: the load connects to the virtual address as a user of its own. */
export const hostmeshCapture: Subject = hostmesh('hostmesh-capture', {
  entry: CAPTURED_ENTRY,
  capture: true,
  workers: 1,
})

/** The same, with the load connecting to the address of the one instance. */
export const hostmeshCaptureInstance: Subject = hostmesh('hostmesh-capture-instance', {
  entry: INSTANCE_ENTRY,
  capture: true,
  workers: 1,
})

/** By a port on loopback of host A, without rules. */
export const hostmeshUpstream: Subject = hostmesh('hostmesh-upstream', {
  entry: EXPLICIT_ENTRY,
  capture: false,
  workers: 1,
})

/** The same with two data-plane threads a hop. */
export const hostmeshTwoWorkers: Subject = hostmesh('hostmesh-upstream-2w', {
  entry: EXPLICIT_ENTRY,
  capture: false,
  workers: 2,
})

interface Variant {
  readonly entry: Entry
  readonly capture: boolean
  readonly workers: number
}

function hostmesh(name: SubjectName, variant: Variant): Subject {
  return {
    name,
    entry: variant.entry,
    backendAddress: '127.0.0.1',
    attack: ATTACK,
    absent: () =>
      variant.capture && findTool('iptables-restore') === undefined
        ? 'iptables is not installed'
        : undefined,
    version: () => Promise.resolve(`hostmesh ${hostmeshVersion}`),
    async start(site, hops) {
      const leaves = await issueLeaves(site)
      const catalog = await writeConfig(join(site.directory, 'catalog.yaml'), CATALOG)
      for (const side of ['a', 'b'] as const) {
        const config = await writeConfig(
          join(site.directory, `hop-${side}.yaml`),
          JSON.stringify(daemonConfig(site, side, variant, { catalog, leaves: leaves[side] })),
        )
        startHop(site, hops, side, [...profiling(site), EXECUTABLE, 'run', '--config', config])
      }
    },
  }
}

/** What host B runs. */
const SERVED = [
  { name: 'web', port: BACKEND_PORT },
  { name: 'other', port: OTHER_PORT },
]

/** JSON is YAML, so the catalog and the configuration are written as JSON. */
const CATALOG = JSON.stringify({
  services: [
    { ...serviceOf('web', BACKEND_PORT), VirtualAddresses: [VIRTUAL_ADDRESS] },
    serviceOf('other', OTHER_PORT),
  ],
  intentions: [
    { SourceName: 'client', DestinationName: 'web', Action: 'allow' },
    { SourceName: 'attacker', DestinationName: 'other', Action: 'allow' },
  ],
  defaultPolicy: 'deny',
})

function serviceOf(name: string, port: number): object {
  const instance = {
    Node: 'b',
    ID: name,
    Address: ADDRESS_B,
    Port: TUNNEL_PORT,
    ServiceAddress: ADDRESS_B,
    ServicePort: port,
    Status: 'passing',
  }
  return { Name: name, Protocol: 'tcp', Instances: [instance] }
}

interface Files {
  readonly catalog: string
  readonly leaves: string
}

function daemonConfig(site: Site, side: 'a' | 'b', variant: Variant, files: Files): object {
  const caller = {
    name: 'client',
    upstreams: [{ destination: 'web', ...(variant.capture ? {} : { bindPort: ENTRY_PORT }) }],
    ...(variant.capture ? { identity: { user: LOAD_UID } } : {}),
  }
  return {
    node: { name: side },
    catalog: { kind: 'file', path: files.catalog },
    certificates: { kind: 'files', directory: files.leaves },
    services: side === 'a' ? [caller] : SERVED,
    capture: { mode: variant.capture && side === 'a' ? 'on' : 'off' },
    tunnel: { port: TUNNEL_PORT },
    workers: variant.workers,
    state: { directory: join(site.directory, `state-${side}`) },
    admin: { socket: join(site.directory, `admin-${side}.sock`) },
    timeouts: { drain: '1s' },
    log: { level: 'warn', format: 'text' },
  }
}

/** One authority and one leaf a service for all these subjects of a run, made by whoever comes first. */
async function issueLeaves(site: Site): Promise<{ readonly a: string; readonly b: string }> {
  const authority = join(site.runDirectory, 'hostmesh-ca')
  const leaves = {
    a: join(site.runDirectory, 'hostmesh-leaf-a'),
    b: join(site.runDirectory, 'hostmesh-leaf-b'),
    x: join(site.runDirectory, 'hostmesh-leaf-x'),
  }
  if (existsSync(authority)) return leaves
  await run([EXECUTABLE, 'ca', 'init', '--directory', authority, '--trust-domain', 'bench.consul'])
  for (const [service, out] of [
    ['client', leaves.a],
    ['web', leaves.b],
    ['other', leaves.b],
    ['attacker', leaves.x],
  ] as const)
    await run([
      EXECUTABLE,
      'ca',
      'issue',
      '--directory',
      authority,
      '--datacenter',
      'dc1',
      '--service',
      service,
      '--out',
      out,
    ])
  return leaves
}

/** Node writes the profile of every thread when the daemon stops. */
function profiling(site: Site): readonly string[] {
  if (site.profileDirectory === undefined) return []
  return ['/usr/bin/env', `NODE_OPTIONS=--cpu-prof --cpu-prof-dir=${site.profileDirectory}`]
}
