/**
 * Capture by a native nftables table and TPROXY, with a guard in a table of its own.
 *
 * One transaction changes both tables and both families. Elements that packets added to sets are kept; which addresses
 * the sets hold is the matter of nft-sets.ts.
 */
import { describeError } from '../../lib/errors.ts'
import { canonicalIp, formatAddress, isIpv6 } from '../../model/address.ts'
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
  presentTable,
  readCounters,
  readRuleset,
  readTable,
  tableIn,
} from './nft.ts'
import { cgroupElements } from './nft-cgroups.ts'
import { type NftElements, renderElements, renderReplacement } from './nft-elements.ts'
import { renderGuardTable } from './nft-guard-rules.ts'
import { cgroupPrefix } from './nft-obstacle.ts'
import { renderCaptureTable, WAITING_ELEMENT } from './nft-rules.ts'
import { NftSets } from './nft-sets.ts'
import { CAPTURE_TABLE, GUARD_TABLE, type NftSettings } from './nft-words.ts'
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
import { destroySockets } from './sockets.ts'
import type { ResolvedPlan } from './workloads.ts'

/** The nftables backend. */
export class NftBackend implements CaptureBackend {
  readonly kind = 'nftables'
  readonly #run: RunCommand
  readonly #settings: BackendSettings
  readonly #sets: NftSets
  /** nft's listing of both tables when they were as planned. */
  #listing: string | undefined
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
    this.#sets = new NftSets(run)
  }

  async apply(resolved: ResolvedPlan): Promise<void> {
    const before = await presentTable(this.#run, CAPTURE_TABLE)
    this.#sets.forget()
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
      await this.#sets.fill()
      // A program that removed rules may also have removed the elements that packets added to sets.
      await this.#sets.recall(resolved.plan)
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
    this.#sets.want(addresses)
    if (this.#listing !== undefined) await this.#sets.fill()
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
      (await this.#sets.removeExpired())
    )
  }

  async show(): Promise<BackendState> {
    const ruleset = await readRuleset(this.#run)
    const rules = [CAPTURE_TABLE, GUARD_TABLE].flatMap((table) =>
      rulesIn(table, tableIn(ruleset, table) ?? ''),
    )
    const instances = await this.#sets.instanceCounts()
    const spared = await this.#sets.spared()
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
    const ips = this.#sets.instanceIps()
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
    try {
      const problem = await destroySockets(this.#run, await this.#sets.captured(tables))
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
    return this.#sets.drift()
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

  async counts(): Promise<CaptureCounts> {
    return this.#counts((await this.#sets.spared()).length)
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
