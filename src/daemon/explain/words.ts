/**
 * Short texts that several stations and the admin API share. Text only: nothing is decided here.
 */
import type { WorkloadSelector } from '../../model/service.ts'

/** A selector as in the configuration. */
export function selectorText(selector: WorkloadSelector): string {
  switch (selector.kind) {
    case 'cgroup':
      return `cgroup ${selector.path}`
    case 'user':
      return `user ${selector.user}`
    case 'sourceAddress':
      return `source ${selector.ip}`
    default:
      return selector satisfies never
  }
}

/** A list as text: at most five items, and how many more there are. */
export function listed(items: readonly string[]): string {
  const rest = items.length - 5
  return rest > 0 ? `${items.slice(0, 5).join(', ')} and ${rest} more` : items.join(', ')
}
