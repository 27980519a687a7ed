/** Claims about what the benchmark reads from wrk, curl, nginx, ip and /proc. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { parseBulkReport } from '../../bench/load/bulk.ts'
import { parseWrkReport } from '../../bench/load/wrk.ts'
import {
  cpuMicroseconds,
  parseCpuTicks,
  parseReceivedBytes,
  parseRssKb,
  rssKb,
} from '../../bench/measure/proc.ts'
import { BULK_BYTES, parseStubStatus } from '../../bench/site/backend.ts'
import { hardFileLimit, staleNamespaces } from '../../bench/site/namespaces.ts'

/** As wrk 4.1.0 of Debian 12 wrote it against a server that answers 503. */
const WRK_OUTPUT = `Running 1m test @ http://127.0.0.1:19080/x
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency    70.89us  139.80us   4.12ms   98.72%
    Req/Sec   192.43k    17.16k  206.99k    90.00%
  191282 requests in 1.00s, 68.22MB read
  Non-2xx or 3xx responses: 191282
Requests/sec: 191268.04
Transfer/sec:     68.22MB
hostmesh-bench {"requests":191282,"durationUs":1000073,"p50Us":65,"p99Us":349,"errors":{"connect":0,"read":0,"write":0,"status":191282,"timeout":0}}
`

test("wrk's exact figures and its errors are read from the line of our script", () => {
  const report = parseWrkReport(WRK_OUTPUT)
  assert.equal(report.requests, 191_282)
  assert.equal(report.durationUs, 1_000_073)
  assert.equal(report.p50Us, 65)
  assert.equal(report.p99Us, 349)
  assert.deepEqual(report.errors, { connect: 0, read: 0, write: 0, status: 191_282, timeout: 0 })
})

test('what wrk says in place of a report is part of the error', () => {
  assert.throws(() => parseWrkReport('unable to connect to 127.0.0.1:1 Connection refused'), {
    code: 'HM_BENCH_LOAD',
    message: /Connection refused/,
  })
})

test('bulk downloads are added up when all came whole', () => {
  const output = `hostmesh-bench 200 ${BULK_BYTES} 0.812345\nhostmesh-bench 200 ${BULK_BYTES} 0.700000\n`
  const { bytes, seconds } = parseBulkReport(output, 2)
  assert.equal(bytes, 2 * BULK_BYTES)
  assert.ok(Math.abs(seconds - 1.512345) < 1e-9)
})

test('a download cut short, refused or missing fails the sample', () => {
  const whole = `hostmesh-bench 200 ${BULK_BYTES} 0.8\n`
  for (const output of [
    `${whole}curl: (18) transfer closed\nhostmesh-bench 200 ${BULK_BYTES - 1} 0.4\n`,
    `${whole}hostmesh-bench 503 0 0.1\n`,
    whole,
  ])
    assert.throws(() => parseBulkReport(output, 2), { code: 'HM_BENCH_LOAD', message: /1 of 2/ })
})

test("open connections and requests are read from nginx's page", () => {
  const page =
    'Active connections: 65 \nserver accepts handled requests\n 408 408 390584 \nReading: 0 Writing: 1 Waiting: 64 \n'
  assert.deepEqual(parseStubStatus(page), { openConnections: 65, requests: 390_584 })
  assert.throws(() => parseStubStatus('<html>404</html>'), { code: 'HM_BENCH_BACKEND' })
})

test('CPU time is found behind a command that holds spaces and parentheses', () => {
  const stat =
    '4242 (worker (1) x) S 1 4242 4242 0 -1 4194560 1200 0 0 0 731 269 15 8 20 0 7 0 99 1 2 3'
  assert.equal(parseCpuTicks(stat), 1_000)
})

test('a line that is no process state is refused, not counted as zero', () => {
  assert.throws(() => parseCpuTicks('4242 (x) S 1'), { code: 'HM_BENCH_PROC' })
})

test('resident memory is read in kB, and a process that is gone has none', () => {
  assert.equal(
    parseRssKb('Name:\tnginx\nVmPeak:\t  999 kB\nVmRSS:\t   15360 kB\nThreads:\t1\n'),
    15_360,
  )
  assert.throws(() => parseRssKb('Name:\tnginx\nState:\tZ (zombie)\n'), { code: 'HM_BENCH_PROC' })
})

test('received bytes are those of all interfaces but loopback', () => {
  const netDev = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:  500 5 0 0 0 0 0 0 500 5 0 0 0 0 0 0
 veth0: 1048576 9 0 0 0 0 0 0 77 7 0 0 0 0 0 0
eth0:24 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0
`
  assert.equal(parseReceivedBytes(netDev), 1_048_600)
})

test('this process has used CPU and memory, and a pid that nobody has is an error', () => {
  assert.ok(cpuMicroseconds([process.pid]) > 0)
  const kb = rssKb(process.pid)
  assert.ok(kb > 10_000 && kb < 10_000_000, `${kb} kB`)
  assert.throws(() => rssKb(2 ** 30), { code: 'HM_BENCH_PROC' })
})

test('only namespaces of benchmarks that are no longer alive are swept', () => {
  const listed =
    'hostmesh-bench-100-0a (id: 1)\nhostmesh-bench-100-0b\nhostmesh-bench-200-0a\nother\nhostmesh-bench-x-0a\nmy-hostmesh-bench-100-0a\n'
  assert.deepEqual(
    staleNamespaces(listed, (pid) => pid === 200),
    ['hostmesh-bench-100-0a', 'hostmesh-bench-100-0b'],
  )
})

test('the hard limit of open files is read, unlimited included', () => {
  const line = (hard: string): string =>
    `Limit                     Soft Limit           Hard Limit           Units\nMax open files            1024                 ${hard}                files\n`
  assert.equal(hardFileLimit(line('20000')), 20_000)
  assert.equal(hardFileLimit(line('unlimited')), Number.POSITIVE_INFINITY)
  assert.equal(hardFileLimit(''), 0)
})
