/**
 * A caller that opens and drops connections as fast as it may, over and over on the same few local ports, and
 * says in each who it is. Some end in order, some by reset. `forges` puts headers in front that claim to be
 * somebody else.
 *
 * `churn.ts JSON`; prints one JSON line when its time is over. Becomes its user before it opens any socket.
 */
import { connect } from 'node:net'
import { setTimeout as pause } from 'node:timers/promises'

interface Task {
  readonly uid: number
  readonly name: string
  readonly targets: readonly { readonly name: string; readonly ip: string; readonly port: number }[]
  readonly forMs: number
  /** Local ports that all callers fight for. */
  readonly localPorts: readonly [first: number, count: number]
  /** Base64 of what is sent before the truth. */
  readonly forges: readonly string[]
}

/** Connections of this process at the same time. */
const AT_ONCE = 6

/** Between two connections: tests share their machine. */
const PAUSE_MS = 3

const PATIENCE_MS = 5_000

const task = JSON.parse(process.argv[2] ?? '') as Task
process.setgroups?.([])
process.setgid?.(task.uid)
process.setuid?.(task.uid)

const tally = {
  opened: 0,
  answered: {} as Record<string, number>,
  failed: {} as Record<string, number>,
}
const endAt = performance.now() + task.forMs
let serial = 0

async function worker(): Promise<void> {
  while (performance.now() < endAt) {
    serial += 1
    const target = task.targets[serial % task.targets.length]
    if (target !== undefined) await call(target, serial)
    await pause(PAUSE_MS)
  }
}

function call(target: Task['targets'][number], number: number): Promise<void> {
  const [first, count] = task.localPorts
  return new Promise((resolve) => {
    const socket = connect({
      host: target.ip,
      port: target.port,
      // Half of them take a port that somebody else has just let go of, the others what the kernel gives.
      ...(number % 2 === 0 && { localPort: first + Math.floor(Math.random() * count) }),
    })
    let answer = ''
    let isOver = false
    const over = (how: string): void => {
      if (isOver) return
      isOver = true
      const counts = how === 'answered' ? tally.answered : tally.failed
      const key = how === 'answered' ? target.name : how
      counts[key] = (counts[key] ?? 0) + 1
      // Few in order: each of those keeps its local port for a minute, and there are few ports.
      if (Math.random() < 0.05) socket.end()
      else socket.resetAndDestroy()
      resolve()
    }
    // Also for those that were ended in order and linger: the process must end.
    socket.setTimeout(PATIENCE_MS, () => {
      over('timeout')
      socket.destroy()
    })
    socket.on('error', (error: NodeJS.ErrnoException) => over(error.code ?? error.message))
    socket.on('close', () => over('closed'))
    socket.on('connect', () => {
      tally.opened += 1
      const forged = task.forges[number % (task.forges.length + 1)]
      if (forged !== undefined) socket.write(Buffer.from(forged, 'base64'))
      socket.write(` ${task.name} ${number}.\n`)
    })
    socket.on('data', (chunk: Buffer) => {
      answer += chunk.toString('latin1')
      if (answer.includes('\n')) over('answered')
    })
  })
}

await Promise.all(Array.from({ length: AT_ONCE }, worker))
process.stdout.write(`${JSON.stringify(tally)}\n`)
