/**
 * What is stored of a catalog file for the next run: its last good text, and current and former instance addresses.
 *
 * The text is stored unchanged and decoded again at a start: it has to satisfy the rules of that version. The
 * addresses are used whichever file they came from, because applications do not depend on the file.
 */
import { z } from 'zod'
import type { StateFile } from '../../../lib/state-file.ts'
import { indexAddresses, sortedAddresses, storedAddress } from '../known-addresses.ts'
import type { KnownServices } from './former-instances.ts'

/** Raised with every change of the shape below. */
export const CATALOG_FILE_STATE_VERSION = 1

/** Longest body of the state file, bytes. */
export const MAX_CATALOG_FILE_STATE_BYTES = 32 * 1024 * 1024

/** The stored data. */
export interface KeptFile {
  readonly path: string
  /** The last good text of the file at `path`. */
  readonly text: string
  /** Wall clock of when the file was last seen to have this text. */
  readonly confirmedAtMs: number
  readonly known: KnownServices
}

const stored = z.object({
  path: z.string(),
  text: z.string(),
  confirmedAtMs: z.number(),
  addresses: z.array(z.tuple([z.string(), z.array(storedAddress)])),
})

/** The data of an earlier run; undefined when there is none that can be used. */
export function loadKeptFile(state: StateFile): KeptFile | undefined {
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

/** Schedules a write of the file; `kept` is called at that time for the content. */
export function saveKeptFile(state: StateFile, kept: () => KeptFile): void {
  state.save(() => {
    const { known, ...rest } = kept()
    const addresses = [...known].map(([name, each]) => [name, sortedAddresses(each)])
    return JSON.stringify({ ...rest, addresses })
  })
}
