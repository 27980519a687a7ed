/**
 * Walking the capture rules as the kernel would.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import {
  type CapturePlan,
  captureRules,
  describeRule,
} from '../../src/controlplane/capture/rules.ts'
import { type TracedConnection, traceCapture } from '../../src/controlplane/capture/trace.ts'

const plan: CapturePlan = {
  workloads: [
    { selector: { kind: 'cgroup', path: 'system.slice/web.service' }, capturePort: 15_100 },
    { selector: { kind: 'cgroup', path: 'system.slice/web.service/jobs' }, capturePort: 15_101 },
    { selector: { kind: 'user', user: '1001' }, capturePort: 15_102 },
    { selector: { kind: 'sourceAddress', ip: '172.17.0.5' }, capturePort: 15_103 },
    { selector: { kind: 'sourceAddress', ip: 'fd00::5' }, capturePort: 15_104 },
    { selector: { kind: 'cgroup', path: 'system.slice/a\\x2db.service' }, capturePort: 15_105 },
  ],
  virtualRange: '240.0.0.0/4',
  virtualRange6: 'fdc6:6d65:7368::/64',
  daemonUid: 0,
  ownPorts: [15_100, 15_101, 15_102, 15_103, 15_104, 15_105, 15_443],
}

function connection(parts: Partial<TracedConnection>): TracedConnection {
  return {
    caller: { kind: 'user', user: '1001' },
    destination: { ip: '240.1.2.3', port: 5432 },
    isOwnAddress: false,
    isKnownInstance: false,
    ...parts,
  }
}

test('each workload is diverted to its own port, in either family', () => {
  for (const { selector, capturePort } of plan.workloads) {
    const isV6 = selector.kind === 'sourceAddress' && selector.ip.includes(':')
    const destination = { ip: isV6 ? 'fdc6:6d65:7368::7' : '240.1.2.3', port: 80 }
    const trace = traceCapture(plan, connection({ caller: selector, destination }))
    assert.ok(trace.outcome === 'diverted', JSON.stringify(selector))
    assert.equal(trace.port, capturePort)
  }
})

test('a trace names the rule that decided', () => {
  const rules = captureRules(plan, 'v4').map(describeRule)
  const trace = traceCapture(plan, connection({}))
  assert.deepEqual(trace.rules, ['output: to a mesh address, by user 1001: divert to port 15102'])
  for (const rule of trace.rules) assert.ok(rules.includes(rule), rule)
})

test('an instance that may be reached without the mesh passes, also when its caller is known', () => {
  const destination = { ip: '10.0.0.7', port: 5432 }
  const asked = connection({ destination, isKnownInstance: true, isPermitted: true })
  assert.equal(traceCapture(plan, asked).outcome, 'passed')
})

test('what runs below the cgroup of a workload is that workload, unless a deeper one has it', () => {
  const port = (path: string): number | undefined => {
    const trace = traceCapture(plan, connection({ caller: { kind: 'cgroup', path } }))
    return trace.outcome === 'diverted' ? trace.port : undefined
  }
  assert.equal(port('system.slice/web.service/child'), 15_100)
  assert.equal(port('system.slice/web.service/jobs/1'), 15_101)
  assert.equal(port('system.slice/web.service2'), undefined)
})

test('an instance address is diverted only while it is in the set', () => {
  const destination = { ip: '10.0.0.7', port: 5432 }
  const known = traceCapture(plan, connection({ destination, isKnownInstance: true }))
  assert.equal(known.outcome, 'diverted')
  assert.deepEqual(traceCapture(plan, connection({ destination })).outcome, 'passed')
})

test("loopback, the daemon's own ports and its own connections are left alone", () => {
  for (const parts of [
    { destination: { ip: '127.0.0.1', port: 5432 }, isOwnAddress: true, isKnownInstance: true },
    { destination: { ip: '10.0.0.1', port: 15_443 }, isOwnAddress: true, isKnownInstance: true },
    { destination: { ip: '10.0.0.1', port: 15_102 }, isOwnAddress: true, isKnownInstance: true },
  ] satisfies Partial<TracedConnection>[])
    assert.equal(traceCapture(plan, connection(parts)).outcome, 'passed')
  const elsewhere = { destination: { ip: '10.0.0.7', port: 15_443 }, isKnownInstance: true }
  assert.equal(traceCapture(plan, connection(elsewhere)).outcome, 'diverted')
})

test('a virtual address that no rule diverts is reset; the default identity takes it', () => {
  const stranger = connection({ caller: { kind: 'user', user: '4711' } })
  assert.equal(traceCapture(plan, stranger).outcome, 'rejected')
  const trace = traceCapture({ ...plan, defaultCapturePort: 15_199 }, stranger)
  assert.ok(trace.outcome === 'diverted')
  assert.equal(trace.port, 15_199)
})

test('an unknown caller passes at an instance, is refused there, or is taken for the host', () => {
  const caller = { kind: 'user', user: '4711' } as const
  const destination = { ip: '10.0.0.7', port: 5432 }
  const asked = connection({ caller, destination, isKnownInstance: true })
  const refusing = { ...plan, refusesUnknownAtInstances: true }
  assert.equal(traceCapture(plan, asked).outcome, 'passed')
  assert.equal(traceCapture(refusing, asked).outcome, 'rejected')
  assert.equal(traceCapture(refusing, { ...asked, isKnownInstance: false }).outcome, 'passed')
  const daemon = { kind: 'user', user: String(plan.daemonUid) } as const
  assert.equal(traceCapture(refusing, { ...asked, caller: daemon }).outcome, 'passed')
  const taken = traceCapture({ ...plan, defaultCapturePort: 15_199 }, asked)
  assert.ok(taken.outcome === 'diverted')
  assert.equal(taken.port, 15_199)
})
