"""Enforcement for real: nftables in network namespaces, with three hosts behind a gateway."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
UNIT = HERE.parent / "unit"

PRELUDE = """
import asyncio, json, os, socket, subprocess, sys, time
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from policy_site import *
from policy_parts import QUARANTINE, THROTTLE, alert
from vedette_device.policy_effects import AlertReported
folder = Path(sys.argv[3])
RULES = "[[rule]]\\n" + QUARANTINE
def say(**found):
    print(json.dumps(found))
"""


def in_a_namespace(script: str, folder: Path) -> dict[str, Any]:
    """Run a script in a new network namespace, as a gateway; what it says last is the answer."""
    for name in ("unshare", "ip", "nft"):
        if shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
            pytest.skip(f"{name} is not installed (Debian: nftables, iproute2, util-linux)")
    command = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
    probe = "ip link add near type veth && nft add table inet probe && nft add chain inet probe c"
    tried = subprocess.run([*command, "sh", "-c", probe], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no network namespace with nftables: {tried.stderr.strip()[:200]}")
    done = subprocess.run(
        [*command, sys.executable, "-c", PRELUDE + script, str(HERE), str(UNIT), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_quarantined_host_loses_contact_the_others_do_not_and_it_ends_without_the_node(tmp_path: Path) -> None:
    found = in_a_namespace(
        """
async def main(site):
    h1, h2, h3 = site.hosts
    policy = enforcement(folder, RULES.replace("seconds = 60", "seconds = 12"))
    await policy.start()
    before = [h1.meet("10.0.2.2"), h2.meet("10.0.1.2"), h1.meet("10.0.1.1"), meet("10.0.1.2"),
              h1.meet("fd00:2::2"), h2.meet("fd00:1::2")]
    runner = asyncio.create_task(policy.run())
    await answered(policy, alert("10.0.1.2"), alert("fd00:1::2", 2))
    runner.cancel()
    await asyncio.gather(runner, return_exceptions=True)
    # All at once: the measure is short.
    tries = [asyncio.to_thread(h1.reach_all, "10.0.2.2", "10.0.1.1", "fd00:2::2"),
             asyncio.to_thread(h2.reach_all, "10.0.1.2", "fd00:1::2"), asyncio.to_thread(reach, "10.0.1.2")]
    of_h1, of_h2, of_gateway = await asyncio.gather(*tries)
    during = [*of_h1, *of_h2, of_gateway]
    others = [h2.meet("10.0.3.2"), h3.meet("10.0.2.2"), h2.meet("10.0.2.1"), h2.meet("fd00:3::2"), meet("10.0.3.2")]
    # Nobody tells the kernel anything any more: its own clock ends it.
    ended = eventually(lambda: h1.reach("10.0.2.2") and h1.reach("fd00:2::2"))
    say(before=before, during=during, others=others, ended=ended, told=told(folder))
with site() as made:
    asyncio.run(main(made))
""",
        tmp_path,
    )
    assert found["before"] == [True] * 6
    assert found["during"] == [False] * 6
    assert found["others"] == [True] * 5
    assert found["ended"]
    assert found["told"] == [["quarantine", "begun", "10.0.1.2"], ["quarantine", "begun", "fd00:1::2"]]


def test_on_a_bridge_it_is_cut_off_from_its_neighbours_too_and_dhcp_goes_on(tmp_path: Path) -> None:
    found = in_a_namespace(
        """
async def main(site):
    h1, h2, h3 = site.hosts
    policy = enforcement(folder, RULES)
    await policy.start()
    before = [h1.meet("10.0.0.3"), h1.meet("10.0.0.1")]
    runner = asyncio.create_task(policy.run())
    await answered(policy, alert("10.0.0.2"))
    during = [h1.reach("10.0.0.3"), h3.reach("10.0.0.2"), h1.reach("10.0.0.1"), reach("10.0.0.2")]
    others = [h2.meet("10.0.0.4"), h2.meet("10.0.0.1"), meet("10.0.0.3")]
    heard = []
    for source, port in ((68, 67), (68, 99), (99, 67)):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.bind(("0.0.0.0", port))
            udp.settimeout(1.0)
            h1.ask("send", "10.0.0.1", source, port)
            try:
                heard.append(bool(udp.recv(10)))
            except TimeoutError:
                heard.append(False)
    families = policy._firewall.families
    runner.cancel()
    await asyncio.gather(runner, return_exceptions=True)
    say(before=before, during=during, others=others, heard=heard, families=families)
with site(bridged=True) as made:
    asyncio.run(main(made))
""",
        tmp_path,
    )
    if found["families"] != ["inet", "bridge"]:
        pytest.skip("this kernel has no nftables for bridges")
    assert found["before"] == [True] * 2
    assert found["during"] == [False] * 4
    assert found["others"] == [True] * 3
    assert found["heard"] == [True, False, False]


def test_gateway_broker_next_hop_and_whom_the_operator_names_cannot_be_cut_off(tmp_path: Path) -> None:
    found = in_a_namespace(
        """
async def main(site):
    h1, h2, h3 = site.hosts
    run("ip", "route", "add", "default", "via", "10.0.2.2")
    rules = RULES + '\\nentity = ["*"]'
    policy = enforcement(folder, rules, broker="10.0.3.2", allow=("10.0.1.0/28",))
    await policy.start()
    names = ["10.0.1.1", "10.0.2.1", "10.0.3.1", "fd00:1::1", "127.0.0.1", "10.0.3.2", "::ffff:10.0.3.2", "10.0.2.2",
             "10.0.1.2", "10.0.1.255", "10.0.255.255", "224.0.0.1"]
    runner = asyncio.create_task(policy.run())
    await answered(policy, *(alert(name, i) for i, name in enumerate(names)))
    refused = [entity for event, outcome, entity in told(folder) if outcome == "refused"]
    # What somebody else puts into our sets does not reach them either.
    for address in ("10.0.1.1", "10.0.3.2", "10.0.2.2"):
        for family in policy._firewall.families:
            run("nft", "add", "element", family, "vedette_plant-1", "quarantined4", "{ " + address + " timeout 60s }")
    contact = [h1.meet("10.0.1.1"), h1.meet("10.0.3.2"), h3.meet("10.0.1.2"), h2.meet("10.0.2.1"),
               meet("10.0.3.2"), meet("10.0.2.2")]
    runner.cancel()
    await asyncio.gather(runner, return_exceptions=True)
    # A host that is cut off, and becomes the broker's address: it is let go.
    policy._lookup._allow = ()
    await learned(policy)
    await policy._handle(AlertReported(alert("10.0.1.2", 50)))
    cut = h1.reach("10.0.3.2")
    policy._lookup._hosts = {"the broker": "10.0.1.2"}
    await learned(policy)
    back = h1.meet("10.0.3.2")
    say(names=names, refused=refused, contact=contact, cut=cut, back=back, last=told(folder)[-1])
with site() as made:
    asyncio.run(main(made))
""",
        tmp_path,
    )
    assert found["refused"] == found["names"]
    assert found["contact"] == [True] * 6
    assert found["cut"] is False
    assert found["back"] is True
    assert found["last"] == ["quarantine", "ended", "10.0.1.2"]


def test_a_throttle_slows_one_host_and_no_other(tmp_path: Path) -> None:
    found = in_a_namespace(
        """
async def main(site):
    h1, h2, h3 = site.hosts
    policy = enforcement(folder, "[[rule]]\\n" + THROTTLE)
    await policy.start()
    runner = asyncio.create_task(policy.run())
    await answered(policy, alert("10.0.1.2"))
    slow = [h1.pull("10.0.2.2", 3.0), h2.pull("10.0.1.2", 3.0)]
    free = h3.pull("10.0.2.2", 3.0)
    runner.cancel()
    await asyncio.gather(runner, return_exceptions=True)
    say(slow=slow, free=free)
with site() as made:
    asyncio.run(main(made))
""",
        tmp_path,
    )
    # A bucket of rate and burst, and what the rate adds: no more can come through, however long it took.
    for got, took_s in found["slow"]:
        assert 0 < got <= (16 * took_s + 16 + 64) * 1024
    got, took_s = found["free"]
    assert got > (16 * took_s + 16 + 64) * 1024


def test_a_restart_goes_on_with_what_was_in_force_and_a_release_ends_it(tmp_path: Path) -> None:
    found = in_a_namespace(
        """
async def begin():
    policy = enforcement(folder, RULES)
    await policy.start()
    runner = asyncio.create_task(policy.run())
    await answered(policy, alert("10.0.1.2"))
    os._exit(9)  # the power goes

async def main(site):
    h1, h2, h3 = site.hosts
    down = h1.reach("10.0.2.2")
    # A reboot: the kernel has forgotten everything, the store has not.
    run("nft", "flush", "ruleset")
    open_again = h1.meet("10.0.2.2")
    policy = enforcement(folder, RULES)
    await policy.start()
    runner = asyncio.create_task(policy.run())
    await answered(policy, alert("10.0.1.2"))  # published again after the crash: it was answered already
    again = h1.reach("10.0.2.2")
    left = [m.until - m.since for m in policy.machine.in_force]
    # Somebody flushes the ruleset while the node runs.
    run("nft", "flush", "ruleset")
    await policy._look_after(policy._firewall)
    flushed = h1.reach("10.0.2.2")
    policy._store.put("policy-request/1", b"10.0.1.2")
    while policy._store.get("policy-request/1") is not None:
        await asyncio.sleep(0.05)
    released = h1.meet("10.0.2.2")
    runner.cancel()
    await asyncio.gather(runner, return_exceptions=True)
    await policy.stop()
    say(down=down, open_again=open_again, again=again, left=left, flushed=flushed, released=released, told=told(folder))

with site() as made:
    pid = os.fork()
    if pid == 0:
        asyncio.run(begin())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    asyncio.run(main(made))
""",
        tmp_path,
    )
    assert (found["down"], found["open_again"], found["again"], found["flushed"]) == (False, True, False, False)
    assert found["released"] is True
    assert found["left"] == [60.0]
    assert found["told"] == [
        ["quarantine", "begun", "10.0.1.2"],
        ["firewall", "restored", ""],
        ["quarantine", "released", "10.0.1.2"],
    ]


def test_only_its_own_table_is_touched_and_removed(tmp_path: Path) -> None:
    found = in_a_namespace(
        """
OTHERS = '''
table inet vedette_plant-10 { chain c { type filter hook forward priority 0; policy accept; counter; }
}
table ip filter { set quarantined4 { type ipv4_addr; elements = { 10.9.9.9 } ; }
  chain c { ip saddr @quarantined4 drop; }
}
'''
def others():
    return [run("nft", "list", "table", *t) for t in (("inet", "vedette_plant-10"), ("ip", "filter"))]

async def main():
    run("ip", "link", "set", "lo", "up")
    subprocess.run(["nft", "-f", "-"], input=OTHERS, text=True, check=True)
    before = others()
    policy = enforcement(folder, RULES, quarantine_s_max=60)
    await policy.start()
    there = run("nft", "list", "tables").splitlines()
    await policy._look_after(policy._firewall)
    await policy._install(policy._firewall)  # twice is once
    same = others() == before
    await policy.stop()
    gone = run("nft", "list", "tables").splitlines()
    # The table of another device of the same site is none of ours.
    run("nft", "add", "table", "inet", "vedette_plant-1")
    run("nft", "add", "chain", "inet", "vedette_plant-1", "of_gw-02")
    words = ""
    policy = enforcement(folder, RULES)
    try:
        await policy.start()
    except Exception as fault:
        words = str(fault)
    kept = run("nft", "list", "table", "inet", "vedette_plant-1")
    say(there=there, gone=gone, same=same and others() == before, words=words, kept="of_gw-02" in kept)
asyncio.run(main())
""",
        tmp_path,
    )
    assert {"table inet vedette_plant-1", "table inet vedette_plant-10", "table ip filter"} <= set(found["there"])
    assert found["gone"] == ["table inet vedette_plant-10", "table ip filter"]
    assert found["same"]
    assert "found the table inet vedette_plant-1 of gw-02, expected none or gw-01's" in found["words"]
    assert found["kept"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody without rights")
def test_without_the_right_it_says_which_is_missing() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        found = in_a_namespace(
            """
import vedette_device.enforcement, vedette_core.runtime.storage, encodings.idna
enforcement(folder / "first", RULES)  # everything is imported, also what nobody else may read
os.setgroups([]); os.setgid(65534); os.setuid(65534)
async def main():
    policy = enforcement(folder / "second", RULES)
    try:
        await policy.start()
    except Exception as fault:
        say(kind=type(fault).__name__, words=str(fault))
    await policy.stop()
asyncio.run(main())
""",
            Path(folder),
        )
    assert found["kind"] == "ConfigError"
    assert "CAP_NET_ADMIN" in found["words"]
    assert "runs as user 65534 and lacks it" in found["words"]


def test_the_command_releases_what_a_stopped_node_left(tmp_path: Path) -> None:
    found = in_a_namespace(
        """
async def main(site):
    h1, h2, h3 = site.hosts
    policy = enforcement(folder, RULES)
    await policy.start()
    runner = asyncio.create_task(policy.run())
    await answered(policy, alert("10.0.1.2"))
    runner.cancel()
    await asyncio.gather(runner, return_exceptions=True)
    await policy.stop()
    stopped = h1.reach("10.0.2.2")
    from vedette_device import policy_operator
    from policy_parts import device_settings
    settings = device_settings(folder, RULES, dry_run=False)
    shown = policy_operator.status(settings)
    ended = await policy_operator.release(settings, "10.0.1.2")
    after = policy_operator.status(settings)
    say(stopped=stopped, shown=shown, ended=ended, released=h1.meet("10.0.2.2"), after=after)
with site() as made:
    asyncio.run(main(made))
""",
        tmp_path,
    )
    assert found["stopped"] is False
    (measure,) = found["shown"]["measures"]
    assert (measure["entity"], measure["mode"]) == ("10.0.1.2", "live")
    assert found["ended"] == ["quarantine of 10.0.1.2"]
    assert found["released"] is True
    assert found["after"]["measures"] == []
    assert found["after"]["audit"]["lines"] == 2
