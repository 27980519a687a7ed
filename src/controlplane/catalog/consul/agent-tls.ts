/**
 * TLS material for connections to the agent: roots, and the client certificate that an agent with
 * `verify_incoming` requires.
 *
 * The files are read again when they change, because certificates are renewed; new connections use the new ones. A
 * set that cannot be used, such as half of a new pair, is ignored.
 */
import { readFileSync, statSync } from 'node:fs'
import { createSecureContext } from 'node:tls'
import type { Clock } from '../../../lib/clock.ts'
import { describeError, type ErrorCode, MeshError } from '../../../lib/errors.ts'

/** Files in PEM, as the `catalog` section names them. */
export interface AgentTlsFiles {
  /** Default: the system's roots. */
  readonly caFile?: string | undefined
  readonly certFile?: string | undefined
  readonly keyFile?: string | undefined
}

/** The content of the files. */
export interface AgentTlsMaterial {
  readonly ca?: Buffer
  readonly cert?: Buffer
  readonly key?: Buffer
}

/** The material in use now. */
export interface AgentTls {
  current(): AgentTlsMaterial
  /** What is wrong with the files now; undefined when nothing is. */
  problem(): string | undefined
}

/** How often the files are checked for changes, milliseconds. */
const CHECK_MS = 2_000

/**
 * Reads the files for the first time.
 * @throws MeshError HM_CONSUL_CA_UNREADABLE, HM_CONSUL_CERT_UNUSABLE
 */
export function createAgentTls(files: AgentTlsFiles, clock: Clock): AgentTls {
  const paths = [files.caFile, files.certFile, files.keyFile].filter((path) => path !== undefined)
  let stamp = stampOf(paths)
  let material = readMaterial(files)
  let checkedAtMs = clock.monotonicMs()
  let problem: string | undefined
  return {
    problem: () => problem,
    current() {
      if (clock.monotonicMs() - checkedAtMs < CHECK_MS) return material
      checkedAtMs = clock.monotonicMs()
      const now = stampOf(paths)
      if (now === stamp) return material
      try {
        material = readMaterial(files)
        stamp = now
        problem = undefined
      } catch (error) {
        problem = `${describeError(error)}; the last good files stay in use`
      }
      return material
    },
  }
}

function stampOf(paths: readonly string[]): string {
  return paths
    .map((path) => {
      const stat = statSync(path, { throwIfNoEntry: false })
      return stat === undefined ? 'none' : `${stat.mtimeMs} ${stat.size} ${stat.ino}`
    })
    .join(', ')
}

function readMaterial({ caFile, certFile, keyFile }: AgentTlsFiles): AgentTlsMaterial {
  const material = {
    ...(caFile !== undefined && { ca: read(caFile, 'HM_CONSUL_CA_UNREADABLE', 'roots') }),
    ...(certFile !== undefined && {
      cert: read(certFile, 'HM_CONSUL_CERT_UNUSABLE', 'certificate'),
    }),
    ...(keyFile !== undefined && { key: read(keyFile, 'HM_CONSUL_CERT_UNUSABLE', 'key') }),
  }
  try {
    createSecureContext(material)
  } catch (cause) {
    const names = [caFile, certFile, keyFile].filter((path) => path !== undefined).join(', ')
    throw new MeshError('HM_CONSUL_CERT_UNUSABLE', `Cannot use ${names} for Consul`, {
      cause,
      hint: 'Check that the files are PEM and that the key belongs to the certificate',
    })
  }
  return material
}

function read(path: string, code: ErrorCode, what: string): Buffer {
  try {
    return readFileSync(path)
  } catch (cause) {
    throw new MeshError(code, `Cannot read the ${what} for Consul from ${path}`, { cause })
  }
}
