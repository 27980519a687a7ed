/**
 * The connections of one listener, bounded in number, without a way for one caller to keep the others out: when
 * there is one too many, whoever has most loses the one that has been idle for longest.
 */

/** What is needed of a connection. */
export interface BoundedConnection {
  readonly remoteAddress?: string | undefined
  destroy(): unknown
  once(event: 'close', listener: () => void): unknown
}

/** Bounds the connections it is told of. A unix socket has no addresses: all its callers count as one. */
export class FairConnections<Connection extends BoundedConnection> {
  private readonly max: number
  private readonly sourceOf: (connection: Connection) => string
  /** By caller, each in the order of last use. */
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

  /** A connection was accepted; it, or another in its place, may be destroyed now. */
  add(connection: Connection): void {
    const source = this.sourceOf(connection)
    const own = this.bySource.get(source) ?? new Map<Connection, number>()
    this.bySource.set(source, own)
    own.set(connection, this.nextUse())
    this.size += 1
    connection.once('close', () => this.remove(source, connection))
    if (this.size > this.max) this.shed()
  }

  /** A connection did what it is there for: it has become the last one to be given up. */
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
    // Not counted from now on: `close` comes in a later turn, when others may have come.
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
