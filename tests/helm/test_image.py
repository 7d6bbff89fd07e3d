"""The image, without a container engine: its steps run one after the other, and what they make runs without rights."""

from __future__ import annotations

import grp
import json
import os
import pwd
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from tests.helm.dockerfile import lets_through, read_dockerfile
from tests.servers.helm import CHART
from tests.servers.pki import Pki, write_pki
from tests.servers.ports import LOOPBACK, Ports, wait_until_listening
from tests.servers.programs import ROOT, require
from tests.servers.wire import Wire

DOCKERFILE = ROOT / "Dockerfile"
IGNORED = ROOT / ".dockerignore"
BUILD, IMAGE = read_dockerfile(DOCKERFILE)
NOBODY = 10001  # as in the Dockerfile: a test says so
PREFIX = BUILD.environment()["PREFIX"]
HEALTHCHECK = json.loads(IMAGE.last("HEALTHCHECK").partition(" CMD ")[2])
AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
WITHOUT_RIGHTS = [*AS_NOBODY, "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
# A container's view: a small /etc, a root that nobody can write to, and /tmp as large as the chart's.
CONTAINER = """
set -e
mount --bind "$1" /etc
mount -o remount,bind,ro /etc
mount -t tmpfs -o size=16m,mode=1777 tmpfs /tmp
if mountpoint -q /dev/shm; then mount -o remount,bind,ro /dev/shm; fi
mount -o remount,bind,ro /
shift
exec "$@"
"""


# --- its form ---


def test_two_stages_of_the_same_base() -> None:
    assert BUILD.name == "build"
    assert IMAGE.base == BUILD.base
    assert IMAGE.all("RUN") == [], "what runs has nothing that its build needed"
    assert IMAGE.all("COPY") == [f"--from=build {PREFIX} {PREFIX}"], "programs name their interpreter by its path"


def test_nobody_runs_it_and_no_shell() -> None:
    assert IMAGE.last("USER") == f"{NOBODY}:{NOBODY}"
    commands = [IMAGE.words("ENTRYPOINT"), IMAGE.words("CMD"), HEALTHCHECK]
    assert all(isinstance(word, str) for command in commands for word in command)
    assert IMAGE.last("STOPSIGNAL") == "SIGTERM"
    assert IMAGE.environment()["PATH"] == f"{PREFIX}/bin:$PATH"


def test_it_is_what_the_chart_expects() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    context = values["podSecurityContext"]
    assert context["runAsUser"] == context["runAsGroup"] == context["fsGroup"] == NOBODY
    assert IMAGE.words("CMD") == ["serve", "-c", "/etc/imap-porter/porter.yaml"]
    addresses = [listener["address"] for listener in values["settings"]["listeners"]]
    addresses += [values["settings"][key]["address"] for key in ("admin", "metrics")]
    assert sorted(IMAGE.last("EXPOSE").split()) == sorted(address.rpartition(":")[2] for address in addresses)


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("proxy/__init__.py", True),
        ("proxy/admin/console/index.html", True),
        ("pyproject.toml", True),
        ("proxy/__pycache__/x.pyc", False),
        ("proxy/imap/__pycache__/x.pyc", False),
        ("tests/conftest.py", False),
        ("config/porter.yaml", False),
        (".git/config", False),
        (".env", False),
    ],
)
def test_only_the_program_is_sent_to_the_builder(path: str, sent: bool) -> None:
    assert lets_through(IGNORED, PurePosixPath(path)) is sent


# --- its content ---


@dataclass
class Built:
    """What the steps have made, and an /etc with the settings for it."""

    folder: Path
    prefix: Path
    etc: Path


@pytest.fixture(scope="module")
def built() -> Iterator[Built]:
    """Outside /tmp, which the container has its own of; readable for everybody, as an image is."""
    folder = Path(tempfile.mkdtemp(prefix="imap-porter-image-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        source, prefix = folder / "src", folder / "image"
        send(source)
        give_away(folder)
        run_steps(source, prefix, folder)
        yield Built(folder, prefix, folder / "etc")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def send(source: Path) -> None:
    """What COPY names of what .dockerignore lets through."""
    for line in BUILD.all("COPY"):
        *names, target = line.split()
        for name in names:
            path = ROOT / name
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                relative = file.relative_to(ROOT)
                if file.is_file() and lets_through(IGNORED, PurePosixPath(relative)):
                    place = source / target / (relative if path.is_file() else file.relative_to(path))
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(file, place)


def give_away(folder: Path) -> None:
    """Nobody owns it, if that is to be had."""
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, NOBODY, NOBODY)


def run_steps(source: Path, prefix: Path, home: Path) -> None:
    environment = {
        **os.environ,
        "HOME": str(home),
        "PREFIX": str(prefix),
        "WHEELS": str(home / "wheels"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    for step in BUILD.all("RUN"):
        ran = subprocess.run(
            [*(AS_NOBODY if os.geteuid() == 0 else []), "sh", "-c", step],
            cwd=source,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert ran.returncode == 0, f"{step}\n{ran.stdout}{ran.stderr}"


@pytest.mark.server
def test_the_steps_make_the_program(built: Built) -> None:
    command = [str(built.prefix / "bin" / IMAGE.words("ENTRYPOINT")[0]), "--version"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True, cwd="/", env={})
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] in shown.stdout
    (package,) = built.prefix.glob("lib/python3.*/site-packages/proxy")
    sent = {path.relative_to(built.folder / "src" / "proxy") for path in (built.folder / "src" / "proxy").rglob("*")}
    assert {path for path in sent if not (package / path).exists()} == set(), "files that the wheel leaves out"
    sources = [path for path in package.rglob("*.py") if path.stat().st_size]
    compiled = {path.name.split(".")[0] for path in package.rglob("*.pyc")}
    assert {path.stem for path in sources} - compiled == set(), "nothing can be compiled at run time"
    assert list(built.prefix.rglob("site-packages/pytest")) == []
    assert list(built.prefix.rglob("site-packages/pip")) == []


@dataclass
class Container:
    """The image's command as it runs."""

    process: subprocess.Popen[bytes]
    environment: dict[str, str]
    settings: dict[str, Any]
    log: Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Another command in the same place with the same rights."""
        return subprocess.run(
            ["nsenter", f"--target={self.process.pid}", "--mount", *WITHOUT_RIGHTS, *command],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def check_alive(self) -> None:
        assert self.process.poll() is None, self.log.read_text()


@pytest.fixture
def ports() -> Iterator[Ports]:
    taken = Ports()
    yield taken
    taken.close()


@pytest.fixture
def sink(ports: Ports) -> Iterator[int]:
    port = ports.take()
    process = subprocess.Popen([sys.executable, "-m", "tests.servers.sink", str(port)], cwd=ROOT)
    try:
        wait_until_listening({port}, 20, lambda: None)
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return write_pki(tmp_path / "pki")


@pytest.fixture
def container(built: Built, sink: int, ports: Ports, pki: Pki, tmp_path: Path) -> Iterator[Container]:
    """Started by ENTRYPOINT and CMD with the chart's settings; only ports are others, and less time for the drain."""
    require("nsenter")
    permitted = subprocess.run(
        ["unshare", "--mount", "mount", "--bind", "/etc", "/etc"], capture_output=True, check=False
    )
    if permitted.returncode:
        pytest.skip("unshare --mount is not permitted")
    settings = yaml.safe_load((CHART / "values.yaml").read_text())["settings"]
    for section in (*settings["listeners"], settings["admin"], settings["metrics"]):
        section["address"] = f"{LOOPBACK}:{ports.take()}"
    settings["backends"] = {"servers": [{"name": "sink", "url": f"imap://{LOOPBACK}:{sink}"}]}
    settings["timeouts"] = {"drain_grace": "1s", "drain": "2s"}
    write_etc(built.etc, settings, pki)
    environment = {key: value.replace(PREFIX, str(built.prefix)) for key, value in IMAGE.environment().items()}
    environment = {**environment, "PATH": environment["PATH"].replace("$PATH", os.defpath), "HOME": "/"}
    command = [*IMAGE.words("ENTRYPOINT"), *IMAGE.words("CMD")]
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", CONTAINER, "sh", str(built.etc), *WITHOUT_RIGHTS, *command],
            cwd="/",
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    running = Container(process, environment, settings, log)
    try:
        listening = {port_of(section) for section in (*settings["listeners"], settings["admin"])}
        wait_until_listening(listening, 20, running.check_alive)
        yield running
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait(5)


def port_of(section: dict[str, Any]) -> int:
    return int(section["address"].rpartition(":")[2])


def write_etc(etc: Path, settings: dict[str, Any], pki: Pki) -> None:
    """The settings and the certificate where the chart mounts them, with a kubelet's modes; no account for nobody."""
    mounted = etc / "imap-porter"
    (mounted / "tls").mkdir(parents=True, exist_ok=True)
    for name in ("hosts", "nsswitch.conf", "passwd", "group", "ld.so.cache", "ld.so.conf"):
        if (Path("/etc") / name).exists():
            shutil.copy(Path("/etc") / name, etc)
    (mounted / "porter.yaml").write_text(yaml.safe_dump(settings))
    for source, name in ((pki.certificate, "tls.crt"), (pki.private_key, "tls.key")):
        shutil.copy(source, mounted / "tls" / name)
        os.chown(mounted / "tls" / name, 0, NOBODY)
        (mounted / "tls" / name).chmod(0o440)


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_size) for path in folder.rglob("*")}


@pytest.mark.server
def test_it_runs_without_rights(container: Container, built: Built, pki: Pki) -> None:
    before = everything(built.folder)
    status = Path(f"/proc/{container.process.pid}/status").read_text().splitlines()
    facts = dict(line.split(":\t", 1) for line in status if ":\t" in line)
    assert facts["Uid"].split() == facts["Gid"].split() == [str(NOBODY)] * 4
    assert [facts[key] for key in ("CapPrm", "CapEff", "CapBnd", "CapInh")] == ["0" * 16] * 4
    with pytest.raises(KeyError):
        pwd.getpwuid(NOBODY)
    with pytest.raises(KeyError):
        grp.getgrgid(NOBODY)
    for place in ("/etc", "/var/tmp", "/dev/shm", str(built.prefix)):
        assert container.run("touch", f"{place}/x").returncode != 0, place

    imaps, starttls = map(port_of, container.settings["listeners"])
    with Wire.connect(imaps, pki.client_context()) as client, Wire.connect(starttls) as other:
        assert client.login("ann", "any-pass-will-do-8k").startswith(b"OK")
        other.starttls(pki.client_context())
        assert other.login("bob", "any-pass-will-do-8k").startswith(b"OK")
        for path in ("livez", "readyz"):
            with urllib.request.urlopen(
                f"http://{container.settings['admin']['address']}/{path}", timeout=10
            ) as answer:
                assert answer.status == 200

        well = container.run(*HEALTHCHECK)
        assert well.returncode == 0, well.stderr
        assert "processes" in json.loads(well.stdout)
        looked = container.run(*shlex.split("imap-porter backends"))
        assert (looked.returncode, "sink" in looked.stdout) == (0, True), looked.stderr
        used = container.run("du", "-sk", "/tmp")
        assert int(used.stdout.split()[0]) < 1024, "of the 16 MiB that the chart gives"

        container.process.send_signal(signal.Signals[IMAGE.last("STOPSIGNAL")])
        assert client.rest().startswith(b"* BYE")
        assert other.rest().startswith(b"* BYE")
        assert container.process.wait(20) == 0, container.log.read_text()
    lines = [json.loads(line) for line in container.log.read_text().splitlines()]
    assert [line for line in lines if line["level"] in ("error", "critical")] == []
    assert everything(built.folder) == before


@pytest.mark.server
def test_where_nobody_answers_it_is_not_healthy(container: Container) -> None:
    assert container.run("rm", "/tmp/admin.sock").returncode == 0
    assert container.run(*HEALTHCHECK).returncode != 0
