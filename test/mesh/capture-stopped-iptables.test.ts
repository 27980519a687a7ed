/**
 * What a stopped or killed daemon leaves behind, by iptables.
 */
import { testStopped } from './stopped-daemon.ts'

testStopped('iptables')
