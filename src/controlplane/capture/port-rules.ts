/**
 * Rules that keep the daemon's ports for the daemon, as a native nftables table. Pure.
 *
 * Whoever binds such a port while no daemon listens gets nothing: a first segment or a datagram reaches a socket of the
 * daemon's, known by IP_TRANSPARENT, which takes a privilege, or is refused. Where somebody else holds a port already,
 * the daemon listens at another one and what was sent to the first is led there.
 */
import { isLoopback, type SocketAddress } from '../../model/address.ts'
import { type AddChain, chainText } from './nft-words.ts'

/** Our table. */
export const PORT_TABLE = 'hostmesh_ports'

/** A port that is the daemon's, whether it runs or not. */
export interface GuardedPort {
  readonly kind: 'tcp' | 'udp'
  /** `::` is every address of both families, `0.0.0.0` every IPv4 one. A loopback address stands for both loopback addresses. */
  readonly address: SocketAddress
  /** The port at which the daemon listens in its place, at the same address. */
  readonly movedTo?: number | undefined
}

/** Ports of local services, and what becomes of who reaches them from another host without the mesh: it is counted, and may be refused. */
export interface PlainInbound {
  /** A loopback address stands for every address of this host. */
  readonly targets: readonly SocketAddress[]
  readonly refuses: boolean
}

/** Everything that the table is made from. */
export interface PortPlan {
  readonly ports: readonly GuardedPort[]
  readonly plainInbound: PlainInbound
}

/** Before connection tracking sees an answer, so that it knows it as one. */
const RAW_PRIORITY = -300

/** After everything of ours that diverts. */
const PREROUTING_PRIORITY = 25

/** Connections that came around the mesh. */
export const PLAIN_COUNTER = 'plain_inbound'

const REFUSE = [
  'counter name refused meta l4proto tcp reject with tcp reset',
  'counter name refused_datagrams reject with icmpx port-unreachable',
]

const LOOPBACKS: readonly string[] = ['127.0.0.1', '::1']

/** The same place for who dials `localhost`: programs take either. Undefined for another address. */
export function loopbackTwin(ip: string): string | undefined {
  return LOOPBACKS.includes(ip) ? LOOPBACKS.find((other) => other !== ip) : undefined
}

/** The table. Ports of the same address and kind are given once. */
export function renderPortTable({ ports, plainInbound }: PortPlan, table = PORT_TABLE): string {
  // A copy comes after the table itself: its counters are the ones that are read.
  const priority = table === PORT_TABLE ? PREROUTING_PRIORITY : PREROUTING_PRIORITY + 1
  const chains: string[] = []
  const chain: AddChain = (name, lines) => void chains.push(chainText(name, lines))
  const [tcp, udp] = [ofKind(ports, 'tcp'), ofKind(ports, 'udp')]
  chain('ours', ['socket transparent 1 accept', ...REFUSE])
  for (const port of udp) movedChain(port, chain)
  chain('plain', [
    // Diverted on its way here, as those of containers are.
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

/** Leads what is for one of these to `ours`: single addresses by a set, each kind of wildcard by a set of ports. */
function oursLines(ports: readonly GuardedPort[]): string[] {
  const [kind] = ports.map((port) => port.kind)
  const groups = new Map<string, Set<string>>()
  for (const { address } of ports)
    for (const ip of [address.ip, loopbackTwin(address.ip)]) {
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

/** One match for each family that a socket at this address takes. */
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
    // A refusal names the port that was asked for.
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
