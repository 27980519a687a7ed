/**
 * What each worker gets of the descriptors and the memory of the process.
 */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import {
  openFilesLimit,
  readProcessLimits,
  tunnelShare,
  workerShare,
} from '../../src/daemon/resources.ts'

const MIB = 1_048_576

test('the soft limit of open files is read from what the kernel says', () => {
  const text = [
    'Limit                     Soft Limit           Hard Limit           Units     ',
    'Max processes             96318                96318                processes ',
    'Max open files            300                  1048576              files     ',
  ].join('\n')
  assert.equal(openFilesLimit(text), 300)
  assert.equal(openFilesLimit(text.replace('300  ', 'unlimited')), Number.MAX_SAFE_INTEGER)
  assert.equal(openFilesLimit(''), Number.MAX_SAFE_INTEGER)
})

test('this process has limits, and is within them', () => {
  const limits = readProcessLimits()
  assert.equal(limits.descriptors, openFilesLimit(readFileSync('/proc/self/limits', 'utf8')))
  assert.ok(limits.openDescriptors > 3 && limits.openDescriptors < limits.descriptors)
  assert.ok(limits.memory > 64 * MIB && Number.isFinite(limits.memory))
})

test('workers share what is left when the main thread has its reserve', () => {
  const limits = { descriptors: 1_064, openDescriptors: 40, memory: 8_192 * MIB }
  assert.equal(workerShare(limits, 1, 128).descriptors, 960)
  assert.equal(workerShare(limits, 4, 128).descriptors, 240)
  const sum = workerShare(limits, 7, 128).descriptors * 7
  assert.ok(sum <= 960 && sum > 960 - 7)
})

test('a worker has a few whatever the limit is', () => {
  const limits = { descriptors: 64, openDescriptors: 40, memory: 8_192 * MIB }
  assert.equal(workerShare(limits, 4, 128).descriptors, 32)
})

test('bytes that wait get what is configured, but a quarter of the memory at most', () => {
  const limits = { descriptors: 1_000, openDescriptors: 40, memory: 1_024 * MIB }
  assert.equal(workerShare(limits, 2, 128).heldBytes, 64 * MIB)
  assert.equal(workerShare({ ...limits, memory: 200 * MIB }, 2, 128).heldBytes, 25 * MIB)
})

test('tunnels get a quarter of the memory at most, and one host its part in each worker', () => {
  const limits = { tunnels: 10_000, tunnelsPerHost: 512 }
  const plenty = { memory: 64 * 1_024 * MIB }
  assert.deepEqual(tunnelShare(plenty, 1, limits), limits)
  assert.deepEqual(tunnelShare(plenty, 4, limits), { tunnels: 10_000, tunnelsPerHost: 128 })
  assert.equal(tunnelShare(plenty, 64, limits).tunnelsPerHost, 16)
  assert.equal(tunnelShare(plenty, 64, { ...limits, tunnelsPerHost: 3 }).tunnelsPerHost, 3)
  assert.equal(tunnelShare({ memory: 1_024 * MIB }, 2, limits).tunnels, 1_024)
})
