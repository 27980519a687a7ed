/**
 * Capture by iptables-legacy on a real kernel.
 */
import { testRules } from './iptables-rules.ts'

testRules('legacy')
