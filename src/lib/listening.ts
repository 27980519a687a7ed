/**
 * Whether a process on this host listens at an address, read from the kernel's table of sockets, without
 * connecting. The kernel lists listeners first, so a host with many connections costs no more.
 */
import { open } from 'node:fs/promises'
import { ownAddresses } from './own-addresses.ts'

const TABLES = ['/proc/self/net/tcp', '/proc/self/net/tcp6'] as const

/** The state of a listening socket in /proc. */
const LISTEN = '0A'

/** Maximum read: no correctly configured host has listeners beyond it. */
const MAX_BYTES = 4 * 1_024 * 1_024

/** The unspecified address in the table of IPv4 and of IPv6: 32-bit words in the machine's byte order. */
const ANY: ReadonlySet<string> = new Set(['0'.repeat(8), '0'.repeat(32)])

/**
 * Whether a connection to `ip` (canonical) and `port` would find a listener. Undefined where that is
 * unknown: the address does not belong to this host, or the table cannot be read.
 */
export async function isListening(ip: string, port: number): Promise<boolean | undefined> {
  if (!isOwnAddress(ip)) return undefined
  try {
    const found = await Promise.all(TABLES.map((path) => hasListener(path, ip, port)))
    return found.includes(true)
  } catch {
    return undefined
  }
}

function isOwnAddress(ip: string): boolean {
  return ip.startsWith('127.') || ip === '::1' || ownAddresses().has(ip)
}

async function hasListener(path: string, ip: string, port: number): Promise<boolean> {
  const suffix = `:${port.toString(16).toUpperCase().padStart(4, '0')}`
  const wanted = new Set([...ANY, ...tableForms(ip)].map((address) => address + suffix))
  await using file = await openOrNone(path)
  if (file === undefined) return false
  let rest = ''
  const chunk = Buffer.alloc(65_536)
  for (let read = 0; read < MAX_BYTES; ) {
    const { bytesRead } = await file.read(chunk, 0, chunk.length)
    if (bytesRead === 0) break
    read += bytesRead
    const lines = (rest + chunk.toString('latin1', 0, bytesRead)).split('\n')
    rest = lines.pop() ?? ''
    for (const line of lines) {
      const [, local = '', , state] = line.trim().split(/\s+/)
      if (state === LISTEN && wanted.has(local)) return true
      // Connections come after the listeners.
      if (state !== LISTEN && /^[0-9A-F]{2}$/.test(state ?? '')) return false
    }
  }
  return false
}

/** IPv6 may be disabled in the kernel: then there is no such table. */
async function openOrNone(path: string): Promise<Awaited<ReturnType<typeof open>> | undefined> {
  try {
    return await open(path, 'r')
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return undefined
    throw error
  }
}

/** The forms of an address in the tables: IPv4 also appears in that of IPv6, for dual-stack sockets. */
function tableForms(ip: string): string[] {
  const bytes = ip.includes(':') ? ipv6Bytes(ip) : ip.split('.').map(Number)
  if (bytes.length === 16) return [words(bytes)]
  return [words(bytes), words([...Array<number>(10).fill(0), 0xff, 0xff, ...bytes])]
}

function words(bytes: readonly number[]): string {
  const text: string[] = []
  for (let at = 0; at < bytes.length; at += 4)
    text.push(Buffer.from(bytes.slice(at, at + 4).toReversed()).toString('hex'))
  return text.join('').toUpperCase()
}

/** The bytes of a canonical address, which may have one `::`. */
function ipv6Bytes(ip: string): number[] {
  const [head = '', tail] = ip.split('::')
  const groups = (text: string): number[] =>
    text === '' ? [] : text.split(':').map((group) => Number.parseInt(group, 16))
  const [first, last] = [groups(head), groups(tail ?? '')]
  const zeros = tail === undefined ? 0 : 8 - first.length - last.length
  return [...first, ...Array<number>(zeros).fill(0), ...last].flatMap((group) => [
    group >> 8,
    group & 0xff,
  ])
}
