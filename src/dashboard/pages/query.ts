/**
 * What the pages ask for: the time that is looked at.
 */
import { useMemo } from 'preact/hooks'

import type { Query } from '../api.ts'
import { view } from '../location.ts'

/** Span of the figures of lists, unless the reader has chosen another. */
const USUAL_WINDOW = '1m'

/** The query of the present view; the same object while it is the same. */
export function useQuery(name?: string): Query {
  const { at, window = USUAL_WINDOW } = view.value.params
  return useMemo(
    () => ({ ...(name === undefined ? {} : { name }), window, at }),
    [name, window, at],
  )
}

/** Whether a name has the text that the reader looks for. */
export function isWanted(...texts: readonly (string | null)[]): boolean {
  const wanted = (view.value.params['find'] ?? '').trim().toLowerCase()
  return wanted === '' || texts.some((text) => text?.toLowerCase().includes(wanted) === true)
}
