/**
 * A catalog whose answers a test gives by hand, and what it answers with, for the tests of discovery.
 */
import assert from 'node:assert/strict'
import type {
  Catalog,
  CatalogPolicy,
  CatalogService,
  ListedService,
} from '../../src/controlplane/catalog/catalog.ts'
import type { Problem } from '../../src/model/problem.ts'
import type { LocalService } from '../../src/model/service.ts'

/** A catalog that answers when told to, and knows which watches are open. */
export class HandCatalog implements Catalog {
  readonly description = 'by hand'
  readonly services = new Map<string, (service: CatalogService) => void>()
  /** Callbacks of every watch ever opened, as a slow source would still call them after closing. */
  readonly everOpened = new Map<string, (service: CatalogService) => void>()
  policyDestinations: readonly string[] | undefined
  givePolicies: (policies: readonly CatalogPolicy[]) => void = () => assert.fail('no policy watch')
  giveList: ((services: readonly ListedService[]) => void) | undefined

  watchService(name: string, onChange: (service: CatalogService) => void): Disposable {
    assert.ok(!this.services.has(name), `${name} is watched twice`)
    this.services.set(name, onChange)
    this.everOpened.set(name, onChange)
    return { [Symbol.dispose]: () => this.services.delete(name) }
  }

  watchServiceList(onChange: (services: readonly ListedService[]) => void): Disposable {
    this.giveList = onChange
    return {
      [Symbol.dispose]: () => {
        this.giveList = undefined
      },
    }
  }

  watchPolicies(
    destinations: readonly string[],
    onChange: (policies: readonly CatalogPolicy[]) => void,
  ): Disposable {
    this.policyDestinations = destinations
    this.givePolicies = onChange
    return {
      [Symbol.dispose]: () => {
        this.policyDestinations = undefined
      },
    }
  }

  /** A list without addresses. */
  giveNames(names: readonly string[]): void {
    this.giveList?.(names.map((name) => ({ name, virtualIps: [] })))
  }

  give(answer: CatalogService): void {
    const onChange = this.services.get(answer.name)
    assert.ok(onChange !== undefined, `${answer.name} is not watched`)
    onChange(answer)
  }

  async register(): Promise<void> {}
  async deregister(): Promise<void> {}
  health(): { lastGoodAtMs: undefined; problems: readonly Problem[] } {
    return { lastGoodAtMs: undefined, problems: [] }
  }
  async [Symbol.asyncDispose](): Promise<void> {}
}

/** A service of this host, with the services that it calls. */
export function localService(
  name: string,
  upstreams: string[] = [],
  hasTarget = true,
): LocalService {
  return {
    name,
    id: name,
    target: hasTarget ? { ip: '127.0.0.1', port: 80 } : undefined,
    selector: undefined,
    capturePort: undefined,
    connectPort: undefined,
    upstreams: upstreams.map((destination) => ({ destination, bind: undefined })),
  }
}
