/**
 * Words and fixed parts of a fleet that does not exist, for test/harness/fleet-documents.ts.
 */
import type { EdgePolicy, Risk, Traffic } from '../../src/model/fleet.ts'

/** Names of a shop, in the order in which they call each other. */
const words = [
  ['edge', 'gateway', 'web', 'mobile', 'partner'],
  ['cart', 'checkout', 'catalog', 'search', 'account', 'session', 'recommend'],
  ['orders', 'payments', 'pricing', 'inventory', 'shipping', 'reviews', 'tax'],
  ['ledger', 'fraud', 'mail', 'events', 'stock', 'index', 'invoices'],
  ['postgres', 'redis', 'kafka', 'search-db', 'objects', 'mysql'],
] as const

/** Names in five layers, as many as wanted; those after the first thirty have a number. */
export function layersOf(count: number): string[][] {
  const layers = words.map((): string[] => [])
  for (let index = 0, made = 0; made < count; index += 1) {
    const layer = index % words.length
    const round = Math.floor(index / words.length)
    const names = words[layer] ?? []
    const turn = Math.floor(round / names.length)
    const name = names[round % names.length] ?? ''
    layers[layer]?.push(turn === 0 ? name : `${name}-${turn + 1}`)
    made += 1
  }
  return layers
}

/** No connection. */
export const quiet: Traffic = {
  openedPerSecond: 0,
  active: 0,
  closed: {},
  errorShare: null,
  connectFailures: 0,
  sentBytesPerSecond: 0,
  receivedBytesPerSecond: 0,
  connectMs: null,
  firstByteMs: null,
  durationMs: null,
}

/** The policy of the pair with this number. */
export function policyOf(
  source: string,
  destination: string,
  index: number,
  isDenied: boolean,
): EdgePolicy | null {
  if (index % 29 === 21) return null
  if (isDenied)
    return {
      allow: false,
      rule: { source: '*', destination, action: 'deny', precedence: 8 },
      reason: `intention * -> ${destination} (precedence 8) says deny`,
    }
  if (index % 5 === 2)
    return { allow: true, rule: null, reason: 'no intention fits; the default policy says allow' }
  return {
    allow: true,
    rule: { source, destination, action: 'allow', precedence: 9 },
    reason: `intention ${source} -> ${destination} (precedence 9) says allow`,
  }
}

/** A risk of each severity. */
export function risksOf(services: readonly string[]): Risk[] {
  return [
    {
      kind: 'silentHost',
      severity: 'high',
      subject: 'node-03',
      message: 'The host has not reported for 94 s.',
      hint: 'Look whether hostmesh runs there: systemctl status hostmesh.',
    },
    {
      kind: 'singleInstance',
      severity: 'high',
      subject: services[4] ?? '',
      message: 'One instance serves 6 callers.',
      hint: 'Run a second one on another host.',
    },
    {
      kind: 'certificateLife',
      severity: 'medium',
      subject: services[3] ?? '',
      message: 'The certificate on node-07 has 12% of its life left and was not renewed.',
      hint: 'Look at hostmesh certs there, and at the log of the certificate authority.',
    },
    {
      kind: 'unusedAllow',
      severity: 'low',
      subject: 'legacy-batch > orders',
      message: 'The intention allows what nobody did for 14 days.',
      hint: 'Delete it, or keep it knowingly.',
    },
    {
      kind: 'plaintext',
      severity: 'medium',
      subject: 'node-02',
      message: '17 connections reached a service around the mesh.',
      hint: 'Find the caller in hostmesh connections, then close the port for others.',
    },
  ]
}
