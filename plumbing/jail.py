"""Run one untrusted program against tests that it never sees. Standard library; Linux and macOS.

    runner.py -> keeper -> checker     the tests; in them the function is a call over a pipe
                              -> program     the code; calls come in, values go out

The program's process exists before the tests are read. What it says becomes a value of plain types,
and whether that is right the checker decides, on a pipe that the program does not have: exit codes,
a patched assert, __eq__ and forged lines prove nothing. The checker is process 1 of a namespace,
the program of another inside: they, and all that the program has started, end with the keeper.
"""
# ruff: noqa: BLE001, S102, SIM115 (it runs what may raise anything; its pipes last as long as it)
import ctypes
import itertools
import json
import os
import resource
import signal
import struct
import sys
import types

LAYERS = ("namespaces", "SHM", "mounts", "CPU", "AS", "FSIZE", "NOFILE", "CORE", "no privileges",
          "Landlock", "seccomp", "NPROC")
LIBRARY = os.path.dirname(os.__file__)
READ = [folder for folder in (f"{sys.base_prefix}/lib", LIBRARY, "/lib", "/lib64", "/usr/lib",
                              "/usr/lib64") if os.path.isdir(folder)]
# installed packages, which programs do not have
HIDDEN = (f"{LIBRARY}/site-packages", f"{LIBRARY}/dist-packages", "/usr/lib/python3/dist-packages")
ROOT = "/sys"               # where a program's root is mounted, seen by nobody else
USERS = range(60_578, 61_184)   # that are nobody, as systemd's UIDS-GIDS has them
LINE = 2**20                # bytes of a call or a value, at most
KINDS = {"tuple": tuple, "set": set, "frozenset": frozenset, "bytes": bytes, "dict": dict,
         "iterator": iter}
# linux/sched.h, mount.h, prctl.h, signal.h
NEWNS, NEWIPC, NEWUSER, NEWPID, NEWNET = 1 << 17, 1 << 27, 1 << 28, 1 << 29, 1 << 30
NOSUID, NODEV, NOEXEC, BIND, REC, PRIVATE = 2, 4, 8, 1 << 12, 1 << 14, 1 << 18
PDEATHSIG, DUMPABLE, SECCOMP, NO_NEW_PRIVS, KILL = 1, 4, 22, 38, 9
# linux/audit.h, unistd.h: a machine's name for itself; socket, add_key, request_key, keyctl
MACHINES = {"x86_64": (0xC000003E, 41, 248, 249, 250), "aarch64": (0xC00000B7, 198, 217, 218, 219)}


def call(name, *args):
    """A function of the C library. Raises OSError, or AttributeError where there is none."""
    as_c = {int: ctypes.c_ulong, str: str.encode}
    args = [as_c[type(x)](x) if type(x) in as_c else x for x in args]
    result = getattr(ctypes.CDLL(None, use_errno=True), name)(*args)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


def write(path, text):
    with open(path, "w") as f:
        f.write(text)


# ---- layers -------------------------------------------------------------------------------------

def namespaces():
    """No network, no other's shared memory and, in what is forked, no other's processes. Only root
    may have these; anybody is root in a namespace of users."""
    uid, gid = os.geteuid(), os.getegid()
    call("unshare", NEWNS | NEWIPC | NEWPID | NEWNET | (NEWUSER if uid else 0))
    ids = {"setgroups": "deny", "uid_map": f"0 {uid} 1", "gid_map": f"0 {gid} 1"}
    for name, text in ids.items() if uid else ():
        write(f"/proc/self/{name}", text)


def mounts(megabytes):
    """A root of Python's own folders, read-only, and /work, which is empty and in memory."""
    call("mount", "none", "/", "", REC | PRIVATE, "")
    call("mount", "none", ROOT, "tmpfs", NOSUID | NODEV, "mode=755,size=1m")
    for folder in READ:
        os.makedirs(ROOT + folder, exist_ok=True)
        call("mount", folder, ROOT + folder, "", BIND | REC, "")
    for folder in HIDDEN:
        if os.path.isdir(ROOT + folder):
            call("mount", "none", ROOT + folder, "tmpfs", NOSUID | NODEV, "mode=755,size=4k")
    os.mkdir(f"{ROOT}/work")
    # mount_setattr on all of it: MOUNT_ATTR_RDONLY, NOSUID and NODEV
    call("syscall", 442, -1, ROOT, 0x8000, struct.pack("4Q", 1 | 2 | 4, 0, 0, 0), 32)
    call("mount", "none", f"{ROOT}/work", "tmpfs", NOSUID | NODEV | NOEXEC,
         f"mode=700,nr_inodes=1k,size={megabytes}m")


def no_privileges(uid):
    """As root, become user `uid`. No capabilities, none to be gained; memory that the user's others
    cannot see; an end with the keeper's."""
    try:
        if uid is not None:
            os.chown(".", uid, uid)
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
    finally:
        call("capset", struct.pack("Ii", 0x20080522, 0), bytes(24))
        for option, value in ((NO_NEW_PRIVS, 1), (DUMPABLE, 0), (PDEATHSIG, KILL)):
            call("prctl", option, value, 0, 0, 0)


def landlock():
    """Python's own files can be read, those in this folder also made, written and removed. No TCP
    and, from ABI 6 on, no signals to others and no abstract sockets."""
    abi = call("syscall", 444, None, 0, 1)
    rights = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1
    tcp, others = (3 if abi >= 4 else 0), (3 if abi >= 6 else 0)
    ruleset = call("syscall", 444, struct.pack("3Q", rights, tcp, others), 24, 0)
    read = 1 | 4 | 8                                        # execute, read a file, a folder
    change = 2 | 4 | 8 | 1 << 5 | 1 << 8 | 1 << 14          # write, read, remove, make, truncate
    for folder, allowed in [(".", change), *((folder, read) for folder in READ)]:
        fd = os.open(folder, os.O_RDONLY)
        call("syscall", 445, ruleset, 1, struct.pack("=Qi", allowed & rights, fd), 0)
        os.close(fd)
    call("syscall", 446, ruleset, 0)
    os.close(ruleset)


def seccomp():
    """What no namespace holds: no kernel keyrings, which whoever is logged in shares with all that
    he starts, and no sockets of families above netlink's, as those to other virtual machines. No
    io_uring, which would open them unseen."""
    machine, socket, *keys = MACHINES.get(os.uname().machine, ())
    load, equal, at_least, more, end = 0x20, 0x15, 0x35, 0x25, 0x06
    denied = [(equal, x) for x in (*keys, 425)] + [(at_least, 1 << 30)]     # x32's are from there
    # linux/filter.h: each a code, how many to skip if true, if false, and a number
    n = len(denied)
    code = [(load, 0, 0, 4), (equal, 0, n + 4, machine), (load, 0, 0, 0),
            *((test, n + 2 - i, 0, x) for i, (test, x) in enumerate(denied)),
            (equal, 0, 3, socket), (load, 0, 0, 16), (more, 0, 1, 16),
            (end, 0, 0, 0x50001), (end, 0, 0, 0x7FFF0000)]                  # EPERM, or allowed
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *x) for x in code))
    call("prctl", SECCOMP, 2, struct.pack("HP", len(code) // 8, ctypes.addressof(code)), 0, 0)


def layer(on, job, name, enter, *args):
    """Enter a layer and note it. Where the system lacks it, it stays off, or, if the job is to have
    it, raises."""
    try:
        enter(*args)
        on.append(name)
    except (OSError, AttributeError, ValueError):
        if name in job["layers"]:
            raise


def limit(on, job, **limits):
    for name, most in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        layer(on, job, name, resource.setrlimit, kind, (most, most))


# ---- processes ----------------------------------------------------------------------------------

def tagged(x):
    """A value as JSON; what JSON lacks becomes {its kind: its items}, any other object what it
    iterates over. Raises TypeError."""
    if x is None or isinstance(x, (bool, int, float, str)):
        return x
    if isinstance(x, list):
        return [tagged(item) for item in x]
    kind = next(name for name in KINDS if name == "iterator" or isinstance(x, KINDS[name]))
    items = itertools.islice(x.items() if kind == "dict" else x, LINE)
    return {kind: [tagged(item) for item in items]}


def untagged(found):
    [(kind, items)] = found.items()
    return KINDS[kind](items)


def send(pipe, *message):
    pipe.write(json.dumps(message).encode() + b"\n")


def receive(pipe):
    return json.loads(pipe.readline(LINE), object_hook=untagged)


def fork(run, *args):
    """Have a process run(*args), and end."""
    pid = os.fork()
    if pid == 0:
        try:
            run(*args)
        except BaseException as e:
            os.write(2, repr(e).encode())
        finally:
            os._exit(1)
    return pid


def run_program(job, on, calls, answers):
    """Load the code and answer calls, until there are no more."""
    os.setsid()
    for fd in set(range(3, 64)) - {calls, answers}:
        os.closerange(fd, fd + 1)               # which does not mind if it is closed
    if "no privileges" in on:
        call("prctl", PDEATHSIG, KILL)
    if "Landlock" in on:
        landlock()                              # of its own: the checker is outside
    # In a namespace keeper, checker and program count, and what that starts. Elsewhere all of the
    # user's processes would: there it starts none.
    limit(on, job, NPROC=job["processes"] + 3 if "namespaces" in on else 0)
    calls, answers = open(calls, "rb"), open(answers, "wb", buffering=0)
    module = sys.modules["program"] = types.ModuleType("program")
    names = vars(module)
    acts = {"load": lambda: exec(job["program"], names),
            "call": lambda *args: names[job["entry_point"]](*args),
            "test": lambda tests, token: [exec(tests, names), token][1]}
    send(answers, "ready", on)
    while True:
        act, *args = receive(calls)
        try:
            send(answers, "value", tagged(acts[act](*args)))
        except BaseException as e:
            send(answers, "raised", type(e).__name__)


def start_program(job, on):
    """Enter all layers and start the program -> its process, the pipes to it and from it."""
    (calls, to_program), (from_program, answers) = os.pipe(), os.pipe()
    if "namespaces" in on:
        call("unshare", NEWPID)
    if "mounts" in on:
        os.chroot(ROOT)
    os.chdir("/work" if "mounts" in on else job["folder"])
    limit(on, job, CPU=job["cpu"], AS=job["memory"] << 20, FSIZE=job["disk"] << 20, NOFILE=64,
          CORE=0)
    layer(on, job, "no privileges", no_privileges, job["uid"])
    layer(on, job, "Landlock", landlock)
    layer(on, job, "seccomp", seccomp)
    os.dup2(0, 2)
    program = fork(run_program, job, on, calls, answers)
    os.close(answers)
    return program, open(to_program, "wb", buffering=0), open(from_program, "rb")


def run_checker(job, on, hidden, report):
    """Run the hidden tests, in which the function asks the program, and report [verdict, why,
    layers]."""
    program, to_program, from_program = start_program(job, on)

    def finish(verdict, why=""):
        signal.alarm(0)
        os.kill(program, KILL)
        _, _, used = os.wait4(program, 0)
        if verdict == "gone":
            # by its limit, which counts in ticks: on a busy machine it comes early
            is_limit = used.ru_utime + used.ru_stime > job["cpu"] / 2
            verdict = "timeout" if is_limit else "error"
        os.write(report, json.dumps([verdict, why, on]).encode())
        os._exit(0)

    def ask(*message):
        try:
            send(to_program, *message)
            kind, value = receive(from_program)
        except Exception as e:
            finish("gone", f"it gave no value: {type(e).__name__}")
        if kind != "value":
            finish("error", f"it raised {str(value)[:99]}")
        return value

    signal.signal(signal.SIGALRM, lambda *_: finish("timeout", f"{job['wall']} s"))
    signal.alarm(job["wall"])
    [_, on] = receive(from_program)             # until then nothing is the program's fault
    sources, whole = json.loads(hidden.read())
    ask("load")
    if whole:
        token = os.urandom(16).hex()
        finish("pass" if ask("test", sources[-1], token) == token else "wrong")
    names = {}
    try:
        for source in sources:
            exec(source, names)
            names[job["entry_point"]] = lambda *args: ask("call", *map(tagged, args))
    except BaseException as e:
        finish("wrong", type(e).__name__)
    finish("pass")


def main():
    """The keeper."""
    hidden = open(os.dup(0), "rb", buffering=0)     # of which no byte is read too early
    report, nothing = os.dup(1), os.open(os.devnull, os.O_RDWR)
    job, on = json.loads(hidden.readline()), []
    for fd in (0, 1):
        os.dup2(nothing, fd)
    os.umask(0o022)
    # programs of one user would share its limit of processes
    job["uid"] = USERS[job["number"] % len(USERS)] if os.geteuid() == 0 else None
    layer(on, job, "namespaces", namespaces)
    if "namespaces" in on:
        # System V's segments, which no limit counts
        layer(on, job, "SHM", write, "/proc/sys/kernel/shmall", "0")
        layer(on, job, "mounts", mounts, job["disk"])
    _, status, used = os.wait4(fork(run_checker, job, on, hidden, report), 0)
    if status and used.ru_utime + used.ru_stime > job["cpu"] / 2:
        os.write(report, json.dumps(["timeout", "its values keep the tests busy", []]).encode())


if __name__ == "__main__":
    main()
