"""Two hosts on one machine: namespaces of network, processes, mounts and names, joined by a cable of their own.

Each host has its own loopback, one interface ``eth0``, its own process table, shared memory, host name and ssh server;
the disk is shared, as between the nodes of a cluster. Everything lives below one ``unshare`` a host, which the system
kills with this process (``PR_SET_PDEATHSIG``) and which takes all of the host with it: whatever happens, nothing stays.
No packet leaves: the hosts know no other network than their cable.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

NEEDED = ("setpriv", "unshare", "nsenter", "ip", "mount", "ssh", "ssh-keygen", "sshd", "pdsh")
NAMES = ("node-a", "node-b")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = 2222
BOUND_SECONDS = 60.0
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
# not preexec_fn, which copies this process's address space: a test process's may be larger than the memory
_DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")

# runs inside of the new namespaces; the real ones stay as they are, since no mount there is seen outside
_BOOT = """
set -e
cd {folder}
hostname {name}
mount --bind passwd /etc/passwd
mount --bind hosts /etc/hosts
mount -t tmpfs none /run
mkdir -p /run/sshd
mount -t tmpfs none /dev/shm
ip link set lo up
touch up-{name}
until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
ip address add {address}/24 dev eth0
ip link set eth0 up
exec {sshd} -D -e -f {folder}/sshd_config
"""
_SSHD = """
Port {port}
ListenAddress 0.0.0.0
HostKey {folder}/host_key
PidFile none
AuthorizedKeysFile {home}/.ssh/authorized_keys
PasswordAuthentication no
UsePAM no
StrictModes no
UseDNS no
MaxStartups 100
"""
_SSH = """
Host *
    Port {port}
    IdentityFile {home}/.ssh/id_ed25519
    IdentitiesOnly yes
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    LogLevel ERROR
    ServerAliveInterval 5
    ServerAliveCountMax 2
"""


def missing() -> str | None:
    """Why two hosts cannot be made here; None where they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    absent = [name for name in NEEDED if shutil.which(name, path=_PATH) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian: iproute2 openssh-server openssh-client pdsh)"
    trial = subprocess.run(
        ["unshare", "--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "--mount-proc", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"namespaces are not allowed: {trial.stderr.strip()}" if trial.returncode else None


class Hosts:
    """Two hosts that reach each other by name, and by ssh without a password.

    Args:
        folder: for keys, a home and configurations.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._roots: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Hosts:
        try:
            self._write()
            for name, address in zip(NAMES, ADDRESSES, strict=True):
                self._roots.append(self._boot(name, address))
                until((self.folder / f"up-{name}").exists)
            # anonymous namespaces: they, and the cable, end with their last process
            first, second = (str(self._inside(number).pid) for number in range(2))
            cable = ["link", "add", "eth0", "netns", first, "type", "veth", "peer", "name", "eth0", "netns", second]
            subprocess.run(["ip", *cable], check=True, env={"PATH": _PATH})
            for number, name in enumerate(NAMES):
                until(lambda number=number, name=name: self.run(number, ["ssh", name, "true"]).returncode == 0)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for root in self._roots:
            root.kill()
            root.wait()

    def start(self, number: int, command: Sequence[str], folder: Path, output: Path) -> subprocess.Popen[bytes]:
        """Starts a command on a host.

        Args:
            number: which host, 0 or 1.
            command: program and arguments.
            folder: working folder.
            output: file that standard output and error go to.
        """
        with output.open("wb") as file:
            return subprocess.Popen(
                [*_DIE_WITH_PARENT, *self._entered(number, ["env", "-C", str(folder), *command])],
                env=self._environment(),
                stdout=file,
                stderr=file,
            )

    def run(self, number: int, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Runs a command on a host to its end."""
        return subprocess.run(
            self._entered(number, command), env=self._environment(), capture_output=True, text=True, check=False
        )

    def cut(self) -> None:
        """Pulls the cable out of the second host."""
        assert self.run(1, ["ip", "link", "set", "eth0", "down"]).returncode == 0

    def mend(self) -> None:
        """Puts it back."""
        assert self.run(1, ["ip", "link", "set", "eth0", "up"]).returncode == 0

    def processes(self, number: int) -> list[psutil.Process]:
        """What runs on a host, its ssh server included."""
        return self._inside(number).children(recursive=True)

    def _inside(self, number: int) -> psutil.Process:
        (first,) = psutil.Process(self._roots[number].pid).children()
        return first

    def _entered(self, number: int, command: Sequence[str]) -> list[str]:
        spaces = ["--net", "--pid", "--mount", "--uts", "--ipc"]
        return ["nsenter", "--target", str(self._inside(number).pid), *spaces, "--", *command]

    def _environment(self) -> Mapping[str, str]:
        return {**os.environ, "PATH": _PATH, "HOME": str(self.folder / "home")}

    def _boot(self, name: str, address: str) -> subprocess.Popen[bytes]:
        sshd = shutil.which("sshd", path=_PATH)
        script = _BOOT.format(folder=self.folder, name=name, address=address, sshd=sshd)
        spaces = ["--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [*_DIE_WITH_PARENT, "unshare", *spaces, "bash", "-c", script],
                env={"PATH": _PATH},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _write(self) -> None:
        home = self.folder / "home"
        (home / ".ssh").mkdir(parents=True)
        (home / ".cache").symlink_to(Path.home() / ".cache")  # compiled operators
        for path in (home / ".ssh/id_ed25519", self.folder / "host_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
        shutil.copy(home / ".ssh/id_ed25519.pub", home / ".ssh/authorized_keys")
        (home / ".ssh/config").write_text(_SSH.format(port=PORT, home=home))
        (home / ".ssh/config").chmod(0o600)
        (home / ".ssh").chmod(0o700)
        (self.folder / "sshd_config").write_text(_SSHD.format(port=PORT, folder=self.folder, home=home))
        # ssh takes its home from here, not from HOME
        accounts = Path("/etc/passwd").read_text().splitlines()
        fields = [line.split(":") for line in accounts]
        moved = [[*parts[:5], str(home), "/bin/bash"] if parts[0] == "root" else parts for parts in fields]
        (self.folder / "passwd").write_text("".join(":".join(parts) + "\n" for parts in moved))
        names = "".join(f"{address} {name}\n" for address, name in zip(ADDRESSES, NAMES, strict=True))
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")


def until(condition: Callable[[], bool], seconds: float = BOUND_SECONDS) -> None:
    """Waits for a condition, for a generous while."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
