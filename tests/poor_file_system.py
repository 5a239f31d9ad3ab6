"""`python poor_file_system.py COMMAND…`: run a command for which the kernel refuses what poorer file systems lack.

Hard links (FAT, network folders: EPERM), flock (some clusters: ENOSYS), opening a folder to sync it (CIFS: EACCES).
"""

import ctypes
import errno
import os
import platform
import struct
import sys

# The numbers of the system calls by machine: link and linkat, flock, openat.
CALLS = {"x86_64": ([86, 265], 73, 257), "aarch64": ([37], 32, 56)}
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06  # of the kernel's filter programs
ALLOW, REFUSE = 0x7FFF0000, 0x00050000
CALL, THIRD_ARGUMENT = 0, 32  # offsets of what is loaded
SET_SECCOMP, FILTER, NO_NEW_PRIVILEGES = 22, 2, 38


def restrict() -> None:
    """For this process and all that it starts. Listing a folder opens it with other flags than syncing it does."""
    links, flock, openat = CALLS[platform.machine()]
    program = [(LOAD, 0, 0, CALL)]
    for number, answer in [*((link, errno.EPERM) for link in links), (flock, errno.ENOSYS)]:
        program += [(EQUAL, 0, 1, number), (RETURN, 0, 0, REFUSE | answer)]
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    program += [(EQUAL, 0, 3, openat), (LOAD, 0, 0, THIRD_ARGUMENT), (EQUAL, 0, 1, flags)]
    program += [(RETURN, 0, 0, REFUSE | errno.EACCES), (RETURN, 0, 0, ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0
    assert libc.prctl(SET_SECCOMP, FILTER, header, 0, 0) == 0


if __name__ == "__main__":
    restrict()
    os.execv(sys.argv[1], sys.argv[1:])
