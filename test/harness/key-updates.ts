/**
 * A TLS 1.3 client that sends key updates by hand (RFC 8446, 4.6.3 and 7.2), as many as one likes: Node has no call for it.
 * The secrets come from Node's own key log.
 */
import { createCipheriv, createHmac } from 'node:crypto'
import { once } from 'node:events'
import { connect as connectTcp, type Socket } from 'node:net'
import { Duplex } from 'node:stream'
import { setImmediate } from 'node:timers/promises'
import { type ConnectionOptions, connect } from 'node:tls'

const suites: Partial<Record<string, readonly [hash: string, keyBytes: number]>> = {
  TLS_AES_128_GCM_SHA256: ['sha256', 16],
  TLS_AES_256_GCM_SHA384: ['sha384', 32],
}

/** "Not requested" of the other side, and its content type. */
const KEY_UPDATE = Buffer.from('180000010016', 'hex')
const TAG_BYTES = 16

/** Dials, and sends so many key updates in one piece. The socket is the caller's to destroy. */
export async function sendKeyUpdates(
  port: number,
  options: ConnectionOptions,
  count: number,
): Promise<Socket> {
  const raw = connectTcp(port, '127.0.0.1')
  raw.on('error', () => undefined)
  await once(raw, 'connect')
  const carrier = new Duplex({
    read: () => undefined,
    write: (chunk: Buffer, _encoding, done) => {
      raw.write(chunk)
      done()
    },
  })
  raw.on('data', (chunk: Buffer) => carrier.push(chunk))
  const client = connect({ ...options, socket: carrier, rejectUnauthorized: false })
  client.on('error', () => undefined)
  let secret: Buffer | undefined
  client.on('keylog', (line: Buffer) => {
    const [label, , hex = ''] = line.toString().trim().split(' ')
    if (label === 'CLIENT_TRAFFIC_SECRET_0') secret = Buffer.from(hex, 'hex')
  })
  await once(client, 'secureConnect')
  const suite = suites[client.getCipher().name]
  if (suite === undefined || secret === undefined)
    throw new Error(`No keys of ${client.getCipher().name}`)
  const records: Buffer[] = []
  for (let i = 0; i < count; i += 1) {
    // The other side may be of this process, and still has to take the handshake.
    if (i % 500 === 0) await setImmediate()
    records.push(sealed(secret, suite))
    secret = expand(suite[0], secret, 'traffic upd', secret.length)
  }
  raw.write(Buffer.concat(records))
  return raw
}

/** The first record under a secret. */
function sealed(secret: Buffer, [hash, keyBytes]: readonly [string, number]): Buffer {
  const key = expand(hash, secret, 'key', keyBytes)
  const nonce = expand(hash, secret, 'iv', 12)
  const header = Buffer.from([0x17, 3, 3, 0, KEY_UPDATE.length + TAG_BYTES])
  const cipher = createCipheriv(keyBytes === 16 ? 'aes-128-gcm' : 'aes-256-gcm', key, nonce)
  cipher.setAAD(header)
  const bytes = Buffer.concat([cipher.update(KEY_UPDATE), cipher.final()])
  return Buffer.concat([header, bytes, cipher.getAuthTag()])
}

/** HKDF-Expand-Label with no context, for what fits into one block. */
function expand(hash: string, secret: Buffer, label: string, length: number): Buffer {
  const name = Buffer.from(`tls13 ${label}`)
  const info = Buffer.concat([Buffer.from([0, length, name.length]), name, Buffer.from([0, 1])])
  return createHmac(hash, secret).update(info).digest().subarray(0, length)
}
