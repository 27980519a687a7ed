/** Claims about `hostmesh config` (src/cli/config.ts) and about docs/configuration.md. */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { after, test } from 'node:test'
import { parse } from 'yaml'
import { configDocument, withKeyTable } from '../../scripts/config-docs.ts'
import { checkConfigText } from '../../src/config/load.ts'

const folder = mkdtempSync(join(tmpdir(), 'hostmesh-config-command-'))
after(() => rmSync(folder, { recursive: true, force: true }))

const PROGRAM = `
  import { Command } from 'commander'
  import { configCommand } from ${JSON.stringify(resolve('src/cli/config.ts'))}
  await new Command('hostmesh').addCommand(configCommand()).parseAsync(['config', ...process.argv.slice(1)], { from: 'user' })`

function run(...argv: string[]): { status: number | null; stdout: string; stderr: string } {
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    ['--disable-warning=ExperimentalWarning', '--input-type=module', '-e', PROGRAM, ...argv],
    { encoding: 'utf8', timeout: 30_000, env: { ...process.env, CONSUL_HTTP_TOKEN: 'SECRET-ENV' } },
  )
  return { status, stdout, stderr }
}

function file(name: string, text: string): string {
  const path = join(folder, name)
  writeFileSync(path, text, { mode: 0o600 })
  return path
}

const CONSUL = `catalog: {kind: consul, token: SECRET-FILE}
certificates: {kind: consul}
services: [{name: web, port: 80}]
`

test('validate takes a sound file with exit code 0', () => {
  const { status, stdout, stderr } = run('validate', file('sound.yaml', CONSUL))
  assert.equal(status, 0, stderr)
  assert.match(stdout, /sound\.yaml: valid \(1 service, catalog consul/)
})

test('validate warns of what this host lacks, of a catalog that would be refused, and of an identity without capture', () => {
  const catalog = file('catalog.yaml', 'services: [{Nam: api}]\n')
  const path = file(
    'incomplete.yaml',
    `catalog: {kind: file, path: ${catalog}}
certificates: {kind: files, directory: not-there}
services: [{name: web, identity: {user: no-such-user}}, {name: db, port: 1, identity: {user: root}}]
`,
  )
  const { status, stdout, stderr } = run('validate', path)
  assert.equal(status, 0, stderr)
  assert.match(stdout, /valid/)
  const warnings = stderr.trim().split('\n')
  assert.equal(warnings.length, 5, stderr)
  assert.match(stderr, /warning: Capture is off, so the identity of web, db diverts nothing/)
  assert.match(stderr, /warning: certificates\.directory: \S+not-there is not there/)
  assert.match(stderr, /warning: \S*catalog\.yaml:1:\d+: .*Nam/)
  assert.match(stderr, /warning: services\[0\]\.identity\.user: this host has no user no-such-user/)
})

test('validate has no warning for a host that has everything', () => {
  const catalog = file('good-catalog.yaml', 'services: []\n')
  const { stderr } = run(
    'validate',
    file(
      'complete.yaml',
      `catalog: {kind: file, path: ${catalog}}
certificates: {kind: files, directory: .}
services: [{name: web, identity: {user: root}}]
capture: {mode: on}
`,
    ),
  )
  assert.equal(stderr, '')
})

test('validate prints every problem to standard error with exit code 2', () => {
  const { status, stdout, stderr } = run(
    'validate',
    file('broken.yaml', `${CONSUL}workers: 0\nlog: {levle: info}\n`),
  )
  assert.equal(status, 2)
  assert.equal(stdout, '')
  assert.match(
    stderr,
    /broken\.yaml:4:10: workers: .*\n.*broken\.yaml:5:7: log: Unknown key "levle"; did you mean "level"\?/,
  )
})

test('show fills in defaults and leaves out secrets, in YAML and in JSON', () => {
  const path = file('shown.yaml', CONSUL)
  const yaml = run('show', path)
  const json = run('show', path, '-o', 'json')
  assert.equal(yaml.status, 0, yaml.stderr)
  assert.deepEqual(parse(yaml.stdout), JSON.parse(json.stdout))
  const shown = JSON.parse(json.stdout) as { catalog: Record<string, unknown>; timeouts: unknown }
  assert.equal(shown.catalog['token'], '(redacted)')
  assert.equal(shown.catalog['requestTimeout'], '10s')
  assert.ok(!`${yaml.stdout}${json.stdout}`.includes('SECRET'))
})

test('show leaves out the headers of an OTLP endpoint', () => {
  const { stdout, status, stderr } = run(
    'show',
    file(
      'otlp.yaml',
      `${CONSUL}\nmetrics: {otlp: {endpoint: 'https://h', headers: {authorization: SECRET-HEADER}}}\n`,
    ),
  )
  assert.equal(status, 0, stderr)
  assert.match(stdout, /authorization: \(redacted\)/)
  assert.ok(!stdout.includes('SECRET'))
})

test('show leaves out a secret that came from the environment', () => {
  const { stdout } = run(
    'show',
    file('env.yaml', 'catalog: {kind: consul}\ncertificates: {kind: consul}\n'),
  )
  assert.match(stdout, /token: \(redacted\)/)
  assert.ok(!stdout.includes('SECRET'))
})

test('schema prints a JSON schema that names every section and forbids unknown keys', () => {
  const { status, stdout } = run('schema')
  assert.equal(status, 0)
  const schema = JSON.parse(stdout) as {
    required: string[]
    additionalProperties: boolean
    properties: object
  }
  assert.deepEqual(schema.required, ['catalog', 'certificates'])
  assert.equal(schema.additionalProperties, false)
  assert.ok('services' in schema.properties && 'capture' in schema.properties)
})

test('the key table of docs/configuration.md is what the schema says', () => {
  const document = readFileSync(configDocument, 'utf8')
  assert.equal(withKeyTable(document), document, 'run scripts/config-docs.ts --write')
})

test('every key in docs/configuration.md has a meaning', () => {
  const rows = readFileSync(configDocument, 'utf8')
    .split('\n')
    .filter((line) => line.startsWith('| `'))
  assert.ok(rows.length > 40)
  for (const row of rows) assert.doesNotMatch(row, /\|\s*(\([a-z]+\) )?\|$/, row)
})

test('the examples in docs/configuration.md are sound', () => {
  const examples = [...readFileSync(configDocument, 'utf8').matchAll(/```yaml\n([\s\S]*?)```/g)]
  assert.equal(examples.length, 3)
  const rest = 'catalog: {kind: file, path: /c}\ncertificates: {kind: files, directory: /d}\n'
  for (const [, text = ''] of examples) {
    const whole = /^catalog:/m.test(text) ? text : rest + text
    const checked = checkConfigText(whole, { path: 'example', env: {}, isReadableByAll: true })
    assert.ok('config' in checked, 'problems' in checked ? checked.problems.join('\n') : '')
  }
})
