/**
 * The original destination where nobody diverts anything. What redirected connections answer is tried in
 * test/mesh/capture-rules.test.ts, where there are rules.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import { describe, test } from 'node:test'
import { Worker } from 'node:worker_threads'
import { originalDestination } from '../../src/dataplane/capture/original-destination.ts'
import { descriptorOf } from '../../src/lib/node-internals.ts'

/** Both ends of a connection over loopback. */
async function connectedPair(
  host: string,
): Promise<{ downstream: Socket; accepted: Socket; port: number; close: () => void }> {
  const server = createServer().listen(0, host)
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const downstream = connect(port, host)
  const [accepted] = (await once(server, 'connection')) as [Socket]
  const close = (): void => {
    downstream.destroy()
    accepted.destroy()
    server.close()
  }
  return { downstream, accepted, port, close }
}

describe('originalDestination()', () => {
  for (const host of ['127.0.0.1', '::1'])
    test(`of a connection to ${host} that nobody diverted is unknown, or the listener itself`, async () => {
      const { accepted, port, close } = await connectedPair(host)
      const original = originalDestination(descriptorOf(accepted))
      // Which of the two depends on whether this machine tracks connections; the data plane refuses both.
      if (original !== undefined) assert.deepEqual(original, { ip: host, port })
      close()
    })

  test('is unknown for a descriptor that is no socket, and for none', () => {
    assert.equal(originalDestination(0), undefined)
    assert.equal(originalDestination(-1), undefined)
    assert.equal(originalDestination(1_000_000), undefined)
  })

  test('works in worker threads', async () => {
    const file = new URL('../../src/dataplane/capture/original-destination.ts', import.meta.url)
    const worker = new Worker(
      `const { parentPort } = require('node:worker_threads')
       import(${JSON.stringify(file.href)}).then((m) => parentPort.postMessage(m.originalDestination(-1) ?? 'none'))`,
      { eval: true },
    )
    assert.deepEqual(await once(worker, 'message'), ['none'])
    await worker.terminate()
  })
})
