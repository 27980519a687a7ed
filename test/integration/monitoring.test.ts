/**
 * What `monitoring` ships: every expression is PromQL and names only metrics and labels that a host exports, and every
 * alert has a test and an entry in the runbook.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { parse, stringify } from 'yaml'
import { metrics } from '../../src/telemetry/metrics.ts'

const root = join(import.meta.dirname, '../..')
const rulesTest = join(root, 'test/vectors/monitoring/alerts.yaml')

interface Rule {
  readonly record?: string
  readonly alert?: string
  readonly expr: string
  readonly annotations?: Readonly<Record<string, string>>
}

interface GrafanaModel {
  readonly templating: {
    readonly list: readonly {
      readonly name: string
      readonly type: string
      readonly query: string | { readonly query: string }
    }[]
  }
  readonly panels: readonly {
    readonly id: number
    readonly gridPos: {
      readonly x: number
      readonly y: number
      readonly w: number
      readonly h: number
    }
    readonly targets?: readonly { readonly expr: string; readonly legendFormat: string }[]
  }[]
}

function rulesIn(name: string): readonly Rule[] {
  const text = readFileSync(join(root, `monitoring/prometheus/${name}.yaml`), 'utf8')
  const { groups } = parse(text) as { groups: readonly { rules: readonly Rule[] }[] }
  return groups.flatMap(({ rules }) => rules)
}

const recordingRules = rulesIn('recording-rules')
const alerts = rulesIn('alerts')
const dashboards = (['mesh', 'service', 'host'] as const).map((name) => {
  const text = readFileSync(join(root, `monitoring/grafana/${name}.json`), 'utf8')
  return { name, model: JSON.parse(text) as GrafanaModel }
})

/** Expressions of dashboards, with Grafana's variables as it would replace them. */
const panelQueries = dashboards.flatMap(({ name, model }) =>
  model.panels.flatMap(({ targets = [] }) =>
    targets.map(({ expr, legendFormat }) => ({
      where: `dashboard ${name}`,
      expr: expr.replaceAll('$__rate_interval', '5m').replaceAll(/\$(service|instance)\b/g, 'x'),
      names: [...legendFormat.matchAll(/\{\{(\w+)\}\}/g)].map(([, label = '']) => label),
    })),
  ),
)

/** The labels that Prometheus itself adds, by docs/metrics.md. */
const TARGET_LABELS = ['instance', 'job', 'datacenter']

/** The labels of each series, by its name; recording rules have those that their expression keeps. */
const labelsByName = new Map<string, ReadonlySet<string>>([['up', new Set(TARGET_LABELS)]])
for (const { name, type, labels } of metrics) {
  const own = [...labels, ...TARGET_LABELS]
  if (type !== 'histogram') labelsByName.set(name, new Set(own))
  else {
    labelsByName.set(`${name}_bucket`, new Set([...own, 'le']))
    for (const suffix of ['sum', 'count']) labelsByName.set(`${name}_${suffix}`, new Set(own))
  }
}
for (const { record = '' } of recordingRules)
  labelsByName.set(record, new Set(['source_service', 'destination_service']))

interface Selector {
  readonly name: string
  readonly labels: readonly string[]
}

/** The series that an expression selects, without those of a range or a text. */
function selectorsIn(expression: string): readonly Selector[] {
  const pattern = /\b((?:pair:)?hostmesh_[a-z0-9_:]+|up)\b(?:\{([^}]*)\})?/g
  return [...expression.matchAll(pattern)].map(([, name = '', matchers = '']) => ({
    name,
    labels: [...matchers.matchAll(/(\w+)\s*(?:=~|!~|!=|=)/g)].map(([, label = '']) => label),
  }))
}

/** The labels in `by (…)`. */
function groupedBy(expression: string): readonly string[] {
  return [...expression.matchAll(/\bby\s*\(([^)]*)\)/g)].flatMap(([, list = '']) =>
    list.split(',').map((label) => label.trim()),
  )
}

function checkNames(expression: string, used: readonly string[], where: string): void {
  const selectors = selectorsIn(expression)
  assert.ok(selectors.length > 0, `${where}: no metric in ${expression}`)
  const known = new Set<string>()
  for (const { name, labels } of selectors) {
    const own = labelsByName.get(name)
    assert.ok(own !== undefined, `${where}: no metric ${name}`)
    for (const label of labels) assert.ok(own.has(label), `${where}: ${name} has no label ${label}`)
    for (const label of own) known.add(label)
  }
  const grouping = groupedBy(expression)
  for (const label of [...grouping, ...used])
    assert.ok(known.has(label), `${where}: nothing has the label ${label} in ${expression}`)
  // What is summed has only the labels that it is grouped by.
  if (grouping.length > 0 && selectors.length === 1)
    for (const label of used) assert.ok(grouping.includes(label), `${where}: ${label} is summed up`)
}

function promtool(...args: readonly string[]): string {
  return execFileSync('promtool', args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] })
}

test('promtool accepts the rules, and every expression of the dashboards as a rule', () => {
  for (const name of ['recording-rules', 'alerts'])
    promtool('check', 'rules', join(root, `monitoring/prometheus/${name}.yaml`))
  const folder = mkdtempSync(join(tmpdir(), 'hostmesh-rules-'))
  try {
    const path = join(folder, 'panels.yaml')
    const rules = panelQueries.map(({ expr }, at) => ({ record: `panel:${at}`, expr }))
    assert.ok(rules.length > 50)
    writeFileSync(path, stringify({ groups: [{ name: 'panels', rules }] }))
    assert.match(promtool('check', 'rules', path), new RegExp(`${rules.length} rules found`))
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
})

test('every metric and label in a rule exists', () => {
  for (const { record, alert, expr, annotations = {} } of [...recordingRules, ...alerts]) {
    const used = Object.values(annotations).flatMap((text) =>
      [...text.matchAll(/\$labels\.(\w+)/g)].map(([, label = '']) => label),
    )
    checkNames(expr, used, record ?? alert ?? '')
  }
})

test('every metric and label in a dashboard exists', () => {
  for (const { where, expr, names } of panelQueries) checkNames(expr, names, where)
  for (const { name, model } of dashboards)
    for (const { type, query } of model.templating.list) {
      if (type === 'datasource') continue
      const text = typeof query === 'string' ? query : query.query
      const [, metric = '', label = ''] = /^label_values\((\w+), (\w+)\)$/.exec(text) ?? []
      assert.ok(labelsByName.get(metric)?.has(label), `${name}: ${text}`)
    }
})

test('a name that does not exist, or is summed up, is found by these checks', () => {
  for (const expression of [
    'rate(hostmesh_no_such_total[5m])',
    'hostmesh_ready{service="x"}',
    'sum by (flag) (hostmesh_ready)',
    'rate(hostmesh_tcp_first_byte_seconds[5m])',
    'vector(1)',
  ])
    assert.throws(() => checkNames(expression, [], ''), assert.AssertionError, expression)
  assert.throws(() => checkNames('sum by (job) (hostmesh_ready)', ['instance'], ''))
  checkNames('sum by (job) (hostmesh_ready)', ['job'], '')
})

test('promtool finds that each alert fires for what it is about, and not for what is like it', () => {
  promtool('test', 'rules', rulesTest)
  const { tests } = parse(readFileSync(rulesTest, 'utf8')) as {
    tests: readonly {
      alert_rule_test: readonly { alertname: string; exp_alerts: readonly unknown[] }[]
      input_series: readonly unknown[]
    }[]
  }
  const tested = tests.flatMap((one) => {
    // Something that must not fire is beside what must.
    assert.ok(one.input_series.length > 1)
    return one.alert_rule_test.map(({ alertname, exp_alerts }) => {
      assert.equal(exp_alerts.length, 1)
      return alertname
    })
  })
  assert.deepEqual(new Set(tested), new Set(alerts.map(({ alert }) => alert)))
})

test('each alert has its entry in the runbook, with what it means, what to look at and what to do', () => {
  const runbook = readFileSync(join(root, 'docs/runbook.md'), 'utf8')
  for (const { alert = '', annotations } of alerts) {
    assert.equal(annotations?.['runbook_url'], `docs/runbook.md#${alert.toLowerCase()}`)
    const entry = runbook.split(/^##+ /m).find((part) => part.startsWith(`${alert}\n`))
    assert.match(entry ?? '', /\*\*Means\.\*\*[\s\S]*\*\*Look at\.\*\*[\s\S]*\*\*Do\.\*\*/, alert)
  }
  const entries = [...runbook.matchAll(/^### (\w+)$/gm)].map(([, name]) => name)
  assert.deepEqual(new Set(entries), new Set(alerts.map(({ alert }) => alert)))
})

test('panels are inside the grid, beside and not on each other', () => {
  for (const { name, model } of dashboards) {
    const cells = new Set<string>()
    for (const { gridPos } of model.panels) {
      const { x, y, w, h } = gridPos
      assert.ok([x, y, w, h].every(Number.isInteger) && x + w <= 24, name)
      for (let column = x; column < x + w; column += 1)
        for (let row = y; row < y + h; row += 1) {
          assert.ok(!cells.has(`${column} ${row}`), `${name}: two panels at ${column} ${row}`)
          cells.add(`${column} ${row}`)
        }
    }
    assert.equal(new Set(model.panels.map(({ id }) => id)).size, model.panels.length)
  }
})
