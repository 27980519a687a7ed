"""Runs a command for which AF_INET6 sockets do not exist, as where the kernel was built or booted without IPv6.

A seccomp filter answers socket(AF_INET6, ...) with EAFNOSUPPORT, on x86-64 and arm64.
"""
import ctypes
import os
import platform
import struct
import sys

SOCKET = {'x86_64': 41, 'aarch64': 198}[platform.machine()]
AF_INET6, EAFNOSUPPORT = 10, 97
LOAD, EQUALS, RETURN = 0x20, 0x15, 0x06
ERRNO, ALLOW = 0x00050000, 0x7FFF0000
NUMBER, FIRST_ARGUMENT = 0, 16
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2

steps = [
    (LOAD, 0, 0, NUMBER),
    (EQUALS, 0, 3, SOCKET),
    (LOAD, 0, 0, FIRST_ARGUMENT),
    (EQUALS, 0, 1, AF_INET6),
    (RETURN, 0, 0, ERRNO | EAFNOSUPPORT),
    (RETURN, 0, 0, ALLOW),
]
program = b''.join(struct.pack('HBBI', code, yes, no, value) for code, yes, no, value in steps)
buffer = ctypes.create_string_buffer(program)


class Filter(ctypes.Structure):
    _fields_ = [('length', ctypes.c_ushort), ('steps', ctypes.c_void_p)]


libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
whole = Filter(len(steps), ctypes.addressof(buffer))
if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(whole), 0, 0) != 0:
    sys.exit(f'prctl: {os.strerror(ctypes.get_errno())}')
os.execvp(sys.argv[1], sys.argv[1:])
