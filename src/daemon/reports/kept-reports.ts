/**
 * What reporting keeps for the next process: the key of the host, and records that no aggregator has accepted yet.
 */
import { randomBytes } from 'node:crypto'
import { z } from 'zod'
import type { StateFile } from '../../lib/state-file.ts'
import type { ReportColumns } from '../../model/report.ts'
import type { KeptRecord } from './record-queue.ts'
import type { KeptReports } from './reporter.ts'

/** Version and limit of the file of undelivered records. */
export const KEPT_REPORTS = { version: 1, maxBytes: 32 * 1_024 * 1_024 } as const

/** Version and limit of the file of the host's key. */
export const REPORT_KEY = { version: 1, maxBytes: 1_024 } as const

const storedKey = z.object({ key: z.string().regex(/^[A-Za-z0-9_-]{43}$/) })

/** The key of this host; another one at each start where nothing can be kept. */
export function hostKey(file: StateFile): string {
  const stored = storedKey.safeParse(file.stored?.body)
  if (stored.success) return stored.data.key
  const key = randomBytes(32).toString('base64url')
  file.save(() => JSON.stringify({ key }))
  return key
}

/** Records are checked by whoever receives them; here only what this process relies on. */
const keptReports: z.ZodType<KeptReports> = z.record(
  z.string(),
  z.array(
    z.object({
      run: z.string(),
      layout: z.string(),
      columns: z.custom<ReportColumns>((value) => typeof value === 'object' && value !== null),
      records: z.array(
        z.object({
          endMs: z.number(),
          record: z.custom<KeptRecord['record']>(
            (value) =>
              typeof value === 'object' &&
              value !== null &&
              'sequence' in value &&
              typeof value.sequence === 'number',
          ),
        }),
      ),
    }),
  ),
)

/** The records of former processes; none where the file does not hold any. */
export function readKept(file: StateFile): KeptReports {
  if (file.stored === undefined) return {}
  const kept = validReports(file.stored.body)
  if (kept !== undefined) return kept
  file.reject('its content has another shape')
  return {}
}

/** Records of another process; undefined when they have another shape. */
export function validReports(value: unknown): KeptReports | undefined {
  const kept = keptReports.safeParse(value)
  return kept.success ? kept.data : undefined
}
