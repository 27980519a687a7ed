/**
 * Capture by a native nftables table and TPROXY, with a guard in a table of its own.
 *
 * One transaction changes both tables and both families. Elements that packets added to sets are kept. The address of a
 * new instance is announced first (`coming`), so that connections that are open to it are listed without a gap; the
 * address of a removed instance stays `known` until no connection to it is open.
 */
import { describeError } from '../../lib/errors.ts'
import { ownAddresses } from '../../lib/own-addresses.ts'
import { recordOf } from '../../lib/record.ts'
import { canonicalIp, formatAddress, isIpv6 } from '../../model/address.ts'
import { cidrContains, parseCidr } from '../../model/cidr.ts'
import { Problem } from '../../model/problem.ts'
import type {
  BackendSettings,
  BackendState,
  CaptureBackend,
  CaptureCounts,
  MeshAddresses,
  ShownRule,
} from './backend.ts'
import type { RunCommand } from './command.ts'
import { clearForeignFilters, foreignFilterDrift, passForeignFilters } from './foreign-filters.ts'
import { marksInIptables, marksInRuleset } from './foreign-marks.ts'
import { clearNativeFilters, markedWords, passNativeFilters } from './native-filters.ts'
import {
  applyNft,
  hasElement,
  namesIn,
  readCounters,
  readRuleset,
  readSets,
  readTable,
  type SetName,
  setKey,
  tableIn,
} from './nft.ts'
import { cgroupElements } from './nft-cgroups.ts'
import {
  changeLines,
  instanceElement,
  type NftElements,
  type PresentTable,
  renderElements,
  renderReplacement,
} from './nft-elements.ts'
import { renderGuardTable } from './nft-guard-rules.ts'
import { cgroupPrefix } from './nft-obstacle.ts'
import { renderCaptureTable, WAITING_ELEMENT } from './nft-rules.ts'
import { CAPTURE_TABLE, GUARD_SETS, GUARD_TABLE, type NftSettings } from './nft-words.ts'
import {
  clearRouting,
  ensureRouting,
  loopbackFamilies,
  routesBackByMark,
  routingCommands,
  routingDrift,
  type WantedRouting,
} from './routing.ts'
import { type CapturePlan, type Family, families, virtualNetwork } from './rules.ts'
import { isSameSet, membersByFamily, type SetMembers } from './set-members.ts'
import {
  abandoned,
  acceptedAt,
  destroySockets,
  listSockets,
  type SocketEnds,
  uncaptured,
} from './sockets.ts'
import type { ResolvedPlan } from './workloads.ts'

/** Suffix of the names of sets, by family. */
export const NUMBERS: Record<Family, '4' | '6'> = { v4: '4', v6: '6' }

/** Sets in both tables whose elements the daemon decides. */
const STATIC_SETS = families.flatMap((family) => [
  ...GUARD_SETS.map((name) => ({ table: CAPTURE_TABLE, name: `${name}${NUMBERS[family]}` })),
  ...GUARD_SETS.map((name) => ({ table: GUARD_TABLE, name: `${name}${NUMBERS[family]}` })),
])

/** The members of one family's sets. */
interface Members {
  readonly instances: SetMembers
  readonly permitted: SetMembers
}

/** The nftables backend. */
export class NftBackend implements CaptureBackend {
  readonly kind = 'nftables'
  readonly #run: RunCommand
  readonly #settings: BackendSettings
  #wanted: Record<Family, Members> | undefined
  /** nft's listing of both tables when they were as planned. */
  #listing: string | undefined
  /** The content of our sets, as far as this process knows. */
  #held: ReadonlyMap<string, SetMembers> | undefined
  #problems: readonly Problem[] = []
  /** Containers whose return route is looked up by the mark. */
  #returnRoutes: readonly string[] = []
  /** Whether a maintenance loop renews the rules when a unit starts. */
  #isKept = false
  /** Filters of other programs that drop diverted traffic. */
  #blocking: readonly Problem[] = []

  constructor(run: RunCommand, settings: BackendSettings) {
    this.#run = run
    this.#settings = settings
  }

  async apply(resolved: ResolvedPlan): Promise<void> {
    const before = await presentTable(this.#run, CAPTURE_TABLE)
    this.#held = undefined
    try {
      this.#problems = await this.#ensureRouting(resolved.plan)
      await passForeignFilters(this.#run, loopbackFamilies(), this.#settings.mark)
      this.#blocking = await this.#foreignProblems()
      const guard = await presentTable(this.#run, GUARD_TABLE)
      const settings = this.#nftSettings(resolved)
      await applyNft(
        this.#run,
        [
          renderReplacement(GUARD_TABLE, renderGuardTable(resolved.plan, settings), guard),
          renderReplacement(CAPTURE_TABLE, renderCaptureTable(resolved.plan, settings), before),
          renderElements([...cgroupElements(resolved.plan, settings), this.#waiting()]),
        ].join(''),
      )
      await this.#syncSets()
      // A program that removed rules may also have removed the elements that packets added to sets.
      await this.#recall(resolved.plan)
      this.#listing = bothTables(await readRuleset(this.#run))
    } catch (error) {
      this.#listing = undefined
      if (before === undefined) await this.#remove().catch(() => undefined)
      throw error
    }
  }

  async renew(resolved: ResolvedPlan): Promise<void> {
    await applyNft(
      this.#run,
      renderElements(cgroupElements(resolved.plan, this.#nftSettings(resolved))),
    )
  }

  async setMaintained(isKept: boolean): Promise<void> {
    if (this.#isKept === isKept) return
    this.#isKept = isKept
    if (this.#listing !== undefined) await applyNft(this.#run, renderElements([this.#waiting()]))
  }

  async setAddresses(addresses: MeshAddresses): Promise<void> {
    this.#wanted = membersOf(addresses)
    if (this.#listing !== undefined) await this.#syncSets()
  }

  async drift(resolved: ResolvedPlan): Promise<string | undefined> {
    const [ruleset, routing] = await Promise.all([
      readRuleset(this.#run),
      this.#routingDrift(resolved.plan),
    ])
    const now = bothTables(ruleset)
    if (now === undefined) return 'the tables are missing'
    const wanted = this.#listing ?? (await this.#twinOf(resolved))
    const difference = firstDifferentLine(wanted, now) ?? routing
    if (difference !== undefined) return difference
    // A process that only reports changes nothing.
    if (this.#listing !== undefined) this.#blocking = await this.#foreignProblems(ruleset)
    return (
      (await this.#elementDrift(resolved)) ??
      (await foreignFilterDrift(this.#run, loopbackFamilies())) ??
      (await this.#removeExpired())
    )
  }

  async show(): Promise<BackendState> {
    const ruleset = await readRuleset(this.#run)
    const rules = [CAPTURE_TABLE, GUARD_TABLE].flatMap((table) =>
      rulesIn(table, tableIn(ruleset, table) ?? ''),
    )
    const held = await this.#readStatic()
    const count = (family: Family): number | undefined =>
      held.get(setKey({ table: CAPTURE_TABLE, name: `instances${NUMBERS[family]}` }))?.size
    const instances = { v4: count('v4'), v6: count('v6') }
    const spared = await this.#readSpared()
    const counts = await this.#counts(spared.length)
    return { rules, instances, counts, spared: spared.map(connectionText) }
  }

  async clear(notes: string[]): Promise<boolean> {
    this.#listing = undefined
    const guard = await readTable(this.#run, GUARD_TABLE)
    const capture = await readTable(this.#run, CAPTURE_TABLE)
    await this.#endCaptured(guard, capture, notes)
    const hadLines = [await clearForeignFilters(this.#run), await this.#clearNativeFilters()]
    return (await this.#removeTables()) || hadLines.includes(true)
  }

  problems(): readonly Problem[] {
    return [...this.#problems, ...this.#blocking, ...this.#unreachable()]
  }

  /** Containers with instances that the table of marked packets does not route to the daemon. */
  #unreachable(): Problem[] {
    const elements = families.flatMap((family) => [...(this.#wanted?.[family].instances ?? [])])
    const ips = new Set(elements.map((element) => element.split(' . ')[0] ?? ''))
    return [...this.#returnRoutes]
      .filter((ip) => ips.has(ip))
      .map(
        (ip) =>
          new Problem(
            'HM_CAPTURE_MARK_CLASH',
            `Captured processes of this host reach no instance at ${ip}, an address of a container that is captured itself: this kernel looks for ways back by the mark (net.ipv4.conf.*.src_valid_mark is set)`,
            { subject: ip },
          ),
      )
  }

  /** Captured connections would continue in plaintext: resets them, and destroys their sockets. */
  async #endCaptured(
    guard: string | undefined,
    capture: string | undefined,
    notes: string[],
  ): Promise<void> {
    const mark = /meta mark & (0x[0-9a-f]+)/.exec(guard ?? '')?.[1]
    if (mark !== undefined)
      await applyNft(
        this.#run,
        `insert rule inet ${GUARD_TABLE} output meta l4proto tcp meta mark & ${mark} == ${mark} reject with tcp reset\n`,
      )
    const tables = [
      ...(guard === undefined ? [] : [GUARD_TABLE]),
      ...(capture === undefined ? [] : [CAPTURE_TABLE]),
    ]
    if (tables.length === 0) return
    const inTables = (name: string): SetName[] =>
      tables.flatMap((table) => inBothFamilies(name).map((set) => ({ table, name: set })))
    try {
      const known = new Set([...(await readSets(this.#run, inTables('known'))).values()].flat())
      const sockets = await listSockets(this.#run)
      const candidates = sockets.filter(({ peer }) => known.has(peer))
      if (candidates.length === 0) return
      const open = new Set([...(await readSets(this.#run, inTables('open'))).values()].flat())
      const captured = candidates
        .map(({ local, peer }) => `${local} . ${peer}`)
        .filter((tuple) => open.has(tuple))
      const problem = await destroySockets(this.#run, captured)
      if (problem !== undefined) notes.push(problem)
    } catch (error) {
      notes.push(`Open captured connections could not be ended: ${describeError(error)}`)
    }
  }

  async #remove(): Promise<void> {
    await clearForeignFilters(this.#run)
    await this.#clearNativeFilters()
    await this.#removeTables()
    await clearRouting(this.#run)
  }

  #clearNativeFilters(): Promise<boolean> {
    return clearNativeFilters(this.#run, markedWords(this.#settings.mark))
  }

  async #removeTables(): Promise<boolean> {
    let removed = false
    for (const table of [CAPTURE_TABLE, GUARD_TABLE]) {
      if ((await readTable(this.#run, table)) === undefined) continue
      await applyNft(this.#run, `delete table inet ${table}\n`)
      removed = true
    }
    return removed
  }

  #waiting(): NftElements {
    const elements = this.#isKept ? [WAITING_ELEMENT] : []
    return { table: CAPTURE_TABLE, kind: 'map', name: 'waiting', elements }
  }

  #nftSettings(resolved: ResolvedPlan): NftSettings {
    return nftSettingsOf(resolved, this.#settings)
  }

  /** nft's listing of the planned tables, obtained by creating dormant tables with the same text. */
  async #twinOf(resolved: ResolvedPlan): Promise<string> {
    const settings = this.#nftSettings(resolved)
    const names = [`${CAPTURE_TABLE}_twin`, `${GUARD_TABLE}_twin`] as const
    const dormant = (text: string): string => text.replace('{\n', '{\n  flags dormant\n')
    const gone = names.map((name) => `add table inet ${name}\ndelete table inet ${name}\n`).join('')
    try {
      await applyNft(
        this.#run,
        gone +
          dormant(renderCaptureTable(resolved.plan, settings, names[0])) +
          dormant(renderGuardTable(resolved.plan, settings, names[1])),
      )
      const ruleset = await readRuleset(this.#run)
      return names
        .map((name) => tableIn(ruleset, name) ?? '')
        .join('')
        .replaceAll('_twin {', ' {')
        .replaceAll('\tflags dormant\n', '')
        .replaceAll('{\n\n', '{\n')
    } finally {
      await applyNft(this.#run, gone)
    }
  }

  async #elementDrift(resolved: ResolvedPlan): Promise<string | undefined> {
    for (const path of resolved.unitIds.keys()) {
      const difference = await this.#unitDrift(resolved, path)
      if (difference !== undefined) return difference
    }
    const present = await this.#readStatic()
    this.#held = present
    for (const family of families) {
      const n = NUMBERS[family]
      const of = (name: string): SetMembers =>
        present.get(`${GUARD_TABLE} ${name}${n}`) ?? new Set()
      // A process other than the daemon does not know the addresses; but both tables must be equal.
      const { instances, permitted } = this.#wanted?.[family] ?? {
        instances: of('instances'),
        permitted: of('permitted'),
      }
      for (const table of [CAPTURE_TABLE, GUARD_TABLE]) {
        const known = present.get(`${table} known${n}`) ?? new Set()
        const isHeld =
          isSameSet(present.get(`${table} instances${n}`), instances) &&
          isSameSet(present.get(`${table} permitted${n}`), permitted) &&
          [...instances].every((element) => known.has(element))
        if (!isHeld) return `a set of addresses of table ${table} (IP${family}) holds others`
      }
    }
    return undefined
  }

  /** Checks one workload's cgroup in its map, without a listing: nft would search all cgroups for each printed name. */
  async #unitDrift(resolved: ResolvedPlan, path: string): Promise<string | undefined> {
    const settings = this.#nftSettings(resolved)
    const name = `cgroups_${path.split('/').length}`
    const key = `"${settings.cgroupPrefix}${path}"`
    for (const table of [CAPTURE_TABLE, GUARD_TABLE])
      if (!(await hasElement(this.#run, table, name, key)))
        return `the map ${name} of table ${table} does not hold ${path}`
    return undefined
  }

  /** Conflicts of foreign rules with diverted traffic that can be recognized from the rules and cannot be repaired. */
  async #foreignProblems(listed?: string): Promise<readonly Problem[]> {
    const { mark } = this.#settings
    const { ruleset, problems } = await passNativeFilters(this.#run, markedWords(mark), listed)
    return [
      ...problems,
      ...marksInRuleset(ruleset, mark),
      ...(await marksInIptables(this.#run, loopbackFamilies(), mark)),
    ]
  }

  #routing(plan: CapturePlan): WantedRouting[] {
    return loopbackFamilies().map((family) => routingOf(plan, family, this.#settings))
  }

  async #ensureRouting(plan: CapturePlan): Promise<readonly Problem[]> {
    const all = this.#routing(plan)
    this.#returnRoutes = all.flatMap(({ containers }) => containers)
    const problems = all.map(async (wanted) => {
      const clashes = await ensureRouting(this.#run, wanted)
      return clashes.map(
        (clash) => new Problem('HM_CAPTURE_MARK_CLASH', clash, { subject: wanted.family }),
      )
    })
    return (await Promise.all(problems)).flat()
  }

  async #routingDrift(plan: CapturePlan): Promise<string | undefined> {
    const drifts = this.#routing(plan).map(async (wanted) => {
      const drift = await routingDrift(this.#run, wanted)
      return drift === undefined ? undefined : `IP${wanted.family}: ${drift}`
    })
    return (await Promise.all(drifts)).find((drift) => drift !== undefined)
  }

  /** Elements of {@link STATIC_SETS}, by {@link setKey}. */
  async #readStatic(): Promise<ReadonlyMap<string, SetMembers>> {
    const held = await readSets(this.#run, STATIC_SETS)
    return new Map([...held].map(([key, elements]) => [key, new Set(elements)]))
  }

  /** Makes the sets hold what is wanted; connections that are open to a new address are spared. */
  async #syncSets(): Promise<void> {
    const wanted = this.#wanted
    if (wanted === undefined) return
    const present = this.#held ?? (await this.#readStatic())
    const held = new Map(present)
    const announced: string[] = []
    const changes: string[] = []
    const added = new Set<string>()
    const change = (table: string, name: string, to: SetMembers, keeps: boolean): string[] => {
      const now = present.get(`${table} ${name}`) ?? new Set()
      const more = [...to].filter((element) => !now.has(element))
      const less = keeps ? [] : [...now].filter((element) => !to.has(element))
      changes.push(
        ...changeLines('add', table, name, more),
        ...changeLines('delete', table, name, less),
      )
      held.set(`${table} ${name}`, keeps ? new Set([...now, ...to]) : to)
      return more
    }
    for (const family of families) {
      const n = NUMBERS[family]
      const { instances, permitted } = wanted[family]
      for (const table of [GUARD_TABLE, CAPTURE_TABLE]) {
        change(table, `known${n}`, instances, true)
        change(table, `permitted${n}`, permitted, false)
        const more = change(table, `instances${n}`, instances, false)
        if (table !== CAPTURE_TABLE || more.length === 0) continue
        announced.push(...changeLines('add', table, `coming${n}`, more))
        changes.push(`flush set inet ${table} coming${n}\n`)
        for (const element of more) added.add(element)
      }
    }
    this.#held = undefined
    if (changes.length > 0) {
      await applyNft(this.#run, announced.join(''))
      await applyNft(this.#run, (await this.#sparing(added)).join('') + changes.join(''))
    }
    this.#held = held
  }

  /**
   * Adds the connections that are captured already to new tables. Otherwise their callers' later segments would be
   * judged by the owner of the socket, and a socket that its process has closed has no owner.
   */
  async #recall(plan: CapturePlan): Promise<void> {
    const { daemonUid } = plan
    const wanted = this.#wanted
    if (wanted === undefined) return
    const sockets = await listSockets(this.#run)
    const lines = families.flatMap((family) => {
      const tuples = acceptedAt(sockets, daemonUid, wanted[family].instances)
      return [CAPTURE_TABLE, GUARD_TABLE].flatMap((table) =>
        changeLines('add', table, `open${NUMBERS[family]}`, tuples),
      )
    })
    await applyNft(this.#run, lines.join(''))
    await this.#endAbandoned(sockets, plan)
  }

  /** Ends connections whose caller's last packets were lost while nothing was diverted: keepalive takes a minute. */
  async #endAbandoned(before: readonly SocketEnds[], plan: CapturePlan): Promise<void> {
    const own = new Set([...ownAddresses()].flatMap((ip) => canonicalIp(ip) ?? []))
    const ranges = families.flatMap((family) => parseCidr(virtualNetwork(plan, family)) ?? [])
    const isMesh = (end: string): boolean =>
      families.some((family) => this.#wanted?.[family].instances.has(end) === true) ||
      ranges.some((range) => cidrContains(range, end.split(' . ')[0] ?? ''))
    const suspects = abandoned(before, plan.daemonUid, { own, isMesh })
    if (suspects.length === 0) return
    // A listing is not a snapshot: it may lack one end of a connection that began meanwhile.
    const still = new Set(abandoned(await listSockets(this.#run), plan.daemonUid, { own, isMesh }))
    await destroySockets(
      this.#run,
      suspects.filter((tuple) => still.has(tuple)),
    )
  }

  /** Lines that spare open connections to these addresses that are not captured. */
  async #sparing(addresses: ReadonlySet<string>): Promise<string[]> {
    if (addresses.size === 0) return []
    const open = uncaptured(await listSockets(this.#run))
    return families.flatMap((family) =>
      changeLines(
        'add',
        CAPTURE_TABLE,
        `spared${NUMBERS[family]}`,
        open
          .filter((socket) => socket.family === family && addresses.has(socket.peer))
          .map(({ local, peer }) => `${local} . ${peer}`),
      ),
    )
  }

  /** Removes addresses of removed instances from `known`, once no connection to them is open. */
  async #removeExpired(): Promise<undefined> {
    const wanted = this.#wanted
    if (wanted === undefined) return
    const present = this.#held ?? (await this.#readStatic())
    const leaving = families.flatMap((family) => {
      const known = [...(present.get(`${CAPTURE_TABLE} known${NUMBERS[family]}`) ?? [])]
      return known
        .filter((element) => !wanted[family].instances.has(element))
        .map((element) => ({ family, element }))
    })
    if (leaving.length === 0) return
    const peers = new Set((await listSockets(this.#run)).map(({ peer }) => peer))
    const lines = leaving
      .filter(({ element }) => !peers.has(element))
      .flatMap(({ family, element }) =>
        [CAPTURE_TABLE, GUARD_TABLE].flatMap((table) =>
          changeLines('delete', table, `known${NUMBERS[family]}`, [element]),
        ),
      )
    if (lines.length === 0) return
    this.#held = undefined
    await applyNft(this.#run, lines.join(''))
  }

  async counts(): Promise<CaptureCounts> {
    return this.#counts((await this.#readSpared()).length)
  }

  async #counts(spared: number): Promise<CaptureCounts> {
    const counters = await readCounters(this.#run)
    const capture = counters(CAPTURE_TABLE)
    return {
      refusedVirtual: capture.get('refused_virtual') ?? 0,
      refusedInstance: capture.get('refused_instance') ?? 0,
      permitted: capture.get('permitted') ?? 0,
      waited: capture.get('waited') ?? 0,
      full: capture.get('full') ?? 0,
      guarded: counters(GUARD_TABLE).get('refused') ?? 0,
      spared,
    }
  }

  async #readSpared(): Promise<readonly string[]> {
    const names = inBothFamilies('spared').map((name) => ({ table: CAPTURE_TABLE, name }))
    return [...(await readSets(this.#run, names)).values()].flat()
  }
}

function inBothFamilies(name: string): readonly string[] {
  return families.map((family) => `${name}${NUMBERS[family]}`)
}

/** Both ends of a connection, formatted for people. */
function connectionText(tuple: string): string {
  const [ip = '', port, toIp = '', toPort] = tuple.split(' . ')
  const from = formatAddress({ ip, port: Number(port) })
  return `${from} > ${formatAddress({ ip: toIp, port: Number(toPort) })}`
}

/** Both tables from nft's listing of the ruleset; undefined when one is missing. */
function bothTables(ruleset: string): string | undefined {
  const capture = tableIn(ruleset, CAPTURE_TABLE)
  const guard = tableIn(ruleset, GUARD_TABLE)
  return capture === undefined || guard === undefined ? undefined : capture + guard
}

/** The present content of a table; undefined when the table does not exist. */
export async function presentTable(
  run: RunCommand,
  table: string,
): Promise<PresentTable | undefined> {
  const listing = await readTable(run, table)
  if (listing === undefined) return undefined
  const names = (kind: 'chain' | 'map' | 'set'): string[] => namesIn(listing, kind)
  return { chains: names('chain'), maps: names('map'), sets: names('set') }
}

/** The shell commands that would apply a plan on a host that has no rules of ours. */
export function previewNft(resolved: ResolvedPlan, settings: BackendSettings): string {
  const nft = nftSettingsOf(resolved, settings)
  const text = [
    renderGuardTable(resolved.plan, nft),
    renderCaptureTable(resolved.plan, nft),
    renderElements(cgroupElements(resolved.plan, nft)),
  ].join('')
  const routing = families.flatMap((family) =>
    routingCommands(routingOf(resolved.plan, family, settings)).map(
      (words) => `# ip ${family === 'v4' ? '-4' : '-6'} ${words.join(' ')}\n`,
    ),
  )
  return `${routing.join('')}# nft -f -\n${text}`
}

/** The settings with which tables are rendered. */
export function nftSettingsOf(
  { cgroups, cgroupRoot = '' }: ResolvedPlan,
  { mark, spareSeconds, sparesWhileUsed }: BackendSettings,
): NftSettings {
  const prefix = cgroupPrefix(cgroupRoot) ?? ''
  return { mark, spareSeconds, sparesWhileUsed, cgroups, cgroupPrefix: prefix }
}

function routingOf(
  plan: CapturePlan,
  family: Family,
  { mark, priority, table }: BackendSettings,
): WantedRouting {
  const containers = routesBackByMark(family)
    ? plan.workloads.flatMap(({ selector }) =>
        selector.kind === 'sourceAddress' && isIpv6(selector.ip) === (family === 'v6')
          ? [canonicalIp(selector.ip) ?? selector.ip]
          : [],
      )
    : []
  return { mark, priority, table, family, range: virtualNetwork(plan, family), containers }
}

/** The elements of sets, by family. @throws as {@link membersByFamily} */
export function membersOf({ instances, permitted }: MeshAddresses): Record<Family, Members> {
  const all = {
    instances: membersByFamily(instances, instanceElement),
    permitted: membersByFamily(permitted, instanceElement),
  }
  return recordOf(families, (family) => ({
    instances: all.instances[family],
    permitted: all.permitted[family],
  }))
}

function firstDifferentLine(wanted: string, now: string): string | undefined {
  if (wanted === now) return undefined
  const [want, have] = [wanted.split('\n'), now.split('\n')]
  const at = want.findIndex((line, index) => line !== have[index])
  const [missing = '', found = ''] = [want[at]?.trim(), have[at]?.trim()]
  return `the table has ${JSON.stringify(found)} where ${JSON.stringify(missing)} should be`
}

function rulesIn(table: string, listing: string): ShownRule[] {
  const rules: ShownRule[] = []
  let chain = ''
  for (const line of listing.split('\n')) {
    chain = /^\tchain (\S+) \{/.exec(line)?.[1] ?? chain
    if (!line.startsWith('\t\t') || chain === '' || line.startsWith('\t\ttype ')) continue
    // Rules share named counters here: {@link NftBackend.counts}.
    rules.push({ family: 'inet', table, chain, rule: line.trim(), packets: null, bytes: null })
  }
  return rules
}
