/**
 * IP addresses and ports as text, in one canonical spelling, so that maps can be keyed by them.
 *
 * Canonical: IPv4 dotted quad, IPv6 lower case and compressed (RFC 5952), IPv4-mapped IPv6 (`::ffff:a.b.c.d`) as plain
 * IPv4. Equal addresses have equal strings: policy and self-call checks compare strings.
 */

/** An IP address and a TCP port. `ip` is canonical. */
export interface SocketAddress {
  readonly ip: string
  readonly port: number
}

/** `ip:port`, with brackets around IPv6: the key under which an address is looked up. */
export function formatAddress(address: SocketAddress): string {
  return address.ip.includes(':')
    ? `[${address.ip}]:${address.port}`
    : `${address.ip}:${address.port}`
}

/** Whether `port` is a valid TCP port to listen on: 1 to 65535. */
export function isPort(port: unknown): port is number {
  return typeof port === 'number' && Number.isInteger(port) && port >= 1 && port <= 65_535
}

/** The canonical spelling of an IP address without a zone; undefined when `text` is not an address. */
export function canonicalIp(text: string): string | undefined {
  const v4 = parseV4(text)
  if (v4 !== undefined) return v4.join('.')
  const words = parseV6(text)
  if (words === undefined) return undefined
  if (words.slice(0, 5).every((word) => word === 0) && words[5] === 0xffff) {
    const [high = 0, low = 0] = words.slice(6)
    return [high >> 8, high & 0xff, low >> 8, low & 0xff].join('.')
  }
  return formatV6(words)
}

/** Whether a canonical address is IPv6. */
export function isIpv6(ip: string): boolean {
  return ip.includes(':')
}

/**
 * The 4 or 16 bytes of a canonical address.
 * @throws RangeError when `ip` is not an address: callers pass canonical ones.
 */
export function ipBytes(ip: string): Uint8Array {
  const v4 = parseV4(ip)
  if (v4 !== undefined) return Uint8Array.from(v4)
  const words = parseV6(ip)
  if (words === undefined) throw new RangeError(`Not an IP address: ${ip}`)
  return Uint8Array.from(words.flatMap((word) => [word >> 8, word & 0xff]))
}

/**
 * The addresses that one host may control: the address itself for IPv4, its /64 network for IPv6. Empty for an empty
 * string. `ip` is canonical.
 */
export function networkOf(ip: string): string {
  if (!isIpv6(ip)) return ip
  const words = Array.from({ length: 4 }, (_, i) => {
    const [high = 0, low = 0] = ipBytes(ip).subarray(2 * i, 2 * i + 2)
    return ((high << 8) | low).toString(16)
  })
  return `${words.join(':')}::/64`
}

/** The canonical address of 4 or 16 bytes, or undefined for any other length. */
export function ipFromBytes(bytes: Uint8Array): string | undefined {
  if (bytes.length === 4) return bytes.join('.')
  if (bytes.length !== 16) return undefined
  const words: number[] = []
  for (let i = 0; i < 16; i += 2) words.push(((bytes[i] ?? 0) << 8) | (bytes[i + 1] ?? 0))
  return canonicalIp(words.map((word) => word.toString(16)).join(':'))
}

/** Whether the address reaches only this host (127.0.0.0/8, ::1). */
export function isLoopback(ip: string): boolean {
  return ip.startsWith('127.') || ip === '::1'
}

/** Whether no single host can be dialed at the address: unspecified, multicast, broadcast. */
export function isUndialable(ip: string): boolean {
  if (ip === '0.0.0.0' || ip === '::' || ip === '255.255.255.255') return true
  if (ip.includes(':')) return ip.startsWith('ff')
  const first = Number(ip.slice(0, ip.indexOf('.')))
  return first >= 224 && first <= 239
}

/** Compares character codes for speed: it runs for every connection. */
function parseV4(text: string): number[] | undefined {
  const bytes: number[] = []
  let value = 0
  let digits = 0
  for (let i = 0; i <= text.length; i += 1) {
    const code = i === text.length ? DOT : text.charCodeAt(i)
    if (code === DOT) {
      if (digits === 0 || bytes.length === 4) return undefined
      bytes.push(value)
      value = 0
      digits = 0
      continue
    }
    // Rejected: a leading zero may be meant as octal.
    if (code < ZERO || code > NINE || (digits > 0 && value === 0)) return undefined
    value = value * 10 + (code - ZERO)
    digits += 1
    if (value > 255) return undefined
  }
  return bytes.length === 4 ? bytes : undefined
}

const DOT = 46
const ZERO = 48
const NINE = 57

function parseV6(text: string): number[] | undefined {
  let source = text
  const tail = source.slice(source.lastIndexOf(':') + 1)
  if (tail.includes('.')) {
    const v4 = parseV4(tail)
    if (v4 === undefined) return undefined
    const [a = 0, b = 0, c = 0, d = 0] = v4
    const words = `${((a << 8) | b).toString(16)}:${((c << 8) | d).toString(16)}`
    source = source.slice(0, source.length - tail.length) + words
  }
  const halves = source.split('::')
  if (halves.length > 2) return undefined
  const head = parseWords(halves[0] ?? '')
  const rest = halves.length === 2 ? parseWords(halves[1] ?? '') : []
  if (head === undefined || rest === undefined) return undefined
  const missing = 8 - head.length - rest.length
  if (halves.length === 1 ? missing !== 0 : missing < 1) return undefined
  return [...head, ...Array.from({ length: missing }, () => 0), ...rest]
}

function parseWords(text: string): number[] | undefined {
  if (text === '') return []
  const words: number[] = []
  for (const part of text.split(':')) {
    if (!/^[0-9a-fA-F]{1,4}$/.test(part)) return undefined
    words.push(Number.parseInt(part, 16))
  }
  return words
}

function formatV6(words: readonly number[]): string {
  let bestStart = -1
  let bestLength = 1
  for (let start = 0; start < 8; start += 1) {
    let end = start
    while (end < 8 && words[end] === 0) end += 1
    if (end - start > bestLength) {
      bestStart = start
      bestLength = end - start
    }
  }
  const hex = (part: readonly number[]): string => part.map((word) => word.toString(16)).join(':')
  if (bestStart < 0) return hex(words)
  return `${hex(words.slice(0, bestStart))}::${hex(words.slice(bestStart + bestLength))}`
}
