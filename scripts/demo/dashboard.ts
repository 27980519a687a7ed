/**
 * The demo with a dashboard: the hosts of the story report to an aggregator on gamma, their services call each other
 * all the time, and what comes of it is to be seen in a browser until Ctrl-C.
 */
import { get } from 'node:http'
import { join } from 'node:path'
import { AGGREGATOR, Aggregator } from '../../test/harness/aggregator.ts'
import { eventually } from '../../test/harness/eventually.ts'
import type { Mesh } from '../../test/harness/mesh.ts'
import { OwnedProcess } from '../../test/harness/owned-process.ts'
import type { Service } from '../../test/harness/service.ts'
import { DATABASE_USER, postgresUser } from './applications.ts'
import { type Note, paint, Stage } from './stage.ts'
import {
  buildHosts,
  type Cast,
  type DemoOptions,
  declareServices,
  startApplications,
  startDaemons,
  target,
} from './story.ts'
import type { Window } from './window.ts'

/** Where an aggregator serves its API and the dashboard, on its host. */
const API_PORT = 15_190

/** Shows it until a signal ends this process. @throws when anything is not as it should be */
export async function showDashboard(options: DemoOptions, window: Window): Promise<void> {
  const { means } = options
  const stage = new Stage(5)
  if (means.limitation !== undefined) console.log(paint('yellow', means.limitation))
  await using mesh = await stage.step('Three hosts on one network', (note) =>
    buildHosts(options, note),
  )
  const cast = declareServices(mesh, means, await postgresUser())
  const aggregator = new Aggregator(mesh, mesh.host('gamma'))
  await stage.step('Applications, none of them aware of a mesh', (note) =>
    startApplications(mesh, cast, note),
  )
  await stage.step(`An aggregator, on gamma as service ${AGGREGATOR}`, async (note) => {
    await aggregator.join()
    await aggregator.start()
    note('an intention allows hostmesh, as which hosts report, to reach it')
  })
  await stage.step('hostmesh on every host', (note) => startDaemons(mesh, cast, note))
  await stage.step('Steady traffic, and a look at it', async (note) => {
    await keepCalling(mesh, cast, note)
    await openDashboard(mesh, aggregator, window, note)
  })
  console.log(`\n${paint('bold', `The dashboard: http://127.0.0.1:${window.port}/`)}
On the command line:
  scripts/hostmesh fleet status --aggregator http://127.0.0.1:${window.port}
  scripts/hostmesh edges --fleet --aggregator http://127.0.0.1:${window.port}
Ctrl-C ends it and cleans up.`)
  await new Promise<never>(() => {
    // Only so that the process stays: the harness ends it at Ctrl-C.
    setInterval(() => undefined, 60_000)
  })
}

/** The services call each other from now on, each as a shell would; reports -> cache is denied. */
async function keepCalling(mesh: Mesh, cast: Cast, note: Note): Promise<void> {
  const { storefront, reports } = cast
  const at = async (caller: Service, name: 'pages' | 'cache' | 'orders') => {
    const { ip, port } = await target(mesh, caller, name)
    return { http: `http://${ip}:${port}/`, redis: `-h ${ip} -p ${port}`, ip, port }
  }
  const pages = await at(storefront, 'pages')
  const cache = await at(storefront, 'cache')
  await repeat(storefront, 0.2, `curl --silent --max-time 5 ${pages.http}`)
  await repeat(storefront, 0.5, `redis-cli ${cache.redis} INCR visits`)
  // One connection that stays open.
  await repeat(storefront, 1, `redis-cli ${cache.redis} -r -1 -i 1 PING`)
  for (const [caller, seconds] of [
    [storefront, 1],
    [reports, 3],
  ] as const) {
    const { ip, port } = await at(caller, 'orders')
    const query = `psql --no-psqlrc --quiet --host ${ip} --port ${port} --username ${DATABASE_USER} --dbname postgres --command "select 1"`
    await repeat(caller, seconds, `PGSSLMODE=disable PGCONNECT_TIMEOUT=5 ${query}`)
  }
  await repeat(reports, 2, `redis-cli ${(await at(reports, 'cache')).redis} PING`)
  note(
    'storefront -> pages, cache, orders; reports -> orders, and reports -> cache, which is denied',
  )
}

/** Runs a command as the service, again and again, until the mesh ends. */
async function repeat(service: Service, pauseSeconds: number, command: string): Promise<void> {
  const loop = `while :; do ${command} >/dev/null 2>&1; sleep ${pauseSeconds}; done`
  await service.spawn(['sh', '-c', loop])
}

async function openDashboard(
  mesh: Mesh,
  aggregator: Aggregator,
  window: Window,
  note: Note,
): Promise<void> {
  const relay = [process.execPath, ...process.execArgv, join(import.meta.dirname, 'forward.ts')]
  const { namespace } = mesh.host('gamma')
  mesh.own(
    await OwnedProcess.start(namespace.inside([...relay, window.socket, String(API_PORT)]), {
      name: 'window',
    }),
  )
  await eventually(() => isServed(window))
  const reporting = await eventually(
    async () => {
      const { hosts } = await aggregator.ask('hosts')
      if (hosts.length < 3) throw new Error(`only ${hosts.length} hosts have reported`)
      return hosts
    },
    { withinMs: 20_000 },
  )
  note(`reporting: ${reporting.map(({ name }) => name).join(', ')}`)
  note('figures of a minute take a minute; the last seconds are there at once')
}

/** Whether somebody answers behind the window. @throws when nobody does */
async function isServed(window: Window): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  const options = { socketPath: window.socket, path: '/healthz', headers: { host: 'localhost' } }
  get(options, (response) => {
    response.resume()
    if (response.statusCode === 200) resolve()
    else reject(new Error(`/healthz answers with ${response.statusCode}`))
  }).on('error', reject)
  await promise
}
