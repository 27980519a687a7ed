/**
 * The section `accessLog` of the configuration file: one line for each connection that has ended.
 */
import { z } from 'zod'
import { size } from './values.ts'

/** Section `accessLog`. */
export const accessLogSection = z
  .strictObject({
    mode: z
      .enum(['off', 'on'])
      .default('off')
      .describe('`on` writes a line for each connection that has ended (docs/access-log.md)'),
    to: z
      .string()
      .refine(
        (text) => text === 'journal' || text.startsWith('/'),
        'Must be "journal" or the absolute path of a file',
      )
      .default('journal')
      .describe(
        '`journal` for standard error, where the log of the daemon is, too; or the path of a file',
      ),
    format: z.enum(['json', 'logfmt']).default('json').describe('Format of a line'),
    include: z
      .enum(['all', 'errors'])
      .default('all')
      .describe('`errors` leaves out connections that ended in order'),
    sample: z
      .number()
      .min(0)
      .max(1)
      .default(1)
      .describe(
        'Share of the connections that ended in order; every other ending is written. Hosts with the same share choose the same connections',
      ),
    linesPerSecond: z
      .int()
      .min(1)
      .max(100_000)
      .default(500)
      .describe('Most lines a second, all workers together; further ones are lost and counted'),
    maxBytes: size('64MiB', 'A file of this size is renamed and a new one begun', 65_536),
    keep: z.int().min(0).max(100).default(5).describe('How many renamed files are kept'),
  })
  .prefault({})
