/**
 * Station `caller`: which local service calls, and how it is recognized; or that the caller is not on this host.
 */
import type { HostFacts } from '../../model/facts.ts'
import type { LocalService } from '../../model/service.ts'
import type { Asked, Draft } from './draft.ts'
import { selectorText } from './words.ts'

/** Whether `name` is the name of this local service or the id of the instance. */
export function isCalled(service: LocalService, name: string): boolean {
  return service.name === name || service.id === name
}

/** For a local caller. `callers` are all matching instances, `caller` is the one that is explained. */
export function describeCaller(
  draft: Draft,
  callers: readonly LocalService[],
  caller: LocalService,
): void {
  const { name, id, selector, capturePort } = caller
  const who = id === name ? name : `${name} (instance ${id})`
  const others = callers.filter((other) => other !== caller).map((other) => other.id)
  const details = others.length === 0 ? [] : [`Also on this host: ${others.join(', ')}`]
  if (selector === undefined && capturePort !== undefined)
    draft.station(
      'caller',
      'good',
      `${who}, whom every local process without an identity is taken for, capture port ${capturePort}`,
      details,
    )
  else if (selector === undefined)
    draft.station('caller', 'good', `${who}, recognized by the upstream ports it dials`, details)
  else
    draft.station(
      'caller',
      'good',
      `${who}, recognized by ${selectorText(selector)}, capture port ${capturePort}`,
      details,
    )
}

/** For a caller on another host and a destination on this one. */
export function describeRemoteCaller(draft: Draft, facts: HostFacts, from: string): void {
  draft.station(
    'caller',
    'none',
    `${from} is not on ${facts.node}; it proves who it is by its certificate`,
    [`How it gets here is decided on its own host: ask there for ${from} as well`],
  )
}

/** For a caller and a destination that are both not on this host. */
export function describeUnknownCaller(draft: Draft, facts: HostFacts, asked: Asked): void {
  const { from, to } = asked
  const names = [...new Set(facts.local.map((service) => service.name))].join(', ')
  draft.station('caller', 'bad', `No service ${from} runs on ${facts.node}`, [
    `Services of this host: ${names || 'none'}`,
  ])
  draft.fail(
    'unknownCaller',
    `Neither ${from} nor the destination ${to} is on ${facts.node}`,
    `Ask on the host that runs ${from}: it knows how ${from} is recognized and where it is sent`,
  )
}
