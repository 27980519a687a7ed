/**
 * The small words that several stations, and the admin API, say alike. Only text: nothing is decided here.
 */
import type { WorkloadSelector } from '../../model/service.ts'

/** A selector in the words of the configuration. */
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

/** A list in words: at most five of it, and how many more there are. */
export function listed(items: readonly string[]): string {
  const rest = items.length - 5
  return rest > 0 ? `${items.slice(0, 5).join(', ')} and ${rest} more` : items.join(', ')
}
