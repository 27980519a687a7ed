/**
 * The schema of the catalog file, with the keys that Consul uses for the same things.
 *
 * Strict, like the configuration: an unknown key is an error. docs/file-catalog.md explains it.
 */
import { z } from 'zod'
import { formatDuration, parseDuration } from '../../../lib/duration.ts'
import { canonicalIp, isUndialable } from '../../../model/address.ts'
import { isServiceName } from '../../../model/spiffe-id.ts'

const MAX_INSTANCES_PER_SERVICE = 5_000
const MAX_SERVICES = 10_000
const MAX_INTENTIONS = 50_000

const port = z.int().min(1).max(65_535)
const serviceName = z
  .string()
  .refine(
    isServiceName,
    'Must be a service name: a-z, 0-9, "-", "." and "_", at most 128 characters',
  )
const serviceNameOrAll = z
  .string()
  .refine((text) => text === '*' || isServiceName(text), 'Must be a service name, or * for all')
const hostAddress = z
  .string()
  .refine((text) => {
    const ip = canonicalIp(text)
    return ip !== undefined && !isUndialable(ip)
  }, 'Must be the IPv4 or IPv6 address of one host')
  .overwrite((text) => canonicalIp(text) ?? text)

const connectTimeout = z
  .codec(z.string(), z.number(), {
    decode: (text, context) => {
      const ms = parseDuration(text)
      if (ms !== undefined && ms > 0) return ms
      context.issues.push({
        code: 'custom',
        message: 'Must be a duration such as 500ms or 5s',
        input: text,
      })
      return z.NEVER
    },
    encode: formatDuration,
  })
  .prefault('5s')

const instance = z.strictObject({
  Node: z.string().regex(/^[A-Za-z0-9._-]{1,128}$/, 'Must be 1 to 128 of A-Z a-z 0-9 . _ -'),
  ID: z
    .string()
    .regex(/^[A-Za-z0-9._:-]{1,128}$/, 'Must be 1 to 128 of A-Z a-z 0-9 . _ : -')
    .optional(),
  Address: hostAddress,
  Port: port.default(15_443),
  ServiceAddress: hostAddress.optional(),
  ServicePort: port.optional(),
  Status: z.enum(['passing', 'warning', 'critical']).default('passing'),
  Weight: z.int().min(1).max(65_535).default(1),
})

const service = z.strictObject({
  Name: serviceName,
  Protocol: z.enum(['tcp', 'http', 'http2', 'grpc']).default('tcp'),
  ConnectTimeout: connectTimeout,
  VirtualAddresses: z.array(hostAddress).max(16).default([]),
  Instances: z.array(instance).max(MAX_INSTANCES_PER_SERVICE).default([]),
})

const intention = z.strictObject({
  SourceName: serviceNameOrAll,
  DestinationName: serviceNameOrAll,
  Action: z.enum(['allow', 'deny']).optional(),
  // Decoded by permission.ts, like a permission from Consul.
  Permissions: z.array(z.record(z.string(), z.unknown())).min(1).max(1_000).optional(),
  Description: z.string().optional(),
})

/** The whole file. */
export const catalogFileSchema = z.strictObject({
  services: z.array(service).max(MAX_SERVICES).default([]),
  intentions: z.array(intention).max(MAX_INTENTIONS).default([]),
  defaultPolicy: z.enum(['allow', 'deny']).default('deny'),
})

/** A parsed catalog file, with all defaults that do not depend on another key. */
export type CatalogFile = z.output<typeof catalogFileSchema>
