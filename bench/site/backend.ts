/**
 * The service that is called: nginx with one worker on host B, and its own count of requests and open
 * connections, read over a unix socket so that reading it crosses neither namespace nor proxy.
 */
import { get } from 'node:http'
import { join } from 'node:path'
import { MeshError } from '../../src/lib/errors.ts'
import { writeConfig } from './certificates.ts'
import type { Namespace } from './namespaces.ts'
import { type Patience, RunningProcess, waitFor } from './process.ts'
import { requireTool } from './tools.ts'

/** Where the backend listens on host B. */
export const BACKEND_PORT = 9080

/** Where it listens as another service, for who may not reach the first. */
export const OTHER_PORT = 9081

/** Size of the file behind /bulk, in bytes. */
export const BULK_BYTES = 512 * 1024 * 1024

/** What the backend says of itself. The call that asked is counted in both. */
export interface BackendStatus {
  readonly openConnections: number
  readonly requests: number
}

/** A running backend. */
export class Backend {
  readonly process: RunningProcess
  readonly #statusSocket: string

  constructor(process: RunningProcess, statusSocket: string) {
    this.process = process
    this.#statusSocket = statusSocket
  }

  /** Asks nginx. Rejects when it does not answer within a second. */
  status(): Promise<BackendStatus> {
    return new Promise((resolve, reject) => {
      const request = get(
        { socketPath: this.#statusSocket, path: '/', agent: false, timeout: 1_000 },
        (response) => {
          let text = ''
          response.setEncoding('utf8')
          response.on('data', (chunk: string) => {
            text += chunk
          })
          response.once('error', reject)
          response.once('end', () => {
            try {
              resolve(parseStubStatus(text))
            } catch (error) {
              reject(error instanceof Error ? error : new Error(String(error)))
            }
          })
        },
      )
      request.once('timeout', () => request.destroy(new Error('The backend does not answer')))
      request.once('error', reject)
    })
  }

  /** Waits until nobody is connected but ourselves, so that one sample does not disturb the next. */
  async quiet(signal: AbortSignal): Promise<void> {
    await waitFor(
      'all connections to the backend closed after the load ended',
      { deadlineMs: 10_000, signal },
      async () => ((await this.status()).openConnections <= 1 ? true : undefined),
    )
  }

  /** Waits until `count` connections are open, apart from our own. */
  async reached(count: number, patience: Patience): Promise<void> {
    await waitFor(`${count} connections open at the backend`, patience, async () =>
      (await this.status()).openConnections > count ? true : undefined,
    )
  }
}

/** Reads the page of nginx's stub_status module. Throws HM_BENCH_BACKEND when it is something else. */
export function parseStubStatus(text: string): BackendStatus {
  const match = /Active connections: (\d+)\s+server accepts handled requests\s+\d+ \d+ (\d+)/.exec(
    text,
  )
  if (match === null)
    throw new MeshError('HM_BENCH_BACKEND', `Cannot read the backend's status page: "${text}"`)
  return { openConnections: Number(match[1]), requests: Number(match[2]) }
}

/** Where a backend runs and what it serves. */
export interface BackendSpec {
  readonly namespace: Namespace
  readonly address: string
  readonly directory: string
  /** What /bulk serves. */
  readonly bulkFile: string
}

/** Starts nginx and waits until it answers. */
export async function startBackend(spec: BackendSpec, signal: AbortSignal): Promise<Backend> {
  const { address, directory, bulkFile } = spec
  const statusSocket = join(directory, 'backend.sock')
  const config = await writeConfig(
    join(directory, 'backend.conf'),
    `user root;
daemon off;
master_process off;
worker_processes 1;
error_log stderr error;
pid ${directory}/backend.pid;
events { worker_connections 16000; }
http {
  access_log off;
  sendfile on;
  tcp_nopush on;
  keepalive_timeout 3600s;
  keepalive_requests 1000000000;
  server {
    listen ${address}:${BACKEND_PORT} backlog=8192;
    listen ${address}:${OTHER_PORT} backlog=8192;
    location = / { return 200 "hello from behind two hops of mesh\\n"; }
    location = /bulk { alias ${bulkFile}; }
  }
  server {
    listen unix:${statusSocket};
    location = / { stub_status; }
  }
}
`,
  )
  const nginx = new RunningProcess({
    name: 'backend',
    argv: spec.namespace.command([requireTool('nginx'), '-e', 'stderr', '-c', config]),
    logFile: join(directory, 'backend.log'),
  })
  const backend = new Backend(nginx, statusSocket)
  try {
    await waitFor('the backend answers', { deadlineMs: 10_000, signal }, () => {
      if (nginx.end !== undefined)
        throw new MeshError('HM_BENCH_BACKEND', `nginx ended: ${nginx.end}\n${nginx.outputTail()}`)
      return backend.status().catch(() => undefined)
    })
  } catch (error) {
    await nginx.stop()
    throw error
  }
  return backend
}
