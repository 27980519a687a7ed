/**
 * The capture rules of a plan, independent of the tool: a pure function of the plan.
 *
 * The first rule of a hook that matches decides; if none matches, the connection is not changed. Only rules for
 * addresses of the mesh (virtual range, instance addresses) divert or refuse, so no other traffic enters the
 * proxy. nft-rules.ts and iptables-rules.ts render the rules for the tools, trace.ts evaluates them for people.
 *
 *     output      connections of processes on this host, decided at their first segment
 *     prerouting  those of containers, which the host forwards
 */
import { MeshError } from '../../lib/errors.ts'
import { canonicalIp, ipBytes, ipFromBytes, isIpv6, isPort } from '../../model/address.ts'
import { cidrContains, parseCidr } from '../../model/cidr.ts'
import type { WorkloadSelector } from '../../model/service.ts'

/** The two address families; each has its own rules and sets. */
export type Family = 'v4' | 'v6'

/** Both families in the order in which they are applied. */
export const families: readonly Family[] = ['v4', 'v6']

/** A local workload and the port that its connections are diverted to. */
export interface CaptureWorkload {
  readonly selector: WorkloadSelector
  readonly capturePort: number
}

/** What to capture on this host. */
export interface CapturePlan {
  readonly workloads: readonly CaptureWorkload[]
  /** Target of local callers without an identity of their own; undefined: they are not captured. */
  readonly defaultCapturePort?: number | undefined
  /** Whether a local caller without identity is refused at instance addresses, too. */
  readonly refusesUnknownAtInstances?: boolean
  /** IPv4 and IPv6 ranges (CIDR) of virtual addresses. */
  readonly virtualRange: string
  readonly virtualRange6: string
  /** The daemon's own user: its connections are never captured. */
  readonly daemonUid: number
  /** Ports of the daemon on this host's addresses: dialing them is never captured. */
  readonly ownPorts: readonly number[]
}

/** The point in the kernel at which a rule is evaluated. */
export type CaptureHook = 'output' | 'prerouting'

/** One condition; a rule matches when all of its conditions do. */
export type CaptureMatch =
  /** The destination belongs to the mesh: a virtual address, an address and port of an instance, or either. */
  | { readonly kind: 'mesh'; readonly what: 'virtual' | 'instance' | 'any' }
  /** The destination is an instance that may be reached without the mesh now (`capture.permissive`). */
  | { readonly kind: 'permitted' }
  | { readonly kind: 'loopback' }
  /** The destination is a port of the daemon on an address of this host. */
  | { readonly kind: 'ownPort'; readonly ports: readonly number[] }
  | { readonly kind: 'caller'; readonly selector: WorkloadSelector }
  | { readonly kind: 'daemon'; readonly uid: number }

/** What happens to the connection. */
export type CaptureAction =
  | { readonly kind: 'divert'; readonly port: number }
  /** It goes to the destination that the application chose. */
  | { readonly kind: 'pass' }
  /** It is answered with a reset. */
  | { readonly kind: 'refuse' }

/** One rule. */
export interface CaptureRule {
  readonly hook: CaptureHook
  readonly matches: readonly CaptureMatch[]
  readonly action: CaptureAction
}

/** The kernel's limit for a cgroup path in a rule, including the terminating zero. */
const MAX_CGROUP_PATH_BYTES = 511

/** A wider virtual range would include ordinary internet addresses. */
const MIN_PREFIX_BITS: Record<Family, number> = { v4: 4, v6: 16 }

/** Loopback addresses of a family; they mean another machine on every host and are never captured. */
export const loopbackRange: Record<Family, string> = { v4: '127.0.0.0/8', v6: '::1/128' }

/**
 * The rules of one family, in order.
 *
 * `selector.user` must be numeric here: names are looked up where I/O is allowed (workloads.ts).
 * @throws MeshError HM_CAPTURE_PLAN_INVALID naming the value; no text from a user is written into a rule
 *   unchecked.
 */
export function captureRules(plan: CapturePlan, family: Family): readonly CaptureRule[] {
  checkPlan(plan)
  virtualNetwork(plan, family)
  const rules: CaptureRule[] = []
  const add = (hook: CaptureHook, action: CaptureAction, ...matches: CaptureMatch[]): number =>
    rules.push({ hook, matches, action })
  const daemon: CaptureMatch = { kind: 'daemon', uid: plan.daemonUid }
  const ports = [...new Set(plan.ownPorts)].toSorted((a, b) => a - b)
  const ownPort: CaptureMatch = { kind: 'ownPort', ports }

  // A virtual address exists only for capture: an undiverted connection to it is refused.
  add('output', REFUSE, daemon, VIRTUAL)
  add('output', PASS, daemon)
  add('output', PASS, { kind: 'loopback' })
  if (ports.length > 0) add('output', PASS, ownPort)
  add('output', PASS, { kind: 'permitted' })
  for (const { selector, capturePort } of localWorkloads(plan))
    add('output', divert(capturePort), MESH, { kind: 'caller', selector })
  if (plan.defaultCapturePort !== undefined) add('output', divert(plan.defaultCapturePort), MESH)
  else add('output', REFUSE, VIRTUAL)
  if (plan.refusesUnknownAtInstances === true) add('output', REFUSE, INSTANCE)

  if (ports.length > 0) add('prerouting', PASS, ownPort)
  add('prerouting', PASS, { kind: 'permitted' })
  for (const { selector, capturePort } of containerWorkloads(plan, family))
    add('prerouting', divert(capturePort), MESH, { kind: 'caller', selector })
  add('prerouting', REFUSE, VIRTUAL)
  return rules
}

/** The plan's virtual range of a family. @throws MeshError HM_CAPTURE_PLAN_INVALID */
export function virtualNetwork(plan: CapturePlan, family: Family): string {
  return parseRange(family === 'v4' ? plan.virtualRange : plan.virtualRange6, family)
}

/** Every port that connections are diverted to. */
export function capturePorts({ workloads, defaultCapturePort }: CapturePlan): ReadonlySet<number> {
  const ports = new Set(workloads.map(({ capturePort }) => capturePort))
  if (defaultCapturePort !== undefined) ports.add(defaultCapturePort)
  return ports
}

/** In the usual virtual range, but shared by all hosts: DHCP servers answer there. */
export const BROADCAST = '255.255.255.255'

/** Whether a virtual range includes {@link BROADCAST}. */
export function coversBroadcast(range: string): boolean {
  const cidr = parseCidr(range)
  return cidr !== undefined && cidrContains(cidr, BROADCAST)
}

/** A rule in words, for people. */
export function describeRule({ hook, matches, action }: CaptureRule): string {
  const what = matches.map(describeMatch).join(', ') || 'anything'
  const then = action.kind === 'divert' ? `divert to port ${action.port}` : action.kind
  return `${hook}: ${what}: ${then}`
}

function describeMatch(match: CaptureMatch): string {
  switch (match.kind) {
    case 'mesh':
      return match.what === 'any'
        ? 'to a mesh address'
        : `to a${match.what === 'instance' ? 'n instance' : ' virtual'} address`
    case 'permitted':
      return 'to an instance of a permissive service that the mesh cannot carry'
    case 'loopback':
      return 'to loopback'
    case 'ownPort':
      return `to a port of the daemon (${match.ports.join(', ')}) on this host`
    case 'daemon':
      return `by the daemon (user ${match.uid})`
    case 'caller':
      return `by ${describeSelector(match.selector)}`
  }
}

/** A selector in words. */
export function describeSelector(selector: WorkloadSelector): string {
  if (selector.kind === 'cgroup') return `cgroup ${selector.path}`
  return selector.kind === 'user' ? `user ${selector.user}` : `source address ${selector.ip}`
}

const VIRTUAL: CaptureMatch = { kind: 'mesh', what: 'virtual' }
const INSTANCE: CaptureMatch = { kind: 'mesh', what: 'instance' }
const MESH: CaptureMatch = { kind: 'mesh', what: 'any' }
const PASS: CaptureAction = { kind: 'pass' }
const REFUSE: CaptureAction = { kind: 'refuse' }

function divert(port: number): CaptureAction {
  return { kind: 'divert', port }
}

/**
 * The network of a virtual range in its canonical spelling, `240.0.0.0/4`.
 * @throws MeshError HM_CAPTURE_PLAN_INVALID when it is not a range of the family, or would include loopback or
 *   most of the internet.
 */
export function parseRange(text: string, family: Family): string {
  const [address = '', bitsText = '', ...rest] = text.split('/')
  const ip = canonicalIp(address)
  const size = family === 'v4' ? 32 : 128
  const bits = /^\d{1,3}$/.test(bitsText) ? Number(bitsText) : Number.NaN
  const key = family === 'v4' ? 'capture.virtualRange' : 'capture.virtualRange6'
  if (ip === undefined || rest.length > 0 || !(bits <= size) || isIpv6(ip) !== (family === 'v6'))
    throw invalid(`${key} must be an IP${family} range such as ${exampleRange[family]}`, text)
  if (bits < MIN_PREFIX_BITS[family])
    throw invalid(`${key} must be /${MIN_PREFIX_BITS[family]} or narrower`, text)
  const network = networkOf(ip, bits)
  for (const special of family === 'v4' ? ['127.0.0.1', '0.0.0.0'] : ['::1', '::'])
    if (networkOf(special, bits) === network)
      throw invalid(`${key} must not contain ${special}`, text)
  return `${network}/${bits}`
}

const exampleRange: Record<Family, string> = { v4: '240.0.0.0/4', v6: 'fdc6:6d65:7368::/64' }

function networkOf(ip: string, bits: number): string {
  const masked = ipBytes(ip).map((byte, index) => {
    const kept = Math.min(8, Math.max(0, bits - index * 8))
    return byte & (0xff << (8 - kept)) & 0xff
  })
  return ipFromBytes(masked) ?? ip
}

/**
 * Callers on this host, most specific first: a cgroup rule also matches everything below its path, so
 * deeper paths go first; a unit is more specific than the user it runs as.
 */
function localWorkloads(plan: CapturePlan): CaptureWorkload[] {
  const depth = ({ selector }: CaptureWorkload): number =>
    selector.kind === 'cgroup' ? selector.path.split('/').length : 0
  return plan.workloads
    .filter(({ selector }) => selector.kind !== 'sourceAddress')
    .toSorted((a, b) => depth(b) - depth(a))
}

/** Containers of one family. */
function containerWorkloads(plan: CapturePlan, family: Family): CaptureWorkload[] {
  return plan.workloads.flatMap(({ selector, capturePort }) => {
    if (selector.kind !== 'sourceAddress') return []
    const ip = canonicalIp(selector.ip) ?? selector.ip
    if (isIpv6(ip) !== (family === 'v6')) return []
    return [{ selector: { kind: 'sourceAddress' as const, ip }, capturePort }]
  })
}

function checkPlan(plan: CapturePlan): void {
  if (!isUid(plan.daemonUid)) throw invalid('daemonUid must be a user number', plan.daemonUid)
  for (const port of plan.ownPorts)
    if (!isPort(port)) throw invalid('An own port must be 1 to 65535', port)
  if (plan.defaultCapturePort !== undefined && !isPort(plan.defaultCapturePort))
    throw invalid('The default capture port must be 1 to 65535', plan.defaultCapturePort)
  const selectors = new Set<string>()
  const ports = new Set<number>()
  for (const { selector, capturePort } of plan.workloads) {
    if (!isPort(capturePort)) throw invalid('A capture port must be 1 to 65535', capturePort)
    if (ports.has(capturePort))
      throw invalid('Two workloads must not share a capture port', capturePort)
    ports.add(capturePort)
    const key = checkSelector(selector)
    if (selectors.has(key)) throw invalid('Two workloads must not have the same identity', key)
    selectors.add(key)
    if (key === `user ${plan.daemonUid}`)
      throw invalid('A workload must not run as the user of the daemon, who is exempt', key)
  }
}

/** Rejects a selector that cannot be written into a rule as one word; returns what identifies it. */
function checkSelector(selector: WorkloadSelector): string {
  switch (selector.kind) {
    case 'cgroup': {
      const segments = selector.path.split('/')
      const isPlain = segments.every(
        (segment) =>
          /^[A-Za-z0-9_.@:+=,~\\-]+$/.test(segment) && segment !== '.' && segment !== '..',
      )
      if (!isPlain || selector.path.length > MAX_CGROUP_PATH_BYTES)
        throw invalid(
          'A cgroup must be a path below the cgroup v2 root such as system.slice/web.service',
          selector.path,
        )
      return `cgroup ${selector.path}`
    }
    case 'user':
      if (!/^\d{1,10}$/.test(selector.user) || !isUid(Number(selector.user)))
        throw invalid('A user must be given by number here', selector.user)
      return `user ${Number(selector.user)}`
    case 'sourceAddress': {
      const ip = canonicalIp(selector.ip)
      if (ip === undefined) throw invalid('A source address must be an IP address', selector.ip)
      return `sourceAddress ${ip}`
    }
  }
}

function isUid(uid: number): boolean {
  return Number.isInteger(uid) && uid >= 0 && uid < 0xffff_ffff
}

function invalid(rule: string, value: string | number): MeshError {
  return new MeshError(
    'HM_CAPTURE_PLAN_INVALID',
    `Cannot make capture rules: ${rule}, got ${JSON.stringify(value)}`,
    { hint: 'Correct services[].identity or the capture section of the configuration' },
  )
}
