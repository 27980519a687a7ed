/**
 * The current ACL token: from the configuration, or from a file that may change at any time.
 *
 * The file is checked every two seconds while calls are made, and at once when Consul refuses a call: rotating a token
 * ends with deleting the old one. The first read must succeed; later failures keep the token that worked.
 */
import { readFileSync, statSync } from 'node:fs'
import type { Clock } from '../../../lib/clock.ts'
import { MeshError } from '../../../lib/errors.ts'

/** Where the token comes from. */
export interface TokenOptions {
  readonly token?: string | undefined
  /** Takes precedence over `token`. */
  readonly tokenFile?: string | undefined
}

/** A token, and notice of its changes. */
export interface TokenSource {
  /** Undefined for the anonymous token. */
  current(): string | undefined
  /** The same, after checking the file now. */
  latest(): string | undefined
  /** What is wrong with the file now; undefined when nothing is. */
  problem(): string | undefined
  /** Calls `listener` whenever the token has changed. Returns a function that ends that. */
  onChange(listener: () => void): () => void
}

/** How often the token file is checked. */
const TOKEN_CHECK_MS = 2_000

/** A Consul token is a UUID of 36 characters; JWTs used as tokens are longer. */
const MAX_TOKEN_BYTES = 8_192

/**
 * Reads the token for the first time.
 * @throws MeshError HM_CONSUL_TOKEN_UNREADABLE, HM_CONSUL_TOKEN_INVALID
 */
export function createTokenSource(options: TokenOptions, clock: Clock): TokenSource {
  const { tokenFile } = options
  if (tokenFile === undefined) {
    const fixed = checkToken(options.token ?? '', 'the configuration')
    return {
      current: () => fixed,
      latest: () => fixed,
      problem: () => undefined,
      onChange: () => () => undefined,
    }
  }
  const listeners = new Set<() => void>()
  let stamp = fileStamp(tokenFile)
  let token = readToken(tokenFile)
  let checkedAtMs = clock.monotonicMs()
  let problem: string | undefined

  function latest(): string | undefined {
    checkedAtMs = clock.monotonicMs()
    const before = token
    try {
      const now = fileStamp(tokenFile ?? '')
      if (now !== stamp) {
        token = readToken(tokenFile ?? '')
        stamp = now
      }
      problem = undefined
    } catch (error) {
      problem = error instanceof Error ? error.message : String(error)
    }
    if (token !== before) for (const listener of listeners) listener()
    return token
  }

  return {
    current: () => (clock.monotonicMs() - checkedAtMs < TOKEN_CHECK_MS ? token : latest()),
    latest,
    problem: () => problem,
    onChange(listener) {
      listeners.add(listener)
      return () => listeners.delete(listener)
    },
  }
}

function fileStamp(path: string): string {
  try {
    const { mtimeMs, size, ino } = statSync(path)
    return `${mtimeMs} ${size} ${ino}`
  } catch (cause) {
    throw tokenUnreadable(path, cause)
  }
}

function readToken(path: string): string | undefined {
  let bytes: Buffer
  try {
    bytes = readFileSync(path)
  } catch (cause) {
    throw tokenUnreadable(path, cause)
  }
  return checkToken(
    bytes
      .subarray(0, MAX_TOKEN_BYTES + 1)
      .toString('latin1')
      .trim(),
    path,
  )
}

function tokenUnreadable(path: string, cause: unknown): MeshError {
  return new MeshError('HM_CONSUL_TOKEN_UNREADABLE', `Cannot read the Consul token from ${path}`, {
    cause,
  })
}

function checkToken(token: string, origin: string): string | undefined {
  if (token === '') return undefined
  if (token.length <= MAX_TOKEN_BYTES && /^[\x21-\x7e]+$/.test(token)) return token
  throw new MeshError(
    'HM_CONSUL_TOKEN_INVALID',
    `Cannot use the Consul token from ${origin}: it is not one line of printable ASCII`,
  )
}
