/**
 * Both ends of a tunnel in a network namespace of their own, between which the wire is cut: packets vanish, and no
 * kernel acknowledges anything. Run inside the namespace; tells its parent what became of each case.
 */
import { execFileSync } from 'node:child_process'
import { setTimeout as sleep } from 'node:timers/promises'

import type { TunnelStream } from '../../../src/dataplane/tunnel/stream.ts'
import { Collector, openTunnel } from '../../integration/tunnel-fixtures.ts'

/** What became of one case. */
export interface SilentOutcome {
  readonly name: string
  readonly isSuspect: boolean
  /** Of each stream: undefined while it stands, else the code it ended with. */
  readonly endings: readonly (string | undefined)[]
  /** What the acceptor's application was given after the wire was whole again. */
  readonly delivered: string
}

interface Case {
  readonly name: string
  /** `standing` is confirmed before the cut. */
  readonly hasStanding: boolean
  readonly mayMove: boolean
  readonly says: string
  /** Whether the peer's kernel still takes what is sent, and only its daemon is stuck. */
  readonly isOnlySlow?: boolean
  readonly waitsMs: number
}

const cases: readonly Case[] = [
  { name: 'alone', hasStanding: false, mayMove: true, says: 'hello', waitsMs: 1_000 },
  { name: 'nowhere to go', hasStanding: false, mayMove: false, says: 'hello', waitsMs: 1_000 },
  { name: 'beside others', hasStanding: true, mayMove: true, says: 'hello', waitsMs: 1_000 },
  { name: 'beside others, unsaid', hasStanding: true, mayMove: true, says: '', waitsMs: 1_000 },
  { name: 'beside others, long', hasStanding: true, mayMove: true, says: 'hello', waitsMs: 4_000 },
  {
    name: 'slow',
    hasStanding: false,
    mayMove: true,
    says: 'hello',
    isOnlySlow: true,
    waitsMs: 1_000,
  },
]

for (const one of cases) process.send?.(await play(one))
process.disconnect()

async function play(one: Case): Promise<SilentOutcome> {
  await using tunnel = await openTunnel()
  const { opener, acceptor } = tunnel
  const { session } = opener
  while (session.roundTripMs === undefined) await sleep(5)
  const endings: (string | undefined)[] = []
  const told: Collector[] = []
  const open = (): TunnelStream => {
    const stream = session.open(Buffer.from('preface'))
    const collector = new Collector(stream)
    told.push(collector)
    return stream
  }
  let delivered = ''
  if (one.hasStanding) {
    open()
    const far = await acceptor.nextStream()
    far.receiver = new Collector(far)
    far.confirm()
    while (session.isSuspect || told[0]?.stream === undefined || !isConfirmed(told[0]))
      await sleep(5)
    await sleep(50)
  }
  const cut = one.isOnlySlow === true ? undefined : cutWire()
  if (one.isOnlySlow === true) acceptor.socket.pause()
  // What begins within the clock of the kernel's last acknowledgement may have arrived.
  await sleep(50)
  const stream = open()
  const mayMove = (): boolean => one.mayMove
  stream.mayUseAnother = mayMove
  if (one.says !== '') stream.write(Buffer.from(one.says))
  const watching = setInterval(() => session.watch(performance.now()), 50)
  await sleep(one.waitsMs)
  clearInterval(watching)
  const { isSuspect } = session
  for (const { reset } of told)
    endings.push(reset === undefined ? undefined : String(Reflect.get(reset, 'code')))
  cut?.mend()
  // Longer than the kernel waits before it sends again.
  await sleep(1_500)
  for (const far of acceptor.streams.splice(0)) {
    const collector = new Collector(far)
    far.resume()
    await sleep(20)
    delivered += collector.bytes.toString().replace('preface', '')
  }
  return { name: one.name, isSuspect, endings, delivered }
}

function isConfirmed({ stream }: Collector): boolean {
  return 'isConfirmed' in stream && stream.isConfirmed === true
}

function cutWire(): { mend: () => void } {
  execFileSync('iptables', ['-I', 'INPUT', '-p', 'tcp', '-j', 'DROP'])
  return { mend: () => void execFileSync('iptables', ['-F', 'INPUT']) }
}
