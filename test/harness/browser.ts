/**
 * The dashboard in a real browser: Debian's Chromium without a window, against {@link DashboardServer}.
 */
import { existsSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import { type Browser, chromium, type Page } from 'playwright-core'

import { buildDashboard, type DashboardSize } from '../../scripts/build-dashboard.ts'
import { DashboardServer } from './dashboard-server.ts'
import { type FleetOptions, ImaginedFleet } from './fleet-documents.ts'

const executablePath = '/usr/bin/chromium'

/** A fleet of which everything fits on a page. */
export const smallFleet = { services: 26, edges: 44, hosts: 9 } as const
/** The largest that the page must be quick with. */
export const largeFleet = { services: 300, edges: 2_000, hosts: 60 } as const
/** A fleet of which nothing is known. */
export const noFleet = { services: 0, edges: 0, hosts: 0 } as const

/** How a page is opened. */
export interface PageOptions {
  readonly width?: number
  readonly height?: number
  readonly scheme?: 'light' | 'dark'
  /** Runs in the page before anything of it. */
  readonly init?: string
}

/** The built dashboard, its server, and a browser for it. */
export class DashboardBrowser implements AsyncDisposable {
  readonly #folder: string
  readonly #browser: Browser
  readonly server: DashboardServer
  readonly size: DashboardSize
  /** What pages complained about: exceptions, errors on the console, violations of the policy of contents. */
  readonly complaints: string[] = []

  private constructor(
    folder: string,
    browser: Browser,
    server: DashboardServer,
    size: DashboardSize,
  ) {
    this.#folder = folder
    this.#browser = browser
    this.server = server
    this.size = size
  }

  static async start(): Promise<DashboardBrowser> {
    if (!existsSync(executablePath))
      throw new Error(`${executablePath} is missing; run sh scripts/setup.sh test`)
    const folder = await mkdtemp(join(tmpdir(), 'hostmesh-dashboard-'))
    const size = await buildDashboard(join(folder, 'dashboard'), false)
    const fleet = new ImaginedFleet({ ...noFleet, nowMs: 0 })
    const server = await DashboardServer.start(join(folder, 'dashboard'), {
      answers: fleet.answers(),
      live: () => undefined,
    })
    const browser = await chromium.launch({
      executablePath,
      // The tests run as root.
      args: ['--no-sandbox'],
    })
    return new DashboardBrowser(folder, browser, server, size)
  }

  /** Serves another fleet. Its figures move with each live event. */
  serve(options: Omit<FleetOptions, 'nowMs'>): ImaginedFleet {
    const fleet = new ImaginedFleet({ ...options, nowMs: Date.now() })
    const { served } = this.server
    delete served.failWith
    delete served.isUnreachable
    served.answers = fleet.answers()
    served.live = () => {
      fleet.advance(Date.now())
      return fleet.live()
    }
    return fleet
  }

  /** Opens a view, such as `#/hosts`. */
  async open(hash: string, options: PageOptions = {}): Promise<Page> {
    const page = await this.#browser.newPage({
      viewport: { width: options.width ?? 1_440, height: options.height ?? 900 },
      colorScheme: options.scheme ?? 'light',
    })
    if (options.init !== undefined) await page.addInitScript(options.init)
    page.on('pageerror', (error) => this.complaints.push(String(error)))
    page.on('console', (message) => {
      // Failed requests are part of some tests and are said by the browser, not by the page.
      const isRequest = message.text().startsWith('Failed to load resource')
      if (message.type() === 'error' && !isRequest) this.complaints.push(message.text())
    })
    if (hash !== 'about:blank') await page.goto(`${this.server.url}${hash}`)
    return page
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#browser.close()
    await this.server[Symbol.asyncDispose]()
    await rm(this.#folder, { recursive: true, force: true })
  }
}
