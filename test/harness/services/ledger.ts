/**
 * A service that keeps a ledger of its callers: a TLS server that notes, for every connection, which service the
 * caller's certificate proves and what the caller said. It allows everybody, as a sidecar without intentions.
 *
 * `ledger.ts PORT CERTIFICATE KEY`. Tells its parent `listening`, then each entry.
 */
import { readFileSync } from 'node:fs'
import { createServer } from 'node:tls'

const [, , port = '', certificate = '', key = ''] = process.argv

const server = createServer({
  cert: readFileSync(certificate),
  key: readFileSync(key),
  requestCert: true,
  // The authority is the tests' own; what matters is whom the daemon says it speaks for.
  rejectUnauthorized: false,
})
server.on('secureConnection', (socket) => {
  const proven = socket.getPeerCertificate().subjectaltname ?? ''
  let said = Buffer.alloc(0)
  socket.on('data', (chunk: Buffer) => {
    said = Buffer.concat([said, chunk])
    // Forged headers have line feeds of their own; what a caller says ends with this.
    if (!said.subarray(-2).equals(Buffer.from('.\n'))) return
    process.send?.({ event: 'entry', proven, said: said.toString('latin1') })
    socket.write('noted\n')
  })
  socket.on('end', () => socket.end())
  socket.on('error', () => socket.destroy())
})
server.on('tlsClientError', () => undefined)
server.listen(Number(port), '::', () => process.send?.({ event: 'listening' }))
process.on('disconnect', () => process.exit(0))
