/**
 * What the CA knows beside its keys and its journal: hosts, open tokens, roots, rotation, revocations. One file,
 * replaced whole; read at the start and written after every change, before anybody is told of it.
 *
 * Owned by whoever holds the lock of the directory. A file that cannot be read ends everything: going on
 * without it would forget revocations.
 */
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { z } from 'zod'
import { syncFolder, writeFileAtomically } from '../controlplane/identity/atomic-file.ts'
import { MeshError } from '../lib/errors.ts'
import { readTextFile } from '../lib/read-text-file.ts'

const time = z.number().min(0)
const hex = z.string().regex(/^[0-9a-fA-F]+$/)

/** One root; its files are `<name>.pem` and `<name>.key`. */
const root = z.strictObject({
  id: hex,
  name: z.string().regex(/^(ca|root-[0-9a-f]{8})$/),
  addedAtMs: time,
})

const token = z.strictObject({
  id: hex,
  secretHash: hex,
  host: z.string(),
  datacenter: z.string(),
  services: z.array(z.string()),
  expiresAtMs: time,
  /**
   * Hash of the key that it was used for; null while nobody has. Used ones are kept until they expire: a
   * replay is called one, and the host whose answer was lost may ask again for the same key.
   */
  usedByKey: hex.nullable(),
})

const hostCertificate = z.strictObject({ serial: hex, rootId: hex, notAfterMs: time })

const host = z.strictObject({
  name: z.string(),
  datacenter: z.string(),
  /** What its token lets it ask for; the catalog may allow more. */
  services: z.array(z.string()),
  enrolledAtMs: time,
  /** The current one and those that a lost answer may have left in use; newest last. */
  certificates: z.array(hostCertificate),
})

const state = z.strictObject({
  version: z.literal(1),
  /** Where hosts reach the server; null until one was started. */
  address: z.string().nullable(),
  roots: z.array(root).min(1).max(2),
  activeRoot: hex,
  /** null: one root, nothing going on. */
  rotation: z
    .strictObject({
      /** `spreading`: both are trusted, the retiring one signs. `reissuing`: the target signs. */
      phase: z.enum(['spreading', 'reissuing']),
      retiring: hex,
      target: hex,
      startedAtMs: time,
    })
    .nullable(),
  tokens: z.array(token),
  hosts: z.array(host),
  revoked: z.array(z.strictObject({ serial: hex, notAfterMs: time })),
})

/** The content of `state.json`. */
export type CaState = z.output<typeof state>
/** One host of it. */
export type CaHost = z.output<typeof host>
/** One join token of it. */
export type CaToken = z.output<typeof token>

/** 8,000 hosts take 5 MB. */
const MAX_STATE_BYTES = 64 * 1_024 * 1_024

/** Where the state of a CA is. */
export function stateFile(directory: string): string {
  return join(directory, 'state.json')
}

/**
 * The state in `directory`; undefined when there is none yet.
 * @throws MeshError HM_FILE_UNREADABLE, HM_CA_STATE_INVALID
 */
export function readState(directory: string): CaState | undefined {
  const path = stateFile(directory)
  if (!existsSync(path)) return undefined
  const { text } = readTextFile(path, MAX_STATE_BYTES)
  let parsed: unknown
  try {
    parsed = JSON.parse(text)
  } catch (cause) {
    throw invalid(path, 'it is not JSON', cause)
  }
  const { success, data, error } = state.safeParse(parsed)
  if (!success) throw invalid(path, error.issues[0]?.message ?? 'it has another form')
  return data
}

/** Writes the state so that it survives the power cord. */
export function writeState(directory: string, value: CaState): void {
  writeFileAtomically(stateFile(directory), JSON.stringify(value), {
    mode: 0o600,
    existing: 'replace',
  })
  syncFolder(directory)
}

function invalid(path: string, reason: string, cause?: unknown): MeshError {
  return new MeshError('HM_CA_STATE_INVALID', `Cannot use ${path}: ${reason}`, {
    cause,
    hint: 'Restore the whole directory of the CA from a backup (docs/certificates.md)',
  })
}
