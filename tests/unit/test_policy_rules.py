"""Rules: which alerts they are for, how often they act, what a wrong file is told, and whom no rule can name."""

from __future__ import annotations

from pathlib import Path

import pytest
from policy_parts import ALLOWED, BROKER, GATEWAY, QUARANTINE, ROUTER, alert, protection, rules

from vedette_device.policy_history import DONE_MAX, ENTITIES_MAX, History
from vedette_device.policy_protection import Protection
from vedette_device.policy_rules import Verdict, WebhookRule, decide, parse_policy
from vedette_schemas.alert import Alert
from vedette_schemas.errors import ConfigError, PeerError, RefusedError

EXAMPLE = Path(__file__).parents[2] / "device_node" / "policy.example.toml"


def matching(conditions: str, found: Alert) -> bool:
    return rules(f'name = "r"\naction = "log"\n{conditions}').rule[0].matches(found)


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ("", True),
        ('detector = ["network"]', True),
        ('detector = ["sensor"]', False),
        ('detector = ["sensor", "network"]', True),
        ('kind = ["sustained"]', False),
        ('severity_min = "high"', True),
        ('severity_min = "critical"', False),
        ("confidence_min = 0.9", True),
        ("confidence_min = 0.91", False),
        ('feature = ["syn_*"]', True),
        ('feature = ["dns_*", "?yn_count"]', True),
        ('feature = ["dns_*"]', False),
        ('entity = ["192.168.10.*"]', True),
        ('entity = ["192.168.11.*", "192.168.10.0/27"]', True),
        ('entity = ["192.168.10.128/25"]', False),
        ('entity = ["fd00:10::/64"]', False),
        ('state = ["closed"]', False),
        ('detector = ["network"]\nseverity_min = "critical"', False),
    ],
)
def test_a_rule_matches_when_all_of_its_conditions_do(conditions: str, expected: bool) -> None:
    assert matching(conditions, alert()) is expected


def test_a_condition_on_a_network_never_matches_what_is_no_address() -> None:
    assert not matching('entity = ["0.0.0.0/0"]', alert("tank-1", detector="sensor"))
    assert matching('entity = ["tank-*"]', alert("tank-1", detector="sensor"))


def test_a_rule_without_features_matches_an_alert_without_features() -> None:
    assert matching("", alert(features=()))
    assert not matching('feature = ["*"]', alert(features=()))


def test_every_rule_that_matches_answers_in_the_order_of_the_file_and_nothing_is_changed() -> None:
    policy = rules('name = "b"\naction = "log"', QUARANTINE, 'name = "never"\naction = "log"\ndetector = ["sensor"]')
    history = History()
    first = decide(alert(), 100.0, history, policy)
    assert [d.rule.name for d in first] == ["b", "cut"]
    assert decide(alert(), 100.0, history, policy) == first
    assert history == History()


def test_a_rule_acts_once_for_an_alert_or_once_for_every_report() -> None:
    often = 'name = "r"\naction = "log"\ncooldown_s = 0\nonce = '
    for once, expected in (("true", Verdict.DONE), ("false", Verdict.ACT)):
        rule, history = rules(often + once).rule[0], History()
        history.acted(rule, alert(), 0.0)
        assert history.verdict(rule, alert(), 1.0) is Verdict.DONE
        assert history.verdict(rule, alert(seq=1, state="updated"), 1.0) is expected
        assert history.verdict(rule, alert(number=2), 1.0) is Verdict.ACT


def test_the_cool_down_is_an_entitys_and_the_limit_a_rules() -> None:
    rule = rules('name = "r"\naction = "log"\ncooldown_s = 60\nper_hour_max = 2').rule[0]
    history = History()
    history.acted(rule, alert(), 0.0)
    assert history.verdict(rule, alert(number=2), 59.9) is Verdict.COOLDOWN
    assert history.verdict(rule, alert(number=2), 60.0) is Verdict.ACT
    assert history.verdict(rule, alert("192.168.10.21", 3), 1.0) is Verdict.ACT
    history.acted(rule, alert("192.168.10.21", 3), 1.0)
    assert history.verdict(rule, alert("192.168.10.22", 4), 2.0) is Verdict.LIMIT
    assert history.verdict(rule, alert("192.168.10.22", 4), 3600.0) is Verdict.ACT


def test_a_history_is_bounded_and_survives_a_restart() -> None:
    rule, history = rules('name = "r"\naction = "log"\ncooldown_s = 60\nper_hour_max = 3').rule[0], History()
    for i in range(DONE_MAX + 50):
        history.acted(rule, alert(f"host-{i}", i), float(i))
    assert (len(history.done), len(history.last)) == (DONE_MAX, ENTITIES_MAX)
    again = History.from_bytes(history.to_bytes())
    assert again == history
    history.shift(-10.0)
    assert history.last["r host-900"] == again.last["r host-900"] - 10.0


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x94\x02\x90\x80\x80", b"\x94\x01\x90\x80", b"\x94\x01\xc0\xc0\xc0"])
def test_bytes_that_are_no_history_are_refused(data: bytes) -> None:
    with pytest.raises(PeerError, match="policy history"):
        History.from_bytes(data)


def test_the_example_is_accepted_and_shows_every_action() -> None:
    policy = parse_policy(EXAMPLE.read_text(), "example")
    assert {rule.action for rule in policy.rule} == {"log", "publish", "throttle", "quarantine", "webhook", "exec"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = [", "no valid TOML"),
        ("", "key 'rule' is missing"),
        ("rule = []", "at least 1"),
        ("[[rules]]", "did you mean 'rule'"),
        ('[[rule]]\nname = "a"', "key 'action' is missing, expected one of log, publish"),
        ('[[rule]]\nname = "a"\naction = "ban"', "found action 'ban', expected one of log, publish"),
        ('[[rule]]\naction = "log"', "rule 1: key 'name' is missing"),
        (
            '[[rule]]\nname = "a"\naction = "quarantine"\nsecond = 5',
            "rule 1 ('a'): unknown key 'second'; did you mean 'seconds'",
        ),
        ('[[rule]]\nname = "a"\naction = "quarantine"\nseconds = 0', "rule 1 ('a'): seconds: found 0"),
        ('[[rule]]\nname = "a"\naction = "quarantine"\nseconds = inf', "seconds"),
        ('[[rule]]\nname = "a"\naction = "quarantine"\nseconds = 2592001', "seconds: found 2592001"),
        ('[[rule]]\nname = "a"\naction = "throttle"', "key 'kbytes_per_s' is missing"),
        ('[[rule]]\nname = "a"\naction = "log"\ndetector = ["camera"]', "no alert says 'camera'"),
        ('[[rule]]\nname = "a"\naction = "log"\nseverity_min = "loud"', "severity_min: found 'loud'"),
        ('[[rule]]\nname = "a"\naction = "log"\nstate = []', "state"),
        ('[[rule]]\nname = "a"\naction = "log"\nentity = ["10.0.0.1/8"]', "has host bits set"),
        ('[[rule]]\nname = "A b"\naction = "log"', "name: found 'A b'"),
        (
            '[[rule]]\nname = "a"\naction = "exec"\ncommand = ["rm"]',
            "found the program 'rm', expected an absolute path",
        ),
        ('[[rule]]\nname = "a"\naction = "exec"\ncommand = []', "command"),
        ('[[rule]]\nname = "a"\naction = "publish"\ntopic = "a/#"', "topic: found 'a/#'"),
        ('[[rule]]\nname = "a"\naction = "log"\n' * 2, "found two rules of the name 'a'"),
    ],
)
def test_a_wrong_file_is_told_what_was_found_where(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as fault:
        parse_policy(text, "rules.toml")
    assert str(fault.value).startswith("rules.toml: ")
    assert said in str(fault.value)


def test_there_are_at_most_sixteen_rates() -> None:
    table = 'name = "r-{0}"\naction = "throttle"\nkbytes_per_s = {0}'
    assert len(rules(*(table.format(i) for i in range(1, 17))).rates) == 16
    with pytest.raises(ConfigError, match="17 different kbytes_per_s"):
        rules(*(table.format(i) for i in range(1, 18)))


@pytest.mark.parametrize(
    "url",
    [
        "https://soc.example.org/x?y=1",
        "http://127.0.0.1:8080/",
        "http://[::1]/hook",
        "http://localhost/",
        "http://127.9.9.9",
    ],
)
def test_a_webhook_goes_to_https_or_to_this_machine(url: str) -> None:
    assert WebhookRule(name="w", action="webhook", url=url).url == url


@pytest.mark.parametrize(
    "url",
    [
        "http://soc.example.org/",
        "http://127.0.0.1.example.org/",
        "http://2130706433/",
        "ftp://127.0.0.1/",
        "file:///etc/passwd",
        "https:///x",
        "https://user:word@example.org/",
        "https://example.org:99999/",
        "https://example.org/a b",
        "https://example.org/\r\nX: y",
        "https://ex\u00e4mple.org/",
    ],
)
def test_a_webhook_goes_nowhere_else(url: str) -> None:
    with pytest.raises(ValueError):
        WebhookRule(name="w", action="webhook", url=url)


def test_plain_http_to_others_must_be_allowed() -> None:
    assert WebhookRule(name="w", action="webhook", url="http://10.0.0.9/", plain_http_allowed=True)


@pytest.mark.parametrize(
    ("entity", "rule"),
    [
        (GATEWAY, "protected"),
        (BROKER, "protected"),
        (ROUTER, "protected"),
        ("192.168.10.70", "protected"),
        (f"::ffff:{BROKER}", "protected"),
        ("192.168.10.255", "protected"),
        ("192.168.10.0", "protected"),
        ("255.255.255.255", "protected"),
        ("224.0.0.251", "protected"),
        ("127.0.0.1", "protected"),
        ("0.0.0.0", "protected"),
        ("::1", "protected"),
        ("::", "protected"),
        ("ff02::1", "protected"),
        ("fd00:10::1", "protected"),
        ("8.8.8.8", "elsewhere"),
        ("fd00:11::5", "elsewhere"),
        ("tank-1", "address"),
        ("", "address"),
        ("192.168.10.20/32", "address"),
        ("fe80::1%eth0", "address"),
        ("192.168.10.020", "address"),
        (" 192.168.10.20", "address"),
    ],
)
def test_who_is_never_cut_off(entity: str, rule: str) -> None:
    with pytest.raises(RefusedError) as refusal:
        protection().check(entity)
    assert refusal.value.rule == rule


def test_who_may_be_cut_off() -> None:
    for entity in ("192.168.10.20", "::ffff:192.168.10.20"):
        assert str(protection().check(entity)) == "192.168.10.20"
    assert str(protection().check("fd00:10:0::0020")) == "fd00:10::20"


def test_a_single_host_as_a_local_network_is_no_broadcast_address() -> None:
    found = Protection.of(["10.1.1.1/32", "10.1.2.0/31"], {})
    assert [str(found.check(a)) for a in ("10.1.1.1", "10.1.2.0", "10.1.2.1")] == ["10.1.1.1", "10.1.2.0", "10.1.2.1"]


def test_the_firewall_is_given_every_protected_network() -> None:
    found = protection(other=("::ffff:10.9.0.0/112",))
    four, six = found.networks(4), found.networks(6)
    for text in (GATEWAY, BROKER, ROUTER, "192.168.10.79", "127.5.5.5", "239.1.1.1", "10.9.77.1"):
        assert any(Protection.of([text], {}).local[0].subnet_of(network) for network in four), text  # type: ignore[arg-type]
    assert [str(n) for n in six] == ["::/127", "fd00:10::1/128", "ff00::/8"]
    assert ALLOWED in {str(n) for n in found.protected}
