/**
 * The test suite, layer by layer: `npm test [-- LAYER|FILE...]`.
 *
 * Layers run one after the other, from the quickest to the slowest; inside a layer each file is a
 * process of its own with a time limit (run-test-file.ts). A machine that cannot run a layer fails
 * it, and a skipped test fails the run: a green run means that everything was really tried. A few files that
 * failed beside others are run again alone; those that pass then are named at the end as unsteady. The last
 * line is always `N passed, N failed`, with `, N skipped` where there are any.
 */
import { spawnSync } from 'node:child_process'
import { existsSync, globSync, readFileSync } from 'node:fs'
import { delimiter, join, relative, resolve } from 'node:path'
import { styleText } from 'node:util'

import { type FileResult, runTestFile, stopTestFiles } from './run-test-file.ts'

interface Layer {
  readonly name: string
  /** Files at a time, for two cores. More than those where files mostly wait for what they have caused. */
  readonly concurrency: number
  readonly fileLimitMs: number
  /** True when the layer builds hosts: root, network namespaces, iptables. */
  readonly needsHosts: boolean
  /** Files that take longest: they start first, so that the layer does not end with one of them running alone. */
  readonly longest?: readonly string[]
  /** Runs only when it is named: it has a set-up of its own. */
  readonly isOnRequest?: boolean
  /** A folder whose programs its tests find before those of the machine. */
  readonly programs?: string
  /** Files of other layers that it runs too, with its own programs. */
  readonly borrowed?: () => readonly string[]
}

const layers: readonly Layer[] = [
  { name: 'unit', concurrency: 2, fileLimitMs: 60_000, needsHosts: false },
  { name: 'vectors', concurrency: 2, fileLimitMs: 120_000, needsHosts: false },
  {
    name: 'integration',
    concurrency: 3,
    fileLimitMs: 180_000,
    needsHosts: false,
    longest: ['identity-ca-server', 'dataplane-workers'],
  },
  {
    name: 'mesh',
    concurrency: 3,
    fileLimitMs: 240_000,
    needsHosts: true,
    longest: ['consul-acl', 'address-claims', 'services-in-use', 'hosts-as-they-are', 'membership'],
  },
  {
    name: 'fault',
    concurrency: 3,
    fileLimitMs: 240_000,
    needsHosts: true,
    longest: ['unreachable-caller', 'reload', 'rules-flushed', 'ca-server-away-until-expiry'],
  },
  // npm run test:fleet, which makes the root that its machines boot from. A file is some twenty playbook runs.
  {
    name: 'fleet',
    concurrency: 2,
    fileLimitMs: 900_000,
    needsHosts: true,
    longest: ['authority', 'rollout'],
    isOnRequest: true,
  },
  // npm run test:interop, which builds the Consul and fetches the Envoy that are found first.
  {
    name: 'interop',
    concurrency: 2,
    fileLimitMs: 300_000,
    needsHosts: true,
    isOnRequest: true,
    programs: '.cache/interop/bin',
    borrowed: meshTestsWithConsul,
  },
]

/** Without news for this long, say which files are still at it. */
const heartbeatMs = 15_000

/** Aborted by a signal: what runs may clean up, nothing new is started. */
const stopping = new AbortController()

const root = resolve(import.meta.dirname, '..')

/** Mesh tests with a Consul whose claims are about ours alone: what we do with it in time, where it listens. */
const sameOnAnyConsul: readonly string[] = [
  'test/mesh/consul-agent-address.test.ts',
  'test/mesh/dns.test.ts',
  'test/mesh/services-in-use.test.ts',
  'test/mesh/virtual-addresses-kept.test.ts',
]

/** The mesh tests that another Consul could fail: it is whichever is first on the PATH. */
function meshTestsWithConsul(): readonly string[] {
  return globSync('test/mesh/**/*.test.ts', { cwd: root })
    .filter((file) => !sameOnAnyConsul.includes(file))
    .filter((file) =>
      /catalog: 'consul'|harness\/consul\.ts/.test(readFileSync(join(root, file), 'utf8')),
    )
    .toSorted()
}

interface Totals {
  passed: number
  failed: number
  skipped: number
  /** Files that failed beside others and passed alone. */
  readonly unsteady: string[]
}

/** More failures in a layer than this are no accident of load. */
const MOST_RUN_AGAIN = 5

async function main(argv: readonly string[]): Promise<number> {
  const chosen = choose(argv)
  if (typeof chosen === 'string') {
    console.error(`Cannot choose tests: ${chosen}`)
    return 2
  }
  const totals: Totals = { passed: 0, failed: 0, skipped: 0, unsteady: [] }
  const startedAt = performance.now()
  for (const { layer, files } of chosen) await runLayer(layer, files, totals)
  if (totals.passed + totals.failed === 0) {
    console.error('\nNo test ran, and that is a failure')
    totals.failed = 1
  }
  console.log(`\n${seconds(performance.now() - startedAt)} in all`)
  for (const file of totals.unsteady)
    console.log(styleText('yellow', `Unsteady, failed beside others and passed alone: ${file}`))
  const skipped = totals.skipped > 0 ? `, ${totals.skipped} skipped` : ''
  console.log(`${totals.passed} passed, ${totals.failed} failed${skipped}`)
  return totals.failed > 0 || totals.skipped > 0 ? 1 : 0
}

interface Chosen {
  readonly layer: Layer
  /** Paths from the root of the repository. */
  readonly files: readonly string[]
}

/**
 * The layers and files that the arguments name, or a sentence saying which argument names nothing. Paths after the name
 * of a layer choose among its files, so that `npm run test:fleet -- FILE` runs that file alone.
 */
function choose(argv: readonly string[]): readonly Chosen[] | string {
  const filesOf = (layer: Layer): string[] =>
    globSync(`test/${layer.name}/**/*.test.ts`, { cwd: root }).toSorted()
  if (argv.length === 0)
    return layers
      .filter(({ isOnRequest }) => isOnRequest !== true)
      .map((layer) => ({ layer, files: filesOf(layer) }))

  const [first = '', ...paths] = argv
  const within = layers.find(({ name }) => name === first)
  if (within !== undefined && paths.length > 0) {
    const own = [...filesOf(within), ...(within.borrowed?.() ?? [])]
    const found = paths.map((path) => own.filter((file) => isAtOrBelow(file, path)))
    if (found.every((files) => files.length > 0))
      return [{ layer: within, files: [...new Set(found.flat())].toSorted() }]
  }

  const wanted = new Map<Layer, Set<string>>()
  for (const argument of argv) {
    const named = layers.find((layer) => layer.name === argument)
    const path = relative(root, resolve(argument))
    const layer = named ?? layers.find(({ name }) => `${path}/`.startsWith(`test/${name}/`))
    if (layer === undefined || (named === undefined && !existsSync(join(root, path)))) {
      const names = layers.map(({ name }) => name).join(', ')
      return `'${argument}' is neither a layer (${names}) nor a test file or folder under test/`
    }
    const files =
      named === undefined
        ? filesOf(layer).filter((file) => isAtOrBelow(file, argument))
        : [...filesOf(layer), ...(layer.borrowed?.() ?? [])]
    wanted.set(layer, new Set([...(wanted.get(layer) ?? []), ...files]))
  }
  return layers
    .filter((layer) => wanted.has(layer))
    .map((layer) => ({ layer, files: [...(wanted.get(layer) ?? [])].toSorted() }))
}

/** Whether a file of the repository is that path, or in that folder. */
function isAtOrBelow(file: string, path: string): boolean {
  return `${file}/`.startsWith(`${relative(root, resolve(path))}/`)
}

async function runLayer(layer: Layer, files: readonly string[], totals: Totals): Promise<void> {
  const obstacle = files.length === 0 ? 'it has no test file' : whyNot(layer)
  console.log(
    `\n${styleText('bold', layer.name)}  ${files.length} files, ${layer.concurrency} at a time`,
  )
  if (obstacle !== undefined) {
    console.log(`  ${styleText('red', 'FAIL')}  Cannot run layer ${layer.name}: ${obstacle}`)
    totals.failed += Math.max(1, files.length)
    return
  }
  const path = process.env['PATH'] ?? ''
  const environment = {
    // Some 1,500 Node processes compile the same files: kept, that is a quarter less of processor time.
    NODE_COMPILE_CACHE: join(root, '.cache', 'compiled'),
    ...(layer.programs !== undefined && {
      PATH: `${join(root, layer.programs)}${delimiter}${path}`,
    }),
  }
  const longest = new Set(layer.longest?.map((name) => `test/${layer.name}/${name}.test.ts`))
  for (const file of longest)
    if (!existsSync(join(root, file)))
      throw new Error(`scripts/test.ts names ${file}, which is gone`)
  const waiting = files.toSorted((a, b) => Number(longest.has(b)) - Number(longest.has(a)))
  const sinceByFile = new Map<string, number>()
  const results = new Map<string, FileResult>()
  const heartbeat = setInterval(() => {
    const active = [...sinceByFile].map(
      ([file, since]) => `${file} ${seconds(performance.now() - since)}`,
    )
    console.log(styleText('dim', `  ...   ${active.join(', ')}`))
  }, heartbeatMs)
  const takeTurns = async (): Promise<void> => {
    for (
      let file = waiting.shift();
      file !== undefined && !stopping.signal.aborted;
      file = waiting.shift()
    ) {
      sinceByFile.set(file, performance.now())
      const result = await runTestFile(join(root, file), layer.fileLimitMs, environment)
      sinceByFile.delete(file)
      heartbeat.refresh()
      results.set(file, result)
      printFile(file, result)
    }
  }
  try {
    await Promise.all(Array.from({ length: layer.concurrency }, takeTurns))
    await runFailedAlone()
  } finally {
    clearInterval(heartbeat)
  }
  for (const { passed, failures, skipped } of results.values()) {
    totals.passed += passed
    totals.failed += failures.length
    totals.skipped += skipped.length
  }

  /**
   * Files that run beside others share the processor with them, and what they claim is often about time: what failed is
   * run again alone, and that counts. It is named as unsteady all the same, to be mended.
   */
  async function runFailedAlone(): Promise<void> {
    const failed = [...results].flatMap(([file, { failures }]) =>
      failures.length === 0 ? [] : [file],
    )
    if (layer.concurrency === 1 || failed.length > MOST_RUN_AGAIN) return
    for (const file of failed) {
      if (stopping.signal.aborted) return
      console.log(`  ${styleText('yellow', 'again')} ${file}, alone`)
      sinceByFile.set(file, performance.now())
      const result = await runTestFile(join(root, file), layer.fileLimitMs, environment)
      sinceByFile.delete(file)
      results.set(file, result)
      printFile(file, result)
      if (result.failures.length === 0) totals.unsteady.push(file)
    }
  }
}

function printFile(file: string, result: FileResult): void {
  const isGood = result.failures.length === 0 && result.skipped.length === 0
  const mark = isGood ? styleText('green', 'ok  ') : styleText('red', 'FAIL')
  const count = result.passed + result.failures.length + result.skipped.length
  console.log(
    `  ${mark}  ${file.padEnd(58)} ${String(count).padStart(4)} tests ${seconds(result.durationMs).padStart(8)}`,
  )
  for (const name of result.skipped) console.log(`        skipped: ${name}`)
  for (const { name, reason } of result.failures)
    console.log(`        ${styleText('red', `failed: ${name}`)}\n${indent(reason)}`)
  if (isGood) return
  for (const note of result.notes) console.log(`        note: ${note}`)
  if (result.output.trim() !== '')
    console.log(`        it printed:\n${indent(result.output.trimEnd())}`)
}

/** A sentence saying why this machine cannot run the layer, with what to do; undefined when it can. */
function whyNot(layer: Layer): string | undefined {
  if (!layer.needsHosts) return undefined
  if (process.getuid?.() !== 0)
    return 'its hosts are network namespaces, and making those takes root; run it as root'
  const trial = spawnSync('unshare', ['--net', 'iptables-save', '-t', 'nat'], { encoding: 'utf8' })
  if (trial.error !== undefined)
    return `cannot start unshare (${trial.error.message}); run sh scripts/setup.sh test`
  if (trial.status !== 0)
    return `cannot read the nat table in a new network namespace (${trial.stderr.trim()}); it takes CAP_NET_ADMIN, CAP_SYS_ADMIN and a kernel with iptables`
  return undefined
}

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(1)} s`
}

function indent(text: string): string {
  return text.replace(/^/gm, '          ')
}

for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.once(signal, () => {
    stopping.abort()
    console.log(`\nStopped by ${signal}; letting the running tests clean up`)
    void stopTestFiles().finally(() => process.exit(signal === 'SIGINT' ? 130 : 143))
  })
}
process.exitCode = await main(process.argv.slice(2))
