/**
 * The gate: `npm run check`. Format, lint, types, shell syntax, documents, dependencies.
 *
 * All steps run side by side and each is judged by its exit code alone; the output of a step is
 * shown only when it failed, so that what is on the screen is what has to be mended.
 */
import { spawn } from 'node:child_process'
import { resolve } from 'node:path'
import { styleText } from 'node:util'

interface Step {
  readonly name: string
  readonly command: readonly [string, ...string[]]
  /** What usually mends it. */
  readonly hint: string
}

interface Outcome {
  readonly isGood: boolean
  readonly output: string
  readonly durationMs: number
}

const root = resolve(import.meta.dirname, '..')
/** No step takes a tenth of this; a hung one must not hang the gate. */
const stepLimitMs = 180_000
const node = [process.execPath, '--disable-warning=ExperimentalWarning'] as const

// tsc, the longest, first: the others fit beside it.
const steps: readonly Step[] = [
  {
    name: 'types',
    command: ['tsc', '--noEmit', '--pretty', 'false'],
    hint: 'mend the types; tsconfig.json is not to be loosened',
  },
  {
    name: 'browser types',
    command: ['tsc', '--noEmit', '--pretty', 'false', '--project', 'src/dashboard'],
    hint: 'mend the types; the dashboard alone has those of browsers',
  },
  {
    name: 'lint',
    command: ['oxlint', '--quiet', '.'],
    hint: 'an exception is `// oxlint-disable-next-line RULE -- REASON`',
  },
  { name: 'format', command: ['biome', 'check', '.'], hint: 'npm run format' },
  {
    name: 'shell',
    command: [
      'sh',
      '-ec',
      'for f in scripts/*.sh scripts/setup/*.sh scripts/hostmesh; do sh -n "$f"; done; bash -n .ci/run',
    ],
    hint: 'the line above names the file and line',
  },
  {
    name: 'sources',
    command: [...node, 'scripts/check-source.ts'],
    hint: 'mend the claim or the code; an export that nobody imports goes, or stays in its file',
  },
  {
    name: 'docs',
    command: [...node, 'scripts/check-docs.ts'],
    hint: 'npm run docs writes the generated parts; the rest is prose to mend',
  },
  {
    name: 'configuration',
    command: [...node, 'scripts/config-docs.ts'],
    hint: 'npm run docs renews the key table of docs/configuration.md',
  },
  {
    name: 'dashboards',
    command: [...node, 'scripts/dashboards.ts'],
    hint: 'the table is scripts/dashboards/panels.ts; npm run docs writes monitoring/grafana',
  },
  {
    name: 'dependencies',
    command: [...node, 'scripts/check-dependencies.ts'],
    hint: 'npm run docs refreshes docs/dependencies.txt; a new dependency needs its reason in docs/decisions/',
  },
]

const outcomes = await Promise.all(
  steps.map(async (step) => {
    const outcome = await run(step)
    const mark = outcome.isGood ? styleText('green', 'ok  ') : styleText('red', 'FAIL')
    console.log(`  ${mark}  ${step.name.padEnd(14)} ${(outcome.durationMs / 1000).toFixed(1)} s`)
    return { step, outcome }
  }),
)
const failed = outcomes.filter(({ outcome }) => !outcome.isGood)
for (const { step, outcome } of failed) {
  console.log(`\n${styleText('bold', `${step.name}: ${step.command.join(' ')}`)}`)
  console.log(outcome.output.trimEnd())
  console.log(styleText('dim', `hint: ${step.hint}`))
}
console.log(
  failed.length === 0
    ? 'check passed'
    : `\ncheck failed: ${failed.map(({ step }) => step.name).join(', ')}`,
)
process.exitCode = failed.length === 0 ? 0 : 1

function run(step: Step): Promise<Outcome> {
  const startedAt = performance.now()
  const [program, ...args] = step.command
  return new Promise((done) => {
    const child = spawn(program, args, {
      cwd: root,
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: stepLimitMs,
    })
    let output = ''
    const collect = (chunk: Buffer): void => void (output += chunk.toString('utf8'))
    child.stdout.on('data', collect)
    child.stderr.on('data', collect)
    const end = (isGood: boolean, note: string): void =>
      done({ isGood, output: output + note, durationMs: performance.now() - startedAt })
    child.once('error', (error) =>
      end(false, `Cannot start ${program}: ${error.message}; run npm ci`),
    )
    child.once('close', (code, signal) =>
      end(
        code === 0,
        signal === null ? '' : `\nended by ${signal}; its limit is ${stepLimitMs / 1000} s`,
      ),
    )
  })
}
