/** Claims about ztunnel as a subject of the benchmark: when it is absent, and what it is told when it is there. */
import assert from 'node:assert/strict'
import { mkdtempDisposableSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { parse } from 'yaml'

import {
  divertRules,
  guardRules,
  WORKLOADS,
  whyAbsent,
  ztunnelEnvironment,
} from '../../bench/subjects/ztunnel.ts'

test('without a binary that can run it is absent, and says what was named', () => {
  using folder = mkdtempDisposableSync(join(tmpdir(), 'hm-bench-ztunnel-'))
  const plain = join(folder.path, 'ztunnel')
  assert.match(whyAbsent(undefined) ?? '', /HOSTMESH_BENCH_ZTUNNEL names no binary/)
  assert.match(whyAbsent('') ?? '', /names no binary/)
  assert.match(whyAbsent(plain) ?? '', new RegExp(`names ${plain}, and there is no such file`))
  writeFileSync(plain, '', { mode: 0o644 })
  assert.match(whyAbsent(plain) ?? '', /which is not a program/)
  assert.match(whyAbsent(folder.path) ?? '', /which is not a program/)
})

test('each hop is one workload of the file, and neither knows the other side as plaintext', () => {
  const { workloads } = parse(WORKLOADS) as {
    workloads: { name: string; namespace: string; serviceAccount: string; protocol: string }[]
  }
  for (const side of ['a', 'b'] as const) {
    const told = ztunnelEnvironment(side, '/the/file')
    assert.equal(told['LOCAL_XDS_PATH'], '/the/file')
    const [namespace, name, account] = (told['PROXY_WORKLOAD_INFO'] ?? '').split('/')
    const own = workloads.filter((workload) => workload.name === name)
    assert.equal(own.length, 1)
    assert.deepEqual([own[0]?.namespace, own[0]?.serviceAccount], [namespace, account])
  }
  assert.deepEqual(new Set(workloads.map(({ protocol }) => protocol)), new Set(['HBONE']))
})

test('its own packets are not diverted, and the backend answers nobody but the tunnel', () => {
  const mark = ztunnelEnvironment('a', '')['PACKET_MARK'] ?? ''
  const [, first = '', second = ''] = divertRules().split('\n')
  assert.match(first, new RegExp(`--mark ${mark} -j RETURN$`))
  assert.match(second, /--uid-owner \d+ -j REDIRECT --to-ports 15001$/)
  assert.match(guardRules(), /INPUT ! -i lo .* --reject-with tcp-reset/)
})
