/**
 * Each page of the dashboard in a real browser: with data, without, with an error, with 300 services, for screen readers.
 */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { after, afterEach, before, test } from 'node:test'

import type { Page } from 'playwright-core'

import {
  DashboardBrowser,
  largeFleet,
  noFleet,
  type PageOptions,
  smallFleet,
} from '../harness/browser.ts'

/** Each page, and what shows that it has its data. */
const pages = [
  ['#/graph', '.nodes .node'],
  ['#/services', 'tbody tr'],
  ['#/services/checkout', '.plot canvas'],
  ['#/hosts', 'tbody tr'],
  ['#/hosts/node-06', '.plot canvas'],
  ['#/risks', 'tbody tr'],
  ['#/versions', '.versions li'],
] as const

const axe = readFileSync(new URL('../../node_modules/axe-core/axe.min.js', import.meta.url), 'utf8')

let dashboard: DashboardBrowser
before(async () => {
  dashboard = await DashboardBrowser.start()
})
after(() => dashboard[Symbol.asyncDispose]())
afterEach(() => {
  assert.deepEqual(dashboard.complaints.splice(0), [])
})

async function withPage(
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

for (const [hash, mark] of pages) {
  test(`${hash} shows its data, and no part of it is wider than a screen of 360 px`, async () => {
    dashboard.serve(smallFleet)
    await withPage(hash, { width: 360, height: 780 }, async (page) => {
      await page.waitForSelector(mark)
      const width = await page.evaluate<number>('document.documentElement.scrollWidth')
      assert.ok(width <= 360, `${width} px`)
    })
  })

  for (const scheme of ['light', 'dark'] as const)
    test(`${hash} has nothing that a screen reader, a keyboard or weak eyes cannot use, ${scheme}`, async () => {
      dashboard.serve(smallFleet)
      await withPage(hash, { scheme }, async (page) => {
        await page.waitForSelector(mark)
        assert.deepEqual(await violations(page), [])
      })
    })

  test(`${hash} says why it is empty`, async () => {
    dashboard.serve(noFleet)
    await withPage(hash, {}, async (page) => {
      const text = await page.locator('.empty').first().innerText()
      assert.match(
        text,
        /No host has ever reported to this aggregator|does not have this|told to fail with 404/,
      )
      assert.deepEqual(await violations(page), [])
    })
  })

  test(`${hash} gives the reasons of the aggregator when it is empty`, async () => {
    dashboard.serve({ ...noFleet, notes: ['The aggregator started 4 s ago'] })
    await withPage(hash, {}, async (page) => {
      const text = await page.locator('.empty').first().innerText()
      assert.match(text, /The aggregator started 4 s ago|told to fail with 404/)
    })
  })

  test(`${hash} says what failed and what to do, and shows its data when it is over`, async () => {
    dashboard.serve(smallFleet)
    dashboard.server.served.failWith = 500
    await withPage(hash, {}, async (page) => {
      const text = await page.locator('.failure').innerText()
      assert.match(text, /told to fail with 500/)
      assert.match(text, /Tell it otherwise/)
      delete dashboard.server.served.failWith
      await page.waitForSelector(mark)
      assert.equal(await page.locator('.failure').count(), 0)
    })
  })

  test(`${hash} keeps what it had when the aggregator goes away, and says of when that is`, async () => {
    dashboard.serve(smallFleet)
    await withPage(hash, {}, async (page) => {
      await page.waitForSelector(mark)
      dashboard.server.served.isUnreachable = true
      dashboard.server.cutStreams()
      await page.waitForSelector('.stale:has-text("shown as of")')
      assert.ok((await page.locator(mark).count()) > 0)
    })
  })

  test(`${hash} shows a fleet of 300 services`, async () => {
    dashboard.serve(largeFleet)
    await withPage(hash, {}, async (page) => {
      await page.waitForSelector(mark)
    })
  })
}

test('who has no right reads that, and who is not known may enter a token', async () => {
  dashboard.serve(smallFleet)
  dashboard.server.served.failWith = 403
  await withPage('#/services', {}, async (page) => {
    await page.waitForSelector('.failure:has-text("told to fail with 403")')
  })
  dashboard.server.served.failWith = 401
  await withPage('#/services', {}, async (page) => {
    await page.getByLabel('Token').fill('secret')
    delete dashboard.server.served.failWith
    await page.getByRole('button', { name: 'Enter' }).click()
    await page.waitForSelector('tbody tr')
    assert.equal(dashboard.server.lastAuthorization, 'Bearer secret')
  })
})

test('partial figures are said to be partial, with the reason', async () => {
  dashboard.serve(smallFleet)
  await withPage('#/services', {}, async (page) => {
    await page.waitForSelector('.notes:has-text("8/9 hosts reporting"):has-text("node-03")')
  })
})

test('names from the network are text on every page, whatever is in them', async () => {
  const fleet = dashboard.serve(smallFleet)
  const hostile = '<img src=x onerror="document.title=\'owned\'">'
  const { answers } = dashboard.server.served
  const renamed = JSON.stringify(answers.services(new URLSearchParams())).replaceAll(
    '"checkout"',
    JSON.stringify(hostile),
  )
  dashboard.server.served.answers = { ...answers, services: () => JSON.parse(renamed) }
  assert.ok(fleet.services.includes('checkout'))
  await withPage('#/services', {}, async (page) => {
    await page.waitForSelector('tbody tr')
    assert.ok((await page.locator('tbody').innerText()).includes(hostile))
    assert.equal(await page.locator('tbody img').count(), 0)
    assert.equal(await page.title(), 'hostmesh')
  })
})

test('a table sorts by the column that is pressed, and the address keeps the order', async () => {
  dashboard.serve(smallFleet)
  await withPage('#/services', {}, async (page) => {
    await page.waitForSelector('tbody tr')
    await page.getByRole('button', { name: 'Service', exact: true }).click()
    const names = await page.locator('tbody th').allInnerTexts()
    assert.deepEqual(
      names,
      names.toSorted((a, b) => a.localeCompare(b, 'en', { numeric: true })),
    )
    assert.match(page.url(), /sort=name/)
  })
})

test('the charts of a service have their figures as a table', async () => {
  dashboard.serve(smallFleet)
  await withPage('#/services/checkout', {}, async (page) => {
    await page.getByText('Figures as a table').click()
    await page.waitForSelector('section[aria-label="Figures over time"] tbody tr')
    const row = await page
      .locator('section[aria-label="Figures over time"] tbody tr')
      .first()
      .innerText()
    assert.match(row, /\d\d:\d\d:\d\d.*\/s.*ms/s)
  })
})

test('no request leaves the origin of the page', async () => {
  dashboard.serve(smallFleet)
  const page = await dashboard.open('about:blank')
  const requests: string[] = []
  page.on('request', (request) => requests.push(request.url()))
  for (const [hash, mark] of pages) {
    await page.goto(`${dashboard.server.url}${hash}`)
    await page.waitForSelector(mark)
  }
  assert.deepEqual(
    requests.filter((url) => !url.startsWith(dashboard.server.url)),
    [],
  )
  await page.close()
})

test('the reader chooses light or dark, and the choice outlives the page', async () => {
  dashboard.serve(smallFleet)
  await withPage('#/hosts', { scheme: 'dark' }, async (page) => {
    const background = (): Promise<string> =>
      page.evaluate('getComputedStyle(document.documentElement).backgroundColor')
    const dark = await background()
    await page.getByRole('button', { name: 'Theme: system' }).click()
    assert.notEqual(await background(), dark)
    await page.reload()
    await page.waitForSelector('tbody tr')
    await page.getByRole('button', { name: 'Theme: light' }).click()
    assert.equal(await background(), dark)
  })
})

/** What axe finds, in a line each. */
async function violations(page: Page): Promise<string[]> {
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
