/**
 * Renders the neutral rules of a plan as one native nftables table, for the backend that diverts by TPROXY without
 * connection tracking. Pure.
 *
 *     output      (route)   SYN: the caller is determined once; mark: to loopback, priority: to which capture port
 *                           later segments to an instance: marked when the SYN put their four numbers into `open`
 *     prerouting            SYN with our mark: TPROXY to the capture port; later ones: the daemon's socket or a reset
 *                           containers: by source address, straight to TPROXY
 *
 * Every packet of the host passes every base chain, and passing one costs as much as several of its rules. So there are
 * few base chains, and the rules that decide most packets come first.
 *
 * A socket that its process has closed has no owner, so later segments are not judged by their owner when the set has
 * them. The mark uses bits that nothing else uses; the packet priority carries the port over loopback, where no queue
 * uses it. Sets `open`, `inbound` and `spared` are filled by packets and survive a replacement (nft-elements.ts).
 */
import { MeshError } from '../../lib/errors.ts'
import { cgroupTree } from './nft-cgroups.ts'
import {
  type AddChain,
  CAPTURE_TABLE,
  chainText,
  classOf,
  FIN_SECONDS,
  hasMark,
  hex,
  MAX_OPEN,
  type NftSettings,
  RESET,
  RST_SECONDS,
  SYN,
  setMark,
  type Words,
  words,
} from './nft-words.ts'
import {
  type CaptureAction,
  type CaptureMatch,
  type CapturePlan,
  type CaptureRule,
  captureRules,
  type Family,
  families,
  loopbackRange,
  virtualNetwork,
} from './rules.ts'

/** The table that diverts, without the elements of its sets. */
export function renderCaptureTable(
  plan: CapturePlan,
  settings: NftSettings,
  table = CAPTURE_TABLE,
): string {
  const { mark } = settings
  const chains: string[] = []
  const chain: AddChain = (name, lines) => void chains.push(chainText(name, lines))
  const diverted = plan.workloads.filter(({ selector }) => selector.kind !== 'sourceAddress')
  const localPorts = diverted.map(({ capturePort }) => capturePort)
  if (plan.defaultCapturePort !== undefined) localPorts.push(plan.defaultCapturePort)
  for (const port of localPorts)
    chain(`caller_${port}`, [`meta priority set ${classOf(port)}`, setMark(mark)])
  const tree = cgroupTree(plan, settings)
  for (const { name, lines } of tree.chains('unclassified')) chain(name, lines)
  chain('callers', tree.levels === 0 ? callerLines(plan) : ['goto below_1'])
  if (tree.levels > 0) chain('others', callerLines(plan))
  // Dropped if a maintenance loop will identify the process soon (the kernel repeats the segment in a second); else reset.
  chain('unclassified', [
    'counter name waited meta l4proto vmap @waiting',
    `meta l4proto tcp ${RESET}`,
  ])
  for (const family of families) familyChains(plan, settings, { word: words(family), chain })
  // A process may set marks of its own: our mark is set only here.
  const foreignMark = `meta mark & ${hex(mark)} != 0 meta mark set meta mark & ${hex(~mark >>> 0)}`
  chain('first', [foreignMark, 'meta nfproto ipv4 goto first4', 'goto first6'])
  const range6 = virtualNetwork(plan, 'v6')
  chain('output', [
    // After the mangle chains of others, so that none of them restores another mark over ours.
    'type route hook output priority mangle + 10; policy accept;',
    `${SYN} goto first`,
    // The daemon's answers have the mark of the caller where net.ipv4.tcp_fwmark_accept is set.
    foreignMark,
    'ip daddr . tcp dport @known4 goto later4',
    // The kernel delivers packets that an IPv4 route sends to loopback, but not those of an IPv6 route.
    `ip6 daddr ${range6} meta l4proto tcp ${setMark(mark)} return`,
    'ip6 daddr . tcp dport @known6 goto later6',
  ])
  for (const port of localPorts) chain(`listener_${port}`, listenerLines(port))
  const listeners = localPorts.map((port) => `${classOf(port)} : jump listener_${port}`)
  chain('listeners', [
    ...(listeners.length === 0 ? [] : [`meta priority vmap { ${listeners.join(', ')} }`]),
    // No listener at that port: the daemon does not run.
    `meta l4proto tcp ${RESET}`,
  ])
  // The kernel itself finds a wildcard listener for a segment that ends a handshake (SYN cookies), and its own reset
  // cannot be sent from an address that is not one of this host.
  chain('later', [
    'socket transparent 1 accept',
    // No socket waits for it: the daemon does not run, or has ended the connection.
    `meta l4proto tcp ${RESET}`,
  ])
  chain('captured', [`${SYN} goto listeners`, 'goto later'])
  chain('prerouting', preroutingLines(plan, mark))
  const sets = [...families.flatMap(familySets(settings)), ...tree.sets, WAITING]
  const counters = COUNTERS.map((name) => `  counter ${name} {\n  }\n`)
  return `table inet ${table} {\n${counters.join('')}${sets.join('')}${chains.join('')}}\n`
}

/**
 * Counters of connections: refused at virtual and instance addresses, permitted, refused because sets were full,
 * delayed.
 */
const COUNTERS = ['refused_virtual', 'refused_instance', 'permitted', 'full', 'waited'] as const

/** Contains {@link WAITING_ELEMENT} while a maintenance loop watches for units that start. */
const WAITING = '  map waiting {\n    type inet_proto : verdict\n  }\n'
export const WAITING_ELEMENT = 'tcp : drop'

/** Packets that were sent to loopback, then those of containers. */
function preroutingLines(plan: CapturePlan, mark: number): string[] {
  return [
    // After firewalld's reverse-path rule at 10, which drops IPv6 segments that already have a socket.
    'type filter hook prerouting priority 20; policy accept;',
    `iif lo ${hasMark(mark)} meta l4proto tcp goto captured`,
    // Packets to a virtual address without mark (lost, or never needed) must not reach a listener of another process.
    ...families.map(
      (family) =>
        `iif lo ${words(family).ip} daddr ${virtualNetwork(plan, family)} meta l4proto tcp goto later`,
    ),
    'iif lo return',
    // Answers to a caller that dials from an instance's address and port are not calls of a workload.
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
  ]
}

/** Chains of one family: those of local callers, then those of containers. */
function familyChains(
  plan: CapturePlan,
  settings: NftSettings,
  to: { readonly word: Words; readonly chain: AddChain },
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
    // With a default identity every caller has been diverted already.
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
    // From here on a segment is judged like a first one, which only spared or forgotten connections need.
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
    // The last segment of an application's write has PSH: an entry stays while its connection is used.
    `tcp flags & psh == psh update @open${n} { ${tuple} }`,
  ])
  sourceChains(plan, mark, to)
}

/** Chains for containers of one family: TPROXY finds the socket of a segment by itself. */
function sourceChains(
  plan: CapturePlan,
  mark: number,
  to: { readonly word: Words; readonly chain: AddChain },
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
      // An entry of a quiet connection may have expired: the socket is authoritative.
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
export function sourcesOf(plan: CapturePlan, family: Family): { ip: string; port: number }[] {
  return captureRules(plan, family).flatMap(({ matches, action }) => {
    const caller = matches.find((match) => match.kind === 'caller')
    if (action.kind !== 'divert' || caller?.selector.kind !== 'sourceAddress') return []
    return [{ ip: caller.selector.ip, port: action.port }]
  })
}

/** The rules that decide without the caller. */
export function beforeCallers(
  { matches, action }: CaptureRule,
  word: Words,
  range: string,
): string[] {
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
  // The daemon's connection may have the addresses and ports of one that was captured a moment ago.
  if (first?.kind === 'daemon') return [`${text} delete @open${n} { ${tuple} } return`]
  // Stays permitted until the connection ends, also when its service is no longer permitted.
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

/** Callers by user, then all others: those in no cgroup of a workload. */
function callerLines(plan: CapturePlan): string[] {
  const users = plan.workloads.flatMap(({ selector, capturePort }) =>
    selector.kind === 'user' ? [`${Number(selector.user)} : goto caller_${capturePort}`] : [],
  )
  return [
    ...(users.length === 0 ? [] : [`meta skuid vmap { ${users.join(', ')} }`]),
    ...(plan.defaultCapturePort === undefined ? [] : [`goto caller_${plan.defaultCapturePort}`]),
  ]
}

function listenerLines(port: number): string[] {
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
 * Sets of instances: first segments to `instances` are diverted, later segments to `known` may be of captured
 * connections, connections to `coming` are being listed, and `permitted` may be reached without the mesh.
 */
const INSTANCE_SETS = ['instances', 'known', 'coming', 'permitted'] as const
