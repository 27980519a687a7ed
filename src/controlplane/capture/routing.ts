/**
 * Routes and routing rules of capture, marked by their protocol number so that exactly they can be removed.
 *
 *     ip rule   fwmark MARK/MASK lookup TABLE   what is marked goes to loopback, before every other rule
 *     ip rule   to RANGE lookup main            no rule of others leads virtual addresses anywhere else
 *     TABLE     local default dev lo            and is delivered there; `throw` for containers: their way back,
 *                                               where the kernel looks for it by the mark
 *     main      RANGE dev lo src HOST           virtual addresses never need a gateway and never leave the host
 *     main      255.255.255.255 dev HOST'S      is in the usual range and none of them
 *
 * Unicast on purpose: a `local` route would let a wildcard listener of the host answer when rules are gone.
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

/** What one family needs. */
export interface WantedRouting extends RoutingSettings {
  readonly family: Family
  readonly range: string
  /** Containers whose way back is looked for by the mark ({@link routesBackByMark}): nobody of this host reaches them by it. */
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

/** Makes routes and rule of a family as wanted. Returns what is wrong, one sentence each. @throws MeshError */
export async function ensureRouting(run: RunCommand, wanted: WantedRouting): Promise<string[]> {
  const { family, table, containers } = wanted
  const [rules, way, routes] = await Promise.all([
    readRules(run, family),
    hostRoute(run, family),
    readTable(run, wanted),
  ])
  for (const ip of returnRoutes(routes).filter((each) => !containers.includes(each)))
    await change(run, family, ['route', 'del', 'throw', ip, 'table', String(table)])
  // The routes first: by them what is to be removed is known, however this ends.
  for (const words of routeCommands(wanted, way)) await change(run, family, words)
  for (const { words, isThere } of ruleCommands(wanted))
    if (!rules.some(isThere)) await change(run, family, words)
  return clashes(rules, wanted)
}

/** Families that loopback has an address of: by another nothing can be routed to it, and nobody can listen there. */
export function loopbackFamilies(): readonly Family[] {
  const path = '/proc/net/if_inet6'
  const hasLoopback = existsSync(path) && / lo$/m.test(readFileSync(path, 'utf8'))
  return hasLoopback ? families : ['v4']
}

/**
 * Whether the kernel looks for the way back to a container by the mark, when it checks where a packet came from; wg-quick sets
 * that. There is no such thing for IPv6.
 */
export function routesBackByMark(family: Family): boolean {
  const folder = '/proc/sys/net/ipv4/conf'
  if (family === 'v6') return false
  try {
    return readdirSync(folder).some(
      (name) => readFileSync(`${folder}/${name}/src_valid_mark`, 'utf8').trim() !== '0',
    )
  } catch {
    // A device that went away meanwhile: to be asked again.
    return false
  }
}

/** Containers with a way back among the routes of our table. */
function returnRoutes(routes: readonly IpRoute[]): string[] {
  return routes.flatMap(({ type, dst }) => (type === 'throw' && dst !== undefined ? [dst] : []))
}

/** What `ip` is told for one family. */
export function routingCommands(wanted: WantedRouting): string[][] {
  return [...ruleCommands(wanted).map(({ words }) => words), ...routeCommands(wanted)]
}

/** The rules of a family, each with how it is known among those that there are. */
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
 * Leads virtual addresses to loopback, and nothing else: what no rule diverts does not leave the host. Returns what is
 * wrong in one sentence; undefined when nothing is.
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

/** What of the route of {@link ensureRangeRoute} is wrong; undefined when nothing is. */
export async function rangeRouteDrift(
  run: RunCommand,
  family: Family,
  range: string,
): Promise<string | undefined> {
  const routes = await readRoutes(run, family, ['route', 'show', range, 'proto', ROUTE_PROTOCOL])
  return routes.length > 0 ? undefined : `there is no route of ${range} to loopback`
}

/** The routes of virtual addresses, which are spoken to from the host's own; and of what is none of them. */
export function rangeRoutes(range: string, { source, device }: HostRoute = {}): string[][] {
  const from = source === undefined ? [] : ['src', source]
  const route = (to: string, dev: string): string[] =>
    ['route', 'replace', to, 'dev', dev, ...from].concat('proto', ROUTE_PROTOCOL)
  return [
    route(range, 'lo'),
    ...(coversBroadcast(range) && device !== undefined ? [route(BROADCAST, device)] : []),
  ]
}

/** The first thing of a family's routing that is not as wanted; undefined when all is. */
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

/** Removes rules and routes of ours, whatever settings they were made with. Returns whether there were any. */
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

/** Rules are looked for so often until there are none left: without the routes nobody knows them for ours any more. */
const MOST_LOOKS = 3

/** Deletes the rules that lead to these routes. Returns whether there were any. */
async function deleteRules(
  run: RunCommand,
  family: Family,
  routes: readonly IpRoute[],
): Promise<boolean> {
  const tables = new Set(routes.flatMap(({ table }) => (table === undefined ? [] : [table])))
  const rules = await readRules(run, family)
  const marks = rules.filter(({ fwmark, table }) => fwmark !== undefined && tables.has(table ?? ''))
  // Not by the route of the range: the kernel takes that away with the address that it speaks from.
  const ranges = rules.filter(
    (rule) =>
      rule.table === MAIN_TABLE &&
      destinationOf(rule) !== undefined &&
      marks.some(({ priority = 0 }) => rule.priority === priority + 1),
  )
  // That of the mark last: by it the other is known.
  const ours = [...ranges, ...marks]
  for (const rule of ours) {
    const to = destinationOf(rule)
    const place = ['priority', String(rule.priority), 'table', rule.table ?? '']
    const selected = to === undefined ? place : ['to', to, ...place]
    await run('ip', [FLAG[family], 'rule', 'del', ...selected])
  }
  return ours.length > 0
}

/** Rules of others that use our bits, or that come before ours. */
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

/** After the rule of the mark, and before all of others: a VPN or a second uplink may lead everything else elsewhere. */
function rangeRuleWords({ range, priority }: WantedRouting): string[] {
  return ['to', range, 'priority', String(priority + 1), 'table', MAIN_TABLE]
}

function destinationOf({ dst, dstlen }: IpRule): string | undefined {
  return dst === undefined || dstlen === undefined ? undefined : `${dst}/${dstlen}`
}

/** How applications of this host reach others. */
interface HostRoute {
  /** The address that they speak from. */
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

/** What `ip -j` printed, which is nothing at all where there is nothing to list. */
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
