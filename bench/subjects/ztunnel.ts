/**
 * ztunnel, the proxy of a node in Istio's ambient mode: TCP in HTTP/2 CONNECT (HBONE) over shared TLS connections,
 * with one worker thread a hop, captured by iptables as hostmesh's first subject is.
 *
 * There is no package of it: it is measured where the environment names a binary. Without a control plane it takes its
 * workloads from a file, and certificates from the CA that only a build with the feature `testing` has.
 */
import { statSync } from 'node:fs'
import { join } from 'node:path'
import { BACKEND_PORT } from '../site/backend.ts'
import { writeConfig } from '../site/certificates.ts'
import { ADDRESS_A, ADDRESS_B } from '../site/namespaces.ts'
import { run } from '../site/process.ts'
import { findTool } from '../site/tools.ts'
import { type Entry, type Site, type Subject, startHop } from './subject.ts'

/** The variable of the environment that names the binary. */
const ZTUNNEL_VARIABLE = 'HOSTMESH_BENCH_ZTUNNEL'

/** Where it takes diverted connections, built in. */
const OUTBOUND_PORT = 15_001

/** Its own connections carry it, so that nothing diverts them again. */
const PACKET_MARK = 1_337

/** The user whose connections are diverted. No such account has to exist. */
const LOAD_UID = 60_078

const ENTRY: Entry = { host: ADDRESS_B, port: BACKEND_PORT, uid: LOAD_UID }

/** ztunnel on both hosts. */
export const ztunnel: Subject = {
  name: 'ztunnel',
  entry: ENTRY,
  // The second hop connects to the address that the caller wanted.
  backendAddress: ADDRESS_B,
  startHint: `it must be built with the feature "testing" (its built-in CA), as in: cargo build --release --features testing`,
  absent: () => whyAbsent(process.env[ZTUNNEL_VARIABLE]),
  version: async () => `ztunnel ${(await run([binary(), 'version'])).trim()}`,
  async start(site, hops) {
    const workloads = await writeConfig(join(site.directory, 'workloads.yaml'), WORKLOADS)
    await restore(site, 'a', divertRules())
    await restore(site, 'b', guardRules())
    for (const side of ['a', 'b'] as const)
      startHop(site, hops, side, [
        '/usr/bin/env',
        ...Object.entries(ztunnelEnvironment(side, workloads)).map(
          ([name, value]) => `${name}=${value}`,
        ),
        binary(),
      ])
  },
}

/** Why there is nothing to measure when the variable has this value; undefined when there is. */
export function whyAbsent(path: string | undefined): string | undefined {
  if (path === undefined || path === '')
    return `${ZTUNNEL_VARIABLE} names no binary (one built with the feature "testing")`
  const found = statSync(path, { throwIfNoEntry: false })
  if (found === undefined) return `${ZTUNNEL_VARIABLE} names ${path}, and there is no such file`
  if (!found.isFile() || (found.mode & 0o111) === 0)
    return `${ZTUNNEL_VARIABLE} names ${path}, which is not a program`
  return findTool('iptables-restore') === undefined ? 'iptables is not installed' : undefined
}

/** What a hop is told. */
export function ztunnelEnvironment(
  side: 'a' | 'b',
  workloadsFile: string,
): Readonly<Record<string, string>> {
  const workload = side === 'a' ? 'client' : 'web'
  return {
    PROXY_MODE: 'dedicated',
    PROXY_WORKLOAD_INFO: `default/${workload}/${workload}`,
    NODE_NAME: side,
    LOCAL_XDS_PATH: workloadsFile,
    XDS_ADDRESS: '',
    FAKE_CA: 'true',
    ENABLE_ORIG_SRC: 'false',
    PACKET_MARK: String(PACKET_MARK),
    ZTUNNEL_WORKER_THREADS: '1',
    RUST_LOG: 'error',
  }
}

/** JSON is YAML. */
export const WORKLOADS: string = JSON.stringify({
  workloads: [workloadOf('client', 'a', ADDRESS_A), workloadOf('web', 'b', ADDRESS_B)],
  services: [],
  policies: [],
})

function workloadOf(name: string, node: string, address: string): object {
  return {
    uid: `bench//v1/Pod/default/${name}`,
    name,
    namespace: 'default',
    serviceAccount: name,
    workloadIps: [address],
    protocol: 'HBONE',
    node,
    network: '',
    services: {},
  }
}

/** For host A: what the load dials goes to the first hop. */
export function divertRules(): string {
  const toBackend = `-p tcp -d ${ADDRESS_B} --dport ${BACKEND_PORT}`
  return [
    '*nat',
    `-A OUTPUT -m mark --mark ${PACKET_MARK} -j RETURN`,
    `-A OUTPUT ${toBackend} -m owner --uid-owner ${LOAD_UID} -j REDIRECT --to-ports ${OUTBOUND_PORT}`,
    'COMMIT\n',
  ].join('\n')
}

/** For host B: what does not come through the tunnel is not measured. */
export function guardRules(): string {
  return `*filter\n-A INPUT ! -i lo -p tcp --dport ${BACKEND_PORT} -j REJECT --reject-with tcp-reset\nCOMMIT\n`
}

/** Puts these in place of the rules of an earlier start. */
async function restore(site: Site, side: 'a' | 'b', rules: string): Promise<void> {
  const file = await writeConfig(join(site.directory, `rules-${side}`), rules)
  await run(site[side].command(['iptables-restore', file]))
}

function binary(): string {
  return process.env[ZTUNNEL_VARIABLE] ?? 'ztunnel'
}
