/**
 * What test machines run beside hostmesh, app.py as units of systemd, and the package that brings hostmesh to them.
 */
import { copyFile, readFile } from 'node:fs/promises'
import { basename, join, resolve } from 'node:path'

import { mustRun } from '../harness/owned-process.ts'
import type { Machine } from './machine.ts'

/** Making the package compiles and compresses, and another file may be at it. Milliseconds, before patience. */
const PACKAGE_LIMIT_MS = 240_000

/** The files of services, by path: each a unit of that name that starts app.py with these arguments. */
export async function serviceFiles(
  services: Readonly<Record<string, string>>,
): Promise<Record<string, string>> {
  return {
    '/usr/local/lib/app.py': await readFile(join(import.meta.dirname, 'app.py'), 'utf8'),
    ...Object.fromEntries(
      Object.entries(services).map(([name, args]) => [
        `/etc/systemd/system/${name}.service`,
        unit(args),
      ]),
    ),
  }
}

/** What a `front` on this port of a machine tells who connects to it: the answer it got, or the error it met. */
export async function askFront(machine: Machine, port: number): Promise<string> {
  const ask = `import socket; print(socket.create_connection(("127.0.0.1", ${port}), 5).makefile().readline(), end="")`
  return await machine.must('python3', '-c', ask)
}

/** Makes the package of this checkout and gives the path of a copy that nobody makes anew meanwhile. */
export async function makePackage(folder: string): Promise<string> {
  const pack = resolve(import.meta.dirname, '../../scripts/package.ts')
  // One at a time: whoever waits finds it made.
  const lock = ['flock', resolve(import.meta.dirname, '../../.cache/fleet/package.lock')]
  const make = [...lock, process.execPath, pack, '--if-older']
  const made = resolve((await mustRun(make, { limitMs: PACKAGE_LIMIT_MS })).trim())
  const copy = join(folder, basename(made))
  for (const suffix of ['', '.sha256']) await copyFile(made + suffix, copy + suffix)
  return copy
}

function unit(args: string): string {
  return `[Service]
ExecStart=/usr/bin/python3 /usr/local/lib/app.py ${args}
User=nobody
[Install]
WantedBy=multi-user.target
`
}
