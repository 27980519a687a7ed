/**
 * Renders the rules that reserve the daemon's ports as a native nftables table. Pure.
 *
 * Another process that binds such a port while the daemon does not listen receives nothing: a first segment or datagram
 * either reaches a socket of the daemon (recognized by IP_TRANSPARENT, which needs a privilege) or is refused. If
 * another process holds a port already, the daemon listens at another one, and traffic to the first is sent there.
 */
import { isLoopback, type SocketAddress } from '../../model/address.ts'
import { type AddChain, chainText } from './nft-words.ts'

/** Our table. */
export const PORT_TABLE = 'hostmesh_ports'

/** A port that belongs to the daemon, whether it runs or not. */
export interface GuardedPort {
  readonly kind: 'tcp' | 'udp'
  /** `::` means all addresses of both families, `0.0.0.0` all IPv4 addresses, a loopback address both loopback ones. */
  readonly address: SocketAddress
  /** The port at which the daemon listens instead, at the same address. */
  readonly movedTo?: number | undefined
}

/** Ports of local services. Connections from other hosts that bypass the mesh are counted, and may be refused. */
export interface PlainInbound {
  /** A loopback address means every address of this host. */
  readonly targets: readonly SocketAddress[]
  readonly refuses: boolean
}

/** Input for the table. */
export interface PortPlan {
  readonly ports: readonly GuardedPort[]
  readonly plainInbound: PlainInbound
}

/** Before connection tracking sees an answer, so that tracking assigns it to its connection. */
const RAW_PRIORITY = -300

/** After all our chains that divert. */
const PREROUTING_PRIORITY = 25

/** Counts connections that bypassed the mesh. */
export const PLAIN_COUNTER = 'plain_inbound'

const REFUSE = [
  'counter name refused meta l4proto tcp reject with tcp reset',
  'counter name refused_datagrams reject with icmpx port-unreachable',
]

const LOOPBACKS: readonly string[] = ['127.0.0.1', '::1']

/** The other loopback address, because programs use either for `localhost`. Undefined for another address. */
export function matchingLoopback(ip: string): string | undefined {
  return LOOPBACKS.includes(ip) ? LOOPBACKS.find((other) => other !== ip) : undefined
}

/** Renders the table. `ports` contains each kind and address once. */
export function renderPortTable({ ports, plainInbound }: PortPlan, table = PORT_TABLE): string {
  // A copy comes after the table itself: the counters of the table are the ones that are read.
  const priority = table === PORT_TABLE ? PREROUTING_PRIORITY : PREROUTING_PRIORITY + 1
  const chains: string[] = []
  const chain: AddChain = (name, lines) => void chains.push(chainText(name, lines))
  const [tcp, udp] = [ofKind(ports, 'tcp'), ofKind(ports, 'udp')]
  chain('ours', ['socket transparent 1 accept', ...REFUSE])
  for (const port of udp) movedChain(port, chain)
  chain('plain', [
    // Diverted on its way here, like connections of containers.
    'socket transparent 1 accept',
    `counter name ${PLAIN_COUNTER}${plainInbound.refuses ? ' meta l4proto tcp reject with tcp reset' : ''}`,
  ])
  chain('connection', [
    ...tcp.flatMap(movedConnection),
    ...oursLines(tcp),
    ...plainLines(plainInbound),
  ])
  chain('datagram', [...udp.flatMap(movedDatagram), ...oursLines(udp)])
  chain('prerouting', [
    `type filter hook prerouting priority ${priority}; policy accept;`,
    'tcp flags & (fin | syn | rst | ack) == syn goto connection',
    ...(udp.length === 0 ? [] : [`udp dport { ${portsOf(udp).join(', ')} } goto datagram`]),
  ])
  const answers = udp.flatMap(movedAnswer)
  if (answers.length > 0)
    chain('output', [
      `type filter hook output priority ${RAW_PRIORITY}; policy accept;`,
      ...answers,
    ])
  const counters = ['refused', 'refused_datagrams', PLAIN_COUNTER]
    .map((name) => `  counter ${name} {\n  }\n`)
    .join('')
  return `table inet ${table} {\n${counters}${chains.join('')}}\n`
}

function ofKind(ports: readonly GuardedPort[], kind: GuardedPort['kind']): readonly GuardedPort[] {
  return ports.filter((port) => port.kind === kind)
}

function portsOf(ports: readonly GuardedPort[]): readonly number[] {
  return [...new Set(ports.map(({ address }) => address.port))].toSorted((a, b) => a - b)
}

/** Sends traffic for these ports to `ours`: single addresses by a set, each kind of wildcard by a set of ports. */
function oursLines(ports: readonly GuardedPort[]): string[] {
  const [kind] = ports.map((port) => port.kind)
  const groups = new Map<string, Set<string>>()
  for (const { address } of ports)
    for (const ip of [address.ip, matchingLoopback(address.ip)]) {
      if (ip === undefined) continue
      const [match, element] = destinationOf(ip, address.port)
      groups.set(match, (groups.get(match) ?? new Set()).add(element))
    }
  return [...groups].map(
    ([match, elements]) =>
      `${match.replace('DPORT', `${kind} dport`)} { ${[...elements].join(', ')} } goto ours`,
  )
}

function plainLines({ targets }: PlainInbound): string[] {
  const ports = new Set(targets.flatMap(({ ip, port }) => (isLoopback(ip) ? [port] : [])))
  const local =
    ports.size === 0 ? [] : [`fib daddr type local tcp dport { ${[...ports].join(', ')} }`]
  const others = targets.flatMap(({ ip, port }) =>
    isLoopback(ip)
      ? []
      : [`${ip.includes(':') ? 'ip6' : 'ip'} daddr ${ip} fib daddr type local tcp dport ${port}`],
  )
  return [...local, ...others].map((match) => `iif != "lo" ${match} goto plain`)
}

function destinationOf(ip: string, port: number): [match: string, element: string] {
  if (ip === '::') return ['fib daddr type local DPORT', String(port)]
  if (ip === '0.0.0.0') return ['meta nfproto ipv4 fib daddr type local DPORT', String(port)]
  return [`${ip.includes(':') ? 'ip6' : 'ip'} daddr . DPORT`, `${ip} . ${port}`]
}

/** One match for each family that a socket at this address accepts. */
function families(ip: string, end: 'daddr' | 'saddr'): [word: 'ip' | 'ip6', match: string][] {
  const any = `fib ${end} type local`
  if (ip === '::')
    return [
      ['ip', `meta nfproto ipv4 ${any}`],
      ['ip6', `meta nfproto ipv6 ${any}`],
    ]
  if (ip === '0.0.0.0') return [['ip', `meta nfproto ipv4 ${any}`]]
  const word = ip.includes(':') ? 'ip6' : 'ip'
  return [[word, `${word} ${end} ${ip}`]]
}

function movedConnection({ address: { ip, port }, movedTo }: GuardedPort): string[] {
  if (movedTo === undefined) return []
  return families(ip, 'daddr').map(
    ([word, match]) => `${match} tcp dport ${port} tproxy ${word} to :${movedTo} accept`,
  )
}

function movedDatagram({ address: { ip, port }, movedTo }: GuardedPort): string[] {
  if (movedTo === undefined) return []
  return families(ip, 'daddr').map(
    ([, match]) => `${match} udp dport ${port} goto moved_${port}_${movedTo}`,
  )
}

function movedChain({ address: { port }, movedTo }: GuardedPort, chain: AddChain): void {
  if (movedTo === undefined) return
  chain(`moved_${port}_${movedTo}`, [
    `udp dport set ${movedTo}`,
    'socket transparent 1 accept',
    // A rejection must contain the port that the sender used.
    `udp dport set ${port}`,
    ...REFUSE,
  ])
}

function movedAnswer({ address: { ip, port }, movedTo }: GuardedPort): string[] {
  if (movedTo === undefined) return []
  return families(ip, 'saddr').map(
    ([, match]) => `${match} udp sport ${movedTo} udp sport set ${port}`,
  )
}
