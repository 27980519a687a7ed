/**
 * What the tests of the dashboard's pages share: which pages there are, and what axe finds on one.
 */
import { readFileSync } from 'node:fs'

import type { Page } from 'playwright-core'

import type { DashboardBrowser, PageOptions } from '../harness/browser.ts'

/** Each page, and what shows that it has its data. */
export const pages = [
  ['#/graph', '.nodes .node'],
  ['#/services', 'tbody tr'],
  ['#/services/checkout', '.plot canvas'],
  ['#/hosts', 'tbody tr'],
  ['#/hosts/node-06', '.plot canvas'],
  ['#/risks', 'tbody tr'],
  ['#/versions', '.versions li'],
] as const

const axe = readFileSync(new URL('../../node_modules/axe-core/axe.min.js', import.meta.url), 'utf8')

/** Opens a view, and closes it however the test ends. */
export async function withPage(
  dashboard: DashboardBrowser,
  hash: string,
  options: PageOptions,
  act: (page: Page) => Promise<void>,
): Promise<void> {
  const page = await dashboard.open(hash, options)
  try {
    await act(page)
  } finally {
    await page.close()
  }
}

/** What axe finds, in a line each. */
export async function violations(page: Page): Promise<string[]> {
  // Evaluated by the debugger, which the policy of contents does not bind.
  await page.evaluate(axe)
  return page.evaluate(async () => {
    const { violations: found } = await (
      globalThis as unknown as {
        axe: {
          run: () => Promise<{
            violations: { id: string; nodes: { target: string[]; failureSummary: string }[] }[]
          }>
        }
      }
    ).axe.run()
    return found.flatMap(({ id, nodes }) =>
      nodes
        .slice(0, 3)
        .map(({ target, failureSummary }) => `${id}: ${target.join(' ')}: ${failureSummary}`),
    )
  })
}
