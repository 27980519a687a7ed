/**
 * A real `hostmesh ca serve` on a host of a test mesh, and the commands of its operator.
 */
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { RotationStep } from '../../src/authority/control.ts'
import type { CaStatus, RotationStatus } from '../../src/authority/status.ts'
import type { ConfigInput } from '../../src/config/schema.ts'
import { hostmesh } from './daemon.ts'
import { eventually } from './eventually.ts'
import { TRUST_DOMAIN } from './file-catalog.ts'
import type { Mesh } from './mesh.ts'
import { mustRun, OwnedProcess } from './owned-process.ts'

/** Where it listens. */
const PORT = 15_444

/** How it is started beside its directory and address. */
export interface CaOptions {
  /** The host it runs on; one without a daemon of ours. */
  readonly host: string
  readonly arguments?: readonly string[]
}

/** The configuration of a host that gets its certificates from the CA of the mesh in `folder()`. */
export function certificatesFromCa(folder: () => string): (host: string) => Partial<ConfigInput> {
  return (host) => ({
    certificates: {
      kind: 'builtin',
      tokenFile: join(folder(), `${host}.token`),
      directory: join(folder(), `kept-${host}`),
    },
  })
}

/** One CA of a mesh. */
export class CaProcess {
  readonly directory: string
  private readonly mesh: Mesh
  private readonly options: CaOptions
  private process: OwnedProcess | undefined

  private constructor(mesh: Mesh, options: CaOptions) {
    this.mesh = mesh
    this.options = options
    this.directory = join(mesh.folder, 'served-ca')
  }

  /** Makes a CA and serves it; ended with the mesh. */
  static async start(mesh: Mesh, options: CaOptions): Promise<CaProcess> {
    const ca = new CaProcess(mesh, options)
    await mustRun([
      hostmesh,
      'ca',
      'init',
      '--directory',
      ca.directory,
      '--trust-domain',
      TRUST_DOMAIN,
    ])
    await ca.serve()
    mesh.own({ [Symbol.asyncDispose]: () => ca.stop() })
    return ca
  }

  /** What it logged since it was last started. */
  get log(): string {
    return this.process?.output ?? ''
  }

  /** Starts it, again after {@link CaProcess.stop}. */
  async serve(): Promise<void> {
    const { namespace } = this.mesh.host(this.options.host)
    const listen = `${namespace.ip}:${PORT}`
    const options = ['--directory', this.directory, '--listen', listen]
    const command = [hostmesh, 'ca', 'serve', ...options, ...(this.options.arguments ?? [])]
    const process = await OwnedProcess.start(namespace.inside(command), {
      name: 'hostmesh ca serve',
    })
    this.process = process
    await eventually(() => {
      if (!process.output.includes('Serving the certificate authority'))
        throw new Error(`The CA does not serve: ${process.output}`)
    })
  }

  async stop(): Promise<void> {
    await this.process?.[Symbol.asyncDispose]()
  }

  /** Puts a new join token where a host looks for it. */
  async admit(host: string, services: readonly string[]): Promise<string> {
    const wanted = services.flatMap((service) => ['--service', service])
    const token = await this.command('token', '--host', host, ...wanted)
    await writeFile(join(this.mesh.folder, `${host}.token`), token, { mode: 0o600 })
    return token.trim()
  }

  /** Ends it with SIGKILL. */
  async kill(): Promise<void> {
    await this.process?.kill()
  }

  async status(): Promise<CaStatus> {
    return JSON.parse(await this.command('status', '-o', 'json')) as CaStatus
  }

  async rotate(step: RotationStep): Promise<RotationStatus> {
    const options = ['--directory', this.directory, '-o', 'json']
    const text = await mustRun([hostmesh, 'ca', 'rotate', step, ...options])
    return JSON.parse(text) as RotationStatus
  }

  /** Runs a subcommand of `hostmesh ca` on its directory and returns what it printed. */
  command(name: string, ...args: string[]): Promise<string> {
    return mustRun([hostmesh, 'ca', name, '--directory', this.directory, ...args])
  }
}
