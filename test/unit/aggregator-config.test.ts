/** The aggregator's configuration: defaults, all problems with their place, and that it never opens the API by mistake. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { checkAggregatorConfig } from '../../src/aggregator/config-load.ts'
import { formatSize, parseSize } from '../../src/lib/byte-size.ts'

function problemsOf(text: string): string {
  const checked = checkAggregatorConfig(text, '/etc/hostmesh/aggregator.yaml')
  return 'problems' in checked ? checked.problems.join('\n') : ''
}

test('a file with one key has all defaults, and paths from its folder', () => {
  const checked = checkAggregatorConfig('access: {tokens: t.yaml}\n', '/etc/x/aggregator.yaml')
  assert.ok('config' in checked)
  const { listen, reports, store, access } = checked.config
  assert.deepEqual(listen, {
    socket: '/run/hostmesh-aggregator/api.sock',
    address: '127.0.0.1',
    port: 15_190,
    names: [],
  })
  assert.deepEqual(reports, {
    address: '127.0.0.1',
    port: 15_191,
    rebindAfter: 3_600_000,
  })
  assert.equal(store.maxBytes, 10 * 1_024 ** 3)
  assert.equal(store.retention.minutes, 14 * 86_400_000)
  assert.equal(access.tokens, '/etc/x/t.yaml')
})

const tls = 'tls: {certificate: c.pem, key: k.pem}\n'
const open = 'listen: {address: 0.0.0.0}\n'

test('beyond loopback without TLS and a way to know callers is refused, with what to do', () => {
  const unguarded = [
    open,
    open + tls,
    `${open}access: {tokens: t.yaml}\n`,
    'listen: {address: "::"}\n',
    'listen: {address: 10.0.0.1}\n',
    `${open}${tls}access: {proxy: {header: X-User, socket: p.sock, role: viewer}}\n`,
  ]
  for (const text of unguarded)
    assert.match(
      problemsOf(text),
      /^\/etc\/hostmesh\/aggregator\.yaml:1:19: listen\.address: .*give tls and/,
      text,
    )
  assert.equal(problemsOf(`${open}${tls}access: {tokens: t.yaml}\n`), '')
  assert.equal(problemsOf(`${open}${tls}access: {clientCertificates: {roots: r.pem}}\n`), '')
  for (const address of ['127.0.0.1', '127.8.8.8', '"::1"', '"::ffff:127.0.0.1"'])
    assert.equal(problemsOf(`listen: {address: ${address}}\n`), '', address)
})

test('reports are taken on loopback only, at a port of their own', () => {
  assert.match(
    problemsOf('reports: {address: 10.0.0.1}\n'),
    /1:20: reports\.address: Must be a loop/,
  )
  assert.match(problemsOf('reports: {port: 15190}\n'), /reports\.port: Is the port of listen/)
})

test('a header is believed only of a proxy that is known', () => {
  const proxy = (rest: string): string => problemsOf(`access: {proxy: {header: X-User, ${rest}}}\n`)
  assert.equal(proxy('socket: p.sock, role: viewer'), '')
  assert.match(proxy('role: viewer'), /either socket or certificate/)
  assert.match(proxy('certificate: x, role: viewer'), /Needs access\.clientCertificates/)
  assert.match(proxy('socket: p.sock'), /Lets nobody in/)
  assert.match(
    proxy('socket: /run/hostmesh-aggregator/api.sock, role: viewer'),
    /Is the socket of listen/,
  )
  assert.match(problemsOf('access: {proxy: {header: Cookie, socket: p, role: viewer}}\n'), /header/)
})

test('all problems are reported at once, with line, column and what was meant', () => {
  const text = problemsOf('listne: {}\nstore:\n  maxBytes: 5\n  retention: {seconds: 90}\n')
  assert.match(text, /aggregator\.yaml:1:1: Unknown key "listne"; did you mean "listen"\?/)
  assert.match(text, /:3:13: store\.maxBytes: Must be text/)
  assert.match(text, /:4:24: store\.retention\.seconds: Must be a duration/)
  assert.match(
    problemsOf('store: {retention: {seconds: 20d}}\n'),
    /Coarser steps must be kept at least as long/,
  )
  assert.match(problemsOf('store: {maxBytes: 1KiB}\n'), /at least 16MiB/)
})

test('a size is read as it is written', () => {
  for (const text of ['64KiB', '512MiB', '10GiB', '2TiB'])
    assert.equal(formatSize(parseSize(text) ?? 0), text)
  for (const text of ['', '10', '10GB', '1.5GiB', '-1KiB', '999999999999TiB'])
    assert.equal(parseSize(text), undefined, text)
})
