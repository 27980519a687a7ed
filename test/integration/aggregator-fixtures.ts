/**
 * An aggregator with real sockets and a store in memory, and requests to it as they are on the wire.
 */
import { mkdtemp, rm } from 'node:fs/promises'
import { type IncomingHttpHeaders, type RequestOptions, request } from 'node:http'
import { request as tlsRequest } from 'node:https'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type Aggregator, startAggregator } from '../../src/aggregator/aggregator.ts'
import { checkAggregatorConfig } from '../../src/aggregator/config-load.ts'
import { type Clock, systemClock } from '../../src/lib/clock.ts'
import { MeshError } from '../../src/lib/errors.ts'
import { silentLog } from '../../src/lib/log.ts'
import { type HostReport, REPORT_PATH } from '../../src/model/report.ts'
import { MemoryFleetStore } from '../harness/memory-fleet-store.ts'

/** An answer. */
export interface Answer {
  readonly status: number
  readonly headers: IncomingHttpHeaders
  readonly bytes: Buffer
  readonly text: string
  /** The JSON document; undefined for anything else. */
  readonly json: unknown
}

/** Options of a report. */
interface PostOptions extends RequestOptions {
  readonly headers?: Readonly<Record<string, string>>
}

/** A running aggregator of a test. */
export interface TestAggregator extends AsyncDisposable {
  readonly store: MemoryFleetStore
  readonly directory: string
  readonly socket: string
  readonly aggregator: Aggregator
  /** Over TCP, or over the unix socket with `socketPath`. */
  get(path: string, options?: RequestOptions & { readonly tls?: boolean }): Promise<Answer>
  post(body: unknown, options?: PostOptions): Promise<Answer>
}

/** Starts one at free ports; `more` is YAML of further keys, in which DIR is its directory. */
export async function startTestAggregator(
  more = '',
  { clock = systemClock, dashboard }: { readonly clock?: Clock; readonly dashboard?: string } = {},
): Promise<TestAggregator> {
  const directory = await mkdtemp(join(tmpdir(), 'hostmesh-aggregator-'))
  const socket = join(directory, 'api.sock')
  const listen = more.includes('listen:') ? '' : 'listen: {socket: DIR/api.sock}\n'
  const text = `${listen}store: {directory: DIR}\n${more}`.replaceAll('DIR', directory)
  const checked = checkAggregatorConfig(text, join(directory, 'aggregator.yaml'))
  if ('problems' in checked) throw new Error(checked.problems.join('\n'))
  const { config } = checked
  const store = new MemoryFleetStore()
  const aggregator = await startAggregator(
    {
      ...config,
      listen: { ...config.listen, port: 0 },
      reports: { ...config.reports, port: 0 },
    },
    {
      store,
      checkReport,
      dashboard: dashboard ?? join(directory, 'dashboard'),
      log: silentLog,
      clock,
    },
  )
  return {
    store,
    directory,
    socket,
    aggregator,
    get: (path, { tls = false, ...options } = {}) =>
      send(tls ? tlsRequest : request, {
        path,
        ...(options.socketPath === undefined && {
          host: '127.0.0.1',
          port: aggregator.address.port,
        }),
        ...options,
      }),
    post: (body, options = {}) =>
      send(
        request,
        {
          host: '127.0.0.1',
          port: aggregator.reportAddress.port,
          method: 'POST',
          path: REPORT_PATH,
          ...options,
          headers: { 'content-type': 'application/json', ...options.headers },
        },
        typeof body === 'string' ? body : JSON.stringify(body),
      ),
    [Symbol.asyncDispose]: async () => {
      await aggregator[Symbol.asyncDispose]()
      await rm(directory, { recursive: true, force: true })
    },
  }
}

function send(open: typeof request, options: RequestOptions, body?: string): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const sent = open({ agent: false, ...options }, (response) => {
      const chunks: Buffer[] = []
      response.on('data', (chunk: Buffer) => chunks.push(chunk))
      response.on('error', reject)
      response.on('end', () => {
        const bytes = Buffer.concat(chunks)
        const text = bytes.toString()
        const { statusCode: status = 0, headers } = response
        resolve({ status, headers, bytes, text, json: jsonOf(text) })
      })
    })
    sent.on('error', reject)
    sent.end(body)
  })
}

function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

/** A checker that looks at no more than what the tests of the listener need. */
function checkReport(value: unknown): HostReport {
  if (typeof value === 'object' && value !== null && 'host' in value && 'records' in value)
    return value as HostReport
  throw new MeshError('HM_REPORT_REFUSED', 'host: Is missing')
}
