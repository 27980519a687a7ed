/**
 * What connections of a worker wait for: something that the main thread sends. It is looked for whenever something has come, and
 * once a second.
 */
import { formatAddress, type SocketAddress } from '../model/address.ts'

/** Addresses that one calling service may ask the main thread about in one tick; the others' turn comes in a later one. */
const WANTED_PER_TICK = 100

/** Those who wait, in one worker. */
export class Waiting {
  private readonly waiters = new Set<() => void>()
  /** Addresses asked about in this tick, by the calling service. */
  private readonly wanted = new Map<string, Set<string>>()
  private readonly onWanted: (address: SocketAddress) => void

  /** @param onWanted an address that no known service has. */
  constructor(onWanted: (address: SocketAddress) => void) {
    this.onWanted = onWanted
  }

  /** Asks `look` again whenever {@link wake} is called, until it answers or `timeoutMs` is over. */
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

  /** Something has changed. */
  wake(): void {
    for (const look of this.waiters) look()
  }

  /** Once an address and tick, however many connections wait for it. */
  want(caller: string, address: SocketAddress): void {
    const asked = this.wanted.get(caller) ?? new Set()
    const key = formatAddress(address)
    if (asked.has(key) || asked.size >= WANTED_PER_TICK) return
    this.wanted.set(caller, asked.add(key))
    this.onWanted(address)
  }

  /** Once a second: those who wait ask again, as the main thread may have known nothing of their address the last time. */
  tick(): void {
    this.wanted.clear()
    this.wake()
  }
}
