/**
 * The Ansible collection as text: judged by ansible-lint, and its documentation held against its variables.
 */
import assert from 'node:assert/strict'
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { test } from 'node:test'
import { parse } from 'yaml'

import { mustRun, runCommand } from '../harness/owned-process.ts'

const collection = resolve(import.meta.dirname, '../../ansible')
const roles = ['agent', 'aggregator', 'ca']

interface ArgumentSpecs {
  readonly argument_specs: {
    readonly main: {
      readonly options: Readonly<Record<string, { required?: boolean; default?: unknown }>>
    }
  }
}

async function readYaml<T>(role: string, path: string): Promise<T> {
  return parse(await readFile(join(collection, 'roles', role, path), 'utf8')) as T
}

async function optionsOf(role: string) {
  const specs = await readYaml<ArgumentSpecs>(role, 'meta/argument_specs.yml')
  return specs.argument_specs.main.options
}

test("ansible-lint's production profile finds nothing wrong", async () => {
  const home = await mkdtemp(join(tmpdir(), 'hmt-lint-'))
  try {
    await mustRun(['ansible-galaxy', 'collection', 'install', collection, '-p', home])
    // Without galaxy.yml, whose rules are for what is published there.
    const targets = ['playbooks', ...roles.map((role) => `roles/${role}`), 'meta']
    const options = ['--nocolor', '--offline', '--profile', 'production']
    const argv = [
      'sh',
      '-c',
      'cd "$0" && exec ansible-lint "$@"',
      collection,
      ...options,
      ...targets,
    ]
    const { code, stdout, stderr } = await runCommand(argv, {
      env: { HOME: home, ANSIBLE_HOME: home, ANSIBLE_COLLECTIONS_PATH: home },
      limitMs: 120_000,
    })
    assert.equal(code, 0, stdout + stderr)
    assert.match(stdout + stderr, /Passed with production profile: 0 failure/)
  } finally {
    await rm(home, { recursive: true, force: true })
  }
})

for (const role of roles) {
  test(`role ${role}: every variable with a default is specified with that default, and every other one is required`, async () => {
    const defaults = await readYaml<Record<string, unknown>>(role, 'defaults/main.yml')
    const options = await optionsOf(role)
    const specified = Object.entries(options).filter(([, option]) => 'default' in option)
    assert.deepEqual(
      Object.fromEntries(specified.map(([name, option]) => [name, option.default])),
      defaults,
    )
    const others = Object.keys(options).filter((name) => !(name in defaults))
    const optional = others.filter((name) => options[name]?.required !== true)
    assert.deepEqual(optional, role === 'aggregator' ? [] : [`hostmesh_${role}_package_sha256`])
  })

  test(`role ${role}: every variable that a user can set is used by a task or template`, async () => {
    const texts: string[] = []
    for (const folder of ['tasks', 'templates', 'vars']) {
      const path = join(collection, 'roles', role, folder)
      for (const file of await readdir(path)) texts.push(await readFile(join(path, file), 'utf8'))
    }
    const text = texts.join('\n')
    for (const name of Object.keys(await optionsOf(role)))
      assert.ok(text.includes(name), `${name} is used nowhere`)
  })
}
