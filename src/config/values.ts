/**
 * The kinds of values in the configuration file, each with the message for an invalid one.
 */
import { z } from 'zod'
import { formatSize, parseSize, SIZE_PATTERN } from '../lib/byte-size.ts'
import { DURATION_PATTERN, formatDuration, parseDuration } from '../lib/duration.ts'
import { canonicalIp } from '../model/address.ts'
import { isServiceName } from '../model/spiffe-id.ts'

/** A duration: text in the file, milliseconds in the value. */
type Duration = z.ZodPrefault<z.ZodCodec<z.ZodString, z.ZodNumber>>

/** A duration of at least `minMs`; `config show` encodes it as text. */
export function duration(defaultText: string, meaning: string, minMs = 1): Duration {
  return z
    .codec(z.string(), z.number(), {
      decode: (text, context) => {
        const ms = parseDuration(text)
        if (ms !== undefined && ms >= minMs) return ms
        const message = `Must be a duration such as 500ms, 10s or 1h30m, ${formatDuration(minMs)} to 365d`
        context.issues.push({ code: 'custom', message, input: text })
        return z.NEVER
      },
      encode: formatDuration,
    })
    .prefault(defaultText)
    .meta({ description: meaning, pattern: DURATION_PATTERN })
}

/** A size: text in the file, bytes in the value. */
export function size(defaultText: string, meaning: string, minBytes: number): Duration {
  return z
    .codec(z.string(), z.number(), {
      decode: (text, context) => {
        const bytes = parseSize(text)
        if (bytes !== undefined && bytes >= minBytes) return bytes
        const message = `Must be a size such as 512MiB or 10GiB, at least ${formatSize(minBytes)}`
        context.issues.push({ code: 'custom', message, input: text })
        return z.NEVER
      },
      encode: formatSize,
    })
    .prefault(defaultText)
    .meta({ description: meaning, pattern: SIZE_PATTERN })
}

/** A port number. */
export const port = z.int().min(1).max(65_535)

/** The name of a service. */
export const serviceName = z
  .string()
  .refine(
    isServiceName,
    'Must be a service name: a-z, 0-9, "-", "." and "_", at most 128 characters',
  )

/** An address; canonical in the value. */
export const ip = z
  .string()
  .refine((text) => canonicalIp(text) !== undefined, 'Must be an IPv4 or IPv6 address')
  .overwrite((text) => canonicalIp(text) ?? text)

/** A path in the file system. */
export const path = z.string().min(1)
