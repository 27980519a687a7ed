/**
 * Writes the neutral rules of a plan in the syntax of `iptables-save`, for the backend that diverts by REDIRECT. Pure.
 *
 * All rules are in own chains (`HOSTMESH_*`); foreign chains contain only jumps to them. Each rule has one spelling,
 * the one that the kernel's tools print, so that checking whether it is present is a comparison (saved-rules.ts).
 *
 *     nat OUTPUT      HOSTMESH_OUTPUT: daemon, loopback and own ports return; mesh destinations
 *                       -> HOSTMESH_LOCAL: one REDIRECT per cgroup or user, then the default identity
 *     nat PREROUTING  HOSTMESH_PREROUTING: the same for containers -> HOSTMESH_SOURCE: by address
 *     filter          what nat has diverted goes to loopback here; what still goes to a mesh address was not: the guard
 *       OUTPUT          HOSTMESH_VIRTUAL, HOSTMESH_GUARD: refuse traffic of workloads; HOSTMESH_LISTENERS: diverted
 *                       traffic goes to the port of its present caller; HOSTMESH_FLUSHED: another program has emptied the sets
 *       INPUT           HOSTMESH_INPUT: capture ports belong to the daemon, whatever process listens there
 *       FORWARD         HOSTMESH_REJECT, HOSTMESH_FORWARD, HOSTMESH_STALLED: the guard of containers
 */
import {
  CHAIN_PREFIX,
  cgroupMatch,
  DIVERTED,
  FIRST_SEGMENT,
  inSet,
  LATER_SEGMENT,
  type Line,
  matchesOf,
  notIntact,
  ORPHAN,
  OWN_SOCKET,
  portGroups,
  REFUSE_CHAIN,
  RESET,
  setNames,
  tagged,
  UNITS_CHAIN,
  UNKNOWN_TO_TRACKING,
  UNREACHABLE,
  unspare,
} from './iptables-words.ts'
import {
  BROADCAST,
  type CaptureHook,
  type CapturePlan,
  type CaptureRule,
  captureRules,
  coversBroadcast,
  type Family,
  loopbackRange,
  virtualNetwork,
} from './rules.ts'
import type { KnownCgroup } from './workloads.ts'

/** Settings of the rules that are not part of the plan. */
export interface IptablesSettings {
  /** The cgroups above workloads, and all cgroups beside them. */
  readonly cgroups: readonly KnownCgroup[]
  /** Whether connections of a newly started process wait until the maintenance loop has identified it; else refused. */
  readonly waits: boolean
  /** Whether processes in no known cgroup at the root are refused, too: before the daemon starts units have none. */
  readonly refusesUnseen: boolean
  /** How long a connection is spared, in seconds. */
  readonly spareSeconds: number
  /** Whether segments extend that time. */
  readonly sparesWhileUsed: boolean
}

const noSettings: IptablesSettings = {
  cgroups: [],
  waits: false,
  refusesUnseen: false,
  spareSeconds: 0,
  sparesWhileUsed: false,
}

/** A rule of ours in a foreign chain. */
export interface Jump {
  readonly chain: string
  /** The rule as `iptables-save` prints it: `-A OUTPUT ... -j HOSTMESH_OUTPUT`. */
  readonly line: string
  /** 1 is the head of the chain. */
  readonly position: number
}

/** Our rules in one table. */
export interface TableRules {
  readonly table: 'filter' | 'nat'
  readonly jumps: readonly Jump[]
  /** Rules by own chain, in order; each a line `-A CHAIN ...`. */
  readonly chains: ReadonlyMap<string, readonly string[]>
}

const VIRTUAL = `${CHAIN_PREFIX}VIRTUAL`
const REJECT = `${CHAIN_PREFIX}REJECT`
const UNKNOWN = `${CHAIN_PREFIX}UNKNOWN`
const GUARD = `${CHAIN_PREFIX}GUARD`
const LISTENERS = `${CHAIN_PREFIX}LISTENERS`
const CALLERS = `${CHAIN_PREFIX}CALLERS`
const FLUSHED = `${CHAIN_PREFIX}FLUSHED`
const INPUT = `${CHAIN_PREFIX}INPUT`
const PORTS = `${CHAIN_PREFIX}PORTS`
const FORWARD = `${CHAIN_PREFIX}FORWARD`
const STALLED = `${CHAIN_PREFIX}STALLED`

/** Chains of a hook: the first has the rules that decide by destination, the second those that decide by caller. */
const hookChains: Record<CaptureHook, { readonly chain: string; readonly callers: string }> = {
  output: { chain: `${CHAIN_PREFIX}OUTPUT`, callers: `${CHAIN_PREFIX}LOCAL` },
  prerouting: { chain: `${CHAIN_PREFIX}PREROUTING`, callers: `${CHAIN_PREFIX}SOURCE` },
}

/** Input for both tables of a family. */
interface Given {
  readonly plan: CapturePlan
  readonly family: Family
  readonly rules: readonly CaptureRule[]
  readonly settings: IptablesSettings
}

/**
 * The tables of one family. The filter table comes first: a virtual address must be refused before
 * anything is diverted, so that traffic to it never leaves the host.
 * @throws MeshError HM_CAPTURE_PLAN_INVALID as {@link captureRules} does.
 */
export function iptablesRules(
  plan: CapturePlan,
  family: Family,
  settings: IptablesSettings = noSettings,
): readonly TableRules[] {
  const given = { plan, family, rules: captureRules(plan, family), settings }
  return [filterRules(given), natRules(given)]
}

/** The guard alone: nothing is diverted. */
export function iptablesGuard(
  plan: CapturePlan,
  family: Family,
  settings: IptablesSettings,
): TableRules {
  return filterRules({ plan, family, rules: captureRules(plan, family), settings })
}

function natRules({ plan, family, rules }: Given): TableRules {
  const virtual = `-d ${virtualNetwork(plan, family)} -p tcp`
  const chains = new Map<string, string[]>()
  const jumps: Jump[] = []
  for (const hook of ['output', 'prerouting'] as const) {
    const own = rules.filter((rule) => rule.hook === hook)
    if (hook === 'prerouting' && !own.some(({ action }) => action.kind === 'divert')) continue
    const head = hook.toUpperCase()
    const { chain, callers } = hookChains[hook]
    jumps.push({ chain: head, line: tagged(`-A ${head} -p tcp`, chain), position: 1 })
    const line = (match: string, target: string): string => `-A ${chain} ${tagged(match, target)}`
    chains.set(chain, [
      ...passedBy(own, family).map((match) => line(match, 'RETURN')),
      line(virtual, callers),
      // An earlier connection from this port may be spared; a set does not contain the destination port.
      ...(hook === 'output'
        ? [line(`-p tcp ${FIRST_SEGMENT} ${inSet('instances', family)}`, unspare(family))]
        : []),
      line(`-p tcp ${FIRST_SEGMENT} ${inSet('instances', family)}`, callers),
      // After tracking was emptied, nat sees later segments as new: diverted connections must be diverted again.
      ...(hook === 'output'
        ? [line(`-p tcp ${LATER_SEGMENT} ${inSet('spared', family)}`, 'RETURN')]
        : []),
      line(`-p tcp ${inSet('guarded', family)}`, callers),
    ])
    chains.set(
      callers,
      own.flatMap((rule) => divertLines(callers, rule, family)),
    )
  }
  return { table: 'nat', jumps, chains }
}

function divertLines(chain: string, rule: CaptureRule, family: Family): string[] {
  const diverted = divertOf(rule, family)
  if (diverted === undefined) return []
  return [`-A ${chain} ${tagged(diverted.match, `REDIRECT --to-ports ${diverted.port}`)}`]
}

/** The callers that a rule diverts, and the target; undefined when it diverts none. */
function divertOf(
  { matches, action }: CaptureRule,
  family: Family,
): { readonly match: string; readonly port: number } | undefined {
  if (action.kind !== 'divert') return undefined
  const [match = '-p tcp'] = matchesOf(
    matches.filter(({ kind }) => kind === 'caller'),
    family,
  )
  return { match, port: action.port }
}

/** All rules that refuse. Traffic that still goes to a mesh address here was not diverted by nat. */
function filterRules(given: Given): TableRules {
  const { plan, family } = given
  const virtual = `-d ${virtualNetwork(plan, family)}`
  const chains = new Map<string, readonly string[]>()
  const chain = (name: string, rules: readonly Line[]): void => {
    chains.set(
      name,
      rules.map(([match, target]) => `-A ${name} ${tagged(match, target)}`),
    )
  }
  chain(REFUSE_CHAIN, [
    ['-p tcp', RESET],
    ['', UNREACHABLE[family]],
  ])
  chain(REJECT, [
    [`-p tcp ${FIRST_SEGMENT}`, RESET],
    ['', REFUSE_CHAIN],
  ])
  const heads: [string, string, string][] = [
    ['OUTPUT', virtual, VIRTUAL],
    ['OUTPUT', `-p tcp ${inSet('guarded', family)}`, GUARD],
    ['OUTPUT', `-p tcp ${DIVERTED}`, LISTENERS],
    ['OUTPUT', `-p tcp ${UNKNOWN_TO_TRACKING} ${notIntact(family)}`, FLUSHED],
    ['INPUT', `-p tcp ${DIVERTED}`, INPUT],
    ['FORWARD', virtual, REJECT],
  ]
  const units = unitLines(given)
  if (units.length > 0) chain(UNITS_CHAIN, units)
  const asksUnits: readonly Line[] =
    units.length === 0 ? [] : [[`-p tcp ${FIRST_SEGMENT}`, UNITS_CHAIN]]
  const passes: readonly Line[] = coversBroadcast(virtualNetwork(plan, family))
    ? [[`-d ${BROADCAST}/32`, 'RETURN']]
    : []
  chain(VIRTUAL, [...passes, ...asksUnits, ['', REJECT]])
  const guarded = guardLines(given, asksUnits)
  chain(GUARD, guarded)
  if (guarded.some(([, target]) => target === UNKNOWN)) chain(UNKNOWN, [['-p tcp', RESET]])
  listenerChains(given, asksUnits, chain)
  chain(FLUSHED, [
    [`-d ${loopbackRange[family]}`, 'RETURN'],
    ...exempted(given),
    ...callersOf(given).map(({ match }) => [match, REFUSE_CHAIN] as const),
    ...(callersOf(given).length > 0 ? [[`-p tcp ${ORPHAN}`, REFUSE_CHAIN] as const] : []),
  ])
  const sources = sourcesOf(given)
  if (sources.length > 0) {
    heads.push(
      ['FORWARD', `-p tcp ${inSet('guarded', family)}`, FORWARD],
      ['FORWARD', `-p tcp ${UNKNOWN_TO_TRACKING} ${notIntact(family)}`, STALLED],
    )
    const refused = sources.map(({ match }) => [match, REFUSE_CHAIN] as const)
    chain(FORWARD, [
      // Tracking has a diverted connection, but no rule diverts any more: nat has been emptied.
      ...sources.map(({ match }) => [`${match} ${DIVERTED}`, REFUSE_CHAIN] as const),
      [`-p tcp ${inSet('permitted', family)}`, 'RETURN'],
      // Open since before capture: diverted packets do not come here, and forgotten connections are not ESTABLISHED.
      ['-p tcp -m conntrack --ctstate ESTABLISHED', 'RETURN'],
      ...refused,
    ])
    chain(STALLED, refused)
  }
  const positions = new Map<string, number>()
  const jumps = heads.map(([head, match, target]) => {
    const position = (positions.get(head) ?? 0) + 1
    positions.set(head, position)
    return { chain: head, line: tagged(`-A ${head} ${match}`, target), position }
  })
  return { table: 'filter', jumps, chains }
}

/** Traffic of this host's processes to instances, un-diverted. */
function guardLines(given: Given, asksUnits: readonly Line[]): readonly Line[] {
  const { family, rules, settings } = given
  const permitted = inSet('permitted', family)
  const spared = `-p tcp ${LATER_SEGMENT} ${inSet('spared', family)}`
  const seconds = Math.max(1, settings.spareSeconds)
  const spare = `SET --add-set ${setNames.spared[family]} src,src,dst --exist --timeout ${seconds}`
  const callers = callersOf(given)
  const isEverybody = callers.some(({ isEverybody: all }) => all)
  const refusesUnknown = rules.some(
    ({ matches: [match], action }) =>
      action.kind === 'refuse' && match?.kind === 'mesh' && match.what === 'instance',
  )
  return [
    ...exempted(given),
    // Stays permitted until the connection ends, also when its service is no longer permitted.
    [`-p tcp ${FIRST_SEGMENT} ${permitted}`, spare],
    [`-p tcp ${permitted}`, 'RETURN'],
    ...(settings.sparesWhileUsed ? [[spared, spare] as const] : []),
    [spared, 'RETURN'],
    ...callers.map(({ match }) => [match, REFUSE_CHAIN] as const),
    ...(isEverybody
      ? []
      : [
          ...asksUnits,
          // Without a tracked connection, such a segment may belong to any caller.
          ...(callers.length > 0
            ? [[`-p tcp ${ORPHAN} ${UNKNOWN_TO_TRACKING}`, REFUSE_CHAIN] as const]
            : []),
          // New connections only: those opened before the rules were applied continue.
          ...(refusesUnknown
            ? [[`-p tcp ${FIRST_SEGMENT} -m conntrack --ctstate NEW`, UNKNOWN] as const]
            : []),
        ]),
  ]
}

/**
 * Diverted traffic must go to its caller's port, and to a socket of the daemon: tracking may have diverted it like
 * another caller's earlier connection from the same port, and any process may listen at a port that the daemon left.
 */
function listenerChains(
  given: Given,
  asksUnits: readonly Line[],
  chain: (name: string, lines: readonly Line[]) => void,
): void {
  const { plan, family } = given
  const all = [
    ...plan.workloads.map(({ capturePort }) => capturePort),
    ...(plan.defaultCapturePort === undefined ? [] : [plan.defaultCapturePort]),
  ]
  const groups = portGroups([...new Set(all)].toSorted((a, b) => a - b))
  chain(
    LISTENERS,
    groups.flatMap((group) => byFirst(`-d ${loopbackRange[family]} -p tcp`, group, CALLERS)),
  )
  chain(CALLERS, [
    ...asksUnits,
    ...callersOf(given).flatMap(({ match, port }): Line[] => [
      // Filters of others would see it leave by a real interface.
      [`${match} -m tcp --dport ${port}`, 'ACCEPT'],
      [match, REFUSE_CHAIN],
    ]),
    ['-p tcp', REFUSE_CHAIN],
  ])
  chain(
    INPUT,
    groups.flatMap((group) => byFirst('-p tcp', group, PORTS)),
  )
  chain(PORTS, [
    [`-i lo -p tcp ${OWN_SOCKET}`, 'ACCEPT'],
    ...sourcesOf(given).map(
      ({ match, port }): Line => [`${match} -m tcp --dport ${port} ${OWN_SOCKET}`, 'ACCEPT'],
    ),
    ['-p tcp', REFUSE_CHAIN],
  ])
}

/** Rules decide at the first segment; later segments pass, even where foreign filters track no connections. */
function byFirst(match: string, ports: string, target: string): readonly Line[] {
  return [
    [`${match} ${FIRST_SEGMENT} ${ports}`, target],
    [`${match} ${ports}`, 'ACCEPT'],
  ]
}

/**
 * Newly started processes: in no known cgroup. A cgroup match includes everything below a path, so known cgroups return
 * before the rule for the folder that contains them.
 */
function unitLines({ plan, settings }: Given): readonly Line[] {
  const { cgroups, waits, refusesUnseen } = settings
  const paths = plan.workloads.flatMap(({ selector }) =>
    selector.kind === 'cgroup' ? [selector.path] : [],
  )
  const depth = (path: string): number => path.split('/').length
  const above = cgroups
    .flatMap(({ path, isAbove }) => (isAbove && !paths.includes(path) ? [path] : []))
    .toSorted((a, b) => depth(b) - depth(a))
  if (above.length === 0 && !refusesUnseen) return []
  // Cgroups that no later rule includes need no rule of their own.
  const folders = new Set(refusesUnseen ? ['', ...above] : above)
  const known = cgroups.flatMap(({ path, isAbove }) =>
    !isAbove && folders.has(path.slice(0, Math.max(0, path.lastIndexOf('/')))) ? [path] : [],
  )
  return [
    ...[...paths, ...known].map((path): Line => [cgroupMatch(path), 'RETURN']),
    ...above.map((path): Line => [cgroupMatch(path), waits ? 'DROP' : REFUSE_CHAIN]),
    ...(refusesUnseen ? [['-p tcp', REFUSE_CHAIN] as const] : []),
  ]
}

/** Connections that are no calls of workloads: those of the daemon, and those to a port of the daemon on this host. */
function exempted({ rules, family }: Given): readonly Line[] {
  const matches = rules
    .filter(({ hook, action }) => hook === 'output' && action.kind === 'pass')
    .flatMap((rule) => rule.matches)
    .filter(({ kind }) => kind === 'daemon' || kind === 'ownPort')
  return matchesOf(matches, family).map((match) => [match, 'RETURN'])
}

/** Local callers in matching order, the match for all callers last. */
function callersOf({ rules, family }: Given): readonly {
  readonly match: string
  readonly port: number
  readonly isEverybody: boolean
}[] {
  return rules.flatMap((rule) => {
    const diverted = rule.hook === 'output' ? divertOf(rule, family) : undefined
    if (diverted === undefined) return []
    return [{ ...diverted, isEverybody: !rule.matches.some(({ kind }) => kind === 'caller') }]
  })
}

/** Containers with their capture ports. */
function sourcesOf({
  rules,
  family,
}: Given): readonly { readonly match: string; readonly port: number }[] {
  return rules.flatMap((rule) => {
    const diverted = rule.hook === 'prerouting' ? divertOf(rule, family) : undefined
    return diverted === undefined ? [] : [diverted]
  })
}

function passedBy(rules: readonly CaptureRule[], family: Family): string[] {
  return rules
    .filter(({ action }) => action.kind === 'pass')
    .flatMap(({ matches }) => matchesOf(matches, family))
}
