/**
 * Stores on disk what a host received from the CA, so that a restart does not need the CA: its own certificate, those
 * of its services, and the bundle it trusts.
 *
 * ```
 *   host.pem               private key and certificate of the host
 *   services/<name>.pem    private key and certificate of a service
 *   bundle.json            address of the CA, and the bundle as it came
 * ```
 *
 * Key and certificate share a file, so that they always belong together. All files have mode 0600 and are replaced as a
 * whole. Reading checks only the format.
 */
import type { X509Certificate } from 'node:crypto'
import { existsSync, mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { z } from 'zod'
import { writeFileAtomically } from '../../lib/atomic-file.ts'
import { MeshError } from '../../lib/errors.ts'
import type { Log } from '../../lib/log.ts'
import { readTextFile } from '../../lib/read-text-file.ts'
import { bundleAnswer, type CaBundle, MAX_ANSWER_BYTES } from '../../model/ca-protocol.ts'
import { Problem } from '../../model/problem.ts'
import { isServiceName } from '../../model/spiffe-id.ts'
import type { HostCredential } from './ca-client.ts'
import { readKeyFile } from './host-directory.ts'
import { parseCertificates } from './x509.ts'

/** A stored certificate, also parsed, for repeated checks. */
export interface HeldCredential {
  readonly credential: HostCredential
  readonly certificate: X509Certificate
}

/** @throws MeshError HM_CA_ANSWER_MALFORMED and those of {@link parseCertificates} */
export function holdCredential(credential: HostCredential): HeldCredential {
  const [certificate] = parseCertificates(credential.certificatePem, 'the answer of the CA')
  if (certificate === undefined)
    throw new MeshError('HM_CA_ANSWER_MALFORMED', 'The CA sent no certificate')
  return { credential, certificate }
}

const storedBundle = z.object({ server: z.string(), bundle: bundleAnswer })

/** The bundle, and the address of the CA that sent it. */
export interface StoredBundle {
  readonly server: string
  readonly bundle: CaBundle
}

/**
 * The directory of one host. Writing never throws: a full disk affects the next restart, not the current traffic.
 */
export class CredentialStore {
  readonly #directory: string
  readonly #log: Log
  #problem: Problem | undefined

  /** Creates the directory if necessary. @throws MeshError HM_CERT_STORE_UNWRITABLE */
  constructor(directory: string, log: Log) {
    this.#directory = directory
    this.#log = log
    try {
      mkdirSync(join(directory, 'services'), { recursive: true, mode: 0o700 })
    } catch (cause) {
      throw unwritable(directory, cause)
    }
  }

  /** Why the last write failed; undefined if it succeeded. */
  get problem(): Problem | undefined {
    return this.#problem
  }

  /** @throws MeshError HM_FILE_UNREADABLE, HM_CERT_KEY_EXPOSED, HM_CERT_UNREADABLE */
  readHost(): HostCredential | undefined {
    return readCredential(this.#hostFile())
  }

  /** @throws MeshError as {@link CredentialStore.readHost} */
  readService(service: string): HostCredential | undefined {
    return isServiceName(service) ? readCredential(this.#serviceFile(service)) : undefined
  }

  /** @throws MeshError HM_FILE_UNREADABLE, HM_CERT_UNREADABLE */
  readBundle(): StoredBundle | undefined {
    const path = this.#bundleFile()
    if (!existsSync(path)) return undefined
    const { text } = readTextFile(path, MAX_ANSWER_BYTES)
    try {
      return storedBundle.parse(JSON.parse(text))
    } catch {
      throw new MeshError('HM_CERT_UNREADABLE', `Cannot read ${path}: it is damaged`)
    }
  }

  writeHost(credential: HostCredential): void {
    this.#write(this.#hostFile(), credential.privateKeyPem + credential.certificatePem)
  }

  writeService(service: string, credential: HostCredential): void {
    this.#write(this.#serviceFile(service), credential.privateKeyPem + credential.certificatePem)
  }

  writeBundle(stored: StoredBundle): void {
    this.#write(this.#bundleFile(), JSON.stringify(stored))
  }

  #hostFile(): string {
    return join(this.#directory, 'host.pem')
  }

  #serviceFile(service: string): string {
    return join(this.#directory, 'services', `${service}.pem`)
  }

  #bundleFile(): string {
    return join(this.#directory, 'bundle.json')
  }

  #write(path: string, text: string): void {
    try {
      writeFileAtomically(path, text, { mode: 0o600, existing: 'replace' })
      this.#problem = undefined
    } catch (cause) {
      const problem = Problem.of(unwritable(path, cause), 'HM_CERT_NOT_KEPT')
      if (this.#problem === undefined)
        this.#log.error('Certificates cannot be kept: a restart would need the CA', {
          problem: problem.message,
        })
      this.#problem = problem
    }
  }
}

const KEY = /-----BEGIN PRIVATE KEY-----[\sA-Za-z0-9+/=]+-----END PRIVATE KEY-----\n/
const FIRST_CERTIFICATE = '-----BEGIN CERTIFICATE-----'

function readCredential(path: string): HostCredential | undefined {
  if (!existsSync(path)) return undefined
  const text = readKeyFile(path)
  const privateKeyPem = KEY.exec(text)?.[0]
  const at = text.indexOf(FIRST_CERTIFICATE)
  if (privateKeyPem === undefined || at < 0)
    throw new MeshError('HM_CERT_UNREADABLE', `Cannot read ${path}: it is damaged`)
  return { privateKeyPem, certificatePem: text.slice(at) }
}

function unwritable(path: string, cause: unknown): MeshError {
  return new MeshError('HM_CERT_STORE_UNWRITABLE', `Cannot keep certificates at ${path}`, {
    cause,
    hint: 'Let the user of the daemon write to certificates.directory',
  })
}
