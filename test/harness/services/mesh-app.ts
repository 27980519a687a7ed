/**
 * The process behind mesh-app.ts: serves and calls by one of four protocols, and keeps a constant load going.
 *
 * Every answer carries the name of who answered and the nonce of the question, so that an answer from the
 * wrong service, or to another question, counts as a failure.
 */
import { randomUUID } from 'node:crypto'
import * as http from 'node:http'
import * as http2 from 'node:http2'
import * as net from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import * as grpc from '@grpc/grpc-js'

import type { AppAsk, AppReply, LoadReport, Target } from '../mesh-app-protocol.ts'

/** A call that takes longer has failed. */
const CALL_LIMIT_MS = 10_000

/** Between two calls of one caller of a load. */
const PAUSE_MS = 15

/** Failures that are told word by word; the rest is counted. */
const TOLD_FAILURES = 20

const [uid = '0', name = ''] = process.argv.slice(2)
process.setgroups?.([])
process.setgid?.(Number(uid))
process.setuid?.(Number(uid))

/** Asks `target` and returns the name of who answered. */
type Call = (target: Target, nonce: string) => Promise<string>

/** A caller of one protocol, with the connections that it keeps. */
interface Caller {
  readonly call: Call
  readonly close: () => void
}

/** What a service does before it answers. */
type Work = () => Promise<string>

let relay: { target: Target; caller: Caller } | undefined

/** Answers with our name, or with that and the name of who is behind us. */
const work: Work = async () => {
  if (relay === undefined) return name
  return `${name}>${await relay.caller.call(relay.target, randomUUID())}`
}

const echo: grpc.ServiceDefinition = {
  say: {
    path: '/hostmesh.test.Echo/Say',
    requestStream: false,
    responseStream: false,
    requestSerialize: (text: string) => Buffer.from(text),
    requestDeserialize: (bytes: Buffer) => bytes.toString('utf8'),
    responseSerialize: (text: string) => Buffer.from(text),
    responseDeserialize: (bytes: Buffer) => bytes.toString('utf8'),
  },
}

async function serve(protocol: Target['protocol'], port: number): Promise<void> {
  if (protocol === 'grpc') {
    const server = new grpc.Server()
    server.addService(echo, {
      say: (call: grpc.ServerUnaryCall<string, string>, done: grpc.sendUnaryData<string>) => {
        void answerCall(call.request, done)
      },
    })
    await new Promise<void>((resolve, reject) => {
      server.bindAsync(`0.0.0.0:${port}`, grpc.ServerCredentials.createInsecure(), (error) =>
        error === null ? resolve() : reject(error),
      )
    })
    return
  }
  const answer = (
    request: { readonly url?: string | undefined },
    response: { statusCode: number; end: (text: string) => unknown },
  ): void => {
    const nonce = request.url?.split('/').at(-1) ?? ''
    work().then(
      (who) => response.end(`${who} ${nonce}`),
      (error: unknown) => {
        response.statusCode = 500
        response.end(String(error))
      },
    )
  }
  const server =
    protocol === 'http'
      ? // Longer than any pause of a caller: else a kept connection ends just as it is used again.
        http.createServer({ keepAliveTimeout: 60_000 }, answer)
      : protocol === 'http2'
        ? http2.createServer(answer)
        : net.createServer(answerLine)
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen(port, '0.0.0.0', resolve)
  })
}

async function answerCall(nonce: string, done: grpc.sendUnaryData<string>): Promise<void> {
  let who: string
  try {
    who = await work()
  } catch (error) {
    done({ code: grpc.status.INTERNAL, details: String(error) })
    return
  }
  done(null, `${who} ${nonce}`)
}

function answerLine(socket: net.Socket): void {
  let text = ''
  socket.on('error', () => undefined)
  socket.on('data', (chunk: Buffer) => {
    text += chunk.toString('utf8')
    const [nonce, rest] = text.split('\n')
    if (rest === undefined) return
    work().then(
      (who) => socket.end(`${who} ${nonce}\n`),
      () => socket.destroy(),
    )
  })
}

function callerOf(protocol: Target['protocol']): Caller {
  switch (protocol) {
    case 'tcp':
      return { call: callTcp, close: () => undefined }
    case 'http':
      return httpCaller()
    case 'http2':
      return http2Caller()
    case 'grpc':
      return grpcCaller()
  }
}

function callTcp(target: Target, nonce: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = net.connect({ host: target.ip, port: target.port })
    let text = ''
    socket.setTimeout(CALL_LIMIT_MS, () => socket.destroy(new Error('no answer in time')))
    socket.on('connect', () => socket.write(`${nonce}\n`))
    socket.on('data', (chunk: Buffer) => {
      text += chunk.toString('utf8')
    })
    socket.on('error', reject)
    socket.on('end', () => {
      if (text.endsWith(` ${nonce}\n`)) resolve(text.slice(0, -nonce.length - 2))
      else reject(new Error(`wrong or no answer: ${JSON.stringify(text)}`))
    })
  })
}

function httpCaller(): Caller {
  const agent = new http.Agent({ keepAlive: true })
  return {
    call: (target, nonce) =>
      new Promise((resolve, reject) => {
        const request = http.get(
          { host: target.ip, port: target.port, path: `/say/${nonce}`, agent },
          (response) => {
            const chunks: Buffer[] = []
            response.on('data', (chunk: Buffer) => chunks.push(chunk))
            response.on('error', reject)
            response.on('end', () => {
              settle(response.statusCode, Buffer.concat(chunks), nonce, { resolve, reject })
            })
          },
        )
        request.setTimeout(CALL_LIMIT_MS, () => request.destroy(new Error('no answer in time')))
        request.on('error', reject)
      }),
    close: () => agent.destroy(),
  }
}

function http2Caller(): Caller {
  const sessions = new Map<string, http2.ClientHttp2Session>()
  const sessionTo = ({ ip, port }: Target): http2.ClientHttp2Session => {
    const where = `http://${ip}:${port}`
    const kept = sessions.get(where)
    if (kept !== undefined && !kept.closed && !kept.destroyed) return kept
    const session = http2.connect(where)
    session.on('error', () => undefined)
    // What was begun is finished; the next call opens another session.
    const forget = (): void => {
      if (sessions.get(where) === session) sessions.delete(where)
    }
    session.on('goaway', forget)
    session.on('close', forget)
    sessions.set(where, session)
    return session
  }
  return {
    call: (target, nonce) =>
      new Promise((resolve, reject) => {
        const stream = sessionTo(target).request({ ':path': `/say/${nonce}` })
        let status: number | undefined
        const chunks: Buffer[] = []
        stream.setTimeout(CALL_LIMIT_MS, () => stream.destroy(new Error('no answer in time')))
        stream.on('response', (headers) => {
          status = headers[':status']
        })
        stream.on('data', (chunk: Buffer) => chunks.push(chunk))
        stream.on('error', reject)
        stream.on('end', () => settle(status, Buffer.concat(chunks), nonce, { resolve, reject }))
      }),
    close: () => {
      for (const session of sessions.values()) session.close()
    },
  }
}

function grpcCaller(): Caller {
  const Echo = grpc.makeGenericClientConstructor(echo, 'Echo')
  const clients = new Map<string, grpc.Client>()
  return {
    call: (target, nonce) =>
      new Promise((resolve, reject) => {
        const where = `${target.ip}:${target.port}`
        const client = clients.get(where) ?? new Echo(where, grpc.credentials.createInsecure())
        clients.set(where, client)
        client.makeUnaryRequest(
          '/hostmesh.test.Echo/Say',
          (text: string) => Buffer.from(text),
          (bytes: Buffer) => bytes.toString('utf8'),
          nonce,
          { deadline: Date.now() + CALL_LIMIT_MS },
          (error, answer) => {
            if (error !== null) reject(error)
            else settle(200, Buffer.from(answer ?? ''), nonce, { resolve, reject })
          },
        )
      }),
    close: () => {
      for (const client of clients.values()) client.close()
    },
  }
}

function settle(
  status: number | undefined,
  body: Buffer,
  nonce: string,
  outcome: { resolve: (who: string) => void; reject: (error: Error) => void },
): void {
  const text = body.toString('utf8')
  if (status === 200 && text.endsWith(` ${nonce}`))
    outcome.resolve(text.slice(0, -nonce.length - 1))
  else outcome.reject(new Error(`status ${status}: ${text.slice(0, 200)}`))
}

/** Callers that never stop, until they are told to. */
class Load {
  private target: Target
  private isStopped = false
  private caller: Caller
  private readonly callers: Promise<void>[]
  private readonly report: LoadReport = { answered: 0, failed: 0, failures: [], byAnswer: {} }

  constructor(target: Target, concurrency: number) {
    this.target = target
    this.caller = callerOf(target.protocol)
    this.callers = Array.from({ length: concurrency }, () => this.run())
  }

  /** As an application that was told another port: new calls go there, on new connections. */
  move(port: number): void {
    this.target = { ...this.target, port }
    const before = this.caller
    this.caller = callerOf(this.target.protocol)
    setTimeout(before.close, CALL_LIMIT_MS).unref()
  }

  stats(): LoadReport {
    return this.report
  }

  async stop(): Promise<LoadReport> {
    this.isStopped = true
    await Promise.all(this.callers)
    this.caller.close()
    return this.report
  }

  private async run(): Promise<void> {
    const { report } = this
    while (!this.isStopped) {
      const { port } = this.target
      const since = performance.now()
      try {
        const who = await this.caller.call(this.target, randomUUID())
        report.answered += 1
        report.byAnswer[who] = (report.byAnswer[who] ?? 0) + 1
      } catch (error) {
        report.failed += 1
        const took = Math.round(performance.now() - since)
        if (report.failures.length < TOLD_FAILURES)
          report.failures.push(
            `${new Date().toISOString()} port ${port}, ${took} ms: ${String(error)}`,
          )
      }
      await sleep(PAUSE_MS)
    }
  }
}

const loads = new Map<string, Load>()

function loadNamed(load: string): Load {
  const found = loads.get(load)
  if (found === undefined) throw new Error(`No load '${load}'`)
  return found
}

async function act(ask: AppAsk): Promise<unknown> {
  switch (ask.op) {
    case 'serve':
      return serve(ask.protocol, ask.port)
    case 'relay':
      relay?.caller.close()
      relay = { target: ask.target, caller: callerOf(ask.target.protocol) }
      return undefined
    case 'call': {
      // A fresh caller each time: nothing is answered over a connection of before.
      const caller = callerOf(ask.target.protocol)
      try {
        return await caller.call(ask.target, randomUUID())
      } finally {
        caller.close()
      }
    }
    case 'load':
      loads.set(ask.load, new Load(ask.target, ask.concurrency))
      return undefined
    case 'move':
      return loadNamed(ask.load).move(ask.port)
    case 'stats':
      return loadNamed(ask.load).stats()
    case 'stop':
      return loadNamed(ask.load).stop()
  }
}

process.on('message', (ask: AppAsk & { id: number }) => {
  act(ask).then(
    (value) => reply({ id: ask.id, value }),
    (error: unknown) => reply({ id: ask.id, error: String(error) }),
  )
})
process.on('disconnect', () => process.exit(0))

function reply(message: AppReply): void {
  process.send?.(message)
}

reply({ id: 0, value: undefined })
