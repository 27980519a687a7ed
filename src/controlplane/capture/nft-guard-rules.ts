/**
 * The guard as a native nftables table. Pure.
 */
import type { BackendTraits } from '../../model/capture-backend.ts'
import { cgroupTree } from './nft-cgroups.ts'
import { beforeCallers, sourcesOf } from './nft-rules.ts'
import {
  type AddChain,
  chainText,
  FIN_SECONDS,
  GUARD_SETS,
  GUARD_TABLE,
  hasMark,
  lacksMark,
  MAX_OPEN,
  type NftSettings,
  RESET,
  RST_SECONDS,
  SYN,
  words,
} from './nft-words.ts'
import {
  BROADCAST,
  type CapturePlan,
  captureRules,
  coversBroadcast,
  type Family,
  families,
  virtualNetwork,
} from './rules.ts'

const REFUSE = `counter name refused meta l4proto tcp ${RESET}`

/**
 * The guard: a separate table that refuses traffic of captured workloads that would reach a mesh address un-diverted.
 *
 *     output       after all foreign filters; packets with our mark have been diverted
 *     input        open connections of containers
 *     forward      the same for containers
 *     postrouting  last check: marked packets, and packets to a virtual address, leave by loopback or are dropped
 *
 * It has its own record of captured connections, which remains when the table that diverts is gone.
 */
export function renderGuardTable(
  plan: CapturePlan,
  settings: NftSettings,
  table = GUARD_TABLE,
  by: BackendTraits['divertsBy'] = 'tproxy',
): string {
  const { mark } = settings
  const chains: string[] = []
  const chain: AddChain = (name, lines) => void chains.push(chainText(name, lines))
  const users = plan.workloads.flatMap(({ selector }) =>
    selector.kind === 'user' ? [Number(selector.user)] : [],
  )
  chain('refuse', [REFUSE])
  const others = [
    ...(users.length === 0 ? [] : [`meta skuid { ${users.join(', ')} } ${REFUSE}`]),
    ...(plan.defaultCapturePort === undefined ? [] : [REFUSE]),
  ]
  const tree = cgroupTree(plan, settings)
  for (const { selector, capturePort } of plan.workloads)
    if (selector.kind === 'cgroup') chain(`caller_${capturePort}`, [REFUSE])
  // A newly started process may be a workload.
  for (const { name, lines } of tree.chains('refuse')) chain(name, lines)
  chain('workload', tree.levels === 0 ? others : ['goto below_1'])
  if (tree.levels > 0) chain('others', others)
  chain('virtual', [
    ...(coversBroadcast(virtualNetwork(plan, 'v4')) ? [`ip daddr ${BROADCAST} return`] : []),
    // Segments of open connections go to loopback by their route.
    `oif lo meta l4proto tcp tcp flags & (fin | syn | rst | ack) != syn return`,
    REFUSE,
    'counter name refused reject with icmpx port-unreachable',
  ])
  for (const family of families) recordChains(plan, family, mark, chain)
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
    ...families.flatMap((family) => forwardLines(plan, family, by)),
  ])
  // Packets of a container are diverted before they are forwarded, and go to input.
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
    ...families.flatMap((family) => lastLines(plan, family)),
  ])
  const all = [
    '  counter refused {\n  }\n',
    ...families.flatMap(familySets),
    ...tree.sets,
    ...chains,
  ]
  return `table inet ${table} {\n${all.join('')}}\n`
}

/** Chains that keep the record of captured connections of one family, and refuse them when they are not diverted. */
function recordChains(plan: CapturePlan, family: Family, mark: number, chain: AddChain): void {
  const { n, tuple, destination } = words(family)
  chain(`diverted${n}`, [
    `${SYN} update @open${n} { ${tuple} } return`,
    `tcp flags & rst == rst update @open${n} { ${tuple} timeout ${RST_SECONDS}s } return`,
    `tcp flags & fin == fin update @open${n} { ${tuple} timeout ${FIN_SECONDS}s } return`,
    // As in the table that diverts: a connection stays known while it is used.
    `tcp flags & psh == psh update @open${n} { ${tuple} }`,
  ])
  chain(`known${n}`, [
    `${hasMark(mark)} goto diverted${n}`,
    `${SYN} goto first${n}`,
    `${tuple} @open${n} ${REFUSE}`,
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

/** Traffic of containers, un-diverted. */
function forwardLines(plan: CapturePlan, family: Family, by: BackendTraits['divertsBy']): string[] {
  const { n, ip, destination } = words(family)
  const sources = sourcesOf(plan, family).map((source) => source.ip)
  const from = `${ip} saddr { ${sources.join(', ')} } ${destination} @instances${n}`
  return [
    `${ip} daddr ${virtualNetwork(plan, family)} ${REFUSE}`,
    `${ip} daddr ${virtualNetwork(plan, family)} counter name refused reject with icmpx port-unreachable`,
    ...(sources.length === 0
      ? []
      : [
          `${words(family).tuple} @open${n} ${REFUSE}`,
          ...(by === 'redirect' ? [`${from} ct status dnat ${REFUSE}`] : []),
          `${destination} @permitted${n} return`,
          // After REDIRECT, tracking identifies captured connections, earlier ones included, until it forgets.
          `${from} ${by === 'redirect' ? 'ct state != established' : SYN} ${REFUSE}`,
        ]),
  ]
}

/** Packets that leave by another interface than loopback. */
function lastLines(plan: CapturePlan, family: Family): string[] {
  const { n, ip, tuple, destination } = words(family)
  const range = virtualNetwork(plan, family)
  const except = coversBroadcast(range) ? ` ip daddr != ${BROADCAST}` : ''
  return [
    `${ip} daddr ${range}${except} counter name refused drop`,
    // Foreign rules may have removed the mark after all other checks and rerouted the packet.
    `${destination} @known${n} ${tuple} @open${n} counter name refused drop`,
  ]
}

function familySets(family: Family): string[] {
  const { n, type } = words(family)
  return [
    ...GUARD_SETS.map((name) => `  set ${name}${n} {\n    type ${type} . inet_service\n  }\n`),
    `  set open${n} {\n    type ${type} . inet_service . ${type} . inet_service\n    size ${MAX_OPEN}\n    flags dynamic,timeout\n    timeout 1d\n  }\n`,
  ]
}

/** A packet diverted by REDIRECT has another destination already: tracking has the original one. */
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
