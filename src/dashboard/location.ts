/**
 * The view that is shown, as the address bar has it.
 */
import { type Signal, signal } from '@preact/signals'

import { formatView, type Page, type Patch, pageOf, parseView, patched, type View } from './view.ts'

/** The present view. */
export const view: Signal<View> = signal(parseView(location.hash))

/** Follows the address bar, for as long as the page is open. */
export function followLocation(): void {
  addEventListener('hashchange', () => {
    view.value = parseView(location.hash)
  })
}

/** Changes parameters. `push` makes an entry of the history, to which the reader can go back. */
export function change(patch: Patch, how: 'push' | 'replace' = 'replace'): void {
  show(patched(view.peek(), patch), how)
}

/** Shows another view. */
function show(next: View, how: 'push' | 'replace' = 'push'): void {
  const hash = formatView(next)
  if (hash === formatView(view.peek())) return
  if (how === 'push') history.pushState(null, '', hash)
  else history.replaceState(null, '', hash)
  view.value = next
}

/** Where a link to a page leads; the time that is looked at goes along. */
export function hrefOf(page: Page, name = '', params: Patch = {}): string {
  return formatView(pageOf(view.value, page, name, params))
}
