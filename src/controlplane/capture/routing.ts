/**
 * Routes and routing rules of capture, marked by their protocol number so that exactly these can be removed.
 *
 *     ip rule   fwmark MARK/MASK lookup TABLE   marked packets go to loopback, before every other rule
 *     ip rule   to RANGE lookup main            no foreign rule sends virtual addresses elsewhere
 *     TABLE     local default dev lo            delivers marked packets there; `throw` for containers: their return
 *                                               route, where the kernel looks it up by the mark
 *     main      RANGE dev lo src HOST           virtual addresses never need a gateway and never leave the host
 *     main      255.255.255.255 dev HOST'S      is in the usual range, but is not a virtual address
 *
 * Unicast on purpose: a `local` route would let a wildcard listener of the host answer when the rules are gone.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { z } from 'zod'
import { describeError, MeshError } from '../../lib/errors.ts'
import type { RunCommand } from './command.ts'
import { BROADCAST, coversBroadcast, type Family, families } from './rules.ts'

/** The number in a route's `proto` field that marks it as ours; unassigned in rt_protos. */
export const ROUTE_PROTOCOL = '213'

/** Where marked packets are sent. */
export interface RoutingSettings {
  readonly mark: number
  readonly priority: number
  readonly table: number
}

/** The routing that one family needs. */
export interface WantedRouting extends RoutingSettings {
  readonly family: Family
  readonly range: string
  /**
   * Containers whose return route is looked up by the mark ({@link routesBackByMark}): marked packets of this host do
   * not reach them.
   */
  readonly containers: readonly string[]
}

const ipRules = z.array(
  z.looseObject({
    priority: z.number().optional(),
    fwmark: z.string().optional(),
    fwmask: z.string().optional(),
    dst: z.string().optional(),
    dstlen: z.number().optional(),
    table: z.string().optional(),
  }),
)

const ipRoutes = z.array(
  z.looseObject({
    dst: z.string().optional(),
    dev: z.string().optional(),
    type: z.string().optional(),
    table: z.string().optional(),
    prefsrc: z.string().optional(),
  }),
)

const ipAddresses = z.array(
  z.looseObject({
    addr_info: z.array(z.looseObject({ local: z.string().optional() })).default([]),
  }),
)

type IpRule = z.infer<typeof ipRules>[number]
type IpRoute = z.infer<typeof ipRoutes>[number]

const FLAG: Record<Family, string> = { v4: '-4', v6: '-6' }
const HEX = 16
/** The number of the main table. */
const MAIN_TABLE = '254'

/** Makes routes and rule of a family as wanted. Returns the problems, one sentence each. @throws MeshError */
export async function ensureRouting(run: RunCommand, wanted: WantedRouting): Promise<string[]> {
  const { family, table, containers } = wanted
  const [rules, way, routes] = await Promise.all([
    readRules(run, family),
    hostRoute(run, family),
    readTable(run, wanted),
  ])
  for (const ip of returnRoutes(routes).filter((each) => !containers.includes(each)))
    await change(run, family, ['route', 'del', 'throw', ip, 'table', String(table)])
  // Routes first: they identify what clearRouting() must remove, even if a later step fails.
  for (const words of routeCommands(wanted, way)) await change(run, family, words)
  for (const { words, isThere } of ruleCommands(wanted))
    if (!rules.some(isThere)) await change(run, family, words)
  return clashes(rules, wanted)
}

/** Families of which loopback has an address: in others no route to it and no listener can exist. */
export function loopbackFamilies(): readonly Family[] {
  const path = '/proc/net/if_inet6'
  const hasLoopback = existsSync(path) && / lo$/m.test(readFileSync(path, 'utf8'))
  return hasLoopback ? families : ['v4']
}

/**
 * Whether the kernel uses the mark to look up the return route to a container when it validates a source address;
 * wg-quick sets that. IPv6 has no such setting.
 */
export function routesBackByMark(family: Family): boolean {
  const folder = '/proc/sys/net/ipv4/conf'
  if (family === 'v6') return false
  try {
    return readdirSync(folder).some(
      (name) => readFileSync(`${folder}/${name}/src_valid_mark`, 'utf8').trim() !== '0',
    )
  } catch {
    // A device disappeared meanwhile: a later call decides.
    return false
  }
}

/** Containers with a return route in our table. */
function returnRoutes(routes: readonly IpRoute[]): string[] {
  return routes.flatMap(({ type, dst }) => (type === 'throw' && dst !== undefined ? [dst] : []))
}

/** The arguments of `ip` for one family. */
export function routingCommands(wanted: WantedRouting): string[][] {
  return [...ruleCommands(wanted).map(({ words }) => words), ...routeCommands(wanted)]
}

/** The rules of a family, each with a test that recognizes it among the present ones. */
function ruleCommands(
  wanted: WantedRouting,
): { readonly words: string[]; readonly isThere: (rule: IpRule) => boolean }[] {
  const add = (words: readonly string[]): string[] => [
    'rule',
    'add',
    ...words,
    'protocol',
    'kernel',
  ]
  return [
    { words: add(markRuleWords(wanted)), isThere: (rule) => isMarkRule(rule, wanted) },
    { words: add(rangeRuleWords(wanted)), isThere: (rule) => isRangeRule(rule, wanted) },
  ]
}

function routeCommands(wanted: WantedRouting, way?: HostRoute): string[][] {
  const { range, table, containers } = wanted
  const ours = ['proto', ROUTE_PROTOCOL]
  const inTable = ['table', String(table), ...ours]
  return [
    ['route', 'replace', 'local', 'default', 'dev', 'lo', ...inTable],
    ...containers.map((ip) => ['route', 'replace', 'throw', ip, ...inTable]),
    ...rangeRoutes(range, way),
  ]
}

/**
 * Routes only virtual addresses to loopback: undiverted packets to them do not leave the host. Returns the problem
 * in one sentence; undefined when there is none.
 */
export async function ensureRangeRoute(
  run: RunCommand,
  family: Family,
  range: string,
): Promise<string | undefined> {
  try {
    const way = await hostRoute(run, family)
    for (const words of rangeRoutes(range, way)) await change(run, family, words)
    return undefined
  } catch (error) {
    return `Virtual addresses ${range} cannot be dialed: ${describeError(error)}`
  }
}

/** What is wrong with the route of {@link ensureRangeRoute}; undefined when nothing is. */
export async function rangeRouteDrift(
  run: RunCommand,
  family: Family,
  range: string,
): Promise<string | undefined> {
  const routes = await readRoutes(run, family, ['route', 'show', range, 'proto', ROUTE_PROTOCOL])
  return routes.length > 0 ? undefined : `there is no route of ${range} to loopback`
}

/** Routes of virtual addresses, with the host's own address as source; and of the broadcast address if in the range. */
export function rangeRoutes(range: string, { source, device }: HostRoute = {}): string[][] {
  const from = source === undefined ? [] : ['src', source]
  const route = (to: string, dev: string): string[] =>
    ['route', 'replace', to, 'dev', dev, ...from].concat('proto', ROUTE_PROTOCOL)
  return [
    route(range, 'lo'),
    ...(coversBroadcast(range) && device !== undefined ? [route(BROADCAST, device)] : []),
  ]
}

/** The first difference of a family's routing from the wanted one; undefined when there is none. */
export async function routingDrift(
  run: RunCommand,
  wanted: WantedRouting,
): Promise<string | undefined> {
  const { family, range, table, containers } = wanted
  const [rules, routes, virtual] = await Promise.all([
    readRules(run, family),
    readTable(run, wanted),
    rangeRouteDrift(run, family, range),
  ])
  if (!rules.some((rule) => isMarkRule(rule, wanted)))
    return `there is no ip rule for the mark ${hex(wanted.mark)}`
  if (!rules.some((rule) => isRangeRule(rule, wanted)))
    return `there is no ip rule for the virtual addresses ${range}`
  if (!routes.some(({ type, dst }) => type === 'local' && dst === 'default'))
    return `routing table ${table} does not lead to loopback`
  if (returnRoutes(routes).toSorted().join() !== containers.toSorted().join())
    return `routing table ${table} has not the ways back of containers that it needs`
  return virtual
}

/** Removes our rules and routes, whatever settings created them. Returns whether there were any. */
export async function clearRouting(run: RunCommand): Promise<boolean> {
  let removed = false
  for (const family of families) {
    const words = ['-N', 'route', 'show', 'table', 'all', 'proto', ROUTE_PROTOCOL]
    const routes = await readRoutes(run, family, words)
    if (routes.length === 0) continue
    removed = true
    for (let look = 0; look < MOST_LOOKS; look += 1)
      if (!(await deleteRules(run, family, routes))) break
    await run('ip', [FLAG[family], 'route', 'flush', 'table', 'all', 'proto', ROUTE_PROTOCOL])
  }
  return removed
}

/** Maximum number of searches for remaining rules: without the routes, rules cannot be recognized as ours. */
const MOST_LOOKS = 3

/** Deletes the rules that refer to these routes. Returns whether there were any. */
async function deleteRules(
  run: RunCommand,
  family: Family,
  routes: readonly IpRoute[],
): Promise<boolean> {
  const tables = new Set(routes.flatMap(({ table }) => (table === undefined ? [] : [table])))
  const rules = await readRules(run, family)
  const marks = rules.filter(({ fwmark, table }) => fwmark !== undefined && tables.has(table ?? ''))
  // Not recognized by the range's route: the kernel removes that route with its source address.
  const ranges = rules.filter(
    (rule) =>
      rule.table === MAIN_TABLE &&
      destinationOf(rule) !== undefined &&
      marks.some(({ priority = 0 }) => rule.priority === priority + 1),
  )
  // The mark's rule last: it identifies the other one.
  const ours = [...ranges, ...marks]
  for (const rule of ours) {
    const to = destinationOf(rule)
    const place = ['priority', String(rule.priority), 'table', rule.table ?? '']
    const selected = to === undefined ? place : ['to', to, ...place]
    await run('ip', [FLAG[family], 'rule', 'del', ...selected])
  }
  return ours.length > 0
}

/** Foreign rules that use our bits, or that precede ours. */
function clashes(rules: readonly IpRule[], wanted: WantedRouting): string[] {
  const { mark, priority, table, family } = wanted
  return rules.flatMap((rule) => {
    if (isMarkRule(rule, wanted) || isRangeRule(rule, wanted) || rule.priority === 0) return []
    const value = Number.parseInt(rule.fwmark ?? '0', HEX)
    const mask = Number.parseInt(rule.fwmask ?? '0xffffffff', HEX)
    const where = `the ip rule of priority ${rule.priority} (IP${family}, table ${rule.table})`
    if (rule.fwmark !== undefined && (value & mask & mark) !== 0)
      return [
        `${where} uses bits of the mark ${hex(mark)}; set capture.mark to bits that nobody uses`,
      ]
    if (rule.table === String(table))
      return [
        `${where} leads to our table ${table}; set capture.routeTable to one that nobody uses`,
      ]
    if ((rule.priority ?? 0) <= priority + 1)
      return [`${where} comes before ours; set capture.rulePriority below it`]
    return []
  })
}

function isMarkRule(rule: IpRule, { mark, priority, table }: RoutingSettings): boolean {
  return (
    rule.priority === priority &&
    rule.table === String(table) &&
    Number.parseInt(rule.fwmark ?? '', HEX) === mark &&
    Number.parseInt(rule.fwmask ?? '', HEX) === mark
  )
}

function markRuleWords({ mark, priority, table }: RoutingSettings): string[] {
  const words = ['fwmark', `${hex(mark)}/${hex(mark)}`, 'priority', String(priority)]
  return [...words, 'table', String(table)]
}

function isRangeRule(rule: IpRule, { range, priority }: WantedRouting): boolean {
  return (
    rule.priority === priority + 1 && rule.table === MAIN_TABLE && destinationOf(rule) === range
  )
}

/** After the mark's rule and before all foreign rules: a VPN or second uplink may route everything else elsewhere. */
function rangeRuleWords({ range, priority }: WantedRouting): string[] {
  return ['to', range, 'priority', String(priority + 1), 'table', MAIN_TABLE]
}

function destinationOf({ dst, dstlen }: IpRule): string | undefined {
  return dst === undefined || dstlen === undefined ? undefined : `${dst}/${dstlen}`
}

/** The route by which applications of this host reach others. */
interface HostRoute {
  /** The source address of their connections. */
  readonly source?: string | undefined
  readonly device?: string | undefined
}

async function hostRoute(run: RunCommand, family: Family): Promise<HostRoute> {
  const anywhere = family === 'v4' ? '198.51.100.1' : '2001:db8::1'
  const [usual] = await readRoutes(run, family, ['route', 'get', anywhere])
  if (usual?.prefsrc !== undefined && usual.dev !== 'lo')
    return { source: usual.prefsrc, device: usual.dev }
  const result = await run('ip', [FLAG[family], '-j', 'addr', 'show', 'scope', 'global'])
  if (result.status !== 0) return {}
  const links = parseJson(ipAddresses, result.stdout) ?? []
  const addresses = links.flatMap(({ addr_info }) => addr_info)
  return { source: addresses.find(({ local }) => local !== undefined)?.local }
}

async function readRules(run: RunCommand, family: Family): Promise<readonly IpRule[]> {
  const result = await run('ip', [FLAG[family], '-j', '-N', 'rule', 'show'])
  return (result.status === 0 ? parseJson(ipRules, result.stdout) : undefined) ?? []
}

async function readRoutes(
  run: RunCommand,
  family: Family,
  words: readonly string[],
): Promise<readonly IpRoute[]> {
  const result = await run('ip', [FLAG[family], '-j', ...words])
  return (result.status === 0 ? parseJson(ipRoutes, result.stdout) : undefined) ?? []
}

function readTable(run: RunCommand, { family, table }: WantedRouting): Promise<readonly IpRoute[]> {
  return readRoutes(run, family, ['route', 'show', 'table', String(table)])
}

/** Parses the output of `ip -j`, which is empty where there is nothing to list. */
function parseJson<T extends z.ZodType>(schema: T, text: string): z.infer<T> | undefined {
  return text.trim() === '' ? undefined : schema.parse(JSON.parse(text))
}

async function change(run: RunCommand, family: Family, words: readonly string[]): Promise<void> {
  const result = await run('ip', [FLAG[family], ...words])
  if (result.status === 0) return
  const isDenied = /Operation not permitted/.test(result.stderr)
  throw new MeshError(
    isDenied ? 'HM_CAPTURE_PERMISSION_DENIED' : 'HM_CAPTURE_APPLY_FAILED',
    `ip ${words.join(' ')} failed (IP${family}): ${result.stderr.trim()}`,
    isDenied
      ? {
          hint: 'Run as root or with both capabilities (systemd: AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW)',
        }
      : {},
  )
}

function hex(mark: number): string {
  return `0x${mark.toString(HEX)}`
}
