/**
 * A misbehaving peer as load, and the burner that takes its place in the control run.
 */
import { join } from 'node:path'
import { MeshError } from '../../src/lib/errors.ts'
import { type RunningProcess, waitFor } from '../site/process.ts'
import type { Stage } from '../site/stage.ts'
import type { Attack } from '../subjects/subject.ts'

/** How a peer misbehaves; see attacker.ts. */
export type AttackMode = 'openreset' | 'open-denied' | 'zerowindow' | 'sessions'

/** Starts to attack, and resolves once the attacker is in. {@link endAttack} ends it. */
export async function startAttack(
  stage: Stage,
  attack: Attack,
  mode: AttackMode,
): Promise<RunningProcess> {
  const { host, port } = attack
  const task = {
    mode,
    host,
    port,
    serverName: mode === 'open-denied' ? attack.deniedName : attack.allowedName,
    certificate: join(stage.files.directory, attack.certificate),
    key: join(stage.files.directory, attack.key),
  }
  const program = join(import.meta.dirname, 'attacker.ts')
  const attacker = stage.startLoad(mode, [process.execPath, program, JSON.stringify(task)], 0)
  await waitFor(`${mode} begins`, { deadlineMs: 15_000, signal: stage.signal }, () => {
    if (attacker.end !== undefined) throw ended(mode, attacker)
    return attacker.output().includes('attacking') ? true : undefined
  })
  return attacker
}

/** Ends an attack. Throws HM_BENCH_LOAD when it ended before, or did nothing. */
export async function endAttack(mode: AttackMode, attacker: RunningProcess): Promise<void> {
  if (attacker.end !== undefined) throw ended(mode, attacker)
  await attacker.stop()
  const report = /^\{.*\}$/m.exec(attacker.output())?.[0]
  const { sessions = 0, streams = 0 } = JSON.parse(report ?? '{}') as Record<string, number>
  if (sessions === 0 || (streams === 0 && mode !== 'sessions'))
    throw new MeshError('HM_BENCH_LOAD', `The attack ${mode} did nothing: ${attacker.outputTail()}`)
}

/** Burns the CPU of one attacker. */
export function startBurner(stage: Stage): RunningProcess {
  return stage.startLoad('burner', ['/bin/sh', '-c', 'while :; do :; done'], 0)
}

function ended(mode: AttackMode, attacker: RunningProcess): MeshError {
  return new MeshError('HM_BENCH_LOAD', `The attack ${mode} ended early: ${attacker.outputTail()}`)
}
