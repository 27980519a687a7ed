/**
 * What the rollouts of this folder bring into a mesh: web on host-a, which asks db on host-b; and how it is found out
 * that this works.
 */
import assert from 'node:assert/strict'
import { join } from 'node:path'
import type { ConfigInput } from '../../src/config/schema.ts'
import type { StatusDocument } from '../../src/model/admin.ts'
import { hostmesh } from '../harness/daemon.ts'
import { eventually } from '../harness/eventually.ts'
import { mustRun } from '../harness/owned-process.ts'
import { AT_ONCE, type Controller } from './controller.ts'
import type { Machine } from './machine.ts'
import { askFront, makePackage, serviceFiles } from './services.ts'

/** Where db listens. */
export const DB_PORT = 5432

const WEB_PORT = 8080
/** Where web finds it. */
export const DB_VIRTUAL_IP = '240.88.0.2'

/** A service as a host's configuration has it. */
export type ServiceConfig = NonNullable<ConfigInput['services']>[number]

/** How the configuration of host-a has web. */
export const web: ServiceConfig = {
  name: 'web',
  identity: { cgroup: 'system.slice/web.service' },
  upstreams: [{ destination: 'db' }],
}

/** How the configuration of host-b has db. */
export const db: ServiceConfig = {
  name: 'db',
  identity: { cgroup: 'system.slice/db.service' },
  port: DB_PORT,
}

/** The units of both, for the disk of any machine. */
export async function webAndDbFiles(): Promise<Record<string, string>> {
  return serviceFiles({
    web: `front ${WEB_PORT} ${DB_VIRTUAL_IP} ${DB_PORT}`,
    db: `echo ${DB_PORT}`,
  })
}

/** Starts web on one machine and db on another, now and at every boot. */
export async function enableWebAndDb(webHost: Machine, dbHost: Machine): Promise<void> {
  await webHost.must('systemctl', 'enable', '--now', '--quiet', 'web.service')
  await dbHost.must('systemctl', 'enable', '--now', '--quiet', 'db.service')
}

/** The catalog file: where db is, and whether web may reach it. */
export function catalogOf(dbHost: Machine, action: 'allow' | 'deny' = 'allow'): object {
  return {
    services: [
      {
        Name: 'db',
        VirtualAddresses: [DB_VIRTUAL_IP],
        Instances: [{ Node: dbHost.name, Address: dbHost.ip, ServicePort: DB_PORT }],
      },
    ],
    intentions: [{ SourceName: 'web', DestinationName: 'db', Action: action }],
  }
}

/** A certificate authority in the controller's folder and a folder for each host, as an operator makes them. */
export async function issueCertificates(
  controller: Controller,
  servicesByHost: ReadonlyMap<string, readonly string[]>,
): Promise<void> {
  const ca = ['--directory', join(controller.folder, 'ca')]
  await mustRun([hostmesh, 'ca', 'init', ...ca, '--trust-domain', 'mesh.example.com'])
  for (const [host, services] of servicesByHost)
    for (const service of services) {
      const out = ['--out', join(controller.folder, 'certificates', host)]
      await mustRun([hostmesh, 'ca', 'issue', ...ca, '--service', service, ...out])
    }
}

/** Brings hostmesh to machines that have none, each with its services, and returns when the playbook is through. */
export async function rollOut(
  controller: Controller,
  servicesOf: ReadonlyMap<Machine, readonly ServiceConfig[]>,
  options: { readonly catalog: object; readonly capture?: ConfigInput['capture'] },
): Promise<void> {
  const hosts = [...servicesOf]
  await issueCertificates(
    controller,
    new Map(hosts.map(([{ name }, services]) => [name, services.map((service) => service.name)])),
  )
  const config = (host: Machine, services: readonly ServiceConfig[]): ConfigInput => ({
    node: { name: host.name },
    catalog: { kind: 'file', path: 'catalog.yaml' },
    certificates: { kind: 'files', directory: 'certs' },
    services: [...services],
    capture: options.capture ?? { mode: 'on' },
  })
  await controller.manage(
    new Map(
      hosts.map(([host, services]) => [host, { hostmesh_agent_config: config(host, services) }]),
    ),
    {
      hostmesh_agent_package: await makePackage(controller.folder),
      hostmesh_agent_certificates: `${controller.folder}/certificates/{{ inventory_hostname }}`,
      hostmesh_agent_wait: '20s',
      hostmesh_agent_catalog: options.catalog,
    },
  )
  await controller.mustPlay('site', ...AT_ONCE)
}

/** What web heard from db, or the error that it met. */
export async function askWeb(webHost: Machine): Promise<string> {
  return askFront(webHost, WEB_PORT)
}

/** Waits until db answers web. */
export async function webReachesDb(webHost: Machine): Promise<void> {
  await eventually(async () => assert.equal(await askWeb(webHost), 'host-b heard ping\n'))
}

/** Waits until the daemon of a machine says that it is well, and returns all that it says. */
export async function statusOnceWell(machine: Machine): Promise<StatusDocument> {
  const ask = ['hostmesh', 'status', '--wait', '20s', '-o', 'json']
  const { code, stdout, stderr } = await machine.run(...ask)
  assert.equal(code, 0, stderr + stdout)
  return JSON.parse(stdout) as StatusDocument
}
