/**
 * The neutral rules of a plan as one native nftables table: the backend that diverts by TPROXY, without
 * connection tracking. Pure.
 *
 *     output      (route)   SYN: who calls is decided once; mark: to loopback, priority: to which capture port
 *                           later segments to an instance: marked when the SYN put their four numbers into `open`
 *     prerouting            SYN with our mark: TPROXY to the capture port; later ones: the daemon's socket or a reset
 *                           containers: by source address, straight to TPROXY
 *
 * Every packet of the host passes every base chain, and to pass one costs as much as several of its rules: so there are few, and
 * what most packets are is asked first.
 *
 * A socket that its process has closed has no owner any more, so later segments are never judged by their owner when
 * the set knows them. The mark is bits that nobody else uses; the packet priority carries the port on its way over
 * loopback, where nothing queues by it. Sets `open`, `inbound` and `spared` are filled by packets and survive {@link renderReplacement}.
 */
import { MeshError } from '../../lib/errors.ts'
import {
  BROADCAST,
  type CaptureAction,
  type CaptureMatch,
  type CapturePlan,
  type CaptureRule,
  captureRules,
  coversBroadcast,
  type Family,
  families,
  loopbackRange,
  virtualNetwork,
} from './rules.ts'
import type { KnownCgroup } from './workloads.ts'

/** What the tables are made with beside the plan. */
export interface NftSettings {
  /** Bits of the packet mark that mean "to loopback". */
  readonly mark: number
  /** The cgroups above workloads, and all beside them. */
  readonly cgroups: readonly KnownCgroup[]
  /** Where cgroup v2 is mounted below /sys/fs/cgroup, with a slash at its end; empty where it is that folder. */
  readonly cgroupPrefix: string
  /** How long a connection from before capture is spared without a segment, seconds. */
  readonly spareSeconds: number
  /** Whether segments prolong that. */
  readonly sparesWhileUsed: boolean
}

/** Our tables. */
export const CAPTURE_TABLE = 'hostmesh'
export const GUARD_TABLE = 'hostmesh_guard'

/** One named set or map, with what makes its elements. */
export interface NftElements {
  readonly table: string
  readonly kind: 'set' | 'map'
  readonly name: string
  readonly elements: readonly string[]
}

/** What a family is called in rules. */
interface Words {
  readonly family: Family
  readonly n: '4' | '6'
  readonly ip: 'ip' | 'ip6'
  readonly type: 'ipv4_addr' | 'ipv6_addr'
  readonly nfproto: 'ipv4' | 'ipv6'
  /** Where capture ports listen. */
  readonly loopback: string
  /** The four numbers of a connection. */
  readonly tuple: string
  /** What a set of instances holds. */
  readonly destination: string
}

function words(family: Family): Words {
  const isV4 = family === 'v4'
  const ip = isV4 ? 'ip' : 'ip6'
  return {
    family,
    n: isV4 ? '4' : '6',
    ip,
    type: isV4 ? 'ipv4_addr' : 'ipv6_addr',
    nfproto: isV4 ? 'ipv4' : 'ipv6',
    loopback: isV4 ? '127.0.0.1' : '[::1]',
    tuple: `${ip} saddr . tcp sport . ${ip} daddr . tcp dport`,
    destination: `${ip} daddr . tcp dport`,
  }
}

const SYN = 'tcp flags & (fin | syn | rst | ack) == syn'
const RESET = 'reject with tcp reset'

/** Connections that can be open at a time at instance addresses, of each family. */
const MAX_OPEN = 524_288

/** An entry of `open` goes so long after the caller's FIN: the longest that a closed socket waits for the other side. */
const FIN_SECONDS = 65
const RST_SECONDS = 10

/** The table that diverts, without the elements of its sets. */
export function renderCaptureTable(
  plan: CapturePlan,
  settings: NftSettings,
  table = CAPTURE_TABLE,
): string {
  const { mark } = settings
  const chains: string[] = []
  const chain = (name: string, lines: readonly string[]): void => {
    chains.push(`  chain ${name} {\n${lines.map((line) => `    ${line}\n`).join('')}  }\n`)
  }
  const diverted = plan.workloads.filter(({ selector }) => selector.kind !== 'sourceAddress')
  const localPorts = diverted.map(({ capturePort }) => capturePort)
  if (plan.defaultCapturePort !== undefined) localPorts.push(plan.defaultCapturePort)
  for (const port of localPorts)
    chain(`caller_${port}`, [`meta priority set ${classOf(port)}`, setMark(mark)])
  const tree = cgroupTree(plan, settings)
  for (const { name, lines } of tree.chains('unclassified')) chain(name, lines)
  chain('callers', tree.levels === 0 ? callerLines(plan) : ['goto below_1'])
  if (tree.levels > 0) chain('others', callerLines(plan))
  // Somebody will look soon who it is: the kernel sends the segment again in a second. Or nobody will.
  chain('unclassified', [
    'counter name waited meta l4proto vmap @waiting',
    `meta l4proto tcp ${RESET}`,
  ])
  for (const family of families) familyChains(plan, settings, { word: words(family), chain })
  // A process may set marks of its own: ours are made here and nowhere else.
  const foreignMark = `meta mark & ${hex(mark)} != 0 meta mark set meta mark & ${hex(~mark >>> 0)}`
  chain('first', [foreignMark, 'meta nfproto ipv4 goto first4', 'goto first6'])
  const range6 = virtualNetwork(plan, 'v6')
  chain('output', [
    // After the mangle chains of others, so that nobody restores another mark over ours.
    'type route hook output priority mangle + 10; policy accept;',
    `${SYN} goto first`,
    // What the daemon answers has the mark of the caller where net.ipv4.tcp_fwmark_accept is set.
    foreignMark,
    'ip daddr . tcp dport @known4 goto later4',
    // The kernel delivers what goes to loopback by an IPv4 route, but not by an IPv6 one.
    `ip6 daddr ${range6} meta l4proto tcp ${setMark(mark)} return`,
    'ip6 daddr . tcp dport @known6 goto later6',
  ])
  for (const port of localPorts) chain(`door_${port}`, doorLines(port))
  const doors = localPorts.map((port) => `${classOf(port)} : jump door_${port}`)
  chain('doors', [
    ...(doors.length === 0 ? [] : [`meta priority vmap { ${doors.join(', ')} }`]),
    // Nobody listens there: the daemon is away.
    `meta l4proto tcp ${RESET}`,
  ])
  // The kernel by itself finds a wildcard listener for a segment that ends a handshake (SYN cookies), and its own reset cannot
  // leave from an address that is not one of this host.
  chain('later', [
    'socket transparent 1 accept',
    // No socket waits for it: the daemon is away, or has ended the connection.
    `meta l4proto tcp ${RESET}`,
  ])
  chain('captured', [`${SYN} goto doors`, 'goto later'])
  chain('prerouting', [
    // After firewalld's reverse-path rule at 10, which drops IPv6 segments that already have a socket.
    'type filter hook prerouting priority 20; policy accept;',
    `iif lo ${hasMark(mark)} meta l4proto tcp goto captured`,
    // What goes to a virtual address and has lost its mark, or never needs one, must not meet a listener of others.
    ...families.map(
      (family) =>
        `iif lo ${words(family).ip} daddr ${virtualNetwork(plan, family)} meta l4proto tcp goto later`,
    ),
    'iif lo return',
    // Who dials from an instance's address and port is answered there: that is no call of a workload.
    ...families.map((family) => {
      const { n, ip } = words(family)
      const answers = `${ip} daddr . tcp dport . ${ip} saddr . tcp sport`
      return `${SYN} ${ip} saddr . tcp sport @known${n} update @inbound${n} { ${answers} timeout 1m }`
    }),
    ...families.flatMap((family) => {
      const { n, ip, destination } = words(family)
      const hasContainers = sourcesOf(plan, family).length > 0
      return [
        `${ip} daddr ${virtualNetwork(plan, family)} meta l4proto tcp goto source${n}`,
        ...(hasContainers ? [`${destination} @known${n} goto source${n}`] : []),
      ]
    }),
  ])
  const sets = [...families.flatMap(familySets(settings)), ...tree.sets, WAITING]
  const counters = COUNTERS.map((name) => `  counter ${name} {\n  }\n`)
  return `table inet ${table} {\n${counters.join('')}${sets.join('')}${chains.join('')}}\n`
}

/**
 * Counted connections: refused at virtual and instance addresses, let out as permitted, refused for want of room, kept
 * waiting.
 */
const COUNTERS = ['refused_virtual', 'refused_instance', 'permitted', 'full', 'waited'] as const

/** Holds {@link WAITING_ELEMENT} while somebody watches for units that start. */
const WAITING = '  map waiting {\n    type inet_proto : verdict\n  }\n'
export const WAITING_ELEMENT = 'tcp : drop'

/** Chains of one family: those of local callers, then those of containers. */
function familyChains(
  plan: CapturePlan,
  settings: NftSettings,
  to: { readonly word: Words; readonly chain: (name: string, lines: readonly string[]) => void },
): void {
  const { mark } = settings
  const { word, chain } = to
  const { family, n, ip, tuple, destination } = word
  const rules = captureRules(plan, family)
  const range = virtualNetwork(plan, family)
  const output = rules.filter(({ hook }) => hook === 'output')
  const reset = (what: 'virtual' | 'instance'): string =>
    `counter name refused_${what} meta l4proto tcp ${RESET}`
  chain(`first${n}`, [
    ...output.flatMap((rule) => beforeCallers(rule, word, range)),
    `${ip} daddr ${range} goto virtual${n}`,
    `${destination} @instances${n} goto instance${n}`,
    `${destination} @known${n} delete @open${n} { ${tuple} }`,
    `${destination} @coming${n} update @spared${n} { ${tuple} }`,
  ])
  chain(`virtual${n}`, [
    'jump callers',
    `${hasMark(mark)} return`,
    // With a default identity everybody has been diverted, so that nobody comes here.
    reset('virtual'),
  ])
  const refusesUnknown = output.some(({ matches, action }) =>
    isRefusal('instance', matches, action),
  )
  chain(`instance${n}`, [
    'jump callers',
    `${hasMark(mark)} goto remember${n}`,
    `delete @open${n} { ${tuple} }`,
    ...(refusesUnknown ? [reset('instance')] : []),
  ])
  chain(`remember${n}`, [
    `delete @spared${n} { ${tuple} }`,
    `delete @inbound${n} { ${tuple} }`,
    `update @open${n} { ${tuple} } return`,
    `counter name full meta l4proto tcp ${RESET}`,
  ])
  chain(`later${n}`, [
    `${tuple} @open${n} goto again${n}`,
    // From here on a connection is judged as if it began: which only those that are spared or forgotten may need.
    `${destination} != @instances${n} return`,
    ...output
      .filter(({ matches: [match] }) => match?.kind === 'ownPort')
      .flatMap((rule) => beforeCallers(rule, word, range)),
    `meta skuid ${plan.daemonUid} return`,
    `${tuple} @inbound${n} tcp flags & syn == 0 update @inbound${n} { ${tuple} timeout 1d } return`,
    `${tuple} @inbound${n} return`,
    `${tuple} @spared${n} ${settings.sparesWhileUsed ? `update @spared${n} { ${tuple} } ` : ''}return`,
    'jump callers',
    `${hasMark(mark)} update @open${n} { ${tuple} }`,
  ])
  chain(`again${n}`, [
    setMark(mark),
    `tcp flags & rst == rst update @open${n} { ${tuple} timeout ${RST_SECONDS}s } return`,
    `tcp flags & fin == fin update @open${n} { ${tuple} timeout ${FIN_SECONDS}s } return`,
    // What an application writes ends so: an entry lives as long as its connection is used.
    `tcp flags & psh == psh update @open${n} { ${tuple} }`,
  ])
  sourceChains(plan, mark, to)
}

/** Containers of one family: TPROXY finds the socket of a segment by itself. */
function sourceChains(
  plan: CapturePlan,
  mark: number,
  to: { readonly word: Words; readonly chain: (name: string, lines: readonly string[]) => void },
): void {
  const { word, chain } = to
  const { family, n, ip, tuple, destination, loopback } = word
  const own = captureRules(plan, family).filter(({ hook }) => hook === 'prerouting')
  const sources = sourcesOf(plan, family)
  for (const { port } of sources) {
    const first = `source${n}_${port}_first`
    chain(`source${n}_${port}`, [
      `${SYN} goto ${first}`,
      `tcp flags & psh == psh ${tuple} @open${n} update @open${n} { ${tuple} }`,
      // What has been quiet for long may not be in the set any more: the socket knows better.
      `socket transparent 1 ${setMark(mark)} accept`,
      `${destination} @known${n} ${tuple} != @open${n} return`,
      `meta l4proto tcp ${RESET}`,
    ])
    chain(first, [
      `${destination} @instances${n} update @open${n} { ${tuple} }`,
      `meta l4proto tcp ${setMark(mark)} tproxy ${ip} to ${loopback}:${port} accept`,
      `meta l4proto tcp ${RESET}`,
    ])
  }
  const map = sources.map((source) => `${source.ip} : goto source${n}_${source.port}`)
  chain(`source${n}`, [
    ...own.flatMap((rule) => beforeCallers(rule, word, '')),
    ...(map.length === 0 ? [] : [`${ip} saddr vmap { ${map.join(', ')} }`]),
    `${ip} daddr ${virtualNetwork(plan, family)} counter name refused_virtual meta l4proto tcp ${RESET}`,
  ])
}

/** Containers of one family with their capture ports. */
function sourcesOf(plan: CapturePlan, family: Family): { ip: string; port: number }[] {
  return captureRules(plan, family).flatMap(({ matches, action }) => {
    const caller = matches.find((match) => match.kind === 'caller')
    if (action.kind !== 'divert' || caller?.selector.kind !== 'sourceAddress') return []
    return [{ ip: caller.selector.ip, port: action.port }]
  })
}

/** The rules that decide without asking who calls. */
function beforeCallers({ matches, action }: CaptureRule, word: Words, range: string): string[] {
  if (action.kind === 'divert') return []
  const [first] = matches
  if (matches.length === 1 && first?.kind === 'mesh') return []
  const { n, ip, destination, tuple } = word
  const texts = matches.map((match): string => {
    switch (match.kind) {
      case 'daemon':
        return `meta skuid ${match.uid}`
      case 'loopback':
        return `${ip} daddr ${loopbackRange[word.family]}`
      case 'ownPort':
        return `fib daddr type local tcp dport { ${match.ports.join(', ')} }`
      case 'permitted':
        return `${destination} @permitted${n}`
      case 'mesh':
        return `${ip} daddr ${range}`
      case 'caller':
        throw new MeshError('HM_CAPTURE_PLAN_INVALID', 'A caller is diverted or unknown')
    }
  })
  const text = texts.join(' ')
  if (action.kind === 'refuse')
    return [`${text} counter name refused_virtual meta l4proto tcp ${RESET}`]
  // It may have the numbers of a connection that was captured a moment ago.
  if (first?.kind === 'daemon') return [`${text} delete @open${n} { ${tuple} } return`]
  // Open until it ends, also when its service is no longer permitted.
  if (first?.kind === 'permitted')
    return [
      `${text} ${SYN} counter name permitted delete @open${n} { ${tuple} } update @spared${n} { ${tuple} } return`,
      `${text} return`,
    ]
  return [`${text} return`]
}

function isRefusal(
  what: 'virtual' | 'instance',
  matches: readonly CaptureMatch[],
  action: CaptureAction,
): boolean {
  const [match, ...others] = matches
  return (
    action.kind === 'refuse' && others.length === 0 && match?.kind === 'mesh' && match.what === what
  )
}

/** Callers by user, then everybody: who is in no cgroup of a workload. */
function callerLines(plan: CapturePlan): string[] {
  const users = plan.workloads.flatMap(({ selector, capturePort }) =>
    selector.kind === 'user' ? [`${Number(selector.user)} : goto caller_${capturePort}`] : [],
  )
  return [
    ...(users.length === 0 ? [] : [`meta skuid vmap { ${users.join(', ')} }`]),
    ...(plan.defaultCapturePort === undefined ? [] : [`goto caller_${plan.defaultCapturePort}`]),
  ]
}

function doorLines(port: number): string[] {
  return families.map((family) => {
    const { nfproto, ip, loopback } = words(family)
    return `meta nfproto ${nfproto} meta l4proto tcp tproxy ${ip} to ${loopback}:${port} accept`
  })
}

function familySets({ spareSeconds }: NftSettings): (family: Family) => string[] {
  return (family) => {
    const { n, type } = words(family)
    const tuples = `    type ${type} . inet_service . ${type} . inet_service\n    size ${MAX_OPEN}\n    flags dynamic,timeout\n`
    return [
      ...INSTANCE_SETS.map((name) => `  set ${name}${n} {\n    type ${type} . inet_service\n  }\n`),
      `  set open${n} {\n${tuples}    timeout 1h\n  }\n`,
      `  set inbound${n} {\n${tuples}    timeout 1d\n  }\n`,
      `  set spared${n} {\n${tuples}    timeout ${spareSeconds}s\n  }\n`,
    ]
  }
}

/**
 * Sets of instances: whose first segments are diverted, whose later segments may be those of captured connections,
 * whose connections are being listed, who may be reached without the mesh.
 */
const INSTANCE_SETS = ['instances', 'known', 'coming', 'permitted'] as const

/** Those of them that the guard has. */
export const GUARD_SETS = ['instances', 'known', 'permitted'] as const

/** How the cgroup of a caller is found: from the root down, by one map for each depth. */
interface CgroupTree {
  /** Depth of the deepest map; 0 when no workload is a cgroup. */
  readonly levels: number
  readonly sets: readonly string[]
  /** One for each depth and each workload that is the nearest one above it. */
  chains(unclassified: string): readonly { readonly name: string; readonly lines: string[] }[]
  /** What maps hold, by depth from 1 on; `divert` is what becomes of a workload. */
  elements(divert: (port: number) => string): readonly (readonly string[])[]
}

/** A set that is always empty: who is not in it has a cgroup of that depth. */
const NO_CGROUPS = 'no_cgroups'

/**
 * Each cgroup stands in one map once, so that nft looks it up once: whether it is a workload, has workloads below it,
 * or is neither. One that is in no map has come since, and may be a workload that restarts.
 */
function cgroupTree(plan: CapturePlan, { cgroups, cgroupPrefix }: NftSettings): CgroupTree {
  const ports = new Map(
    plan.workloads.flatMap(({ selector, capturePort }) =>
      selector.kind === 'cgroup' ? [[selector.path, capturePort]] : [],
    ),
  )
  const nearest = (path: string): number | undefined => {
    for (let at = path; at !== ''; at = at.slice(0, Math.max(0, at.lastIndexOf('/')))) {
      const port = ports.get(at)
      if (port !== undefined) return port
    }
    return undefined
  }
  const chainBelow = (path: string): string => {
    const port = nearest(path)
    return `below_${levelOf(path) + 1}${port === undefined ? '' : `_${port}`}`
  }
  const above = cgroups.flatMap(({ path, isAbove }) => (isAbove ? [path] : []))
  const levels = cgroups.length === 0 ? 0 : 1 + Math.max(0, ...above.map(levelOf))
  const chainsBelow = new Map(
    levels === 0
      ? []
      : ['', ...above].map((path) => [
          path === '' ? 'below_1' : chainBelow(path),
          { level: path === '' ? 1 : levelOf(path) + 1, port: nearest(path) },
        ]),
  )
  const depths = Array.from({ length: levels }, (_, index) => index + 1)
  return {
    levels,
    sets:
      levels === 0
        ? []
        : [
            `  set ${NO_CGROUPS} {\n    type cgroupsv2\n  }\n`,
            ...depths.map(
              (level) => `  map cgroups_${level} {\n    type cgroupsv2 : verdict\n  }\n`,
            ),
          ],
    chains: (unclassified) =>
      [...chainsBelow].map(([name, { level, port }]) => ({
        name,
        lines: [
          `socket cgroupv2 level ${level} vmap @cgroups_${level}`,
          // What a process has left to send when its cgroup has gone is no start.
          `socket cgroupv2 level ${level} != @${NO_CGROUPS} ${SYN} goto ${unclassified}`,
          `goto ${port === undefined ? 'others' : `caller_${port}`}`,
        ],
      })),
    elements: (divert) => {
      const verdicts = new Map([...ports].map(([path, port]) => [path, divert(port)]))
      for (const { path, isAbove } of cgroups) {
        const port = nearest(path)
        const verdict = port === undefined ? 'goto others' : divert(port)
        verdicts.set(path, isAbove ? `goto ${chainBelow(path)}` : verdict)
      }
      return depths.map((level) =>
        [...verdicts].flatMap(([path, verdict]) =>
          levelOf(path) === level ? [`"${cgroupPrefix}${path}" : ${verdict}`] : [],
        ),
      )
    },
  }
}

/** What the maps of cgroups hold: renewed when a unit has started. */
export function cgroupElements(plan: CapturePlan, settings: NftSettings): readonly NftElements[] {
  const tree = cgroupTree(plan, settings)
  return [CAPTURE_TABLE, GUARD_TABLE].flatMap((table) =>
    tree.elements(callerVerdict).map((elements, index) => ({
      table,
      kind: 'map' as const,
      name: `cgroups_${index + 1}`,
      elements,
    })),
  )
}

function callerVerdict(port: number): string {
  return `goto caller_${port}`
}

function levelOf(path: string): number {
  return path.split('/').length
}

/**
 * The guard: a table of its own that refuses whatever of a captured workload would reach a mesh address un-diverted.
 *
 *     output       after every filter of others; what has our mark has been diverted
 *     input        what containers have open
 *     forward      the same for containers
 *     postrouting  the last look: what is marked, or goes to a virtual address, leaves by loopback or not at all
 *
 * It keeps its own record of captured connections, so that it also knows them when the table that diverts is gone.
 */
export function renderGuardTable(
  plan: CapturePlan,
  settings: NftSettings,
  table = GUARD_TABLE,
  by: 'tproxy' | 'redirect' = 'tproxy',
): string {
  const { mark } = settings
  const chains: string[] = []
  const chain = (name: string, lines: readonly string[]): void => {
    chains.push(`  chain ${name} {\n${lines.map((line) => `    ${line}\n`).join('')}  }\n`)
  }
  const users = plan.workloads.flatMap(({ selector }) =>
    selector.kind === 'user' ? [Number(selector.user)] : [],
  )
  const refuse = `counter name refused meta l4proto tcp ${RESET}`
  chain('refuse', [refuse])
  const others = [
    ...(users.length === 0 ? [] : [`meta skuid { ${users.join(', ')} } ${refuse}`]),
    ...(plan.defaultCapturePort === undefined ? [] : [refuse]),
  ]
  const tree = cgroupTree(plan, settings)
  for (const { selector, capturePort } of plan.workloads)
    if (selector.kind === 'cgroup') chain(`caller_${capturePort}`, [refuse])
  // Who has just started may be a workload.
  for (const { name, lines } of tree.chains('refuse')) chain(name, lines)
  chain('workload', tree.levels === 0 ? others : ['goto below_1'])
  if (tree.levels > 0) chain('others', others)
  chain('virtual', [
    ...(coversBroadcast(virtualNetwork(plan, 'v4')) ? [`ip daddr ${BROADCAST} return`] : []),
    // Segments of open connections go to loopback by their route.
    `oif lo meta l4proto tcp tcp flags & (fin | syn | rst | ack) != syn return`,
    refuse,
    'counter name refused reject with icmpx port-unreachable',
  ])
  for (const family of families) {
    const { n, tuple, destination } = words(family)
    chain(`diverted${n}`, [
      `${SYN} update @open${n} { ${tuple} } return`,
      `tcp flags & rst == rst update @open${n} { ${tuple} timeout ${RST_SECONDS}s } return`,
      `tcp flags & fin == fin update @open${n} { ${tuple} timeout ${FIN_SECONDS}s } return`,
      // As in the table that diverts: a connection that is used is known for as long.
      `tcp flags & psh == psh update @open${n} { ${tuple} }`,
    ])
    chain(`known${n}`, [
      `${hasMark(mark)} goto diverted${n}`,
      `${SYN} goto first${n}`,
      `${tuple} @open${n} ${refuse}`,
    ])
    chain(`first${n}`, [
      `delete @open${n} { ${tuple} }`,
      `meta skuid ${plan.daemonUid} return`,
      ...captureRules(plan, family)
        .filter(({ hook, matches: [match] }) => hook === 'output' && match?.kind === 'ownPort')
        .flatMap((rule) => beforeCallers(rule, words(family), '')),
      `${destination} @permitted${n} return`,
      `${destination} @instances${n} goto workload`,
    ])
  }
  chain('output', [
    'type filter hook output priority filter + 50; policy accept;',
    ...(by === 'redirect' ? families.flatMap(redirectedLines) : []),
    ...families.flatMap((family) => {
      const { n, ip, destination } = words(family)
      return [
        `${destination} @known${n} goto known${n}`,
        `${ip} daddr ${virtualNetwork(plan, family)} ${lacksMark(mark)} goto virtual`,
      ]
    }),
  ])
  chain('forward', [
    'type filter hook forward priority filter + 50; policy accept;',
    ...families.flatMap((family) => {
      const { n, ip, destination } = words(family)
      const sources = sourcesOf(plan, family).map((source) => source.ip)
      const from = `${ip} saddr { ${sources.join(', ')} } ${destination} @instances${n}`
      return [
        `${ip} daddr ${virtualNetwork(plan, family)} ${refuse}`,
        `${ip} daddr ${virtualNetwork(plan, family)} counter name refused reject with icmpx port-unreachable`,
        ...(sources.length === 0
          ? []
          : [
              `${words(family).tuple} @open${n} ${refuse}`,
              ...(by === 'redirect' ? [`${from} ct status dnat ${refuse}`] : []),
              `${destination} @permitted${n} return`,
              // After REDIRECT it is tracking that tells what is captured: it knows what was open before, until it forgets.
              `${from} ${by === 'redirect' ? 'ct state != established' : SYN} ${refuse}`,
            ]),
      ]
    }),
  ])
  // What a container sends is diverted before it is forwarded, and comes in.
  const captured = families.flatMap((family) => {
    const { n, tuple, destination } = words(family)
    if (sourcesOf(plan, family).length === 0) return []
    return [
      `iif != lo ${hasMark(mark)} ${destination} @known${n} tcp flags & (syn | psh) != 0 update @open${n} { ${tuple} }`,
    ]
  })
  if (captured.length > 0)
    chain('input', ['type filter hook input priority filter; policy accept;', ...captured])
  chain('postrouting', [
    'type filter hook postrouting priority 300; policy accept;',
    'oif lo accept',
    `meta l4proto tcp ${hasMark(mark)} counter name refused drop`,
    ...families.flatMap((family) => {
      const { n, ip, tuple, destination } = words(family)
      const range = virtualNetwork(plan, family)
      const except = coversBroadcast(range) ? ` ip daddr != ${BROADCAST}` : ''
      return [
        `${ip} daddr ${range}${except} counter name refused drop`,
        // Others may have taken the mark after everything else, and sent it on its way anew.
        `${destination} @known${n} ${tuple} @open${n} counter name refused drop`,
      ]
    }),
  ])
  const sets = families.flatMap((family) => {
    const { n, type } = words(family)
    return [
      ...GUARD_SETS.map((name) => `  set ${name}${n} {\n    type ${type} . inet_service\n  }\n`),
      `  set open${n} {\n    type ${type} . inet_service . ${type} . inet_service\n    size ${MAX_OPEN}\n    flags dynamic,timeout\n    timeout 1d\n  }\n`,
    ]
  })
  const all = ['  counter refused {\n  }\n', ...sets, ...tree.sets, ...chains]
  return `table inet ${table} {\n${all.join('')}}\n`
}

/** What REDIRECT has diverted has another destination already: tracking knows where it went. */
function redirectedLines(family: Family): string[] {
  const { n, ip, nfproto } = words(family)
  const tuple = `${ip} saddr . tcp sport . ct original ${ip} daddr . ct original proto-dst`
  const redirected = `meta nfproto ${nfproto} ct status dnat ct direction original`
  return [
    `${redirected} ${SYN} update @open${n} { ${tuple} }`,
    `${redirected} tcp flags & psh == psh update @open${n} { ${tuple} }`,
    `${redirected} tcp flags & (fin | rst) != 0 update @open${n} { ${tuple} timeout ${FIN_SECONDS}s }`,
  ]
}

/** What of a table is there now that a new text must take away first. */
export interface PresentTable {
  readonly chains: readonly string[]
  readonly maps: readonly string[]
  readonly sets: readonly string[]
}

/**
 * The lines before a table's text that make it replace what is there, in one transaction, while sets keep what
 * packets put into them.
 */
export function renderReplacement(
  table: string,
  text: string,
  present: PresentTable | undefined,
): string {
  if (present === undefined) return text
  const unwanted = (kind: string, names: readonly string[]): string[] =>
    names
      .filter((name) => !text.includes(`  ${kind} ${name} {\n`))
      .map((name) => `delete ${kind} inet ${table} ${name}\n`)
  return [
    `flush table inet ${table}\n`,
    ...present.maps.map((name) => `flush map inet ${table} ${name}\n`),
    ...unwanted('chain', present.chains),
    ...unwanted('map', present.maps),
    ...unwanted('set', present.sets),
    text,
  ].join('')
}

/** Most elements in one line: nft reads lines whole. */
const ELEMENTS_A_LINE = 500

/** Makes sets hold exactly these elements. */
export function renderElements(sets: readonly NftElements[]): string {
  return sets
    .map(({ table, kind, name, elements }) =>
      [`flush ${kind} inet ${table} ${name}\n`, ...changeLines('add', table, name, elements)].join(
        '',
      ),
    )
    .join('')
}

/** Lines that add or delete elements of one set. */
export function changeLines(
  verb: 'add' | 'delete',
  table: string,
  name: string,
  elements: readonly string[],
): string[] {
  const lines: string[] = []
  for (let at = 0; at < elements.length; at += ELEMENTS_A_LINE)
    lines.push(
      `${verb} element inet ${table} ${name} { ${elements.slice(at, at + ELEMENTS_A_LINE).join(', ')} }\n`,
    )
  return lines
}

/** An address and port as an element. */
export function instanceElement(ip: string, port: number): string {
  return `${ip} . ${port}`
}

/** The capture port as a packet priority: its lower half is 16 bits, like a port. */
function classOf(port: number): string {
  return `1:${port.toString(16)}`
}

function hex(mark: number): string {
  return `0x${mark.toString(16).padStart(8, '0')}`
}

function setMark(mark: number): string {
  return `meta mark set meta mark | ${hex(mark)}`
}

function hasMark(mark: number): string {
  return `meta mark & ${hex(mark)} == ${hex(mark)}`
}

function lacksMark(mark: number): string {
  return `meta mark & ${hex(mark)} != ${hex(mark)}`
}
