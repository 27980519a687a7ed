/**
 * Limits the connections of one listener, so that one caller cannot keep the others out: above the limit, the
 * caller with the most connections loses the one that has been idle for longest.
 */

/** What the limit needs to know about a connection. */
export interface BoundedConnection {
  readonly remoteAddress?: string | undefined
  destroy(): unknown
  once(event: 'close', listener: () => void): unknown
}

/** Limits the connections that are added. A unix socket has no addresses: all its callers count as one. */
export class FairConnections<Connection extends BoundedConnection> {
  private readonly max: number
  private readonly sourceOf: (connection: Connection) => string
  /** Connections by caller, each in the order of last use. */
  private readonly bySource = new Map<string, Map<Connection, number>>()
  private size = 0
  private uses = 0

  constructor(
    max: number,
    sourceOf: (connection: Connection) => string = ({ remoteAddress }) => remoteAddress ?? '',
  ) {
    this.max = max
    this.sourceOf = sourceOf
  }

  /** Adds an accepted connection; this or another one may be destroyed now. */
  add(connection: Connection): void {
    const source = this.sourceOf(connection)
    const own = this.bySource.get(source) ?? new Map<Connection, number>()
    this.bySource.set(source, own)
    own.set(connection, this.nextUse())
    this.size += 1
    connection.once('close', () => this.remove(source, connection))
    if (this.size > this.max) this.shed()
  }

  /** Records a use of a connection: it becomes the last of its caller to be destroyed. */
  used(connection: Connection): void {
    const own = this.bySource.get(this.sourceOf(connection))
    if (own?.delete(connection) === true) own.set(connection, this.nextUse())
  }

  private nextUse(): number {
    this.uses += 1
    return this.uses
  }

  private shed(): void {
    let heaviest: { count: number; lastUse: number; source: string; idle: Connection } | undefined
    for (const [source, own] of this.bySource) {
      const [first] = own
      if (first === undefined) continue
      const [idle, lastUse] = first
      if (
        heaviest === undefined ||
        own.size > heaviest.count ||
        (own.size === heaviest.count && lastUse < heaviest.lastUse)
      )
        heaviest = { count: own.size, lastUse, source, idle }
    }
    if (heaviest === undefined) return
    // Removed now: the `close` event comes in a later turn, when others may have been added.
    this.remove(heaviest.source, heaviest.idle)
    heaviest.idle.destroy()
  }

  private remove(source: string, connection: Connection): void {
    const own = this.bySource.get(source)
    if (own?.delete(connection) !== true) return
    this.size -= 1
    if (own.size === 0) this.bySource.delete(source)
  }
}
