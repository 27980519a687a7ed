/**
 * The subjects by name, as the round robin takes them.
 */
import type { SubjectName } from '../subject-names.ts'
import { direct } from './direct.ts'
import { envoyHttp2, envoyTls } from './envoy.ts'
import { haproxy } from './haproxy.ts'
import {
  hostmeshCapture,
  hostmeshCaptureInstance,
  hostmeshTwoWorkers,
  hostmeshUpstream,
} from './hostmesh.ts'
import { nginx } from './nginx.ts'
import type { Subject } from './subject.ts'
import { ztunnel } from './ztunnel.ts'

/** Every subject. */
export const ALL_SUBJECTS: Readonly<Record<SubjectName, Subject>> = {
  direct,
  haproxy,
  nginx,
  'envoy-tls': envoyTls,
  'envoy-h2': envoyHttp2,
  ztunnel,
  'hostmesh-capture': hostmeshCapture,
  'hostmesh-capture-instance': hostmeshCaptureInstance,
  'hostmesh-upstream': hostmeshUpstream,
  'hostmesh-upstream-2w': hostmeshTwoWorkers,
}
