/**
 * Name resolution of a test host: a real dnsmasq, and programs that see a resolv.conf of their own.
 */
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'

import { eventually } from './eventually.ts'
import type { Namespace } from './network.ts'
import { type CommandResult, mustRun, OwnedProcess, runCommand } from './owned-process.ts'

/** Starts dnsmasq with these options and no others; returns when it answers. The caller disposes it. */
export async function startDnsmasq(
  namespace: Namespace,
  address: string,
  options: readonly string[],
): Promise<OwnedProcess> {
  const process = await OwnedProcess.start(
    namespace.inside([
      'dnsmasq',
      '--keep-in-foreground',
      '--conf-file=/dev/null',
      '--pid-file=',
      '--user=root',
      '--no-resolv',
      '--no-hosts',
      '--bind-interfaces',
      `--listen-address=${address}`,
      ...options,
    ]),
    { name: 'dnsmasq' },
  )
  await eventually(() =>
    mustRun(namespace.inside(['dig', `@${address}`, '+tries=1', '+time=1', 'version.bind'])),
  )
  return process
}

/** Who runs a program, and what its resolv.conf says. */
export interface ResolvingProgram {
  readonly namespace: Namespace
  readonly uid: number
  /** A folder for the file. */
  readonly folder: string
  readonly nameservers: readonly string[]
}

/** Runs a program to its end with a resolv.conf of its own, as a container or a chroot has it. */
export async function runResolving(
  { namespace, uid, folder, nameservers }: ResolvingProgram,
  argv: readonly string[],
): Promise<CommandResult> {
  const path = join(folder, `resolv-${uid}.conf`)
  const lines = [...nameservers.map((ip) => `nameserver ${ip}`), 'options timeout:2 attempts:2']
  await writeFile(path, `${lines.join('\n')}\n`, { mode: 0o644 })
  const script = `mount --bind '${path}' /etc/resolv.conf && exec setpriv --reuid=${uid} --regid=${uid} --clear-groups -- "$@"`
  return runCommand(namespace.inside(['unshare', '--mount', 'sh', '-c', script, 'sh', ...argv]))
}
