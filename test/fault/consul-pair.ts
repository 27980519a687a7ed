/**
 * What the tests of Consul's faults have in common: web on host a calls db on host b, and host a reaches its agent
 * through {@link AgentBetween}, so that a test decides what the agent says.
 */
import { join } from 'node:path'
import { type AgentBetween, startAgentBetween } from '../harness/agent-between.ts'
import type { Consul } from '../harness/consul.ts'
import { eventually } from '../harness/eventually.ts'
import { type Mesh, type MeshOptions, startMesh } from '../harness/mesh.ts'
import type { RunningService } from '../harness/service.ts'
import { keepCalling, type SteadyCalls } from '../harness/steady-calls.ts'

/** The running pair. Disposing it ends the mesh with all its checks. */
export interface ConsulPair extends AsyncDisposable {
  readonly mesh: Mesh<Consul>
  /** On host a. */
  readonly web: RunningService
  /** On host b. */
  readonly db: RunningService
  /** What the daemon of host a takes for its agent. */
  readonly agent: AgentBetween
  /** Has web call db, over and over. */
  calls(): SteadyCalls
  /** What the status of host a says of the catalog, one line. */
  problems(): Promise<string>
}

/** Starts the pair and waits until calls arrive. */
export async function startConsulPair(options: Partial<MeshOptions> = {}): Promise<ConsulPair> {
  await using undo = new AsyncDisposableStack()
  const mesh = undo.use(await startMesh({ hosts: ['a', 'b'], ...options, catalog: 'consul' }))
  const web = await mesh.host('a').service('web').start()
  const db = await mesh.host('b').service('db', { id: 'db-b', listens: 5432 }).start()
  await mesh.allow('web', 'db')
  const agent = await startAgentBetween(
    join(mesh.folder, 'between.sock'),
    mesh.catalog.agent('a').socketPath,
  )
  mesh.ownBeyondDaemons(agent)
  await mesh.prepare(mesh.host('a'))
  await mesh.host('a').daemon.start(['env', `CONSUL_HTTP_ADDR=${agent.address}`])
  await mesh.up()
  await eventually(() => web.call('db'))
  const held = undo.move()
  return {
    mesh,
    web,
    db,
    agent,
    calls: () => keepCalling(() => web.call('db')),
    problems: async () => (await mesh.host('a').daemon.status()).catalog.problems.join('\n'),
    [Symbol.asyncDispose]: () => held.disposeAsync(),
  }
}
