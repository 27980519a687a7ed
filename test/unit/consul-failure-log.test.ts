/**
 * How often the log hears of something that fails again and again.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { FailureLog, REPEAT_MS } from '../../src/controlplane/catalog/consul/failure-log.ts'
import { TestClock } from '../harness/test-clock.ts'

test('a failure is news once, in other words after a while, and also when it comes and goes', () => {
  const clock = new TestClock()
  const failures = new FailureLog(clock)
  assert.equal(failures.recover(), false)
  assert.equal(failures.shouldLog('port 1'), true)
  clock.pass(1_000)
  assert.equal(failures.shouldLog('port 1'), false)
  assert.equal(failures.shouldLog('port 2'), false)
  clock.pass(REPEAT_MS)
  assert.equal(failures.shouldLog('port 1'), false, 'nothing new to say')
  assert.equal(failures.shouldLog('port 3'), true)
  assert.equal(failures.recover(), true)
  assert.equal(failures.shouldLog('port 3'), false, 'it flaps')
  assert.equal(failures.recover(), false, 'what was not said is not taken back')
  clock.pass(REPEAT_MS)
  assert.equal(failures.shouldLog('port 3'), true)
})
