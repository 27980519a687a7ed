/**
 * A thousand services and Consul's default limits: a host that follows all of them, beside another client with a
 * hundred connections, keeps at most 64 blocking queries open, is never refused, and sees each change.
 */
import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { Agent, createServer, type IncomingMessage, request, type ServerResponse } from 'node:http'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'

import { ConsulCatalog } from '../../src/controlplane/catalog/consul/consul-catalog.ts'
import { startDiscovery } from '../../src/controlplane/discovery/publisher.ts'
import { silentLog } from '../../src/lib/log.ts'
import { CONSUL_HOST, ConsulAgent, LONE_SERVER } from '../harness/consul.ts'
import { eventually } from '../harness/eventually.ts'
import { Network } from '../harness/network.ts'

const SERVICES = 1_000
const MAX_BLOCKING = 64

/** Stands between the host and its agent, and counts. */
async function startCounter(
  path: string,
  agentSocket: string,
): Promise<
  AsyncDisposable & { mostBlocking: number; mostConnections: number; refusals: string[] }
> {
  const towards = new Agent({ keepAlive: true })
  let blocking = 0
  let connections = 0
  const counter = {
    mostBlocking: 0,
    mostConnections: 0,
    refusals: [] as string[],
    async [Symbol.asyncDispose]() {
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
      towards.destroy()
    },
  }
  const forward = (asked: IncomingMessage, answer: ServerResponse): void => {
    const query = new URL(asked.url ?? '', 'http://agent').searchParams
    const mayBlock = query.has('wait') && query.get('index') !== '0'
    if (mayBlock) counter.mostBlocking = Math.max(counter.mostBlocking, (blocking += 1))
    const { method, headers, url } = asked
    const onward = request(
      { socketPath: agentSocket, agent: towards, method, headers, path: url },
      (given) => {
        const status = given.statusCode ?? 0
        if (status >= 400) counter.refusals.push(`${url}: ${status}`)
        answer.writeHead(status, given.headers)
        given.pipe(answer)
      },
    )
    onward.on('error', (error) => {
      if (!answer.destroyed) counter.refusals.push(`${url}: ${error.message}`)
      answer.destroy()
    })
    answer.on('close', () => {
      if (mayBlock) blocking -= 1
      if (!answer.writableFinished) onward.destroy()
    })
    asked.pipe(onward)
  }
  const server = createServer(forward)
  server.on('connection', (socket) => {
    counter.mostConnections = Math.max(counter.mostConnections, (connections += 1))
    socket.on('close', () => (connections -= 1))
  })
  await new Promise<void>((resolve) => server.listen(path, resolve))
  return counter
}

test('a thousand services converge and stay current within the limits of Consul', async () => {
  await using undo = new AsyncDisposableStack()
  const folder = await mkdtemp(join(tmpdir(), 'hmt-thousand-'))
  undo.defer(() => rm(folder, { recursive: true, force: true }))
  const network = undo.use(await Network.create([CONSUL_HOST]))
  const agent = undo.use(new ConsulAgent(join(folder, 'server'), network.host(CONSUL_HOST)))
  await agent.start({
    ...LONE_SERVER,
    node_name: 'server',
  })
  await agent.ready()

  /** An instance of a service on a host elsewhere, with its proxy. */
  const join1 = async (service: string, host: number): Promise<void> => {
    const node = { Node: `far-${host}`, Address: `10.7.${host}.1` }
    await agent.put('/v1/catalog/register', { ...node, Service: { Service: service, Port: 80 } })
    await agent.put('/v1/catalog/register', {
      ...node,
      Service: {
        Kind: 'connect-proxy',
        ID: `${service}-proxy`,
        Service: `${service}-proxy`,
        Port: 15_443,
        Proxy: { DestinationServiceName: service },
      },
    })
  }
  const names = Array.from({ length: SERVICES }, (_, index) => `s-${index}`)
  const missing = names.entries()
  await Promise.all(
    Array.from({ length: 8 }, async () => {
      for (const [index, name] of missing) await join1(name, index % 20)
    }),
  )

  for (let i = 0; i < 100; i += 1) {
    const other = connect(agent.socketPath)
    other.on('error', () => undefined)
    // An index that Consul never reaches: answered when the wait is over.
    other.write(`GET /v1/kv/none?index=999999999&wait=600s HTTP/1.1\r\nHost: agent\r\n\r\n`)
    undo.defer(() => void other.destroy())
  }

  const socketPath = join(folder, 'counted.sock')
  const counter = undo.use(await startCounter(socketPath, agent.socketPath))
  const catalog = undo.use(
    new ConsulCatalog({ address: `unix://${socketPath}`, requestTimeout: 10_000 }, silentLog),
  )
  const discovery = undo.use(
    startDiscovery(
      {
        catalog,
        datacenter: 'dc1',
        nodeName: 'server',
        localServices: [],
        mode: 'all',
        virtualRanges: ['240.0.0.0/4'],
        log: silentLog,
      },
      () => undefined,
    ),
  )
  await eventually(
    () => {
      assert.deepEqual(discovery.awaited(), [])
      assert.equal(discovery.current().services.size, SERVICES)
    },
    { withinMs: 60_000 },
  )
  const ips = [...discovery.virtualAddresses().values()].flat()
  assert.equal(new Set(ips).size, SERVICES, 'each has a virtual address of its own')

  for (let round = 0; round < 3; round += 1) {
    const changed = names.filter((_, index) => index % 101 === round)
    for (const name of changed) await join1(name, 30 + round)
    await eventually(
      () => {
        for (const name of changed)
          assert.ok(
            discovery
              .current()
              .services.get(name)
              ?.clusters[0].endpoints.some(({ node }) => node === `far-${30 + round}`),
            `${name} has its new instance`,
          )
      },
      { withinMs: 10_000 },
    )
  }
  assert.deepEqual(counter.refusals, [], 'no request was refused or cut off')
  assert.deepEqual(catalog.health().problems, [])
  assert.ok(
    counter.mostBlocking <= MAX_BLOCKING,
    `${counter.mostBlocking} blocking queries at once`,
  )
  assert.ok(counter.mostBlocking > MAX_BLOCKING / 2, 'and they are used')
  assert.ok(counter.mostConnections <= 100, `${counter.mostConnections} connections at once`)
})
