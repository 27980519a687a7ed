/**
 * Which services this host follows: its own, those it calls, and in mode `all` every mesh service, up
 * to a limit. Opens and closes the catalog's watches accordingly and keeps the last answer of each.
 */
import type { LocalService } from '../../model/service.ts'
import type { Catalog, CatalogService, Watch } from '../catalog/catalog.ts'

/** Follow only what this host offers and names as upstream, or every service of the mesh. */
export type WatchMode = 'upstreams' | 'all'

/** The open watches of one host. */
export interface WatchSet {
  /** The last answer for each watched service that has had one. */
  readonly services: ReadonlyMap<string, CatalogService>
  /** Watched services without an answer yet, and `names` in mode `all` before the first list. */
  awaited(): readonly string[]
  /** One sentence each; empty when every wanted service is watched. */
  problems(): readonly string[]
  close(): void
}

/** What a watch set is opened with. */
export interface WatchSetOptions {
  readonly catalog: Catalog
  readonly localServices: readonly LocalService[]
  readonly mode: WatchMode
  /** Called after every change of {@link WatchSet.services}. */
  readonly onChange: () => void
}

/** Services followed at once. Each costs a blocking query in Consul; a host that needs more is not a host. */
export const MAX_WATCHED_SERVICES = 1_000

/** Opens the watches; the owner closes the set. */
export function openWatchSet(options: WatchSetOptions): WatchSet {
  const { catalog, onChange } = options
  const needed = neededNames(options.localServices)
  const watches = new Map<string, Watch>()
  const services = new Map<string, CatalogService>()
  let isListAwaited = options.mode === 'all'
  let unwatched = 0
  let isClosed = false

  const open = (name: string): void => {
    watches.set(
      name,
      catalog.watchService(name, (service) => {
        // A catalog may still deliver an answer that was under way when its watch was closed.
        if (isClosed || !watches.has(name)) return
        services.set(name, service)
        onChange()
      }),
    )
  }
  const follow = (listed: readonly string[]): void => {
    const wanted = new Set([...needed, ...listed])
    let hasLost = false
    for (const [name, watch] of watches)
      if (!wanted.has(name)) {
        watch.close()
        watches.delete(name)
        hasLost = services.delete(name) || hasLost
      }
    // Needed names come first in the set; those already open stay, so that a full set does not churn.
    for (const name of wanted)
      if (!watches.has(name) && watches.size < MAX_WATCHED_SERVICES) open(name)
    unwatched = wanted.size - watches.size
    if (hasLost) onChange()
  }

  follow([])
  const names =
    options.mode === 'all'
      ? catalog.watchServiceNames((listed) => {
          if (isClosed) return
          isListAwaited = false
          follow(listed.toSorted())
          onChange()
        })
      : undefined

  return {
    services,
    awaited: () => [
      ...(isListAwaited ? ['the list of services'] : []),
      ...[...watches.keys()].filter((name) => !services.has(name)),
    ],
    problems: () =>
      unwatched === 0
        ? []
        : [
            `${unwatched} services are not followed: at most ${MAX_WATCHED_SERVICES} are; use watch: upstreams`,
          ],
    close: () => {
      isClosed = true
      names?.close()
      for (const watch of watches.values()) watch.close()
      watches.clear()
    },
  }
}

/** What must be followed whatever the mode: services that run here, then those they call. */
function neededNames(localServices: readonly LocalService[]): readonly string[] {
  const own = localServices.filter((service) => service.target !== undefined)
  const called = localServices.flatMap((service) => service.upstreams)
  return [
    ...new Set([
      ...own.map((service) => service.name),
      ...called.map((upstream) => upstream.destination),
    ]),
  ]
}
