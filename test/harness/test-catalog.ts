/**
 * What the harness needs of a catalog and a certificate authority, whichever kind a mesh is started with.
 */
import type { ConfigInput } from '../../src/config/schema.ts'

/** One instance of a service, as the catalog must know it. */
export interface Instance {
  readonly service: string
  readonly id: string
  readonly host: string
  /** Address of the host. */
  readonly ip: string
  readonly port: number
}

/** Where services, intentions and certificates come from in a test. */
export interface TestCatalog extends AsyncDisposable {
  /** The `catalog` and `certificates` sections of a host's configuration, and its datacenter unless it is dc1. */
  sections(host: string): Pick<ConfigInput, 'catalog' | 'certificates' | 'datacenter'>
  /** Makes certificates for these services available on a host. */
  prepare(host: string, services: readonly string[]): Promise<void>
  /** The application exists from now on. */
  join(instance: Instance): Promise<void>
  /** The application is gone from now on. */
  leave(instance: Instance): Promise<void>
  /** Allows or denies one pair; names may be `*`. What nothing is said about is denied. */
  setIntention(source: string, destination: string, action: 'allow' | 'deny'): Promise<void>
}
