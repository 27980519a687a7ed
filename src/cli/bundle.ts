/**
 * `hostmesh bundle`: an archive of what support needs of this host, without secrets.
 */
import { gzipSync } from 'node:zlib'
import { Command, Option } from 'commander'
import { collectSupportFacts, type SupportOptions } from '../daemon/support-facts.ts'
import { writeNamedFile } from '../lib/atomic-file.ts'
import { describeError, errorCode, MeshError } from '../lib/errors.ts'
import { parseJson } from '../lib/json-value.ts'
import { redact, redactValue } from '../lib/redact.ts'
import { type TarFile, tarOf } from '../lib/tar.ts'
import { fetchDocument, fetchText } from './admin-client.ts'

const DOCUMENTS = [
  'status',
  'services',
  'routes',
  'intentions',
  'peers',
  'connections',
  'refused',
  'certs',
] as const

/** Of one text, in bytes: the rest is left out, with a note. */
const MAX_TEXT = 16 * 1_048_576

/** A longer line is cut: the patterns of secrets are for lines. */
const MAX_LINE = 65_536

interface Options {
  readonly addr: string
  readonly output?: string
  readonly config: string
  readonly unit: string
}

/** The `bundle` command. */
export function bundleCommand(): Command {
  return new Command('bundle')
    .description('Write an archive for support: state, configuration and log, without secrets')
    .option('-o, --output <file>', 'the archive, readable by its owner alone')
    .addOption(
      new Option('--config <file>', 'configuration of the daemon').default(
        '/etc/hostmesh/hostmesh.yaml',
      ),
    )
    .addOption(new Option('--unit <name>', 'unit whose log is read').default('hostmesh'))
    .action(async (_options: unknown, command: Command) => {
      const options = command.optsWithGlobals<Options>()
      const nowMs = Date.now()
      const stamp = new Date(nowMs).toISOString().slice(0, 19).replaceAll(/[:-]/g, '')
      const path = options.output ?? `hostmesh-bundle-${stamp}.tar.gz`
      const { archive, missing } = await makeBundle(options, nowMs)
      try {
        writeNamedFile(path, archive, 0o600)
      } catch (error) {
        throw new MeshError('HM_BUNDLE_WRITE_FAILED', `Cannot write ${path}: ${errorCode(error)}`, {
          cause: error,
          hint: 'Give -o with a file in a folder that exists and that you may write',
        })
      }
      console.log(path)
      for (const text of missing) console.error(text)
      console.error('Look at it before you pass it on: tar -xOzf FILE | less')
    })
}

/** The archive, and what could not be had: one sentence each. */
export async function makeBundle(
  { addr, config, unit }: Pick<Options, 'addr' | 'config' | 'unit'>,
  nowMs: number,
  run?: SupportOptions['run'],
): Promise<{ readonly archive: Buffer; readonly missing: readonly string[] }> {
  const [{ files, secrets }, documents] = await Promise.all([
    collectSupportFacts({ configPath: config, unit, ...(run !== undefined && { run }) }),
    askAll(addr),
  ])
  const texts = [...documents.texts, ...files]
  const folder = 'hostmesh-bundle/'
  const tarFiles = texts.map(
    ([name, text]): TarFile => ({
      name: `${folder}${name}`,
      content: Buffer.from(withoutSecrets(name, text, secrets)),
    }),
  )
  return { archive: gzipSync(tarOf(tarFiles, nowMs)), missing: documents.missing }
}

async function askAll(
  address: string,
): Promise<{ readonly texts: [string, string][]; readonly missing: string[] }> {
  const texts: [string, string][] = []
  const missing: string[] = []
  const add = async (name: string, ask: () => Promise<string>): Promise<void> => {
    try {
      texts.push([name, await ask()])
    } catch (error) {
      missing.push(`Not in the archive: ${name} (${describeError(error)})`)
    }
  }
  for (const name of DOCUMENTS)
    await add(`${name}.json`, async () => {
      const document = await fetchDocument(address, `/v1/${name}`, isObject)
      return JSON.stringify(document, null, 2)
    })
  await add('metrics.txt', () => fetchText(address, '/metrics'))
  return {
    texts: missing.length === 0 ? texts : [...texts, ['missing.txt', missing.join('\n')]],
    missing,
  }
}

/** Documents keep their form: each of their texts is redacted by itself. */
function withoutSecrets(name: string, text: string, secrets: readonly string[]): string {
  const document = name.endsWith('.json') ? parseJson(Buffer.from(text)) : undefined
  if (document === undefined) return redact(bounded(text), secrets)
  return JSON.stringify(redactValue(document, secrets), null, 2)
}

function bounded(text: string): string {
  const kept = text.length > MAX_TEXT ? `${text.slice(0, MAX_TEXT)}\n(cut)` : text
  return kept
    .split('\n')
    .map((line) => (line.length > MAX_LINE ? `${line.slice(0, MAX_LINE)} (cut)` : line))
    .join('\n')
}

function isObject(value: unknown): value is object {
  return typeof value === 'object' && value !== null
}
