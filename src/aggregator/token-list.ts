/**
 * The file of bearer tokens: who has one, with which role, until when. It holds SHA-256 digests, not tokens, and is read
 * again when it changes. A changed file that is wrong is reported, and the former one holds.
 */
import { createHash } from 'node:crypto'
import { statSync } from 'node:fs'
import { z } from 'zod'
import type { Clock } from '../lib/clock.ts'
import { describeError, MeshError } from '../lib/errors.ts'
import type { Log } from '../lib/log.ts'
import { fileSignature, readTextFile } from '../lib/read-text-file.ts'
import { formatProblems, parseYamlDocument } from '../lib/yaml-document.ts'
import { type Role, roleSchema } from './config.ts'

const MAX_FILE_BYTES = 1_024 * 1_024

/** How often the file is looked at, at most. */
const LOOK_MS = 2_000

const tokenFile = z
  .array(
    z.strictObject({
      name: z.string().min(1).max(128),
      role: roleSchema,
      sha256: z
        .string()
        .regex(/^[0-9a-f]{64}$/, 'Must be a SHA-256 digest, 64 of 0-9 a-f')
        .describe('Of the token'),
      expires: z.iso.datetime({ offset: true }).describe('RFC 3339'),
    }),
  )
  .max(10_000)

/** Who has a token. */
export interface TokenOwner {
  readonly name: string
  readonly role: Role
  readonly expiresAtMs: number
}

/** The tokens of a file. */
export class TokenList {
  readonly #path: string
  readonly #clock: Clock
  readonly #log: Log
  #owners: ReadonlyMap<string, TokenOwner>
  #signature: string
  #lookedAtMs: number

  /** @throws MeshError HM_FILE_UNREADABLE, HM_TOKENS_INVALID */
  constructor(path: string, { clock, log }: { readonly clock: Clock; readonly log: Log }) {
    this.#path = path
    this.#clock = clock
    this.#log = log
    ;({ owners: this.#owners, signature: this.#signature } = readTokens(path))
    this.#lookedAtMs = clock.monotonicMs()
  }

  /** The owner of a token, also of one that has expired; undefined for any other text. */
  ownerOf(token: string): TokenOwner | undefined {
    this.#look()
    // By digest: how long a look-up takes says nothing about tokens.
    return this.#owners.get(createHash('sha256').update(token).digest('hex'))
  }

  #look(): void {
    const nowMs = this.#clock.monotonicMs()
    if (nowMs - this.#lookedAtMs < LOOK_MS) return
    this.#lookedAtMs = nowMs
    try {
      const signature = fileSignature(statSync(this.#path))
      if (signature === this.#signature) return
      // Remembered also when the file is wrong: it is reported once.
      this.#signature = signature
      const { owners } = readTokens(this.#path)
      this.#owners = owners
      this.#log.info('Tokens read again', { tokens: owners.size })
    } catch (error) {
      this.#log.error('Cannot read the tokens again: the former ones hold', {
        error: describeError(error),
      })
    }
  }
}

function readTokens(path: string): {
  readonly owners: ReadonlyMap<string, TokenOwner>
  readonly signature: string
} {
  const { text, signature } = readTextFile(path, MAX_FILE_BYTES)
  const parsed = parseYamlDocument(text, tokenFile)
  const problems = 'problems' in parsed ? formatProblems(path, parsed.problems) : []
  const owners = new Map<string, TokenOwner>()
  for (const { name, role, sha256, expires } of 'document' in parsed ? parsed.document.value : []) {
    if (owners.has(sha256)) problems.push(`${path}: two tokens have the digest of ${name}`)
    owners.set(sha256, { name, role, expiresAtMs: Date.parse(expires) })
  }
  if (problems.length === 0) return { owners, signature }
  throw new MeshError(
    'HM_TOKENS_INVALID',
    `The tokens in ${path} are not usable:\n  ${problems.join('\n  ')}`,
    { hint: 'See docs/observability.md, "Access"' },
  )
}
