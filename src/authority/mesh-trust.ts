/**
 * What every host of the mesh must trust: the roots, and the revoked certificates (the bundle); and the replacement of
 * a root, which proceeds when the hosts have followed.
 */
import { createHash } from 'node:crypto'
import type { Clock } from '../lib/clock.ts'
import { MeshError } from '../lib/errors.ts'
import type { Log } from '../lib/log.ts'
import type { CaBundle } from '../model/ca-protocol.ts'
import type { CaDatabase } from './database.ts'
import type { Roots } from './roots.ts'
import {
  areRootsSpread,
  type RotationStatus,
  readRotationStatus,
  type StatusInput,
} from './status.ts'

/** What the trust is built from. */
export interface MeshTrustOptions {
  readonly database: CaDatabase
  readonly roots: Roots
  readonly clock: Clock
  readonly log: Log
  /** How long after its expiry a host certificate may still be renewed, milliseconds. */
  readonly graceMs: number
  /** How long hosts may take to follow a change of the active root, milliseconds. */
  readonly renewWithinMs: number
}

/** The bundle of one CA, and the rotation of its roots. */
export class MeshTrust implements Disposable {
  readonly #options: MeshTrustOptions
  readonly #listeners = new Set<() => void>()
  /** The roots that each host reported to use. Not stored: after a restart hosts report them again within moments. */
  readonly #rootsIdByHost = new Map<string, string>()
  #bundle: CaBundle

  constructor(options: MeshTrustOptions) {
    this.#options = options
    this.#bundle = makeBundle(options)
  }

  [Symbol.dispose](): void {
    this.#listeners.clear()
  }

  /** What every host must trust now. */
  get bundle(): CaBundle {
    return this.#bundle
  }

  /** Calls back after every change of {@link MeshTrust.bundle}. */
  onBundle(listener: () => void): Disposable {
    this.#listeners.add(listener)
    return { [Symbol.dispose]: () => this.#listeners.delete(listener) }
  }

  /** Makes the bundle again, after a change of roots or revocations in the database, and continues a rotation. */
  update(): void {
    const bundle = makeBundle(this.#options)
    if (bundle.id !== this.#bundle.id) {
      this.#bundle = bundle
      for (const listener of this.#listeners) listener()
    }
    this.advance()
  }

  /** Signs with the new root once every host has it. */
  advance(): void {
    const { roots, log } = this.#options
    if (roots.phase !== 'spreading' || !areRootsSpread(this.statusInput())) return
    roots.signWithTarget()
    log.warn('Every host has both roots; the new one signs from now on', {
      activeRoot: roots.active.id,
    })
    this.update()
  }

  /** Records which set of roots a host reports to use now. */
  noteRoots(host: string, rootsId: string): void {
    if (this.#rootsIdByHost.get(host) === rootsId) return
    this.#rootsIdByHost.set(host, rootsId)
    this.advance()
  }

  /** A host has enrolled: what an earlier host of that name reported no longer counts. */
  forgetRoots(host: string): void {
    this.#rootsIdByHost.delete(host)
  }

  /** What a status is computed from now. */
  statusInput(): StatusInput {
    const { database, roots, clock, graceMs } = this.#options
    const { rootsId } = this.#bundle
    return {
      database,
      roots,
      nowMs: clock.wallMs(),
      graceMs,
      hasRoots: (host) => this.#rootsIdByHost.get(host) === rootsId,
    }
  }

  rotationStatus(): RotationStatus {
    return readRotationStatus(this.statusInput())
  }

  /** Adds a new root. @throws MeshError HM_CA_ROTATION_STATE, HM_CA_UNWRITABLE */
  startRotation(): RotationStatus {
    const { roots, clock, log } = this.#options
    if (roots.phase !== 'none')
      throw new MeshError('HM_CA_ROTATION_STATE', 'Cannot start: a rotation is going on', {
        hint: 'hostmesh ca rotate status says how far it is',
      })
    roots.startRotation(clock.wallMs())
    log.warn('Root rotation started', { target: roots.all.at(-1)?.id })
    this.update()
    return this.rotationStatus()
  }

  /** Removes the retiring root. @throws MeshError HM_CA_ROTATION_STATE, HM_CA_ROTATION_LAGGING */
  finishRotation(force: boolean): RotationStatus {
    const { roots, log } = this.#options
    this.#requireRotation()
    const { lagging, phase } = this.rotationStatus()
    if (!force && (lagging.length > 0 || phase === 'spreading'))
      throw new MeshError(
        'HM_CA_ROTATION_LAGGING',
        `Cannot finish: ${lagging.length} hosts are not done: ${lagging.slice(0, 10).join(', ')}`,
        {
          hint: 'Wait (hostmesh ca rotate status), revoke hosts that are gone, or lose them with --force',
        },
      )
    roots.finishRotation()
    log.warn('Root rotation finished', { activeRoot: roots.active.id, forced: force })
    this.update()
    return this.rotationStatus()
  }

  /** Returns to the previous root. @throws MeshError HM_CA_ROTATION_STATE */
  abortRotation(): RotationStatus {
    const { roots, log } = this.#options
    this.#requireRotation()
    roots.abortRotation()
    log.warn('Root rotation aborted', { activeRoot: roots.active.id })
    this.update()
    return this.rotationStatus()
  }

  #requireRotation(): void {
    if (this.#options.roots.phase === 'none')
      throw new MeshError('HM_CA_ROTATION_STATE', 'Cannot do this: no rotation is going on', {
        hint: 'Start one with: hostmesh ca rotate start',
      })
  }
}

function makeBundle({ database, roots, renewWithinMs }: MeshTrustOptions): CaBundle {
  const revoked = database
    .rows<{ serial: string }>('SELECT serial FROM revocation ORDER BY serial')
    .map(({ serial }) => serial)
  const activeRoot = roots.active.id
  const rootsId = contentIdOf(roots.all.map(({ id }) => id).toSorted())
  return {
    id: contentIdOf([rootsId, activeRoot, ...revoked]),
    rootsId,
    trustDomain: roots.oldest.trustDomain,
    roots: roots.all.map(({ certificatePem }) => certificatePem),
    activeRoot,
    revoked,
    renewWithinSeconds: renewWithinMs / 1_000,
  }
}

/** A short identifier of content: equal content has an equal identifier. */
function contentIdOf(parts: readonly string[]): string {
  return createHash('sha256').update(parts.join('\n')).digest('hex').slice(0, 16)
}
