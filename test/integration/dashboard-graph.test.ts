/**
 * The graph page of the dashboard in a real browser.
 */
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { after, afterEach, before, beforeEach, test } from 'node:test'

import type { Page } from 'playwright-core'

import type { GraphDocument } from '../../src/model/fleet.ts'
import { DashboardBrowser, smallFleet } from '../harness/browser.ts'
import type { ImaginedFleet } from '../harness/fleet-documents.ts'

let dashboard: DashboardBrowser
let fleet: ImaginedFleet
before(async () => {
  dashboard = await DashboardBrowser.start()
})
after(() => dashboard[Symbol.asyncDispose]())
beforeEach(() => {
  fleet = dashboard.serve(smallFleet)
})
afterEach(() => {
  assert.deepEqual(dashboard.complaints.splice(0), [])
})

/** Opens a view of the graph, and closes it when the test ends. */
async function withGraph(hash: string, act: (page: Page) => Promise<void>): Promise<void> {
  const page = await dashboard.open(hash)
  try {
    await page.waitForSelector('.nodes .node')
    await act(page)
  } finally {
    await page.close()
  }
}

/** Where each node of the picture is, by name. */
function placesIn(page: Page): Promise<Record<string, string | null>> {
  return page
    .locator('.nodes .node')
    .evaluateAll((nodes) =>
      Object.fromEntries(
        nodes.map((node) => [node.getAttribute('data-id') ?? '', node.getAttribute('transform')]),
      ),
    )
}

/** The fleet with other live events. */
function serveLive(change: (graph: GraphDocument) => GraphDocument): void {
  dashboard.server.served.live = () => {
    const event = fleet.live()
    return { ...event, graph: change(event.graph) }
  }
}

function paramsOf(page: Page): URLSearchParams {
  return new URLSearchParams(page.url().split('?')[1] ?? '')
}

test('the dashboard is below 350 KB gzipped in all', () => {
  assert.ok(dashboard.size.totalBytes < 350_000, `${dashboard.size.totalBytes} bytes`)
})

test('each service is a node of the picture, and each pair a row of the table', () =>
  withGraph('#/graph', async (page) => {
    assert.equal(await page.locator('.nodes .node').count(), fleet.services.length)
    await page.waitForSelector('.pairs tbody tr')
    assert.equal(await page.locator('.pairs tbody tr').count(), fleet.pairs.length)
  }))

test('a change shows within 2 s, and no node moves for it', () =>
  withGraph('#/graph', async (page) => {
    await page.waitForSelector('.badge:text("live")')
    const earlier = await placesIn(page)
    serveLive((graph) => ({
      ...graph,
      edges: graph.edges.map((edge) => ({
        ...edge,
        traffic: { ...edge.traffic, openedPerSecond: 123_456 },
      })),
    }))
    const changedAt = performance.now()
    await page.waitForSelector('.edge-label:text("123k/s")')
    assert.ok(performance.now() - changedAt < 2_000)
    assert.deepEqual(await placesIn(page), earlier)
  }))

test('a service that comes gets a place of its own, and the others keep theirs', () =>
  withGraph('#/graph', async (page) => {
    const earlier = await placesIn(page)
    serveLive((graph) => {
      const [node, edge] = [graph.nodes[0], graph.edges[0]]
      assert.ok(node !== undefined && edge !== undefined)
      return {
        ...graph,
        nodes: [...graph.nodes, { ...node, id: 'newcomer' }],
        edges: [...graph.edges, { ...edge, destination: 'newcomer' }],
      }
    })
    await page.waitForSelector('.nodes .node[data-id="newcomer"]')
    const { newcomer, ...others } = await placesIn(page)
    assert.deepEqual(others, earlier)
    assert.ok(!Object.values(earlier).includes(newcomer ?? null))
  }))

test('a pair that was quiet in the last seconds stays in the picture as idle', () =>
  withGraph('#/graph', async (page) => {
    serveLive((graph) => ({ ...graph, edges: [] }))
    await page.waitForSelector('.edges .line:not(.idle):not(.deny)', { state: 'detached' })
    await page.waitForSelector('.pairs tbody tr')
    assert.equal(await page.locator('.pairs tbody tr').count(), fleet.pairs.length)
  }))

test('/ finds services by a part of their name, and Enter goes from one to the next', () =>
  withGraph('#/graph', async (page) => {
    await page.keyboard.press('/')
    await page.keyboard.type('edge')
    await page.waitForSelector('.node.found')
    const found = fleet.services.filter((name) => name.includes('edge')).toSorted()
    const marked = await page
      .locator('.nodes .node.found')
      .evaluateAll((nodes) => nodes.map((node) => node.getAttribute('data-id') ?? ''))
    assert.deepEqual(new Set(marked), new Set(found))
    await page.keyboard.press('Enter')
    assert.equal(paramsOf(page).get('sel'), found[0])
    await page.keyboard.press('Enter')
    assert.equal(paramsOf(page).get('sel'), found[1])
  }))

test('hidden services are left out with their pairs, and the page says how many', () =>
  withGraph('#/graph?hide=search*', async (page) => {
    const left = fleet.services.filter((name) => !name.startsWith('search'))
    assert.equal(await page.locator('.nodes .node').count(), left.length)
    const pairs = fleet.pairs.filter((pair) => pair.every((name) => left.includes(name)))
    const hidden = fleet.services.length - left.length + fleet.pairs.length - pairs.length
    await page.waitForSelector(`.counts:has-text("${hidden} hidden")`)
  }))

for (const group of ['host', 'zone', 'datacenter'] as const)
  test(`grouped by ${group} the picture shows what the aggregator answers for it`, () =>
    withGraph(`#/graph?group=${group}`, async (page) => {
      const wanted = fleet.graph(group, null).nodes.map(({ id }) => id)
      assert.deepEqual(Object.keys(await placesIn(page)).toSorted(), wanted.toSorted())
    }))

test('the address holds what is selected, coloured and filtered, and going back takes it back', () =>
  withGraph('#/graph?colour=policy&only=denied&sel=partner', async (page) => {
    await page.waitForSelector('.panel h2:text("partner")')
    await page.waitForSelector('.legend:has-text("allowed by default")')
    assert.equal(await page.locator('.edges .line:not(.deny)').count(), 0)
    await page.locator('.panel .close').click()
    assert.equal(paramsOf(page).get('sel'), null)
    await page.goBack()
    await page.waitForSelector('.panel h2:text("partner")')
  }))

test('the details of a pair say its figures, its policy and the rule that decides', () =>
  withGraph('#/graph', async (page) => {
    const edge = fleet.graph('service', null).edges[0]
    assert.ok(edge?.policy)
    await page.getByLabel(`Show ${edge.source} to ${edge.destination}`, { exact: true }).click()
    const text = await page.locator('.panel').innerText()
    assert.match(text, new RegExp(`${edge.source}\\s*→\\s*${edge.destination}`))
    assert.ok(text.includes(edge.policy.reason), text)
    assert.match(text, /mutual TLS|inside of one host/)
    assert.match(text, /p99/)
  }))

test('a press on a node selects it, and a press on an edge selects that', () =>
  withGraph('#/graph', async (page) => {
    const places = await page.locator('.nodes .node[data-id="checkout"] rect').boundingBox()
    assert.ok(places !== null)
    await page.mouse.click(places.x + 60, places.y + 10)
    assert.equal(paramsOf(page).get('sel'), 'checkout')
    await page.keyboard.press('Escape')
    await page.waitForSelector('.panel', { state: 'detached' })
    // The end of an edge is right before its destination.
    const target = fleet.pairs.find(([, destination]) => destination === 'checkout')
    assert.ok(target !== undefined)
    await page.mouse.click(places.x - 4, places.y + places.height / 2)
    await page.waitForURL(/sel=[^&]*%3E/)
    assert.match(paramsOf(page).get('sel') ?? '', />checkout$/)
  }))

test('nodes are reached and selected by the keyboard alone', () =>
  withGraph('#/graph', async (page) => {
    await page.locator('.nodes .node[tabindex="0"]').focus()
    const first = await focused(page)
    await page.keyboard.press('ArrowRight')
    const second = await focused(page)
    assert.notEqual(second, first)
    assert.ok(fleet.services.includes(second ?? ''))
    await page.keyboard.press('Enter')
    await page.waitForSelector(`.panel h2:text-is("${second}")`)
    assert.equal(await page.locator('.nodes .node[tabindex="0"]').count(), 1)
  }))

function focused(page: Page): Promise<string | null> {
  return page.locator(':focus').getAttribute('data-id')
}

test('the time line leads to a moment of the past, and Live leads back', () =>
  withGraph('#/graph', async (page) => {
    const slider = await page.locator('.slider input').boundingBox()
    assert.ok(slider !== null)
    const asked = page.waitForRequest((request) => /\/graph\?.*\bat=/.test(request.url()))
    await page.mouse.click(slider.x + slider.width * 0.75, slider.y + slider.height / 2)
    await page.waitForURL(/at=/)
    const at = paramsOf(page).get('at')
    const agoMs = Date.now() - Date.parse(at ?? '')
    assert.ok(Math.abs(agoMs - 900_000) < 60_000, `${at} is ${agoMs} ms ago`)
    assert.equal(new URL((await asked).url()).searchParams.get('at'), at)
    await page.getByRole('button', { name: 'Live' }).click()
    assert.equal(paramsOf(page).get('at'), null)
  }))

test('the time line is moved by the keyboard, and says where it is', () =>
  withGraph('#/graph', async (page) => {
    await page.locator('.slider input').focus()
    await page.keyboard.press('Home')
    await page.waitForURL(/at=/)
    const agoMs = Date.now() - Date.parse(paramsOf(page).get('at') ?? '')
    assert.ok(Math.abs(agoMs - 3_600_000) < 60_000, `${agoMs} ms ago`)
    const text = await page.locator('.slider input').getAttribute('aria-valuetext')
    assert.match(text ?? '', /^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d, (59m|1h) ago$/)
  }))

test('with a panel, or another width, no node moves on the screen', () =>
  withGraph('#/graph', async (page) => {
    await page.waitForSelector('.pairs tbody tr')
    const place = page.locator('.nodes .node[data-id="edge"]')
    const earlier = await place.boundingBox()
    await page
      .getByRole('button', { name: /^Show/ })
      .first()
      .evaluate((button) => button.click())
    await page.waitForSelector('.panel')
    assert.deepEqual(await place.boundingBox(), earlier)
  }))

test('a picture that was moved is where it was when its address is opened again', () =>
  withGraph('#/graph', async (page) => {
    const frame = await page.locator('.frame').boundingBox()
    assert.ok(frame !== null)
    await page.mouse.move(frame.x + 10, frame.y + 10)
    await page.mouse.down()
    await page.mouse.move(frame.x + 110, frame.y + 60, { steps: 5 })
    await page.mouse.up()
    await page.waitForURL(/cam=/)
    const box = await page.locator('.nodes .node[data-id="checkout"]').boundingBox()
    await withGraph(`#${page.url().split('#')[1]}`, async (again) => {
      const same = await again.locator('.nodes .node[data-id="checkout"]').boundingBox()
      assert.ok(box !== null && same !== null)
      assert.ok(Math.abs(box.x - same.x) < 3 && Math.abs(box.y - same.y) < 3)
    })
  }))

test('the SVG file has each service and each pair, and names of the network as text', () => {
  const hostile = '<script>alert(1)</script>&"\u0007'
  serveLive((graph) => ({
    ...graph,
    nodes: [
      ...graph.nodes,
      { id: hostile, health: 'unknown', instances: 0, hosts: [], reasons: [] },
    ],
  }))
  return withGraph('#/graph', async (page) => {
    await page.waitForSelector(`.nodes .node:nth-child(${fleet.services.length + 1})`)
    const [download] = await Promise.all([
      page.waitForEvent('download'),
      page.getByRole('button', { name: 'SVG' }).click(),
    ])
    const text = await readFile(await download.path(), 'utf8')
    const titles = await page.evaluate<string[] | null>(`{
      const file = new DOMParser().parseFromString(${JSON.stringify(text)}, 'image/svg+xml')
      file.querySelector('parsererror, script') === null
        ? Array.from(file.querySelectorAll('g > title'), (title) => title.textContent)
        : null
    }`)
    assert.ok(titles !== null, 'is no XML, or has a script')
    assert.equal(titles.length, fleet.services.length + 1 + fleet.pairs.length)
    assert.ok(titles.includes('<script>alert(1)</script>&"\ufffd: unknown'))
  })
})

test('when events stay away the page says since when, and takes it back when they come', () =>
  withGraph('#/graph', async (page) => {
    await page.waitForSelector('.badge:text("live")')
    dashboard.server.served.isUnreachable = true
    dashboard.server.cutStreams()
    await page.waitForSelector('.lost-bar:has-text("No data since")')
    assert.match(await page.locator('.lost-bar').innerText(), /No data since \d\d:\d\d:\d\d/)
    dashboard.server.served.isUnreachable = false
    await page.waitForSelector('.lost-bar', { state: 'detached' })
    await page.waitForSelector('.badge:text("live")')
  }))

test('a stream that is open and silent is called lost as well', () =>
  withGraph('#/graph', async (page) => {
    await page.waitForSelector('.badge:text("live")')
    dashboard.server.served.live = () => undefined
    await page.waitForSelector('.lost-bar:has-text("No data since")')
  }))
