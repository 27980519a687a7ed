/**
 * Certificates from a directory on this host ({@link readHostLeaf}), read again when a file changes.
 *
 * Files are looked at once a second rather than watched: that also sees replaced directories, network
 * file systems and mounts. A file that breaks is named in `problems()`, and what was read before stays.
 */
import { statSync } from 'node:fs'
import { type Clock, systemClock } from '../../lib/clock.ts'
import { errorCode } from '../../lib/errors.ts'
import type { Log } from '../../lib/log.ts'
import { fileSignature } from '../../lib/read-text-file.ts'
import { CertificateBoard } from './certificate-board.ts'
import type { CertificateSource } from './certificate-source.ts'
import { leafFiles, readHostLeaf, readHostRoots, rootFiles } from './host-directory.ts'

/** What the source is built from. */
export interface BuiltinSourceOptions {
  /** Written by `hostmesh ca issue`. */
  readonly directory: string
  readonly log: Log
  /** Leaves for another datacenter are refused; any will do unless given. */
  readonly datacenter?: string | undefined
  readonly clock?: Clock
  /** How often the files are looked at, milliseconds. */
  readonly pollMs?: number
}

const POLL_MS = 1_000

/** Nothing renews these files by itself, so there must be time left for a person to do it. */
const RENEWAL_OVERDUE_SHARE = 0.2

/** Never the name of a service: those have no spaces. */
const ROOTS = 'the roots'

/** Follows the files of `directory`. Reads the roots at once; whatever is wrong is in `problems()` then. */
export function createBuiltinSource(options: BuiltinSourceOptions): CertificateSource {
  const { directory, log, datacenter, clock = systemClock, pollMs = POLL_MS } = options
  const board = new CertificateBoard({
    log,
    clock,
    datacenter,
    renewalOverdueShare: RENEWAL_OVERDUE_SHARE,
  })
  const signatureBySubject = new Map<string, string>()
  const watchesByService = new Map<string, number>()

  /** `read` says whether it could; what could not be read is tried again, changed or not. */
  function readIfChanged(subject: string, files: readonly string[], read: () => boolean): void {
    const signature = files.map(signatureOf).join(' ')
    if (signature === signatureBySubject.get(subject)) return
    if (read()) signatureBySubject.set(subject, signature)
    else signatureBySubject.delete(subject)
  }

  function lookAtRoots(): void {
    const { trustDomain, roots } = rootFiles(directory)
    readIfChanged(ROOTS, [trustDomain, roots], () =>
      board.offerRoots(() => readHostRoots(directory)),
    )
  }

  function lookAtLeaf(service: string): void {
    const { certificate, privateKey } = leafFiles(directory, service)
    readIfChanged(service, [certificate, privateKey], () =>
      board.offerLeaf(service, () => readHostLeaf(directory, service)),
    )
  }

  function look(): void {
    lookAtRoots()
    for (const service of watchesByService.keys()) lookAtLeaf(service)
  }

  lookAtRoots()
  const timer = setInterval(look, pollMs)
  timer.unref()

  return {
    description: `files in ${directory}`,
    watchLeaf(service, onLeaf) {
      lookAtLeaf(service)
      watchesByService.set(service, (watchesByService.get(service) ?? 0) + 1)
      const watch = board.watchLeaf(service, onLeaf)
      let isOpen = true
      return {
        close() {
          if (!isOpen) return
          isOpen = false
          watch.close()
          const left = (watchesByService.get(service) ?? 1) - 1
          watchesByService.set(service, left)
          if (left > 0) return
          watchesByService.delete(service)
          signatureBySubject.delete(service)
          board.forget(service)
        },
      }
    },
    watchRoots: (onRoots) => board.watchRoots(onRoots),
    problems: () => board.problems(),
    async [Symbol.asyncDispose]() {
      clearInterval(timer)
      board[Symbol.dispose]()
    },
  }
}

/** What tells one state of a file from another; why it cannot be looked at counts as a state. */
function signatureOf(path: string): string {
  try {
    const facts = statSync(path)
    // Mode is part of it through ctime.
    return fileSignature(facts)
  } catch (thrown) {
    return errorCode(thrown)
  }
}
