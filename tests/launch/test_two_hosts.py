"""A run over two hosts has the loss curve of a run on one.

The hosts are network namespaces joined by a cable: each has its own loopback and one address that the other can reach.
Where they cannot be made (not root), two loopback addresses stand in for them, and the test says so.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from anytext2.synthetic.dataset import SyntheticConfig, write_dataset
from distill.tracking.metric_names import LOSS, read_metrics
from launch import train
from tests.helpers.models.mini_model import write_mini
from tests.helpers.paths import ROOT
from tests.helpers.processes.ranks import all_output, returned, run_ranks

pytestmark = pytest.mark.process

STEPS = 4
CABLE = "cable"
CLONE_NEWNET = 0x40000000
RECIPE = f"""
data:
  workers: 0
  options: {{resolution: 64, max_lines: 1}}
objective: {{name: consistency, w_min: 2.0, w_max: 4.0, solver_steps: 10, teacher_interval: 100}}
lora: {{rank: 2, alpha: 4}}
train:
  max_steps: {STEPS}
  effective_batch: 8
  micro_batch: 4
  learning_rate: 2.0e-3
  threads: 1
log: {{every: 1}}
tracking: {{enabled: false}}
"""


@dataclass(frozen=True)
class Host:
    """namespace: its file, or None for this machine's own. interface: what its ranks are reached through, or empty."""

    address: str
    namespace: str | None = None
    interface: str = ""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[Host]]:
    names = [f"host{n}-{os.getpid()}" for n in (0, 1)]
    made = []
    try:
        for name in names:
            ip("netns", "add", name)
            made.append(name)
        ip("-n", names[0], "link", "add", CABLE, "type", "veth", "peer", "name", CABLE, "netns", names[1])
        for n, name in enumerate(names):
            ip("-n", name, "address", "add", f"10.77.0.{n + 1}/30", "dev", CABLE)
            for device in ("lo", CABLE):
                ip("-n", name, "link", "set", device, "up")
        yield [Host(f"10.77.0.{n + 1}", f"/run/netns/{name}", CABLE) for n, name in enumerate(names)]
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", "") or str(error)
        print(f"no network namespaces here ({reason.strip()}): two loopback addresses instead")
        yield [Host("127.0.0.1"), Host("127.0.0.2")]
    finally:
        for name in made:
            ip("netns", "delete", name)


def on_its_host(argv: list[str], hosts: list[Host]) -> tuple[int, int]:
    """Trains as one rank a host; the exit code, and the number of this rank's network namespace."""
    host = hosts[int(os.environ["RANK"])]
    if host.namespace is not None:
        with open(host.namespace) as namespace:
            assert ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET) == 0
        os.environ["GLOO_SOCKET_IFNAME"] = host.interface
    os.environ |= {"MASTER_ADDR": hosts[0].address, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    return train.main(argv), os.stat("/proc/self/ns/net").st_ino


@pytest.fixture(scope="module")
def argv(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("hosts")
    write_dataset(folder / "data", 16, SyntheticConfig(size=96), seed=4)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    own = [*write_mini(folder), f"data.sources=[{folder / 'data' / 'data.json'}]", f"run_root={folder}"]
    config = ["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), "--config", str(folder / "recipe.yaml")]
    return [*config, *own]


def losses(argv: list[str], name: str) -> dict[int, float]:
    (root,) = [word.removeprefix("run_root=") for word in argv if word.startswith("run_root=")]
    return {record["step"]: record[LOSS] for record in read_metrics(Path(root) / name)}


def test_two_hosts_have_the_loss_curve_of_one(argv: list[str], hosts: list[Host]) -> None:
    here = os.stat("/proc/self/ns/net").st_ino
    together = run_ranks(2, on_its_host, [*argv, "name=one"], [Host("127.0.0.1")] * 2)
    assert returned(together) == [(0, here)] * 2, all_output(together)
    apart = run_ranks(2, on_its_host, [*argv, "name=two"], hosts)
    codes, namespaces = zip(*returned(apart), strict=True)
    assert codes == (0, 0), all_output(apart)
    if hosts[0].namespace:
        assert len({here, *namespaces}) == 3
    one, two = losses(argv, "one"), losses(argv, "two")
    assert list(one) == list(range(1, STEPS + 1)) and one == two
