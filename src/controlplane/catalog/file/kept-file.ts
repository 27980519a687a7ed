/**
 * What of a catalog file outlives the daemon: its last good text, and where instances listen and did.
 *
 * The text is kept as it was, and read again by whoever starts: it has to satisfy the rules of that version. The
 * addresses are believed whatever file it was, because applications do not know of files.
 */
import { z } from 'zod'
import type { StateFile } from '../../../lib/state-file.ts'
import { indexAddresses, sortedAddresses, storedAddress } from '../known-addresses.ts'
import type { KnownServices } from './former-instances.ts'

/** Raised with every change of the shape below. */
export const CATALOG_FILE_STATE_VERSION = 1

/** Longest body of the state file, bytes. */
export const MAX_CATALOG_FILE_STATE_BYTES = 32 * 1024 * 1024

/** What is kept. */
export interface KeptFile {
  readonly path: string
  /** The last good text of that file. */
  readonly text: string
  /** Wall clock of when it was last seen to be what the file says. */
  readonly confirmedAtMs: number
  readonly known: KnownServices
}

const stored = z.object({
  path: z.string(),
  text: z.string(),
  confirmedAtMs: z.number(),
  addresses: z.array(z.tuple([z.string(), z.array(storedAddress)])),
})

/** What an earlier run left; undefined when it left nothing to believe. */
export function recallFile(state: StateFile): KeptFile | undefined {
  if (state.stored === undefined) return undefined
  const parsed = stored.safeParse(state.stored.body)
  if (!parsed.success) {
    state.reject('its body does not have the shape of a catalog file')
    return undefined
  }
  const { addresses, ...kept } = parsed.data
  return {
    ...kept,
    known: new Map(addresses.map(([name, each]) => [name, indexAddresses(each)])),
  }
}

/** Has the file written; `kept` says then what is to be in it. */
export function keepFile(state: StateFile, kept: () => KeptFile): void {
  state.save(() => {
    const { known, ...rest } = kept()
    const addresses = [...known].map(([name, each]) => [name, sortedAddresses(each)])
    return JSON.stringify({ ...rest, addresses })
  })
}
