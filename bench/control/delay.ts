/**
 * What the control plane's work costs the traffic: round trips of one connection through the daemon while the
 * catalog rests and while it changes, each beside a connection that does not pass the daemon at all. The machine's
 * own hiccups hit both; only what the first has more of is hostmesh's.
 */
import { setTimeout as delay } from 'node:timers/promises'
import type { Distribution } from './distribution.ts'
import { PROBED, progress, type Scene, serviceName } from './scene.ts'

/** Milliseconds for one round trip. */
export interface DelayFigures {
  readonly atRest: Pair
  readonly whileChanging: Pair
  /** Changes a second that Consul took meanwhile, each of a service with many instances. */
  readonly changesPerSecond: number
}

/** Through hostmesh, and beside it. */
export interface Pair {
  readonly through: Distribution
  readonly direct: Distribution
}

/** Between two changes, milliseconds. */
const CHANGE_EVERY_MS = 50

/** Measures both phases, `lengthMs` each. */
export async function measureDelay(scene: Scene, lengthMs: number): Promise<DelayFigures> {
  progress('round trips while the catalog rests')
  const atRest = await ping(scene, lengthMs)
  progress('round trips while the catalog changes')
  let changes = 0
  const stopped = new AbortController()
  const churning = churn(scene, stopped.signal, () => (changes += 1))
  const whileChanging = await ping(scene, lengthMs)
  stopped.abort()
  await churning
  return { atRest, whileChanging, changesPerSecond: Math.round((changes * 1_000) / lengthMs) }
}

/** Takes an instance away from one large service after another, and gives it back. */
async function churn(scene: Scene, signal: AbortSignal, onChange: () => void): Promise<void> {
  for (let round = 0; !signal.aborted; round += 1) {
    const service = PROBED + (((round >> 1) * 37) % (scene.scale.services - PROBED))
    const id = `${serviceName(service)}-0`
    if (round % 2 === 0)
      await scene.agent.put('/v1/catalog/deregister', { Node: 'n0', ServiceID: id })
    else
      await scene.agent.transact([
        {
          Service: {
            Verb: 'set',
            Node: 'n0',
            Service: {
              ID: id,
              Service: `${serviceName(service)}-proxy`,
              Kind: 'connect-proxy',
              Port: 15_443,
              Proxy: { DestinationServiceName: serviceName(service) },
            },
          },
        },
      ])
    onChange()
    await delay(CHANGE_EVERY_MS)
  }
}

/** Round trips are measured in a thread of their own, so that making changes does not delay them. */
function ping(scene: Scene, lengthMs: number): Promise<Pair> {
  return new Promise((resolve, reject) => {
    scene.pinger.once('message', resolve)
    scene.pinger.once('error', reject)
    scene.pinger.postMessage(lengthMs)
  })
}
