/**
 * The Consul server of the control-plane benchmark, and calls to it.
 */
import { get, request } from 'node:http'
import { join } from 'node:path'
import { MeshError } from '../../src/lib/errors.ts'
import { writeConfig } from '../site/certificates.ts'
import { RunningProcess, waitFor } from '../site/process.ts'
import { requireTool } from '../site/tools.ts'

/** Consul takes so many operations in one transaction. */
const OPERATIONS_A_TRANSACTION = 64

/** A server of its own, without persistence. */
export class Agent implements AsyncDisposable {
  static readonly address = 'http://127.0.0.1:8500'
  readonly process: RunningProcess

  private constructor(process: RunningProcess) {
    this.process = process
  }

  /** Starts it; resolves when it has a leader. */
  static async start(directory: string): Promise<Agent> {
    const config = await writeConfig(
      join(directory, 'consul.json'),
      JSON.stringify({
        server: true,
        bootstrap_expect: 1,
        node_name: 'server',
        data_dir: join(directory, 'consul'),
        bind_addr: '127.0.0.1',
        client_addr: '127.0.0.1',
        connect: { enabled: true },
        log_level: 'err',
      }),
    )
    const agent = new Agent(
      new RunningProcess({
        name: 'consul',
        argv: [requireTool('consul'), 'agent', '-config-file', config],
        logFile: join(directory, 'consul.log'),
      }),
    )
    await waitFor(
      'Consul has a leader',
      { deadlineMs: 30_000, signal: new AbortController().signal },
      async () => {
        const roots = await agent.read('/v1/agent/connect/ca/roots').catch(() => '')
        return roots.includes('RootCert') ? true : undefined
      },
    )
    return agent
  }

  /** Reads a path. Rejects when the answer is not 200. */
  read(path: string): Promise<string> {
    return new Promise((resolve, reject) => {
      get(`${Agent.address}${path}`, (response) => {
        let text = ''
        response.setEncoding('utf8')
        response.on('data', (chunk: string) => {
          text += chunk
        })
        response.once('end', () =>
          response.statusCode === 200 ? resolve(text) : reject(failure(path, text)),
        )
      }).once('error', reject)
    })
  }

  /** Writes a path. Rejects when Consul refuses. */
  put(path: string, body: unknown, method = 'PUT'): Promise<void> {
    return new Promise((resolve, reject) => {
      const call = request(`${Agent.address}${path}`, { method }, (response) => {
        let text = ''
        response.setEncoding('utf8')
        response.on('data', (chunk: string) => {
          text += chunk
        })
        response.once('end', () =>
          response.statusCode === 200 ? resolve() : reject(failure(path, text)),
        )
      })
      call.once('error', reject)
      call.end(JSON.stringify(body))
    })
  }

  /** Many catalog operations, some at a time. */
  async transact(operations: readonly object[]): Promise<void> {
    for (let first = 0; first < operations.length; first += OPERATIONS_A_TRANSACTION)
      await this.put('/v1/txn', operations.slice(first, first + OPERATIONS_A_TRANSACTION))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.process.stop('SIGKILL')
  }
}

function failure(path: string, text: string): MeshError {
  return new MeshError('HM_BENCH_CONSUL', `Consul refuses ${path}: ${text.slice(0, 300)}`)
}
