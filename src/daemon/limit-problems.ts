/**
 * The problems of a host that is short of a resource or bans callers, from the reports of its workers. Pure.
 */
import type { Pressure, ResourcePressure } from '../dataplane/proxy/pressure.ts'
import { Problem } from '../model/problem.ts'

const MIB = 1_048_576

/** The same shortage in several workers is one problem. */
export function limitProblems(pressures: readonly Pressure[]): readonly Problem[] {
  const problems: Problem[] = []
  const descriptors = shortage(pressures.map((pressure) => pressure.descriptors))
  if (descriptors !== undefined)
    problems.push(
      new Problem(
        'HM_LIMIT_DESCRIPTORS_SHORT',
        `File descriptors are short: ${descriptors.used} of ${descriptors.limit} are in use, ${descriptors.refused} connections were refused; ${most(descriptors, String)}`,
      ),
    )
  const memory = shortage(pressures.map((pressure) => pressure.memory))
  if (memory !== undefined)
    problems.push(
      new Problem(
        'HM_LIMIT_MEMORY_SHORT',
        `Memory for bytes that wait is short: ${mib(memory.used)} of ${mib(memory.limit)} are in use, ${memory.refused} connections were broken off; ${most(memory, mib)}`,
      ),
    )
  const streams = shortage(pressures.map((pressure) => pressure.streams))
  if (streams !== undefined)
    problems.push(
      new Problem(
        'HM_LIMIT_STREAMS_SHORT',
        `Callers open more streams than come to anything: ${streams.used} of ${streams.limit} wait for a preface or a policy, ${streams.refused} were refused; ${most(streams, String)}`,
      ),
    )
  const tunnels = shortage(pressures.map((pressure) => pressure.tunnels))
  if (tunnels !== undefined)
    problems.push(
      new Problem(
        'HM_LIMIT_TUNNELS_SHORT',
        `Callers want more tunnels than they may have: ${tunnels.used} of ${tunnels.limit} are open, ${tunnels.refused} were refused; ${most(tunnels, String)}`,
      ),
    )
  const names = [...new Set(pressures.flatMap(({ banned }) => banned.names))].toSorted()
  const count = Math.max(names.length, ...pressures.map(({ banned }) => banned.count))
  if (count > 0)
    problems.push(
      new Problem(
        'HM_LIMIT_CALLERS_BANNED',
        `Refused at the handshake, for breaking the tunnel protocol too often: ${names.join(', ')}${count > names.length ? ` and ${count - names.length} more` : ''}`,
      ),
    )
  return problems
}

/** The sum over the workers that are short; undefined when none is. */
function shortage(of: readonly ResourcePressure[]): ResourcePressure | undefined {
  const short = of.filter(({ isShort }) => isShort)
  if (short.length === 0) return undefined
  const sum = (read: (one: ResourcePressure) => number): number =>
    short.reduce((total, one) => total + read(one), 0)
  const usedByName = new Map<string, number>()
  for (const { heaviest } of short)
    if (heaviest !== undefined)
      usedByName.set(heaviest.name, (usedByName.get(heaviest.name) ?? 0) + heaviest.used)
  const [heaviest] = [...usedByName].toSorted(([, left], [, right]) => right - left)
  return {
    used: sum(({ used }) => used),
    limit: sum(({ limit }) => limit),
    isShort: true,
    refused: sum(({ refused }) => refused),
    heaviest: heaviest === undefined ? undefined : { name: heaviest[0], used: heaviest[1] },
  }
}

function most({ heaviest }: ResourcePressure, text: (used: number) => string): string {
  return heaviest === undefined
    ? 'nobody has any now'
    : `most had ${heaviest.name}: ${text(heaviest.used)}`
}

function mib(bytes: number): string {
  return `${(bytes / MIB).toFixed(1)} MiB`
}
