/**
 * Which iptables rules capture needs: a pure function of the plan, in the words that `iptables-save` uses.
 *
 * All of it lives in own chains (`HOSTMESH_*`); the only lines in foreign chains are the jumps to them.
 * A connection is diverted only after it passed a rule that names what the mesh owns (virtual range, set
 * of instances), so nothing else ever enters the proxy. Each rule has one spelling, the one the
 * kernel's tools print, so that "is it in place?" is a comparison (saved-rules.ts).
 *
 *     nat OUTPUT     -> HOSTMESH_OUTPUT: daemon, loopback and own ports return; mesh destinations
 *                       -> HOSTMESH_LOCAL: one REDIRECT per cgroup or user, then the default identity
 *     nat PREROUTING -> HOSTMESH_PREROUTING: the same for containers -> HOSTMESH_SOURCE: by address
 *     filter OUTPUT, FORWARD, virtual range only -> HOSTMESH_REJECT: a reset for callers without identity
 *     filter OUTPUT, set of instances, if wanted -> HOSTMESH_UNKNOWN: the same, for new connections
 */
import { MeshError } from '../../lib/errors.ts'
import { canonicalIp, ipBytes, ipFromBytes, isIpv6, isPort } from '../../model/address.ts'
import type { WorkloadSelector } from '../../model/service.ts'

/** The two halves of capture; each has its own tool, tables, set and transaction. */
export type Family = 'v4' | 'v6'

/** Both families in the order in which they are applied. */
export const families: readonly Family[] = ['v4', 'v6']

/** What all our chains begin with; nothing else is ever deleted. */
export const CHAIN_PREFIX = 'HOSTMESH_'

/** Sets of `ip,port` of instances, filled by the daemon as the catalog changes. */
export const instanceSets: Record<Family, string> = {
  v4: 'hostmesh_instances',
  v6: 'hostmesh_instances6',
}

/** A local workload and the port that its connections are diverted to. */
export interface CaptureWorkload {
  readonly selector: WorkloadSelector
  readonly capturePort: number
}

/** What to capture on this host. */
export interface CapturePlan {
  readonly workloads: readonly CaptureWorkload[]
  /** Where local callers without an identity of their own go; undefined: they are not captured. */
  readonly defaultCapturePort?: number | undefined
  /** Whether a local caller without identity is refused at the addresses of instances, too. */
  readonly refusesUnknownAtInstances?: boolean
  /**
   * Whether only a connection's first segment is diverted at the addresses of instances. The kernel takes an open
   * connection that it has not tracked so far for a new one: diverted, it is cut. The price is that a captured
   * connection whose tracking is lost sends what is under way to the instance itself.
   */
  readonly sparesOpenConnections?: boolean
  /** IPv4 and IPv6 ranges (CIDR) of virtual addresses. */
  readonly virtualRange: string
  readonly virtualRange6: string
  /** The daemon's own user: its connections are never captured. */
  readonly daemonUid: number
  /** Ports of the daemon on this host's addresses: dialing them is never captured. */
  readonly ownPorts: readonly number[]
}

/** A line of ours in a chain that is not ours. */
export interface Jump {
  readonly chain: string
  /** The rule as `iptables-save` prints it: `-A OUTPUT ... -j HOSTMESH_OUTPUT`. */
  readonly line: string
  /** 1 is the head of the chain. */
  readonly position: number
}

/** What one table must hold of ours. */
export interface TableRules {
  readonly table: 'filter' | 'nat'
  readonly jumps: readonly Jump[]
  /** Rules by own chain, in order; each a line `-A CHAIN ...`. */
  readonly chains: ReadonlyMap<string, readonly string[]>
}

const TAG = '-m comment --comment hostmesh'
const OUTPUT = `${CHAIN_PREFIX}OUTPUT`
const LOCAL = `${CHAIN_PREFIX}LOCAL`
const PREROUTING = `${CHAIN_PREFIX}PREROUTING`
const SOURCE = `${CHAIN_PREFIX}SOURCE`
const REJECT = `${CHAIN_PREFIX}REJECT`
const UNKNOWN = `${CHAIN_PREFIX}UNKNOWN`

/** What a refused caller sees: as if nothing listened there, at once. */
const RESET = 'REJECT --reject-with tcp-reset'

/** `--syn`, as iptables-save prints it. */
const FIRST_SEGMENT = '-m tcp --tcp-flags FIN,SYN,RST,ACK SYN'

/** The multiport match takes 15 slots; a range uses two. */
const MULTIPORT_SLOTS = 15

/** The kernel's limit of a cgroup path in a rule, with its closing zero. */
const MAX_CGROUP_PATH_BYTES = 511

/** A virtual range wider than this would swallow the ordinary internet. */
const MIN_PREFIX_BITS: Record<Family, number> = { v4: 4, v6: 16 }

const LOOPBACK: Record<Family, string> = { v4: '127.0.0.0/8', v6: '::1/128' }

/**
 * The rules of one family. The filter table comes first: a virtual address must be refused before
 * anything is diverted, so that there is no moment at which it leaves the host.
 *
 * `selector.user` must be numeric here: names are looked up where I/O is allowed (workloads.ts).
 * @throws MeshError HM_CAPTURE_PLAN_INVALID naming the value; nothing of a user's text goes unchecked
 *   into a rule.
 */
export function captureRules(plan: CapturePlan, family: Family): readonly TableRules[] {
  checkPlan(plan)
  const range = parseRange(family === 'v4' ? plan.virtualRange : plan.virtualRange6, family)
  const virtual = `-d ${range} -p tcp`
  const first = plan.sparesOpenConnections === true ? ` ${FIRST_SEGMENT}` : ''
  const instances = `-p tcp${first} -m set --match-set ${instanceSets[family]} dst,dst`
  const owned = [virtual, instances]
  const chains = new Map<string, string[]>()
  const append = (chain: string, rule: string): void => {
    const rules = chains.get(chain) ?? []
    chains.set(chain, rules)
    rules.push(`-A ${chain} ${rule}`)
  }
  const jumps: Jump[] = [{ chain: 'OUTPUT', line: tagged('-A OUTPUT -p tcp', OUTPUT), position: 1 }]

  append(OUTPUT, tagged(`-p tcp -m owner --uid-owner ${plan.daemonUid}`, 'RETURN'))
  append(OUTPUT, tagged(`-d ${LOOPBACK[family]} -p tcp`, 'RETURN'))
  for (const match of ownPortMatches(plan.ownPorts)) append(OUTPUT, tagged(match, 'RETURN'))
  for (const match of owned) append(OUTPUT, tagged(match, LOCAL))
  chains.set(LOCAL, [])
  for (const workload of localWorkloads(plan))
    append(LOCAL, tagged(`-p tcp ${localMatch(workload.selector)}`, redirect(workload.capturePort)))
  if (plan.defaultCapturePort !== undefined)
    append(LOCAL, tagged('-p tcp', redirect(plan.defaultCapturePort)))

  const containers = containerWorkloads(plan, family)
  if (containers.length > 0) {
    jumps.push({
      chain: 'PREROUTING',
      line: tagged('-A PREROUTING -p tcp', PREROUTING),
      position: 1,
    })
    for (const match of ownPortMatches(plan.ownPorts)) append(PREROUTING, tagged(match, 'RETURN'))
    for (const match of owned) append(PREROUTING, tagged(match, SOURCE))
    for (const { ip, capturePort } of containers)
      append(SOURCE, tagged(`-s ${ip}/${family === 'v4' ? 32 : 128} -p tcp`, redirect(capturePort)))
  }
  return [filterRules(plan, virtual, instances), { table: 'nat', jumps, chains }]
}

/** Who gets here was diverted by no rule of nat: a caller without identity, or the daemon. */
function filterRules(plan: CapturePlan, virtual: string, instances: string): TableRules {
  const jumps: Jump[] = ['OUTPUT', 'FORWARD'].map((chain) => ({
    chain,
    line: tagged(`-A ${chain} ${virtual}`, REJECT),
    position: 1,
  }))
  const chains = new Map([[REJECT, [`-A ${REJECT} ${tagged(virtual, RESET)}`]]])
  if (plan.refusesUnknownAtInstances === true) {
    // Only what begins now: what was open before the rules were applied goes on.
    const fresh = `${instances} -m conntrack --ctstate NEW`
    jumps.push({ chain: 'OUTPUT', line: tagged(`-A OUTPUT ${fresh}`, UNKNOWN), position: 2 })
    chains.set(UNKNOWN, [
      `-A ${UNKNOWN} ${tagged(`-p tcp -m owner --uid-owner ${plan.daemonUid}`, 'RETURN')}`,
      `-A ${UNKNOWN} ${tagged('-p tcp', RESET)}`,
    ])
  }
  return { table: 'filter', jumps, chains }
}

/**
 * The network of a virtual range in its canonical spelling, `240.0.0.0/4`.
 * @throws MeshError HM_CAPTURE_PLAN_INVALID when it is no range of the family, or one that would take in
 *   loopback or most of the internet.
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

function tagged(match: string, target: string): string {
  return `${match} ${TAG} -j ${target}`
}

function redirect(port: number): string {
  return `REDIRECT --to-ports ${port}`
}

/** Dialing a port of the daemon on one of this host's addresses. */
function ownPortMatches(ports: readonly number[]): string[] {
  const sorted = [...new Set(ports)].toSorted((a, b) => a - b)
  const ranges: { first: number; last: number }[] = []
  for (const port of sorted) {
    const range = ranges.at(-1)
    if (range !== undefined && range.last === port - 1) range.last = port
    else ranges.push({ first: port, last: port })
  }
  const matches: string[] = []
  let words: string[] = []
  let slots = 0
  const flush = (): void => {
    if (words.length > 0)
      matches.push(`-p tcp -m addrtype --dst-type LOCAL -m multiport --dports ${words.join(',')}`)
    words = []
    slots = 0
  }
  for (const { first, last } of ranges) {
    const needed = first === last ? 1 : 2
    if (slots + needed > MULTIPORT_SLOTS) flush()
    words.push(first === last ? String(first) : `${first}:${last}`)
    slots += needed
  }
  flush()
  return matches
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

function localMatch(selector: WorkloadSelector): string {
  if (selector.kind === 'cgroup')
    return `-m cgroup --path "${selector.path.replaceAll('\\', '\\\\')}"`
  if (selector.kind === 'user') return `-m owner --uid-owner ${Number(selector.user)}`
  throw invalid('A source address does not select a local caller', selector.ip)
}

function containerWorkloads(
  plan: CapturePlan,
  family: Family,
): { ip: string; capturePort: number }[] {
  return plan.workloads.flatMap(({ selector, capturePort }) => {
    if (selector.kind !== 'sourceAddress') return []
    const ip = canonicalIp(selector.ip) ?? selector.ip
    return isIpv6(ip) === (family === 'v6') ? [{ ip, capturePort }] : []
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

/** Refuses what could not be written into a rule as one word; returns what identifies the selector. */
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
