/**
 * The section `metrics` of the configuration file: where and under which names metrics are exported.
 */
import { z } from 'zod'
import { duration, ip, port } from './values.ts'

/** Headers that a request needs with its own values. */
const OWN_HEADERS =
  /^(?:connection|content-.*|host|keep-alive|te|trailer|transfer-encoding|upgrade)$/

function isHeaderToAdd(name: string): boolean {
  return /^[A-Za-z0-9-]+$/.test(name) && !OWN_HEADERS.test(name.toLowerCase())
}

const otlp = z
  .strictObject({
    endpoint: z
      .url({ protocol: /^https?$/, error: 'Must be a URL that begins with http:// or https://' })
      .describe(
        'Where metrics are posted: the base URL of an OTLP receiver, to which /v1/metrics is added',
      ),
    protocol: z.enum(['http/protobuf', 'http/json']).default('http/protobuf').describe('Encoding'),
    interval: duration('60s', 'Between two exports', 1_000),
    headers: z
      .record(z.string(), z.string().regex(/^[\x20-\x7e]*$/, 'Must be printable ASCII'))
      .refine(
        (headers) => Object.keys(headers).every(isHeaderToAdd),
        'Must have names of headers as keys, but none that a request sets itself',
      )
      .default({})
      .describe('Headers of each request, such as authorization; left out of `config show`'),
    insecure: z
      .boolean()
      .default(false)
      .describe('Allows an http:// endpoint on another host: metrics and headers in plaintext'),
  })
  .describe('Export by OTLP, beside /metrics; none unless given')

/** Section `metrics`. */
export const metricsSection = z
  .strictObject({
    address: ip
      .default('127.0.0.1')
      .describe('Address of the metrics port; anyone who reaches it may read'),
    port: port
      .optional()
      .describe('Port of /metrics over HTTP; only on the admin socket unless given'),
    istioNames: z
      .boolean()
      .default(false)
      .describe('Also export counts of connections under the names and labels of Istio'),
    otlp: otlp.optional(),
  })
  .prefault({})
