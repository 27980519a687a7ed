/**
 * Takes turns among endpoints of unequal weight: not at random, so that the shares match the weights after a hundred
 * connections as well as after a million, sequential or concurrent. Pure; randomness is passed in.
 *
 * Each endpoint has a time for its next turn, and the following one is 1/weight later; the earliest is next (earliest
 * deadline first). An endpoint is never more than one turn away from its share. The first times are random, so that the
 * workers of a host, and the hosts of a service, do not all begin with the same endpoint.
 */
import type { Random } from '../../lib/clock.ts'
import type { Endpoint } from '../../model/endpoint.ts'

/** The turns of the endpoints of one priority. */
export class Turns {
  private readonly endpoints: readonly Endpoint[]
  private readonly random: Random
  /** A heap, the earliest first: indices into `endpoints`, and in parallel the times of their turns. */
  private readonly heap: Int32Array
  private readonly times: Float64Array
  /** Cumulative weights, for {@link draw}. */
  private readonly sums: Float64Array

  /** @param endpoints not empty; random numbers are applied in this order. */
  constructor(endpoints: readonly Endpoint[], random: Random) {
    const count = endpoints.length
    this.endpoints = endpoints
    this.random = random
    this.heap = new Int32Array(count)
    this.times = new Float64Array(count)
    this.sums = new Float64Array(count)
    let sum = 0
    for (let i = 0; i < count; i += 1) {
      const weight = weightOf(endpoints[i])
      sum += weight
      this.heap[i] = i
      this.times[i] = random() / weight
      this.sums[i] = sum
    }
    for (let i = (count >> 1) - 1; i >= 0; i -= 1) this.sink(i)
  }

  /** The endpoint whose turn it is; the turn is then used. */
  next(): Endpoint | undefined {
    const endpoint = this.endpoints[this.heap[0] ?? 0]
    this.times[0] = (this.times[0] ?? 0) + 1 / weightOf(endpoint)
    this.sink(0)
    return endpoint
  }

  /** A random endpoint, by weight; uses no turn. */
  draw(): Endpoint | undefined {
    const { sums } = this
    let low = 0
    let high = sums.length - 1
    const at = this.random() * (sums[high] ?? 0)
    while (low < high) {
      const middle = (low + high) >> 1
      if (at < (sums[middle] ?? 0)) high = middle
      else low = middle + 1
    }
    return this.endpoints[low]
  }

  private sink(from: number): void {
    const { heap, times } = this
    const count = heap.length
    const index = heap[from] ?? 0
    const time = times[from] ?? 0
    let at = from
    for (;;) {
      let child = 2 * at + 1
      if (child >= count) break
      if (child + 1 < count && (times[child + 1] ?? 0) < (times[child] ?? 0)) child += 1
      const childTime = times[child] ?? 0
      if (childTime >= time) break
      heap[at] = heap[child] ?? 0
      times[at] = childTime
      at = child
    }
    heap[at] = index
    times[at] = time
  }
}

function weightOf(endpoint: Endpoint | undefined): number {
  return Math.max(1, endpoint?.weight ?? 1)
}
