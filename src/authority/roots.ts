/**
 * The roots of the CA, and which of them signs. Their key files are `ca.pem` and `ca.key`, made by `hostmesh ca init`,
 * or those of a root that has replaced the first one.
 *
 * ```
 *   (one root) --start--> spreading --every host has both roots--> reissuing --finish--> (one root)
 *                            |                                     |    ^
 *                          abort                                 abort--'  the two roots change places
 *                            v
 *                        (one root)
 * ```
 *
 * Belongs on one guarded machine, never on a host of the mesh: whoever reads `ca.key` can impersonate any service. The
 * trust domain is stored in the certificate itself, as its URI, so that the two always agree.
 */
import { randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, rmSync } from 'node:fs'
import { basename, join } from 'node:path'
import { readKeyFile } from '../controlplane/identity/host-directory.ts'
import {
  isTrustDomain,
  MAX_PEM_BYTES,
  parseCertificates,
  parsePrivateKey,
} from '../controlplane/identity/x509.ts'
import { writeFileAtomically } from '../lib/atomic-file.ts'
import { errorCode, MeshError } from '../lib/errors.ts'
import type { Log } from '../lib/log.ts'
import { readTextFile } from '../lib/read-text-file.ts'
import { singleUriSan } from '../lib/uri-san.ts'
import { fingerprintOf } from '../model/ca-protocol.ts'
import { CaDatabase, createDatabase, databaseFile } from './database.ts'
import { type Authority, issueRoot, ROOT_LIFETIME_MS } from './issue-certificate.ts'

/** A root that is ready to sign. */
export interface StoredAuthority extends Authority {
  /** Fingerprint of its certificate. */
  readonly id: string
  readonly certificatePath: string
  readonly certificatePem: string
  readonly trustDomain: string
}

/** A root of an open CA. */
export interface Root extends StoredAuthority {
  readonly name: string
  readonly addedAtMs: number
  readonly signs: boolean
  /** Whether it is removed when the current rotation is finished. */
  readonly retires: boolean
}

/** `spreading`: both roots are trusted, the retiring one signs. `reissuing`: the other one signs. */
export type RotationPhase = 'none' | 'spreading' | 'reissuing'

const SCHEME = 'spiffe://'
const FIRST_ROOT = 'ca'

/** The two files of a root. */
function rootFiles(
  directory: string,
  name: string,
): { readonly certificate: string; readonly privateKey: string } {
  return {
    certificate: join(directory, `${name}.pem`),
    privateKey: join(directory, `${name}.key`),
  }
}

/** Whether a directory belongs to a CA. */
export function holdsAuthority(directory: string): boolean {
  const first = rootFiles(directory, FIRST_ROOT)
  return [first.privateKey, first.certificate, databaseFile(directory)].some((path) =>
    existsSync(path),
  )
}

/**
 * Creates a CA in `directory`, which is created if necessary. Never overwrites one.
 * @throws MeshError HM_CA_EXISTS, HM_CA_NAME_INVALID, HM_CA_UNWRITABLE
 */
export function createAuthority(directory: string, trustDomain: string, nowMs: number): void {
  if (!isTrustDomain(trustDomain))
    throw new MeshError(
      'HM_CA_NAME_INVALID',
      `Cannot use ${JSON.stringify(trustDomain.slice(0, 256))} as trust domain: it is not a lower-case DNS name`,
      {
        hint: 'Use a name such as mesh.example.com, without scheme and path, at most 128 characters',
      },
    )
  const alreadyThere = new MeshError(
    'HM_CA_EXISTS',
    `Cannot make a CA in ${directory}: it holds one already`,
    {
      hint: 'Choose another directory; every certificate issued so far depends on the CA that is there',
    },
  )
  if (holdsAuthority(directory)) throw alreadyThere
  try {
    mkdirSync(directory, { recursive: true, mode: 0o700 })
    writeRoot(directory, FIRST_ROOT, trustDomain, nowMs)
  } catch (thrown) {
    if (errorCode(thrown) === 'EEXIST' && holdsAuthority(directory)) throw alreadyThere
    throw new MeshError('HM_CA_UNWRITABLE', `Cannot make a CA in ${directory}`, { cause: thrown })
  }
}

/** The file that whoever works on a CA holds locked. It exists once a CA has been used. */
export function lockFile(directory: string): string {
  return join(directory, 'lock')
}

/**
 * Opens the database of the CA in `directory`. Only for a CA that was never used, a database with its root is created.
 * @throws MeshError HM_CA_STATE_INVALID, HM_CA_UNWRITABLE, and as {@link readAuthority}
 */
export function openDatabase(directory: string): CaDatabase {
  if (isUnused(directory)) {
    const { id, certificate } = readRoot(directory, FIRST_ROOT)
    const addedAtMs = certificate.validFromDate.getTime()
    try {
      createDatabase(directory, { id, name: FIRST_ROOT, addedAtMs })
    } catch (thrown) {
      throw new MeshError('HM_CA_UNWRITABLE', `Cannot write ${databaseFile(directory)}`, {
        cause: thrown,
      })
    }
  }
  return new CaDatabase(directory)
}

/**
 * The signing root of the CA in `directory`. The caller checks whether it has expired.
 * @throws MeshError HM_CA_UNREADABLE when there is no CA, HM_CA_STATE_INVALID, HM_FILE_UNREADABLE, HM_CERT_UNREADABLE,
 * HM_CERT_KEY_UNREADABLE, HM_CERT_KEY_EXPOSED, HM_CERT_KEY_MISMATCH
 */
export function readAuthority(directory: string): StoredAuthority {
  if (isUnused(directory)) return readRoot(directory, FIRST_ROOT)
  using database = new CaDatabase(directory)
  const signing = database.row<{ name: string }>('SELECT name FROM root WHERE signs')
  return readRoot(directory, signing?.name ?? FIRST_ROOT)
}

function isUnused(directory: string): boolean {
  return !existsSync(databaseFile(directory)) && !existsSync(lockFile(directory))
}

/** The roots of a CA whose lock this process holds. */
export class Roots {
  readonly #directory: string
  readonly #database: CaDatabase
  readonly #log: Log
  #all: readonly Root[]

  /** Reads the keys, and removes root files left by a crash. @throws MeshError as {@link readAuthority} */
  constructor(directory: string, database: CaDatabase, log: Log) {
    this.#directory = directory
    this.#database = database
    this.#log = log
    this.#all = this.#read()
    this.#removeOrphans()
  }

  /** In the order in which they were added. */
  get all(): readonly Root[] {
    return this.#all
  }

  /** The root that every host has: it signs the server's certificate, and tokens contain its fingerprint. */
  get oldest(): Root {
    return this.#require(() => true)
  }

  /** The one that signs. */
  get active(): Root {
    return this.#require(({ signs }) => signs)
  }

  /** The root that is removed at the end of the rotation; undefined without a rotation. */
  get retiring(): Root | undefined {
    return this.#all.find(({ retires }) => retires)
  }

  get phase(): RotationPhase {
    if (this.retiring === undefined) return 'none'
    return this.retiring.signs ? 'spreading' : 'reissuing'
  }

  /** Adds a second root. @throws MeshError HM_CA_UNWRITABLE */
  startRotation(nowMs: number): void {
    const name = `root-${randomBytes(4).toString('hex')}`
    try {
      writeRoot(this.#directory, name, this.oldest.trustDomain, nowMs)
    } catch (thrown) {
      throw new MeshError('HM_CA_UNWRITABLE', `Cannot make a root in ${this.#directory}`, {
        cause: thrown,
      })
    }
    const { id } = readRoot(this.#directory, name)
    this.#database.change((run) => {
      run('UPDATE root SET retires = 1')
      run('INSERT INTO root VALUES (NULL, ?, ?, ?, 0, 0)', id, name, nowMs)
    })
    this.#all = this.#read()
  }

  /** Makes the new root sign from now on. */
  signWithTarget(): void {
    this.#change('UPDATE root SET signs = NOT retires')
  }

  /** Removes the retiring root and its key. */
  finishRotation(): void {
    this.#change('DELETE FROM root WHERE retires', 'UPDATE root SET signs = 1')
  }

  /**
   * Reverts the rotation. A new root that has not signed yet is removed; afterwards everything has to be issued again,
   * so the two roots change places and {@link finishRotation} removes the one that was new.
   */
  abortRotation(): void {
    if (this.phase === 'spreading')
      this.#change('DELETE FROM root WHERE NOT signs', 'UPDATE root SET retires = 0')
    else this.#change('UPDATE root SET signs = retires, retires = NOT retires')
  }

  #change(...statements: readonly string[]): void {
    this.#database.change((run) => {
      for (const sql of statements) run(sql)
    })
    this.#all = this.#read()
    this.#removeOrphans()
  }

  #require(isWanted: (root: Root) => boolean): Root {
    const found = this.#all.find(isWanted)
    if (found !== undefined) return found
    throw new MeshError('HM_CA_STATE_INVALID', `The CA in ${this.#directory} has no such root`)
  }

  #read(): readonly Root[] {
    const rows = this.#database.rows<{
      id: string
      name: string
      addedAtMs: number
      signs: number
      retires: number
    }>('SELECT * FROM root ORDER BY seq')
    return rows.map(({ id, name, addedAtMs, signs, retires }) => {
      const root = readRoot(this.#directory, name)
      if (root.id !== id)
        throw new MeshError(
          'HM_CA_STATE_INVALID',
          `Cannot open the CA in ${this.#directory}: ${name}.pem is not the root that state.db names`,
          { hint: 'Restore the whole directory from one backup' },
        )
      return { ...root, name, addedAtMs, signs: signs === 1, retires: retires === 1 }
    })
  }

  /** Removes files of roots that are no longer in the database: left by a crash or a rotation. */
  #removeOrphans(): void {
    for (const file of readdirSync(this.#directory)) {
      const name = /^(ca|root-[0-9a-f]{8})\.(pem|key)$/.exec(file)?.[1]
      if (name === undefined || this.#all.some((root) => root.name === name)) continue
      try {
        rmSync(join(this.#directory, file))
      } catch (thrown) {
        this.#log.warn('Cannot remove the file of a root that is gone', {
          file,
          error: errorCode(thrown),
        })
      }
    }
  }
}

/** Creates a root and its files; existing files are not changed. @throws what node:fs throws */
function writeRoot(directory: string, name: string, trustDomain: string, nowMs: number): void {
  const files = rootFiles(directory, name)
  const root = issueRoot(trustDomain, { nowMs, lifetimeMs: ROOT_LIFETIME_MS })
  writeFileAtomically(files.privateKey, root.privateKeyPem, { mode: 0o600, existing: 'fail' })
  writeFileAtomically(files.certificate, root.certificatePem, { mode: 0o644, existing: 'fail' })
}

/** Reads a root, and checks that its key matches its certificate. */
function readRoot(directory: string, name: string): StoredAuthority {
  const files = rootFiles(directory, name)
  const certificatePem = readCertificate(files.certificate, directory)
  const [certificate, ...more] = parseCertificates(certificatePem, files.certificate)
  const uri = certificate === undefined ? undefined : singleUriSan(certificate.raw)
  const trustDomain = uri?.startsWith(SCHEME) ? uri.slice(SCHEME.length) : ''
  if (certificate?.ca !== true || more.length > 0 || !isTrustDomain(trustDomain))
    throw new MeshError(
      'HM_CA_UNREADABLE',
      `Cannot use ${files.certificate} as a CA: it must be one CA certificate that names spiffe://<trust domain>`,
      { hint: 'Make one: hostmesh ca init --directory DIR --trust-domain NAME' },
    )
  const privateKey = parsePrivateKey(readKeyFile(files.privateKey), `the CA in ${directory}`)
  if (!certificate.checkPrivateKey(privateKey))
    throw new MeshError(
      'HM_CERT_KEY_MISMATCH',
      `Cannot use the CA in ${directory}: ${name}.key does not belong to ${name}.pem`,
      { hint: 'Restore both files from the same backup' },
    )
  if (privateKey.asymmetricKeyType !== 'ec')
    throw new MeshError(
      'HM_CA_UNREADABLE',
      `Cannot sign with ${files.privateKey}: it is not an EC key`,
    )
  return {
    id: fingerprintOf(certificate),
    certificatePath: files.certificate,
    certificate,
    certificatePem,
    privateKey,
    trustDomain,
  }
}

function readCertificate(path: string, directory: string): string {
  try {
    return readTextFile(path, MAX_PEM_BYTES).text
  } catch (thrown) {
    if (!(thrown instanceof Error) || errorCode(thrown.cause) !== 'ENOENT') throw thrown
    throw new MeshError(
      'HM_CA_UNREADABLE',
      `Cannot find a CA in ${directory}: there is no ${basename(path)}`,
      {
        hint: 'Make one: hostmesh ca init --directory DIR --trust-domain NAME',
      },
    )
  }
}
