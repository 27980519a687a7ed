/**
 * The subjects by name, as the round robin takes them.
 */
import type { SubjectName } from '../subject-names.ts'
import { direct } from './direct.ts'
import { envoyHttp2, envoyTls } from './envoy.ts'
import { haproxy } from './haproxy.ts'
import { hostmeshCapture, hostmeshTwoWorkers, hostmeshUpstream } from './hostmesh.ts'
import { nginx } from './nginx.ts'
import type { Subject } from './subject.ts'

/** Every subject. */
export const ALL_SUBJECTS: Readonly<Record<SubjectName, Subject>> = {
  direct,
  haproxy,
  nginx,
  'envoy-tls': envoyTls,
  'envoy-h2': envoyHttp2,
  'hostmesh-capture': hostmeshCapture,
  'hostmesh-upstream': hostmeshUpstream,
  'hostmesh-upstream-2w': hostmeshTwoWorkers,
}
