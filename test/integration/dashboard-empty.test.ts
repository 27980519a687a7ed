/**
 * Each page of the dashboard when it has nothing to show, or nothing new: it says why.
 */
import assert from 'node:assert/strict'
import { after, afterEach, before, test } from 'node:test'

import { DashboardBrowser, noFleet, smallFleet } from '../harness/browser.ts'
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
  test(`${hash} says why it is empty`, async () => {
    dashboard.serve(noFleet)
    await withPage(dashboard, hash, {}, async (page) => {
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
    await withPage(dashboard, hash, {}, async (page) => {
      const text = await page.locator('.empty').first().innerText()
      assert.match(text, /The aggregator started 4 s ago|told to fail with 404/)
    })
  })

  test(`${hash} says what failed and what to do, and shows its data when it is over`, async () => {
    dashboard.serve(smallFleet)
    dashboard.server.served.failWith = 500
    await withPage(dashboard, hash, {}, async (page) => {
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
    await withPage(dashboard, hash, {}, async (page) => {
      await page.waitForSelector(mark)
      dashboard.server.served.isUnreachable = true
      dashboard.server.cutStreams()
      await page.waitForSelector('.stale:has-text("shown as of")')
      assert.ok((await page.locator(mark).count()) > 0)
    })
  })
}

test('who has no right reads that, and who is not known may enter a token', async () => {
  dashboard.serve(smallFleet)
  dashboard.server.served.failWith = 403
  await withPage(dashboard, '#/services', {}, async (page) => {
    await page.waitForSelector('.failure:has-text("told to fail with 403")')
  })
  dashboard.server.served.failWith = 401
  await withPage(dashboard, '#/services', {}, async (page) => {
    await page.getByLabel('Token').fill('secret')
    delete dashboard.server.served.failWith
    await page.getByRole('button', { name: 'Enter' }).click()
    await page.waitForSelector('tbody tr')
    assert.equal(dashboard.server.lastAuthorization, 'Bearer secret')
  })
})

test('partial figures are said to be partial, with the reason', async () => {
  dashboard.serve(smallFleet)
  await withPage(dashboard, '#/services', {}, async (page) => {
    await page.waitForSelector('.notes:has-text("8/9 hosts reporting"):has-text("node-03")')
  })
})
