/**
 * How long a change in Consul takes until an application's new connection meets it: from the moment Consul has
 * taken the write to the first connection that ends up where the change says.
 */
import { connect } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import { type Distribution, distribution } from './distribution.ts'
import {
  instance,
  PROBED,
  probedNode,
  progress,
  type Scene,
  serviceName,
  UPSTREAM_BASE,
} from './scene.ts'

/** Milliseconds by kind of change. */
export interface ChangeFigures {
  readonly newInstance: Distribution
  readonly critical: Distribution
  readonly passing: Distribution
  /** Changes that were not met in {@link GIVE_UP_MS}. */
  readonly missed: number
}

/** Between two changes: long enough that they are single changes, short enough that they are many. */
const SPACING_MS = 250

const GIVE_UP_MS = 20_000

/** Times `count` changes of each kind, spread over the probed services. */
export async function measureChanges(scene: Scene, count: number): Promise<ChangeFigures> {
  const took = { newInstance: [] as number[], critical: [] as number[], passing: [] as number[] }
  let missed = 0
  const time = async (
    kind: keyof typeof took,
    change: () => Promise<void>,
    met: () => Promise<boolean>,
  ): Promise<void> => {
    await delay(SPACING_MS)
    await change()
    const startedMs = performance.now()
    while (performance.now() - startedMs < GIVE_UP_MS)
      if (await met()) {
        took[kind].push(performance.now() - startedMs)
        return
      }
    missed += 1
  }
  progress(`timing ${3 * count} changes`)
  for (let round = 0; round < count; round += 1) {
    // Neighbors in time are not neighbors in name, so that no cache of either side helps.
    const service = (round * 37) % PROBED
    const isSecondVisit = Math.floor(round / PROBED) % 2 === 1
    const port = isSecondVisit ? 0 : 1
    const old = isSecondVisit ? 1 : 0
    const register = (status: string) =>
      scene.agent.put('/v1/catalog/register', instance(service, port, status))
    await time(
      'newInstance',
      async () => {
        await register('passing')
        await scene.agent.put('/v1/catalog/deregister', {
          Node: probedNode(old),
          ServiceID: `${serviceName(service)}-${old}`,
        })
      },
      () => reaches(scene, service, port),
    )
    await time(
      'critical',
      () => register('critical'),
      async () => !(await reaches(scene, service, port)),
    )
    await time(
      'passing',
      () => register('passing'),
      () => reaches(scene, service, port),
    )
  }
  return {
    newInstance: distribution(took.newInstance),
    critical: distribution(took.critical),
    passing: distribution(took.passing),
    missed,
  }
}

/** Whether a connection to the service comes out at instance port number `port`. */
async function reaches(scene: Scene, service: number, port: 0 | 1): Promise<boolean> {
  const before = scene.arrivals[port]
  await new Promise<void>((resolve) => {
    const socket = connect(UPSTREAM_BASE + service, '127.0.0.1')
    socket.on('error', () => undefined)
    socket.once('close', () => resolve())
    socket.setTimeout(2_000, () => socket.destroy())
    socket.resume()
  })
  return scene.arrivals[port] > before
}
