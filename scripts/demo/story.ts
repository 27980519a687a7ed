/**
 * The demo from first to last step. Three hosts:
 *
 * ```
 *   alpha                 beta                      gamma
 *   storefront, reports   pages (nginx), cache      pages (nginx), orders
 *   (they only call)      (Redis)                   (PostgreSQL)
 *
 *   storefront may call pages, cache and orders; reports may call orders, and not cache
 * ```
 */

import { AGGREGATOR } from '../../test/harness/aggregator.ts'
import { eventually } from '../../test/harness/eventually.ts'
import { type Mesh, startMesh } from '../../test/harness/mesh.ts'
import type { Service } from '../../test/harness/service.ts'
import { canary, WireCapture } from '../../test/harness/wire-capture.ts'
import { postgresUser, startNginx, startPostgres, startRedis } from './applications.ts'
import type { Means } from './privilege.ts'
import { type Note, paint, Stage } from './stage.ts'
import { carryText, countInRedis, curl, redis, type Target, timeHttp, timeSql } from './traffic.ts'

/** What the demo was asked to do, and may. */
export interface DemoOptions {
  readonly consul: boolean
  readonly keep: boolean
  readonly means: Means
}

const HTTP_REQUESTS = 500
const REDIS_COMMANDS = 2_000
const SQL_QUERIES = 300

/** Local ports of the explicit upstreams, where capture cannot be shown. */
const UPSTREAMS = { pages: 9001, cache: 9002, orders: 9003 }

type Destination = keyof typeof UPSTREAMS

/** Plays the whole demo and cleans up. @throws when anything is not as it should be. */
export async function tellStory(options: DemoOptions): Promise<void> {
  const stage = new Stage(9)
  const { means } = options
  if (means.limitation !== undefined) console.log(paint('yellow', means.limitation))
  await using ending = new AsyncDisposableStack()
  const mesh = await stage.step('Three hosts on one network', (note) => buildHosts(options, note))
  ending.use(mesh)
  const cast = declareServices(mesh, means, await postgresUser())
  await stage.step('Applications, none of them aware of a mesh', (note) =>
    startApplications(mesh, cast, note),
  )
  const direct = await stage.step('Without the mesh, everyone on the network reads along', (note) =>
    showPlaintext(mesh, cast, note),
  )
  await stage.step('hostmesh on every host', (note) => startDaemons(mesh, cast, note))
  const figures = await stage.step('HTTP, Redis and PostgreSQL through the mesh', (note) =>
    sendTraffic(mesh, cast, note),
  )
  await stage.step('An intention denies reports -> cache', (note) => showDenial(mesh, cast, note))
  const wireBytes = await stage.step('With the mesh, nobody on the network reads along', (note) =>
    showSecrecy(mesh, cast, note),
  )
  const tunnels = await stage.step('What the hosts say of themselves', (note) =>
    showStatus(mesh, note),
  )
  if (options.keep) await keepRunning(mesh)
  await stage.step('Clean up', async (note) => {
    await ending.disposeAsync()
    note('daemons ended in order, no rule and no process left on any host, hosts removed: checked')
  })
  stage.summary('It works', [
    [
      'catalog, certificates',
      options.consul ? 'Consul 1 server, 3 agents; Connect CA' : 'file; CA of its own',
    ],
    ['services told apart by', describeIdentity(means)],
    ['HTTP', `${HTTP_REQUESTS} requests, ${spread(figures.http)} (direct ${spread(direct.http)})`],
    [
      'Redis',
      `${REDIS_COMMANDS} commands, ${(figures.redisMs / REDIS_COMMANDS).toFixed(2)} ms each`,
    ],
    ['PostgreSQL', `${SQL_QUERIES} queries, ${spread(figures.sql)} (direct ${spread(direct.sql)})`],
    ['tunnels', tunnels],
    ['plaintext on the wire', `none in ${Math.round(wireBytes / 1024)} KiB captured`],
  ])
}

/** The services of the demo. */
export interface Cast {
  readonly storefront: Service
  readonly reports: Service
  readonly pages: Service
  readonly morePages: Service
  readonly cache: Service
  readonly orders: Service
  /** A process of no service, on the same host as the callers: what it sends is not captured. */
  readonly outsider: Service
}

/** Builds the network, its hosts and the catalog. */
export async function buildHosts(options: DemoOptions, note: Note): Promise<Mesh> {
  const { means } = options
  const mesh = await startMesh({
    hosts: ['alpha', 'beta', 'gamma'],
    catalog: options.consul ? 'consul' : 'file',
    capture: means.identity === 'upstream' ? 'off' : 'on',
    users: means.identity === 'user' ? 'distinct' : 'one',
    ...(means.window !== undefined && { config: { reports: { to: [AGGREGATOR] } } }),
  })
  for (const name of ['alpha', 'beta', 'gamma']) {
    const { namespace } = mesh.host(name)
    note(`${name.padEnd(6)} ${namespace.ip}  ${namespace.ip6}  (namespace ${namespace.name})`)
  }
  note(
    options.consul
      ? 'a real Consul: one server, one agent a host, its Connect CA'
      : 'one catalog file, and a CA made by `hostmesh ca init`',
  )
  return mesh
}

/** Declares what runs on which host. */
export function declareServices(mesh: Mesh, means: Means, postgres: number): Cast {
  const [alpha, beta, gamma] = [mesh.host('alpha'), mesh.host('beta'), mesh.host('gamma')]
  const identity = means.identity === 'upstream' ? 'none' : means.identity
  const base = { identity } as const
  // Both callers have the same upstreams but their own ports: that is what tells them apart then.
  const calls = (offset: number): { upstreams?: Record<string, number> } =>
    means.identity === 'upstream'
      ? {
          upstreams: Object.fromEntries(
            Object.entries(UPSTREAMS).map(([name, port]) => [name, port + offset]),
          ),
        }
      : {}
  return {
    storefront: alpha.service('storefront', { ...base, ...calls(0) }),
    reports: alpha.service('reports', { ...base, ...calls(100) }),
    pages: beta.service('pages', { ...base, id: 'pages-beta', listens: 8080 }),
    cache: beta.service('cache', { ...base, listens: 6379 }),
    morePages: gamma.service('pages', { ...base, id: 'pages-gamma', listens: 8080 }),
    orders: gamma.service('orders', { ...base, listens: 5432, user: postgres }),
    outsider: alpha.stranger(),
  }
}

/** Starts nginx, Redis and PostgreSQL. */
export async function startApplications(mesh: Mesh, cast: Cast, note: Note): Promise<void> {
  await Promise.all([
    startNginx(mesh, cast.pages),
    startNginx(mesh, cast.morePages),
    startRedis(mesh, cast.cache),
    startPostgres(mesh, cast.orders),
  ])
  const user = (service: Service): string =>
    mesh.options.users === 'one' ? '' : `, user ${service.uid}`
  const say = (service: Service, what: string): void =>
    note(`${service.host.name.padEnd(6)} ${service.name.padEnd(10)} ${what}${user(service)}`)
  say(cast.storefront, 'calls the others')
  say(cast.reports, 'calls the others')
  say(cast.pages, 'nginx on port 8080')
  say(cast.cache, 'Redis on port 6379')
  say(cast.morePages, 'nginx on port 8080')
  say(cast.orders, 'PostgreSQL on port 5432')
}

interface Times {
  readonly http: readonly number[]
  readonly sql: readonly number[]
}

async function showPlaintext(mesh: Mesh, cast: Cast, note: Note): Promise<Times> {
  const { outsider } = cast
  const targets = realTargets(cast)
  const secret = canary()
  await using wire = await WireCapture.start(mesh.network.wire)
  await carryText(outsider, targets, secret)
  await wire.sees(secret)
  await wire.sees('Server: nginx')
  note(`sent "${secret}" by HTTP, Redis and PostgreSQL`)
  note(
    `tcpdump on the bridge shows it ${paint('red', `${countOf(await wire.bytes(), secret)} times`)}`,
  )
  return {
    http: await timeHttp(outsider, targets.pages, HTTP_REQUESTS),
    sql: await timeSql(outsider, targets.orders, SQL_QUERIES),
  }
}

/** Says who may call whom, and starts the daemons. */
export async function startDaemons(mesh: Mesh, cast: Cast, note: Note): Promise<void> {
  for (const destination of ['pages', 'cache', 'orders'])
    await mesh.allow('storefront', destination)
  await mesh.allow('reports', 'orders')
  await mesh.deny('reports', 'cache')
  await mesh.up()
  const names: Destination[] = ['pages', 'cache', 'orders']
  for (const name of names) {
    const { ip, port } = await target(mesh, cast.storefront, name)
    note(`storefront reaches ${name.padEnd(6)} at ${ip}:${port}`)
  }
}

async function sendTraffic(
  mesh: Mesh,
  cast: Cast,
  note: Note,
): Promise<Times & { readonly redisMs: number }> {
  const { storefront } = cast
  const [pages, cache, orders] = await Promise.all([
    target(mesh, storefront, 'pages'),
    target(mesh, storefront, 'cache'),
    target(mesh, storefront, 'orders'),
  ])
  const answers = await eventually(() => carryText(storefront, { pages, cache, orders }, 'hello'))
  for (const answer of answers) note(`answered: ${answer}`)
  const hosts = new Set<string>()
  for (let i = 0; i < 20; i += 1) {
    const { stdout } = await curl(storefront, pages, '/')
    hosts.add(/on (\w+)/.exec(stdout)?.[1] ?? stdout)
  }
  if (hosts.size !== 2) throw new Error(`pages answered from ${[...hosts].join(', ')} only`)
  note(`pages answers from both hosts: ${[...hosts].toSorted().join(', ')}`)
  const http = await timeHttp(storefront, pages, HTTP_REQUESTS)
  note(`HTTP        ${HTTP_REQUESTS} requests, ${spread(http)}`)
  const startedAt = performance.now()
  const visits = await countInRedis(storefront, cache, REDIS_COMMANDS)
  const redisMs = performance.now() - startedAt
  if (visits !== REDIS_COMMANDS) throw new Error(`Redis counted ${visits}, not ${REDIS_COMMANDS}`)
  note(`Redis       ${REDIS_COMMANDS} commands in ${Math.round(redisMs)} ms, all counted`)
  const sql = await timeSql(storefront, orders, SQL_QUERIES)
  note(`PostgreSQL  ${SQL_QUERIES} queries, ${spread(sql)}`)
  return { http, sql, redisMs }
}

async function showDenial(mesh: Mesh, cast: Cast, note: Note): Promise<void> {
  const { storefront, reports } = cast
  const allowed = await redis(storefront, await target(mesh, storefront, 'cache'), ['PING'])
  const denied = await redis(reports, await target(mesh, reports, 'cache'), ['PING'])
  note(`storefront: redis-cli PING -> ${paint('green', allowed.stdout.trim())}`)
  note(`reports:    redis-cli PING -> ${paint('red', (denied.stderr || denied.stdout).trim())}`)
  if (allowed.stdout.trim() !== 'PONG' || denied.stdout.includes('PONG'))
    throw new Error('The intention did not decide')
  const { daemon } = mesh.host('beta')
  await eventually(async () => {
    const closed = 'hostmesh_tcp_connections_closed_total'
    const pair = { source_service: 'reports', destination_service: 'cache' }
    const count = await daemon.metric(closed, { ...pair, response_flags: 'DENY' })
    if (count === 0) throw new Error('beta has counted no denied connection')
    note(`beta has counted it: ${closed}{reports, cache, DENY} ${count}`)
  })
}

async function showSecrecy(mesh: Mesh, cast: Cast, note: Note): Promise<number> {
  const { storefront, outsider } = cast
  const secret = canary()
  await using wire = await WireCapture.start(mesh.network.wire)
  await carryText(
    storefront,
    {
      pages: await target(mesh, storefront, 'pages'),
      cache: await target(mesh, storefront, 'cache'),
      orders: await target(mesh, storefront, 'orders'),
    },
    secret,
  )
  const marker = canary()
  await carryText(outsider, realTargets(cast), marker)
  await wire.sees(marker)
  const bytes = await wire.bytes()
  note(`sent "${secret}" by HTTP, Redis and PostgreSQL`)
  if (bytes.includes(secret)) throw new Error('The text was seen on the wire')
  note(`tcpdump on the bridge shows it ${paint('green', 'not once')}`)
  note('(and shows what a process outside of the mesh sent right after it, so it was listening)')
  return bytes.length
}

async function showStatus(mesh: Mesh, note: Note): Promise<string> {
  const { daemon } = mesh.host('alpha')
  for (const command of ['status', 'services', 'peers', 'explain --from storefront --to orders']) {
    const { stdout, stderr } = await daemon.cli(...command.split(' '))
    note(paint('cyan', `alpha$ hostmesh ${command}`))
    note((stdout || stderr).trimEnd())
  }
  const all = await Promise.all(
    ['alpha', 'beta', 'gamma'].map((name) => mesh.host(name).daemon.peers()),
  )
  const outbound = all
    .flatMap(({ tunnels }) => tunnels)
    .filter(({ direction }) => direction === 'outbound')
  const streams = await Promise.all(
    ['alpha'].map((name) => mesh.host(name).daemon.metric('hostmesh_tunnel_streams_opened_total')),
  )
  return `${outbound.length}, mutual TLS 1.3, for ${streams[0]} connections`
}

async function keepRunning(mesh: Mesh): Promise<void> {
  const { daemon, namespace } = mesh.host('alpha')
  console.log(`\nEverything stays up. Look into it, for example on alpha, with:
  sudo nsenter --net=${namespace.path} bash
  scripts/hostmesh --addr unix://${daemon.socketPath} connections
Ctrl-C ends it and cleans up.`)
  await new Promise<never>(() => {
    // Only so that the process stays: the harness ends it at Ctrl-C.
    setInterval(() => undefined, 60_000)
  })
}

function realTargets(cast: Cast): Record<Destination, Target> {
  const at = (service: Service): Target => ({
    ip: service.host.namespace.ip,
    port: service.options.listens ?? 0,
  })
  return { pages: at(cast.pages), cache: at(cast.cache), orders: at(cast.orders) }
}

/** Where a service calls another one. */
export async function target(mesh: Mesh, caller: Service, name: Destination): Promise<Target> {
  const port = caller.options.upstreams?.[name]
  if (port !== undefined) return { ip: '127.0.0.1', port }
  return mesh.virtualAddress(name, caller.host)
}

function spread(times: readonly number[]): string {
  const sorted = times.toSorted((one, other) => one - other)
  const at = (share: number): string =>
    (sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? 0).toFixed(2)
  return `median ${at(0.5)} ms, p99 ${at(0.99)} ms`
}

function countOf(bytes: Buffer, text: string): number {
  let count = 0
  for (let at = bytes.indexOf(text); at >= 0; at = bytes.indexOf(text, at + 1)) count += 1
  return count
}

function describeIdentity(means: Means): string {
  return means.identity === 'user'
    ? 'their Unix users, by capture rules'
    : 'their own upstream ports (no capture)'
}
