/**
 * New connections at a steady rate on a test machine, also from its boot on: ../harness/steady-calls.ts for machines.
 *
 * Put {@link dialerFiles} on the machine. For the time of a test there is {@link keepConnectingOn}; for what happens at
 * boot and over reboots make the text of {@link dialerCommand} the ExecStart of a unit, and read {@link machineCalls}.
 */
import { randomUUID } from 'node:crypto'
import { readFile } from 'node:fs/promises'

import { eventually } from '../harness/eventually.ts'
import {
  type Call,
  type ConnectOptions,
  dialerOptions,
  dialerPath,
  parseCalls,
  type SteadyConnections,
  summarizeCalls,
} from '../harness/steady-calls.ts'
import { canary } from '../harness/wire-capture.ts'
import type { Machine } from './machine.ts'

/** Where the dialer is on a machine. */
const DIALER = '/usr/local/lib/dialer.py'

/** As whom connections are opened on a machine. */
export interface DialerIdentity {
  readonly user?: string
  /** Below the root of the tree, such as `system.slice/web.service`; the unit in it must run. */
  readonly cgroup?: string
}

/** The files that a machine needs, for its disk. */
export async function dialerFiles(): Promise<Record<string, string>> {
  return { [DIALER]: await readFile(dialerPath, 'utf8') }
}

/** The command of a unit that connects for as long as it runs, and appends what came of it to `log`. */
export function dialerCommand(
  options: ConnectOptions & { readonly canary: string; readonly log: string },
): string {
  // Nothing in it that systemd would expand or split.
  return `/usr/bin/python3 ${DIALER} '${dialerOptions(options)}'`
}

/** What such a unit wrote so far, over all its lives. */
export async function machineCalls(machine: Machine, log: string): Promise<readonly Call[]> {
  const { code, stdout } = await machine.run('cat', log)
  // Before its first connection there is none. A line may be half written after a power cut.
  const lines = stdout.split('\n').filter((line) => line.endsWith('}'))
  return code === 0 ? parseCalls(lines) : []
}

/** Starts to connect on a machine, now. */
export async function keepConnectingOn(
  machine: Machine,
  options: ConnectOptions & DialerIdentity,
): Promise<SteadyConnections> {
  const text = options.canary ?? canary()
  const id = `dialer-${randomUUID().slice(0, 8)}`
  const log = `/var/tmp/${id}.jsonl`
  const { user = 'nobody', cgroup } = options
  const dialer = ['/usr/bin/python3', DIALER, dialerOptions({ ...options, canary: text, log })]
  const become = ['setpriv', `--reuid=${user}`, `--regid=nogroup`, '--clear-groups', ...dialer]
  // 0 is who writes; systemd has a meaning of its own for two dollar signs.
  const enter = `echo 0 >/sys/fs/cgroup/${cgroup}/cgroup.procs && exec "$@"`
  const command = cgroup === undefined ? become : ['sh', '-c', enter, 'sh', ...become]
  const unit = ['systemd-run', '--quiet', `--unit=${id}`, '--property=TimeoutStopSec=60s']
  await machine.must(...unit, ...command)
  let calls: readonly Call[] = []
  let isOver = false
  const read = async (): Promise<void> => {
    calls = await machineCalls(machine, log)
  }
  const stop = async (): Promise<ReturnType<typeof summarizeCalls>> => {
    if (!isOver) await machine.must('systemctl', 'stop', id)
    isOver = true
    await read()
    return summarizeCalls(calls)
  }
  return {
    canary: text,
    calls: () => calls,
    async more(count) {
      await read()
      const wanted = calls.length + count
      await eventually(
        async () => {
          await read()
          if (calls.length < wanted) throw new Error(`${calls.length} of ${wanted} connections`)
        },
        { withinMs: 60_000, everyMs: 200 },
      )
    },
    stop,
    async [Symbol.asyncDispose]() {
      if (!isOver) await stop()
    },
  }
}
