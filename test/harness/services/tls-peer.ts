/**
 * One hand-made TLS peer (tls-peer.ts): calls a tunnel port, or poses as one. Trusts anybody: it is here to
 * be refused, or to be served, by the other side.
 */
import { readFileSync } from 'node:fs'
import { connect as connectTcp, type Socket } from 'node:net'
import { connect, createServer } from 'node:tls'

interface Task {
  readonly mode: 'call' | 'listen' | 'call-and-cut' | 'answer-and-cut'
  readonly ip?: string
  readonly port: number
  readonly serverName?: string
  readonly alpn?: string[]
  readonly files?: { readonly certificate: string; readonly key: string }
}

const task = JSON.parse(process.argv[2] ?? '') as Task
const credentials =
  task.files === undefined
    ? {}
    : { cert: readFileSync(task.files.certificate), key: readFileSync(task.files.key) }

if (task.mode === 'call') call()
else if (task.mode === 'call-and-cut') callAndCut()
else if (task.mode === 'answer-and-cut') answerAndCut()
else listen()

/** Says half of something, then the TCP connection ends without a word of TLS: as after a FIN of somebody between. */
function callAndCut(): void {
  const tcp = connectTcp({ host: task.ip ?? '', port: task.port, allowHalfOpen: true })
  const socket = connect({
    ...credentials,
    socket: tcp,
    servername: task.serverName ?? '',
    rejectUnauthorized: false,
  })
  socket.on('secureConnect', () => socket.write('half of what'))
  process.on('message', () => tcp.end())
  socket.on('error', (error) => process.send?.({ error: error.message }))
}

/** The same from the other side: a sidecar whose answer is cut. */
function answerAndCut(): void {
  const server = createServer({ ...credentials, requestCert: true, rejectUnauthorized: false })
  let tcp: Socket | undefined
  server.on('connection', (socket: Socket) => {
    tcp = socket
  })
  server.on('secureConnection', (socket) => {
    socket.on('error', () => undefined)
    socket.once('data', () => socket.write('half of what'))
  })
  server.listen(task.port, '::', () => process.send?.({ event: 'listening' }))
  process.on('message', () => tcp?.end())
}

function call(): void {
  const socket = connect({
    ...credentials,
    host: task.ip ?? '',
    port: task.port,
    servername: task.serverName ?? '',
    ...(task.alpn !== undefined && { ALPNProtocols: task.alpn }),
    rejectUnauthorized: false,
  })
  let text = ''
  socket.on('secureConnect', () => socket.write('nonce\n'))
  socket.on('data', (chunk: Buffer) => {
    text += chunk.toString('utf8')
    if (!text.includes('\n')) return
    try {
      process.send?.({ answer: JSON.parse(text) as unknown })
    } catch {
      process.send?.({ error: `not an answer: ${text}` })
    }
  })
  socket.on('error', (error) => process.send?.({ error: error.message }))
  socket.on('close', () => process.send?.({ error: 'closed' }))
}

function listen(): void {
  const server = createServer({
    ...credentials,
    ALPNProtocols: ['hostmesh/1'],
    requestCert: true,
    rejectUnauthorized: false,
  })
  server.on('connection', () => process.send?.({ event: 'connection' }))
  server.on('secureConnection', (socket) => {
    socket.on('data', (chunk: Buffer) =>
      process.send?.({ event: 'received', text: chunk.toString('latin1') }),
    )
    socket.on('error', () => socket.destroy())
  })
  server.on('tlsClientError', () => undefined)
  server.listen(task.port, '::', () => process.send?.({ event: 'listening' }))
}

process.on('disconnect', () => process.exit(0))
