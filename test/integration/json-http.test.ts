/** JSON over HTTP: what is read of a body, and that a server that closes is closed. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import {
  createServer as createHttpServer,
  request as httpRequest,
  type RequestListener,
} from 'node:http'
import { Agent, createServer, request } from 'node:https'
import { test } from 'node:test'
import { MeshError } from '../../src/lib/errors.ts'
import {
  BodyTooLong,
  callJson,
  closeServer,
  errorDocument,
  portOf,
  readBody,
  readError,
  replyJson,
} from '../../src/lib/json-http.ts'
import { within } from '../harness/eventually.ts'
import { makeAuthority, makeLeaf } from '../unit/identity-fixtures.ts'

async function withServer(
  answer: RequestListener,
  use: (options: { readonly port: number }) => Promise<void>,
): Promise<void> {
  const server = createHttpServer(answer).listen(0, '127.0.0.1')
  await once(server, 'listening')
  try {
    await use({ port: portOf(server) })
  } finally {
    await closeServer(server)
  }
}

test('a document goes out and another comes back; without one it is a GET', async () => {
  await withServer(
    (incoming, response) => {
      void readBody(incoming, 100).then((body) =>
        replyJson(response, 200, { method: incoming.method, body: body.toString() }),
      )
    },
    async (options) => {
      const posted = await callJson(httpRequest, options, { body: { a: 1 }, maxBytes: 100 })
      assert.deepEqual(posted, { status: 200, body: { method: 'POST', body: '{"a":1}' } })
      const got = await callJson(httpRequest, options, { maxBytes: 100 })
      assert.deepEqual(got.body, { method: 'GET', body: '' })
      await assert.rejects(callJson(httpRequest, options, { maxBytes: 10 }), BodyTooLong)
    },
  )
})

test('an answer that is not JSON, or breaks off, is no document', async () => {
  await withServer(
    (_, response) => void response.end('{"a":'),
    async (options) => {
      const answer = await callJson(httpRequest, options, { maxBytes: 100 })
      assert.deepEqual(answer, { status: 200, body: undefined })
    },
  )
  await withServer(
    (_, response) => {
      response.writeHead(200, { 'content-length': 10 })
      response.write('{"a"', () => response.destroy())
    },
    async (options) => {
      await assert.rejects(callJson(httpRequest, options, { maxBytes: 100 }), {
        code: 'ECONNRESET',
      })
    },
  )
})

test('a failure is read as it was written, and anything else is ignored', () => {
  const thrown = new MeshError('HM_CA_BUSY', 'Too much', { hint: 'Wait' })
  const sent = JSON.parse(JSON.stringify(errorDocument(thrown, thrown.message)))
  assert.deepEqual(readError(sent), { code: 'HM_CA_BUSY', message: 'Too much', hint: 'Wait' })
  assert.equal(errorDocument(new TypeError('x'), 'y').error.code, 'HM_INTERNAL')
  const nothing = { code: undefined, message: undefined, hint: undefined }
  for (const other of [
    undefined,
    null,
    'x',
    [],
    { error: 'x' },
    { error: { code: 'EVIL', message: 1 } },
  ])
    assert.deepEqual(readError(other), nothing)
})

test('a server that closes while a TLS handshake is under way is closed all the same', async () => {
  const { certificatePem: cert, privateKeyPem: key } = makeLeaf(makeAuthority())
  const server = createServer({ cert, key }, (_, response) => void response.end())
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const agent = new Agent({ keepAlive: true, rejectUnauthorized: false })
  const port = portOf(server)
  const asked = callJson(request, { port, agent }, { maxBytes: 100 }).catch(() => undefined)
  await once(server, 'connection')
  // Kept alive as it is, the connection would hold the server open for as long as it likes.
  await within(3_000, 'closing the server', closeServer(server))
  await asked
  agent.destroy()
})
