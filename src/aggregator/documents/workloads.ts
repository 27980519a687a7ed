/**
 * Resources of workloads as averages over a span. Pure.
 */
import type { WorkloadEntry } from '../../model/fleet.ts'
import type { WorkloadReading } from '../fleet-store.ts'

/** The averages of one reading; null where the kernel does not say. */
export function workloadEntry({ spanMs, use }: WorkloadReading): WorkloadEntry {
  const { service, cpuMs, memoryBytes, tasks, sockets, pressure } = use
  return {
    service,
    cpu: cpuMs === undefined || spanMs <= 0 ? null : cpuMs / spanMs,
    memoryBytes: memoryBytes ?? null,
    tasks: tasks ?? null,
    sockets: sockets ?? null,
    cpuPressure: pressure?.cpu ?? null,
    memoryPressure: pressure?.memory ?? null,
    ioPressure: pressure?.io ?? null,
  }
}
