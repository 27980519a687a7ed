/**
 * What the control-plane benchmark measures in: a Consul server with the services, one daemon that follows all of
 * them, and two plain TCP ports that stand for the instances whose changes are timed.
 *
 * Most services have many instances at addresses where nobody answers; the first {@link PROBED} have one instance,
 * at a port of ours, and a port on loopback that leads to them through the daemon.
 */
import { once } from 'node:events'
import { get } from 'node:http'
import { createServer, type Server } from 'node:net'
import { join, resolve } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import { writeConfig } from '../site/certificates.ts'
import { RunningProcess, run, waitFor } from '../site/process.ts'
import { requireTool } from '../site/tools.ts'
import { Agent } from './agent.ts'

/** How much there is to follow. */
export interface Scale {
  readonly services: number
  readonly instances: number
}

/** Services whose changes are timed. */
export const PROBED = 100

/** First of the loopback ports that lead to the services. */
export const UPSTREAM_BASE = 21_000

/** Where the echo service is reached through the daemon, and where without it. */
export const ECHO_THROUGH = 20_900
export const ECHO_DIRECT = 20_901

/** The ports that stand for instances. */
const INSTANCE_PORTS = [20_910, 20_911] as const

const INSTANCE_ADDRESS = '10.88.0.1'
const EXECUTABLE = resolve(import.meta.dirname, '../../scripts/hostmesh')

/** The configuration takes so many upstreams a service. */
const UPSTREAMS_A_CALLER = 200

/** Milliseconds from "ready" to the first measurement. */
const SETTLE_MS = 10_000

const NEVER = new AbortController().signal

/** A running scene. Disposing ends its processes. */
export interface Scene extends AsyncDisposable {
  readonly agent: Agent
  readonly scale: Scale
  /** Connections that came in at each of {@link INSTANCE_PORTS} so far. */
  readonly arrivals: readonly [number, number]
  readonly loadFigures: { readonly registerSeconds: number; readonly followSeconds: number }
  /** The thread that measures round trips. */
  readonly pinger: Worker
}

/** The name of service `index`. */
export function serviceName(index: number): string {
  return `svc-${index}`
}

/** The node of the instances at port number `port`. */
export function probedNode(port: 0 | 1): string {
  return `probed-${port}`
}

/** The instance of a service at port number `port`, as Consul's catalog takes it: a proxy on a node without agent. */
export function instance(service: number, port: 0 | 1, status = 'passing'): object {
  const name = serviceName(service)
  const id = `${name}-${port}`
  return {
    Node: probedNode(port),
    Address: INSTANCE_ADDRESS,
    Service: {
      ID: id,
      Service: `${name}-proxy`,
      Kind: 'connect-proxy',
      Port: INSTANCE_PORTS[port],
      Proxy: { DestinationServiceName: name, DestinationServiceID: id },
    },
    Check: { CheckID: `check-${id}`, Name: 'listening', Status: status, ServiceID: id },
  }
}

/** Builds the scene in `directory`; resolves when every service is known to the daemon. */
export async function buildScene(scale: Scale, directory: string): Promise<Scene> {
  await using undo = new AsyncDisposableStack()
  await run([requireTool('ip'), 'address', 'add', `${INSTANCE_ADDRESS}/32`, 'dev', 'lo'])
  const arrivals: [number, number] = [0, 0]
  for (const [index, port] of INSTANCE_PORTS.entries())
    undo.use(
      await listen(port, INSTANCE_ADDRESS, () => {
        arrivals[index === 0 ? 0 : 1] += 1
      }),
    )
  const agent = undo.use(await Agent.start(directory))
  const perService = Math.floor((scale.instances - PROBED) / (scale.services - PROBED))
  const registering = performance.now()
  progress(`registering ${scale.instances} instances of ${scale.services} services`)
  await registerAll(agent, scale, perService)
  const registerSeconds = secondsSince(registering)

  const [pinger] = await Promise.all([
    startThread('./ping.ts', undo),
    startThread('./echo.ts', undo),
  ])
  progress('starting the daemon')
  const following = performance.now()
  const configPath = await writeConfig(join(directory, 'host.yaml'), daemonConfig(scale, directory))
  const daemon = new RunningProcess({
    name: 'hostmesh',
    argv: [EXECUTABLE, 'run', '--config', configPath],
    logFile: join(directory, 'hostmesh.log'),
  })
  undo.defer(() => daemon.stop())
  const socketPath = join(directory, 'admin.sock')
  await waitFor(
    'the daemon follows every service',
    { deadlineMs: 180_000, signal: NEVER },
    async () => {
      if (daemon.end !== undefined) throw new Error(`hostmesh ended: ${daemon.end}`)
      return (await isReady(socketPath)) ? true : undefined
    },
  ).catch((error: unknown) => {
    throw new Error(`${String(error)}\n${daemon.outputTail()}`)
  })
  // First answers come in a burst; what is measured is the state that lasts.
  await delay(SETTLE_MS)
  const owned = undo.move()
  return {
    agent,
    scale,
    arrivals,
    loadFigures: { registerSeconds, followSeconds: secondsSince(following) },
    pinger,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}

async function registerAll(agent: Agent, scale: Scale, perService: number): Promise<void> {
  for (let node = 0; node < perService; node += 1)
    await agent.put('/v1/catalog/register', { Node: `n${node}`, Address: `10.89.0.${node % 250}` })
  const operations: object[] = []
  for (let service = PROBED; service < scale.services; service += 1)
    for (let node = 0; node < perService; node += 1)
      operations.push({
        Service: {
          Verb: 'set',
          Node: `n${node}`,
          Service: {
            ID: `${serviceName(service)}-${node}`,
            Service: `${serviceName(service)}-proxy`,
            Kind: 'connect-proxy',
            Port: 15_443,
            Proxy: { DestinationServiceName: serviceName(service) },
          },
        },
      })
  await agent.transact(operations)
  for (let service = 0; service < PROBED; service += 1)
    await agent.put('/v1/catalog/register', instance(service, 0))
  // The mesh service behind a proxy has a name of its own in the catalog.
  for (let service = 0; service < scale.services; service += 1)
    await agent.put('/v1/catalog/register', {
      Node: 'names',
      Address: INSTANCE_ADDRESS,
      Service: { ID: serviceName(service), Service: serviceName(service), Port: 8_000 },
    })
  await agent.put(
    '/v1/connect/intentions',
    {
      SourceName: '*',
      DestinationName: '*',
      Action: 'allow',
    },
    'POST',
  )
}

function daemonConfig(scale: Scale, directory: string): string {
  const callers = Math.ceil(scale.services / UPSTREAMS_A_CALLER)
  const services = Array.from({ length: callers }, (_, caller) => ({
    name: `caller-${caller}`,
    upstreams: Array.from(
      { length: Math.min(UPSTREAMS_A_CALLER, scale.services - caller * UPSTREAMS_A_CALLER) },
      (_unused, each) => {
        const index = caller * UPSTREAMS_A_CALLER + each
        return { destination: serviceName(index), bindPort: UPSTREAM_BASE + index }
      },
    ),
  }))
  return JSON.stringify({
    catalog: { kind: 'consul', address: Agent.address },
    certificates: { kind: 'consul' },
    services: [
      ...services,
      { name: 'echo', port: ECHO_DIRECT },
      { name: 'pinger', upstreams: [{ destination: 'echo', bindPort: ECHO_THROUGH }] },
    ],
    state: { directory: join(directory, 'state') },
    admin: { socket: join(directory, 'admin.sock') },
    timeouts: { drain: '1s' },
    log: { level: 'error', format: 'text' },
  })
}

/** Starts a thread of this benchmark; resolves when it says that it is ready. */
async function startThread(file: string, owner: AsyncDisposableStack): Promise<Worker> {
  const thread = new Worker(new URL(file, import.meta.url))
  owner.defer(async () => void (await thread.terminate()))
  await once(thread, 'message')
  return thread
}

/** Whether the daemon behind an admin socket has all it waits for. */
function isReady(socketPath: string): Promise<boolean> {
  return new Promise((tell) => {
    get({ socketPath, path: '/v1/status' }, (response) => {
      let text = ''
      response.setEncoding('utf8')
      response.on('data', (chunk: string) => {
        text += chunk
      })
      response.once('end', () =>
        tell(
          response.statusCode === 200 && Reflect.get(Object(JSON.parse(text)), 'ready') === true,
        ),
      )
    }).once('error', () => tell(false))
  })
}

/** A port that counts who comes and hangs up. */
async function listen(port: number, address: string, onConnection: () => void): Promise<Server> {
  const server = createServer((socket) => {
    onConnection()
    socket.on('error', () => undefined)
    socket.destroy()
  })
  await new Promise<void>((done, fail) => {
    server.once('error', fail)
    server.listen(port, address, done)
  })
  return server
}

/** One line of progress. */
export function progress(what: string): void {
  process.stderr.write(`${what}\n`)
}

function secondsSince(startedMs: number): number {
  return Number(((performance.now() - startedMs) / 1_000).toFixed(1))
}
