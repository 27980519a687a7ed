/**
 * What the address of the page says: `#/services/web?window=5m&at=...`. Pure. The whole view is in it, so that a link
 * shows another reader the same.
 */

/** The pages. */
export const pages = ['graph', 'services', 'hosts', 'risks', 'versions'] as const

/** Name of a page. */
export type Page = (typeof pages)[number]

/** A page, the service or host that it is about, and its parameters. */
export interface View {
  readonly page: Page
  /** '' for a list. */
  readonly name: string
  readonly params: Readonly<Record<string, string>>
}

/** Changes of parameters; undefined removes one. */
export type Patch = Readonly<Record<string, string | undefined>>

/** Parameters that go along from page to page. */
const lasting = ['at', 'window'] as const

/** The view of a location's hash; the graph where it says nothing that is known. */
export function parseView(hash: string): View {
  const [path = '', query = ''] = hash.replace(/^#?\/?/, '').split('?', 2)
  const [first = '', ...rest] = path.split('/')
  const page = pages.find((known) => known === first) ?? 'graph'
  return {
    page,
    name: page === 'services' || page === 'hosts' ? decode(rest.join('/')) : '',
    params: Object.fromEntries(new URLSearchParams(query)),
  }
}

/** The hash of a view: one spelling for each. */
export function formatView({ page, name, params }: View): string {
  const path = name === '' ? page : `${page}/${encodeURIComponent(name)}`
  const query = new URLSearchParams(
    Object.entries(params)
      .filter(([, value]) => value !== '')
      .toSorted(([a], [b]) => (a < b ? -1 : 1)),
  ).toString()
  return `#/${path}${query === '' ? '' : `?${query}`}`
}

/** The view with other parameters. */
export function patched(view: View, patch: Patch): View {
  const params: Record<string, string> = { ...view.params }
  for (const [key, value] of Object.entries(patch))
    if (value === undefined || value === '') delete params[key]
    else params[key] = value
  return { ...view, params }
}

/** Another page at the same time. */
export function pageOf(view: View, page: Page, name = '', params: Patch = {}): View {
  const kept: Record<string, string> = {}
  for (const key of lasting) {
    const value = view.params[key]
    if (value !== undefined) kept[key] = value
  }
  return patched({ page, name, params: kept }, params)
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text)
  } catch {
    return text
  }
}
