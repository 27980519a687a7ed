/**
 * Connections of a worker that wait for data from the main thread. Each checks its condition whenever data has arrived,
 * and once a second.
 */
import { formatAddress, type SocketAddress } from '../model/address.ts'

/** Addresses per tick that one calling service may ask the main thread about; further ones wait for a later tick. */
const WANTED_PER_TICK = 100

/** The waiting connections of one worker. */
export class Waiting {
  private readonly waiters = new Set<() => void>()
  /** Addresses asked about in this tick, by the calling service. */
  private readonly wanted = new Map<string, Set<string>>()
  private readonly onWanted: (address: SocketAddress) => void

  /** @param onWanted called with an address that no known service has. */
  constructor(onWanted: (address: SocketAddress) => void) {
    this.onWanted = onWanted
  }

  /** Calls `look` on every {@link wake} until it returns a value or `timeoutMs` has passed. */
  until<T>(look: () => T | undefined, timeoutMs: number): Promise<T | undefined> {
    return new Promise((resolve) => {
      const finish = (found: T | undefined): void => {
        clearTimeout(deadline)
        this.waiters.delete(again)
        resolve(found)
      }
      const again = (): void => {
        const found = look()
        if (found !== undefined) finish(found)
      }
      const deadline = setTimeout(() => finish(undefined), timeoutMs)
      this.waiters.add(again)
      again()
    })
  }

  /** To be called when data has changed. */
  wake(): void {
    for (const look of this.waiters) look()
  }

  /** Asks about an address at most once per tick, however many connections wait for it. */
  want(caller: string, address: SocketAddress): void {
    const asked = this.wanted.get(caller) ?? new Set()
    const key = formatAddress(address)
    if (asked.has(key) || asked.size >= WANTED_PER_TICK) return
    this.wanted.set(caller, asked.add(key))
    this.onWanted(address)
  }

  /** Once a second: waiting connections ask again, since the main thread may not have known their address before. */
  tick(): void {
    this.wanted.clear()
    this.wake()
  }
}
