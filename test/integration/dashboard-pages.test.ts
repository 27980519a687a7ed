/**
 * Each page of the dashboard in a real browser: with data, at 360 px, with 300 services, for screen readers.
 */
import assert from 'node:assert/strict'
import { after, afterEach, before, test } from 'node:test'

import { DashboardBrowser, largeFleet, smallFleet } from '../harness/browser.ts'
import { pages, violations, withPage } from './dashboard-fixtures.ts'

let dashboard: DashboardBrowser
before(async () => {
  dashboard = await DashboardBrowser.start()
})
after(() => dashboard[Symbol.asyncDispose]())
afterEach(() => {
  assert.deepEqual(dashboard.complaints.splice(0), [])
})

for (const [hash, mark] of pages) {
  test(`${hash} shows its data, and no part of it is wider than a screen of 360 px`, async () => {
    dashboard.serve(smallFleet)
    await withPage(dashboard, hash, { width: 360, height: 780 }, async (page) => {
      await page.waitForSelector(mark)
      const width = await page.evaluate<number>('document.documentElement.scrollWidth')
      assert.ok(width <= 360, `${width} px`)
    })
  })

  for (const scheme of ['light', 'dark'] as const)
    test(`${hash} has nothing that a screen reader, a keyboard or weak eyes cannot use, ${scheme}`, async () => {
      dashboard.serve(smallFleet)
      await withPage(dashboard, hash, { scheme }, async (page) => {
        await page.waitForSelector(mark)
        assert.deepEqual(await violations(page), [])
      })
    })

  test(`${hash} shows a fleet of 300 services`, async () => {
    dashboard.serve(largeFleet)
    await withPage(dashboard, hash, {}, async (page) => {
      await page.waitForSelector(mark)
    })
  })
}

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
  await withPage(dashboard, '#/services', {}, async (page) => {
    await page.waitForSelector('tbody tr')
    assert.ok((await page.locator('tbody').innerText()).includes(hostile))
    assert.equal(await page.locator('tbody img').count(), 0)
    assert.equal(await page.title(), 'hostmesh')
  })
})

test('a table sorts by the column that is pressed, and the address keeps the order', async () => {
  dashboard.serve(smallFleet)
  await withPage(dashboard, '#/services', {}, async (page) => {
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
  await withPage(dashboard, '#/services/checkout', {}, async (page) => {
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
  await withPage(dashboard, '#/hosts', { scheme: 'dark' }, async (page) => {
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
