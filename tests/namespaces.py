"""Several machines on one: network namespaces with addresses of their own, joined by a bridge, and a Ray of them.

Each has processes and a view of the disk of its own, too. The nodes see neither the checkout nor the driver's home: an
empty folder is mounted there. The desk is the node that commands are typed on: it has both, and no CPUs for Ray. The
servers (MLflow, Prefect, an object store) stand beside the nodes, at the bridge's address.

Everything carries the process id of the test, and ends with it; what a killed test has left is ended by the next one.
"""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tasks.paths import ROOT

PYTHON = str(Path(sys.prefix).resolve() / "bin" / "python")
PORTS = {"gcs": 6379, "mlflow": 5000, "prefect": 4200, "s3": 9000}
KEYS = {"AWS_ACCESS_KEY_ID": "name", "AWS_SECRET_ACCESS_KEY": "hush", "AWS_DEFAULT_REGION": "us-east-1"}
START_S = 300.0
STORE_BYTES = 100_000_000  # of a node's object store
# Ray's own times are for networks that stutter: a minute each.
QUICK_HEAD = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}
QUICK_TRAIN = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20"}
FOREIGN = ("PREFECT_", "MLFLOW_", "RAY_", "CONVOY_", "AWS_", "PYTHON", "DVC_")

# $1: the node's /tmp/ray; $2: an empty folder; $3: the interpreter's folder; $4: what to hide, one a line
BOOT = """
set -e
mkdir -p /tmp/ray
mount --make-rprivate /
mount --bind "$1" /tmp/ray
mount --bind "$3" "$2"
printf '%s' "$4" | while read -r place; do mount -t tmpfs hidden "$place"; done
mkdir -p "$3"
mount --bind "$2" "$3"
exec sleep infinity
"""
COUNT_NODES = """
import sys, time
from ray._raylet import GcsClient
client = GcsClient(address=sys.argv[1])
while sum(info.state == 0 for info in client.get_all_node_info().values()) != int(sys.argv[2]):
    time.sleep(0.3)
"""


def ip(*arguments: str) -> str:
    """Run `ip`; raises RuntimeError with its words where it fails."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def hindrance() -> str:
    """Why there can be no namespaces here; "" where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        return "network namespaces need the commands ip (iproute2) and unshare (util-linux)"
    name = f"convoy-{os.getpid()}-0"
    try:
        ip("netns", "add", name)
        try:
            ip("link", "add", f"cvh{os.getpid()}.0", "type", "veth", "peer", "name", "eth0", "netns", name)
        finally:
            ip("netns", "delete", name)
    except RuntimeError as error:
        return f"network namespaces are not allowed here: {error}"
    return ""


def processes_in(namespace: str) -> list[psutil.Process]:
    """Living processes of a namespace."""
    found = []
    for pid in ip("netns", "pids", namespace).split():
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(int(pid))
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def end_all(namespace: str) -> None:
    """Kill all that runs in a namespace, until nothing does."""
    while running := processes_in(namespace):
        for process in running:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(running, timeout=5)


def sweep(pid: int | None = None) -> None:
    """End the namespaces and bridges of a process, or of all processes that are gone."""

    def ended(owner: str) -> bool:
        return int(owner) == pid if pid is not None else not psutil.pid_exists(int(owner))

    for line in ip("netns", "list").splitlines():
        name = line.split()[0]
        match = re.fullmatch(r"convoy-(\d+)-\d+", name)
        if match and ended(match[1]):
            end_all(name)
            ip("netns", "delete", name)
    for owner in re.findall(r"\bcvb(\d+):", ip("-o", "link", "show", "type", "bridge")):
        if ended(owner):
            ip("link", "delete", f"cvb{owner}")


@dataclass
class Node:
    """One machine: its own network, processes, and view of the disk."""

    number: int
    address: str
    folder: Path
    hidden: tuple[Path, ...]
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    num_cpus: int = 0  # that Ray has of it
    first: int = 0  # the process that all others of this machine end with

    @property
    def namespace(self) -> str:
        return f"convoy-{os.getpid()}-{self.number}"

    @property
    def link(self) -> str:
        """The cable's end at the bridge."""
        return f"cvh{os.getpid()}.{self.number}"

    def plug_in(self, bridge: str) -> None:
        """Make the network: one interface beside `lo`."""
        ip("netns", "add", self.namespace)
        ip("link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        ip("link", "set", self.link, "master", bridge, "up")
        ip("-n", self.namespace, "link", "set", "lo", "up")
        ip("-n", self.namespace, "address", "add", f"{self.address}/24", "dev", "eth0")
        ip("-n", self.namespace, "link", "set", "eth0", "up")

    def boot(self) -> None:
        """Start the first process, which sees what this machine sees."""
        places = [self.folder / "ray", self.folder / "held"]
        for place in places:
            place.mkdir(parents=True, exist_ok=True)
        apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        hidden = "".join(f"{place}\n" for place in self.hidden)
        own = [*map(str, places), str(Path(PYTHON).parent.parent), hidden]
        outer = self.popen(["ip", "netns", "exec", self.namespace, *apart, "sh", "-c", BOOT, "sh", *own], {})
        end = time.monotonic() + 10
        while True:
            inner = [each for each in psutil.Process(outer.pid).children() if each.name() == "sleep"]
            if inner:
                break
            assert outer.poll() is None and time.monotonic() < end, (self.folder / "log").read_text()
            time.sleep(0.02)
        self.first = inner[0].pid

    def power_off(self) -> None:
        """End all processes at once."""
        end_all(self.namespace)
        for process in self.started:
            process.wait()
        self.started.clear()

    def cut(self) -> None:
        """Pull the cable."""
        ip("link", "set", self.link, "down")

    def mend(self) -> None:
        ip("link", "set", self.link, "up")

    def part_from(self, other: "Node") -> None:
        """Have all that is sent to one other machine go nowhere, without a word."""
        place = ["lladdr", "02:00:00:00:00:01", "dev", "eth0", "nud", "permanent"]
        ip("-n", self.namespace, "neighbour", "replace", other.address, *place)

    def popen(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        """Start a process that ends with this machine; what it says goes to `log` of its folder."""
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                command, env=environment or None, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.started.append(process)
        return process

    def command(self, *words: str, cwd: Path = Path("/")) -> list[str]:
        """The command that runs another one on this machine."""
        enter = ["nsenter", "--target", str(self.first), "--mount", "--pid", "--net"]
        return [*enter, "sh", "-c", 'cd "$0"; exec "$@"', str(cwd), *words]

    def processes(self, name: str = "") -> list[psutil.Process]:
        """Living processes of this machine but for its first; only those of a name."""
        found = []
        for process in processes_in(self.namespace):
            with suppress(psutil.NoSuchProcess):
                if name in ("", process.name()) and process.name() not in ("sleep", "unshare"):
                    found.append(process)
        return found

    def kill(self, name: str) -> int:
        """SIGKILL to the processes of a name; how many there were."""
        found = self.processes(name)
        for process in found:
            process.kill()
        return len(found)


@dataclass
class Machines:
    """Nodes on a bridge; the last one is the desk. A Ray of all of them, once it is started."""

    folder: Path
    home: Path
    nodes: list[Node]
    address: str  # of the bridge, and so of the servers
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    servers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def desk(self) -> Node:
        return self.nodes[-1]

    @property
    def ray_address(self) -> str:
        return f"{self.nodes[0].address}:{PORTS['gcs']}"

    def url(self, server: str) -> str:
        return f"http://{self.address}:{PORTS[server]}"

    def ray_environment(self) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        return {
            **own, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "RAY_USAGE_STATS_ENABLED": "0",
            "HOME": "/tmp/ray",
        }  # fmt: skip

    def environment(self, home: Path | None = None) -> dict[str, str]:
        """What is set where commands are typed: where everything is, and nothing else."""
        return {
            **self.ray_environment(), **QUICK_TRAIN, **KEYS, "RAY_ADDRESS": self.ray_address,
            "MLFLOW_TRACKING_URI": self.url("mlflow"),
            "PREFECT_API_URL": f"{self.url('prefect')}/api", "AWS_ENDPOINT_URL": self.url("s3"),
            "CONVOY_HOME": str(home or self.home), "PYTHONPATH": str(ROOT), "HOME": str(self.folder),
        }  # fmt: skip

    def join(self, node: Node, num_cpus: int) -> None:
        """Start Ray on a node; the first one is the head. Returns at once."""
        where = ["--head", "--port", str(PORTS["gcs"]), "--include-dashboard", "false"]
        if node is not self.nodes[0]:
            where = ["--address", self.ray_address]
        start = [
            PYTHON, "-m", "ray.scripts.scripts", "start", *where, "--block", "--node-ip-address", node.address,
            "--num-cpus", str(num_cpus), "--object-store-memory", str(STORE_BYTES), "--disable-usage-stats",
        ]  # fmt: skip
        node.num_cpus = num_cpus
        node.popen(node.command(*start), {**self.ray_environment(), **QUICK_HEAD})

    def start_ray(self, num_cpus: int = 1) -> None:
        """Start Ray on all nodes, and wait until they are together. The desk has no CPUs."""
        for node in self.nodes:
            self.join(node, 0 if node is self.desk else num_cpus)
            if node is self.nodes[0]:
                wait_for_port(*self.ray_address.split(":"))
        self.wait_for_nodes(len(self.nodes))

    def wait_for_nodes(self, number: int) -> None:
        """Return when so many nodes are alive. One that could not start in the 30 s that Ray gives it starts again."""
        count = [PYTHON, "-c", COUNT_NODES, self.ray_address, str(number)]
        end = time.monotonic() + START_S
        with subprocess.Popen(count, env=self.ray_environment(), cwd="/") as counting:
            try:
                while counting.poll() is None:
                    assert time.monotonic() < end, f"after {START_S:.0f} s there are not {number} nodes"
                    for node in self.nodes[1:]:
                        if node.started[-1].poll() is not None:
                            node.power_off()
                            node.boot()
                            self.join(node, node.num_cpus)
                    time.sleep(0.3)
            finally:
                counting.kill()
        assert counting.returncode == 0

    def boot_again(self) -> None:
        """Switch all machines off and on, and mend their cables."""
        for node in self.nodes:
            node.power_off()
            node.mend()
            node.boot()

    def popen(self, *words: str, home: Path | None = None) -> subprocess.Popen[str]:
        """Type a command of ours at the desk."""
        return subprocess.Popen(
            self.desk.command(PYTHON, "-m", "pipelines", *words, cwd=ROOT),
            env=self.environment(home), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip

    def serve(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        """Start a server at the bridge's address; returns at once."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        with (self.folder / f"{name}.log").open("wb") as log:
            self.servers.append(
                subprocess.Popen(
                    [PYTHON, *command],
                    env={**own, **environment},
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def start_servers(self) -> None:
        """Start MLflow, Prefect and an object store with the bucket `convoy`, and wait for them."""
        records = f"sqlite:///{self.folder}/mlflow.db"
        self.serve("mlflow", [
            "-m", "mlflow", "server", "--host", self.address, "--port", str(PORTS["mlflow"]), "--workers", "1",
            "--backend-store-uri", records, "--artifacts-destination", str(self.folder / "artifacts"),
            "--allowed-hosts", f"{self.address}:{PORTS['mlflow']}",
        ], {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"})  # fmt: skip
        self.serve("prefect", [
            "-m", "prefect", "server", "start", "--host", self.address, "--port", str(PORTS["prefect"]),
        ], {"PREFECT_HOME": str(self.folder / "prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"})  # fmt: skip
        self.serve("s3", [
            "-W", "ignore", "-m", "moto.server", "-H", self.address, "-p", str(PORTS["s3"]),
        ], KEYS)  # fmt: skip
        for name in ("mlflow", "prefect", "s3"):
            wait_for_port(self.address, str(PORTS[name]))
        bucket = urllib.request.Request(f"{self.url('s3')}/convoy", method="PUT")
        urllib.request.urlopen(bucket, timeout=30).close()

    def end(self) -> None:
        """End everything, whatever state it is in."""
        sweep(os.getpid())
        for node in self.nodes:
            for process in node.started:
                process.wait()
        for server in self.servers:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def wait_for_port(host: str, port: str) -> None:
    """Return when something listens there."""
    end = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=2).close()
            return
        except OSError:
            assert time.monotonic() < end, f"nothing listens at {host}:{port} after {START_S:.0f} s"
            time.sleep(0.2)


@contextmanager
def machines(number: int, folder: Path) -> Iterator[Machines]:
    """So many machines, with servers, without a Ray as yet. Everything ends with the block, also after a failure."""
    sweep()
    subnet = f"198.18.{os.getpid() % 256}"
    home = folder / "home"
    home.mkdir(parents=True)
    hidden = [() if each == number - 1 else (ROOT, home) for each in range(number)]
    nodes = [
        Node(each, f"{subnet}.{each + 1}", folder / f"node-{each}", hidden[each]) for each in range(number)
    ]
    found = Machines(folder, home, nodes, f"{subnet}.254")
    bridge = f"cvb{os.getpid()}"
    try:
        ip("link", "add", bridge, "type", "bridge")
        ip("address", "add", f"{found.address}/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        for node in nodes:
            node.folder.mkdir()
            node.plug_in(bridge)
            node.boot()
        found.start_servers()
        yield found
    finally:
        found.end()
