/**
 * What a support archive has beside the documents of the daemon: configuration, capture, kernel, tools, and the log.
 * Not redacted yet: the caller does that with all of it, and with the values of {@link SupportFacts.secrets}.
 */
import { readFileSync } from 'node:fs'
import { arch, cpus, platform, release, totalmem, uptime } from 'node:os'
import { describeConfig } from '../config/describe.ts'
import { checkConfig } from '../config/load.ts'
import type { Config } from '../config/schema.ts'
import { createCommandRunner, type RunCommand } from '../controlplane/capture/command.ts'
import { describeError } from '../lib/errors.ts'
import { hostmeshVersion } from '../lib/version.ts'
import { showCapture } from './capture-operations.ts'

/** Lines of the log. */
const LOG_LINES = 2_000

/** Tools whose versions matter for capture and services. */
const TOOLS: readonly (readonly [tool: string, ...words: string[]])[] = [
  ['nft', '--version'],
  ['iptables', '--version'],
  ['ipset', '--version'],
  ['ip', '-V'],
  ['systemctl', '--version'],
  ['consul', 'version'],
]

/** Files of the kernel that say what it can do, and what is short. */
const KERNEL_FILES = [
  '/proc/version',
  '/proc/loadavg',
  '/proc/meminfo',
  '/proc/sys/net/ipv4/ip_local_port_range',
  '/proc/sys/net/core/somaxconn',
  '/proc/sys/net/netfilter/nf_conntrack_count',
  '/proc/sys/net/netfilter/nf_conntrack_max',
  '/proc/sys/net/bridge/bridge-nf-call-iptables',
  '/etc/os-release',
]

/** Where the daemon's unit and configuration are. */
export interface SupportOptions {
  readonly configPath: string
  readonly unit: string
  readonly run?: RunCommand
}

/** Texts by the name of their file in the archive. */
export interface SupportFacts {
  readonly files: ReadonlyMap<string, string>
  /** Values that are secrets, to be removed wherever they are. */
  readonly secrets: readonly string[]
}

/** Collects everything that can be had; what cannot be had is a text that says why. */
export async function collectSupportFacts({
  configPath,
  unit,
  run = createCommandRunner(),
}: SupportOptions): Promise<SupportFacts> {
  const files = new Map<string, string>()
  const checked = checkConfig(configPath)
  const config = 'config' in checked ? checked.config : undefined
  files.set(
    'config.json',
    'config' in checked
      ? JSON.stringify(describeConfig(checked.config), null, 2)
      : checked.problems.join('\n'),
  )
  files.set('capture.json', await textOr(async () => captureText(config, run)))
  files.set('versions.json', JSON.stringify(versions(), null, 2))
  files.set('kernel.txt', KERNEL_FILES.map((path) => `== ${path}\n${readOr(path)}`).join('\n'))
  files.set('tools.txt', (await Promise.all(TOOLS.map((tool) => toolText(run, tool)))).join('\n'))
  const words = ['-u', unit, '-n', String(LOG_LINES), '-o', 'short-iso', '--no-pager', '-q']
  files.set('log.txt', await toolText(run, ['journalctl', ...words]))
  return {
    files,
    secrets: config === undefined ? secretsIn(readOr(configPath)) : secretsOf(config),
  }
}

async function captureText(config: Config | undefined, run: RunCommand): Promise<string> {
  return JSON.stringify(await showCapture(config, {}, run), null, 2)
}

function versions(): object {
  return {
    hostmesh: hostmeshVersion,
    node: process.versions,
    platform: platform(),
    kernel: release(),
    arch: arch(),
    cpus: cpus().length,
    memoryBytes: totalmem(),
    uptimeSeconds: Math.round(uptime()),
  }
}

async function toolText(
  run: RunCommand,
  [tool, ...words]: readonly [string, ...string[]],
): Promise<string> {
  return textOr(async () => {
    const { status, stdout, stderr } = await run(tool, words)
    return `== ${tool} (status ${status})\n${stdout}${stderr}`
  })
}

async function textOr(make: () => Promise<string>): Promise<string> {
  try {
    return await make()
  } catch (error) {
    return `not available: ${describeError(error)}`
  }
}

function readOr(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return 'not available\n'
  }
}

/** The secrets that the configuration has or names. Keys of certificates are never read. */
function secretsOf({ catalog, certificates, metrics }: Config): string[] {
  const files = [
    ...(catalog.kind === 'consul' ? [catalog.tokenFile] : []),
    ...(certificates.kind === 'builtin' ? [certificates.tokenFile] : []),
  ]
  return [
    ...(catalog.kind === 'consul' ? [catalog.token ?? ''] : []),
    ...Object.values(metrics.otlp?.headers ?? {}),
    ...files.flatMap((path) => (path === undefined ? [] : [readOr(path).trim()])),
  ].filter((value) => value !== '' && value !== 'not available')
}

/** The tokens that the text of an invalid configuration has or names. */
function secretsIn(text: string): string[] {
  return [...text.matchAll(/\btoken(File)?:\s*(?:"([^"]*)"|'([^']*)'|([^\s,}]+))/g)].map(
    ([, isFile, ...values]) => {
      const value = values.find((each) => each !== undefined) ?? ''
      return isFile === undefined ? value : readOr(value).trim()
    },
  )
}
