/**
 * Certificate, key and client roots of the API, read from their files, and again when one of them has changed. What is
 * wrong then is reported, and the former ones are used on.
 */
import { statSync } from 'node:fs'
import { createSecureContext } from 'node:tls'
import { describeError, MeshError } from '../lib/errors.ts'
import type { Log } from '../lib/log.ts'
import { fileSignature, readTextFile } from '../lib/read-text-file.ts'
import type { AggregatorConfig } from './config.ts'

const MAX_FILE_BYTES = 1_024 * 1_024

/** How often the files are looked at. */
const LOOK_MS = 10_000

/** What TLS is given. */
export interface TlsMaterial {
  readonly cert: string
  readonly key: string
  readonly ca?: string
}

/** The files, followed until disposal. */
export class TlsFiles implements Disposable {
  /** Whether clients are asked for a certificate. */
  readonly asksClients: boolean
  readonly #paths: readonly string[]
  readonly #read: () => TlsMaterial
  readonly #log: Log
  readonly #timer: NodeJS.Timeout
  readonly #listeners: ((material: TlsMaterial) => void)[] = []
  #material: TlsMaterial
  #signature: string

  /** @throws MeshError HM_API_TLS_INVALID, HM_FILE_UNREADABLE */
  constructor(
    { certificate, key }: NonNullable<AggregatorConfig['tls']>,
    roots: string | undefined,
    log: Log,
  ) {
    this.asksClients = roots !== undefined
    this.#paths = [certificate, key, ...(roots === undefined ? [] : [roots])]
    this.#log = log
    this.#read = () => readMaterial({ certificate, key, roots })
    this.#material = this.#read()
    this.#signature = this.#sign()
    this.#timer = setInterval(() => this.#look(), LOOK_MS).unref()
  }

  context(): TlsMaterial {
    return this.#material
  }

  /** Calls back with each changed material. */
  onChange(listener: (material: TlsMaterial) => void): void {
    this.#listeners.push(listener)
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer)
  }

  #sign(): string {
    return this.#paths.map((path) => fileSignature(statSync(path))).join()
  }

  #look(): void {
    try {
      const signature = this.#sign()
      if (signature === this.#signature) return
      this.#signature = signature
      this.#material = this.#read()
      for (const listener of this.#listeners) listener(this.#material)
      this.#log.info('Certificate of the API read again')
    } catch (error) {
      this.#log.error('Cannot read the certificate of the API again: the former one is used', {
        error: describeError(error),
      })
    }
  }
}

function readMaterial(paths: {
  readonly certificate: string
  readonly key: string
  readonly roots: string | undefined
}): TlsMaterial {
  const read = (path: string): string => readTextFile(path, MAX_FILE_BYTES).text
  const material = {
    cert: read(paths.certificate),
    key: read(paths.key),
    ...(paths.roots !== undefined && { ca: read(paths.roots) }),
  }
  try {
    createSecureContext(material)
  } catch (cause) {
    throw new MeshError('HM_API_TLS_INVALID', `Cannot use ${paths.certificate}`, {
      cause,
      hint: 'Certificate and key must be PEM, and belong together',
    })
  }
  return material
}
