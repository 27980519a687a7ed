/**
 * Certificates from files on this host that another program renews (`hostmesh ca issue`, Vault Agent, step-ca,
 * cert-manager), read again when a file changes.
 *
 * Files are checked once a second instead of watched: that also detects replaced directories, changed symbolic links,
 * network file systems and mounts. A damaged file, or a certificate whose key has not been written yet, is reported in
 * `problems()`, and what was read before stays.
 */
import { statSync } from 'node:fs'
import { type Clock, systemClock } from '../../lib/clock.ts'
import { errorCode, MeshError } from '../../lib/errors.ts'
import type { Log } from '../../lib/log.ts'
import { fileSignature, readTextFile } from '../../lib/read-text-file.ts'
import { singleUriSan } from '../../lib/uri-san.ts'
import type { TrustBundle } from '../../model/certificate.ts'
import { parseSpiffeId } from '../../model/spiffe-id.ts'
import { CertificateBoard } from './certificate-board.ts'
import type { CertificateSource } from './certificate-source.ts'
import {
  leafFiles,
  readHostLeaf,
  readHostRoots,
  readKeyFile,
  requireFileName,
  rootFiles,
} from './host-directory.ts'
import { type LeafCandidate, MAX_PEM_BYTES, parseCertificates, readRoots } from './x509.ts'

/** Paths chosen by the operator; `{service}` stands for the name of a service. */
export interface FilePatterns {
  /** The certificate, then intermediates. */
  readonly certificate: string
  readonly key: string
  /** All trusted roots; one file for all services. */
  readonly roots: string
  /** Default: that of the first certificate that is read. */
  readonly trustDomain?: string | undefined
}

/** What the source is built from. */
export interface FilesSourceOptions {
  /** A directory as written by `hostmesh ca issue`, or patterns. */
  readonly files: { readonly directory: string } | FilePatterns
  readonly log: Log
  /** Leaves for another datacenter are rejected. Default: any datacenter. */
  readonly datacenter?: string | undefined
  readonly clock?: Clock
  /** How often the files are checked, milliseconds. */
  readonly pollMs?: number
}

const POLL_MS = 1_000

/** This program does not renew these files, so a person must have time left to do it. */
const RENEWAL_OVERDUE_SHARE = 0.2

/** Never the name of a service: service names have no spaces. */
const ROOTS = 'the roots'

/** Follows the files. Reads the roots at once; problems are reported in `problems()`. */
export function createFilesSource(options: FilesSourceOptions): CertificateSource {
  const { log, datacenter, clock = systemClock, pollMs = POLL_MS } = options
  const layout =
    'directory' in options.files
      ? directoryLayout(options.files.directory)
      : patternLayout(options.files)
  const board = new CertificateBoard({
    log,
    clock,
    datacenter,
    renewalOverdueShare: RENEWAL_OVERDUE_SHARE,
  })
  const signatureBySubject = new Map<string, string>()
  const watched = new Set<string>()

  /** `read` returns whether it succeeded; after a failure the files are read again even if unchanged. */
  function readIfChanged(subject: string, files: readonly string[], read: () => boolean): void {
    const signature = files.map(signatureOf).join(' ')
    if (signature === signatureBySubject.get(subject)) return
    if (read()) signatureBySubject.set(subject, signature)
    else signatureBySubject.delete(subject)
  }

  function lookAtRoots(): void {
    if (!layout.knowsTrustDomain()) return
    readIfChanged(ROOTS, layout.rootPaths, () => board.offerRoots(() => layout.readRoots()))
  }

  function lookAtLeaf(service: string): void {
    readIfChanged(service, layout.leafPaths(service), () =>
      board.offerLeaf(service, () => layout.readLeaf(service)),
    )
  }

  /** Reads the files of a service until the result is disposed. */
  function openLeaf(service: string): Disposable {
    watched.add(service)
    lookAtLeaf(service)
    // The first leaf may determine the trust domain of the roots.
    lookAtRoots()
    return {
      [Symbol.dispose]() {
        watched.delete(service)
        signatureBySubject.delete(service)
      },
    }
  }

  lookAtRoots()
  const timer = setInterval(() => {
    lookAtRoots()
    for (const service of watched) lookAtLeaf(service)
  }, pollMs)
  timer.unref()

  return {
    description: layout.description,
    watchLeaf: (service, onLeaf) => board.watchLeaf(service, onLeaf, () => openLeaf(service)),
    watchRoots: (onRoots) => board.watchRoots(onRoots),
    problems: () => board.problems(),
    async [Symbol.asyncDispose]() {
      clearInterval(timer)
      board[Symbol.dispose]()
    },
  }
}

/** Where the files are and how they are read. */
interface Layout {
  readonly description: string
  readonly rootPaths: readonly string[]
  knowsTrustDomain(): boolean
  readRoots(): TrustBundle
  leafPaths(service: string): readonly string[]
  readLeaf(service: string): LeafCandidate
}

function directoryLayout(directory: string): Layout {
  const { trustDomain, roots } = rootFiles(directory)
  return {
    description: `files in ${directory}`,
    rootPaths: [trustDomain, roots],
    knowsTrustDomain: () => true,
    readRoots: () => readHostRoots(directory),
    leafPaths(service) {
      const { certificate, privateKey } = leafFiles(directory, service)
      return [certificate, privateKey]
    },
    readLeaf: (service) => readHostLeaf(directory, service),
  }
}

function patternLayout(patterns: FilePatterns): Layout {
  let trustDomain = patterns.trustDomain
  const pathOf = (pattern: string, service: string): string =>
    pattern.replaceAll('{service}', service)
  return {
    description: `files ${patterns.certificate}`,
    rootPaths: [patterns.roots],
    knowsTrustDomain: () => trustDomain !== undefined,
    readRoots: () => readRoots(readTextFile(patterns.roots, MAX_PEM_BYTES).text, trustDomain ?? ''),
    leafPaths: (service) => [pathOf(patterns.certificate, service), pathOf(patterns.key, service)],
    readLeaf(service) {
      // Only a service name may become a part of a path.
      requireFileName(service)
      const path = pathOf(patterns.certificate, service)
      const certificatePem = readTextFile(path, MAX_PEM_BYTES).text
      trustDomain ??= trustDomainOf(certificatePem, path)
      return { service, certificatePem, privateKeyPem: readKeyFile(pathOf(patterns.key, service)) }
    },
  }
}

function trustDomainOf(certificatePem: string, path: string): string {
  const [certificate] = parseCertificates(certificatePem, path)
  const uri = certificate === undefined ? undefined : singleUriSan(certificate.raw)
  const identity = parseSpiffeId(uri ?? '')
  if (identity === undefined)
    throw new MeshError(
      'HM_CERT_TRUST_DOMAIN',
      `Cannot tell the trust domain from ${path}: it does not name exactly one service as its URI`,
      { hint: 'Issue it with a SPIFFE ID as its only URI, or set certificates.trustDomain' },
    )
  return identity.trustDomain
}

/** Identifies one state of a file; an error in reading it counts as a state. */
function signatureOf(path: string): string {
  try {
    const facts = statSync(path)
    // A change of mode also changes ctime, which is included.
    return fileSignature(facts)
  } catch (thrown) {
    return errorCode(thrown)
  }
}
