/**
 * The embedded catalog: one YAML file, read again whenever it changes; needs no other program.
 *
 * A file that is unreadable or invalid changes nothing: the last good content stays, at a start that of an earlier run,
 * and health() reports the problem. It is an error only if there is none. Writers should replace the file by renaming;
 * one written in place is read once it has not changed for {@link SETTLE_MS}. Addresses that it no longer lists stay
 * addresses of the mesh for a while (former-instances.ts).
 */
import { type FSWatcher, watch } from 'node:fs'
import { stat } from 'node:fs/promises'
import { basename, dirname } from 'node:path'
import { type Clock, systemClock } from '../../../lib/clock.ts'
import { describeError, MeshError } from '../../../lib/errors.ts'
import type { Log } from '../../../lib/log.ts'
import { fileSignature, readTextFile } from '../../../lib/read-text-file.ts'
import { noStateFile, type StateFile } from '../../../lib/state-file.ts'
import { isStructurallyEqual } from '../../../lib/structural-equal.ts'
import { Problem } from '../../../model/problem.ts'
import type { LocalService } from '../../../model/service.ts'
import type {
  Catalog,
  CatalogHealth,
  CatalogPolicy,
  CatalogService,
  ListedService,
} from '../catalog.ts'
import { type CatalogContent, decodeCatalog, emptyCatalog, policyOf } from './decode.ts'
import {
  ageServices,
  type KnownContent,
  type KnownServices,
  listOf,
  noteContent,
  serviceOf,
} from './former-instances.ts'
import { type KeptFile, loadKeptFile, saveKeptFile } from './kept-file.ts'

/** The path of the file, and which of its nodes this host is. */
export interface FileCatalogOptions {
  readonly path: string
  /** This host's node name, to warn when the file does not list a service that runs here. */
  readonly node: string
  /** Content of an earlier run, and the place to store that of this one; closed by its owner. Absent: not stored. */
  readonly state?: StateFile
  /** Whether an unusable file is an error even if an earlier run has stored a good one. */
  readonly isStrict?: boolean
  readonly clock?: Clock
}

/** A larger file takes more than a second to parse: such a mesh needs a real catalog. */
const MAX_CATALOG_BYTES = 1024 * 1024

/** Most intentions listed one by one. */
const MAX_WARNINGS = 10

/** How often the file is checked; folder events, where they work, are faster. */
const POLL_MS = 750

/** A changed file is read when it has not changed for this long: its writer may still be writing. */
const SETTLE_MS = 100

/** A file that is written without a pause is still read, this long after the first change. */
const MAX_SETTLE_MS = 500

/** How often the age of gone addresses is checked, milliseconds. */
const AGE_EVERY_MS = 15_000

/** Two writes within the file system's time resolution leave the same times: a young file is read again. */
const YOUNG_MS = 2_000

/**
 * Opens a catalog file and follows it until disposed.
 * @throws MeshError HM_CATALOG_INVALID when the file is unreadable or invalid now, and no good one was stored or may be
 * used.
 */
export function createFileCatalog(options: FileCatalogOptions, log: Log): Catalog {
  return new FileCatalog(options, log)
}

/** Calls back one open watch if its answer has changed. */
type Report = () => void

class FileCatalog implements Catalog {
  readonly description: string
  readonly #options: FileCatalogOptions
  readonly #clock: Clock
  readonly #log: Log
  readonly #state: StateFile
  readonly #reports = new Set<Report>()
  readonly #poll: NodeJS.Timeout
  #settle: NodeJS.Timeout | undefined
  #unsettledSinceMs: number | undefined
  #folderWatcher: FSWatcher | undefined
  #content = emptyCatalog
  #known: KnownServices = new Map()
  /** The text that {@link #content} was made from. */
  #goodText: string | undefined
  #agedAtMs = 0
  #signature = ''
  #text: string | undefined
  #isYoung = false
  #lookRunning = false
  #problems: readonly string[] = []
  #registered: { readonly services: readonly LocalService[]; readonly tunnelPort: number } = {
    services: [],
    tunnelPort: 0,
  }
  #lastGoodAtMs: number | undefined
  #isClosed = false

  constructor(options: FileCatalogOptions, log: Log) {
    this.description = `file ${options.path}`
    this.#options = options
    this.#clock = options.clock ?? systemClock
    this.#log = log
    this.#state = options.state ?? noStateFile
    const kept = loadKeptFile(this.#state)
    this.#known = kept?.known ?? this.#known
    this.#read()
    if (this.#problems.length > 0 && (options.isStrict === true || !this.#takeKept(kept)))
      throw new MeshError(
        'HM_CATALOG_INVALID',
        `Catalog ${options.path} cannot be used:\n  ${this.#problems.join('\n  ')}`,
        { hint: 'See docs/file-catalog.md for the keys' },
      )
    this.#folderWatcher = this.#watchFolder()
    this.#poll = setInterval(() => void this.#look(), POLL_MS)
    this.#poll.unref()
  }

  watchService(name: string, onChange: (service: CatalogService) => void): Disposable {
    return this.#follow((now) => serviceOf(now, name), onChange)
  }

  watchServiceList(onChange: (services: readonly ListedService[]) => void): Disposable {
    return this.#follow(listOf, onChange)
  }

  watchPolicies(
    destinations: readonly string[],
    onChange: (policies: readonly CatalogPolicy[]) => void,
  ): Disposable {
    return this.#follow(
      ({ content }) => destinations.map((destination) => policyOf(content, destination)),
      onChange,
    )
  }

  /** Registers nothing: only the file is used. health() reports which of the services it lacks. */
  async register(services: readonly LocalService[], tunnelPort: number): Promise<void> {
    this.#registered = { services, tunnelPort }
  }

  async deregister(): Promise<void> {
    this.#registered = { services: [], tunnelPort: 0 }
  }

  health(): CatalogHealth {
    const broken = this.#problems.map(
      (message, position) =>
        new Problem('HM_CATALOG_FILE_BROKEN', message, { subject: String(position) }),
    )
    return {
      lastGoodAtMs: this.#lastGoodAtMs,
      problems: [...broken, ...this.#unlisted()],
      warnings: unknownDestinations(this.#content),
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isClosed = true
    clearInterval(this.#poll)
    clearTimeout(this.#settle)
    this.#folderWatcher?.close()
    this.#reports.clear()
    this.#save()
  }

  /** Reports `select` of the content now (but not before the caller has its watch) and whenever it changes. */
  #follow<T>(select: (now: KnownContent) => T, onChange: (answer: T) => void): Disposable {
    let last: { readonly answer: T } | undefined
    const report: Report = () => {
      const answer = select({ content: this.#content, known: this.#known })
      if (last !== undefined && isStructurallyEqual(last.answer, answer)) return
      last = { answer }
      onChange(answer)
    }
    this.#reports.add(report)
    setImmediate(() => {
      if (this.#reports.has(report) && last === undefined) report()
    })
    return { [Symbol.dispose]: () => this.#reports.delete(report) }
  }

  #watchFolder(): FSWatcher | undefined {
    const { path } = this.#options
    try {
      const watcher = watch(dirname(path), { persistent: false }, (_, name) => {
        if (name === null || name === basename(path)) this.#settleThenRead()
      })
      watcher.on('error', () => watcher.close())
      return watcher
    } catch (thrown) {
      // Out of inotify watches, or a file system without them: polling detects the change too.
      this.#log.debug('Cannot watch the catalog folder, polling only', {
        reason: describeError(thrown),
      })
      return undefined
    }
  }

  async #look(): Promise<void> {
    // A hung file system answers late or never: only one check at a time.
    if (this.#lookRunning) return
    this.#lookRunning = true
    this.#age()
    try {
      const signature = fileSignature(await stat(this.#options.path))
      if (signature !== this.#signature || this.#isYoung) this.#settleThenRead()
      else if (this.#problems.length === 0) this.#lastGoodAtMs = this.#clock.monotonicMs()
    } catch {
      this.#settleThenRead()
    } finally {
      this.#lookRunning = false
    }
  }

  #settleThenRead(): void {
    if (this.#isClosed) return
    const now = this.#clock.monotonicMs()
    this.#unsettledSinceMs ??= now
    if (now - this.#unsettledSinceMs > MAX_SETTLE_MS) return
    clearTimeout(this.#settle)
    this.#settle = setTimeout(() => this.#read(), SETTLE_MS)
    this.#settle.unref()
  }

  /** Reads the file; replaces the content if it is valid, otherwise only records what is wrong. */
  #read(): void {
    const { path } = this.#options
    let problems: readonly string[]
    this.#unsettledSinceMs = undefined
    try {
      const file = readTextFile(path, MAX_CATALOG_BYTES)
      this.#signature = file.signature
      this.#isYoung = this.#clock.wallMs() - file.mtimeMs < YOUNG_MS
      if (file.text === this.#text) {
        if (this.#problems.length === 0) this.#lastGoodAtMs = this.#clock.monotonicMs()
        return
      }
      this.#text = file.text
      const decoded = decodeCatalog(file.text, path)
      if ('content' in decoded) {
        this.#take(decoded.content, file.text)
        return
      }
      ;({ problems } = decoded)
    } catch (thrown) {
      this.#signature = ''
      this.#text = undefined
      problems = [describeError(thrown)]
    }
    if (isStructurallyEqual(problems, this.#problems)) return
    this.#problems = problems
    if (this.#lastGoodAtMs === undefined) return
    this.#log.error('Catalog file cannot be used; the last good one stays', { problems })
    // Saves the time of confirmation: after a crash the age must not be counted from the last change.
    this.#save()
  }

  /** Uses a good text of this file from an earlier run, if there is one. The problems of the file stay. */
  #takeKept(kept: KeptFile | undefined): boolean {
    const { path } = this.#options
    if (kept?.path !== path) return false
    const decoded = decodeCatalog(kept.text, path)
    if (!('content' in decoded)) return false
    this.#content = decoded.content
    this.#goodText = kept.text
    const ageMs = Math.max(0, this.#clock.wallMs() - kept.confirmedAtMs)
    this.#lastGoodAtMs = this.#clock.monotonicMs() - ageMs
    this.#log.error('Catalog file cannot be used; what an earlier run has read of it stays', {
      problems: this.#problems,
      confirmedAt: new Date(kept.confirmedAtMs).toISOString(),
    })
    return true
  }

  #take(content: CatalogContent, text: string): void {
    const isFirst = this.#lastGoodAtMs === undefined
    const hadProblems = this.#problems.length > 0
    this.#lastGoodAtMs = this.#clock.monotonicMs()
    this.#problems = []
    this.#goodText = text
    const known = noteContent(this.#known, content, this.#clock.wallMs())
    const isSame =
      isStructurallyEqual([...this.#content.serviceByName], [...content.serviceByName]) &&
      isStructurallyEqual(this.#content.intentions, content.intentions) &&
      this.#content.defaultPolicy === content.defaultPolicy
    if (isSame && !isFirst && !hadProblems) return
    this.#content = content
    this.#known = known
    this.#save()
    this.#log.info('Catalog file read', {
      path: this.#options.path,
      services: content.serviceByName.size,
      intentions: content.intentions.length,
    })
    this.#report()
  }

  #report(): void {
    for (const report of this.#reports) report()
  }

  #age(): void {
    const nowMs = this.#clock.monotonicMs()
    if (nowMs - this.#agedAtMs < AGE_EVERY_MS) return
    this.#agedAtMs = nowMs
    const known = ageServices(this.#known, this.#clock.wallMs())
    if (known === this.#known) return
    this.#known = known
    this.#save()
    this.#report()
  }

  #save(): void {
    const text = this.#goodText
    if (text === undefined) return
    saveKeptFile(this.#state, () => {
      const ageMs = this.#clock.monotonicMs() - (this.#lastGoodAtMs ?? 0)
      const confirmedAtMs = Math.round(this.#clock.wallMs() - ageMs)
      return { path: this.#options.path, text, confirmedAtMs, known: this.#known }
    })
  }

  /** The services of this host that the file does not make reachable. */
  #unlisted(): Problem[] {
    const { services, tunnelPort } = this.#registered
    const { node, path } = this.#options
    return services.flatMap((service) => {
      const says = (message: string): Problem[] => [
        new Problem('HM_CATALOG_NOT_LISTED', message, { subject: service.id }),
      ]
      if (service.target === undefined) return []
      const endpoint = this.#content.serviceByName
        .get(service.name)
        ?.clusters[0].endpoints.find((candidate) => candidate.key === `${node}/${service.id}`)
      if (endpoint === undefined)
        return says(
          `Service ${service.name} of this host is not in ${path}: it lists no instance with Node ${node} and ID ${service.id}`,
        )
      if (endpoint.tunnel.port !== tunnelPort && endpoint.tunnel.port !== service.connectPort)
        return says(
          `Service ${service.name} of this host has Port ${endpoint.tunnel.port} in ${path}, but the tunnel port is ${tunnelPort}`,
        )
      return []
    })
  }
}

/** Intentions for services that the file does not list; a caller need not be in a catalog, a destination must. */
function unknownDestinations({ serviceByName, intentions }: CatalogContent): string[] {
  const unknown = intentions.filter(
    ({ destination }) => destination !== '*' && !serviceByName.has(destination),
  )
  return unknown
    .slice(0, MAX_WARNINGS)
    .map(
      ({ source, destination }) =>
        `The intention ${source} -> ${destination} is for a service that the catalog file does not list: is it spelled right?`,
    )
}
