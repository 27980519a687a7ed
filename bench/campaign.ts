/**
 * One run of the benchmark: builds a stage for every subject, takes the samples in rounds, one subject
 * after the other in each, so that whatever else the machine does meets all of them alike, and takes
 * everything down again. A subject that fails does not stop the others.
 */
import { existsSync } from 'node:fs'
import { chmod, mkdtemp, open, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describeError } from '../src/lib/errors.ts'
import { describeEnvironment, environmentLines } from './environment.ts'
import { writeWrkScripts } from './load/wrk.ts'
import { type Sample, toRows } from './measure/statistics.ts'
import type { RunOptions } from './options.ts'
import { Progress } from './progress.ts'
import { scenarioTable } from './report/text.ts'
import type { Failure, Results } from './results.ts'
import { SCENARIOS, type ScenarioName } from './scenario-names.ts'
import { SCENARIO_SAMPLERS, type Scenario } from './scenarios.ts'
import { BULK_BYTES } from './site/backend.ts'
import { createPeerCertificates } from './site/certificates.ts'
import { requireRights, sweepStaleNamespaces } from './site/namespaces.ts'
import { type RunFiles, Stage } from './site/stage.ts'
import { requireTool } from './site/tools.ts'
import type { SubjectName } from './subject-names.ts'
import { ALL_SUBJECTS } from './subjects/all.ts'

const DIRECTORY_PREFIX = 'hostmesh-bench-'

/** Failed samples after which a subject is left out of the rest of a scenario. */
const FAILURES_PER_SCENARIO = 2

/** Share of a sample's length that the unmeasured round takes. */
const WARM_UP_SHARE = 0.35

/** Load average above which the figures are not worth much. */
const QUIET_LOAD = 0.7

/** Makes the run. Rejects with the signal's reason when it is aborted; everything is taken down then too. */
export async function runCampaign(options: RunOptions, signal: AbortSignal): Promise<Results> {
  requireRights()
  for (const tool of ['wrk', 'curl', 'nginx', 'openssl', 'setpriv', 'prlimit', 'getconf'])
    requireTool(tool)
  await sweepStaleNamespaces()
  await sweepStaleDirectories()
  await using owned = new AsyncDisposableStack()
  const files = await createRunFiles(options, owned)
  return await new Campaign(options, files, signal, owned).run()
}

/** Removes the files of runs that were killed. */
async function sweepStaleDirectories(): Promise<void> {
  for (const name of await readdir(tmpdir())) {
    const pid = /^hostmesh-bench-(\d+)-/.exec(name)?.[1]
    if (pid !== undefined && !existsSync(`/proc/${pid}`))
      await rm(join(tmpdir(), name), { recursive: true, force: true })
  }
}

async function createRunFiles(options: RunOptions, owned: AsyncDisposableStack): Promise<RunFiles> {
  const directory = await mkdtemp(join(tmpdir(), `${DIRECTORY_PREFIX}${process.pid}-`))
  owned.defer(() => rm(directory, { recursive: true, force: true }))
  // The load of the captured subject is not root and must find wrk's scripts.
  await chmod(directory, 0o755)
  await writeWrkScripts(directory)
  const bulkFile = join(directory, 'bulk')
  await writeBulkFile(bulkFile)
  return {
    directory,
    bulkFile,
    certificates: await createPeerCertificates(directory),
    profileDirectory: options.profileDirectory,
  }
}

/** A real file, not a sparse one: the pages that sendfile gives out are then different memory. */
async function writeBulkFile(path: string): Promise<void> {
  const chunk = Buffer.alloc(4 * 1024 * 1024, 'hostmesh bench bulk file ')
  const file = await open(path, 'w', 0o644)
  try {
    for (let written = 0; written < BULK_BYTES; written += chunk.length) await file.write(chunk)
  } finally {
    await file.close()
  }
}

class Campaign {
  readonly #options: RunOptions
  readonly #files: RunFiles
  readonly #signal: AbortSignal
  readonly #owned: AsyncDisposableStack
  readonly #samples: Sample[] = []
  readonly #failures: Failure[] = []
  /** Stages of which a hop or the backend has ended: nothing more can be measured there. */
  readonly #lost = new Set<Stage>()

  constructor(
    options: RunOptions,
    files: RunFiles,
    signal: AbortSignal,
    owned: AsyncDisposableStack,
  ) {
    this.#options = options
    this.#files = files
    this.#signal = signal
    this.#owned = owned
  }

  async run(): Promise<Results> {
    const { absent, present } = this.#lookAround()
    const environment = await describeEnvironment(present.map((name) => ALL_SUBJECTS[name]))
    say(`${environmentLines(environment).join('\n')}\n`)
    for (const [name, reason] of Object.entries(absent)) say(`absent     ${name}: ${reason}\n`)
    if (environment.loadBefore > QUIET_LOAD)
      say(
        `note       this machine is busy (load ${environment.loadBefore}): do not trust the figures\n`,
      )
    const stages = await this.#buildStages(present)
    await this.#measure(stages)
    return {
      header: {
        environment,
        rounds: this.#options.rounds,
        absent,
        failures: this.#failures,
      },
      rows: toRows(this.#samples),
    }
  }

  #lookAround(): {
    readonly absent: Partial<Record<SubjectName, string>>
    readonly present: readonly SubjectName[]
  } {
    const absent: Partial<Record<SubjectName, string>> = {}
    const present: SubjectName[] = []
    for (const name of this.#options.subjects) {
      const reason = ALL_SUBJECTS[name].absent()
      if (reason === undefined) present.push(name)
      else absent[name] = reason
    }
    return { absent, present }
  }

  async #buildStages(names: readonly SubjectName[]): Promise<readonly Stage[]> {
    const stages: Stage[] = []
    for (const [index, name] of names.entries()) {
      process.stderr.write(`starting ${name}\n`)
      try {
        const stage = await Stage.build(ALL_SUBJECTS[name], index, this.#files, this.#signal)
        stages.push(this.#owned.use(stage))
      } catch (error) {
        this.#signal.throwIfAborted()
        this.#fail({ subject: name, scenario: null, message: describeError(error) })
      }
    }
    return stages
  }

  async #measure(stages: readonly Stage[]): Promise<void> {
    const plans = this.#options.scenarios.map((name) => this.#plan(name))
    const steps = plans.flatMap((plan) => plan.rounds)
    const progress = new Progress(
      steps.length * stages.length,
      steps.reduce((sum, round) => sum + round.plannedSeconds, 0) * stages.length,
    )
    for (const plan of plans) {
      await this.#measureScenario(plan, stages, progress)
      progress.clear()
      say(scenarioTable(plan.name, toRows(this.#samples)))
    }
  }

  #plan(name: ScenarioName): Plan {
    const scenario = SCENARIO_SAMPLERS[name]
    const seconds = scenario.seconds * this.#options.lengthFactor
    const measured = Math.min(this.#options.rounds, scenario.maxRounds)
    const rounds: Round[] = []
    if (scenario.warmUp) rounds.push(roundOf('warm-up', seconds * WARM_UP_SHARE, scenario))
    for (let number = 1; number <= measured; number += 1)
      rounds.push(roundOf(`round ${number} of ${measured}`, seconds, scenario))
    return { name, scenario, rounds }
  }

  async #measureScenario(plan: Plan, stages: readonly Stage[], progress: Progress): Promise<void> {
    const failed = new Map<Stage, number>()
    for (const each of plan.rounds)
      for (const stage of stages) {
        progress.next(`${SCENARIOS[plan.name].title}, ${each.title}: ${stage.subject.name}`)
        const failures = failed.get(stage) ?? 0
        if (!this.#lost.has(stage) && failures < FAILURES_PER_SCENARIO)
          if (!(await this.#sample(plan, each, stage, progress))) failed.set(stage, failures + 1)
        progress.done(each.plannedSeconds)
      }
  }

  /** Takes one sample; false when it failed. */
  async #sample(plan: Plan, each: Round, stage: Stage, progress: Progress): Promise<boolean> {
    try {
      stage.check()
      const reading = await plan.scenario.sample(stage, each.seconds)
      stage.check()
      if (each.isMeasured)
        this.#samples.push({ scenario: plan.name, subject: stage.subject.name, reading })
      await stage.backend.quiet(this.#signal)
      return true
    } catch (error) {
      this.#signal.throwIfAborted()
      progress.clear()
      if (!stage.isAlive) this.#lost.add(stage)
      this.#fail(
        { subject: stage.subject.name, scenario: plan.name, message: describeError(error) },
        stage.logTails(),
      )
      return false
    }
  }

  #fail(failure: Failure, logs = ''): void {
    const where = failure.scenario === null ? 'start' : failure.scenario
    say(`\nFAILED ${failure.subject}, ${where}: ${failure.message}\n${logs}\n`)
    // The results keep the first line; the logs were shown.
    this.#failures.push({ ...failure, message: failure.message.split('\n')[0] ?? '' })
  }
}

interface Round {
  readonly title: string
  readonly isMeasured: boolean
  readonly seconds: number
  readonly plannedSeconds: number
}

interface Plan {
  readonly name: ScenarioName
  readonly scenario: Scenario
  readonly rounds: readonly Round[]
}

function roundOf(title: string, seconds: number, scenario: Scenario): Round {
  return {
    title,
    isMeasured: title !== 'warm-up',
    seconds,
    plannedSeconds: seconds + scenario.overheadSeconds,
  }
}

function say(text: string): void {
  process.stdout.write(text)
}
