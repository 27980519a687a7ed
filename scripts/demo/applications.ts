/**
 * The applications of the demo as they are anywhere: nginx, Redis and PostgreSQL, each as its own user, each
 * unaware of the mesh.
 */
import { chown, mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'

import { eventually } from '../../test/harness/eventually.ts'
import type { Mesh } from '../../test/harness/mesh.ts'
import { mustRun, type OwnedProcess, runCommand } from '../../test/harness/owned-process.ts'
import type { Service } from '../../test/harness/service.ts'
import { postgresFolder } from './preflight.ts'

/** Name of the database role and database of the demo. */
export const DATABASE_USER = 'shop'

/** Starts nginx, answering every path with the host's name. */
export async function startNginx(mesh: Mesh, service: Service): Promise<void> {
  const folder = await folderOf(mesh, service)
  const { listens } = service.options
  const config = `
daemon off; master_process off; pid ${folder}/pid; error_log stderr error;
events { worker_connections 512; }
http {
  access_log off;
  client_body_temp_path ${folder}; proxy_temp_path ${folder}; fastcgi_temp_path ${folder};
  uwsgi_temp_path ${folder}; scgi_temp_path ${folder};
  keepalive_requests 100000;
  server {
    listen ${listens}; listen [::]:${listens};
    location / { default_type text/plain; return 200 "nginx on ${service.host.name}, asked for $request_uri\\n"; }
  }
}`
  await writeFile(join(folder, 'nginx.conf'), config)
  const argv = ['nginx', '-e', 'stderr', '-p', folder, '-c', join(folder, 'nginx.conf')]
  await listening(service, await service.run(argv))
}

/** Starts Redis, in memory only. */
export async function startRedis(mesh: Mesh, service: Service): Promise<void> {
  const folder = await folderOf(mesh, service)
  const program = await service.run([
    'redis-server',
    '--port',
    String(service.options.listens),
    '--bind',
    '*',
    '-::*',
    '--protected-mode',
    'no',
    '--save',
    '',
    '--appendonly',
    'no',
    '--dir',
    folder,
  ])
  await listening(service, program)
}

/** Makes a PostgreSQL cluster in a folder of its own and starts it. */
export async function startPostgres(mesh: Mesh, service: Service): Promise<void> {
  const folder = await folderOf(mesh, service)
  const data = join(folder, 'data')
  const bin = postgresFolder() ?? ''
  const made = await service.exec([
    join(bin, 'initdb'),
    '--pgdata',
    data,
    '--username',
    DATABASE_USER,
    '--auth',
    'trust',
    '--no-sync',
    '--no-locale',
    '--encoding',
    'UTF8',
  ])
  if (made.code !== 0) throw new Error(`initdb failed: ${made.stderr}`)
  await service.exec([
    'sh',
    '-c',
    `echo 'host all all 10.88.0.0/24 trust' >>${join(data, 'pg_hba.conf')}`,
  ])
  const program = await service.run([
    join(bin, 'postgres'),
    '-D',
    data,
    '-p',
    String(service.options.listens),
    '-c',
    'listen_addresses=*',
    '-c',
    `unix_socket_directories=${folder}`,
    '-c',
    'fsync=off',
    '-c',
    'shared_buffers=16MB',
    '-c',
    'max_connections=50',
  ])
  await listening(service, program)
}

/** The numeric id of the user that Debian's PostgreSQL runs as: initdb wants one with a name. */
export async function postgresUser(): Promise<number> {
  const found = await runCommand(['id', '-u', 'postgres'])
  const uid = found.code === 0 ? found.stdout : await mustRun(['id', '-u', 'nobody'])
  return Number(uid)
}

async function folderOf(mesh: Mesh, service: Service): Promise<string> {
  const folder = join(mesh.folder, `app-${service.host.name}-${service.id}`)
  await mkdir(folder, { mode: 0o700 })
  if (mesh.options.users !== 'one') await chown(folder, service.uid, service.uid)
  return folder
}

async function listening(service: Service, program: OwnedProcess): Promise<void> {
  const { listens } = service.options
  await eventually(
    async () => {
      const found = await service.host.namespace.run('ss', '-Htln', `sport = :${listens}`)
      if (found.trim() === '')
        throw new Error(
          `${service.id} does not listen on port ${listens}; it said: ${program.output}`,
        )
    },
    { withinMs: 20_000, everyMs: 50 },
  )
}
